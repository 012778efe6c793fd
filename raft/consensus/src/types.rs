//! The types that openraft is given. Nothing outside this crate sees them.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;

use fabric_types::{NodeId, RegionCode};
use openraft::RaftTypeConfig;
use openraft::alias::{CommittedLeaderIdOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use raft_placement::{Machine, Outcome, Versioned};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// openraft's type configuration for a machine.
pub(crate) struct Types<M>(PhantomData<fn() -> M>);

pub(crate) type Entry<M> = <Types<M> as RaftTypeConfig>::Entry;
pub(crate) type Vote<M> = VoteOf<Types<M>>;
pub(crate) type LogId<M> = LogIdOf<Types<M>>;
pub(crate) type LeaderId<M> = CommittedLeaderIdOf<Types<M>>;
pub(crate) type Membership<M> = StoredMembershipOf<Types<M>>;
pub(crate) type SnapshotMeta<M> = SnapshotMetaOf<Types<M>>;
/// What applying an entry answers: nothing for a blank or a membership.
pub(crate) type Answer<M> = Option<Result<Outcome, <M as Machine>::Refusal>>;

/// A node as openraft knows it: its id is the mesh's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct RaftNode(pub(crate) NodeId);

impl fmt::Display for RaftNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the membership says of a node: where its fabric listened when it was added. A node that moved is found by
/// the host's resolver first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) fabric: SocketAddr,
}

impl<M: Machine> RaftTypeConfig for Types<M> {
    type D = Versioned<M::Command>;
    type R = Answer<M>;
    type NodeId = RaftNode;
    type Node = Member;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, RaftNode>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Self::D, RaftNode, Member>;
    type Entry = openraft::Entry<CommittedLeaderIdOf<Self>, Self::Payload>;
    type AsyncRuntime = openraft::impls::TokioRuntime;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

// openraft wants a configuration that can be copied, compared and made, though it is never a value. Derived, these
// would ask the same of the machine.
impl<M: Machine> fmt::Debug for Types<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(M::NAME)
    }
}
impl<M> Clone for Types<M> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M> Copy for Types<M> {}
impl<M> Default for Types<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<M> PartialEq for Types<M> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<M> Eq for Types<M> {}
impl<M> PartialOrd for Types<M> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<M> Ord for Types<M> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// Longest group name, in bytes: it stands in every call and every key.
const GROUP_BYTES_MAX: usize = 63;

/// A group's name, as it stands in every call between its members and before every key of its store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupName(String);

/// A text that can't name a group.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a group's name: 1 to 63 characters of a-z, 0-9 and '-'")]
pub struct GroupNameError(String);

impl GroupName {
    /// The catalog group of the mesh.
    pub fn catalog() -> Self {
        Self("catalog".into())
    }

    /// The placement group of a region.
    pub fn placement(region: &RegionCode) -> Self {
        Self(format!("placement-{region}"))
    }

    /// A name from text.
    pub fn parse(text: &str) -> Result<Self, GroupNameError> {
        let good = text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if good && !text.is_empty() && text.len() <= GROUP_BYTES_MAX {
            Ok(Self(text.to_owned()))
        } else {
            Err(GroupNameError(text.chars().take(80).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// What openraft's storage suite needs to make up nodes.
#[cfg(test)]
impl From<u64> for RaftNode {
    fn from(number: u64) -> Self {
        Self(format!("tst-{}", number + 1).parse().expect("a node id"))
    }
}
#[cfg(test)]
impl Default for Member {
    fn default() -> Self {
        Self { fabric: ([127, 0, 0, 1], 1).into() }
    }
}
