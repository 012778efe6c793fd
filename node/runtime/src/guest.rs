//! A way to a guest's agent: HTTP/2 over the session layer over the machine's byte channel.
//!
//! ```text
//! Link          one session: made by whoever owns the machine, closed with it; our own calls, each with a deadline
//! GuestClient   what the runtime hands out: a link of one sandbox under one generation, counted as activity
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fabric_types::{Generation, SandboxId, UnixMillis};
use guest_proto::session::{self, SessionError, SessionId};
use guest_proto::surface::{AgentError, EXEC_SECONDS_MAX, GENERATION_HEADER};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use node_hypervisor::{Vm, VmError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::activity::Activity;
use crate::clock;
use crate::traffic::{Noted, Traffic};

/// A request's body on its way to a guest.
pub type GuestBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Longest wait for an answer's head: a command of the longest possible time, and a minute for its guest to say so.
const ANSWER_MAX: Duration = Duration::from_secs(EXEC_SECONDS_MAX as u64 + 60);
/// Opening a session with a running guest takes milliseconds, and a second on a host that translates ten of them at once.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(10);
/// Largest answer to one of our own calls, bytes: they are small JSON, and what a guest says is bounded.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// HTTP/2 flow control, bytes a stream and a connection: an upload at the channel's speed isn't held up by windows.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// Why a request didn't get an answer from the guest's agent.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The sandbox was stopped, deleted or has ended.
    #[error("the way to the guest of sandbox {0} has ended")]
    Ended(SandboxId),
    /// No answer in time.
    #[error("no answer from the guest of sandbox {id} in {waited_s} s")]
    Timeout {
        /// Which.
        id: SandboxId,
        /// The limit that passed.
        waited_s: u64,
    },
    /// The request or its answer broke off.
    #[error("the request to the guest of sandbox {id} broke off: {source}")]
    Broken {
        /// Which.
        id: SandboxId,
        /// How.
        #[source]
        source: hyper::Error,
    },
}

/// A client of one running sandbox's agent. Cloning it is cheap; it ends when the sandbox is stopped, started anew or
/// deleted.
#[derive(Clone)]
pub struct GuestClient {
    id: SandboxId,
    generation: Generation,
    link: Link,
    activity: Arc<Activity>,
}

impl GuestClient {
    pub(crate) fn new(id: SandboxId, generation: Generation, link: Link, activity: Arc<Activity>) -> Self {
        Self { id, generation, link, activity }
    }

    /// The generation that requests are sent under.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Sends a request of `guest_proto::surface` and waits for the head of its answer. Only the method, the path with
    /// its query, end-to-end headers and the body go to the guest; the generation header is set here.
    ///
    /// # Errors
    /// [`GuestError::Ended`] once the sandbox has been stopped, started or deleted: ask the runtime for a new client.
    ///
    /// # Cancel safety
    /// Dropping the future resets the request's stream.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Incoming>, GuestError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.activity.touch(clock::now());
        let _under_way = self.activity.begin();
        let request = prepare(request, self.generation);
        let answer = tokio::select! {
            biased;
            () = self.link.closed.cancelled() => return Err(GuestError::Ended(self.id.clone())),
            answer = timeout(ANSWER_MAX, self.link.sender.clone().send_request(request)) => answer,
        };
        self.activity.touch(clock::now());
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) if self.link.is_closed() => Err(GuestError::Ended(self.id.clone())),
            Ok(Err(source)) => Err(GuestError::Broken { id: self.id.clone(), source }),
            Err(_) => Err(GuestError::Timeout { id: self.id.clone(), waited_s: ANSWER_MAX.as_secs() }),
        }
    }
}

/// One session with one guest's agent.
#[derive(Clone)]
pub(crate) struct Link {
    sender: http2::SendRequest<GuestBody>,
    closed: CancellationToken,
    traffic: Traffic,
    _last: Arc<DropGuard>,
}

/// Why one of our own calls failed.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// The channel couldn't be opened.
    #[error("can't open the guest's channel: {0}")]
    Channel(#[from] VmError),
    /// The session or a request on it broke off.
    #[error("the session broke off: {0}")]
    Session(#[from] hyper::Error),
    /// The session couldn't begin.
    #[error(transparent)]
    Open(#[from] SessionError),
    /// No answer in time.
    #[error("no answer in {0} ms")]
    Timeout(u128),
    /// The agent refused.
    #[error("the agent answered {status}: {message}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// The agent's sentence.
        message: String,
    },
    /// The answer's body broke off or is too long.
    #[error("the answer's body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The answer isn't what the surface says.
    #[error("the answer doesn't read as the agent's surface: {0}")]
    Json(#[from] serde_json::Error),
}

impl Link {
    /// Opens a new session with the agent of a running machine; an older one of the same machine ends.
    pub(crate) async fn open(vm: &dyn Vm, deadline: Duration) -> Result<Self, CallError> {
        let channel = vm.channel().await?;
        let stream = session::host::open(channel, rand::random::<SessionId>(), deadline).await?;
        let (stream, traffic) = Noted::new(stream);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        let closed = CancellationToken::new();
        let ending = closed.clone();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = ending.cancelled() => {}
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a guest's session ended");
                    }
                }
            }
            ending.cancel();
        });
        let last = Arc::new(closed.clone().drop_guard());
        Ok(Self { sender, closed, traffic, _last: last })
    }

    /// Ends the session, and every request on it.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    /// When something last came from the guest.
    pub(crate) fn last_traffic(&self) -> UnixMillis {
        self.traffic.last()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.sender.is_closed()
    }

    /// A GET whose answer is JSON.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &'static str,
        generation: Generation,
        deadline: Duration,
    ) -> Result<T, CallError> {
        let answer = self.call(Method::GET, path, Bytes::new(), generation, deadline).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// A POST of JSON whose answer is JSON.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: &impl Serialize,
        generation: Generation,
        deadline: Duration,
    ) -> Result<T, CallError> {
        let body = serde_json::to_vec(body)?;
        let answer = self.call(Method::POST, path, body.into(), generation, deadline).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// A POST without a body whose answer's body doesn't matter.
    pub(crate) async fn tell(
        &self,
        path: &'static str,
        generation: Generation,
        deadline: Duration,
    ) -> Result<(), CallError> {
        self.call(Method::POST, path, Bytes::new(), generation, deadline).await.map(|_| ())
    }

    /// Any request; its answer's body, whole.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
        generation: Generation,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(path);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = prepare(request, generation);
        let exchange = async {
            let answer = self.sender.clone().send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(CallError::Body)?;
            let body = body.to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            let message = serde_json::from_slice::<AgentError>(&body)
                .map_or_else(|_| "without a sentence".to_owned(), |error| error.message);
            Err(CallError::Refused { status, message })
        };
        timeout(deadline, exchange).await.map_err(|_| CallError::Timeout(deadline.as_millis()))?
    }
}

/// Headers that belong to one hop (RFC 9113, section 8.2.2) or name another server.
const HOP_HEADERS: [HeaderName; 6] =
    [header::CONNECTION, header::HOST, header::TRANSFER_ENCODING, header::UPGRADE, header::TE, header::AUTHORIZATION];

fn prepare<B>(request: Request<B>, generation: Generation) -> Request<GuestBody>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut head, body) = request.into_parts();
    head.version = http::Version::HTTP_2;
    head.uri = guest_uri(&head.uri);
    strip_hop_headers(&mut head.headers);
    head.headers.insert(HeaderName::from_static(GENERATION_HEADER), HeaderValue::from(generation.0));
    Request::from_parts(head, BodyExt::map_err(body, Into::into).boxed_unsync())
}

/// The same path and query at the one authority there is on a channel.
fn guest_uri(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("guest"));
    // `*` is a request of the server itself, which a guest's agent has no answer to.
    let path = uri.path_and_query().filter(|path| path.as_str().starts_with('/')).cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("a scheme, an authority and a path make a URI")
}

fn strip_hop_headers(headers: &mut HeaderMap) {
    for name in &HOP_HEADERS {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "proxy-authorization"] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_path_and_end_to_end_headers_reach_the_guest() {
        let request = Request::builder()
            .method("POST")
            .uri("https://gateway.example/v1/exec?x=1")
            .header("host", "gateway.example")
            .header("connection", "keep-alive")
            .header("authorization", "Bearer secret")
            .header(GENERATION_HEADER, "99")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(b"{}")))
            .expect("a request");
        let prepared = prepare(request, Generation(7));
        assert_eq!(prepared.uri().to_string(), "http://guest/v1/exec?x=1");
        let mut names: Vec<_> = prepared.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", GENERATION_HEADER]);
        assert_eq!(prepared.headers()[GENERATION_HEADER], "7");
    }

    #[test]
    fn a_request_without_a_path_asks_for_the_root() {
        assert_eq!(guest_uri(&Uri::from_static("*")).to_string(), "http://guest/");
        assert_eq!(
            guest_uri(&Uri::from_static("/v1/files?path=a%20b")).to_string(),
            "http://guest/v1/files?path=a%20b"
        );
    }
}
