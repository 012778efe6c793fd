//! What a sandbox is set to: shape, network, intervals, ports.

use axum::extract::State;
use fabric_api::v1 as wire;
use fabric_types::NetworkPolicy;

use super::sandboxes::{Shown, show};
use crate::edge::Edge;
use crate::intake::{self, Rules};
use crate::refusal::Answer;
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes;

/// A policy from the API's lists.
pub(super) fn network(given: wire::Network, block_all: bool) -> Answer<NetworkPolicy> {
    intake::network(
        given.block_all || block_all,
        Rules { field: "network.allow", entries: &given.allow },
        Rules { field: "network.deny", entries: &given.deny },
        Rules { field: "network.allowDomains", entries: &given.allow_domains },
        Rules { field: "network.denyDomains", entries: &given.deny_domains },
    )
}

/// `POST .../resize`
pub(super) async fn resize(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::Resize>,
) -> Shown {
    let change = |old| intake::reshaped(old, body.cpu, body.memory_mib, body.disk_gib);
    show(&edge, sandboxes::resize(&edge, &caller, &key, change).await?)
}

/// `PUT .../network`: in force when it answers.
pub(super) async fn set_network(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::Network>,
) -> Shown {
    show(&edge, sandboxes::set_network(&edge, &caller, &key, network(body, false)?).await?)
}

/// `PUT .../intervals`: what isn't given stays.
pub(super) async fn set_intervals(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::Intervals>,
) -> Shown {
    let stop = body.auto_stop_minutes.map(intake::auto_stop).transpose()?;
    let pause = body.auto_pause_minutes.map(intake::auto_pause).transpose()?;
    let archive = body.auto_archive_minutes.map(intake::auto_archive).transpose()?;
    let delete = body.auto_delete_minutes.map(intake::auto_delete).transpose()?;
    let ttl = body.ttl_minutes.map(intake::ttl).transpose()?;
    let view = sandboxes::set_intervals(&edge, &caller, &key, |all| {
        all.auto_stop = stop.unwrap_or(all.auto_stop);
        all.auto_pause = pause.unwrap_or(all.auto_pause);
        all.auto_archive = archive.unwrap_or(all.auto_archive);
        all.auto_delete = delete.unwrap_or(all.auto_delete);
        all.ttl = ttl.unwrap_or(all.ttl);
    });
    show(&edge, view.await?)
}

/// `PUT .../public`
pub(super) async fn set_public(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(public): JsonBody<bool>,
) -> Shown {
    show(&edge, sandboxes::set_public(&edge, &caller, &key, public).await?)
}
