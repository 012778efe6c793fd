//! Ends every machine of a node that no process of this node holds any more: for whoever takes a whole mesh down.

use std::path::{Path, PathBuf};

use node_hypervisor::{VmFolder, end_machine};
use serde::Deserialize;

/// What both records have in common, as far as it matters here.
#[derive(Deserialize)]
struct Recorded {
    machine: Option<VmFolder>,
}

/// Ends the keepers and monitors of all homes under a node's folder; how many there were. Blocks, up to 9 s for each that
/// has to be killed. What can't be read is passed over: the machine's own record in the home is enough to end it.
pub fn end_machines(node: &Path) -> usize {
    let homes = ["sandboxes", "pool"].iter().flat_map(|room| std::fs::read_dir(node.join(room))).flatten();
    let homes = homes.filter_map(Result::ok).map(|entry| entry.path()).filter(|home| home.is_dir());
    homes.filter(|home| end_machine(&machine_of(home))).count()
}

fn machine_of(home: &Path) -> VmFolder {
    let recorded = ["sandbox.json", "clone.json"].iter().find_map(|name| {
        let bytes = std::fs::read(home.join(name)).ok()?;
        serde_json::from_slice::<Recorded>(&bytes).ok()?.machine
    });
    // Without a record the keeper's socket is unknown, and its process is found by the machine's own record.
    recorded.unwrap_or_else(|| VmFolder { dir: home.join("vm"), run: PathBuf::from("/nonexistent") })
}
