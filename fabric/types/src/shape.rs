//! A sandbox's shape: what a clone can't change once its template has booted.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Virtual processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vcpus(pub u32);
/// Memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemoryMib(pub u32);
/// Disk in GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskGib(pub u32);

/// vCPU, memory and disk, within the limits below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "RawShape", into = "RawShape")]
pub struct Shape {
    vcpus: Vcpus,
    memory: MemoryMib,
    disk: DiskGib,
}

/// A shape outside the limits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} {asked} is not possible: {least} to {most} {unit}")]
pub struct ShapeError {
    /// Which part of the shape.
    pub what: &'static str,
    /// What was asked for.
    pub asked: i64,
    /// The smallest that is possible.
    pub least: i64,
    /// The largest that is possible.
    pub most: i64,
    /// The unit of the three numbers.
    pub unit: &'static str,
}

impl Shape {
    /// Limits of each part. 16 vCPU and 64 GiB are what one host of the smallest supported fleet can hold; 256 MiB is
    /// the least in which the stock kernel and python3 were seen to work.
    pub const VCPUS: (i64, i64) = (1, 16);
    /// MiB of memory, least and most.
    pub const MEMORY_MIB: (i64, i64) = (256, 65_536);
    /// GiB of disk, least and most.
    pub const DISK_GIB: (i64, i64) = (1, 512);
    /// 1 vCPU, 1 GiB of memory, 3 GiB of disk.
    pub const DEFAULT: Self = Self { vcpus: Vcpus(1), memory: MemoryMib(1024), disk: DiskGib(3) };

    /// A shape from numbers of any size and sign, as they came in.
    pub fn new(vcpus: i64, memory_mib: i64, disk_gib: i64) -> Result<Self, ShapeError> {
        Ok(Self {
            vcpus: Vcpus(within("cpu", vcpus, Self::VCPUS, "vCPU")?),
            memory: MemoryMib(within("memory", memory_mib, Self::MEMORY_MIB, "MiB")?),
            disk: DiskGib(within("disk", disk_gib, Self::DISK_GIB, "GiB")?),
        })
    }

    /// Virtual processors.
    pub fn vcpus(self) -> Vcpus {
        self.vcpus
    }

    /// Memory.
    pub fn memory(self) -> MemoryMib {
        self.memory
    }

    /// Disk.
    pub fn disk(self) -> DiskGib {
        self.disk
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.vcpus.0, self.memory.0, self.disk.0)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawShape {
    cpu: i64,
    memory_mib: i64,
    disk_gib: i64,
}

impl TryFrom<RawShape> for Shape {
    type Error = ShapeError;
    fn try_from(raw: RawShape) -> Result<Self, ShapeError> {
        Self::new(raw.cpu, raw.memory_mib, raw.disk_gib)
    }
}

impl From<Shape> for RawShape {
    fn from(shape: Shape) -> Self {
        Self { cpu: shape.vcpus.0.into(), memory_mib: shape.memory.0.into(), disk_gib: shape.disk.0.into() }
    }
}

fn within(what: &'static str, asked: i64, (least, most): (i64, i64), unit: &'static str) -> Result<u32, ShapeError> {
    let refused = ShapeError { what, asked, least, most, unit };
    if asked < least || asked > most {
        return Err(refused);
    }
    u32::try_from(asked).map_err(|_| refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_shapes_are_refused_with_the_limits() {
        for (cpu, memory, disk) in
            [(0, 1024, 3), (-1, 1024, 3), (17, 1024, 3), (1, 0, 3), (1, 1024, -3), (1, i64::MAX, 3)]
        {
            assert!(Shape::new(cpu, memory, disk).is_err());
        }
        let error = Shape::new(-2, 1024, 3).expect_err("negative");
        assert_eq!(error.to_string(), "cpu -2 is not possible: 1 to 16 vCPU");
    }

    #[test]
    fn the_default_shape_is_within_the_limits() {
        assert_eq!(Shape::new(1, 1024, 3), Ok(Shape::DEFAULT));
        assert_eq!(Shape::DEFAULT.to_string(), "1x1024x3");
    }
}
