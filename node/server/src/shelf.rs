//! `atoll image ls` and `prune`: what lies in a folder of guest images, and taking away what nobody uses.

use std::path::Path;
use std::time::SystemTime;

use gateway_cli::{age, bytes, table};
use guest_image::{ImageInputs, Kind, Shelved, Use, base_name, digest, find_or_build_agent, shelf, take_away};
use serde_json::{Value, json};

use crate::dev::say;

/// Characters of a name that a table shows; the rest tells nobody apart.
const NAME_SHOWN: usize = 17;

/// `atoll image ls`.
pub(crate) fn ls(root: &Path, as_json: bool) -> anyhow::Result<()> {
    let found = shelf(root)?;
    if as_json {
        say::result(&json!({ "items": found.iter().map(view).collect::<Vec<_>>() }).to_string());
        return Ok(());
    }
    say::result(shown(&found).trim_end());
    Ok(())
}

/// `atoll image prune`: one that can't be removed is said, and the others are all the same.
pub(crate) fn prune(root: &Path, dry_run: bool, as_json: bool) -> anyhow::Result<()> {
    let found = shelf(root)?;
    let keep = current(&found);
    let spare = |shelved: &&Shelved| shelved.used_by == Use::Nobody && !keep.contains(&shelved.name);
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for shelved in found.iter().filter(spare) {
        match if dry_run { Ok(true) } else { take_away(shelved) } {
            Ok(true) => removed.push(shelved),
            Ok(false) => say::line(&format!("{} stays: somebody has begun to use it", shelved.name)),
            Err(error) => failed.push(format!("{}: {error}", shelved.name)),
        }
    }
    let freed: u64 = removed.iter().map(|shelved| shelved.own_bytes).sum();
    if as_json {
        let items: Vec<Value> = removed.iter().map(|shelved| view(shelved)).collect();
        say::result(&json!({ "removed": items, "freedBytes": freed, "dryRun": dry_run, "failed": failed }).to_string());
    } else {
        let gone: Vec<Shelved> = removed.into_iter().cloned().collect();
        if !gone.is_empty() {
            say::result(shown(&gone).trim_end());
        }
        let verb = if dry_run { "would be freed" } else { "freed" };
        say::line(&format!("{} {verb} in {}", bytes(freed), root.display()));
    }
    anyhow::ensure!(failed.is_empty(), "not all could be removed:\n{}", failed.join("\n"));
    Ok(())
}

/// The image that this version runs, and the base that it and the next are made of: what `atoll dev` would take next. Where
/// that can't be told, the newest of each.
fn current(found: &[Shelved]) -> Vec<String> {
    let named = || -> anyhow::Result<Vec<String>> {
        let inputs = ImageInputs::new(find_or_build_agent()?)?;
        Ok(vec![digest(&inputs)?, base_name(&inputs)])
    };
    named().unwrap_or_else(|error| {
        say::line(&format!("can't tell which image this version runs, so the newest stays: {error:#}"));
        let newest = |kind| found.iter().find(|shelved| shelved.kind == kind).map(|shelved| shelved.name.clone());
        [Kind::Image, Kind::Base].into_iter().filter_map(newest).collect()
    })
}

fn shown(found: &[Shelved]) -> String {
    let row = |shelved: &Shelved| {
        let name: String = shelved.name.chars().take(NAME_SHOWN).collect();
        let used_by = match &shelved.used_by {
            Use::Held => "a node, or a build".to_owned(),
            Use::Processes(numbers) => format!("{} processes", numbers.len()),
            Use::Nobody => "-".to_owned(),
        };
        let since = shelved.made_at.elapsed().unwrap_or_default();
        vec![
            name,
            kind(shelved.kind).to_owned(),
            bytes(shelved.own_bytes),
            shelved.templates.to_string(),
            age(since),
            used_by,
        ]
    };
    table(&["NAME", "KIND", "SIZE", "TEMPLATES", "AGE", "USED BY"], &found.iter().map(row).collect::<Vec<_>>())
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Image => "image",
        Kind::Base => "base",
        Kind::Unfinished => "unfinished",
    }
}

fn view(shelved: &Shelved) -> Value {
    let processes = match &shelved.used_by {
        Use::Processes(numbers) => numbers.clone(),
        Use::Held | Use::Nobody => Vec::new(),
    };
    let made_at = shelved.made_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    json!({
        "name": shelved.name,
        "dir": shelved.dir,
        "kind": kind(shelved.kind),
        "ownBytes": shelved.own_bytes,
        "templates": shelved.templates,
        "madeAtUnixMs": u64::try_from(made_at.as_millis()).unwrap_or(u64::MAX),
        "inUse": shelved.used_by != Use::Nobody,
        "processes": processes,
    })
}
