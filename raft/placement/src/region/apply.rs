//! Each decision, checked against the ledger and then made. Checks come first and change nothing; what follows
//! them can't fail.

use fabric_types::{Capacity, Desired, Generation, NodeId, NodeLimits, SandboxId, SandboxSpec};

use super::{Command, NODES_MAX, Node, REASON_BYTES_MAX, Record, Refusal, SANDBOXES_MAX, SPEC_BYTES_MAX, State};
use crate::{Machine, Outcome};

/// The state machine of a placement group.
#[derive(Debug)]
pub enum Placement {}

impl Machine for Placement {
    type Command = Command;
    type Refusal = Refusal;
    type State = State;

    const NAME: &'static str = "placement";

    fn apply(state: &mut State, command: &Command) -> Result<Outcome, Refusal> {
        let changed = match command {
            Command::RegisterNode { node, limits } => register(state, node, *limits),
            Command::SetAdmitted { node, admitted } => set_admitted(state, node, *admitted),
            Command::RemoveNode { node } => remove_node(state, node),
            Command::Place { spec, node, generation } => place(state, spec, node, *generation),
            Command::SetDesired { id, generation, desired } => set_desired(state, id, *generation, *desired),
            Command::Move { id, from, node, generation } => move_to(state, id, *from, node, *generation),
            Command::SetLabels { id, labels } => set_spec(state, id, |spec| spec.labels = labels.clone()),
            Command::SetIntervals { id, intervals } => set_spec(state, id, |spec| spec.intervals = *intervals),
            Command::SetNetwork { id, network } => set_spec(state, id, |spec| spec.network = network.clone()),
            Command::SetPublic { id, public } => set_spec(state, id, |spec| spec.public = *public),
            Command::Fail { id, generation, reason } => fail(state, id, *generation, reason),
            Command::Delete { id, generation } => delete(state, id, *generation),
        }?;
        if changed {
            state.revision += 1;
        }
        Ok(Outcome { revision: state.revision, changed })
    }
}

/// Whether the command changed the state.
type Changed = Result<bool, Refusal>;

fn register(state: &mut State, id: &NodeId, limits: NodeLimits) -> Changed {
    match state.nodes.get(id) {
        None if state.nodes.len() >= NODES_MAX => Err(Refusal::Full { what: "nodes".into(), limit: NODES_MAX }),
        None => {
            let node = Node { limits, admitted: true, reserved: Capacity::default(), sandboxes: 0 };
            state.nodes.insert(id.clone(), node);
            Ok(true)
        }
        Some(node) if node.limits == limits => Ok(false),
        Some(node) if !node.reserved.fits(limits.reservable()) => Err(Refusal::LimitsBelowReserved {
            node: id.clone(),
            reservable: limits.reservable(),
            reserved: node.reserved,
        }),
        Some(_) => Ok(state.nodes.update(id, |node| node.limits = limits)),
    }
}

fn set_admitted(state: &mut State, id: &NodeId, admitted: bool) -> Changed {
    if node(state, id)?.admitted == admitted {
        return Ok(false);
    }
    Ok(state.nodes.update(id, |node| node.admitted = admitted))
}

fn remove_node(state: &mut State, id: &NodeId) -> Changed {
    match state.nodes.get(id) {
        // A repetition: the node has left.
        None => Ok(false),
        Some(node) if node.sandboxes > 0 => Err(Refusal::NodeHolds { node: id.clone(), sandboxes: node.sandboxes }),
        Some(_) => Ok(state.nodes.remove(id)),
    }
}

fn place(state: &mut State, spec: &SandboxSpec, at: &NodeId, generation: Generation) -> Changed {
    let id = &spec.id;
    if let Some(record) = state.sandboxes.get(id) {
        // The same decision again: it holds already, whatever has happened to the sandbox's labels since.
        if record.generation == generation && record.node == *at {
            return Ok(false);
        }
        return Err(Refusal::Exists { id: id.clone(), node: record.node.clone(), generation: record.generation });
    }
    let latest = state.deleted.get(id).copied().unwrap_or(Generation(0));
    if generation <= latest {
        return Err(Refusal::Stale { id: id.clone(), given: generation, current: latest });
    }
    if let Some(holder) = state.named(&spec.organization, &spec.name) {
        return Err(Refusal::NameTaken { name: spec.name.clone(), holder: holder.spec.id.clone() });
    }
    if state.sandboxes.len() >= SANDBOXES_MAX {
        return Err(Refusal::Full { what: "sandboxes".into(), limit: SANDBOXES_MAX });
    }
    check_spec(spec)?;
    check_room(state, at, Capacity::of(spec.shape), Capacity::default())?;

    state.unbury(id);
    let revision = state.revision + 1;
    let desired = Desired::Running;
    state.admit(Record { spec: spec.clone(), node: at.clone(), generation, desired, failed: None, revision });
    Ok(true)
}

fn set_desired(state: &mut State, id: &SandboxId, generation: Generation, desired: Desired) -> Changed {
    let record = current(state, id, generation)?;
    if record.desired == desired {
        return Ok(false);
    }
    Ok(update(state, id, |record| record.desired = desired))
}

fn move_to(state: &mut State, id: &SandboxId, from: Generation, to: &NodeId, generation: Generation) -> Changed {
    let record = record(state, id)?;
    // The same decision again.
    if record.generation == generation && record.node == *to && from < generation {
        return Ok(false);
    }
    if record.generation != from || generation <= record.generation {
        let given = if record.generation != from { from } else { generation };
        return Err(Refusal::Stale { id: id.clone(), given, current: record.generation });
    }
    let (held, left) = (Capacity::of(record.spec.shape), record.node.clone());
    let own = if left == *to { held } else { Capacity::default() };
    check_room(state, to, held, own)?;

    state.release(&left, held);
    state.reserve(to, held);
    Ok(update(state, id, |record| {
        record.node = to.clone();
        record.generation = generation;
        record.failed = None;
    }))
}

fn set_spec(state: &mut State, id: &SandboxId, change: impl Fn(&mut SandboxSpec)) -> Changed {
    let mut spec = record(state, id)?.spec.clone();
    change(&mut spec);
    check_spec(&spec)?;
    if record(state, id)?.spec == spec {
        return Ok(false);
    }
    Ok(update(state, id, |record| record.spec = spec))
}

fn fail(state: &mut State, id: &SandboxId, generation: Generation, reason: &str) -> Changed {
    let record = current(state, id, generation)?;
    if reason.len() > REASON_BYTES_MAX {
        return Err(too_large("reason", reason.len(), REASON_BYTES_MAX));
    }
    if record.failed.as_deref() == Some(reason) {
        return Ok(false);
    }
    Ok(update(state, id, |record| record.failed = Some(reason.to_owned())))
}

fn delete(state: &mut State, id: &SandboxId, generation: Option<Generation>) -> Changed {
    let record = match generation {
        Some(generation) => current(state, id, generation)?,
        None => record(state, id)?,
    };
    let (spec, node, last) = (record.spec.clone(), record.node.clone(), record.generation);
    state.sandboxes.remove(id);
    state.names.remove(&(spec.organization, spec.name));
    state.release(&node, Capacity::of(spec.shape));
    state.bury(state.revision + 1, id.clone(), last);
    Ok(true)
}

fn node<'a>(state: &'a State, id: &NodeId) -> Result<&'a Node, Refusal> {
    state.nodes.get(id).ok_or_else(|| Refusal::UnknownNode { node: id.clone() })
}

fn record<'a>(state: &'a State, id: &SandboxId) -> Result<&'a Record, Refusal> {
    state.sandboxes.get(id).ok_or_else(|| Refusal::UnknownSandbox { id: id.clone() })
}

/// The record, if its placement is the given one.
fn current<'a>(state: &'a State, id: &SandboxId, given: Generation) -> Result<&'a Record, Refusal> {
    let record = record(state, id)?;
    if record.generation == given {
        Ok(record)
    } else {
        Err(Refusal::Stale { id: id.clone(), given, current: record.generation })
    }
}

fn update(state: &mut State, id: &SandboxId, change: impl FnOnce(&mut Record)) -> bool {
    let revision = state.revision + 1;
    state.sandboxes.update(id, |record| {
        change(record);
        record.revision = revision;
    })
}

/// Whether a node takes a sandbox. `own` is what that sandbox reserves there already.
fn check_room(state: &State, id: &NodeId, needed: Capacity, own: Capacity) -> Result<(), Refusal> {
    let node = node(state, id)?;
    let stays = own != Capacity::default();
    if !node.admitted && !stays {
        return Err(Refusal::NotAdmitted { node: id.clone() });
    }
    let free = node.free().plus(own);
    if needed.fits(free) { Ok(()) } else { Err(Refusal::NoRoom { node: id.clone(), needed, free }) }
}

fn check_spec(spec: &SandboxSpec) -> Result<(), Refusal> {
    let pairs = spec.labels.iter().chain(&spec.env).map(|(key, value)| key.len() + value.len());
    let bytes = pairs.sum::<usize>() + spec.name.len() + spec.user.len() + spec.organization.0.len();
    if bytes > SPEC_BYTES_MAX { Err(too_large("sandbox", bytes, SPEC_BYTES_MAX)) } else { Ok(()) }
}

fn too_large(what: &str, bytes: usize, limit: usize) -> Refusal {
    Refusal::TooLarge { what: what.into(), bytes, limit }
}
