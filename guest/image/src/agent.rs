//! Finds the agent's binary, or has cargo build it.
//!
//! In order: `ATOLL_AGENT`, `atoll-agent` beside the running program (if it is statically linked: a test build beside
//! it is not), the source tree that the program runs in.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bootstrap::run;
use crate::error::ImageError;

/// Names the agent's binary.
const AGENT_VARIABLE: &str = "ATOLL_AGENT";
/// The binary's file name.
const AGENT_NAME: &str = "atoll-agent";
/// The only target that the agent is built for.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The agent's binary, built by cargo if it must be.
///
/// # Errors
/// When there is none and it can't be built, or when `ATOLL_AGENT` names one that is dynamically linked.
pub fn find_or_build_agent() -> Result<PathBuf, ImageError> {
    if let Some(path) = env::var_os(AGENT_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from) {
        return if is_static(&path)? { Ok(path) } else { Err(ImageError::AgentNotStatic { path }) };
    }
    let program = env::current_exe().map_err(ImageError::file("find the path of", Path::new("this program")))?;
    let beside = program.with_file_name(AGENT_NAME);
    if beside.is_file() && is_static(&beside)? {
        return Ok(beside);
    }
    let here = env::current_dir().ok();
    match program.parent().and_then(source_tree).or_else(|| here.as_deref().and_then(source_tree)) {
        Some(tree) => build(&tree),
        None => Err(ImageError::NoAgent { beside }),
    }
}

/// The source tree above a folder.
fn source_tree(from: &Path) -> Option<PathBuf> {
    from.ancestors()
        .find(|folder| folder.join("guest/agent/Cargo.toml").is_file() && folder.join("Cargo.lock").is_file())
        .map(Path::to_owned)
}

/// Builds the agent in a target folder of its own, so that it never waits for a cargo that waits for us.
fn build(tree: &Path) -> Result<PathBuf, ImageError> {
    let target = tree.join("target/agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(tree)
        .args(["build", "--release", "--package", "guest-agent", "--bin", AGENT_NAME, "--target", AGENT_TARGET])
        .arg("--target-dir")
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        // One small program that an emulated processor has to load and translate: size is speed here.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    run(&mut cargo, &mut |_| {})?;
    let path = target.join(AGENT_TARGET).join("release").join(AGENT_NAME);
    if is_static(&path)? { Ok(path) } else { Err(ImageError::AgentNotStatic { path }) }
}

/// Whether a file is an x86-64 executable that asks for no dynamic linker.
fn is_static(path: &Path) -> Result<bool, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::file("read", path))?;
    Ok(elf_is_static(&bytes).unwrap_or(false))
}

/// ELF64 header and program headers (elf(5)): machine EM_X86_64, no PT_INTERP. `None` if it is cut short.
fn elf_is_static(bytes: &[u8]) -> Option<bool> {
    const EM_X86_64: u16 = 62;
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if bytes.get(..5)? != b"\x7fELF\x02" || u16_at(18)? != EM_X86_64 {
        return Some(false);
    }
    let table = usize::try_from(u64_at(32)?).ok()?;
    let (entry_bytes, entries) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    for index in 0..entries {
        let at = table.checked_add(index.checked_mul(entry_bytes)?)?;
        bytes.get(at..at.checked_add(4)?)?;
        if u32_at(at)? == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamically_linked_program_is_no_agent() {
        let shell = fs::read("/bin/sh").unwrap();
        assert_eq!(elf_is_static(&shell), Some(false));
        assert_eq!(elf_is_static(b"#!/bin/sh\nexit 0\n"), Some(false));
        assert_eq!(elf_is_static(&shell[..100]), None);
        assert_eq!(elf_is_static(b""), None);
    }

    #[test]
    fn a_header_without_an_interpreter_is_static() {
        let mut elf = vec![0u8; 64 + 56];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1; // PT_LOAD
        assert_eq!(elf_is_static(&elf), Some(true));
        elf[64] = 3; // PT_INTERP
        assert_eq!(elf_is_static(&elf), Some(false));
    }

    #[test]
    fn hostile_headers_do_not_panic() {
        let mut elf = vec![0xffu8; 64];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        elf[19] = 0;
        assert_eq!(elf_is_static(&elf), None);
    }

    #[test]
    fn the_source_tree_is_found_from_below() {
        let tree = source_tree(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(tree.join("guest/image/src/agent.rs").is_file());
        assert_eq!(source_tree(Path::new("/proc")), None);
    }
}
