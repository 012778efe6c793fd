//! One group, as its users see it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use raft_placement::{Machine, Outcome, Versioned};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::GroupName;
use crate::lead::{Lead, LeadError, LeadRequest};
use crate::member::Status;
use crate::metrics::{GroupMetrics, metrics_of};
use crate::service::Groups;
use crate::types::{Member, RaftNode};
use crate::wire::Call;

/// Bytes of one command at most, written. With what surrounds it in the log it stays under the store's limit for a
/// value; the largest spec that placement accepts fits unless its text is mostly characters that JSON escapes.
pub const COMMAND_BYTES_MAX: usize = 96 * 1024;
/// How long another member may take to say whether the group has begun there.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProposeError<R: std::error::Error> {
    /// The machine refused it; the state is as it was.
    #[error(transparent)]
    Refused(R),
    /// No leader was reached: it has not been carried out. Worth another try.
    #[error("group {group} had no leader for {waited_ms} ms: {last}")]
    NoLeader {
        /// Which group.
        group: GroupName,
        /// The deadline that passed.
        waited_ms: u64,
        /// How the last try went.
        last: String,
    },
    /// The answer was lost: it may have been carried out, or still be. Repeating it is safe.
    #[error("group {group} gave no answer in {waited_ms} ms, so that the outcome is unknown: {last}")]
    Unknown {
        /// Which group.
        group: GroupName,
        /// The deadline that passed.
        waited_ms: u64,
        /// How the last try went.
        last: String,
    },
    /// The command is too large.
    #[error("a command of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// This member has stopped.
    #[error("this node's member of group {group} has stopped: {cause}")]
    Stopped {
        /// Which group.
        group: GroupName,
        /// Why.
        cause: String,
    },
}

/// Why a group could not be begun, read or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// No leader did it in time. Worth another try.
    #[error("group {group} did not {action} in {waited_ms} ms: {last}")]
    Late {
        /// Which group.
        group: GroupName,
        /// What was asked.
        action: &'static str,
        /// The deadline that passed.
        waited_ms: u64,
        /// How the last try went.
        last: String,
    },
    /// The change can't be made, or not now.
    #[error("group {group} can't {action}: {cause}")]
    Refused {
        /// Which group.
        group: GroupName,
        /// What was asked.
        action: &'static str,
        /// Why.
        cause: String,
    },
    /// This member has stopped.
    #[error("this node's member of group {group} has stopped: {cause}")]
    Stopped {
        /// Which group.
        group: GroupName,
        /// Why.
        cause: String,
    },
}

/// A member of a group. Copies are the same member.
pub struct Group<M: Machine> {
    pub(crate) lead: Lead<M>,
    pub(crate) state: watch::Receiver<Arc<M::State>>,
    pub(crate) applied_end: watch::Receiver<u64>,
    pub(crate) groups: Groups,
    /// Ends the task that watches openraft's metrics.
    pub(crate) stop: CancellationToken,
}

impl<M: Machine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Self {
            lead: self.lead.clone(),
            state: self.state.clone(),
            applied_end: self.applied_end.clone(),
            groups: self.groups.clone(),
            stop: self.stop.clone(),
        }
    }
}

impl<M: Machine> Group<M> {
    /// The group's name.
    pub fn name(&self) -> &GroupName {
        &self.lead.group
    }

    /// This member.
    pub fn node(&self) -> &NodeId {
        &self.lead.node
    }

    /// Begins the group with these voters, unless it has begun, here or on another of them: a member that came back
    /// without its disk must be caught up and not begin anew. Every first voter may call it, with the same voters.
    pub async fn initialize(&self, voters: BTreeMap<NodeId, SocketAddr>) -> Result<(), GroupError> {
        const ACTION: &str = "begin";
        let group = || self.name().clone();
        let stopped = |cause: String| GroupError::Stopped { group: group(), cause };
        if self.lead.raft.is_initialized().await.map_err(|fatal| stopped(fatal.to_string()))? {
            return Ok(());
        }
        let others = voters.iter().filter(|(node, _)| *node != self.node());
        let asked = futures::future::join_all(others.map(|(node, fabric)| async move {
            let peers = &self.lead.peers;
            let status = peers.call((node, *fabric), Call::Status, self.name(), &(), STATUS_DEADLINE).await;
            status.is_ok_and(|status: Status| status.initialized)
        }));
        if asked.await.contains(&true) {
            return Ok(());
        }
        let members: BTreeMap<_, _> =
            voters.into_iter().map(|(node, fabric)| (RaftNode(node), Member { fabric })).collect();
        match self.lead.raft.initialize(members).await {
            // Not allowed: it began while we asked.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                Err(GroupError::Refused { group: group(), action: ACTION, cause: error.to_string() })
            }
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal.to_string())),
        }
    }

    /// Commits a command, from any member, and returns what the machine says to it. On return the state that
    /// [`Self::state`] shows on this member holds its effect, unless this member lags so far behind that the deadline
    /// passes first.
    ///
    /// A try whose answer is lost is repeated until the deadline, so the command may be applied twice; commands are
    /// idempotent or refused the second time. Not cancel safe: a call that is dropped may still be carried out.
    ///
    /// # Errors
    /// [`ProposeError::Refused`] is the machine's own answer. [`ProposeError::Unknown`] may be followed by the same
    /// command again, or by one that undoes it.
    pub async fn propose(&self, command: M::Command, deadline: Duration) -> Result<Outcome, ProposeError<M::Refusal>> {
        let begun = Instant::now();
        let command = Versioned(command);
        let bytes = serde_json::to_vec(&command).map_or(usize::MAX, |written| written.len());
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes, limit: COMMAND_BYTES_MAX });
        }
        let group = || self.name().clone();
        let led = self.lead.lead(&LeadRequest::Propose(command), deadline).await;
        let (index, answer) = led.map_err(|error| match error {
            LeadError::NoLeader { waited, last } => {
                ProposeError::NoLeader { group: group(), waited_ms: millis(waited), last }
            }
            LeadError::Unknown { waited, last } => {
                ProposeError::Unknown { group: group(), waited_ms: millis(waited), last }
            }
            LeadError::Refused(cause) | LeadError::Stopped(cause) => ProposeError::Stopped { group: group(), cause },
        })?;
        // It is committed whether or not this member has it yet.
        let _seen_here = self.wait_applied(index, deadline.saturating_sub(begun.elapsed())).await;
        match answer {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(refusal)) => Err(ProposeError::Refused(refusal)),
            None => Err(ProposeError::Stopped { group: group(), cause: "a command got no answer".into() }),
        }
    }

    /// The state as this member has applied it: it may lag behind the leader's. Each value is one moment.
    pub fn state(&self) -> watch::Receiver<Arc<M::State>> {
        self.state.clone()
    }

    /// Waits until [`Self::state`] on this member holds everything that was committed, anywhere, before this call.
    pub async fn read_barrier(&self, deadline: Duration) -> Result<(), GroupError> {
        const ACTION: &str = "confirm a read";
        let begun = Instant::now();
        let led = self.lead.lead(&LeadRequest::ReadIndex, deadline).await;
        let (index, _) = led.map_err(|error| self.group_error(ACTION, error))?;
        if self.wait_applied(index, deadline.saturating_sub(begun.elapsed())).await {
            return Ok(());
        }
        let last = format!("this member has not applied entry {index}");
        Err(GroupError::Late { group: self.name().clone(), action: ACTION, waited_ms: millis(deadline), last })
    }

    /// Who leads, as this member knows it.
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.lead.leader.clone()
    }

    /// Whether this member leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.lead.leader.borrow().as_ref() == Some(self.node())
    }

    /// Adds a member that learns the log and doesn't vote. Does nothing for one that is there already.
    ///
    /// A node's id stands for its log: a node that lost its disk may come back as a learner under its id only after
    /// it was removed from the voters.
    pub async fn add_learner(&self, node: NodeId, fabric: SocketAddr, deadline: Duration) -> Result<(), GroupError> {
        self.change("add a learner", LeadRequest::AddLearner { node, fabric }, deadline).await
    }

    /// Makes these members, and no others, the voters. They must be members, caught up at best; who votes no more
    /// goes on learning. Returns when the change is committed.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>, deadline: Duration) -> Result<(), GroupError> {
        let voters = voters.into_iter().collect();
        self.change("change its voters", LeadRequest::ChangeVoters { voters }, deadline).await
    }

    /// Removes a member that doesn't vote.
    pub async fn remove_learner(&self, node: NodeId, deadline: Duration) -> Result<(), GroupError> {
        self.change("remove a learner", LeadRequest::RemoveLearner { node }, deadline).await
    }

    /// Hands the lead to another voter, if this member has it: before a planned stop, so that nobody has to notice
    /// a silence first. Returns when the other has been asked; [`Self::leader`] says when it leads.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), GroupError> {
        let asked = self.lead.raft.trigger().transfer_leader(RaftNode(to)).await;
        asked.map_err(|fatal| GroupError::Stopped { group: self.name().clone(), cause: fatal.to_string() })
    }

    /// How this member stands.
    pub fn metrics(&self) -> GroupMetrics {
        metrics_of(&self.lead.raft.metrics().borrow_watched())
    }

    /// Ends this member: it answers no calls, and its log and snapshot are closed. The group goes on without it.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.groups.remove(self.name());
        if let Err(error) = self.lead.raft.shutdown().await {
            tracing::error!(group = %self.name(), %error, "a group's task panicked");
        }
    }

    async fn change(
        &self,
        action: &'static str,
        request: LeadRequest<M>,
        deadline: Duration,
    ) -> Result<(), GroupError> {
        let led = self.lead.lead(&request, deadline).await;
        led.map(drop).map_err(|error| self.group_error(action, error))
    }

    /// Whether this member has applied an entry in time.
    async fn wait_applied(&self, index: u64, deadline: Duration) -> bool {
        let mut applied_end = self.applied_end.clone();
        matches!(timeout(deadline, applied_end.wait_for(|end| *end > index)).await, Ok(Ok(_)))
    }

    fn group_error(&self, action: &'static str, error: LeadError) -> GroupError {
        let group = self.name().clone();
        match error {
            LeadError::NoLeader { waited, last } | LeadError::Unknown { waited, last } => {
                GroupError::Late { group, action, waited_ms: millis(waited), last }
            }
            LeadError::Refused(cause) => GroupError::Refused { group, action, cause },
            LeadError::Stopped(cause) => GroupError::Stopped { group, cause },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
