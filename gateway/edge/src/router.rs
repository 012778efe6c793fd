//! Which path goes where.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use http::StatusCode;

use crate::edge::Edge;
use crate::front::{limits, rescue};
use crate::request::authenticate;
use crate::{daytona, v1};

/// Every path of a gateway, with what lies around each request.
pub fn router(edge: Edge) -> Router {
    let keyed = Router::new()
        .merge(daytona::api())
        .merge(daytona::toolbox())
        .merge(v1::api())
        .route_layer(from_fn_with_state(edge.clone(), authenticate));
    Router::new()
        .route("/health", get(daytona::health))
        .merge(daytona::open())
        .merge(keyed)
        // The front says what it means, in the wire's JSON.
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(from_fn_with_state(edge.clone(), limits::limit))
        .layer(from_fn(rescue::rescue))
        .with_state(edge)
}
