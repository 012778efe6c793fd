//! The agent, spoken to over the channel: HTTP/2 over the session layer.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use guest_proto::session::host;
use guest_proto::surface::{ExecReply, ExecRequest, GENERATION_HEADER, Health, Identity, IdentityAck};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use node_hypervisor::Vm;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::support::BOOT_LIMIT;

/// How long one request may take: a rehearsal waits until two interpreters of each kind are parked, which takes a minute on
/// a host with ten times more to do than it can.
const REQUEST_LIMIT: Duration = Duration::from_secs(180);

/// A connection to one guest's agent.
pub(crate) struct Guest {
    send: SendRequest<Full<Bytes>>,
    generation: u64,
}

impl Guest {
    /// Opens the channel and a session, waiting for a booting guest.
    pub(crate) async fn reach(vm: &dyn Vm, generation: u64) -> Self {
        let channel = vm.channel().await.expect("the channel opens");
        let session = host::open(channel, rand::random(), BOOT_LIMIT).await.expect("the agent takes the session");
        let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(session)).await.expect("HTTP/2 begins");
        tokio::spawn(connection);
        Self { send, generation }
    }

    /// Opens the channel and gives the guest an identity.
    pub(crate) async fn identify(vm: &dyn Vm, generation: u64) -> Self {
        Self::introduce(vm, generation, false).await
    }

    /// Opens the channel and gives the guest a passing identity, as a template has one: what it parked, its clones keep.
    pub(crate) async fn rehearse(vm: &dyn Vm, generation: u64) -> Self {
        Self::introduce(vm, generation, true).await
    }

    async fn introduce(vm: &dyn Vm, generation: u64, rehearsal: bool) -> Self {
        let mut guest = Self::reach(vm, generation).await;
        let identity = Identity {
            sandbox_id: vm.spec().label.clone(),
            generation,
            hostname: vm.spec().label.clone(),
            machine_id: format!("{:032x}", rand::random::<u128>()),
            mac: None,
            entropy: BASE64.encode(rand::random::<[u8; 64]>()),
            wall_clock_ns: u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos())
                .expect("before 2554"),
            network: None,
            limits: guest_proto::surface::GuestLimits::default(),
            env: BTreeMap::new(),
            rehearsal,
        };
        let ack: IdentityAck = guest.post("/v1/identity", &identity).await;
        assert_eq!(ack.generation, generation);
        guest
    }

    pub(crate) async fn health(&mut self) -> Health {
        self.request("GET", "/v1/health", Bytes::new()).await
    }

    /// Runs a shell command, which must succeed, and answers its trimmed output.
    pub(crate) async fn sh(&mut self, command: &str) -> String {
        let request = ExecRequest { command: command.to_owned(), ..ExecRequest::default() };
        let reply: ExecReply = self.post("/v1/exec", &request).await;
        let decode = |text: &str| String::from_utf8(BASE64.decode(text).expect("base64")).expect("text");
        assert_eq!(reply.exit_code, 0, "{command}: {}", decode(&reply.stderr));
        decode(&reply.stdout).trim().to_owned()
    }

    async fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl Serialize) -> T {
        self.request("POST", path, serde_json::to_vec(body).expect("JSON").into()).await
    }

    async fn request<T: DeserializeOwned>(&mut self, method: &str, path: &str, body: Bytes) -> T {
        let request = hyper::Request::builder()
            .method(method)
            .uri(format!("http://agent{path}"))
            .header(GENERATION_HEADER, self.generation)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .expect("a request");
        let answered = async {
            let response = self.send.send_request(request).await.expect("an answer");
            let status = response.status();
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            assert!(status.is_success(), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
            serde_json::from_slice(&bytes).expect("JSON")
        };
        tokio::time::timeout(REQUEST_LIMIT, answered).await.expect("an answer in time")
    }
}
