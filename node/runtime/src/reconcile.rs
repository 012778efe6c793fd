//! Intent against what is observed: a pure step that decides what to do next.
//!
//! ```text
//!              running        paused         stopped        archived       (not in the intents)
//! (unknown)    run            run            lost           lost           -
//! placed       -              -              -              -              delete *
//! running      -              pause          stop           stop           delete *
//! paused       resume         -              stop           stop           delete *
//! stopped      start          start          -              archive        delete *
//! archived     start          start          -              -              delete *
//! failed       -              -              -              -              delete *
//!   * unless it began less than UNCOMMITTED_GRACE_MS ago: a create runs beside its commit
//! ```
//! An unknown child of a fork is waited for and then lost: what it was made from is gone.
//! Phases on their way somewhere are left alone; the next step sees where they arrived. An older intent never undoes
//! what was asked directly after it was made (`Seen::outdated`), and never brings back what was deleted (`buried`).

use std::collections::{BTreeMap, BTreeSet};

use fabric_types::{Desired, Generation, Phase, SandboxId, SandboxSpec, Source, UnixMillis};

use crate::{Intent, RunRequest, UNCOMMITTED_GRACE_MS, Verb};

/// What the step knows of one sandbox on this node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    /// Its spec as the runtime has it.
    pub(crate) spec: SandboxSpec,
    /// The generation that it runs under.
    pub(crate) generation: Generation,
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// When its `run` was asked for.
    pub(crate) begun_at: UnixMillis,
    /// Nothing of it is under way or waiting.
    pub(crate) idle: bool,
    /// Something was asked of it directly after the intents came.
    pub(crate) outdated: bool,
    /// The newest spec that it can't take.
    pub(crate) refused: Option<SandboxSpec>,
}

/// Why an unknown sandbox isn't run just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeldBack {
    /// It was deleted here under this generation.
    Buried(Generation),
    /// Its last `run` failed; not before this instant.
    Until(UnixMillis),
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Bring it to life.
    Run(Box<RunRequest>),
    /// Change where it is in its life.
    Act(SandboxId, Generation, Verb),
    /// Its labels, intervals or name have changed.
    Update(Box<SandboxSpec>),
    /// Consensus knows it as stopped here, or as a fork's child, and there is nothing of it: say so.
    Lost(Box<RunRequest>),
}

/// One step. Commands of different sandboxes may run side by side.
pub(crate) fn step(
    intents: &[Intent],
    seen: &BTreeMap<SandboxId, Seen>,
    held_back: &BTreeMap<SandboxId, HeldBack>,
    now: UnixMillis,
) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut wanted = BTreeSet::new();
    for intent in intents {
        wanted.insert(&intent.spec.id);
        match seen.get(&intent.spec.id) {
            Some(seen) => commands.extend(known(intent, seen)),
            None => commands.extend(unknown(intent, held_back.get(&intent.spec.id), now)),
        }
    }
    for (id, seen) in seen {
        let graced = now.since(seen.begun_at) < UNCOMMITTED_GRACE_MS;
        // Not asked whether the intents are older than a direct request: its grace is longer than they take to follow.
        if !wanted.contains(id) && seen.idle && !graced && seen.phase != Phase::Gone {
            commands.push(Command::Act(id.clone(), seen.generation, Verb::Delete));
        }
    }
    commands
}

fn unknown(intent: &Intent, held_back: Option<&HeldBack>, now: UnixMillis) -> Option<Command> {
    match held_back {
        Some(HeldBack::Buried(generation)) if intent.generation <= *generation => return None,
        Some(HeldBack::Until(instant)) if now < *instant => return None,
        Some(HeldBack::Buried(_) | HeldBack::Until(_)) | None => {}
    }
    let request = Box::new(RunRequest { spec: intent.spec.clone(), generation: intent.generation });
    if let Source::Fork { .. } = intent.spec.source {
        // A fork makes its children from one stop, beside this; afterwards there is nothing left to make one from.
        let forking = now.since(intent.spec.created_at) < UNCOMMITTED_GRACE_MS;
        return (!forking).then_some(Command::Lost(request));
    }
    Some(match intent.desired {
        Desired::Running | Desired::Paused => Command::Run(request),
        Desired::Stopped | Desired::Archived => Command::Lost(request),
    })
}

fn known(intent: &Intent, seen: &Seen) -> Vec<Command> {
    let id = &intent.spec.id;
    if intent.generation < seen.generation {
        return Vec::new();
    }
    if intent.generation > seen.generation {
        // Placed here anew: what is here belongs to an earlier placement. The next step runs the new one.
        let stale = seen.idle.then(|| Command::Act(id.clone(), seen.generation, Verb::Delete));
        return stale.into_iter().collect();
    }
    let mut commands = Vec::new();
    // What it has refused it would refuse again: whoever committed that is told by its own request.
    if intent.spec != seen.spec && seen.refused.as_ref() != Some(&intent.spec) {
        commands.push(Command::Update(Box::new(intent.spec.clone())));
    }
    let verb = match (&seen.phase, intent.desired) {
        (Phase::Stopped | Phase::Archived, Desired::Running | Desired::Paused) => Some(Verb::Start),
        (Phase::Running, Desired::Paused) => Some(Verb::Pause),
        (Phase::Paused, Desired::Running) => Some(Verb::Resume),
        (Phase::Running | Phase::Paused, Desired::Stopped | Desired::Archived) => Some(Verb::Stop { force: false }),
        (Phase::Stopped, Desired::Archived) => Some(Verb::Archive),
        (Phase::Running, Desired::Running)
        | (Phase::Paused, Desired::Paused)
        | (Phase::Stopped, Desired::Stopped)
        // One in the archive is stopped: it comes back when it is to run.
        | (Phase::Archived, Desired::Stopped | Desired::Archived) => None,
        (
            Phase::Requested
            | Phase::Placed
            | Phase::Starting
            | Phase::Snapshotting
            | Phase::Stopping
            | Phase::Archiving
            | Phase::Deleting
            | Phase::Gone
            | Phase::Failed { .. },
            _,
        ) => None,
    };
    if let Some(verb) = verb.filter(|_| seen.idle && !seen.outdated) {
        commands.push(Command::Act(id.clone(), seen.generation, verb));
    }
    commands
}

#[cfg(test)]
mod tests;
