//! Who the guest is: parsed, applied as a whole, and asked for by every request.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guest_proto::surface::{AgentErrorCode, ENTROPY_BYTES_MIN, Identity, IdentityAck};

use crate::machine::Machine;
use crate::network;
use crate::refusal::{Answer, bad_request, refuse};
use crate::sys::ENTROPY_BYTES_MAX;

/// Longest host name (HOST_NAME_MAX, hostname(7)).
const HOSTNAME_BYTES_MAX: usize = 63;
/// Digits of a machine id (machine-id(5)).
const MACHINE_ID_DIGITS: usize = 32;
/// Variables of a sandbox: more than any client sets, little enough for each command's start.
const VARIABLES_MAX: usize = 1000;

/// The identity in force.
#[derive(Debug, Default)]
pub(crate) struct IdentityCell(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Empty before the first identity.
    sandbox_id: String,
    ready: bool,
    generation: u64,
    /// Whether it is a rehearsal's.
    rehearsal: bool,
    environment: BTreeMap<String, String>,
}

/// An identity whose parts were checked.
#[derive(Debug)]
struct Parsed {
    identity: Identity,
    entropy: Vec<u8>,
    mac: Option<[u8; 6]>,
}

impl IdentityCell {
    /// Whether there is one, and the highest generation seen.
    pub(crate) fn status(&self) -> (bool, u64) {
        let state = self.lock();
        (state.ready, state.generation)
    }

    /// Lets a request of a generation pass, and gives the sandbox's environment.
    pub(crate) fn admit(&self, generation: u64) -> Answer<BTreeMap<String, String>> {
        let mut state = self.lock();
        if !state.ready {
            return Err(refuse(AgentErrorCode::NoIdentity, "this guest has no identity yet"));
        }
        if generation < state.generation {
            return Err(stale(generation, state.generation));
        }
        state.generation = generation;
        Ok(state.environment.clone())
    }

    /// Applies an identity. Of the same sandbox it must not be older than what was seen; another sandbox's is a new
    /// life, with generations of its own.
    ///
    /// `renew` is called when what was parked under the identity before must not live on under this one: that one was a
    /// sandbox's too, and this is another life of the same memory.
    pub(crate) fn apply(&self, machine: &dyn Machine, renew: &dyn Fn(), identity: Identity) -> Answer<IdentityAck> {
        let start = Instant::now();
        let parsed = Parsed::check(identity)?;
        let mut state = self.lock();
        let identity = &parsed.identity;
        if identity.sandbox_id == state.sandbox_id && identity.generation < state.generation {
            return Err(stale(identity.generation, state.generation));
        }
        let same_life = identity.sandbox_id == state.sandbox_id && identity.generation == state.generation;
        let lived = !state.sandbox_id.is_empty() && !state.rehearsal;
        // Until all of it holds the guest is nobody: no command may run with half an identity.
        state.ready = false;
        parsed.apply(machine)?;
        if lived && !same_life {
            renew();
        }
        let Parsed { identity, .. } = parsed;
        let Identity { sandbox_id, generation, rehearsal, env, .. } = identity;
        *state = State { sandbox_id, ready: true, generation, rehearsal, environment: env };
        let took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(IdentityAck { generation, took_us })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stale(generation: u64, seen: u64) -> guest_proto::surface::AgentError {
    refuse(AgentErrorCode::StaleGeneration, format!("generation {generation} is over: this guest has seen {seen}"))
}

impl Parsed {
    fn check(identity: Identity) -> Answer<Self> {
        let entropy = STANDARD
            .decode(&identity.entropy)
            .map_err(|error| bad_request(format!("the entropy is no base64: {error}")))?;
        if !(ENTROPY_BYTES_MIN..=ENTROPY_BYTES_MAX).contains(&entropy.len()) {
            let bytes = entropy.len();
            return Err(bad_request(format!(
                "{bytes} bytes of entropy are not between {ENTROPY_BYTES_MIN} and {ENTROPY_BYTES_MAX}"
            )));
        }
        let name = &identity.hostname;
        let fits = name.len() <= HOSTNAME_BYTES_MAX && !name.starts_with(['-', '.']) && !name.is_empty();
        if !fits || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
            return Err(bad_request(format!(
                "'{}' is no host name of 1 to {HOSTNAME_BYTES_MAX} letters, digits, dashes and dots",
                name.escape_debug()
            )));
        }
        let id = &identity.machine_id;
        if id.len() != MACHINE_ID_DIGITS || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad_request(format!("a machine id has {MACHINE_ID_DIGITS} lower-case hexadecimal digits")));
        }
        if identity.env.len() > VARIABLES_MAX {
            return Err(bad_request(format!("{} variables are more than {VARIABLES_MAX}", identity.env.len())));
        }
        let mac = match &identity.mac {
            None => None,
            Some(text) => {
                Some(parse_mac(text).ok_or_else(|| bad_request("a MAC is six bytes as in 02:00:00:00:00:01"))?)
            }
        };
        if let Some(fault) = identity.network.as_ref().and_then(network::fault) {
            return Err(bad_request(fault));
        }
        Ok(Self { identity, entropy, mac })
    }

    /// Entropy first: a clone with its template's random numbers is the worst that could be left behind.
    fn apply(&self, machine: &dyn Machine) -> Answer<()> {
        let failed = |what: &'static str| {
            move |error: std::io::Error| refuse(AgentErrorCode::Internal, format!("can't {what}: {error}"))
        };
        let identity = &self.identity;
        machine.reseed(&self.entropy).map_err(failed("reseed the random pool"))?;
        if !identity.rehearsal {
            // A rehearsal leaves the clock where it was before any identity: see `Machine::set_clock`.
            machine.set_clock(identity.wall_clock_ns).map_err(failed("step the clock"))?;
        }
        machine.set_names(&identity.hostname, &identity.machine_id).map_err(failed("name the machine"))?;
        machine.set_limits(&identity.limits).map_err(failed("limit the commands"))?;
        machine.set_network(self.mac, identity.network.as_ref()).map_err(failed("set up the network card"))
    }
}

/// Any identity: one that passes names a host and nothing else, and a network that works.
pub(crate) fn hostile(identity: Identity) {
    let Ok(Parsed { identity, entropy, .. }) = Parsed::check(identity) else { return };
    let name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    assert!(name(&identity.hostname) && name(&identity.machine_id), "a name passed that is none");
    assert!((ENTROPY_BYTES_MIN..=ENTROPY_BYTES_MAX).contains(&entropy.len()), "a wrong amount of entropy passed");
}

/// Six hexadecimal bytes between colons, of a single host (the lowest bit of the first is clear).
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::io;

    use guest_proto::surface::{GuestLimits, GuestNetwork};

    use super::*;

    /// Writes down what is asked of it; fails where it is told to.
    #[derive(Debug, Default)]
    pub(crate) struct Recorder {
        pub(crate) calls: Mutex<Vec<String>>,
        pub(crate) fails: Option<&'static str>,
    }

    impl Recorder {
        fn call(&self, name: &str, detail: String) -> io::Result<()> {
            self.calls.lock().unwrap().push(format!("{name} {detail}"));
            if self.fails == Some(name) { Err(io::Error::other("told to")) } else { Ok(()) }
        }
    }

    impl Machine for Recorder {
        fn reseed(&self, entropy: &[u8]) -> io::Result<()> {
            self.call("reseed", entropy.len().to_string())
        }
        fn set_clock(&self, wall_clock_ns: u64) -> io::Result<()> {
            self.call("clock", wall_clock_ns.to_string())
        }
        fn set_names(&self, hostname: &str, machine_id: &str) -> io::Result<()> {
            self.call("names", format!("{hostname} {machine_id}"))
        }
        fn set_network(&self, mac: Option<[u8; 6]>, network: Option<&GuestNetwork>) -> io::Result<()> {
            self.call("network", format!("{mac:?} {network:?}"))
        }
        fn set_limits(&self, limits: &GuestLimits) -> io::Result<()> {
            self.call("limits", format!("{limits:?}"))
        }
        fn grow_disk(&self) -> io::Result<u64> {
            self.call("grow", String::new()).map(|()| 5 << 30)
        }
        fn power_off(&self) {
            let _ = self.call("power_off", String::new());
        }
    }

    pub(crate) fn identity(sandbox_id: &str, generation: u64) -> Identity {
        Identity {
            sandbox_id: sandbox_id.to_owned(),
            generation,
            hostname: "box-1".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            mac: None,
            network: None,
            limits: GuestLimits::default(),
            entropy: STANDARD.encode([7; 64]),
            wall_clock_ns: 1_800_000_000_000_000_000,
            env: BTreeMap::from([("FROM".to_owned(), "identity".to_owned())]),
            rehearsal: false,
        }
    }

    #[test]
    fn nothing_is_admitted_before_an_identity_and_nothing_stale_after() {
        let (cell, machine) = (IdentityCell::default(), Recorder::default());
        assert_eq!(cell.admit(1).unwrap_err().code, AgentErrorCode::NoIdentity);
        assert_eq!(cell.apply(&machine, &|| {}, identity("a", 3)).unwrap().generation, 3);
        assert_eq!(cell.admit(2).unwrap_err().code, AgentErrorCode::StaleGeneration);
        assert_eq!(cell.admit(3).unwrap()["FROM"], "identity");
        cell.admit(5).unwrap();
        assert_eq!(cell.admit(4).unwrap_err().code, AgentErrorCode::StaleGeneration);
        assert_eq!(cell.apply(&machine, &|| {}, identity("a", 4)).unwrap_err().code, AgentErrorCode::StaleGeneration);
        assert_eq!(cell.status(), (true, 5), "a refused identity changes nothing");
        cell.apply(&machine, &|| {}, identity("a", 5)).unwrap();
        cell.apply(&machine, &|| {}, identity("b", 1)).unwrap();
        assert_eq!(cell.status(), (true, 1), "another sandbox begins anew");
    }

    #[test]
    fn a_rehearsal_leaves_the_clock_and_only_another_life_renews_what_is_parked() {
        let (cell, machine, renewed) = (IdentityCell::default(), Recorder::default(), Cell::new(0));
        let take = |identity| {
            cell.apply(&machine, &|| renewed.set(renewed.get() + 1), identity).unwrap();
            renewed.get()
        };
        assert_eq!(take(Identity { rehearsal: true, ..identity("rehearsal", 0) }), 0);
        assert!(!machine.calls.lock().unwrap().iter().any(|call| call.starts_with("clock")));
        assert_eq!(take(identity("a", 1)), 0, "a template's parked interpreters are the clone's");
        assert_eq!(take(identity("a", 1)), 0, "a resume is the same life");
        assert_eq!(take(identity("a", 2)), 1, "a restore is another");
        assert_eq!(take(identity("b", 2)), 2, "and so is a fork");
    }

    #[test]
    fn entropy_comes_first_and_its_failure_leaves_nobody() {
        let (cell, machine) = (IdentityCell::default(), Recorder::default());
        cell.apply(&machine, &|| {}, Identity { mac: Some("02:00:00:00:00:0a".to_owned()), ..identity("a", 1) })
            .unwrap();
        let calls = machine.calls.lock().unwrap().clone();
        let names: Vec<&str> = calls.iter().map(|call| call.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["reseed", "clock", "names", "limits", "network"]);

        let broken = Recorder { fails: Some("reseed"), ..Recorder::default() };
        assert_eq!(cell.apply(&broken, &|| {}, identity("b", 1)).unwrap_err().code, AgentErrorCode::Internal);
        assert_eq!(broken.calls.lock().unwrap().len(), 1);
        assert_eq!(cell.admit(9).unwrap_err().code, AgentErrorCode::NoIdentity);
    }

    proptest::proptest! {
        /// A name that passes can't put a line into /etc/hosts, nor a MAC of many hosts onto the card.
        #[test]
        fn hostile_names_never_pass(hostname in "\\PC{0,70}|[a-z\n -]{0,10}", mac in "[0-9a-g:+]{0,20}|([0-9a-f]{2}:){5}[0-9a-f]{2}") {
            let hostile = Identity { hostname: hostname.clone(), mac: Some(mac.clone()), ..identity("a", 1) };
            if Parsed::check(hostile).is_ok() {
                assert!(hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.'));
                assert!(mac.len() == 17 && !mac.contains('+'));
            }
        }
    }

    #[test]
    fn what_is_no_identity_is_refused_before_anything_changes() {
        let (cell, machine) = (IdentityCell::default(), Recorder::default());
        let good = || identity("a", 1);
        let bad = [
            Identity { entropy: STANDARD.encode([7; 63]), ..good() },
            Identity { entropy: STANDARD.encode([7; ENTROPY_BYTES_MAX + 1]), ..good() },
            Identity { entropy: "!".to_owned(), ..good() },
            Identity { hostname: String::new(), ..good() },
            Identity { hostname: "x".repeat(64), ..good() },
            Identity { hostname: "a b".to_owned(), ..good() },
            Identity { hostname: "a\n127.0.0.1 evil".to_owned(), ..good() },
            Identity { machine_id: "0123".to_owned(), ..good() },
            Identity { machine_id: "0123456789ABCDEF0123456789ABCDEF".to_owned(), ..good() },
            Identity { mac: Some("02:00".to_owned()), ..good() },
            Identity { mac: Some("03:00:00:00:00:01".to_owned()), ..good() },
            Identity { mac: Some("02:00:00:00:00:01:02".to_owned()), ..good() },
        ];
        for identity in bad {
            assert_eq!(
                cell.apply(&machine, &|| {}, identity.clone()).unwrap_err().code,
                AgentErrorCode::BadRequest,
                "{identity:?}"
            );
        }
        assert!(machine.calls.lock().unwrap().is_empty());
    }
}
