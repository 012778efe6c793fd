//! A made-up node: its region's sandboxes in a map that all nodes of the region share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use fabric_api::node::*;
use fabric_api::v1::{MachineUsage, Usage};
use fabric_api::{ApiError, ErrorCode};
use fabric_types::*;
use gateway_edge::{LocalNode, Principal, RelayBody, Route};

use super::agent::Agent;
use super::{KEY, OTHER_KEY};

/// What the nodes of a region share.
#[derive(Clone, Default)]
pub struct Region {
    sandboxes: Arc<Mutex<BTreeMap<SandboxId, SandboxView>>>,
    snapshots: Arc<Mutex<Vec<SnapshotView>>>,
}

/// A made-up node.
pub struct FakeNode {
    id: NodeId,
    region: Region,
    pub agent: Agent,
    numbers: AtomicU64,
    /// Whether creates find room.
    pub full: AtomicBool,
    /// Whether its copy of the placement state is empty, as right after its start.
    pub lagging: AtomicBool,
    /// Calls that it handled, with their request ids.
    pub calls: Mutex<Vec<NodeCall>>,
}

impl FakeNode {
    pub fn new(id: NodeId, region: Region) -> Self {
        Self {
            id,
            region,
            agent: Agent::default(),
            numbers: AtomicU64::new(0),
            full: AtomicBool::new(false),
            lagging: AtomicBool::new(false),
            calls: Mutex::default(),
        }
    }

    /// How many calls it handled that are of some kind.
    pub fn handled(&self, kind: fn(&NodeRequest) -> bool) -> usize {
        self.calls.lock().expect("calls").iter().filter(|call| kind(&call.request)).count()
    }

    /// Moves a sandbox to another node of the region, under the next generation.
    pub fn move_to(&self, id: &str, node: &str) {
        let mut sandboxes = self.region.sandboxes.lock().expect("sandboxes");
        let view = sandboxes.get_mut(&id.parse().expect("an id")).expect("a sandbox");
        view.node = node.parse().expect("a node");
        view.generation = view.generation.next();
    }

    fn chance(&self) -> [u8; 16] {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let name = blake3::hash(self.id.as_str().as_bytes());
        let mut chance = [0; 16];
        chance[..8].copy_from_slice(&name.as_bytes()[..8]);
        chance[8..].copy_from_slice(&number);
        chance
    }

    fn find(&self, key: &str, organization: &OrganizationId) -> Result<SandboxView, ApiError> {
        let sandboxes = self.region.sandboxes.lock().expect("sandboxes");
        sandboxes
            .values()
            .find(|view| {
                view.spec.organization == *organization && (view.spec.id.as_str() == key || view.spec.name == key)
            })
            .cloned()
            .ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no sandbox '{key}'")))
    }

    fn change(&self, key: &SandboxKey, change: impl FnOnce(&mut SandboxView)) -> NodeAnswer {
        let id = self.find(&key.key, &key.organization)?.spec.id;
        let mut sandboxes = self.region.sandboxes.lock().expect("sandboxes");
        let view = sandboxes.get_mut(&id).expect("found above");
        change(view);
        Ok(NodeReply::Sandbox(Box::new(view.clone())))
    }

    fn create(&self, new: NewSandbox) -> NodeAnswer {
        if self.full.load(Ordering::Relaxed) {
            return Err(ApiError::new(ErrorCode::NoCapacity, format!("{} has no room", self.id.region())));
        }
        let id = SandboxId::new(&self.id.region(), self.chance());
        let mut sandboxes = self.region.sandboxes.lock().expect("sandboxes");
        let name = new.name.map_or_else(|| id.to_string(), |name| name.to_string());
        if sandboxes.values().any(|view| view.spec.name == name && view.spec.organization == new.organization) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("a sandbox named '{name}' exists")));
        }
        let source = match &new.origin {
            Origin::Default => Source::Template { template: "default".parse().expect("a name") },
            Origin::Named(key) if key == "default" => Source::Template { template: "default".parse().expect("a name") },
            Origin::Named(key) | Origin::Snapshot(key) => {
                let snapshots = self.region.snapshots.lock().expect("snapshots");
                let found = snapshots.iter().find(|view| view.id.as_str() == key || view.name.as_str() == key);
                let manifest = found.map(|view| view.manifest);
                Source::Snapshot {
                    manifest: manifest.ok_or_else(|| {
                        ApiError::new(ErrorCode::NotFound, format!("no snapshot or template '{key}'"))
                    })?,
                }
            }
        };
        let now = UnixMillis(1_795_000_000_000 + self.numbers.load(Ordering::Relaxed));
        let view = SandboxView {
            spec: SandboxSpec {
                id: id.clone(),
                name,
                organization: new.organization,
                source,
                shape: new.shape.unwrap_or_default(),
                labels: new.labels,
                env: new.env,
                user: new.user.unwrap_or_else(|| "root".into()),
                public: new.public,
                network: new.network.unwrap_or_default(),
                intervals: new.intervals,
                created_at: now,
            },
            node: self.id.clone(),
            generation: Generation::FIRST,
            desired: Desired::Running,
            phase: Phase::Running,
            last_activity: now,
        };
        sandboxes.insert(id, view.clone());
        Ok(NodeReply::Sandbox(Box::new(view)))
    }

    fn fork(&self, key: &SandboxKey, names: Vec<Option<Name>>) -> NodeAnswer {
        let parent = self.find(&key.key, &key.organization)?;
        let child = |name: Option<Name>| {
            let id = SandboxId::new(&self.id.region(), self.chance());
            let name = name.map_or_else(|| id.to_string(), |name| name.to_string());
            let source = Source::Fork { parent: parent.spec.id.clone(), generation: parent.generation };
            let spec = SandboxSpec { id, name, source, ..parent.spec.clone() };
            SandboxView { spec, generation: Generation::FIRST, ..parent.clone() }
        };
        let children: Vec<SandboxView> = names.into_iter().map(child).collect();
        let mut sandboxes = self.region.sandboxes.lock().expect("sandboxes");
        sandboxes.extend(children.iter().map(|child| (child.spec.id.clone(), child.clone())));
        Ok(NodeReply::Fork(Box::new(ForkView { stop_us: 41_250, children })))
    }

    fn snapshot(&self, key: &SandboxKey, name: Option<Name>) -> NodeAnswer {
        let view = self.find(&key.key, &key.organization)?;
        let id = SnapshotId::new(self.chance());
        let name = name.unwrap_or_else(|| id.as_str().parse().expect("an id is a name"));
        let mut snapshots = self.region.snapshots.lock().expect("snapshots");
        if snapshots.iter().any(|view| view.name == name) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("a snapshot named '{name}' exists")));
        }
        let replicas =
            vec![ReplicaView { region: self.id.region(), node: self.id.clone(), state: "complete".to_owned() }];
        let snapshot = SnapshotView {
            manifest: Digest::from_bytes(*blake3::hash(id.as_str().as_bytes()).as_bytes()),
            id,
            name,
            organization: view.spec.organization,
            sandbox: view.spec.id,
            region: self.id.region(),
            size_bytes: 4 << 30,
            stored_bytes: 5 << 20,
            stop_us: 41_250,
            created_at: UnixMillis(1_795_000_000_000),
            shape: view.spec.shape,
            durable: false,
            replicas,
        };
        snapshots.push(snapshot.clone());
        Ok(NodeReply::Snapshot(Box::new(snapshot)))
    }

    fn key(&self) -> KeyView {
        KeyView {
            id: KeyId::new([1; 16]),
            name: "first".parse().expect("a name"),
            organization: OrganizationId("default".into()),
            shown: "e2b_0123".into(),
            created_at: UnixMillis(1_795_000_000_000),
        }
    }

    fn answer(&self, request: NodeRequest) -> NodeAnswer {
        match request {
            NodeRequest::Create { new } => self.create(*new),
            NodeRequest::Get { key } => {
                self.find(&key.key, &key.organization).map(|view| NodeReply::Sandbox(Box::new(view)))
            }
            NodeRequest::List { organization } => {
                let sandboxes = self.region.sandboxes.lock().expect("sandboxes");
                let mine = sandboxes.values().filter(|view| view.spec.organization == organization);
                Ok(NodeReply::Sandboxes(mine.cloned().collect()))
            }
            NodeRequest::SetDesired { key, desired, .. } => self.change(&key, |view| {
                view.desired = desired;
                view.phase = match desired {
                    Desired::Running => Phase::Running,
                    Desired::Paused => Phase::Paused,
                    Desired::Stopped => Phase::Stopped,
                    Desired::Archived => Phase::Archived,
                };
            }),
            NodeRequest::Delete { key } => {
                let view = self.find(&key.key, &key.organization)?;
                self.region.sandboxes.lock().expect("sandboxes").remove(&view.spec.id);
                Ok(NodeReply::Sandbox(Box::new(view)))
            }
            NodeRequest::SetLabels { key, labels } => self.change(&key, |view| view.spec.labels = labels),
            NodeRequest::SetIntervals { key, intervals } => self.change(&key, |view| view.spec.intervals = intervals),
            NodeRequest::SetNetwork { key, network } => self.change(&key, |view| view.spec.network = network),
            NodeRequest::SetPublic { key, public } => self.change(&key, |view| view.spec.public = public),
            NodeRequest::Resize { key, shape } => self.change(&key, |view| view.spec.shape = shape),
            NodeRequest::Fork { key, names } => self.fork(&key, names),
            NodeRequest::Snapshot { key, name } => self.snapshot(&key, name),
            NodeRequest::Usage { key } => {
                let view = self.find(&key.key, &key.organization)?;
                let (received, sent) = (Some(8), Some(9));
                let used = MachineUsage {
                    cpu_ms: 7,
                    network_received_bytes: received,
                    network_sent_bytes: sent,
                    ..MachineUsage::default()
                };
                let machine = (view.phase == Phase::Running).then_some(used);
                Ok(NodeReply::Usage(Usage { id: view.spec.id.to_string(), machine }))
            }
            NodeRequest::ListSnapshots { .. } => {
                Ok(NodeReply::Snapshots(self.region.snapshots.lock().expect("snapshots").clone()))
            }
            NodeRequest::DeleteSnapshot { key, .. } => {
                let mut snapshots = self.region.snapshots.lock().expect("snapshots");
                let at = snapshots.iter().position(|view| view.id.as_str() == key || view.name.as_str() == key);
                let at = at.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no snapshot '{key}'")))?;
                Ok(NodeReply::Snapshot(Box::new(snapshots.remove(at))))
            }
            NodeRequest::ListTemplates => Ok(NodeReply::Templates(vec![TemplateView {
                name: "default".parse().expect("a name"),
                image: "debian".into(),
                shape: Shape::DEFAULT,
                created_at: UnixMillis(1_795_000_000_000),
            }])),
            NodeRequest::CreateKey { name, .. } => {
                Ok(NodeReply::NewKey { view: KeyView { name, ..self.key() }, key: KEY.to_owned() })
            }
            NodeRequest::ListKeys { .. } => Ok(NodeReply::Keys(vec![self.key()])),
            NodeRequest::RemoveKey { key, .. } if key == "first" => Ok(NodeReply::Done),
            NodeRequest::RemoveKey { key, .. } => Err(ApiError::new(ErrorCode::NotFound, format!("no key '{key}'"))),
            NodeRequest::Status => {
                let group = format!("placement-{}", self.id.region());
                let leader = Some(NodeId::new(&self.id.region(), 1));
                let voters = vec![self.id.clone()];
                let groups = vec![GroupStatus {
                    group,
                    leader,
                    term: 1,
                    voters,
                    learners: Vec::new(),
                    applied: 1,
                    poisoned: None,
                }];
                Ok(NodeReply::Status(Box::new(NodeStatus { node: self.id.clone(), groups })))
            }
            other => Err(ApiError::new(ErrorCode::BadRequest, format!("not asked by a gateway: {other:?}"))),
        }
    }
}

#[async_trait]
impl LocalNode for FakeNode {
    fn principal(&self, key: &Digest) -> Option<Principal> {
        let known = |text: &str| *key.as_bytes() == *blake3::hash(text.as_bytes()).as_bytes();
        let organization = match () {
            () if known(KEY) => "default",
            () if known(OTHER_KEY) => "other",
            () => return None,
        };
        Some(Principal { key: KeyId::new([1; 16]), organization: OrganizationId(organization.into()) })
    }

    fn locate(&self, key: &str, organization: &OrganizationId) -> Option<Route> {
        if self.lagging.load(Ordering::Relaxed) {
            return None;
        }
        let view = self.find(key, organization).ok()?;
        let (node, generation) = (view.node, view.generation);
        Some(Route { id: view.spec.id, node, generation, organization: view.spec.organization })
    }

    async fn handle(&self, call: NodeCall) -> NodeAnswer {
        self.calls.lock().expect("calls").push(call.clone());
        self.answer(call.request)
    }

    async fn guest(
        &self,
        id: &SandboxId,
        generation: Generation,
        request: http::Request<RelayBody>,
    ) -> Result<http::Response<RelayBody>, ApiError> {
        let view = self.region.sandboxes.lock().expect("sandboxes").get(id).cloned();
        let view = view.filter(|view| view.node == self.id);
        let view = view.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("sandbox {id} is not here")))?;
        if generation < view.generation {
            let message = format!("generation {generation} of {id} is older than {}", view.generation);
            return Err(ApiError::new(ErrorCode::StaleGeneration, message));
        }
        if view.phase != Phase::Running {
            return Err(ApiError::new(ErrorCode::Conflict, format!("sandbox {id} is {}", view.phase.as_str())));
        }
        Ok(self.agent.answer(id, request).await)
    }
}
