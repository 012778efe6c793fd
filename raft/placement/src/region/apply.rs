//! Each decision, checked against the ledger and then made. Checks come first and change nothing; what follows
//! them can't fail.

use fabric_types::{
    Capacity, Desired, Generation, NodeId, NodeLimits, OrganizationId, Quota, SandboxId, SandboxSpec, Shape,
};

use super::fork::fork;
use super::room::{check_node, check_quota};
use super::{
    Command, NODES_MAX, Node, QUOTAS_MAX, REASON_BYTES_MAX, Record, Refusal, SANDBOXES_MAX, SPEC_BYTES_MAX, State,
};
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
            Command::Fork { parent, from, children, created_at } => fork(state, parent, *from, children, *created_at),
            Command::SetDesired { id, generation, desired } => set_desired(state, id, *generation, *desired),
            Command::Move { id, from, node, generation } => move_to(state, id, *from, node, *generation),
            Command::SetLabels { id, labels } => set_spec(state, id, |spec| spec.labels = labels.clone()),
            Command::SetIntervals { id, intervals } => set_spec(state, id, |spec| spec.intervals = *intervals),
            Command::SetShape { id, generation, from, shape } => set_shape(state, id, *generation, *from, *shape),
            Command::SetNetwork { id, network } => set_spec(state, id, |spec| spec.network = network.clone()),
            Command::SetPublic { id, public } => set_spec(state, id, |spec| spec.public = *public),
            Command::Fail { id, generation, reason } => fail(state, id, *generation, reason),
            Command::Delete { id, generation } => delete(state, id, *generation),
            Command::SetQuota { organization, quota } => set_quota(state, organization.as_ref(), *quota),
        }?;
        if changed {
            state.revision += 1;
        }
        Ok(Outcome { revision: state.revision, changed })
    }
}

/// Whether the command changed the state.
pub(super) type Changed = Result<bool, Refusal>;

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
        return Err(exists(record));
    }
    check_new(state, spec, generation)?;
    check_spec(spec)?;
    let needed = Capacity::of(spec.shape);
    check_quota(state, &spec.organization, 1, needed)?;
    check_node(state, at, 1, needed, Capacity::default())?;
    begin(state, spec.clone(), at, generation);
    Ok(true)
}

/// Whether an id, name and generation may begin.
pub(super) fn check_new(state: &State, spec: &SandboxSpec, generation: Generation) -> Result<(), Refusal> {
    let latest = state.deleted.get(&spec.id).copied().unwrap_or(Generation(0));
    if generation <= latest {
        return Err(Refusal::Stale { id: spec.id.clone(), given: generation, current: latest });
    }
    if let Some(holder) = state.named(&spec.organization, &spec.name) {
        return Err(Refusal::NameTaken { name: spec.name.clone(), holder: holder.spec.id.clone() });
    }
    if state.sandboxes.len() >= SANDBOXES_MAX {
        return Err(Refusal::Full { what: "sandboxes".into(), limit: SANDBOXES_MAX });
    }
    Ok(())
}

/// Begins a sandbox that was checked.
pub(super) fn begin(state: &mut State, spec: SandboxSpec, at: &NodeId, generation: Generation) {
    state.unbury(&spec.id);
    let revision = state.revision + 1;
    let desired = Desired::Running;
    state.admit(Record { spec, node: at.clone(), generation, desired, failed: None, revision });
}

pub(super) fn exists(record: &Record) -> Refusal {
    Refusal::Exists { id: record.spec.id.clone(), node: record.node.clone(), generation: record.generation }
}

fn set_desired(state: &mut State, id: &SandboxId, generation: Generation, desired: Desired) -> Changed {
    let record = current(state, id, generation)?;
    if record.desired == desired {
        return Ok(false);
    }
    if desired == Desired::Archived && record.desired != Desired::Stopped {
        return Err(wrong_intent(record, "stopped"));
    }
    let held = record.held();
    let needed = Record { desired, ..record.clone() }.held();
    replace_held(state, id, held, needed)?;
    Ok(update(state, id, |record| record.desired = desired))
}

fn set_shape(state: &mut State, id: &SandboxId, generation: Generation, from: Shape, shape: Shape) -> Changed {
    let record = current(state, id, generation)?;
    let old = record.spec.shape;
    if old == shape {
        return Ok(false);
    }
    if old != from {
        return Err(Refusal::ShapeChanged { id: id.clone(), from, current: old });
    }
    let live = (shape.vcpus(), shape.memory()) == (old.vcpus(), old.memory());
    match record.desired {
        Desired::Stopped => {}
        Desired::Running | Desired::Paused if live => {}
        Desired::Running | Desired::Paused => return Err(wrong_intent(record, "stopped")),
        // Its disk lies in the snapshot store, as large as it is.
        Desired::Archived => return Err(wrong_intent(record, "started")),
    }
    let held = record.held();
    replace_held(state, id, held, Capacity::of(shape))?;
    Ok(update(state, id, |record| record.spec.shape = shape))
}

/// Replaces what a sandbox reserves, if its node and its organization's quota have room for it.
fn replace_held(state: &mut State, id: &SandboxId, held: Capacity, needed: Capacity) -> Result<(), Refusal> {
    let record = record(state, id)?;
    let (node, organization) = (record.node.clone(), record.spec.organization.clone());
    if !needed.fits(held) {
        check_quota(state, &organization, 0, needed.minus(held))?;
        check_node(state, &node, 0, needed, held)?;
    }
    state.exchange(&node, &organization, held, needed);
    Ok(())
}

pub(super) fn wrong_intent(record: &Record, needs: &str) -> Refusal {
    Refusal::WrongIntent { id: record.spec.id.clone(), desired: record.desired, needs: needs.into() }
}

fn set_quota(state: &mut State, organization: Option<&OrganizationId>, quota: Quota) -> Changed {
    let Some(organization) = organization else {
        let changed = state.quota != quota;
        state.quota = quota;
        return Ok(changed);
    };
    if state.quotas.get(organization) == Some(&quota) {
        return Ok(false);
    }
    if organization.0.len() > SPEC_BYTES_MAX {
        return Err(too_large("organization", organization.0.len(), SPEC_BYTES_MAX));
    }
    if !state.quotas.contains_key(organization) && state.quotas.len() >= QUOTAS_MAX {
        return Err(Refusal::Full { what: "quotas".into(), limit: QUOTAS_MAX });
    }
    state.quotas.insert(organization.clone(), quota);
    Ok(true)
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
    let (held, left) = (record.held(), record.node.clone());
    if left != *to {
        check_node(state, to, 1, held, Capacity::default())?;
    }
    state.relocate(&left, to, held);
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
    let last = record.generation;
    state.dismiss(id);
    state.bury(state.revision + 1, id.clone(), last);
    Ok(true)
}

pub(super) fn node<'a>(state: &'a State, id: &NodeId) -> Result<&'a Node, Refusal> {
    state.nodes.get(id).ok_or_else(|| Refusal::UnknownNode { node: id.clone() })
}

fn record<'a>(state: &'a State, id: &SandboxId) -> Result<&'a Record, Refusal> {
    state.sandboxes.get(id).ok_or_else(|| Refusal::UnknownSandbox { id: id.clone() })
}

/// The record, if its placement is the given one.
pub(super) fn current<'a>(state: &'a State, id: &SandboxId, given: Generation) -> Result<&'a Record, Refusal> {
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

pub(super) fn check_spec(spec: &SandboxSpec) -> Result<(), Refusal> {
    let pairs = spec.labels.iter().chain(&spec.env).map(|(key, value)| key.len() + value.len());
    let bytes = pairs.sum::<usize>() + spec.name.len() + spec.user.len() + spec.organization.0.len();
    if bytes > SPEC_BYTES_MAX { Err(too_large("sandbox", bytes, SPEC_BYTES_MAX)) } else { Ok(()) }
}

fn too_large(what: &str, bytes: usize, limit: usize) -> Refusal {
    Refusal::TooLarge { what: what.into(), bytes, limit }
}
