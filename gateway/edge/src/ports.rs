//! What the edge needs of the process it runs in.

use async_trait::async_trait;
use bytes::Bytes;
use fabric_api::ApiError;
use fabric_api::node::{NodeAnswer, NodeCall};
use fabric_types::{Digest, Generation, KeyId, NodeId, OrganizationId, SandboxId};
use http_body_util::combinators::UnsyncBoxBody;

/// A body on its way through the edge: streamed, never held whole.
pub type RelayBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Who a valid key stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key's id.
    pub key: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
}

/// Where a sandbox lives, as far as this node knows without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which.
    pub id: SandboxId,
    /// On which node.
    pub node: NodeId,
    /// Under which generation.
    pub generation: Generation,
    /// Whose.
    pub organization: OrganizationId,
}

/// The node that the edge runs in. Peers are reached over the fabric with the same calls.
#[async_trait]
pub trait LocalNode: Send + Sync + 'static {
    /// Who a key stands for, by the BLAKE3 hash of its text, from this node's copy of the catalog. No I/O.
    fn principal(&self, key: &Digest) -> Option<Principal>;
    /// Where a sandbox of this node's region lives, by id or by name, from its copy of the placement state. No I/O.
    fn locate(&self, key: &str, organization: &OrganizationId) -> Option<Route>;
    /// Answers a node call on this node (which passes it on inside the region where it must).
    async fn handle(&self, call: NodeCall) -> NodeAnswer;
    /// Sends a request to the agent of a sandbox that lives on this node, on `guest_proto::surface`; the generation
    /// header is set here. Counts as activity. A lower generation than the node's is `StaleGeneration`.
    async fn guest(
        &self,
        id: &SandboxId,
        generation: Generation,
        request: http::Request<RelayBody>,
    ) -> Result<http::Response<RelayBody>, ApiError>;
}
