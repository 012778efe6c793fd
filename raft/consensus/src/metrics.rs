//! How a member of a group stands, in words of ours.

use std::collections::BTreeSet;

use fabric_types::NodeId;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use raft_placement::Machine;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::GroupName;
use crate::types::Types;

/// What a member is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It learns and doesn't vote.
    Learner,
    /// It votes and follows.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It has stopped.
    Stopped,
}

impl Role {
    /// The name in API and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Stopped => "stopped",
        }
    }
}

/// How a member stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMetrics {
    /// What it is.
    pub role: Role,
    /// Its term: grows with each election that it hears of.
    pub term: u64,
    /// Who leads, as it knows.
    pub leader: Option<NodeId>,
    /// The last entry in its log.
    pub last_entry: Option<u64>,
    /// The last entry that it has applied.
    pub applied: Option<u64>,
    /// The last entry in its snapshot.
    pub snapshot: Option<u64>,
    /// The last entry that it has dropped from its log.
    pub purged: Option<u64>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who only learns.
    pub learners: BTreeSet<NodeId>,
    /// Why it stopped, if it did: its disk failed, as a rule.
    pub failed: Option<String>,
}

pub(crate) fn metrics_of<M: Machine>(metrics: &RaftMetrics<Types<M>>) -> GroupMetrics {
    let membership = metrics.membership_config.membership();
    GroupMetrics {
        role: match metrics.state {
            ServerState::Learner => Role::Learner,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Leader => Role::Leader,
            ServerState::Shutdown => Role::Stopped,
        },
        term: metrics.current_term,
        leader: metrics.current_leader.as_ref().map(|leader| leader.0.clone()),
        last_entry: metrics.last_log_index,
        applied: metrics.last_applied.as_ref().map(|id| id.index()),
        snapshot: metrics.snapshot.as_ref().map(|id| id.index()),
        purged: metrics.purged.as_ref().map(|id| id.index()),
        voters: membership.voter_ids().map(|node| node.0).collect(),
        learners: membership.learner_ids().map(|node| node.0).collect(),
        failed: metrics.running_state.as_ref().err().map(ToString::to_string),
    }
}

/// Tells who leads, until it is told to stop or the member ends.
pub(crate) async fn watch_leader<M: Machine>(
    group: GroupName,
    mut metrics: WatchReceiverOf<Types<M>, RaftMetrics<Types<M>>>,
    leader: watch::Sender<Option<NodeId>>,
    stop: CancellationToken,
) {
    loop {
        let (now, failed) = {
            let metrics = metrics.borrow_and_update();
            let failed = metrics.running_state.as_ref().err().map(ToString::to_string);
            // Who stopped knows of no leader.
            (metrics.current_leader.as_ref().filter(|_| failed.is_none()).map(|leader| leader.0.clone()), failed)
        };
        let changed = leader.send_if_modified(|known| {
            let changed = *known != now;
            known.clone_from(&now);
            changed
        });
        if changed {
            info!(%group, leader = now.as_ref().map(NodeId::as_str), "the leader has changed");
        }
        if let Some(cause) = failed {
            if !stop.is_cancelled() {
                error!(%group, %cause, "this node's member of the group has stopped");
            }
            return;
        }
        match stop.run_until_cancelled(metrics.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => {
                leader.send_replace(None);
                return;
            }
        }
    }
}
