//! A group's machine, as openraft wants it: entries go in, answers come out, the state is published.
//!
//! The state lives in memory. On disk are the log and the current snapshot; at a start the snapshot is read and the
//! committed entries after it are applied again.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::entry::{EntryPayload, RaftEntry};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, StoredMembership};
use raft_placement::{Machine, Versioned};
use tokio::sync::watch;

use crate::snapshot::{SnapshotBytes, Snapshots, decode_state, encode_state};
use crate::store::StoreError;
use crate::types::{LeaderId, LogId, Member, Membership, RaftNode, SnapshotMeta, Types};

/// A state and the last log entry in it.
pub(crate) struct Published<M: Machine> {
    /// The state.
    pub(crate) state: watch::Sender<Arc<M::State>>,
    /// The index of the last entry that the published state holds, plus one.
    pub(crate) applied_end: watch::Sender<u64>,
}

/// A group's machine.
pub(crate) struct StateMachine<M: Machine> {
    state: M::State,
    last_applied: Option<LogId<M>>,
    membership: Membership<M>,
    snapshots: Snapshots<M>,
    published: Published<M>,
}

impl<M: Machine> StateMachine<M> {
    /// The machine as its snapshot has it, or as new.
    pub(crate) fn open(snapshots: Snapshots<M>, published: Published<M>) -> Result<Self, StoreError> {
        let mut machine = Self {
            state: M::State::default(),
            last_applied: None,
            membership: Membership::<M>::default(),
            snapshots,
            published,
        };
        if let Some((meta, bytes)) = machine.snapshots.read()? {
            machine.replace(&meta, decode_state::<M>(&bytes)?);
        }
        Ok(machine)
    }

    fn replace(&mut self, meta: &SnapshotMeta<M>, state: M::State) {
        self.state = state;
        self.last_applied = meta.last_log_id.clone();
        self.membership = meta.last_membership.clone();
        self.publish();
    }

    fn publish(&self) {
        self.published.state.send_replace(Arc::new(self.state.clone()));
        self.published.applied_end.send_replace(self.last_applied.as_ref().map_or(0, |id| id.index() + 1));
    }
}

impl<M: Machine> RaftStateMachine<Types<M>> for StateMachine<M> {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId<M>>, Membership<M>), io::Error> {
        Ok((self.last_applied.clone(), self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types<M>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let log_id = entry.log_id();
            let answer = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(Versioned(command)) => Some(M::apply(&mut self.state, &command)),
                EntryPayload::Membership(membership) => {
                    self.membership =
                        StoredMembership::<LeaderId<M>, RaftNode, Member>::new(Some(log_id.clone()), membership);
                    None
                }
            };
            self.last_applied = Some(log_id);
            answers.extend(responder.map(|responder| (responder, answer)));
        }
        // One publication for the batch, and before the answers: who has an answer sees its effect.
        self.publish();
        answers.into_iter().for_each(|(responder, answer)| responder.send(answer));
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        let meta =
            SnapshotMeta::<M> { last_log_id: self.last_applied.clone(), last_membership: self.membership.clone() };
        Builder { state: self.state.clone(), meta, snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta<M>, snapshot: SnapshotBytes) -> Result<(), io::Error> {
        let state = decode_state::<M>(&snapshot)?;
        self.snapshots.write(meta.clone(), snapshot).await?;
        self.replace(meta, state);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<Snapshot<LeaderId<M>, RaftNode, Member, SnapshotBytes>>, io::Error> {
        let current = self.snapshots.read()?;
        Ok(current.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// The state at one moment, to be written as a snapshot beside what goes on.
pub(crate) struct Builder<M: Machine> {
    state: M::State,
    meta: SnapshotMeta<M>,
    snapshots: Snapshots<M>,
}

impl<M: Machine> RaftSnapshotBuilder<Types<M>> for Builder<M> {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot<LeaderId<M>, RaftNode, Member, SnapshotBytes>, io::Error> {
        let state = self.state.clone();
        // A large state takes long to write as text: not on a thread that sends heartbeats.
        let bytes = tokio::task::spawn_blocking(move || encode_state::<M>(state)).await.map_err(io::Error::other)??;
        self.snapshots.write(self.meta.clone(), bytes.clone()).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: bytes })
    }
}
