//! Chitchat behind typed keys, carried by the fabric, published as a ClusterView on a watch.
