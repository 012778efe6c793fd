//! What only a leader may do, done here if this member leads, or asked of the one that does.
//!
//! ```text
//! lead ──> here ──> done ─────────────────────────────> the answer
//!  ^         │ not the leader, who may be known
//!  │         v
//!  │       the leader, over the fabric ──> done ──────> the answer
//!  └─ pause ─┴ no leader, no answer, changed leader
//! ```
//! A try whose answer is lost is repeated, so a command may be applied twice. Commands are made for that: each is
//! idempotent or refused the second time (`raft_placement` says so and tests it).

use std::net::SocketAddr;
use std::time::Duration;

use fabric_types::NodeId;
use openraft::errors::{ChangeMembershipError, ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResult;
use openraft::{ChangeMembers, Raft, ReadPolicy};
use raft_placement::{Machine, Versioned};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::GroupName;
use crate::peers::{CallError, Peers};
use crate::state_machine::StateMachine;
use crate::types::{Answer, Member, RaftNode, Types};
use crate::wire::Call;

/// The pause before another try, at first and at most. An election takes hundreds of milliseconds; a lease that has
/// just expired is renewed by the next heartbeat.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How long one member is asked before the leader is looked for again.
const TRY_DEADLINE: Duration = Duration::from_secs(3);

/// What a leader is asked to do.
#[derive(Serialize, Deserialize)]
#[serde(bound = "", rename_all = "snake_case")]
pub(crate) enum LeadRequest<M: Machine> {
    /// To commit a command.
    Propose(Versioned<M::Command>),
    /// To say up to where a reader must have applied.
    ReadIndex,
    /// To add a member that learns.
    AddLearner {
        /// Who.
        node: NodeId,
        /// Where its fabric listens.
        fabric: SocketAddr,
    },
    /// To have these, members all, as the voters. Who votes no more still learns.
    ChangeVoters {
        /// Who.
        voters: Vec<NodeId>,
    },
    /// To drop a member that only learns.
    RemoveLearner {
        /// Who.
        node: NodeId,
    },
}

impl<M: Machine> Clone for LeadRequest<M> {
    fn clone(&self) -> Self {
        match self {
            Self::Propose(command) => Self::Propose(command.clone()),
            Self::ReadIndex => Self::ReadIndex,
            Self::AddLearner { node, fabric } => Self::AddLearner { node: node.clone(), fabric: *fabric },
            Self::ChangeVoters { voters } => Self::ChangeVoters { voters: voters.clone() },
            Self::RemoveLearner { node } => Self::RemoveLearner { node: node.clone() },
        }
    }
}

/// What a member that was asked to lead says.
#[derive(Serialize, Deserialize)]
#[serde(bound = "", rename_all = "snake_case")]
pub(crate) enum LeadReply<M: Machine> {
    /// Done, by the entry of this index.
    Done {
        /// The entry, or where a reader may begin.
        index: u64,
        /// What the machine says to a command.
        answer: Answer<M>,
    },
    /// Another member leads, or none.
    NotLeader {
        /// Who leads, where it is known.
        leader: Option<(NodeId, SocketAddr)>,
    },
    /// It led, and lost the lead before the entry was committed: the next leader may have it or not.
    Lost,
    /// A change of members that can't be made yet: another is being made, perhaps this one by an earlier try.
    Busy {
        /// Why.
        cause: String,
    },
    /// A change of members that can't be made.
    Refused {
        /// Why.
        cause: String,
    },
    /// This member has stopped.
    Stopped {
        /// Why.
        cause: String,
    },
}

/// Why nobody could be led to do it.
#[derive(Debug)]
pub(crate) enum LeadError {
    /// No try reached a leader.
    NoLeader { waited: Duration, last: String },
    /// A try may have been carried out, and its answer was lost.
    Unknown { waited: Duration, last: String },
    /// A change of members that can't be made.
    Refused(String),
    /// This member has stopped.
    Stopped(String),
}

/// One member's way to the leader of its group.
pub(crate) struct Lead<M: Machine> {
    pub(crate) raft: Raft<Types<M>, StateMachine<M>>,
    pub(crate) peers: Peers,
    pub(crate) group: GroupName,
    pub(crate) node: NodeId,
    /// Who leads, as this member knows it.
    pub(crate) leader: watch::Receiver<Option<NodeId>>,
}

impl<M: Machine> Clone for Lead<M> {
    fn clone(&self) -> Self {
        let Self { raft, peers, group, node, leader } = self;
        Self {
            raft: raft.clone(),
            peers: peers.clone(),
            group: group.clone(),
            node: node.clone(),
            leader: leader.clone(),
        }
    }
}

/// How one try went.
enum Tried<M: Machine> {
    Done(u64, Answer<M>),
    /// Not done, and who may do it.
    Elsewhere(Option<(NodeId, SocketAddr)>, String),
    /// Perhaps done.
    Lost(String),
    Failed(LeadError),
}

impl<M: Machine> Lead<M> {
    /// Has the leader do it, within `wait`.
    pub(crate) async fn lead(&self, request: &LeadRequest<M>, wait: Duration) -> Result<(u64, Answer<M>), LeadError> {
        let begun = Instant::now();
        let (mut leader, mut pause) = (None, PAUSE.0);
        let (mut lost, mut last) = (false, "nothing was tried".to_owned());
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(if lost {
                    LeadError::Unknown { waited: wait, last }
                } else {
                    LeadError::NoLeader { waited: wait, last }
                });
            }
            let tried = match leader.take() {
                Some(other) => self.ask(other, request, left.min(TRY_DEADLINE)).await,
                None => self.here(request, left.min(TRY_DEADLINE)).await,
            };
            match tried {
                Tried::Done(index, answer) => return Ok((index, answer)),
                Tried::Failed(error) => return Err(error),
                Tried::Elsewhere(Some(other), cause) if last != cause => {
                    (leader, last) = (Some(other), cause);
                    continue;
                }
                // The same member was named before: it may have to learn first that it leads, or that it doesn't.
                Tried::Elsewhere(_, cause) => last = cause,
                Tried::Lost(cause) => (lost, last) = (true, cause),
            }
            sleep(pause.min(wait.saturating_sub(begun.elapsed()))).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn here(&self, request: &LeadRequest<M>, deadline: Duration) -> Tried<M> {
        match timeout(deadline, self.answer(request.clone())).await {
            Ok(reply) => self.tried(reply, &self.node),
            Err(_) => Tried::Lost(format!("{} did not commit it in {deadline:?}", self.node)),
        }
    }

    async fn ask(
        &self,
        (node, fabric): (NodeId, SocketAddr),
        request: &LeadRequest<M>,
        deadline: Duration,
    ) -> Tried<M> {
        let asking = self.peers.call((&node, fabric), Call::Lead, &self.group, request, deadline);
        let answered = tokio::select! {
            answered = asking => answered,
            next = self.another_leader(&node) => {
                return Tried::Lost(format!("{node} was asked, and meanwhile {next} was elected"));
            }
        };
        match answered {
            Ok(LeadReply::Stopped { cause }) => Tried::Elsewhere(None, cause),
            Ok(reply) => self.tried(reply, &node),
            Err(error @ (CallError::Unsent(_) | CallError::Refused { .. })) => {
                Tried::Elsewhere(None, error.to_string())
            }
            Err(error @ (CallError::Broken(_) | CallError::Late { .. })) => Tried::Lost(error.to_string()),
        }
    }

    /// Waits until this member knows another leader than the given one: whoever was killed while it led won't answer.
    async fn another_leader(&self, asked: &NodeId) -> NodeId {
        let mut leader = self.leader.clone();
        // Only what is heard from now on: what this member knew before may be older than the asked one's election.
        leader.mark_unchanged();
        while leader.changed().await.is_ok() {
            if let Some(other) = leader.borrow_and_update().clone().filter(|leader| leader != asked) {
                return other;
            }
        }
        // The group is being closed: the call's own deadline counts.
        std::future::pending().await
    }

    fn tried(&self, reply: LeadReply<M>, asked: &NodeId) -> Tried<M> {
        match reply {
            LeadReply::Done { index, answer } => Tried::Done(index, answer),
            LeadReply::NotLeader { leader: Some(leader) } if leader.0 != self.node && leader.0 != *asked => {
                let cause = format!("{asked} says that {} leads", leader.0);
                Tried::Elsewhere(Some(leader), cause)
            }
            LeadReply::NotLeader { .. } => Tried::Elsewhere(None, format!("{asked} knows no leader")),
            LeadReply::Busy { cause } => Tried::Elsewhere(None, cause),
            LeadReply::Lost => Tried::Lost(format!("{asked} lost the lead before it was committed")),
            LeadReply::Refused { cause } => Tried::Failed(LeadError::Refused(cause)),
            LeadReply::Stopped { cause } => Tried::Failed(LeadError::Stopped(cause)),
        }
    }

    /// Does it here, if this member leads.
    pub(crate) async fn answer(&self, request: LeadRequest<M>) -> LeadReply<M> {
        let written = match request {
            LeadRequest::ReadIndex => return self.read_index().await,
            LeadRequest::Propose(command) => self.raft.client_write(command).await,
            LeadRequest::AddLearner { node, fabric } => {
                self.raft.add_learner(RaftNode(node), Member { fabric }, false).await
            }
            LeadRequest::ChangeVoters { voters } => {
                let voters = voters.into_iter().map(RaftNode).collect();
                // Retained: a voter that isn't wanted any more still learns, until it is removed.
                self.raft.change_membership(ChangeMembers::ReplaceAllVoters(voters), true).await
            }
            LeadRequest::RemoveLearner { node } => {
                let nodes = [RaftNode(node)].into();
                self.raft.change_membership(ChangeMembers::RemoveNodes(nodes), true).await
            }
        };
        let written: ClientWriteResult<Types<M>> = match written {
            Ok(done) => Ok(done),
            Err(RaftError::APIError(error)) => Err(error),
            Err(RaftError::Fatal(fatal)) => return LeadReply::Stopped { cause: fatal.to_string() },
        };
        match written {
            Ok(done) => LeadReply::Done { index: done.log_id.index(), answer: done.data },
            Err(ClientWriteError::ForwardToLeader(forward)) => not_leader(forward),
            Err(ClientWriteError::LogEntryDiscarded(_)) => LeadReply::Lost,
            Err(ClientWriteError::ChangeMembershipError(
                error @ (ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)),
            )) => LeadReply::Busy { cause: error.to_string() },
            Err(error @ (ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_))) => {
                LeadReply::Refused { cause: error.to_string() }
            }
        }
    }

    async fn read_index(&self) -> LeadReply<M> {
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => LeadReply::Done { index: read.index(), answer: None },
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => not_leader(forward),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                LeadReply::NotLeader { leader: None }
            }
            Err(RaftError::Fatal(fatal)) => LeadReply::Stopped { cause: fatal.to_string() },
        }
    }
}

fn not_leader<M: Machine>(forward: ForwardToLeader<Types<M>>) -> LeadReply<M> {
    let leader = forward.leader_id.zip(forward.leader_node).map(|(node, member)| (node.0, member.fabric));
    LeadReply::NotLeader { leader }
}
