//! `resize`, `network`, `intervals`: what a sandbox is set to.

use gateway_sdk::{Client, v1};

use super::patient;
use crate::args::{IntervalArgs, IntervalsArgs, NetworkArgs, ResizeArgs, RuleArgs};
use crate::exit::{EXIT_OK, Failure};
use crate::output::Output;
use crate::progress::Waiting;

pub(super) async fn resize(args: ResizeArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let ask = v1::Resize {
        cpu: args.shape.cpu.map(i64::from),
        memory_mib: args.shape.memory_mib.map(i64::from),
        disk_gib: args.shape.disk_gib.map(i64::from),
    };
    let waiting = Waiting::start(output.is_interactive(), format!("resizing {}", args.sandbox));
    let sandbox = patient(client, args.timeout).resize(&args.sandbox, &ask).await?;
    drop(waiting);
    output.result(&sandbox, || sandbox.id.clone())?;
    Ok(EXIT_OK)
}

/// Sets the rules that are given; without any, shows those in force.
pub(super) async fn network(args: NetworkArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = if args.rules.is_empty() && !args.open {
        client.sandbox(&args.sandbox).await?
    } else {
        client.set_network(&args.sandbox, &asked_network(args.rules)).await?
    };
    output.result(&sandbox, || described_network(&sandbox))?;
    Ok(EXIT_OK)
}

/// Sets the intervals that are given; without any, shows those in force.
pub(super) async fn intervals(args: IntervalsArgs, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    let sandbox = if args.intervals.is_empty() {
        client.sandbox(&args.sandbox).await?
    } else {
        client.set_intervals(&args.sandbox, &asked_intervals(&args.intervals)).await?
    };
    output.result(&sandbox, || described_intervals(&sandbox.intervals))?;
    Ok(EXIT_OK)
}

/// Rules as the wire has them.
pub(super) fn asked_network(rules: RuleArgs) -> v1::Network {
    v1::Network {
        block_all: rules.no_network,
        allow: rules.allow,
        deny: rules.deny,
        allow_domains: rules.allow_domain,
        deny_domains: rules.deny_domain,
    }
}

/// Intervals as the wire has them.
pub(super) fn asked_intervals(args: &IntervalArgs) -> v1::Intervals {
    v1::Intervals {
        auto_stop_minutes: args.auto_stop.map(i64::from),
        auto_pause_minutes: args.auto_pause.map(i64::from),
        auto_archive_minutes: args.auto_archive.map(i64::from),
        auto_delete_minutes: args.auto_delete,
        ttl_minutes: args.ttl.map(i64::from),
    }
}

/// What a guest reaches, in a line.
pub(super) fn described_network(sandbox: &v1::Sandbox) -> String {
    let v1::Network { block_all, allow, deny, allow_domains, deny_domains } = &sandbox.network_policy;
    let rules = match (block_all, allow.is_empty() && allow_domains.is_empty()) {
        (true, _) => "nothing".to_owned(),
        (false, true) => "everything public".to_owned(),
        (false, false) => format!("only {}", [allow.clone(), allow_domains.clone()].concat().join(", ")),
    };
    let denied = [deny.clone(), deny_domains.clone()].concat();
    let denied = if denied.is_empty() { String::new() } else { format!(", never {}", denied.join(", ")) };
    match sandbox.network.as_str() {
        "none" => "none: its node gives guests no network (why: atoll status)".to_owned(),
        kind => format!("{rules}{denied} (by {kind})"),
    }
}

/// What is done by itself, in a line.
pub(super) fn described_intervals(intervals: &v1::Intervals) -> String {
    let parts = [
        ("stopped after", intervals.auto_stop_minutes, "idle"),
        ("paused after", intervals.auto_pause_minutes, "idle"),
        ("archived after", intervals.auto_archive_minutes, "stopped"),
        ("deleted after", intervals.auto_delete_minutes, "stopped"),
        ("deleted after", intervals.ttl_minutes, "altogether"),
    ];
    let told: Vec<_> =
        parts.into_iter().filter_map(|(what, minutes, of)| Some(format!("{what} {} min {of}", minutes?))).collect();
    if told.is_empty() { "nothing is done by itself".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_told_in_a_line() {
        assert_eq!(described_intervals(&v1::Intervals::default()), "nothing is done by itself");
        let some = v1::Intervals { auto_pause_minutes: Some(5), ttl_minutes: Some(60), ..v1::Intervals::default() };
        assert_eq!(described_intervals(&some), "paused after 5 min idle, deleted after 60 min altogether");
    }
}
