//! A sandbox by id or name: its home region, its view, its route.

use std::time::Instant;

use fabric_api::node::{NodeReply, NodeRequest, SandboxKey, SandboxView};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Name, RegionCode, SandboxId};
use futures::StreamExt;

use super::call::{odd_reply, unreachable_region};
use super::{Mesh, Scope};
use crate::Route;

impl Mesh {
    /// Asks the home region of a sandbox for something that answers the sandbox. `request` gets the key to send.
    pub(crate) async fn ask_home<F>(&self, key: &str, scope: &Scope, request: F) -> Result<SandboxView, ApiError>
    where
        F: FnOnce(SandboxKey) -> NodeRequest,
    {
        let (region, key) = self.home(key, scope).await?;
        self.ask_sandbox(&region, request(key), scope).await
    }

    /// Asks a region for something that answers a sandbox.
    pub(crate) async fn ask_sandbox(
        &self,
        region: &RegionCode,
        request: NodeRequest,
        scope: &Scope,
    ) -> Result<SandboxView, ApiError> {
        match self.ask(region, request, scope).await? {
            NodeReply::Sandbox(view) => Ok(*view),
            reply => Err(odd_reply(&reply)),
        }
    }

    /// A sandbox by id or name, from its home region.
    pub(crate) async fn find(&self, key: &str, scope: &Scope) -> Result<SandboxView, ApiError> {
        if let Some(region) = self.home_by_id(key) {
            let key = SandboxKey { key: key.to_owned(), organization: scope.organization.clone() };
            return self.ask_sandbox(&region, NodeRequest::Get { key }, scope).await;
        }
        self.find_by_name(key, scope).await
    }

    /// The region that holds a sandbox, and the key to ask it by. An id says its region itself; only names are looked
    /// up.
    pub(crate) async fn home(&self, key: &str, scope: &Scope) -> Result<(RegionCode, SandboxKey), ApiError> {
        let named = |key: &str| SandboxKey { key: key.to_owned(), organization: scope.organization.clone() };
        if let Some(region) = self.home_by_id(key) {
            return Ok((region, named(key)));
        }
        if let Some(route) = self.routes.get(&scope.organization, key, Instant::now()) {
            return Ok((route.id.home(), named(route.id.as_str())));
        }
        let view = self.find_by_name(key, scope).await?;
        Ok((view.spec.id.home(), named(view.spec.id.as_str())))
    }

    /// Where a sandbox's agent is reached. Of this region this node's own copy tells; of others a route that was
    /// asked for within two seconds.
    pub(crate) async fn route(&self, key: &str, scope: &Scope) -> Result<Route, ApiError> {
        if let Some(route) = self.local.locate(key, &scope.organization) {
            return Ok(route);
        }
        if let Some(route) = self.routes.get(&scope.organization, key, Instant::now()) {
            return Ok(route);
        }
        self.fresh_route(key, scope).await
    }

    /// The same, asked of the home region now: this node's copy may lag, and a remembered route may be old.
    pub(crate) async fn fresh_route(&self, key: &str, scope: &Scope) -> Result<Route, ApiError> {
        self.routes.forget(&scope.organization, key);
        let view = self.find(key, scope).await?;
        let route = Route {
            id: view.spec.id.clone(),
            node: view.node.clone(),
            generation: view.generation,
            organization: view.spec.organization.clone(),
        };
        if route.organization != scope.organization {
            return Err(not_found(key));
        }
        if route.node.region() != self.region {
            self.routes.put(&scope.organization, key, route.clone(), Instant::now());
        }
        Ok(route)
    }

    /// Whether a text is a sandbox id of a region that this mesh has. Such texts are no names (see [`Mesh::may_name`]).
    fn home_by_id(&self, key: &str) -> Option<RegionCode> {
        let region = key.parse::<SandboxId>().ok()?.home();
        self.regions().contains(&region).then_some(region)
    }

    /// Whether a sandbox may be given this name: one that reads as an id would never be found.
    pub(crate) fn may_name(&self, name: &Name) -> Result<(), ApiError> {
        match self.home_by_id(name.as_str()) {
            None => Ok(()),
            Some(region) => Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("the name '{name}' reads as the id of a sandbox in region {region}; choose another"),
            )),
        }
    }

    /// Looks a name up: in this node's copy, then in every region at once.
    async fn find_by_name(&self, key: &str, scope: &Scope) -> Result<SandboxView, ApiError> {
        let Ok(name) = key.parse::<Name>() else { return Err(not_found(key)) };
        let request =
            NodeRequest::Get { key: SandboxKey { key: name.to_string(), organization: scope.organization.clone() } };
        let mut regions = self.nearest();
        if self.local.locate(key, &scope.organization).is_some() {
            regions.truncate(1);
        }
        let mut unheard: Option<(RegionCode, ApiError)> = None;
        // The first that has it is enough: a silent region holds up only a name that nobody knows.
        let mut answers = self.ask_each(regions, &request, scope);
        while let Some((region, answer)) = answers.next().await {
            match answer {
                Ok(NodeReply::Sandbox(view)) => return Ok(*view),
                Ok(reply) => unheard = unheard.or(Some((region, odd_reply(&reply)))),
                Err(error) if error.code == ErrorCode::NotFound => {}
                Err(error) => unheard = unheard.or(Some((region, error))),
            }
        }
        match unheard {
            None => Err(not_found(key)),
            Some((region, error)) => {
                let cause = format!("so whether a sandbox '{key}' is there is unknown; {}", error.message);
                Err(unreachable_region(&region, &cause))
            }
        }
    }
}

/// The sentence for an unknown sandbox.
pub(crate) fn not_found(key: &str) -> ApiError {
    let shown: String = key.chars().take(80).collect();
    ApiError::new(ErrorCode::NotFound, format!("no sandbox '{shown}'"))
}
