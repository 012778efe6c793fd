//! What a node can hold and what is reserved on it.

use serde::{Deserialize, Serialize};

use crate::Shape;

/// Amounts of the three resources: a limit, a reservation or their difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, GiB.
    pub disk_gib: u64,
}

impl Capacity {
    /// What one sandbox of this shape reserves.
    pub fn of(shape: Shape) -> Self {
        Self { vcpus: shape.vcpus().0.into(), memory_mib: shape.memory().0.into(), disk_gib: shape.disk().0.into() }
    }

    /// The sum, held at the largest number.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// The difference, held at nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }

    /// Whether each part is at most that of `limit`.
    pub fn fits(self, limit: Self) -> bool {
        self.vcpus <= limit.vcpus && self.memory_mib <= limit.memory_mib && self.disk_gib <= limit.disk_gib
    }
}

/// How much more than it has a node promises, as whole factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overcommit {
    /// Factor on virtual processors.
    pub vcpus: u32,
    /// Factor on memory.
    pub memory: u32,
    /// Factor on disk.
    pub disk: u32,
}

impl Default for Overcommit {
    /// 16, 4 and 4: idle clones share their template's pages and use no processor, and their disks are sparse (4 MiB of
    /// 3 GiB when fresh).
    fn default() -> Self {
        Self { vcpus: 16, memory: 4, disk: 4 }
    }
}

/// A node's limits: what its host gives it, times the overcommit factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLimits {
    /// What the configuration says the node has.
    pub physical: Capacity,
    /// The factors.
    pub overcommit: Overcommit,
    /// Sandboxes at most, whatever their shapes; none for as many as have room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandboxes: Option<u32>,
}

impl NodeLimits {
    /// What may be reserved on the node.
    pub fn reservable(self) -> Capacity {
        Capacity {
            vcpus: self.physical.vcpus.saturating_mul(self.overcommit.vcpus.into()),
            memory_mib: self.physical.memory_mib.saturating_mul(self.overcommit.memory.into()),
            disk_gib: self.physical.disk_gib.saturating_mul(self.overcommit.disk.into()),
        }
    }
}

/// What one organization may have in one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quota {
    /// Sandboxes, archived ones among them.
    pub sandboxes: u32,
    /// What its sandboxes may reserve together; an archived one reserves nothing.
    pub capacity: Capacity,
}

impl Default for Quota {
    /// 1,000 sandboxes, each four times the default shape: a bound against runaway loops, not a budget. Ledgers begin
    /// with it, so it never changes: another one is set by a command.
    fn default() -> Self {
        Self { sandboxes: 1_000, capacity: Capacity { vcpus: 4_000, memory_mib: 4_096_000, disk_gib: 12_000 } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_resource_has_its_own_factor() {
        let limits = NodeLimits {
            physical: Capacity { vcpus: 2, memory_mib: 1000, disk_gib: 10 },
            overcommit: Overcommit::default(),
            sandboxes: None,
        };
        assert_eq!(limits.reservable(), Capacity { vcpus: 32, memory_mib: 4000, disk_gib: 40 });
    }

    #[test]
    fn one_part_too_many_does_not_fit() {
        let limit = Capacity { vcpus: 4, memory_mib: 4096, disk_gib: 9 };
        let three = Capacity::of(Shape::DEFAULT).plus(Capacity::of(Shape::DEFAULT)).plus(Capacity::of(Shape::DEFAULT));
        assert!(three.fits(limit));
        assert!(!three.plus(Capacity::of(Shape::DEFAULT)).fits(limit));
    }
}
