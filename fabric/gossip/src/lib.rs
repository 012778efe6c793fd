//! Chitchat behind typed keys, carried by the fabric, published as a ClusterView on a watch.
//!
//! ```text
//! publish(NodeReport) -> signed values -> chitchat <-> peers
//!                                            |
//! view() <- ClusterView <- verified reports -+      + liveness (chitchat's heartbeats) + round trips (the fabric's)
//! ```
//! Mutual TLS proves the last hop, not the origin, and chitchat relays what others wrote: so each node signs its values
//! with the key of its certificate, and a value that is not so signed, or was signed for another node or another start of
//! the process, is dropped. What remains is still a hint.
//!
//! ```text
//! report     what a node says about itself           values     its signed form: keys, envelope, verification
//! view       the mesh as one node sees it            observer   from members and values to the view: pure
//! members    limits and the failure detector         socket     chitchat's transport over the fabric
//! gossip     starts it all and keeps it in step
//! ```

mod gossip;
mod members;
mod observer;
mod report;
mod socket;
mod values;
mod view;

pub use gossip::{Gossip, GossipConfig, GossipError, GossipHandle};
pub use members::{MEMBERS_MAX, interval_for};
pub use report::{NodeReport, PoolReport};
pub use view::{ClusterView, NodeView};
