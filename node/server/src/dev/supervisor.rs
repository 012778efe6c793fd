//! Starts the nodes, starts the dead again, says when the mesh is ready, and ends all on Ctrl-C or SIGTERM.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use node_hypervisor::atomic_files;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::layout::{Layout, Member};
use super::lock::Lock;
use super::process::config_file;
use super::record::Record;
use super::say::{self, Step};
use super::{host, prepare, teardown};
use crate::args::DevStartArgs;
use crate::engine::SealChoice;
use crate::image;
use crate::node::status::Status;

/// The wait before a dead node is started again: at first, and at most.
const RESTART_FIRST: Duration = Duration::from_secs(1);
const RESTART_MOST: Duration = Duration::from_secs(30);
/// A node that lived so long starts again with the first wait.
const RESTART_FORGET: Duration = Duration::from_secs(60);
/// A node that ends so often before the mesh has ever been ready won't be helped by another start.
const DEATHS_BEFORE_READY_MAX: u32 = 3;
/// How often statuses are read and processes looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often a person who waits hears what is being waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// A node as the supervisor has it.
struct Supervised {
    member: Member,
    seal: SealChoice,
    child: Option<Child>,
    started: Instant,
    wait: Duration,
    start_at: Option<Instant>,
    deaths: u32,
}

/// Runs the mesh until it is told to end. The lock is held all the while.
pub(crate) async fn run(args: DevStartArgs, lock: Lock) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("can't listen for SIGTERM")?;
    let layout = Layout::new(&args.data, &args.regions, args.nodes_per_region, args.port_base)?;
    atomic_files::remove_file(&layout.env_file())?;
    let record = Record::load_or_make(&args.data, &args.regions, args.nodes_per_region)?;
    let image = image_folder(&args, &mut interrupt, &mut terminate).await?;
    teardown::end_nodes(&layout);
    ports_are_free(&layout)?;
    let limits = host::share(&args.data, layout.members.len())?;
    prepare::all(&layout, &record, &args, &image, limits)?;
    let mut nodes: Vec<Supervised> =
        layout.members.iter().map(|member| Supervised::new(member, args.engine.seal)).collect();
    for node in &mut nodes {
        node.start()?;
    }
    let outcome = watch(&layout, &record, &mut nodes, &mut interrupt, &mut terminate).await;
    let step = Step::begin("stopping: deleting sandboxes, ending nodes");
    // The children are ended by pid like those of a supervisor that was killed, so that there is one way to end a mesh;
    // each is reaped as it ends.
    let reapers: Vec<_> = nodes.into_iter().filter_map(|node| node.child).map(reap).collect();
    let run = record.run.clone();
    let ended =
        tokio::task::spawn_blocking(move || teardown::all(&layout, &run)).await.context("the teardown panicked")?;
    futures::future::join_all(reapers).await;
    drop(lock);
    ended?;
    step.done();
    outcome
}

/// Says at once which port is taken, rather than letting each node fail on it again and again.
fn ports_are_free(layout: &Layout) -> anyhow::Result<()> {
    for member in &layout.members {
        let taken = |kind: &str, address: std::net::SocketAddr| {
            format!(
                "{kind} {address}, which {} needs, is in use; end what uses it or choose another --port-base",
                member.id
            )
        };
        std::net::TcpListener::bind(member.http).with_context(|| taken("TCP", member.http))?;
        std::net::UdpSocket::bind(member.fabric).with_context(|| taken("UDP", member.fabric))?;
    }
    Ok(())
}

/// Waits for a node that is being ended elsewhere.
fn reap(mut child: Child) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "can't wait for a node's process");
        }
    })
}

/// The image to run, built in a thread of its own if it is missing; Ctrl-C meanwhile ends the program.
async fn image_folder(args: &DevStartArgs, interrupt: &mut Signal, terminate: &mut Signal) -> anyhow::Result<PathBuf> {
    let asked = args.image.clone();
    let building = tokio::task::spawn_blocking(move || image::find_or_build(asked.as_deref()));
    tokio::select! {
        built = building => built.context("the image's builder panicked")?,
        _ = interrupt.recv() => anyhow::bail!("stopped while the guest image was being built"),
        _ = terminate.recv() => anyhow::bail!("stopped while the guest image was being built"),
    }
}

/// The supervisor's loop: `Ok` when it was told to end.
async fn watch(
    layout: &Layout,
    record: &Record,
    nodes: &mut [Supervised],
    interrupt: &mut Signal,
    terminate: &mut Signal,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut said_at = Instant::now();
    let mut said = String::new();
    let mut ready = false;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = tick.tick() => {}
        }
        for node in nodes.iter_mut() {
            node.keep_alive()?;
        }
        if ready {
            continue;
        }
        if let Some(node) = nodes.iter().find(|node| node.deaths >= DEATHS_BEFORE_READY_MAX) {
            let log = node.member.folder.join("log");
            anyhow::bail!(
                "{} has ended {} times before the mesh was ready; its log is {}, its last words: {}",
                node.member.id,
                node.deaths,
                log.display(),
                say::last_line(&log).unwrap_or_default()
            );
        }
        let waiting = waiting_for(layout);
        if waiting.is_empty() {
            ready = true;
            atomic_files::replace(&layout.env_file(), environment(layout, record).as_bytes(), 0o600)?;
            say::result(&welcome(layout, record, began.elapsed()));
        } else if said_at.elapsed() >= SAY_EVERY || said.is_empty() {
            let text = waiting.join("; ");
            if text != said {
                say::line(&text);
            }
            said = text;
            said_at = Instant::now();
        }
    }
}

/// What each node that isn't ready is doing.
fn waiting_for(layout: &Layout) -> Vec<String> {
    let total = layout.members.len();
    let mut waiting = Vec::new();
    for member in &layout.members {
        match Status::load(&member.folder) {
            Some(status) if status.is_ready(total) => {}
            Some(status) => waiting.push(format!(
                "{}: {} ({} of {total} nodes seen, {} of {} warm)",
                member.id,
                status.doing,
                status.live.len(),
                status.warm,
                status.target
            )),
            None => waiting.push(format!("{}: starting", member.id)),
        }
    }
    waiting
}

/// The lines of `DIR/env`.
fn environment(layout: &Layout, record: &Record) -> String {
    let urls: Vec<(String, String)> =
        layout.regions.iter().map(|code| (code.to_string(), Layout::url(layout.endpoint(code)))).collect();
    let endpoints: Vec<String> = urls.iter().map(|(code, url)| format!("{code}={url}")).collect();
    let first = urls.first().map(|(_, url)| url.as_str()).unwrap_or_default();
    let key = &record.api_key;
    format!(
        "export DAYTONA_API_URL={first}/api\nexport DAYTONA_API_KEY={key}\nexport ATOLL_ENDPOINTS={}\nexport ATOLL_API_KEY={key}\n",
        endpoints.join(",")
    )
}

fn welcome(layout: &Layout, record: &Record, took: Duration) -> String {
    use std::fmt::Write as _;

    let mut text = format!("\nThe mesh is ready ({:.1} s).\n\n", took.as_secs_f64());
    for code in &layout.regions {
        let name = regions::builtin(code).map_or_else(|| code.to_string(), |descriptor| descriptor.name.clone());
        let _ = writeln!(text, "  {code}  {}   {name}", Layout::url(layout.endpoint(code)));
    }
    let status = layout.members.first().and_then(|member| Status::load(&member.folder)).unwrap_or_default();
    let program = std::env::args().next().unwrap_or_else(|| "atoll".to_owned());
    let env_file = layout.env_file();
    let _ = write!(
        text,
        "\n  API key    {}\n  variables  {}\n  isolation  {} (why: atoll status)\n  network    {}\n\nTry, in another terminal:\n\n  \
         source {}\n  {program} run -c 'print(\"Hello World!\")'\n  {program} create --region {} --name box\n  \
         {program} exec box -- uname -a\n\nCtrl-C deletes the sandboxes and stops the mesh.",
        record.api_key,
        env_file.display(),
        status.isolation.as_deref().unwrap_or("unknown"),
        network(status.network.as_deref()),
        env_file.display(),
        layout.regions.last().map_or("fra", |code| code.as_str()),
    );
    text
}

/// What guests reach, for a person.
fn network(kind: Option<&str>) -> &'static str {
    match kind {
        Some("tap") => "guests reach public addresses through the node's packet filter",
        Some("passt") => {
            "guests reach what this machine reaches, through passt, which filters nothing: a guest that forges a frame reaches this machine's loopback"
        }
        Some("none") => "guests reach no network (why: atoll status)",
        Some(_) | None => "unknown",
    }
}

impl Supervised {
    fn new(member: &Member, seal: SealChoice) -> Self {
        Self {
            member: member.clone(),
            seal,
            child: None,
            started: Instant::now(),
            wait: RESTART_FIRST,
            start_at: None,
            deaths: 0,
        }
    }

    /// Starts the process, with its output in the folder's log, and writes its pid.
    fn start(&mut self) -> anyhow::Result<()> {
        let folder = &self.member.folder;
        atomic_files::remove_file(&folder.join("status.json"))?;
        let log_path = folder.join("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("can't write {}", log_path.display()))?;
        let mut command = Command::new(super::this_program()?);
        if self.seal == SealChoice::Required {
            // Keepers read it from the node that starts them: no machine starts without a part that the trial found.
            command.env("ATOLL_SEAL", "required");
        }
        let child = command
            .arg("node")
            .arg("--config")
            .arg(config_file(folder))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("can't share a node's log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start the node {}", self.member.id))?;
        let pid = child.id().context("a node ended before its pid was known")?;
        atomic_files::replace(&folder.join("pid"), format!("{pid}\n").as_bytes(), 0o644)?;
        self.child = Some(child);
        self.started = Instant::now();
        self.start_at = None;
        Ok(())
    }

    /// Notices that the process has ended, and starts it again when its wait is over.
    fn keep_alive(&mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().context("can't wait for a node's process")?
        {
            if self.started.elapsed() >= RESTART_FORGET {
                self.wait = RESTART_FIRST;
            }
            let log = self.member.folder.join("log");
            let words = say::last_line(&log).unwrap_or_default();
            say::line(&format!(
                "{} has ended ({status}); starting it again in {} s; its log is {}, its last words: {words}",
                self.member.id,
                self.wait.as_secs(),
                log.display()
            ));
            self.child = None;
            self.deaths += 1;
            self.start_at = Some(Instant::now() + self.wait);
            self.wait = (self.wait * 2).min(RESTART_MOST);
        }
        if self.start_at.is_some_and(|at| Instant::now() >= at) {
            self.start()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_holds_what_clients_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let codes: Vec<_> = ["fra", "iad"].iter().map(|code| code.parse().expect("a code")).collect();
        let layout = Layout::new(folder.path(), &codes, 1, 7080).expect("a layout");
        let record = Record::load_or_make(folder.path(), &codes, 1).expect("a record");
        let text = environment(&layout, &record);
        let key = &record.api_key;
        assert_eq!(
            text,
            format!(
                "export DAYTONA_API_URL=http://127.0.0.1:7080/api\nexport DAYTONA_API_KEY={key}\n\
                 export ATOLL_ENDPOINTS=fra=http://127.0.0.1:7080,iad=http://127.0.0.1:7081\nexport ATOLL_API_KEY={key}\n"
            )
        );
    }
}
