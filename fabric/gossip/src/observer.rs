//! From chitchat's members and their values to the view: which report of a node is the newest that is to be believed,
//! whether the node lives, how far away it is. No I/O; the time comes in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use fabric_quic::{NodeCertificate, Trust};
use fabric_types::{NodeId, UnixMillis};
use tracing::warn;

use crate::values::{self, Claim, Distrust, Values, Verified};
use crate::{ClusterView, NodeView};

/// A node that nobody has heard of for so long is no longer shown.
const FORGET_AFTER_MS: u64 = 60 * 60 * 1000;
/// Complaints that are remembered so that each is made once. Past it the memory is cleared and they are made again.
const COMPLAINTS_MAX: usize = 1000;
/// A round trip is shown anew when it differs by this much, in milliseconds, or by a quarter.
const RTT_STEP_MS: u32 = 2;

/// One member as chitchat has it. Nothing of it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) address: SocketAddr,
    pub(crate) live: bool,
    /// Its values, if they have changed since the last step and all are there.
    pub(crate) changed: Option<Values>,
}

/// See the module.
pub(crate) struct Observer {
    me: NodeId,
    trust: Trust,
    known: BTreeMap<NodeId, Known>,
    complaints: HashSet<(NodeId, u64, String)>,
}

/// The newest believed report of a node.
struct Known {
    cert: String,
    proof: NodeCertificate,
    incarnation: u64,
    verified: Verified,
    live: bool,
    since: UnixMillis,
    rtt_ms: Option<u32>,
}

impl Observer {
    pub(crate) fn new(me: NodeId, trust: Trust) -> Self {
        Self { me, trust, known: BTreeMap::new(), complaints: HashSet::new() }
    }

    /// Takes in what chitchat knows now, and measured round trips by node.
    pub(crate) fn step(
        &mut self,
        members: &[Member],
        rtt: impl Fn(&NodeId, SocketAddr) -> Option<Duration>,
        now: UnixMillis,
    ) -> ClusterView {
        for member in members {
            if let Some(values) = &member.changed {
                self.take(member, values, now);
            }
        }
        let beating: HashMap<(&NodeId, u64), bool> =
            members.iter().map(|member| ((&member.node, member.incarnation), member.live)).collect();
        for (node, known) in &mut self.known {
            let live = beating.get(&(node, known.incarnation)).copied().unwrap_or(false);
            if known.live != live {
                known.live = live;
                known.since = now;
            }
            let measured = if *node == self.me {
                Some(0)
            } else {
                live.then(|| rtt(node, known.verified.report.fabric_address)).flatten().map(whole_ms)
            };
            known.rtt_ms = steady(known.rtt_ms, measured);
        }
        self.known.retain(|_, known| known.live || now.since(known.since) < FORGET_AFTER_MS);
        self.view()
    }

    fn view(&self) -> ClusterView {
        let show = |known: &Known| NodeView {
            report: known.verified.report.clone(),
            live: known.live,
            since: known.since,
            incarnation: known.incarnation,
            rtt_ms: known.rtt_ms,
        };
        ClusterView { nodes: self.known.iter().map(|(node, known)| (node.clone(), show(known))).collect() }
    }

    fn take(&mut self, member: &Member, values: &Values, now: UnixMillis) {
        let known = self.known.get(&member.node);
        if known.is_some_and(|known| known.incarnation > member.incarnation) {
            return;
        }
        let claim = Claim { node: &member.node, incarnation: member.incarnation, address: member.address };
        let proof = match known.filter(|known| known.cert == values.cert) {
            // Checked when it came; an expiry since then ends the node's connections first.
            Some(known) => Ok(known.proof.clone()),
            None => values::verify_cert(&self.trust, &claim, &values.cert, now),
        };
        let (proof, verified) =
            match proof.and_then(|proof| values::verify(&proof, &claim, values).map(|verified| (proof, verified))) {
                Ok(believed) => believed,
                Err(distrust) => return self.complain(member, &distrust),
            };
        let same_start = known.filter(|known| known.incarnation == member.incarnation);
        if same_start.is_some_and(|known| verified.at.0 < known.verified.at.0 || verified.at.1 < known.verified.at.1) {
            // Someone relays what the node itself has replaced.
            return;
        }
        let (live, since) = same_start.map_or((false, now), |known| (known.live, known.since));
        let rtt_ms = known.and_then(|known| known.rtt_ms);
        let incarnation = member.incarnation;
        let known = Known { cert: values.cert.clone(), proof, incarnation, verified, live, since, rtt_ms };
        self.known.insert(member.node.clone(), known);
    }

    fn complain(&mut self, member: &Member, distrust: &Distrust) {
        if self.complaints.len() >= COMPLAINTS_MAX {
            self.complaints.clear();
        }
        let complaint = (member.node.clone(), member.incarnation, distrust.to_string());
        if self.complaints.insert(complaint) {
            let (node, incarnation) = (&member.node, member.incarnation);
            warn!(node_id = %node, incarnation, %distrust, "what a node is said to report is not believed");
        }
    }
}

fn whole_ms(rtt: Duration) -> u32 {
    u32::try_from(rtt.as_micros().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// The round trip to show: a measurement that barely differs is not worth a new view.
fn steady(shown: Option<u32>, measured: Option<u32>) -> Option<u32> {
    match (shown, measured) {
        (Some(shown), Some(measured)) => {
            let differs = shown.abs_diff(measured) >= RTT_STEP_MS.max(shown / 4);
            Some(if differs { measured } else { shown })
        }
        // Between two connections nothing is measured; the last word stands.
        (shown, None) => shown,
        (None, measured) => measured,
    }
}

#[cfg(test)]
mod tests {
    use fabric_quic::{Authority, NodeIdentity};

    use super::*;
    use crate::NodeReport;
    use crate::values::tests::{NOW, address, issue, node, report, values};

    struct Mesh {
        authority: Authority,
        observer: Observer,
    }

    impl Mesh {
        fn new() -> Self {
            let authority = Authority::generate().expect("an authority");
            let me = issue(&authority, "fra-1");
            let observer = Observer::new(node("fra-1"), me.trust().clone());
            Self { authority, observer }
        }

        fn identity(&self, id: &str) -> NodeIdentity {
            issue(&self.authority, id)
        }

        fn step(&mut self, members: &[Member], now: u64) -> ClusterView {
            self.observer.step(members, |_, _| None, UnixMillis(NOW.0 + now))
        }
    }

    fn member(id: &str, incarnation: u64, live: bool, changed: Option<Values>) -> Member {
        Member { node: node(id), incarnation, address: address(8080), live, changed }
    }

    fn said(identity: &NodeIdentity, incarnation: u64, at: u64, sandboxes: u32) -> (NodeReport, Option<Values>) {
        let mut report = report(identity.node().as_str(), address(8080));
        report.sandboxes = sandboxes;
        let values = values(identity, incarnation, at, &report);
        (report, Some(values))
    }

    #[test]
    fn a_node_is_shown_from_its_first_whole_report_on_and_its_death_is_dated() {
        let mut mesh = Mesh::new();
        let iad = mesh.identity("iad-1");
        assert!(mesh.step(&[member("iad-1", 1, true, None)], 0).nodes.is_empty());
        let (report, values) = said(&iad, 1, 1, 5);
        let view = mesh.step(&[member("iad-1", 1, true, values)], 10);
        let shown = view.node(&node("iad-1")).expect("shown");
        assert_eq!((&shown.report, shown.live, shown.since), (&report, true, UnixMillis(NOW.0 + 10)));
        let view = mesh.step(&[member("iad-1", 1, false, None)], 20);
        let shown = view.node(&node("iad-1")).expect("still shown");
        assert_eq!((shown.live, shown.since), (false, UnixMillis(NOW.0 + 20)));
        assert_eq!(view.live(&node("iad-1")), None);
        // Chitchat forgets it after minutes, the view after an hour.
        assert_eq!(mesh.step(&[], 30).nodes.len(), 1);
        assert!(mesh.step(&[], 20 + FORGET_AFTER_MS).nodes.is_empty());
    }

    #[test]
    fn a_restart_replaces_the_former_self_whatever_order_the_two_come_in() {
        let mut mesh = Mesh::new();
        let iad = mesh.identity("iad-1");
        let (_, before) = said(&iad, 1, 100, 5);
        let (after, newer) = said(&iad, 2, 50, 0);
        mesh.step(&[member("iad-1", 1, true, before.clone())], 0);
        let view = mesh.step(&[member("iad-1", 2, true, newer), member("iad-1", 1, false, None)], 10);
        let shown = view.node(&node("iad-1")).expect("shown");
        assert_eq!((&shown.report, shown.live, shown.incarnation), (&after, true, 2));
        let view = mesh.step(&[member("iad-1", 1, true, before), member("iad-1", 2, true, None)], 20);
        assert_eq!(view.node(&node("iad-1")).expect("shown").incarnation, 2);
    }

    #[test]
    fn a_made_up_later_start_displaces_nothing() {
        let mut mesh = Mesh::new();
        let (iad, sin) = (mesh.identity("iad-1"), mesh.identity("sin-1"));
        let (report, values) = said(&iad, 1, 1, 5);
        mesh.step(&[member("iad-1", 1, true, values.clone())], 0);
        let (_, by_sin) = said(&sin, 9, 1, 0);
        for forged in [by_sin, values] {
            let view = mesh.step(&[member("iad-1", 1, true, None), member("iad-1", 9, true, forged)], 10);
            let shown = view.node(&node("iad-1")).expect("shown");
            assert_eq!((&shown.report, shown.live, shown.incarnation), (&report, true, 1));
        }
    }

    #[test]
    fn what_the_node_has_replaced_is_not_taken_again() {
        let mut mesh = Mesh::new();
        let iad = mesh.identity("iad-1");
        let ((_, old), (new, newer)) = (said(&iad, 1, 1, 5), said(&iad, 1, 2, 6));
        mesh.step(&[member("iad-1", 1, true, old.clone())], 0);
        mesh.step(&[member("iad-1", 1, true, newer)], 0);
        let view = mesh.step(&[member("iad-1", 1, true, old)], 0);
        assert_eq!(view.live(&node("iad-1")), Some(&new));
    }

    #[test]
    fn each_complaint_is_made_once() {
        let mut mesh = Mesh::new();
        let (iad, sin) = (mesh.identity("iad-1"), mesh.identity("sin-1"));
        let (_, by_sin) = said(&sin, 1, 1, 0);
        for _ in 0..3 {
            mesh.step(&[member("iad-1", 1, true, by_sin.clone())], 0);
        }
        assert_eq!(mesh.observer.complaints.len(), 1);
        let (_, values) = said(&iad, 1, 1, 0);
        assert_eq!(mesh.step(&[member("iad-1", 1, true, values)], 0).nodes.len(), 1);
    }

    #[test]
    fn round_trips_are_shown_in_steps_and_this_node_is_at_no_distance() {
        let mut mesh = Mesh::new();
        let (fra, iad) = (mesh.identity("fra-1"), mesh.identity("iad-1"));
        let members =
            [member("fra-1", 1, true, said(&fra, 1, 1, 0).1), member("iad-1", 1, true, said(&iad, 1, 1, 0).1)];
        for (micros, shown) in [(89_100, 90), (91_000, 90), (70_000, 90), (60_000, 60), (200, 1)] {
            let view = mesh.observer.step(&members, |_, _| Some(Duration::from_micros(micros)), NOW);
            assert_eq!(view.node(&node("iad-1")).expect("shown").rtt_ms, Some(shown), "{micros}");
            assert_eq!(view.node(&node("fra-1")).expect("shown").rtt_ms, Some(0));
            assert_eq!(view.region_rtt_ms(&"iad".parse().expect("a code")), Some(shown));
        }
        assert_eq!(mesh.step(&members, 0).node(&node("iad-1")).expect("shown").rtt_ms, Some(1));
    }
}
