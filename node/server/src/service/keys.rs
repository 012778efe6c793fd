//! API keys: made here, kept in the catalog as hashes, shown once.

use std::time::Duration;

use fabric_api::node::{KeyView, NodeAnswer, NodeReply};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::{KeyId, Name, OrganizationId};
use raft_placement::catalog::{ApiKey, Command, State};

use super::{Service, errors};
use crate::key_text;
use crate::node::clock::now;

/// A catalog commit crosses an ocean twice at most, and an election may be on.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);

impl Service {
    pub(super) async fn create_key(&self, name: &Name, organization: &OrganizationId) -> NodeAnswer {
        if let Some((id, _)) = by_name_or_id(&self.catalog_state(), name.as_str(), organization) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("a key named '{name}' exists already ({id})")));
        }
        let key = key_text::new();
        let id = KeyId::new(rand::random());
        let kept = ApiKey {
            name: name.to_string(),
            hash: key_text::hash(&key),
            organization: organization.clone(),
            created_at: now(),
            shown: key_text::shown(&key),
        };
        let view = view(&id, &kept, name.clone());
        self.commit_catalog(Command::PutKey { id: id.clone(), key: kept }).await?;
        self.wait_catalog(|state| state.keys().contains_key(&id)).await;
        Ok(NodeReply::NewKey { view, key })
    }

    pub(super) fn keys_of(&self, organization: &OrganizationId) -> Vec<KeyView> {
        let state = self.catalog_state();
        let own = state.keys().iter().filter(|(_, key)| key.organization == *organization);
        own.filter_map(|(id, key)| Some(view(id, key, key.name.parse().ok()?))).collect()
    }

    pub(super) async fn remove_key(&self, key: &str, organization: &OrganizationId) -> NodeAnswer {
        let state = self.catalog_state();
        let Some((id, _)) = by_name_or_id(&state, key, organization) else {
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no key '{key}'")));
        };
        if self.keys_of(organization).len() == 1 {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!("'{key}' is the last key: without it nobody could make another; make a new one first"),
            ));
        }
        self.commit_catalog(Command::RemoveKey { id: id.clone() }).await?;
        self.wait_catalog(|state| !state.keys().contains_key(id)).await;
        Ok(NodeReply::Done)
    }

    pub(super) async fn commit_catalog(&self, command: Command) -> Result<(), ApiError> {
        self.catalog.propose(command, COMMIT_LIMIT).await.map_err(|error| errors::catalog(&error))?;
        Ok(())
    }

    /// Waits until this node's own copy shows a commit, so that what the client does next finds it here.
    pub(super) async fn wait_catalog(&self, shows: impl Fn(&State) -> bool) {
        let mut state = self.catalog.state();
        let waited = tokio::time::timeout(COMMIT_LIMIT, state.wait_for(|state| shows(state))).await;
        if !matches!(waited, Ok(Ok(_))) {
            tracing::warn!("this node's copy of the catalog is behind what was committed");
        }
    }
}

fn by_name_or_id<'a>(state: &'a State, key: &str, organization: &OrganizationId) -> Option<(&'a KeyId, &'a ApiKey)> {
    let mut own = state.keys().iter().filter(|(_, entry)| entry.organization == *organization);
    own.find(|(id, entry)| id.as_str() == key || entry.name == key)
}

fn view(id: &KeyId, key: &ApiKey, name: Name) -> KeyView {
    KeyView {
        id: id.clone(),
        name,
        organization: key.organization.clone(),
        shown: key.shown.clone(),
        created_at: key.created_at,
    }
}
