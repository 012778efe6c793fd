//! `usage`: what sandboxes use of their hosts.

use futures::{StreamExt, TryStreamExt, stream};
use gateway_sdk::{Client, ListFilter, v1};
use serde::Serialize;

use crate::args::UsageArgs;
use crate::exit::{EXIT_OK, Failure};
use crate::output::{Output, bytes, table};

/// Sandboxes that are asked about at once.
const ASKED_AT_ONCE: usize = 16;

/// What `usage --json` prints.
#[derive(Debug, Serialize)]
struct Used {
    items: Vec<v1::Usage>,
}

pub(super) async fn usage(args: UsageArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let asked = |name: String| async move { client.usage(&name).await };
    let items = if args.sandboxes.is_empty() {
        let list = client.sandboxes(&ListFilter::default()).await?;
        let all = stream::iter(list.items).map(|sandbox| asked(sandbox.id)).buffered(ASKED_AT_ONCE);
        // One that was deleted meanwhile is no failure of the others.
        all.filter_map(|used| async move { (!used.as_ref().is_err_and(|error| error.is_not_found())).then_some(used) })
            .try_collect()
            .await?
    } else {
        stream::iter(args.sandboxes).map(asked).buffered(ASKED_AT_ONCE).try_collect().await?
    };
    let used = Used { items };
    output.result(&used, || rows(&used.items))?;
    Ok(EXIT_OK)
}

fn rows(items: &[v1::Usage]) -> String {
    let rows: Vec<_> = items.iter().map(row).collect();
    table(&["ID", "CPU", "PRIVATE", "RESIDENT", "DISK READ", "DISK WRITTEN", "RECEIVED", "SENT"], &rows)
}

/// A dash is what isn't known, or isn't there to be used.
fn row(used: &v1::Usage) -> Vec<String> {
    let mut row = vec![used.id.clone()];
    match &used.machine {
        Some(machine) => row.extend([
            format!("{}.{:03} s", machine.cpu_ms / 1000, machine.cpu_ms % 1000),
            bytes(machine.memory_private_bytes),
            bytes(machine.memory_resident_bytes),
            bytes(machine.disk_read_bytes),
            bytes(machine.disk_written_bytes),
            machine.network_received_bytes.map_or_else(dash, bytes),
            machine.network_sent_bytes.map_or_else(dash, bytes),
        ]),
        None => row.extend(std::iter::repeat_with(dash).take(7)),
    }
    row
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_machine_uses_nothing() {
        let stopped = v1::Usage { id: "fra1".to_owned(), machine: None };
        assert_eq!(row(&stopped), ["fra1", "-", "-", "-", "-", "-", "-", "-"]);
        let machine = v1::MachineUsage { cpu_ms: 1042, network_sent_bytes: Some(7), ..v1::MachineUsage::default() };
        let running = v1::Usage { id: "fra1".to_owned(), machine: Some(machine) };
        assert_eq!(row(&running), ["fra1", "1.042 s", "0 B", "0 B", "0 B", "0 B", "-", "7 B"]);
    }
}
