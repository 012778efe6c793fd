//! Who a guest is from now on: one message on every create, start and restore, and a rehearsal's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fabric_types::{Generation, SandboxSpec};
use guest_proto::surface::{ENTROPY_BYTES_MIN, GuestLimits, Identity};
use node_network::Port;
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::{RuntimeError, clock, network};

/// Longest host name, in characters (Linux's own limit is 64).
const HOSTNAME_CHARS_MAX: usize = 63;
/// Bytes of a machine's id (machine-id(5)).
const MACHINE_ID_BYTES: usize = 16;

/// The identity of a sandbox: fresh entropy each time, the same machine id as long as it lives.
pub(crate) fn real(
    spec: &SandboxSpec,
    generation: Generation,
    machine_id: &str,
    port: Option<&Port>,
    limits: &GuestLimits,
) -> Result<Identity, RuntimeError> {
    let (mac, network) = port.map(network::guest).unzip();
    Ok(Identity {
        sandbox_id: spec.id.to_string(),
        generation: generation.0,
        hostname: hostname(&spec.name, spec.id.as_str()),
        machine_id: machine_id.to_owned(),
        mac,
        network,
        limits: limits.clone(),
        entropy: entropy()?,
        wall_clock_ns: clock::now_ns(),
        env: spec.env.clone(),
        rehearsal: false,
    })
}

/// A host name as long as most sandboxes': those go by their ids, and what keeps its length is written over in place.
const REHEARSAL: &str = "rehearsal-of-guests";

/// The identity of a guest that only exercises itself: its card is set up by it already, for the port that it has.
pub(crate) fn rehearsal(port: Option<&Port>) -> Result<Identity, RuntimeError> {
    let (mac, network) = port.map(network::guest).unzip();
    Ok(Identity {
        sandbox_id: "rehearsal".to_owned(),
        generation: 0,
        hostname: REHEARSAL.to_owned(),
        machine_id: new_machine_id()?,
        mac,
        network,
        limits: GuestLimits::default(),
        entropy: entropy()?,
        wall_clock_ns: clock::now_ns(),
        env: std::collections::BTreeMap::new(),
        rehearsal: true,
    })
}

/// A new machine id from the operating system's entropy.
pub(crate) fn new_machine_id() -> Result<String, RuntimeError> {
    chance::<MACHINE_ID_BYTES>().map(hex::encode)
}

/// Bytes from the operating system: never from a generator that a cloned or restored process could repeat.
pub(crate) fn chance<const BYTES: usize>() -> Result<[u8; BYTES], RuntimeError> {
    let mut bytes = [0; BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(|source| RuntimeError::File {
        action: "draw entropy from",
        path: "/dev/urandom".into(),
        source: std::io::Error::other(source),
    })?;
    Ok(bytes)
}

fn entropy() -> Result<String, RuntimeError> {
    chance::<ENTROPY_BYTES_MIN>().map(|bytes| STANDARD.encode(bytes))
}

/// The name as a host name: letters, digits and inner dashes (RFC 1123, section 2.1); the id where nothing is left.
fn hostname(name: &str, id: &str) -> String {
    let letters = name.chars().map(|char| if char.is_ascii_alphanumeric() { char } else { '-' });
    let clipped: String = letters.take(HOSTNAME_CHARS_MAX).collect();
    match clipped.trim_matches('-') {
        "" => id.to_owned(),
        label => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::spec;

    #[test]
    fn two_identities_never_share_entropy_or_machine_id() {
        let make = || {
            let machine_id = new_machine_id().expect("drawn");
            real(&spec(1), Generation(1), &machine_id, None, &GuestLimits::default()).expect("made")
        };
        let (one, two) = (make(), make());
        assert_ne!(one.entropy, two.entropy);
        assert_ne!(one.machine_id, two.machine_id);
        assert_eq!(one.machine_id.len(), 32);
        let bytes = STANDARD.decode(&one.entropy).expect("base64");
        assert!(bytes.len() >= ENTROPY_BYTES_MIN);
    }

    #[test]
    fn a_host_name_is_the_name_where_it_can_be() {
        assert_eq!(hostname("My_box-1.2", "id"), "My-box-1-2");
        assert_eq!(hostname("...", "id"), "id");
        assert_eq!(hostname(&"x".repeat(70), "id").len(), HOSTNAME_CHARS_MAX);
    }

    proptest! {
        #[test]
        fn every_host_name_is_a_valid_label(name in ".{0,80}") {
            let label = hostname(&name, "fraaaaaaaaaaaaaaaaa");
            prop_assert!((1..=HOSTNAME_CHARS_MAX).contains(&label.len()));
            prop_assert!(!label.starts_with('-') && !label.ends_with('-'));
            prop_assert!(label.chars().all(|char| char.is_ascii_alphanumeric() || char == '-'));
        }
    }
}
