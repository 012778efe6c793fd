//! The atoll binary: node, gateway, development mesh and command line in one.
//!
//! Only wiring lives here: configuration in, build, run, drain. See ARCHITECTURE.md for what each crate is for.

mod args;
mod config;
mod dev;
mod doctor;
mod engine;
mod image;
mod key_text;
mod node;
mod service;
mod shelf;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The keeper is small and long-lived: it is dispatched before anything else is set up, and knows no runtime.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "keeper") {
        return node_hypervisor::keeper_main(&words.collect::<Vec<_>>());
    }
    args::Args::parse().run()
}
