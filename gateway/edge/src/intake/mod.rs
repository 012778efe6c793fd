//! What a client wants a sandbox to be: raw numbers and texts in, the mesh's own types out, or a sentence.
//!
//! ```text
//! intervals   what is done to a sandbox by itself, in minutes
//! network     what a guest may reach, as ranges and domains
//! ```

mod intervals;
mod network;

use std::collections::BTreeMap;

use fabric_types::{Labels, Name, Shape};
use guest_proto::surface::EXEC_SECONDS_MAX;

use crate::refusal::{Answer, Refusal};

pub(crate) use intervals::{GivenIntervals, auto_archive, auto_delete, auto_pause, auto_stop, intervals, ttl};
pub(crate) use network::{Rules, network, separated};

/// Most labels of a sandbox. They travel in every list and stand in the log of consensus.
const LABELS_MAX: usize = 64;
/// Longest key of a label, in bytes.
const LABEL_KEY_BYTES_MAX: usize = 128;
/// Longest value of a label, in bytes.
const LABEL_VALUE_BYTES_MAX: usize = 1024;
/// Most variables of an environment.
const ENV_MAX: usize = 256;
/// Bytes of an environment: half of what Linux lets a process start with under the smallest stack.
const ENV_BYTES_MAX: usize = 64 << 10;
/// Longest name of a guest's user: what Linux allows.
const USER_CHARS_MAX: usize = 32;
/// MiB of a GiB.
const MIB_PER_GIB: i64 = 1024;

/// A name, if one was given.
pub(crate) fn name(given: Option<&str>) -> Answer<Option<Name>> {
    given.filter(|name| !name.is_empty()).map(|text| text.parse().map_err(bad)).transpose()
}

/// A name that must be there.
pub(crate) fn required_name(given: &str) -> Answer<Name> {
    given.parse().map_err(bad)
}

/// Labels within their limits.
pub(crate) fn labels(given: BTreeMap<String, String>) -> Answer<Labels> {
    if given.len() > LABELS_MAX {
        return Err(Refusal::bad(format!("{} labels are given; at most {LABELS_MAX} are taken", given.len())));
    }
    for (key, value) in &given {
        if key.is_empty() || key.len() > LABEL_KEY_BYTES_MAX {
            return Err(Refusal::bad(format!("a label's key must have 1 to {LABEL_KEY_BYTES_MAX} bytes")));
        }
        if value.len() > LABEL_VALUE_BYTES_MAX {
            let shown = clip(key);
            return Err(Refusal::bad(format!("label '{shown}' is longer than {LABEL_VALUE_BYTES_MAX} bytes")));
        }
    }
    Ok(given)
}

/// An environment that a process can have.
pub(crate) fn env(given: BTreeMap<String, String>) -> Answer<BTreeMap<String, String>> {
    if given.len() > ENV_MAX {
        return Err(Refusal::bad(format!("{} variables are given; at most {ENV_MAX} are taken", given.len())));
    }
    if let Some(odd) = given.keys().find(|key| key.is_empty() || key.contains('=')) {
        return Err(Refusal::bad(format!("'{}' can't be a variable's name: it is empty or holds '='", clip(odd))));
    }
    let bytes: usize = given.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if bytes > ENV_BYTES_MAX {
        return Err(Refusal::bad(format!("the environment holds {bytes} bytes; at most {ENV_BYTES_MAX} are taken")));
    }
    Ok(given)
}

/// The name of a guest's user.
pub(crate) fn user(given: Option<String>) -> Answer<Option<String>> {
    let Some(user) = given.filter(|user| !user.is_empty()) else { return Ok(None) };
    let plain = user.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    if plain && user.len() <= USER_CHARS_MAX {
        Ok(Some(user))
    } else {
        let shown = clip(&user);
        Err(Refusal::bad(format!("'{shown}' is not a user: 1 to {USER_CHARS_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'")))
    }
}

/// The shape that a sandbox is to have, from the parts that change.
pub(crate) fn reshaped(old: Shape, cpu: Option<i64>, memory_mib: Option<i64>, disk_gib: Option<i64>) -> Answer<Shape> {
    if cpu.is_none() && memory_mib.is_none() && disk_gib.is_none() {
        return Err(Refusal::bad("nothing is to change: give processors, memory or disk"));
    }
    Shape::new(
        cpu.unwrap_or(old.vcpus().0.into()),
        memory_mib.unwrap_or(old.memory().0.into()),
        disk_gib.unwrap_or(old.disk().0.into()),
    )
    .map_err(bad)
}

/// A shape from vCPU, MiB and GiB; the parts that aren't given are the default's. `None` where no part is given.
pub(crate) fn shape(cpu: Option<i64>, memory_mib: Option<i64>, disk_gib: Option<i64>) -> Answer<Option<Shape>> {
    if cpu.is_none() && memory_mib.is_none() && disk_gib.is_none() {
        return Ok(None);
    }
    let default = Shape::DEFAULT;
    Shape::new(
        cpu.unwrap_or(default.vcpus().0.into()),
        memory_mib.unwrap_or(default.memory().0.into()),
        disk_gib.unwrap_or(default.disk().0.into()),
    )
    .map(Some)
    .map_err(bad)
}

/// GiB of memory as MiB.
pub(crate) fn gib_as_mib(memory_gib: Option<i64>) -> Answer<Option<i64>> {
    let least = (Shape::MEMORY_MIB.0 + MIB_PER_GIB - 1) / MIB_PER_GIB;
    let most = Shape::MEMORY_MIB.1 / MIB_PER_GIB;
    match memory_gib {
        Some(gib) if gib < least || gib > most => {
            Err(Refusal::bad(format!("memory {gib} is not possible: {least} to {most} GiB")))
        }
        gib => Ok(gib.map(|gib| gib * MIB_PER_GIB)),
    }
}

/// A command's timeout in seconds; 0 and nothing are no timeout.
pub(crate) fn timeout(seconds: Option<i64>) -> Answer<Option<u32>> {
    match seconds {
        None | Some(0) => Ok(None),
        Some(given) => {
            let possible = u32::try_from(given).ok().filter(|seconds| *seconds <= EXEC_SECONDS_MAX);
            possible.map(Some).ok_or_else(|| {
                Refusal::bad(format!("a timeout of {given} s is not possible: 0 (none) to {EXEC_SECONDS_MAX}"))
            })
        }
    }
}

/// Permission bits as octal digits, as in `644` or `0755`.
pub(crate) fn mode(given: Option<&str>) -> Answer<Option<&str>> {
    match given {
        Some(text) if text.len() > 5 || !text.bytes().all(|digit| (b'0'..=b'7').contains(&digit)) => {
            Err(Refusal::bad(format!("the mode '{}' is not octal permission bits, as in 644", clip(text))))
        }
        given => Ok(given),
    }
}

/// The start of a text that came from outside, for an error message.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn bad(error: impl std::fmt::Display) -> Refusal {
    Refusal::bad(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_numbers_are_refused_with_what_is_possible() {
        for error in [
            shape(Some(-1), None, None).map(drop),
            shape(None, Some(i64::MAX), None).map(drop),
            gib_as_mib(Some(i64::MAX)).map(drop),
            gib_as_mib(Some(0)).map(drop),
            timeout(Some(-1)).map(drop),
            timeout(Some(86_401)).map(drop),
            mode(Some("9")).map(drop),
        ] {
            let message = error.expect_err("refused").0.message;
            assert!(message.contains("possible") || message.contains("octal"), "{message}");
        }
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        assert_eq!(shape(None, None, None).expect("none"), None);
        assert_eq!(shape(Some(1), None, None).expect("some"), Some(Shape::DEFAULT));
        assert_eq!(timeout(Some(0)).expect("none"), None);
    }

    #[test]
    fn environments_that_no_process_can_have_are_refused() {
        assert!(env(BTreeMap::from([("A=B".into(), "c".into())])).is_err());
        assert!(env(BTreeMap::from([(String::new(), "c".into())])).is_err());
        assert!(env(BTreeMap::from([("A".into(), "x".repeat(70_000))])).is_err());
    }
}
