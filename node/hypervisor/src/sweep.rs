//! Folders that an earlier process of this node left: what is half-made is ended and cleared.

use std::time::Duration;

use crate::VmFolder;
use crate::durable::{read_json, remove_file};
use crate::keeper::{Reply, Request, SCHEMA, VmRecord, ask_blocking};
use crate::process::{ProcessRef, boot_id};
use crate::seal::release;

/// How long a keeper may take to answer; it does nothing else meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a keeper may take from its answer to its end.
const EXIT_LIMIT: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone: freeing a large guest's memory.
const GONE_LIMIT: Duration = Duration::from_secs(5);

/// What was found in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swept {
    /// A complete machine lives there: adopt it, or end it with [`end_machine`].
    Lives,
    /// A complete machine has ended there; its logs and record are left to be read, the folder is yours to remove.
    Ended,
    /// Something half-made or unreachable was ended and its files removed.
    Cleared,
    /// Nothing of a machine.
    Nothing,
}

/// Looks into each folder, ends keepers and monitors of half-made machines and clears after them. Blocks: milliseconds
/// for what is sound, up to 20 s for what has to be killed.
pub fn sweep<'a>(folders: impl IntoIterator<Item = &'a VmFolder>) -> Vec<Swept> {
    folders.into_iter().map(sweep_one).collect()
}

/// Ends whatever machine lives in the folder, whether complete or not, waits until its processes are gone and removes
/// its files; answers whether there was anything. Idempotent. Blocks, up to 20 s for what resists.
pub fn end_machine(folder: &VmFolder) -> bool {
    let socket = folder.keeper_socket();
    let greeted = match ask_blocking(&socket, &Request::Hello, ANSWER_LIMIT) {
        Ok(Reply::Here { keeper, vmm, .. }) => Some([keeper, vmm]),
        _ => None,
    };
    let asked = ask_blocking(&socket, &Request::End { grace_ms: 0 }, ANSWER_LIMIT);
    let found = clear(folder, greeted);
    greeted.is_some() || asked.is_ok() || found
}

fn sweep_one(folder: &VmFolder) -> Swept {
    match ask_blocking(&folder.keeper_socket(), &Request::Hello, ANSWER_LIMIT) {
        Ok(Reply::Here { confirmed: true, .. }) => Swept::Lives,
        Ok(_) => {
            end_machine(folder);
            Swept::Cleared
        }
        Err(_) => {
            // A keeper that is ending closes its socket before it writes how its machine ended.
            end_processes(folder, None);
            if folder.end_record().exists() {
                release(folder);
                return Swept::Ended;
            }
            if clear(folder, None) { Swept::Cleared } else { Swept::Nothing }
        }
    }
}

/// Ends what runs and removes all files; whether there were any.
fn clear(folder: &VmFolder, known: Option<[ProcessRef; 2]>) -> bool {
    end_processes(folder, known);
    release(folder);
    let mut found = false;
    for path in folder.all_files().iter().chain([&folder.record()]) {
        found |= path.exists();
        // What can't be removed now is removed with its folder.
        let _ = remove_file(path);
    }
    found
}

/// Waits for the processes and kills what doesn't go. Without known processes, those of the record.
fn end_processes(folder: &VmFolder, known: Option<[ProcessRef; 2]>) {
    for process in known.or_else(|| recorded(folder)).into_iter().flatten() {
        if !process.wait_gone(EXIT_LIMIT) {
            process.kill();
            process.wait_gone(GONE_LIMIT);
        }
    }
}

fn recorded(folder: &VmFolder) -> Option<[ProcessRef; 2]> {
    let record: VmRecord = read_json(&folder.record(), SCHEMA).ok()?;
    (boot_id().ok()? == record.boot_id).then_some([record.keeper, record.vmm])
}
