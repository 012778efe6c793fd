//! Client-facing and node-to-node wire types, versioned, with their error codes.
