//! Replays the fuzzer's corpus, and mutates it for a second a target: any bytes from a host or a guest end in a value or an
//! error.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "the targets are the fuzzer's too")]

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How long each target is mutated.
const MUTATING: Duration = Duration::from_secs(1);

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 3, "the corpus of {target} is gone");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn mutated(corpus: &[Vec<u8>], chance: &mut SmallRng) -> Vec<u8> {
    let mut input = corpus[chance.random_range(0..corpus.len())].clone();
    for _ in 0..chance.random_range(1..6) {
        let at = chance.random_range(0..=input.len());
        match chance.random_range(0..5) {
            0 => input.insert(at, chance.random()),
            1 if at < input.len() => input[at] ^= 1 << chance.random_range(0..8),
            2 if at < input.len() => drop(input.remove(at)),
            3 => input.truncate(at),
            _ => {
                let other = &corpus[chance.random_range(0..corpus.len())];
                let from = chance.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input
}

fn stands(target: &str, run: fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|input| run(input));
    let mut chance = SmallRng::seed_from_u64(7);
    let begun = Instant::now();
    while begun.elapsed() < MUTATING {
        run(&mutated(&corpus, &mut chance));
    }
}

#[test]
fn a_host_stands_what_a_guest_says_to_the_session_layer() {
    stands("session_from_guest", targets::session_from_guest);
}

#[test]
fn a_guest_stands_what_a_host_says_to_the_session_layer() {
    stands("session_from_host", targets::session_from_host);
}

#[test]
fn answers_are_read_or_refused() {
    stands("answers", targets::answers);
}

#[test]
fn requests_are_read_or_refused() {
    stands("requests", targets::requests);
}
