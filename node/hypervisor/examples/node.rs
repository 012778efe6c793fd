//! A node of one machine: creates what the specification on standard input says, under QEMU with TCG, says so and waits
//! to be killed. This crate's tests kill it at any moment.
//!
//! ```text
//! node KEEPER < spec.json
//! ```

use std::error::Error;
use std::io::{Write, stdin, stdout};

use fabric_types::Accelerator;
use node_hypervisor::{Hypervisor, KeeperProgram, QemuConfig, QemuDriver, VmSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let program = std::env::args_os().nth(1).ok_or("usage: node KEEPER < spec.json")?.into();
    let spec: VmSpec = serde_json::from_reader(stdin())?;
    let driver = QemuDriver::new(QemuConfig::new(KeeperProgram { program, args: vec![] }, Accelerator::Tcg)).await?;
    writeln!(stdout(), "creating")?;
    let vm = driver.create(spec).await?;
    vm.resume().await?;
    writeln!(stdout(), "running")?;
    std::future::pending().await
}
