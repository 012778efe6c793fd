//! `snapshot` and `restore`.

use gateway_sdk::{Client, v1};

use super::patient;
use crate::args::{RestoreArgs, SnapshotArgs};
use crate::exit::{EXIT_OK, Failure};
use crate::output::{Output, table};
use crate::progress::Waiting;

pub(super) async fn snapshot(args: SnapshotArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let client = patient(client, args.timeout);
    if args.list {
        let list = client.snapshots().await?;
        output.result(&list, || rows(&list))?;
        return Ok(EXIT_OK);
    }
    if let Some(snapshot) = args.delete {
        let deleted = client.delete_snapshot(&snapshot).await?;
        output.result(&deleted, || deleted.id.clone())?;
        return Ok(EXIT_OK);
    }
    let sandbox = args.sandbox.ok_or_else(|| Failure::Usage("which sandbox?".to_owned()))?;
    let waiting = Waiting::start(output.is_interactive(), format!("taking a snapshot of {sandbox}"));
    let snapshot = client.snapshot(&sandbox, &v1::CreateSnapshot { name: args.name }).await?;
    drop(waiting);
    output.result(&snapshot, || snapshot.id.clone())?;
    if output.is_interactive() {
        output.remark(&format!(
            "{} of memory and disk in {}, the sandbox stood still for {:.1} ms, {}",
            bytes(snapshot.size_bytes),
            bytes(snapshot.stored_bytes),
            snapshot.stop_ms.micros as f64 / 1000.0,
            if snapshot.durable { "durable" } else { "not durable yet" },
        ));
    }
    Ok(EXIT_OK)
}

pub(super) async fn restore(args: RestoreArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), format!("restoring {}", args.snapshot));
    let ask = v1::RestoreSnapshot { region: args.region, name: args.name };
    let restored = patient(client, args.timeout).restore(&args.snapshot, &ask).await?;
    drop(waiting);
    output.result(&restored, || restored.id.clone())?;
    Ok(EXIT_OK)
}

fn rows(list: &v1::SnapshotList) -> String {
    let row = |snapshot: &v1::Snapshot| {
        let complete = snapshot.replicas.iter().filter(|replica| replica.state == "complete");
        vec![
            snapshot.id.clone(),
            snapshot.name.clone(),
            snapshot.sandbox.clone(),
            snapshot.region.clone(),
            bytes(snapshot.stored_bytes),
            if snapshot.durable { "yes".to_owned() } else { "no".to_owned() },
            complete.map(|replica| replica.node.as_str()).collect::<Vec<_>>().join(","),
            snapshot.created_at.clone(),
        ]
    };
    let rows: Vec<_> = list.items.iter().map(row).collect();
    table(&["ID", "NAME", "SANDBOX", "REGION", "STORED", "DURABLE", "REPLICAS", "CREATED"], &rows)
}

/// A size in the largest binary unit that leaves at least one.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_binary_units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
