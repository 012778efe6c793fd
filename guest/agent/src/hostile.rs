//! The agent's door, fed with any bytes: for the fuzzer (`guest/fuzz`), and for the tests that replay what it has found.

use std::collections::BTreeMap;
use std::path::Path;

use guest_proto::surface::{ExecRequest, Identity};

use crate::exec::{Command, laid_out};
use crate::{http, identity};

/// Reads bytes as everything that the agent reads from its host before it acts, and as a transpiler's output. It must
/// neither panic nor hang, nor let pass what can't be meant.
pub fn hostile(data: &[u8]) {
    let (&which, rest) = data.split_first().unwrap_or((&0, &[]));
    match which % 4 {
        0 => http::hostile(rest),
        1 => {
            if let Ok(identity) = serde_json::from_slice::<Identity>(rest) {
                identity::hostile(identity);
            }
        }
        2 => {
            let request = serde_json::from_slice::<ExecRequest>(rest);
            let command = request.map(|request| Command::parse(request, &BTreeMap::new(), Path::new("/")));
            if let Ok(Ok(command)) = command {
                let texts = command.arguments.iter().chain(command.environment.keys());
                assert!(texts.into_iter().all(|text| !text.contains('\0')), "a zero byte passed");
            }
        }
        _ => {
            let output = String::from_utf8_lossy(rest);
            assert!(laid_out(&output).len() < output.len() + (2 << 20), "a map stretched a program");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn corpus() -> Vec<Vec<u8>> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/door");
        let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    #[test]
    fn the_corpus_passes_the_door_or_is_refused() {
        let corpus = corpus();
        assert!(corpus.len() > 3);
        corpus.iter().for_each(|input| hostile(input));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn what_is_near_the_corpus_does_too(which: prop::sample::Index, edits: Vec<(prop::sample::Index, u8)>, cut: prop::sample::Index) {
            let corpus = corpus();
            let mut input = which.get(&corpus).clone();
            for (at, byte) in edits.into_iter().take(8).filter(|_| !input.is_empty()).collect::<Vec<_>>() {
                let at = at.index(input.len());
                input[at] = byte;
            }
            input.truncate(cut.index(2 * input.len() + 1));
            hostile(&input);
        }
    }
}
