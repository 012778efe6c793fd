//! The agent's own reading of requests under the fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_agent::hostile(data));
