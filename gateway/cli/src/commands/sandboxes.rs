//! `create`, `ls`, `info`, `rm`, `start`, `stop`, `pause`, `resume`, `archive`, `fork`, `logs`.

use gateway_sdk::{Client, ClientError, ListFilter, v1};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{map, patient, settings, shown};
use crate::args::{
    CreateArgs, ForkArgs, ListArgs, LogsArgs, NewSandboxArgs, RemoveArgs, SandboxArgs, StartArgs, StopArgs, TurnArgs,
};
use crate::exit::{EXIT_FAILED, EXIT_OK, Failure};
use crate::output::{Output, fields, table};
use crate::progress::Waiting;

pub(super) async fn create(args: CreateArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let mut ask = new_sandbox(args.new);
    let intervals = settings::asked_intervals(&args.intervals);
    ask.auto_stop_minutes = intervals.auto_stop_minutes;
    ask.auto_pause_minutes = intervals.auto_pause_minutes;
    ask.auto_archive_minutes = intervals.auto_archive_minutes;
    ask.auto_delete_minutes = intervals.auto_delete_minutes;
    ask.ttl_minutes = intervals.ttl_minutes;
    if !args.rules.is_empty() {
        ask.network = Some(settings::asked_network(args.rules));
    }
    let waiting = Waiting::start(output.is_interactive(), waiting_for(&ask));
    let sandbox = patient(client, args.timeout).create(&ask).await?;
    drop(waiting);
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

/// The body that asks for a sandbox.
pub(super) fn new_sandbox(args: NewSandboxArgs) -> v1::CreateSandbox {
    let shape = args.shape.unwrap_or_default();
    v1::CreateSandbox {
        name: args.name,
        region: args.region,
        labels: map(args.labels),
        env: map(args.env),
        cpu: shape.cpu.map(i64::from),
        memory_mib: shape.memory_mib.map(i64::from),
        disk_gib: shape.disk_gib.map(i64::from),
        snapshot: args.snapshot,
        ..v1::CreateSandbox::default()
    }
}

/// What is waited for while a sandbox is created.
pub(super) fn waiting_for(ask: &v1::CreateSandbox) -> String {
    let place = ask.region.as_deref().map(|region| format!(" in {region}")).unwrap_or_default();
    if ask.cpu.is_some() || ask.memory_mib.is_some() || ask.disk_gib.is_some() {
        format!("creating a sandbox{place}; a shape that is new there boots once first")
    } else {
        format!("creating a sandbox{place}")
    }
}

pub(super) async fn list(args: ListArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let filter = ListFilter { region: args.region, labels: map(args.labels), state: args.state };
    let list = client.sandboxes(&filter).await?;
    let quiet = args.quiet;
    let now = OffsetDateTime::now_utc();
    output.result(&list, || {
        if quiet { list.items.iter().map(|sandbox| format!("{}\n", sandbox.id)).collect() } else { rows(&list, now) }
    })?;
    if !list.unreachable_regions.is_empty() {
        let regions = list.unreachable_regions.join(", ");
        output.remark(&format!("atoll: no answer from {regions}: shown as last known"));
    }
    Ok(EXIT_OK)
}

fn rows(list: &v1::SandboxList, now: OffsetDateTime) -> String {
    let row = |sandbox: &v1::Sandbox| {
        let state = if sandbox.stale { format!("{}?", sandbox.state) } else { sandbox.state.clone() };
        vec![
            sandbox.id.clone(),
            sandbox.name.clone(),
            sandbox.node.clone(),
            state,
            shape(sandbox),
            age(&sandbox.created_at, now),
            shown(&sandbox.labels),
        ]
    };
    let rows: Vec<_> = list.items.iter().map(row).collect();
    table(&["ID", "NAME", "NODE", "STATE", "SHAPE", "AGE", "LABELS"], &rows)
}

fn shape(sandbox: &v1::Sandbox) -> String {
    format!("{}x{}x{}", sandbox.cpu, sandbox.memory_mib, sandbox.disk_gib)
}

/// How long ago that was.
fn age(created_at: &str, now: OffsetDateTime) -> String {
    let Ok(created) = OffsetDateTime::parse(created_at, &Rfc3339) else { return "?".to_owned() };
    let seconds = u64::try_from((now - created).whole_seconds()).unwrap_or(0);
    crate::output::age(std::time::Duration::from_secs(seconds))
}

pub(super) async fn info(args: SandboxArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = client.sandbox(&args.sandbox).await?;
    output.result(&sandbox, || described(&sandbox))?;
    Ok(EXIT_OK)
}

fn described(sandbox: &v1::Sandbox) -> String {
    let isolation = sandbox.isolation.as_ref().map(super::mesh::isolation).unwrap_or_default();
    let state = match (&sandbox.error_reason, sandbox.stale) {
        (Some(reason), _) => format!("{}: {reason}", sandbox.state),
        (None, true) => format!("{} (last known: its region gives no answer)", sandbox.state),
        (None, false) => sandbox.state.clone(),
    };
    fields(&[
        ("id", sandbox.id.clone()),
        ("name", sandbox.name.clone()),
        ("state", state),
        ("region", sandbox.region.clone()),
        ("node", sandbox.node.clone()),
        ("generation", sandbox.generation.to_string()),
        ("created", sandbox.created_at.clone()),
        ("shape", format!("{} vCPU, {} MiB memory, {} GiB disk", sandbox.cpu, sandbox.memory_mib, sandbox.disk_gib)),
        ("labels", shown(&sandbox.labels)),
        ("network", settings::described_network(sandbox)),
        ("by itself", settings::described_intervals(&sandbox.intervals)),
        ("parent", sandbox.parent.clone().unwrap_or_default()),
        ("isolation", isolation),
        ("endpoint", sandbox.endpoint.clone()),
        ("toolbox", sandbox.toolbox_proxy_url.clone()),
    ])
}

/// What `rm --json` prints, of sandboxes and of keys.
#[derive(Debug, Default, Serialize)]
pub(super) struct Removed {
    pub(super) removed: Vec<String>,
    pub(super) failed: Vec<NotRemoved>,
}

#[derive(Debug, Serialize)]
pub(super) struct NotRemoved {
    pub(super) id: String,
    pub(super) message: String,
}

impl Removed {
    /// Notes how one went. What must end the whole command comes back as an error.
    pub(super) fn note(&mut self, id: String, done: Result<(), ClientError>, output: &mut Output) {
        match done {
            Ok(()) => self.removed.push(id),
            Err(error) => {
                let message = Failure::Client(error).sentence();
                output.remark(&format!("atoll: {id}: {message}"));
                self.failed.push(NotRemoved { id, message });
            }
        }
    }

    /// Prints what was removed; a failure of any is the command's.
    pub(super) fn finish(self, output: &mut Output) -> Result<u8, Failure> {
        output.result(&self, || self.removed.iter().map(|id| format!("{id}\n")).collect())?;
        Ok(if self.failed.is_empty() { EXIT_OK } else { EXIT_FAILED })
    }
}

pub(super) async fn remove(args: RemoveArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandboxes = if args.all {
        let list = client.sandboxes(&ListFilter::default()).await?;
        list.items.into_iter().map(|sandbox| sandbox.id).collect()
    } else {
        args.sandboxes
    };
    let mut removed = Removed::default();
    for sandbox in sandboxes {
        let waiting = Waiting::start(output.is_interactive(), format!("deleting {sandbox}"));
        let done = client.delete(&sandbox).await;
        drop(waiting);
        match done {
            Err(error) if args.force && error.is_not_found() => {}
            done => removed.note(sandbox, done.map(drop), output),
        }
    }
    removed.finish(output)
}

pub(super) async fn start(args: StartArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), format!("starting {}", args.sandbox));
    let sandbox = patient(client, args.timeout).start(&args.sandbox).await?;
    drop(waiting);
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

pub(super) async fn stop(args: StopArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), format!("stopping {}", args.sandbox));
    let sandbox = patient(client, args.timeout).stop(&args.sandbox, args.force).await?;
    drop(waiting);
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

pub(super) async fn pause(args: TurnArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = patient(client, args.timeout).pause(&args.sandbox).await?;
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

pub(super) async fn resume(args: TurnArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = patient(client, args.timeout).resume(&args.sandbox).await?;
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

pub(super) async fn archive(args: TurnArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), format!("archiving {}", args.sandbox));
    let sandbox = patient(client, args.timeout).archive(&args.sandbox).await?;
    drop(waiting);
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

pub(super) async fn fork(args: ForkArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let waiting = Waiting::start(output.is_interactive(), format!("forking {}", args.sandbox));
    let ask = v1::Fork { count: args.count.map(i64::from), names: args.names };
    let forked = patient(client, args.timeout).fork(&args.sandbox, &ask).await?;
    drop(waiting);
    output.result(&forked, || forked.items.iter().map(|child| format!("{}\n", child.id)).collect())?;
    Ok(EXIT_OK)
}

/// What `logs --json` prints.
#[derive(Serialize)]
struct Logs<'a> {
    sandbox: &'a str,
    text: &'a str,
}

pub(super) async fn logs(args: LogsArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let text = client.logs(&args.sandbox, args.tail).await?;
    if output.is_json() {
        output.result(&Logs { sandbox: &args.sandbox, text: &text }, String::new)?;
    } else {
        output.bytes(text.as_bytes())?;
    }
    Ok(EXIT_OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_in_its_largest_unit() {
        let now = OffsetDateTime::parse("2026-01-02T00:00:00Z", &Rfc3339).expect("a time");
        for (created, shown) in [
            ("2026-01-01T23:59:59.5Z", "0s"),
            ("2026-01-01T23:58:00Z", "2m"),
            ("2026-01-01T12:00:00Z", "12h"),
            ("2025-12-01T00:00:00Z", "32d"),
            ("2026-01-03T00:00:00Z", "0s"),
            ("yesterday", "?"),
        ] {
            assert_eq!(age(created, now), shown, "{created}");
        }
    }
}
