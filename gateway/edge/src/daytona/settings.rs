//! What a sandbox of the Daytona wire is set to: intervals, ports, network, shape.

use axum::extract::State;
use fabric_api::daytona as wire;
use fabric_types::Intervals;

use super::create::{self, never_if_negative};
use super::sandbox::{Shown, show};
use crate::edge::Edge;
use crate::intake;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};
use crate::sandboxes;

/// `POST .../autostop/{minutes}`
pub(super) async fn auto_stop(edge: State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    let interval = intake::auto_stop(number(&minutes)?)?;
    set(edge, caller, &key, |all| all.auto_stop = interval).await
}

/// `POST .../autopause/{minutes}`
pub(super) async fn auto_pause(edge: State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    let interval = intake::auto_pause(number(&minutes)?)?;
    set(edge, caller, &key, |all| all.auto_pause = interval).await
}

/// `POST .../autoarchive/{minutes}`
pub(super) async fn auto_archive(edge: State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    let interval = intake::auto_archive(number(&minutes)?)?;
    set(edge, caller, &key, |all| all.auto_archive = interval).await
}

/// `POST .../autodelete/{minutes}`
pub(super) async fn auto_delete(edge: State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    let minutes = never_if_negative(Some(number(&minutes)?)).unwrap_or(-1);
    let interval = intake::auto_delete(minutes)?;
    set(edge, caller, &key, |all| all.auto_delete = interval).await
}

/// `POST .../ttl/{minutes}`
pub(super) async fn ttl(edge: State<Edge>, caller: Caller, Segments([key, minutes]): Segments<2>) -> Shown {
    let interval = intake::ttl(number(&minutes)?)?;
    set(edge, caller, &key, |all| all.ttl = interval).await
}

async fn set(State(edge): State<Edge>, caller: Caller, key: &str, change: impl FnOnce(&mut Intervals)) -> Shown {
    show(&edge, sandboxes::set_intervals(&edge, &caller, key, change).await?)
}

/// `POST .../public/{true or false}`
pub(super) async fn public(State(edge): State<Edge>, caller: Caller, Segments([key, public]): Segments<2>) -> Shown {
    let wanted: bool =
        public.parse().map_err(|_| Refusal::bad(format!("'{}' is neither true nor false", intake::clip(&public))))?;
    show(&edge, sandboxes::set_public(&edge, &caller, &key, wanted).await?)
}

/// `POST .../network-settings`: a list that isn't given stays as it is, an empty one is emptied.
pub(super) async fn network(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::NetworkSettings>,
) -> Shown {
    let given = create::network(
        body.network_block_all.unwrap_or(false),
        body.network_allow_list.as_deref(),
        body.domain_allow_list.as_deref(),
    )?;
    let mut network = sandboxes::get(&edge, &caller, &key).await?.spec.network;
    if body.network_block_all.is_some() {
        network.block_all = given.block_all;
    }
    if body.network_allow_list.is_some() {
        network.allow = given.allow;
    }
    if body.domain_allow_list.is_some() {
        network.allow_domains = given.allow_domains;
    }
    show(&edge, sandboxes::set_network(&edge, &caller, &key, network).await?)
}

/// `POST .../resize`
pub(super) async fn resize(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
    JsonBody(body): JsonBody<wire::ResizeSandbox>,
) -> Shown {
    let memory_mib = intake::gib_as_mib(body.memory)?;
    let change = |old| intake::reshaped(old, body.cpu, memory_mib, body.disk);
    show(&edge, sandboxes::resize(&edge, &caller, &key, change).await?)
}

/// A whole number in a path.
fn number(text: &str) -> Answer<i64> {
    text.parse().map_err(|_| Refusal::bad(format!("'{}' is not a whole number of minutes", intake::clip(text))))
}
