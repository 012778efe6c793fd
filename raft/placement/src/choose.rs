//! Which node a new sandbox should go to, from gossip and ledger.
//!
//! This is only a proposal: `apply` checks it again. Gossip knows who lives, what is warm and what is under way;
//! the ledger knows what has been promised. A node must satisfy both. Among those that do, the best of a few drawn
//! by chance is taken, so that leaders and gateways that decide at the same moment don't all pick the same one.

use std::collections::BTreeSet;
use std::fmt;

use fabric_types::{Capacity, Fit, NodeId, NodeLimits, Shape};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::region::State;

/// How many nodes are compared. Two already avoid most collisions; a third costs nothing (Mitzenmacher, "The Power
/// of Two Choices in Randomized Load Balancing").
pub const BEST_OF: usize = 3;

/// A node as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its limits, as it says them.
    pub limits: NodeLimits,
    /// What it says is reserved on it: at times ahead of the ledger, at times behind.
    pub reserved: Capacity,
    /// Clones of what is needed that are warm and wait.
    pub warm: u32,
    /// Creates that this leader has sent there and that haven't been answered.
    pub in_progress: u32,
    /// Whether it answers.
    pub live: bool,
    /// Whether it is being emptied.
    pub draining: bool,
    /// What it can resume; none until it has probed.
    pub fit: Option<Fit>,
}

/// What a new sandbox needs of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// vCPU, memory, disk.
    pub shape: Shape,
    /// What a snapshot asks for; none for a template, which each node boots for itself.
    pub fit: Option<Fit>,
    /// Nodes that have just refused it.
    pub avoid: BTreeSet<NodeId>,
}

/// No node can take the sandbox: what was needed, and how many nodes got how far.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoCapacity {
    /// What the sandbox reserves.
    pub needed: Capacity,
    /// Nodes that gossip or ledger know.
    pub nodes: usize,
    /// Of them, those that are live, admitted and registered.
    pub ready: usize,
    /// Of them, those that fit the snapshot.
    pub fitting: usize,
    /// The most that is free on one of these.
    pub most_free: Option<Capacity>,
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Capacity { vcpus, memory_mib, disk_gib } = self.needed;
        write!(f, "no node has room for {vcpus} vCPU, {memory_mib} MiB of memory and {disk_gib} GiB of disk: ")?;
        write!(f, "of {} nodes {} are ready and {} fit", self.nodes, self.ready, self.fitting)?;
        match self.most_free {
            None => Ok(()),
            Some(free) => write!(
                f,
                "; the emptiest has {} vCPU, {} MiB and {} GiB free",
                free.vcpus, free.memory_mib, free.disk_gib
            ),
        }
    }
}

/// Chooses a node, or says why there is none. `chance` decides between equals.
pub fn choose(view: &[Candidate], state: &State, need: &Need, chance: u64) -> Result<NodeId, NoCapacity> {
    let needed = Capacity::of(need.shape);
    let mut refused = NoCapacity { needed, nodes: view.len(), ready: 0, fitting: 0, most_free: None };
    let mut able = Vec::new();
    for candidate in view {
        let Some(free) = free(candidate, state).filter(|_| !need.avoid.contains(&candidate.node)) else { continue };
        refused.ready += 1;
        if need.fit.is_some() && need.fit != candidate.fit {
            continue;
        }
        refused.fitting += 1;
        if refused.most_free.is_none_or(|most| (most.memory_mib, most.vcpus) < (free.memory_mib, free.vcpus)) {
            refused.most_free = Some(free);
        }
        if needed.fits(free) {
            able.push((candidate, score(candidate, free, needed)));
        }
    }
    // A warm clone saves more than any difference in load costs, so nodes that have one are drawn first.
    if able.iter().any(|(_, score)| score.warm) {
        able.retain(|(_, score)| score.warm);
    }
    let mut chance = Chance(chance);
    let drawn = (0..able.len().min(BEST_OF)).map(|taken| {
        let at = taken + chance.below(able.len() - taken);
        able.swap(taken, at);
        able[taken]
    });
    // The first of equals is kept, and which is first was drawn.
    let best = drawn.reduce(|best, next| if next.1.free_permille > best.1.free_permille { next } else { best });
    best.map(|(candidate, _)| candidate.node.clone()).ok_or(refused)
}

/// What is free on a node by gossip and by ledger, if it takes sandboxes at all.
fn free(candidate: &Candidate, state: &State) -> Option<Capacity> {
    let node = state.nodes().get(&candidate.node)?;
    if !candidate.live || candidate.draining || !node.admitted || node.is_full() {
        return None;
    }
    let (said, promised) = (candidate.limits.reservable().minus(candidate.reserved), node.free());
    Some(Capacity {
        vcpus: said.vcpus.min(promised.vcpus),
        memory_mib: said.memory_mib.min(promised.memory_mib),
        disk_gib: said.disk_gib.min(promised.disk_gib),
    })
}

/// How good a node would be.
#[derive(Debug, Clone, Copy)]
struct Score {
    /// Whether a warm clone is left for this create, after those under way.
    warm: bool,
    /// The scarcest resource that would be left, after this create and those under way.
    free_permille: u64,
}

fn score(candidate: &Candidate, free: Capacity, needed: Capacity) -> Score {
    let limit = candidate.limits.reservable();
    let taken = u64::from(candidate.in_progress) + 1;
    let left = |free: u64, needed: u64, limit: u64| {
        let left = free.saturating_sub(needed.saturating_mul(taken));
        u128::from(left) * 1000 / u128::from(limit.max(1))
    };
    let scarcest = left(free.vcpus, needed.vcpus, limit.vcpus)
        .min(left(free.memory_mib, needed.memory_mib, limit.memory_mib))
        .min(left(free.disk_gib, needed.disk_gib, limit.disk_gib));
    Score { warm: candidate.warm > candidate.in_progress, free_permille: u64::try_from(scarcest).unwrap_or(u64::MAX) }
}

/// A few even numbers from one: splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators").
struct Chance(u64);

impl Chance {
    /// A number below `limit`, which isn't 0.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(mixed % limit).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use fabric_types::{Accelerator, HypervisorKind, Overcommit};

    use super::*;
    use crate::Machine;
    use crate::region::{Command, Placement};

    fn node(number: u32) -> NodeId {
        format!("fra-{number}").parse().expect("a node id")
    }

    fn limits(sandboxes: u64) -> NodeLimits {
        let one = Capacity::of(Shape::DEFAULT);
        NodeLimits {
            physical: Capacity {
                vcpus: one.vcpus * sandboxes,
                memory_mib: one.memory_mib * sandboxes,
                disk_gib: one.disk_gib * sandboxes,
            },
            overcommit: Overcommit { vcpus: 1, memory: 1, disk: 1 },
            sandboxes: None,
        }
    }

    fn candidate(number: u32) -> Candidate {
        Candidate {
            node: node(number),
            limits: limits(10),
            reserved: Capacity::default(),
            warm: 0,
            in_progress: 0,
            live: true,
            draining: false,
            fit: None,
        }
    }

    fn ledger(nodes: u32) -> State {
        let mut state = State::default();
        for number in 1..=nodes {
            let command = Command::RegisterNode { node: node(number), limits: limits(10) };
            Placement::apply(&mut state, &command).expect("registered");
        }
        state
    }

    fn need() -> Need {
        Need { shape: Shape::DEFAULT, fit: None, avoid: BTreeSet::new() }
    }

    fn fit(version: &str) -> Fit {
        Fit {
            hypervisor: HypervisorKind::Qemu,
            version: version.into(),
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu_model: "max".into(),
            cpu_features: vec![],
        }
    }

    #[test]
    fn a_node_that_is_dead_draining_unknown_or_avoided_is_never_chosen() {
        let dead = Candidate { live: false, ..candidate(1) };
        let draining = Candidate { draining: true, ..candidate(2) };
        let view = [dead, draining, candidate(3), candidate(4), candidate(9)];
        let mut state = ledger(4);
        Placement::apply(&mut state, &Command::SetAdmitted { node: node(4), admitted: false }).expect("drained");
        for chance in 0..50 {
            assert_eq!(choose(&view, &state, &need(), chance), Ok(node(3)));
        }
        let avoiding = Need { avoid: [node(3)].into(), ..need() };
        let refused = choose(&view, &state, &avoiding, 0).expect_err("nobody is left");
        assert_eq!((refused.nodes, refused.ready, refused.most_free), (5, 0, None));
    }

    #[test]
    fn gossip_and_ledger_must_both_have_room() {
        let full = Candidate { reserved: limits(10).reservable(), ..candidate(1) };
        assert_eq!(choose(&[full, candidate(2)], &ledger(2), &need(), 7), Ok(node(2)));

        let large = Candidate { limits: limits(100), ..candidate(1) };
        let shape = Shape::new(11, 1024, 3).expect("a shape");
        let refused = choose(&[large], &ledger(1), &Need { shape, ..need() }, 7).expect_err("too large");
        assert_eq!(
            refused.to_string(),
            "no node has room for 11 vCPU, 1024 MiB of memory and 3 GiB of disk: of 1 nodes 1 are ready and 1 fit; \
             the emptiest has 10 vCPU, 10240 MiB and 30 GiB free"
        );
    }

    #[test]
    fn a_snapshot_goes_only_where_it_fits() {
        let view = [
            Candidate { fit: Some(fit("7.2")), ..candidate(1) },
            Candidate { fit: Some(fit("8.0")), ..candidate(2) },
            candidate(3),
        ];
        let needs = Need { fit: Some(fit("8.0")), ..need() };
        assert!((0..50).all(|chance| choose(&view, &ledger(3), &needs, chance) == Ok(node(2))));
        let needs = Need { fit: Some(fit("9.0")), ..need() };
        let refused = choose(&view, &ledger(3), &needs, 0).expect_err("none fits");
        assert_eq!((refused.ready, refused.fitting), (3, 0));
    }

    #[test]
    fn a_warm_clone_beats_an_emptier_node_unless_it_is_promised_already() {
        let half = Capacity { vcpus: 5, memory_mib: 5120, disk_gib: 15 };
        let warm = Candidate { warm: 1, reserved: half, ..candidate(1) };
        let view = [warm.clone(), candidate(2), candidate(3), candidate(4), candidate(5)];
        assert!((0..50).all(|chance| choose(&view, &ledger(5), &need(), chance) == Ok(node(1))));
        let view = [Candidate { in_progress: 1, ..warm }, candidate(2), candidate(3)];
        assert!((0..50).all(|chance| choose(&view, &ledger(3), &need(), chance) != Ok(node(1))));
    }

    #[test]
    fn equals_are_all_chosen_in_turn_by_chance() {
        let view: Vec<_> = (1..=8).map(candidate).collect();
        let state = ledger(8);
        let chosen: BTreeSet<_> = (0..200).filter_map(|chance| choose(&view, &state, &need(), chance).ok()).collect();
        assert_eq!(chosen.len(), 8);
    }

    #[test]
    fn a_node_that_holds_as_many_as_it_may_is_not_chosen() {
        let mut state = ledger(2);
        let limits = NodeLimits { sandboxes: Some(0), ..limits(10) };
        Placement::apply(&mut state, &Command::RegisterNode { node: node(1), limits }).expect("registered");
        assert!((0..50).all(|chance| choose(&[candidate(1), candidate(2)], &state, &need(), chance) == Ok(node(2))));
    }

    #[test]
    fn creates_under_way_count_against_a_node() {
        let busy = Candidate { in_progress: 4, ..candidate(1) };
        assert!((0..50).all(|chance| {
            choose(&[busy.clone(), candidate(2), candidate(3)], &ledger(3), &need(), chance) != Ok(node(1))
        }));
    }
}
