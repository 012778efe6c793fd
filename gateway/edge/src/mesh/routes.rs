//! Routes to sandboxes of other regions, remembered for a moment: a loop of commands asks its home region once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fabric_types::OrganizationId;

use crate::Route;

/// How long a route is believed. A stale one costs one refused call and one more question, never a wrong answer, for
/// the owner checks the generation.
const ROUTE_TTL: Duration = Duration::from_secs(2);
/// Routes kept: a burst over as many sandboxes in two seconds is beyond what one gateway relays.
const ROUTES_MAX: usize = 10_000;

type Key = (OrganizationId, String);

/// The cache. A lock is held only for a look-up.
#[derive(Default)]
pub(super) struct RouteCache {
    routes: Mutex<HashMap<Key, (Instant, Route)>>,
}

impl RouteCache {
    /// The route under an id or name, if it is fresh.
    pub(super) fn get(&self, organization: &OrganizationId, key: &str, now: Instant) -> Option<Route> {
        let routes = self.lock();
        let (since, route) = routes.get(&(organization.clone(), key.to_owned()))?;
        (now.saturating_duration_since(*since) < ROUTE_TTL).then(|| route.clone())
    }

    /// Remembers a route under the key by which it was asked for.
    pub(super) fn put(&self, organization: &OrganizationId, key: &str, route: Route, now: Instant) {
        let mut routes = self.lock();
        if routes.len() >= ROUTES_MAX {
            routes.retain(|_, (since, _)| now.saturating_duration_since(*since) < ROUTE_TTL);
        }
        if routes.len() < ROUTES_MAX {
            routes.insert((organization.clone(), key.to_owned()), (now, route));
        }
    }

    /// Forgets a route that its owner refused.
    pub(super) fn forget(&self, organization: &OrganizationId, key: &str) {
        self.lock().remove(&(organization.clone(), key.to_owned()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Route)>> {
        self.routes.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use fabric_types::{Generation, SandboxId};

    use super::*;

    #[test]
    fn a_route_is_forgotten_after_its_time_and_when_told() {
        let cache = RouteCache::default();
        let organization = OrganizationId("o".into());
        let region = "iad".parse().expect("a region");
        let route = Route {
            id: SandboxId::new(&region, [1; 16]),
            node: "iad-1".parse().expect("a node"),
            generation: Generation::FIRST,
            organization: organization.clone(),
        };
        let now = Instant::now();
        cache.put(&organization, "box", route.clone(), now);
        assert_eq!(cache.get(&organization, "box", now + Duration::from_secs(1)), Some(route.clone()));
        assert_eq!(cache.get(&organization, "box", now + ROUTE_TTL), None);
        assert_eq!(cache.get(&OrganizationId("other".into()), "box", now), None);
        cache.forget(&organization, "box");
        assert_eq!(cache.get(&organization, "box", now), None);
    }
}
