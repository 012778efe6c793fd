//! Children of a running or paused sandbox: placed on its node in one decision, all or none.

use std::collections::BTreeSet;

use fabric_types::{Capacity, Desired, Generation, SandboxId, SandboxSpec, Source, UnixMillis};

use super::apply::{Changed, begin, check_new, check_spec, current, exists, wrong_intent};
use super::room::{check_node, check_quota};
use super::{CHILDREN_MAX, Child, Record, Refusal, SANDBOXES_MAX, State};

/// What a child is meant to be: its parent, under an id and name of its own.
pub fn child_spec(parent: &Record, child: &Child, created_at: UnixMillis) -> SandboxSpec {
    SandboxSpec {
        id: child.id.clone(),
        name: child.name.clone(),
        source: Source::Fork { parent: parent.spec.id.clone(), generation: parent.generation },
        created_at,
        ..parent.spec.clone()
    }
}

pub(super) fn fork(
    state: &mut State,
    parent: &SandboxId,
    from: Generation,
    children: &[Child],
    created_at: UnixMillis,
) -> Changed {
    let (ids, names): (BTreeSet<_>, BTreeSet<_>) = children.iter().map(|child| (&child.id, &child.name)).unzip();
    let distinct = ids.len() == children.len() && names.len() == children.len();
    if children.is_empty() || children.len() > CHILDREN_MAX || !distinct {
        return Err(Refusal::Children { children: children.len(), limit: CHILDREN_MAX });
    }
    // The same decision again holds already, even if the parent has ended since.
    let is_there = |child: &Child| {
        state.sandboxes.get(&child.id).is_some_and(|record| {
            let source = Source::Fork { parent: parent.clone(), generation: from };
            record.generation == child.generation && record.spec.source == source
        })
    };
    if children.iter().all(is_there) {
        return Ok(false);
    }
    if let Some(record) = children.iter().find_map(|child| state.sandboxes.get(&child.id)) {
        return Err(exists(record));
    }
    let record = current(state, parent, from)?;
    match record.desired {
        Desired::Running | Desired::Paused => {}
        Desired::Stopped | Desired::Archived => return Err(wrong_intent(record, "running or paused")),
    }
    if state.sandboxes.len() + children.len() > SANDBOXES_MAX {
        return Err(Refusal::Full { what: "sandboxes".into(), limit: SANDBOXES_MAX });
    }
    let specs: Vec<_> = children.iter().map(|child| child_spec(record, child, created_at)).collect();
    for (spec, child) in specs.iter().zip(children) {
        check_new(state, spec, child.generation)?;
        check_spec(spec)?;
    }
    let each = Capacity::of(record.spec.shape);
    let needed = specs.iter().fold(Capacity::default(), |sum, _| sum.plus(each));
    let more = u32::try_from(children.len()).unwrap_or(u32::MAX);
    let (node, organization) = (record.node.clone(), record.spec.organization.clone());
    check_quota(state, &organization, more, needed)?;
    check_node(state, &node, more, needed, Capacity::default())?;
    for (spec, child) in specs.into_iter().zip(children) {
        begin(state, spec, &node, child.generation);
    }
    Ok(true)
}
