//! The same question to every region at once, and what regions that don't answer last said.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric_api::ApiError;
use fabric_api::node::{NodeReply, NodeRequest, SandboxView};
use fabric_types::{OrganizationId, RegionCode};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::call::unreachable_region;
use super::{Mesh, Scope};

/// How long a region may take in a question to all: longer than any round trip on earth, short enough to wait for.
pub(crate) const REGION_DEADLINE: Duration = Duration::from_secs(2);
/// Lists kept, one for each organization and region.
const LISTS_MAX: usize = 256;
/// Sandboxes of a list that is kept; of a longer one nothing is.
const LIST_ITEMS_MAX: usize = 10_000;

/// The sandboxes of a mesh, as far as its regions answered.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// The sandboxes; true where it is the last known copy of a region that didn't answer.
    pub(crate) items: Vec<(SandboxView, bool)>,
    /// Regions that did not answer.
    pub(crate) unreachable: Vec<RegionCode>,
}

type Lists = HashMap<(OrganizationId, RegionCode), Arc<Vec<SandboxView>>>;

/// What each region last said, for when it can't be asked.
#[derive(Default)]
pub(super) struct LastKnown {
    lists: Mutex<Lists>,
}

impl LastKnown {
    fn put(&self, organization: &OrganizationId, region: &RegionCode, views: &[SandboxView]) {
        let mut lists = self.lists.lock().expect("no code panics while it holds this lock");
        let key = (organization.clone(), region.clone());
        if views.len() > LIST_ITEMS_MAX || (lists.len() >= LISTS_MAX && !lists.contains_key(&key)) {
            lists.remove(&key);
        } else {
            lists.insert(key, Arc::new(views.to_vec()));
        }
    }

    fn get(&self, organization: &OrganizationId, region: &RegionCode) -> Option<Arc<Vec<SandboxView>>> {
        let lists = self.lists.lock().expect("no code panics while it holds this lock");
        lists.get(&(organization.clone(), region.clone())).cloned()
    }
}

impl Mesh {
    /// Asks several regions the same at once; each has [`REGION_DEADLINE`]. Answers come as they are there.
    pub(crate) fn ask_each<'mesh>(
        &'mesh self,
        regions: Vec<RegionCode>,
        request: &NodeRequest,
        scope: &Scope,
    ) -> FuturesUnordered<impl Future<Output = (RegionCode, Result<NodeReply, ApiError>)> + Send + use<'mesh>> {
        let scope = scope.within(REGION_DEADLINE.min(scope.deadline));
        let asked = regions.into_iter().map(move |region| {
            let (request, scope) = (request.clone(), scope.clone());
            async move {
                let answer = self.ask(&region, request, &scope).await;
                (region, answer)
            }
        });
        asked.collect()
    }

    /// The organization's sandboxes, mesh-wide or of the regions that are named.
    pub(crate) async fn list(&self, only: &[RegionCode], scope: &Scope) -> Listed {
        let wanted = |region: &RegionCode| only.is_empty() || only.contains(region);
        let regions = self.regions().into_iter().filter(wanted).collect();
        let request = NodeRequest::List { organization: scope.organization.clone() };
        let mut listed = Listed::default();
        let mut answers = self.ask_each(regions, &request, scope);
        while let Some((region, answer)) = answers.next().await {
            match answer {
                Ok(NodeReply::Sandboxes(views)) => {
                    self.last_known.put(&scope.organization, &region, &views);
                    listed.items.extend(views.into_iter().map(|view| (view, false)));
                }
                Ok(_) | Err(_) => {
                    let known = self.last_known.get(&scope.organization, &region).unwrap_or_default();
                    listed.items.extend(known.iter().cloned().map(|view| (view, true)));
                    listed.unreachable.push(region);
                }
            }
        }
        listed.unreachable.sort();
        listed
    }

    /// Asks this node first and, if it can't say, the nearest other regions: for what every node has a copy of.
    pub(crate) async fn ask_any(&self, request: NodeRequest, scope: &Scope) -> Result<NodeReply, ApiError> {
        let mut first = None;
        for region in self.nearest() {
            match self.ask(&region, request.clone(), scope).await {
                Err(error) if error.code.fault() == fabric_api::Fault::Mesh => first = first.or(Some(error)),
                answer => return answer,
            }
        }
        Err(first.unwrap_or_else(|| unreachable_region(&self.region, "no region was asked")))
    }
}
