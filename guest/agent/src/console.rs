//! The agent's log: short lines on the console, and the last ones kept for `/v1/logs`.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Lines that are kept: enough for a boot and many requests' faults, 50 KiB at most.
const LINES_MAX: usize = 256;
/// Bytes of one line: a fault's sentence fits.
const LINE_BYTES_MAX: usize = 200;

static RING: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Writes one line to the console (standard error of the first process) and keeps it.
pub(crate) fn say(text: &str) {
    let end = text.char_indices().map(|(at, _)| at).find(|&at| at >= LINE_BYTES_MAX).unwrap_or(text.len());
    let line = format!("[{:>9.3}] atoll-agent: {}", seconds_since_boot(), text[..end].replace('\n', " "));
    // A console that can't be written to leaves the ring.
    let _ = writeln!(std::io::stderr(), "{line}");
    let mut ring = RING.lock().unwrap_or_else(PoisonError::into_inner);
    if ring.len() == LINES_MAX {
        ring.pop_front();
    }
    ring.push_back(line);
}

/// The lines kept, oldest first.
pub(crate) fn lines() -> Vec<String> {
    RING.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// The guest's own clock since boot, as the kernel's log lines show it.
fn seconds_since_boot() -> f64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0.0, |now| now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_lines_and_cuts_long_ones() {
        for index in 0..LINES_MAX + 10 {
            say(&format!("line {index} {}", "é".repeat(300)));
        }
        let kept = lines();
        assert_eq!(kept.len(), LINES_MAX);
        assert!(kept[LINES_MAX - 1].contains(&format!("line {}", LINES_MAX + 9)));
        assert!(kept.iter().all(|line| line.len() < LINE_BYTES_MAX + 40));
    }
}
