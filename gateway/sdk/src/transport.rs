//! One request: which endpoints to try, how long to wait, how much to read, and errors that say which it was.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::settings::{ApiKey, Endpoint, Endpoints, SettingsError};
use crate::{ApiFailure, ClientError};

/// Until a TCP connection stands: three tries of a lost SYN (1 s, 2 s) and a far round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For a plain answer: a gateway waits at most some seconds for other regions, then says so.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// For an answer that may wait for a boot: a new shape boots its template once, a minute on a slow machine.
pub(crate) const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// Over a command's own timeout: the relay, and the mesh's own answer to it.
pub(crate) const COMMAND_GRACE: Duration = Duration::from_secs(30);
/// Idle connections are probed after this, so that a stream notices a host that is gone.
const TCP_KEEPALIVE: Duration = Duration::from_secs(20);
/// Largest JSON answer. The largest real one is a command's two outputs of 16 MiB, up to six bytes a character.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Largest body of an error that is read.
const ERROR_BYTES_MAX: usize = 1 << 20;

/// The HTTP client with endpoints and key; cheap to clone.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    pub(crate) endpoints: Arc<Endpoints>,
    key: ApiKey,
    /// Wins over the limits above, where it was asked for.
    pub(crate) timeout: Option<Duration>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("endpoints", &self.endpoints)
            .field("key", &self.key)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What is asked, before an endpoint is chosen.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// Segments after `/v1`, each escaped on its own.
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(&'a str, String)>,
    /// A region's code or a sandbox's id, to choose the nearest endpoint.
    pub(crate) hint: Option<&'a str>,
    pub(crate) accept: &'static str,
    /// For the whole answer, or for its head alone where it is streamed; none waits forever.
    pub(crate) limit: Option<Duration>,
    pub(crate) body: Option<Bytes>,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(method: Method, path: &[&'a str]) -> Self {
        Self {
            method,
            path: path.to_vec(),
            query: Vec::new(),
            hint: None,
            accept: "application/json",
            limit: Some(ANSWER_TIMEOUT),
            body: None,
        }
    }

    pub(crate) fn near(mut self, hint: &'a str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(crate) fn within(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) fn query(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// Our wire types have no map with keys that JSON can't hold, so they always serialize.
    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        self.body = Some(Bytes::from(serde_json::to_vec(body).expect("wire types serialize: no non-text keys")));
        self
    }

    fn what(&self) -> String {
        format!("{} /v1/{}", self.method, self.path.join("/"))
    }

    fn url(&self, endpoint: &Endpoint) -> Url {
        let mut url = endpoint.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(&self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(self.query.iter().map(|(name, value)| (name, value.as_str())));
        }
        url
    }
}

/// An answer whose head has come, with what its errors need to say.
pub(crate) struct Answer {
    response: reqwest::Response,
    pub(crate) endpoint: String,
    pub(crate) what: String,
    limit: Option<Duration>,
}

impl Transport {
    pub(crate) fn new(endpoints: Endpoints, key: ApiKey) -> Result<Self, ClientError> {
        // Fails only when a provider is there already, which then is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let with_tls = endpoints.iter().any(|endpoint| endpoint.url.scheme() == "https");
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("atoll/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(TCP_KEEPALIVE)
            .tcp_nodelay(true)
            // A redirect would carry the key to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            // Reading the machine's certificates takes longer than an exec: only where they are needed.
            .tls_built_in_root_certs(with_tls);
        if endpoints.iter().all(is_loopback) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|source| SettingsError::Http { source })?;
        Ok(Self { http, endpoints: Arc::new(endpoints), key, timeout: None })
    }

    /// Sends to the nearest endpoint, and to the next only where no connection came to stand. An answer that is an
    /// error becomes one here.
    pub(crate) async fn send(&self, ask: &Ask<'_>) -> Result<Answer, ClientError> {
        let order = self.endpoints.ordered_for(ask.hint);
        let mut unreachable = None;
        for endpoint in &order {
            match self.send_to(ask, endpoint, ask.body.clone().map(reqwest::Body::from)).await {
                Err(Failed::Connect(source)) => unreachable = Some(source),
                Err(Failed::Client(error)) => return Err(error),
                Ok(answer) => return Ok(answer),
            }
        }
        let tried: Vec<&str> = order.iter().map(|endpoint| endpoint.as_str()).collect();
        let source = unreachable.expect("Endpoints is never empty, so one was tried");
        Err(ClientError::Unreachable { tried: tried.join(", "), source })
    }

    /// Sends a body that can be read only once, to one endpoint.
    pub(crate) async fn send_once(
        &self,
        ask: &Ask<'_>,
        endpoint: &Endpoint,
        body: reqwest::Body,
    ) -> Result<Answer, ClientError> {
        self.send_to(ask, endpoint, Some(body)).await.map_err(|failed| match failed {
            Failed::Connect(source) => ClientError::Unreachable { tried: endpoint.as_str().to_owned(), source },
            Failed::Client(error) => error,
        })
    }

    async fn send_to(&self, ask: &Ask<'_>, endpoint: &Endpoint, body: Option<reqwest::Body>) -> Result<Answer, Failed> {
        let limit = self.timeout.or(ask.limit);
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", self.key.expose()))
            .expect("a key is visible ASCII: checked when it was parsed");
        bearer.set_sensitive(true);
        let mut request = self
            .http
            .request(ask.method.clone(), ask.url(endpoint))
            .header(AUTHORIZATION, bearer)
            .header(ACCEPT, ask.accept);
        if let Some(body) = body {
            let kind = if ask.body.is_some() { "application/json" } else { "application/octet-stream" };
            request = request.header(reqwest::header::CONTENT_TYPE, kind).body(body);
        }
        let context = Context { endpoint: endpoint.as_str().to_owned(), what: ask.what(), limit };
        let sent = within(limit, request.send()).await.ok_or_else(|| context.deadline())?;
        let response = sent.map_err(|error| {
            if error.is_connect() {
                Failed::Connect(error.without_url())
            } else {
                Failed::Client(context.broken(error))
            }
        })?;
        let answer = Answer { response, endpoint: context.endpoint, what: context.what, limit };
        if answer.response.status().is_success() {
            Ok(answer)
        } else {
            Err(Failed::Client(answer.into_failure().await))
        }
    }
}

impl Answer {
    /// The answer as JSON of this type.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let (endpoint, what) = (self.endpoint.clone(), self.what.clone());
        let bytes = self.bytes(ANSWER_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Malformed { endpoint, what, source })
    }

    /// The answer as text; bad UTF-8 is replaced.
    pub(crate) async fn text(self) -> Result<String, ClientError> {
        let bytes = self.bytes(ANSWER_BYTES_MAX).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The whole body, at most `limit_bytes`.
    pub(crate) async fn bytes(mut self, limit_bytes: usize) -> Result<Vec<u8>, ClientError> {
        let deadline = self.limit.map(|limit| tokio::time::Instant::now() + limit);
        let mut bytes = Vec::new();
        loop {
            let chunk = match deadline {
                Some(at) => match tokio::time::timeout_at(at, self.chunk()).await {
                    Ok(chunk) => chunk?,
                    Err(_) => return Err(self.context().deadline_error()),
                },
                None => self.chunk().await?,
            };
            let Some(chunk) = chunk else { return Ok(bytes) };
            if bytes.len() + chunk.len() > limit_bytes {
                return Err(ClientError::TooLarge { what: self.what, limit_bytes });
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    /// The next piece of the body; none at its end. No deadline of its own.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.response.chunk().await {
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(self.context().broken(error)),
        }
    }

    /// The length that the head announced.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    async fn into_failure(self) -> ClientError {
        let status = self.response.status().as_u16();
        let request_id = self.response.headers().get("x-request-id").and_then(|value| value.to_str().ok());
        let request_id = request_id.map(str::to_owned);
        // A body that breaks off still leaves the status, which says enough.
        let body = self.bytes(ERROR_BYTES_MAX).await.unwrap_or_default();
        ClientError::Api(Box::new(ApiFailure::parse(status, &body, request_id.as_deref())))
    }

    fn context(&self) -> Context {
        Context { endpoint: self.endpoint.clone(), what: self.what.clone(), limit: self.limit }
    }
}

/// A connection that didn't come to stand lets the next endpoint be tried; anything else is the answer.
enum Failed {
    Connect(reqwest::Error),
    Client(ClientError),
}

struct Context {
    endpoint: String,
    what: String,
    limit: Option<Duration>,
}

impl Context {
    fn deadline(&self) -> Failed {
        Failed::Client(self.deadline_error())
    }

    fn deadline_error(&self) -> ClientError {
        let seconds = self.limit.unwrap_or_default().as_secs();
        ClientError::Deadline { endpoint: self.endpoint.clone(), what: self.what.clone(), seconds }
    }

    fn broken(&self, error: reqwest::Error) -> ClientError {
        let source = error.without_url();
        ClientError::Broken { endpoint: self.endpoint.clone(), what: self.what.clone(), source }
    }
}

async fn within<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
        None => Some(future.await),
    }
}

fn is_loopback(endpoint: &Endpoint) -> bool {
    match endpoint.url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_a_path_before_v1_is_kept() {
        let endpoint = Endpoint::parse("http://host/base/").expect("an endpoint");
        let ask = Ask::new(Method::GET, &["sandboxes", "a/../b c"]).query("label", "k=v&w");
        assert_eq!(ask.url(&endpoint).as_str(), "http://host/base/v1/sandboxes/a%2F..%2Fb%20c?label=k%3Dv%26w");
    }

    #[test]
    fn the_key_does_not_show_in_debug() {
        let endpoints = Endpoints::parse("http://127.0.0.1:1").expect("endpoints");
        let transport = Transport::new(endpoints, ApiKey::new("e2b_secret").expect("a key")).expect("a transport");
        assert!(!format!("{transport:?}").contains("secret"));
    }
}
