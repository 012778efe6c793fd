//! What QEMU counts of its disks and what it lets through to them: `query-blockstats` and `block_set_io_throttle`
//! (qapi/block-core.json).

use serde::Deserialize;
use serde_json::{Value, json};

use crate::DeviceCounters;

/// Both disks as the commands on what the guest sees name them: the first two devices without a name of their own, in the
/// order of the command line.
pub(super) const DEVICES: [&str; 2] =
    ["/machine/peripheral-anon/device[0]/virtio-backend", "/machine/peripheral-anon/device[1]/virtio-backend"];
/// What both disks' limits are the same for.
const GROUP: &str = "io";
/// QEMU's highest rate, bytes a second (THROTTLE_VALUE_MAX, include/qemu/throttle.h).
const BYTES_PER_SECOND_MAX: u64 = 1_000_000_000_000_000;

/// The arguments of `block_set_io_throttle` that let so many bytes a second be read, and as many be written, through both
/// disks together; none for no limit.
pub(super) fn throttle(device: &str, bytes_per_second: Option<u64>) -> Value {
    let rate = bytes_per_second.unwrap_or(0).min(BYTES_PER_SECOND_MAX);
    json!({
        "id": device, "group": GROUP, "bps": 0, "bps_rd": rate, "bps_wr": rate, "iops": 0, "iops_rd": 0, "iops_wr": 0,
    })
}

/// One disk that the guest sees.
#[derive(Debug, Deserialize)]
pub(super) struct Disk {
    stats: Stats,
}

#[derive(Debug, Deserialize)]
struct Stats {
    rd_bytes: u64,
    wr_bytes: u64,
    rd_operations: u64,
    wr_operations: u64,
}

/// The disks' counts together.
pub(super) fn sum(disks: &[Disk]) -> DeviceCounters {
    disks.iter().fold(DeviceCounters::default(), |sum, Disk { stats }| DeviceCounters {
        disk_read_bytes: sum.disk_read_bytes.saturating_add(stats.rd_bytes),
        disk_written_bytes: sum.disk_written_bytes.saturating_add(stats.wr_bytes),
        disk_reads: sum.disk_reads.saturating_add(stats.rd_operations),
        disk_writes: sum.disk_writes.saturating_add(stats.wr_operations),
        network: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_disks_share_a_limit_and_none_is_no_limit() {
        for device in DEVICES {
            let limited = throttle(device, Some(5_000_000));
            assert_eq!((&limited["bps_rd"], &limited["bps_wr"]), (&json!(5_000_000), &json!(5_000_000)));
            assert_eq!((&limited["group"], &limited["bps"]), (&json!("io"), &json!(0)));
            assert_eq!(throttle(device, None)["bps_wr"], 0);
            assert_eq!(throttle(device, Some(u64::MAX))["bps_rd"], BYTES_PER_SECOND_MAX);
        }
    }

    #[test]
    fn the_counts_of_all_disks_are_one_sum() {
        let text = r#"[{"device": "", "node-name": "root", "qdev": "/machine/peripheral-anon/device[0]/virtio-backend",
            "stats": {"rd_bytes": 4096, "wr_bytes": 0, "rd_operations": 1, "wr_operations": 0, "flush_operations": 2,
            "rd_total_time_ns": 5, "timed_stats": [], "account_failed": true}},
            {"stats": {"rd_bytes": 1, "wr_bytes": 512, "rd_operations": 1, "wr_operations": 3}}]"#;
        let disks: Vec<Disk> = serde_json::from_str(text).expect("an answer");
        let sum = sum(&disks);
        assert_eq!((sum.disk_read_bytes, sum.disk_written_bytes), (4097, 512));
        assert_eq!((sum.disk_reads, sum.disk_writes, sum.network), (2, 3, None));
    }
}
