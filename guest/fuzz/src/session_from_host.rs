//! `targets::session_from_host` under the fuzzer.
#![no_main]
#![allow(dead_code, reason = "each program runs one target of the shared file")]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::session_from_host(data));
