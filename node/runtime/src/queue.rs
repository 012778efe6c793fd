//! May this be asked of a sandbox now? A pure table of phases and requests.
//!
//! Requests of one sandbox stand in one bounded queue and are taken one at a time by its driver task, so the phase
//! that is judged here is the one that the request meets, not the one at the moment it was asked.

use fabric_types::Phase;

use crate::Verb;

/// Requests of one sandbox that may wait: a client's retries, a reconcile step and the gateway's calls at once, with
/// room; past it the caller is told that the sandbox is busy.
pub(crate) const WAITING_MAX: usize = 16;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Bring it to life for the first time.
    Run,
    /// Boot a stopped one.
    Start,
    /// End its machine, keep its disk.
    Stop,
    /// Stop its processors.
    Pause,
    /// Let them run.
    Resume,
    /// Move its disk into the snapshot store.
    Archive,
    /// Take a snapshot.
    Snapshot,
    /// Make children of it.
    Fork,
    /// Take a new spec.
    Update,
    /// Open a way to its agent.
    Connect,
    /// Remove everything.
    Delete,
}

/// What a request meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is carried out.
    Do,
    /// The sandbox is there already: a success without work.
    Already,
    /// The phase doesn't allow it.
    Denied,
}

impl Ask {
    /// For the sentence "it can't ...".
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Run => "be created",
            Self::Start => "be started",
            Self::Stop => "be stopped",
            Self::Pause => "be paused",
            Self::Resume => "be resumed",
            Self::Archive => "be archived",
            Self::Snapshot => "be snapshotted",
            Self::Fork => "be forked",
            Self::Update => "be changed",
            Self::Connect => "be reached",
            Self::Delete => "be deleted",
        }
    }
}

impl From<Verb> for Ask {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Start => Self::Start,
            Verb::Stop { .. } => Self::Stop,
            Verb::Pause => Self::Pause,
            Verb::Resume => Self::Resume,
            Verb::Archive => Self::Archive,
            Verb::Delete => Self::Delete,
        }
    }
}

/// What `ask` meets in `phase`. Read each row as the requests that are carried out, those that are no work, and the rest.
pub(crate) fn judge(phase: &Phase, ask: Ask) -> Verdict {
    use Verdict::{Already, Denied, Do};
    match phase {
        Phase::Requested | Phase::Placed => match ask {
            Ask::Run | Ask::Update | Ask::Delete => Do,
            Ask::Start
            | Ask::Stop
            | Ask::Pause
            | Ask::Resume
            | Ask::Archive
            | Ask::Snapshot
            | Ask::Fork
            | Ask::Connect => Denied,
        },
        // The driver leaves these before it takes the next request; one that meets them anyway finds a sandbox whose last
        // step was cut off.
        Phase::Starting | Phase::Snapshotting | Phase::Stopping | Phase::Archiving => match ask {
            Ask::Delete => Do,
            Ask::Run
            | Ask::Start
            | Ask::Stop
            | Ask::Pause
            | Ask::Resume
            | Ask::Archive
            | Ask::Snapshot
            | Ask::Fork
            | Ask::Update
            | Ask::Connect => Denied,
        },
        Phase::Running => match ask {
            Ask::Run | Ask::Start | Ask::Resume => Already,
            Ask::Stop | Ask::Pause | Ask::Snapshot | Ask::Fork | Ask::Update | Ask::Connect | Ask::Delete => Do,
            Ask::Archive => Denied,
        },
        Phase::Paused => match ask {
            Ask::Run | Ask::Pause => Already,
            Ask::Stop | Ask::Resume | Ask::Fork | Ask::Update | Ask::Delete => Do,
            Ask::Start | Ask::Archive | Ask::Snapshot | Ask::Connect => Denied,
        },
        Phase::Stopped => match ask {
            Ask::Run | Ask::Stop => Already,
            Ask::Start | Ask::Archive | Ask::Update | Ask::Delete => Do,
            Ask::Pause | Ask::Resume | Ask::Snapshot | Ask::Fork | Ask::Connect => Denied,
        },
        Phase::Archived => match ask {
            Ask::Run | Ask::Stop | Ask::Archive => Already,
            Ask::Start | Ask::Update | Ask::Delete => Do,
            Ask::Pause | Ask::Resume | Ask::Snapshot | Ask::Fork | Ask::Connect => Denied,
        },
        Phase::Failed { .. } => match ask {
            Ask::Update | Ask::Delete => Do,
            Ask::Run
            | Ask::Start
            | Ask::Stop
            | Ask::Pause
            | Ask::Resume
            | Ask::Archive
            | Ask::Snapshot
            | Ask::Fork
            | Ask::Connect => Denied,
        },
        // Met only by one whose removal failed half-way: it is gone on with.
        Phase::Deleting => match ask {
            Ask::Delete => Do,
            Ask::Run
            | Ask::Start
            | Ask::Stop
            | Ask::Pause
            | Ask::Resume
            | Ask::Archive
            | Ask::Snapshot
            | Ask::Fork
            | Ask::Update
            | Ask::Connect => Denied,
        },
        Phase::Gone => match ask {
            Ask::Delete => Already,
            Ask::Run
            | Ask::Start
            | Ask::Stop
            | Ask::Pause
            | Ask::Resume
            | Ask::Archive
            | Ask::Snapshot
            | Ask::Fork
            | Ask::Update
            | Ask::Connect => Denied,
        },
    }
}

#[cfg(test)]
mod tests {
    use fabric_types::{PhaseEvent, transition};

    use crate::testing::phases;

    use super::*;

    const ASKS: [Ask; 11] = [
        Ask::Run,
        Ask::Start,
        Ask::Stop,
        Ask::Pause,
        Ask::Resume,
        Ask::Archive,
        Ask::Snapshot,
        Ask::Fork,
        Ask::Update,
        Ask::Connect,
        Ask::Delete,
    ];

    /// The event with which the driver begins the work of an ask, where it has one.
    fn begins_with(ask: Ask) -> Option<PhaseEvent> {
        match ask {
            Ask::Run | Ask::Start => Some(PhaseEvent::Start),
            Ask::Stop => Some(PhaseEvent::Stop),
            Ask::Pause => Some(PhaseEvent::Pause),
            Ask::Resume => Some(PhaseEvent::Resume),
            Ask::Archive => Some(PhaseEvent::Archive),
            Ask::Snapshot => Some(PhaseEvent::Snapshot),
            Ask::Delete => Some(PhaseEvent::Delete),
            // A paused parent stands still already; a change moves no phase.
            Ask::Fork | Ask::Update | Ask::Connect => None,
        }
    }

    #[test]
    fn what_is_carried_out_is_a_legal_step_of_the_sandboxs_life() {
        for phase in phases() {
            for ask in ASKS {
                // A sandbox that was only asked for is placed by being run here, and a removal that failed has begun.
                let begun = matches!((&phase, ask), (Phase::Requested, Ask::Run) | (Phase::Deleting, Ask::Delete));
                if judge(&phase, ask) != Verdict::Do || begun {
                    continue;
                }
                if let Some(event) = begins_with(ask) {
                    assert!(transition(phase.clone(), event).is_ok(), "{phase:?} {ask:?}");
                }
            }
        }
    }

    #[test]
    fn a_delete_is_never_denied_and_twice_is_once() {
        for phase in phases() {
            assert_ne!(judge(&phase, Ask::Delete), Verdict::Denied, "{phase:?}");
        }
        assert_eq!(judge(&Phase::Gone, Ask::Delete), Verdict::Already);
    }

    #[test]
    fn stop_and_start_are_idempotent() {
        assert_eq!(judge(&Phase::Stopped, Ask::Stop), Verdict::Already);
        assert_eq!(judge(&Phase::Running, Ask::Start), Verdict::Already);
        assert_eq!(judge(&Phase::Paused, Ask::Pause), Verdict::Already);
        assert_eq!(judge(&Phase::Running, Ask::Resume), Verdict::Already);
    }

    #[test]
    fn every_pair_of_phase_and_request_meets_what_the_table_says() {
        // A letter for each request, in the order of ASKS: Do, Already, and a dot for denied.
        let table = [
            ("requested", "D.......D.D"),
            ("placed", "D.......D.D"),
            ("starting", "..........D"),
            ("running", "AADDA.DDDDD"),
            ("paused", "A.DAD..DD.D"),
            ("snapshotting", "..........D"),
            ("stopping", "..........D"),
            ("stopped", "ADA..D..D.D"),
            ("archiving", "..........D"),
            ("archived", "ADA..A..D.D"),
            ("deleting", "..........D"),
            ("gone", "..........A"),
            ("failed", "........D.D"),
        ];
        for (phase, (name, row)) in phases().into_iter().zip(table) {
            assert_eq!(phase.as_str(), name);
            let letter = |ask| match judge(&phase, ask) {
                Verdict::Do => 'D',
                Verdict::Already => 'A',
                Verdict::Denied => '.',
            };
            assert_eq!(ASKS.map(letter).iter().collect::<String>(), row, "{name}");
        }
    }

    #[test]
    fn only_a_running_sandbox_is_reached_or_snapshotted() {
        for phase in phases() {
            let reachable = phase == Phase::Running;
            assert_eq!(judge(&phase, Ask::Connect) == Verdict::Do, reachable, "{phase:?}");
            assert_eq!(judge(&phase, Ask::Snapshot) == Verdict::Do, reachable, "{phase:?}");
        }
    }
}
