//! A member of a group as the others call it.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use fabric_quic::{RecvHalf, read_frame};
use fabric_types::NodeId;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::storage::Snapshot;
use raft_placement::Machine;
use serde::{Deserialize, Serialize};

use crate::lead::Lead;
use crate::network::InstallRequest;
use crate::service::GroupService;
use crate::snapshot::SNAPSHOT_BYTES_MAX;
use crate::types::{Types, Vote};
use crate::wire::{Call, SNAPSHOT_PART_BYTES, WireError, decode_body, encode_body};

/// Whether a group has begun on a member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    /// It has a log or has voted.
    pub(crate) initialized: bool,
}

/// A member of a group.
pub(crate) struct GroupMember<M: Machine>(pub(crate) Lead<M>);

#[async_trait]
impl<M: Machine> GroupService for GroupMember<M> {
    async fn answer(&self, from: &NodeId, call: Call, body: Bytes, rest: &mut RecvHalf) -> Result<Vec<u8>, WireError> {
        let raft = &self.0.raft;
        match call {
            Call::Append => {
                let request: AppendEntriesRequest<Types<M>> = decode_body(&body)?;
                check_speaker::<M>(from, &request.vote)?;
                reply(raft.append_entries(request).await)
            }
            Call::Vote => {
                let request: VoteRequest<Types<M>> = decode_body(&body)?;
                check_speaker::<M>(from, &request.vote)?;
                reply(raft.vote(request).await)
            }
            Call::PreVote => {
                let request: VoteRequest<Types<M>> = decode_body(&body)?;
                check_speaker::<M>(from, &request.vote)?;
                reply(raft.pre_vote(request).await)
            }
            Call::Snapshot => {
                let request: InstallRequest<M> = decode_body(&body)?;
                check_speaker::<M>(from, &request.vote)?;
                let snapshot = Snapshot { meta: request.meta, snapshot: read_parts(request.bytes, rest).await? };
                reply(raft.install_full_snapshot(request.vote, snapshot).await)
            }
            Call::TransferLeader => {
                let request: TransferLeaderRequest<Types<M>> = decode_body(&body)?;
                reply(raft.handle_transfer_leader(request).await)
            }
            Call::Lead => encode_body(&self.0.answer(decode_body(&body)?).await),
            Call::Status => {
                let initialized = raft.is_initialized().await.map_err(|fatal| WireError::Refused(fatal.to_string()))?;
                encode_body(&Status { initialized })
            }
        }
    }
}

/// A member leads and campaigns for itself alone: the certificate says who it is.
fn check_speaker<M: Machine>(from: &NodeId, vote: &Vote<M>) -> Result<(), WireError> {
    let claimed = &vote.leader_id().node_id.0;
    if claimed == from { Ok(()) } else { Err(WireError::Refused(format!("{from} can't speak for {claimed}"))) }
}

fn reply<A: Serialize, E: std::error::Error>(answer: Result<A, E>) -> Result<Vec<u8>, WireError> {
    match answer {
        Ok(answer) => encode_body(&answer),
        Err(error) => Err(WireError::Refused(error.to_string())),
    }
}

/// The bytes of a snapshot, from the frames after its request.
async fn read_parts(bytes: usize, rest: &mut RecvHalf) -> Result<Bytes, WireError> {
    let cut = |cause: String| WireError::Malformed { what: "snapshot", cause };
    if bytes > SNAPSHOT_BYTES_MAX {
        return Err(cut(format!("{bytes} bytes are over the limit of {SNAPSHOT_BYTES_MAX}")));
    }
    let mut snapshot = BytesMut::new();
    while snapshot.len() < bytes {
        let part = read_frame(rest, SNAPSHOT_PART_BYTES).await.map_err(|error| cut(error.to_string()))?;
        let part = part.filter(|part| !part.is_empty() && snapshot.len() + part.len() <= bytes);
        let part = part.ok_or_else(|| cut(format!("its parts don't make {bytes} bytes")))?;
        snapshot.extend_from_slice(&part);
    }
    Ok(snapshot.freeze())
}
