//! Each decision, checked against the catalog and then made. Checks come first and change nothing.

use std::collections::BTreeMap;

use fabric_types::{KeyId, NodeId, RegionCode, SnapshotId};

use super::{
    ApiKey, Command, KEYS_MAX, NODES_MAX, Node, REGIONS_MAX, REPLICAS_MAX, Refusal, Region, ReplicaState,
    SNAPSHOTS_MAX, Snapshot, State, TEMPLATES_MAX, TEXT_BYTES_MAX,
};
use crate::{CowMap, Machine, Outcome};

/// The state machine of the catalog group.
#[derive(Debug)]
pub enum Catalog {}

impl Machine for Catalog {
    type Command = Command;
    type Refusal = Refusal;
    type State = State;

    const NAME: &'static str = "catalog";

    fn apply(state: &mut State, command: &Command) -> Result<Outcome, Refusal> {
        let changed = match command {
            Command::UpsertRegion { code, region } => upsert_region(state, code, region),
            Command::RemoveRegion { code } => remove_region(state, code),
            Command::UpsertNode { node, entry } => upsert_node(state, node, entry),
            Command::RemoveNode { node } => Ok(remove_node(state, node)),
            Command::PutKey { id, key } => put_key(state, id, key),
            Command::RemoveKey { id } => Ok(remove_key(state, id)),
            Command::UpsertTemplate { name, template } => {
                upsert(&mut state.templates, name, template, "templates", TEMPLATES_MAX)
            }
            Command::RemoveTemplate { name } => Ok(state.templates.remove(name)),
            Command::PutSnapshot { snapshot } => put_snapshot(state, snapshot),
            Command::DeleteSnapshot { id } => Ok(delete_snapshot(state, id)),
            Command::AddReplica { snapshot, node, state: replica } => add_replica(state, snapshot, node, *replica),
            Command::RemoveReplica { snapshot, node } => remove_replica(state, snapshot, node),
        }?;
        if changed {
            state.revision += 1;
        }
        Ok(Outcome { revision: state.revision, changed })
    }
}

/// Whether the command changed the state.
type Changed = Result<bool, Refusal>;

fn upsert_region(state: &mut State, code: &RegionCode, region: &Region) -> Changed {
    check_text("region", region.name.len() + region.endpoint.len())?;
    upsert(&mut state.regions, code, region, "regions", REGIONS_MAX)
}

fn remove_region(state: &mut State, code: &RegionCode) -> Changed {
    match state.nodes.keys().find(|node| node.region() == *code) {
        Some(node) => Err(Refusal::RegionHolds { code: code.clone(), node: node.clone() }),
        None => Ok(state.regions.remove(code)),
    }
}

fn upsert_node(state: &mut State, id: &NodeId, entry: &Node) -> Changed {
    let code = id.region();
    if !state.regions.contains_key(&code) {
        return Err(Refusal::UnknownRegion { code });
    }
    check_text("node", entry.http.len())?;
    upsert(&mut state.nodes, id, entry, "nodes", NODES_MAX)
}

fn remove_node(state: &mut State, id: &NodeId) -> bool {
    if !state.nodes.remove(id) {
        return false;
    }
    let held: Vec<_> =
        state.snapshots.values().filter(|snapshot| snapshot.replicas.contains_key(id)).map(|s| s.id.clone()).collect();
    for snapshot in held {
        state.snapshots.update(&snapshot, |snapshot| {
            snapshot.replicas.remove(id);
        });
    }
    true
}

fn put_key(state: &mut State, id: &KeyId, key: &ApiKey) -> Changed {
    match state.keys.get(id) {
        Some(known) if known == key => return Ok(false),
        Some(_) => return Err(Refusal::KeyExists { id: id.clone() }),
        None => {}
    }
    if let Some((holder, _)) = state.key_by_hash(&key.hash) {
        return Err(Refusal::SameKey { holder: holder.clone() });
    }
    check_room(&state.keys, "keys", KEYS_MAX)?;
    check_text("key", key.name.len() + key.shown.len() + key.organization.0.len())?;
    state.file_key(id.clone(), key.clone());
    Ok(true)
}

fn remove_key(state: &mut State, id: &KeyId) -> bool {
    let Some(hash) = state.keys.get(id).map(|key| key.hash) else { return false };
    state.hashes.remove(&hash);
    state.keys.remove(id)
}

fn put_snapshot(state: &mut State, snapshot: &Snapshot) -> Changed {
    if let Some(known) = state.snapshots.get(&snapshot.id) {
        // The same decision again, however its copies have spread since.
        let repeated = Snapshot { replicas: known.replicas.clone(), ..snapshot.clone() } == *known;
        return if repeated { Ok(false) } else { Err(Refusal::SnapshotExists { id: snapshot.id.clone() }) };
    }
    if let Some(holder) = state.snapshot_named(&snapshot.organization, &snapshot.name) {
        return Err(Refusal::NameTaken { name: snapshot.name.to_string(), holder: holder.id.clone() });
    }
    check_room(&state.snapshots, "snapshots", SNAPSHOTS_MAX)?;
    if snapshot.replicas.len() > REPLICAS_MAX {
        return Err(Refusal::Full { what: "replicas of one snapshot".into(), limit: REPLICAS_MAX });
    }
    let fit = &snapshot.fit;
    let fit_texts = [&fit.version, &fit.machine, &fit.cpu_model].into_iter().chain(&fit.cpu_features);
    let bytes = text_bytes(&snapshot.env) + text_bytes(&snapshot.labels) + fit_texts.map(String::len).sum::<usize>();
    check_text("snapshot", bytes + snapshot.user.len() + snapshot.organization.0.len())?;
    state.file_snapshot(snapshot.clone());
    Ok(true)
}

fn delete_snapshot(state: &mut State, id: &SnapshotId) -> bool {
    let name = state.snapshots.get(id).map(|snapshot| (snapshot.organization.clone(), snapshot.name.clone()));
    let Some(name) = name else { return false };
    state.names.remove(&name);
    state.snapshots.remove(id)
}

fn add_replica(state: &mut State, id: &SnapshotId, node: &NodeId, replica: ReplicaState) -> Changed {
    if !state.nodes.contains_key(node) {
        return Err(Refusal::UnknownNode { node: node.clone() });
    }
    let snapshot = state.snapshots.get(id).ok_or_else(|| Refusal::UnknownSnapshot { id: id.clone() })?;
    match snapshot.replicas.get(node) {
        Some(known) if *known >= replica => return Ok(false),
        None if snapshot.replicas.len() >= REPLICAS_MAX => {
            return Err(Refusal::Full { what: "replicas of one snapshot".into(), limit: REPLICAS_MAX });
        }
        Some(_) | None => {}
    }
    Ok(state.snapshots.update(id, |snapshot| {
        snapshot.replicas.insert(node.clone(), replica);
    }))
}

fn remove_replica(state: &mut State, id: &SnapshotId, node: &NodeId) -> Changed {
    let snapshot = state.snapshots.get(id).ok_or_else(|| Refusal::UnknownSnapshot { id: id.clone() })?;
    if !snapshot.replicas.contains_key(node) {
        return Ok(false);
    }
    Ok(state.snapshots.update(id, |snapshot| {
        snapshot.replicas.remove(node);
    }))
}

fn upsert<K: Ord + Clone, V: PartialEq + Clone>(
    map: &mut CowMap<K, V>,
    key: &K,
    value: &V,
    what: &str,
    limit: usize,
) -> Changed {
    match map.get(key) {
        Some(known) if known == value => return Ok(false),
        Some(_) => {}
        None => check_room(map, what, limit)?,
    }
    map.insert(key.clone(), value.clone());
    Ok(true)
}

fn check_room<K, V>(map: &CowMap<K, V>, what: &str, limit: usize) -> Result<(), Refusal> {
    if map.len() >= limit { Err(Refusal::Full { what: what.into(), limit }) } else { Ok(()) }
}

fn check_text(what: &str, bytes: usize) -> Result<(), Refusal> {
    if bytes > TEXT_BYTES_MAX {
        return Err(Refusal::TooLarge { what: what.into(), bytes, limit: TEXT_BYTES_MAX });
    }
    Ok(())
}

fn text_bytes(pairs: &BTreeMap<String, String>) -> usize {
    pairs.iter().map(|(key, value)| key.len() + value.len()).sum()
}
