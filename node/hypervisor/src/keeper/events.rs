//! What a monitor tells of its machine while it runs: Cloud Hypervisor's events (`--event-monitor`; event_monitor/src/lib.rs),
//! each a JSON object and an empty line. All of them go into a limited log; whether the guest reset is kept. A power-off is
//! told like the monitor's own end by a signal, so nothing follows from that.
//!
//! They come through a pipe from a process that a guest may have taken over: a claim among others, believed only where the
//! keeper itself knows no reason.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::console::Output;

/// The name that `{fd:events}` in the monitor's arguments stands for.
pub(super) const PLACEHOLDER: &str = "{fd:events}";
/// Longest event that is read, bytes; they are some 150. What is longer is left out up to the next empty line.
const EVENT_BYTES_MAX: usize = 4 << 10;
/// What stands between two events.
const BETWEEN: &[u8] = b"\n\n";

/// How a machine ends whose guest reset it, as a sentence without its subject.
pub(crate) const RESET: &str = "the guest reset, and a machine boots once";

/// The part of an event that matters.
#[derive(Deserialize)]
struct Event<'a> {
    source: &'a str,
    event: &'a str,
}

/// A monitor's events, if it tells any.
pub(super) struct Events {
    output: Output,
    pending: Vec<u8>,
    /// Whether what comes is the rest of an event that is too long.
    skipping: bool,
    reset: bool,
}

impl Events {
    /// Reads from `pipe`; everything goes into `log`.
    pub(super) fn new(pipe: Option<OwnedFd>, log: PathBuf, now: Instant) -> io::Result<Self> {
        Ok(Self { output: Output::new(pipe, log, now)?, pending: Vec::new(), skipping: false, reset: false })
    }

    /// What to wait for now, unless it rests or has ended.
    pub(super) fn due(&self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.output.due(now)
    }

    /// How long it rests still, if it does.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        self.output.rest(now)
    }

    /// Whether the guest reset, as far as was told.
    pub(super) fn reset(&self) -> bool {
        self.reset
    }

    /// Takes what is there, and rests after that.
    pub(super) fn drain(&mut self, buffer: &mut [u8], now: Instant) {
        let read = self.output.drain(buffer, now);
        self.take(&buffer[..read]);
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.pending.push(byte);
            if self.pending.ends_with(BETWEEN) {
                if !std::mem::take(&mut self.skipping) {
                    self.reset |= is_reset(&self.pending);
                }
                self.pending.clear();
            } else if self.pending.len() > EVENT_BYTES_MAX {
                self.skipping = true;
                // The last byte may be half of what stands between.
                self.pending.drain(..EVENT_BYTES_MAX);
            }
        }
    }
}

/// Whether this is what the monitor tells before it begins to boot anew.
fn is_reset(event: &[u8]) -> bool {
    serde_json::from_slice::<Event<'_>>(event).is_ok_and(|event| (event.source, event.event) == ("vm", "rebooting"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    fn event(source: &str, event: &str) -> String {
        let pretty = serde_json::json!({
            "timestamp": { "secs": 1, "nanos": 5 }, "source": source, "event": event, "properties": null,
        });
        format!("{}\n\n", serde_json::to_string_pretty(&pretty).expect("text"))
    }

    /// Whether a reset is heard in these pieces.
    fn heard(pieces: &[&[u8]]) -> bool {
        let mut events = Events::new(None, PathBuf::new(), Instant::now()).expect("events");
        for piece in pieces {
            events.take(piece);
            assert!(events.pending.len() <= EVENT_BYTES_MAX + 1, "{}", events.pending.len());
        }
        events.reset()
    }

    #[test]
    fn a_reset_is_told_from_all_else() {
        assert!(heard(&[event("vm", "rebooting").as_bytes()]));
        assert!(heard(&[event("vm", "booted").as_bytes(), event("vm", "rebooting").as_bytes()]));
        for (source, what) in [("vm", "booted"), ("vm", "shutdown"), ("virtio-device", "rebooting"), ("vm", "rebooted")]
        {
            assert!(!heard(&[event(source, what).as_bytes()]), "{source} {what}");
        }
    }

    #[test]
    fn events_come_in_any_pieces() {
        let all = format!("{}{}", event("vmm", "starting"), event("vm", "rebooting"));
        let pieces: Vec<&[u8]> = all.as_bytes().chunks(1).collect();
        assert!(heard(&pieces));
    }

    #[test]
    fn what_is_no_event_is_passed_over_and_takes_no_room() {
        let flood = vec![b'x'; 100 << 10];
        for odd in [b"\n\n".as_slice(), b"{}\n\n", b"{\"source\": 1}\n\n", b"\xff\xfe\n\n", &flood] {
            let next = event("vm", "rebooting");
            assert!(!heard(&[odd]) && heard(&[odd, b"\n\n", next.as_bytes()]));
        }
        let within = format!("{}{}", " ".repeat(EVENT_BYTES_MAX), event("vm", "rebooting"));
        assert!(!heard(&[within.as_bytes()]), "the rest of what is too long is no event");
    }

    #[test]
    fn what_was_told_is_in_the_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.log");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let mut events = Events::new(Some(reader.into()), path.clone(), Instant::now()).expect("events");
        let text = event("vm", "rebooting");
        writer.write_all(text.as_bytes()).expect("written");
        assert!(events.due(Instant::now()).is_some());
        events.drain(&mut [0; 4096], Instant::now());
        assert!(events.reset());
        assert_eq!(fs::read_to_string(path).expect("read"), text);
    }
}
