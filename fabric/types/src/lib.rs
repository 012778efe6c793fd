//! The nouns of the mesh: ids, shapes, specs, phases, capacity, generations.
//!
//! Nothing here does I/O, reads a clock or draws chance: those come in as arguments. Every type that can be wrong
//! is parsed once, at the door; a value of the type is the proof.

mod capacity;
mod fit;
mod generation;
mod id;
mod name;
mod network;
mod phase;
mod shape;
mod spec;
mod time;

pub use capacity::{Capacity, NodeLimits, Overcommit, Quota};
pub use fit::{Accelerator, Fit, GuestNetwork, HypervisorKind, Isolation, Seal, SealGap};
pub use generation::Generation;
pub use id::{IdError, KeyId, NodeId, RegionCode, SandboxId, SnapshotId};
pub use name::{Digest, Labels, Name, NameError};
pub use network::{DomainPattern, NETWORK_RULES_MAX, NetworkError, NetworkPolicy, network_range};
pub use phase::{FailReason, IllegalTransition, Phase, PhaseEvent, transition};
pub use shape::{DiskGib, MemoryMib, Shape, ShapeError, Vcpus};
pub use spec::{Desired, Intervals, OrganizationId, SandboxSpec, Source};
pub use time::{Minutes, UnixMillis};
