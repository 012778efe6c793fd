//! The requests, each answered.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use guest_proto::surface::{AgentErrorCode, CodeRunRequest, DiskSize, ExecReply, ExecRequest, Identity};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use serde::Serialize;
use tokio::sync::mpsc;

use super::body::{Body, json, no_content, pieces, read_json, refusal, steps, text};
use super::route::{Route, generation};
use crate::exec::{Command, Ended, Engine, Language, laid_out, prepare_code, stored, transpiler};
use crate::facts;
use crate::files::{Download, Upload, blocking, info, list, make_folder, remove, resolve};
use crate::identity::IdentityCell;
use crate::interpreter::{Contexts, Means};
use crate::machine::Machine;
use crate::refusal::{Answer, bad_request, refuse};
use crate::warm::{Parked, Place, Warm};

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
    /// Stateful interpreters.
    pub(crate) contexts: Contexts,
    /// Interpreters started ahead.
    pub(crate) warm: Warm,
    /// Where commands start and relative paths begin, where program texts lie while they run.
    pub(crate) place: Place,
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
                return self.take_identity(identity).await;
            }
            _ => {}
        }
        let environment = self.identity.admit(generation(&head.headers)?)?;
        match route {
            Route::Exec => self.exec(read_json(body).await?, &environment).await,
            Route::ExecStream => self.exec_stream(read_json(body).await?, &environment),
            Route::CodeRun => self.code_run(read_json(body).await?, &environment).await,
            Route::Upload { path, mode } => self.upload(&path, mode, body).await,
            Route::NewContext => {
                let request = read_json(body).await?;
                Ok(json(StatusCode::OK, &self.contexts.create(&self.means(&environment), request).await?))
            }
            Route::Execute => {
                let request = read_json(body).await?;
                Ok(lines(self.contexts.execute(&self.means(&environment), request).await?))
            }
            other => self.answer_without_body(other).await,
        }
    }

    async fn answer_without_body(&self, route: Route) -> Answer<Response<Body>> {
        let home = self.place.home.clone();
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
            Route::Contexts => Ok(json(StatusCode::OK, &self.contexts.list())),
            Route::DeleteContext { id } => {
                self.contexts.delete(&id)?;
                Ok(no_content())
            }
            Route::Interrupt { id } => {
                self.contexts.interrupt(&id)?;
                Ok(no_content())
            }
            Route::GrowDisk => {
                let machine = Arc::clone(&self.machine);
                let failed = |error: io::Error| {
                    refuse(AgentErrorCode::Internal, format!("can't grow the disk's file system: {error}"))
                };
                let bytes = blocking(move || machine.grow_disk().map_err(failed)).await?;
                Ok(json(StatusCode::OK, &DiskSize { bytes }))
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
            | Route::NewContext
            | Route::Execute
            | Route::Upload { .. } => {
                Err(refuse(AgentErrorCode::Internal, "a request was answered in the wrong place"))
            }
        }
    }

    async fn exec(&self, request: ExecRequest, environment: &BTreeMap<String, String>) -> Answer<Response<Body>> {
        let command = Command::parse(request, environment, &self.place.home)?;
        told(self.engine.run(command).await?)
    }

    fn exec_stream(&self, request: ExecRequest, environment: &BTreeMap<String, String>) -> Answer<Response<Body>> {
        let command = Command::parse(request, environment, &self.place.home)?;
        Ok(lines(self.engine.stream(command)?))
    }

    fn means<'a>(&'a self, environment: &'a BTreeMap<String, String>) -> Means<'a> {
        Means { engine: &self.engine, warm: &self.warm, place: &self.place, environment }
    }

    async fn code_run(
        &self,
        request: CodeRunRequest,
        environment: &BTreeMap<String, String>,
    ) -> Answer<Response<Body>> {
        let language = Language::parse(&request.language)?;
        let kind = language.kind();
        let Place { home, scratch, .. } = &self.place;
        let mut command = prepare_code(language, request, environment, home)?;
        if language == Language::TypeScript {
            let code = std::mem::take(&mut command.stdin);
            match self.engine.run(transpiler(&command, code)).await? {
                Ended::Reply(reply) if reply.exit_code == 0 => command.stdin = javascript(&reply)?,
                // A program that can't be read: its errors are the answer.
                ended => return told(ended.merged(command.limits.merge)),
            }
        }
        let parked = self.warm.take_for(&self.place, kind, &command).await;
        if language == Language::Python {
            command = stored(command, parked.as_ref().and_then(Parked::program), scratch)?;
        }
        let ended = self.engine.run_in(parked, command).await;
        self.warm.refill(kind);
        told(ended?)
    }

    /// A rehearsal waits for the interpreters that it exercises, and that its clones find parked.
    async fn take_identity(&self, identity: Identity) -> Answer<Response<Body>> {
        if identity.rehearsal {
            self.warm.parked().await;
        }
        let ack = self.identity.apply(&*self.machine, &|| self.warm.renew(), identity)?;
        Ok(json(StatusCode::OK, &ack))
    }

    async fn upload<B>(&self, path: &str, mode: Option<u32>, mut body: B) -> Answer<Response<Body>>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut upload = Upload::create(resolve(&self.place.home, path)?, mode).await?;
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

/// Events as they come, each a line of JSON.
fn lines<T: Serialize + Send + 'static>(events: mpsc::Receiver<T>) -> Response<Body> {
    let lines = steps(events, |mut events: mpsc::Receiver<T>| async move {
        let Some(event) = events.recv().await else { return Ok(None) };
        let mut line = serde_json::to_vec(&event).map_err(io::Error::other)?;
        line.push(b'\n');
        Ok(Some((Bytes::from(line), events)))
    });
    pieces("application/x-ndjson", lines)
}

/// A transpiler's output as a program.
fn javascript(reply: &ExecReply) -> Answer<Vec<u8>> {
    let output = STANDARD.decode(&reply.stdout).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match output {
        Some(output) if !reply.truncated => Ok(laid_out(&output).into_bytes()),
        _ => Err(refuse(AgentErrorCode::TooLarge, "the program without its types is too large")),
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
