//! The client commands of atoll: sandboxes, snapshots, keys, regions and status over the API.
