//! Whether there is room: on a node, and in an organization's quota.

use fabric_types::{Capacity, NodeId, OrganizationId, Shape};

use super::apply::node;
use super::{Refusal, State};

/// Whether a node takes so many more sandboxes and this reservation. `own` is what of it is reserved there already.
pub(super) fn check_node(
    state: &State,
    id: &NodeId,
    more: u32,
    needed: Capacity,
    own: Capacity,
) -> Result<(), Refusal> {
    let node = node(state, id)?;
    // What lives on a draining node may grow there: it can't go elsewhere by itself.
    if !node.admitted && own == Capacity::default() {
        return Err(Refusal::NotAdmitted { node: id.clone() });
    }
    if more > 0
        && let Some(limit) = node.limits.sandboxes
        && node.sandboxes.saturating_add(more) > limit
    {
        return Err(Refusal::NodeFull { node: id.clone(), limit });
    }
    let free = node.free().plus(own);
    if needed.fits(free) { Ok(()) } else { Err(Refusal::NoRoom { node: id.clone(), needed, free }) }
}

impl State {
    /// Whether an organization may have one more sandbox of this shape: what a placement checks again.
    ///
    /// # Errors
    /// [`Refusal::QuotaReached`] with the part that is short.
    pub fn within_quota(&self, organization: &OrganizationId, shape: Shape) -> Result<(), Refusal> {
        check_quota(self, organization, 1, Capacity::of(shape))
    }
}

/// Whether an organization may have so many more sandboxes and this much more reserved.
pub(super) fn check_quota(
    state: &State,
    organization: &OrganizationId,
    more: u32,
    needed: Capacity,
) -> Result<(), Refusal> {
    let (quota, usage) = (state.quota(organization), state.usage(organization));
    let (limit, held) = (quota.capacity, usage.reserved);
    let parts = [
        ("sandboxes", quota.sandboxes.into(), usage.sandboxes.into(), more.into()),
        ("vCPU", limit.vcpus, held.vcpus, needed.vcpus),
        ("MiB of memory", limit.memory_mib, held.memory_mib, needed.memory_mib),
        ("GiB of disk", limit.disk_gib, held.disk_gib, needed.disk_gib),
    ];
    // A part that doesn't grow is not held against a quota that was lowered since.
    let over = |&(_, limit, held, asked): &(&str, u64, u64, u64)| asked > 0 && held.saturating_add(asked) > limit;
    match parts.into_iter().find(over) {
        None => Ok(()),
        Some((unit, limit, held, asked)) => {
            Err(Refusal::QuotaReached { organization: organization.0.clone(), unit: unit.into(), limit, held, asked })
        }
    }
}
