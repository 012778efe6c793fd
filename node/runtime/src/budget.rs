//! Where the time of a create went: one line each in the log, and the last of them for whoever measures.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use fabric_types::SandboxId;
use serde::{Deserialize, Serialize};

/// Creates that are remembered: a bench takes a hundred, a person looks at the last few.
const KEPT_MAX: usize = 256;

/// What a create found ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreateFrom {
    /// A warm clone of the pool.
    Warm,
    /// A spare: a monitor without a guest.
    Spare,
    /// Nothing: it was cloned on the request's own time.
    Clone,
    /// Nothing but its template's checkpoint: it was copied from that on the request's own time.
    Copy,
}

/// Where the time of one create went, microseconds. Resume, identity, policy and record run side by side, so the parts
/// sum up to more than the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateBudget {
    /// Which sandbox.
    pub id: SandboxId,
    /// What it found ready.
    pub from: CreateFrom,
    /// Until the pool had answered.
    pub take_us: u64,
    /// Until there was a machine, paused; 0 for a warm clone.
    pub machine_us: u64,
    /// The monitor's answer to its resume.
    pub resume_us: u64,
    /// The first session with its agent; 0 for a warm clone, whose session is open.
    pub link_us: u64,
    /// The identity's round trip, with the guest's own part.
    pub identity_us: u64,
    /// What of it the agent itself took.
    pub in_guest_us: u64,
    /// The network policy.
    pub policy_us: u64,
    /// The record, durable.
    pub record_us: u64,
    /// All of it.
    pub total_us: u64,
}

impl CreateBudget {
    pub(crate) fn new(id: SandboxId, from: CreateFrom) -> Self {
        Self {
            id,
            from,
            take_us: 0,
            machine_us: 0,
            resume_us: 0,
            link_us: 0,
            identity_us: 0,
            in_guest_us: 0,
            policy_us: 0,
            record_us: 0,
            total_us: 0,
        }
    }
}

/// The last creates.
#[derive(Debug, Default)]
pub(crate) struct Budgets(Mutex<VecDeque<CreateBudget>>);

impl Budgets {
    /// Notes a create that succeeded.
    pub(crate) fn note(&self, budget: CreateBudget) {
        let CreateBudget {
            id,
            from,
            take_us,
            machine_us,
            resume_us,
            link_us,
            identity_us,
            in_guest_us,
            policy_us,
            record_us,
            total_us,
        } = &budget;
        tracing::debug!(
            sandbox_id = %id, ?from, total_us, take_us, machine_us, resume_us, link_us, identity_us, in_guest_us,
            policy_us, record_us, "create"
        );
        // Nothing under this lock panics half-way through a change.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(budget);
    }

    /// The last creates, the newest last.
    pub(crate) fn last(&self) -> Vec<CreateBudget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::spec;

    #[test]
    fn only_the_last_creates_are_kept_in_their_order() {
        let budgets = Budgets::default();
        for total_us in 0..=KEPT_MAX as u64 {
            budgets.note(CreateBudget { total_us, ..CreateBudget::new(spec(1).id, CreateFrom::Warm) });
        }
        let kept = budgets.last();
        assert_eq!((kept.len(), kept[0].total_us, kept[KEPT_MAX - 1].total_us), (KEPT_MAX, 1, KEPT_MAX as u64));
    }
}
