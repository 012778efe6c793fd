//! openraft's calls to one other member of a group.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use fabric_types::NodeId;
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use raft_placement::Machine;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::GroupName;
use crate::peers::{CallError, Peers};
use crate::snapshot::SnapshotBytes;
use crate::types::{LeaderId, Member, RaftNode, SnapshotMeta, Types, Vote};
use crate::wire::Call;

/// Makes the calls of one group.
pub(crate) struct Network {
    pub(crate) peers: Peers,
    pub(crate) group: GroupName,
    pub(crate) node: RaftNode,
    /// How long a call with entries may take. openraft's own limit for it, one heartbeat, is short for a follower
    /// that syncs a large batch to a busy disk.
    pub(crate) append_deadline: Duration,
}

/// Calls one member.
pub(crate) struct Link {
    peers: Peers,
    group: GroupName,
    node: RaftNode,
    append_deadline: Duration,
    target: NodeId,
    recorded: SocketAddr,
}

/// What goes before a snapshot's bytes.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct InstallRequest<M: Machine> {
    pub(crate) vote: Vote<M>,
    pub(crate) meta: SnapshotMeta<M>,
    pub(crate) bytes: usize,
}

impl<M: Machine> RaftNetworkFactory<Types<M>> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: RaftNode, member: &Member) -> Link {
        Link {
            peers: self.peers.clone(),
            group: self.group.clone(),
            node: self.node.clone(),
            append_deadline: self.append_deadline,
            target: target.0,
            recorded: member.fabric,
        }
    }
}

impl Link {
    async fn call<M, Q, A>(&self, call: Call, request: &Q, deadline: Duration) -> Result<A, RPCError<Types<M>>>
    where
        M: Machine,
        Q: Serialize,
        A: DeserializeOwned,
    {
        let answer = self.peers.call((&self.target, self.recorded), call, &self.group, request, deadline).await;
        answer.map_err(|error| match &error {
            CallError::Unsent(_) => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::Late { .. } => self.late(call, deadline).into(),
            CallError::Broken(_) | CallError::Refused { .. } => RPCError::Network(NetworkError::new(&error)),
        })
    }

    fn late<M: Machine>(&self, call: Call, timeout: Duration) -> Timeout<Types<M>> {
        let action = match call {
            Call::Append | Call::Lead | Call::Status => RPCTypes::AppendEntries,
            Call::Vote | Call::PreVote => RPCTypes::Vote,
            Call::Snapshot => RPCTypes::InstallSnapshot,
            Call::TransferLeader => RPCTypes::TransferLeader,
        };
        Timeout { action, id: self.node.clone(), target: RaftNode(self.target.clone()), timeout }
    }
}

impl<M: Machine> RaftNetworkV2<Types<M>> for Link {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<M>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<M>>, RPCError<Types<M>>> {
        let deadline = if rpc.entries.is_empty() { option.hard_ttl() } else { self.append_deadline };
        self.call(Call::Append, &rpc, deadline).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types<M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<M>>, RPCError<Types<M>>> {
        self.call(Call::Vote, &rpc, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types<M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<M>>, RPCError<Types<M>>> {
        self.call(Call::PreVote, &rpc, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<M>,
        snapshot: Snapshot<LeaderId<M>, RaftNode, Member, SnapshotBytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types<M>>, StreamingError<Types<M>>> {
        let bytes: Bytes = snapshot.snapshot;
        let request = InstallRequest::<M> { vote, meta: snapshot.meta, bytes: bytes.len() };
        let (target, deadline) = ((&self.target, self.recorded), option.soft_ttl());
        let sending = self.peers.exchange(target, Call::Snapshot, &self.group, &request, &bytes, deadline);
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            sent = sending => sent,
        };
        sent.map_err(|error| match &error {
            CallError::Unsent(_) => StreamingError::Unreachable(Unreachable::new(&error)),
            CallError::Late { .. } => self.late(Call::Snapshot, deadline).into(),
            CallError::Broken(_) | CallError::Refused { .. } => StreamingError::Network(NetworkError::new(&error)),
        })
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<M>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<M>>, RPCError<Types<M>>> {
        self.call(Call::TransferLeader, &request, option.soft_ttl()).await
    }
}
