//! Configuration, regions, health.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use fabric_api::daytona as wire;

use crate::edge::Edge;
use crate::instant::rfc3339;
use crate::mesh::describe;
use crate::request::Caller;

/// The name of the template that a create without `snapshot` starts from.
const DEFAULT_TEMPLATE: &str = "default";

/// `GET /api/health`, `/health`
pub(crate) async fn health(State(edge): State<Edge>) -> Json<wire::Health> {
    Json(wire::Health { status: "ok", version: edge.config().version.clone() })
}

/// `GET /api/health/ready`
pub(super) async fn ready(state: State<Edge>) -> Json<wire::Health> {
    health(state).await
}

/// `GET /api/config`
pub(super) async fn config(State(edge): State<Edge>) -> Json<wire::Configuration> {
    let public_url = &edge.config().public_url;
    Json(wire::Configuration {
        version: edge.config().version.clone(),
        oidc: wire::Oidc { issuer: String::new(), client_id: String::new(), audience: String::new(), provider: "none" },
        linked_accounts_enabled: false,
        announcements: BTreeMap::new(),
        proxy_template_url: format!("{public_url}/preview/{{{{PORT}}}}-{{{{sandboxId}}}}"),
        proxy_toolbox_url: format!("{public_url}/toolbox"),
        default_snapshot: DEFAULT_TEMPLATE.to_owned(),
        dashboard_url: public_url.clone(),
        max_auto_archive_interval: 0,
        maintanance_mode: false,
        environment: "production",
    })
}

/// `GET /api/regions`, `/api/shared-regions`: each region since its eldest node.
pub(super) async fn regions(State(edge): State<Edge>, _: Caller) -> Json<Vec<wire::Region>> {
    let view = edge.mesh().view();
    let regions = edge.mesh().regions().into_iter().map(|region| {
        let nodes = view.nodes.values().filter(|node| node.report.region == region);
        let since = rfc3339(nodes.map(|node| node.report.started_at).min().unwrap_or_default());
        wire::Region {
            id: region.to_string(),
            name: describe(region.clone()).name,
            region_type: "shared",
            created_at: since.clone(),
            updated_at: since,
            proxy_url: edge.endpoint(&region),
        }
    });
    Json(regions.collect())
}
