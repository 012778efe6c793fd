//! Folders that an earlier process of this node left: what is half-made is ended and cleared.

use std::io;
use std::time::{Duration, Instant};

use crate::VmFolder;
use crate::durable::{read_json, remove_file};
use crate::keeper::{Reply, Request, SCHEMA, VmRecord, ask_blocking};
use crate::process::{ProcessRef, boot_id};
use crate::seal::release;

/// How long a keeper may take to answer; it does nothing else meanwhile.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long the keeper of a complete machine may take that answers nothing: its disk may be slow, and what it keeps is
/// somebody's.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a half-made machine's keeper may take from its answer to its end.
const EXIT_LIMIT: Duration = Duration::from_millis(500);
/// How long the keeper of a complete machine may take to write how that ended.
const RECORD_LIMIT: Duration = Duration::from_secs(10);
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
/// for what is sound, up to 20 s for what has to be killed, a minute for a complete machine whose keeper doesn't answer.
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
    match greeted(folder) {
        Ok(Reply::Here { confirmed: true, .. }) => Swept::Lives,
        Ok(_) => {
            end_machine(folder);
            Swept::Cleared
        }
        Err(_) => {
            // A keeper that is ending closes its socket before it writes how its machine ended.
            for process in recorded(folder).into_iter().flatten() {
                process.wait_gone(RECORD_LIMIT);
            }
            end_processes(folder, None);
            if folder.end_record().exists() {
                release(folder);
                return Swept::Ended;
            }
            if clear(folder, None) { Swept::Cleared } else { Swept::Nothing }
        }
    }
}

/// Greets the keeper. That of a complete machine, which is one with a record, is greeted again while it lives and only
/// takes long.
fn greeted(folder: &VmFolder) -> io::Result<Reply> {
    let begun = Instant::now();
    loop {
        let answer = ask_blocking(&folder.keeper_socket(), &Request::Hello, ANSWER_LIMIT);
        // A read or write past its limit is the one or the other (socket(7), SO_RCVTIMEO).
        let late = |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let waits = begun.elapsed() < PATIENCE && recorded(folder).is_some_and(|[keeper, _]| keeper.lives());
        match answer {
            Err(error) if late(&error) && waits => {}
            answer => return answer,
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
