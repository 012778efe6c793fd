//! What the agent tells of itself and its guest: health and logs.

use std::fs;

use guest_proto::surface::{Health, PROTOCOL};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::console;
use crate::sys;

/// Lines of the log if the request doesn't say.
pub(crate) const LOG_LINES: usize = 200;
/// Most lines of the log: more than the kernel keeps.
pub(crate) const LOG_LINES_MAX: usize = 10_000;

/// The agent's state.
pub(crate) fn health(ready: bool, generation: u64) -> Health {
    Health {
        protocol: PROTOCOL,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        ready,
        generation,
        kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        uptime_ms: clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
            u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
        }),
        address_randomization: fs::read_to_string("/proc/sys/kernel/randomize_va_space")
            .is_ok_and(|text| text.trim() != "0"),
        processes: count_processes(),
    }
}

fn count_processes() -> u32 {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let processes = entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .count();
    u32::try_from(processes).unwrap_or(u32::MAX)
}

/// The last lines of the kernel's log and the agent's, by their time.
pub(crate) fn logs(tail: usize) -> String {
    // A kernel that keeps its log to itself leaves the agent's lines.
    let kernel = sys::kernel_log().unwrap_or_default();
    merged(&kernel, console::lines(), tail)
}

fn merged(kernel: &str, agent: Vec<String>, tail: usize) -> String {
    let mut lines: Vec<(f64, String)> = Vec::new();
    let mut last = 0.0;
    for line in kernel.lines() {
        let text = line.split_once('>').map_or(line, |(_, text)| text);
        last = seconds(text).unwrap_or(last);
        lines.push((last, text.to_owned()));
    }
    lines.extend(agent.into_iter().map(|line| (seconds(&line).unwrap_or(0.0), line)));
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    let skip = lines.len().saturating_sub(tail);
    lines.into_iter().skip(skip).map(|(_, line)| line + "\n").collect()
}

/// The time in `[   12.345678] text`.
fn seconds(line: &str) -> Option<f64> {
    line.strip_prefix('[')?.split_once(']')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_logs_are_told_in_order_of_time() {
        let kernel = "<6>[    0.100000] first\n<4>[    2.000000] third\nits second line\n<6>[    4.000000] last\n";
        let agent = vec!["[    1.000] atoll-agent: second".to_owned(), "[    3.000] atoll-agent: fifth".to_owned()];
        let text = merged(kernel, agent, 5);
        let ends: Vec<&str> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(ends, ["second", "third", "line", "fifth", "last"]);
    }

    #[test]
    fn health_knows_its_kernel() {
        let health = health(true, 3);
        assert!(!health.kernel.is_empty() && health.uptime_ms > 0 && health.processes > 0);
    }
}
