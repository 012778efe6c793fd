//! `/v1/keys`: writes of the catalog.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use fabric_api::node::{NodeReply, NodeRequest};
use fabric_api::v1 as wire;
use fabric_types::Name;
use http::StatusCode;

use super::view;
use crate::edge::Edge;
use crate::intake;
use crate::mesh::odd_reply;
use crate::refusal::{Answer, Refusal};
use crate::request::{Caller, JsonBody, Segments};

/// How long a catalog write may take: it may cross oceans twice, and its leader may just be changing.
const CATALOG: Duration = Duration::from_secs(15);

/// `GET /v1/keys`
pub(super) async fn list(State(edge): State<Edge>, caller: Caller) -> Answer<Json<wire::KeyList>> {
    let request = NodeRequest::ListKeys { organization: caller.organization.clone() };
    match edge.mesh().ask_any(request, &caller.scope(CATALOG)).await? {
        NodeReply::Keys(keys) => Ok(Json(wire::KeyList { items: keys.into_iter().map(view::key).collect() })),
        reply => Err(odd_reply(&reply).into()),
    }
}

/// `POST /v1/keys`: the only time that the key is shown.
pub(super) async fn create(
    State(edge): State<Edge>,
    caller: Caller,
    JsonBody(body): JsonBody<wire::CreateKey>,
) -> Answer<Json<wire::NewKey>> {
    let name = intake::required_name(&body.name)?;
    let request = NodeRequest::CreateKey { name, organization: caller.organization.clone() };
    match edge.mesh().ask(&edge.config().region, request, &caller.scope(CATALOG)).await? {
        NodeReply::NewKey { view, key } => {
            Ok(Json(wire::NewKey { id: view.id.to_string(), name: view.name.to_string(), key }))
        }
        reply => Err(odd_reply(&reply).into()),
    }
}

/// `DELETE /v1/keys/{id or name}`
pub(super) async fn remove(
    State(edge): State<Edge>,
    caller: Caller,
    Segments([key]): Segments<1>,
) -> Answer<StatusCode> {
    if key.parse::<Name>().is_err() {
        return Err(Refusal::not_found(format!("no key '{}'", intake::clip(&key))));
    }
    let request = NodeRequest::RemoveKey { key, organization: caller.organization.clone() };
    match edge.mesh().ask(&edge.config().region, request, &caller.scope(CATALOG)).await? {
        NodeReply::Done => Ok(StatusCode::NO_CONTENT),
        reply => Err(odd_reply(&reply).into()),
    }
}
