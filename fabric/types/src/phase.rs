//! A sandbox's life, as one enum and one transition function.
//!
//! ```text
//! Requested -> Placed -> Starting -> Running <-> Paused
//!                           ^         |  ^         |
//!                           |         v  |         |
//!                           |     Snapshotting     |
//!                           |                      |
//!                        Stopped <- Stopping <-----+ (from Running too)
//!                         |  ^
//!                         v  |
//!                  Archiving -> Archived -> Starting
//! any but Deleting and Gone -> Deleting -> Gone       any but Deleting and Gone -> Failed{reason}
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Asked for, not yet placed.
    Requested,
    /// Placed on a node, which hasn't begun.
    Placed,
    /// Its machine is being resumed, cloned or booted.
    Starting,
    /// It answers.
    Running,
    /// Its processors are stopped, its memory is kept.
    Paused,
    /// Stopped for the moment in which its memory and disk are read.
    Snapshotting,
    /// Its machine is being ended; the disk stays.
    Stopping,
    /// No machine; the disk is kept.
    Stopped,
    /// Its disk is being moved into the snapshot store.
    Archiving,
    /// No machine and no disk: all of it lies in the snapshot store.
    Archived,
    /// Everything of it is being removed.
    Deleting,
    /// Nothing of it is left.
    Gone,
    /// It can't go on; it can be deleted.
    Failed {
        /// Why.
        reason: FailReason,
    },
}

/// Why a sandbox failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "detail")]
pub enum FailReason {
    /// Its machine could not be started.
    Start(String),
    /// Its machine ended by itself.
    MachineLost(String),
    /// Its disk or folder is damaged or missing.
    Storage(String),
    /// A stop or deletion could not be finished.
    Cleanup(String),
}

/// What happens to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhaseEvent {
    /// The scheduler placed it.
    Place,
    /// Its node begins to start it.
    Start,
    /// Its machine answers.
    Started,
    /// Its processors were stopped.
    Pause,
    /// Its processors go on.
    Resume,
    /// A snapshot begins.
    Snapshot,
    /// The snapshot's stop is over.
    Snapshotted,
    /// A stop begins.
    Stop,
    /// The machine has ended as asked.
    Stopped,
    /// Its disk begins to move into the snapshot store.
    Archive,
    /// It lies in the snapshot store.
    Archived,
    /// The move failed: the disk is where it was.
    NotArchived,
    /// Its removal begins.
    Delete,
    /// It is removed.
    Deleted,
    /// Something failed for good.
    Fail(FailReason),
}

/// An event that doesn't belong to a phase.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a sandbox that is {phase} can't take {event:?}", phase = phase.as_str())]
pub struct IllegalTransition {
    /// Where the sandbox was, and stays.
    pub phase: Phase,
    /// What was asked of it.
    pub event: PhaseEvent,
}

impl Phase {
    /// The name in logs, metrics and Atoll's own API.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Placed => "placed",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Snapshotting => "snapshotting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Archiving => "archiving",
            Self::Archived => "archived",
            Self::Deleting => "deleting",
            Self::Gone => "gone",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether a machine may exist in this phase.
    pub fn has_machine(&self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Paused | Self::Snapshotting | Self::Stopping | Self::Deleting => {
                true
            }
            Self::Requested
            | Self::Placed
            | Self::Stopped
            | Self::Archiving
            | Self::Archived
            | Self::Gone
            | Self::Failed { .. } => false,
        }
    }
}

/// The phase after an event.
pub fn transition(phase: Phase, event: PhaseEvent) -> Result<Phase, IllegalTransition> {
    use Phase as P;
    use PhaseEvent as E;
    let next = match (&phase, &event) {
        (P::Requested, E::Place) => P::Placed,
        (P::Placed | P::Stopped | P::Archived, E::Start) => P::Starting,
        (P::Starting, E::Started) | (P::Paused, E::Resume) | (P::Snapshotting, E::Snapshotted) => P::Running,
        (P::Running, E::Pause) => P::Paused,
        (P::Running, E::Snapshot) => P::Snapshotting,
        (P::Running | P::Paused, E::Stop) => P::Stopping,
        (P::Stopping, E::Stopped) | (P::Archiving, E::NotArchived) => P::Stopped,
        (P::Stopped, E::Archive) => P::Archiving,
        (P::Archiving, E::Archived) => P::Archived,
        (P::Deleting, E::Deleted) => P::Gone,
        (P::Deleting | P::Gone, E::Delete | E::Fail(_)) => return Err(IllegalTransition { phase, event }),
        (_, E::Delete) => P::Deleting,
        (_, E::Fail(reason)) => P::Failed { reason: reason.clone() },
        (
            P::Requested
            | P::Placed
            | P::Starting
            | P::Running
            | P::Paused
            | P::Snapshotting
            | P::Stopping
            | P::Stopped
            | P::Archiving
            | P::Archived
            | P::Deleting
            | P::Gone
            | P::Failed { .. },
            E::Place
            | E::Start
            | E::Started
            | E::Pause
            | E::Resume
            | E::Snapshot
            | E::Snapshotted
            | E::Stop
            | E::Stopped
            | E::Archive
            | E::Archived
            | E::NotArchived
            | E::Deleted,
        ) => return Err(IllegalTransition { phase, event }),
    };
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Phase {
        Phase::Failed { reason: FailReason::MachineLost("gone".into()) }
    }

    fn phases() -> Vec<Phase> {
        use Phase::*;
        vec![
            Requested,
            Placed,
            Starting,
            Running,
            Paused,
            Snapshotting,
            Stopping,
            Stopped,
            Archiving,
            Archived,
            Deleting,
            Gone,
            failed(),
        ]
    }

    fn events() -> Vec<PhaseEvent> {
        use PhaseEvent::*;
        let fail = Fail(FailReason::MachineLost("gone".into()));
        vec![
            Place,
            Start,
            Started,
            Pause,
            Resume,
            Snapshot,
            Snapshotted,
            Stop,
            Stopped,
            Archive,
            Archived,
            NotArchived,
            Delete,
            Deleted,
            fail,
        ]
    }

    /// Every legal edge; every pair not named here must be refused.
    fn legal() -> Vec<(Phase, PhaseEvent, Phase)> {
        use Phase::*;
        use PhaseEvent as E;
        let mut edges = vec![
            (Requested, E::Place, Placed),
            (Placed, E::Start, Starting),
            (Stopped, E::Start, Starting),
            (Stopped, E::Archive, Archiving),
            (Archiving, E::Archived, Archived),
            (Archiving, E::NotArchived, Stopped),
            (Archived, E::Start, Starting),
            (Starting, E::Started, Running),
            (Running, E::Pause, Paused),
            (Paused, E::Resume, Running),
            (Running, E::Snapshot, Snapshotting),
            (Snapshotting, E::Snapshotted, Running),
            (Running, E::Stop, Stopping),
            (Paused, E::Stop, Stopping),
            (Stopping, E::Stopped, Stopped),
            (Deleting, E::Deleted, Gone),
        ];
        for phase in phases() {
            if phase != Deleting && phase != Gone {
                edges.push((phase.clone(), E::Delete, Deleting));
                edges.push((phase, E::Fail(FailReason::MachineLost("gone".into())), failed()));
            }
        }
        edges
    }

    #[test]
    fn every_pair_of_phase_and_event_goes_where_the_diagram_says_or_is_refused() {
        let legal = legal();
        for phase in phases() {
            for event in events() {
                let expected =
                    legal.iter().find(|(from, by, _)| *from == phase && *by == event).map(|(_, _, to)| to.clone());
                let found = transition(phase.clone(), event.clone());
                match expected {
                    Some(next) => assert_eq!(found, Ok(next), "{phase:?} {event:?}"),
                    None => assert_eq!(found, Err(IllegalTransition { phase: phase.clone(), event: event.clone() })),
                }
            }
        }
    }
}
