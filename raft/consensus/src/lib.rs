//! openraft over the fabric: stores on sled and redb, many groups in one process.
