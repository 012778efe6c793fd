//! The requests, each answered.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use guest_proto::surface::{AgentErrorCode, CodeRunRequest, ExecEvent, ExecRequest, Identity};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use tokio::sync::mpsc;

use super::body::{Body, json, no_content, pieces, read_json, refusal, steps, text};
use super::route::{Route, generation};
use crate::exec::{Command, Ended, Engine, prepare_code};
use crate::facts;
use crate::files::{Download, Upload, blocking, info, list, make_folder, remove, resolve};
use crate::identity::IdentityCell;
use crate::machine::Machine;
use crate::refusal::{Answer, bad_request, refuse};

/// How long the answer to a shutdown may take to reach the host before the machine goes down.
const LAST_ANSWER: Duration = Duration::from_millis(50);

/// Everything that requests are answered with.
pub(crate) struct Agent {
    /// The machine under it.
    pub(crate) machine: Arc<dyn Machine>,
    /// Who the guest is.
    pub(crate) identity: IdentityCell,
    /// Starts commands.
    pub(crate) engine: Engine,
    /// Where commands start and relative paths begin.
    pub(crate) home: PathBuf,
    /// Where program texts lie while they run.
    pub(crate) scratch: PathBuf,
}

impl Agent {
    /// Answers one request; every refusal becomes an answer here.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.try_answer(request).await {
            Ok(response) => response,
            Err(error) => refusal(&error),
        }
    }

    async fn try_answer<B>(&self, request: Request<B>) -> Answer<Response<Body>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let route = Route::parse(&head.method, &head.uri)?;
        match route {
            Route::Health => {
                let (ready, generation) = self.identity.status();
                return Ok(json(StatusCode::OK, &facts::health(ready, generation)));
            }
            Route::Identity => {
                let identity: Identity = read_json(body).await?;
                return Ok(json(StatusCode::OK, &self.identity.apply(&*self.machine, identity)?));
            }
            _ => {}
        }
        let environment = self.identity.admit(generation(&head.headers)?)?;
        match route {
            Route::Exec => self.exec(read_json(body).await?, &environment).await,
            Route::ExecStream => self.exec_stream(read_json(body).await?, &environment),
            Route::CodeRun => self.code_run(read_json(body).await?, &environment).await,
            Route::Upload { path, mode } => self.upload(&path, mode, body).await,
            other => self.answer_without_body(other).await,
        }
    }

    async fn answer_without_body(&self, route: Route) -> Answer<Response<Body>> {
        let home = self.home.clone();
        match route {
            Route::List { path } => Ok(json(StatusCode::OK, &blocking(move || list(&resolve(&home, &path)?)).await?)),
            Route::Info { path } => Ok(json(StatusCode::OK, &blocking(move || info(&resolve(&home, &path)?)).await?)),
            Route::MakeFolder { path, mode } => {
                Ok(json(StatusCode::OK, &blocking(move || make_folder(&resolve(&home, &path)?, mode)).await?))
            }
            Route::Remove { path, recursive } => {
                blocking(move || remove(&resolve(&home, &path)?, recursive)).await?;
                Ok(no_content())
            }
            Route::Download { path } => {
                let download = Download::open(resolve(&home, &path)?).await?;
                let bytes =
                    steps(
                        download,
                        |mut download| async move { Ok(download.next().await?.map(|piece| (piece, download))) },
                    );
                Ok(pieces("application/octet-stream", bytes))
            }
            Route::Logs { tail } => Ok(text(facts::logs(tail))),
            Route::Shutdown => {
                self.shut_down();
                Ok(no_content())
            }
            Route::Health
            | Route::Identity
            | Route::Exec
            | Route::ExecStream
            | Route::CodeRun
            | Route::Upload { .. } => {
                Err(refuse(AgentErrorCode::Internal, "a request was answered in the wrong place"))
            }
        }
    }

    async fn exec(&self, request: ExecRequest, environment: &BTreeMap<String, String>) -> Answer<Response<Body>> {
        let command = Command::parse(request, environment, &self.home)?;
        told(self.engine.run(command).await?)
    }

    fn exec_stream(&self, request: ExecRequest, environment: &BTreeMap<String, String>) -> Answer<Response<Body>> {
        let command = Command::parse(request, environment, &self.home)?;
        let events = self.engine.stream(command)?;
        let lines = steps(events, |mut events: mpsc::Receiver<ExecEvent>| async move {
            let Some(event) = events.recv().await else { return Ok(None) };
            let mut line = serde_json::to_vec(&event).map_err(io::Error::other)?;
            line.push(b'\n');
            Ok(Some((Bytes::from(line), events)))
        });
        Ok(pieces("application/x-ndjson", lines))
    }

    async fn code_run(
        &self,
        request: CodeRunRequest,
        environment: &BTreeMap<String, String>,
    ) -> Answer<Response<Body>> {
        let command = prepare_code(request, environment, &self.home, &self.scratch)?;
        told(self.engine.run(command).await?)
    }

    async fn upload<B>(&self, path: &str, mode: Option<u32>, mut body: B) -> Answer<Response<Body>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut upload = Upload::create(resolve(&self.home, path)?, mode).await?;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| bad_request(format!("the upload broke off: {}", error.into())))?;
            if let Ok(bytes) = frame.into_data() {
                upload.write(bytes).await?;
            }
        }
        Ok(json(StatusCode::OK, &upload.finish().await?))
    }

    /// Goes down a moment later, when the answer is out.
    fn shut_down(&self) {
        let machine = Arc::clone(&self.machine);
        tokio::spawn(async move {
            tokio::time::sleep(LAST_ANSWER).await;
            // It waits for processes: not on the thread that collects them.
            let _ = tokio::task::spawn_blocking(move || machine.power_off()).await;
        });
    }
}

/// How a command ended, as an answer.
fn told(ended: Ended) -> Answer<Response<Body>> {
    match ended {
        Ended::Reply(reply) => Ok(json(StatusCode::OK, &reply)),
        Ended::TimedOut(limit) => Err(refuse(
            AgentErrorCode::Timeout,
            format!("the command passed its timeout of {} s and was killed with its process group", limit.as_secs()),
        )),
    }
}
