//! The keeper alone: what `atoll keeper` is, without the rest of the binary. This crate's tests start it.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    node_hypervisor::keeper_main(&args)
}
