//! What each command does, by the SDK alone.

mod code;
mod contexts;
mod copy;
mod exec;
mod keys;
mod mesh;
mod sandboxes;
mod settings;
mod snapshots;
mod usage;

use std::collections::BTreeMap;
use std::time::Duration;

use gateway_sdk::{Client, Overrides, Settings};

use crate::args::{ClientCommand, GlobalArgs, KeyValue};
use crate::exit::Failure;
use crate::output::{Output, Streams};
use crate::signals::Signals;

/// Runs a command on this process's streams and answers its exit code.
pub async fn run(command: ClientCommand, global: GlobalArgs) -> u8 {
    run_with(command, global, Streams::standard()).await
}

/// The same on other streams.
pub async fn run_with(command: ClientCommand, global: GlobalArgs, streams: Streams) -> u8 {
    let mut output = Output::new(streams, global.json);
    let mut signals = Signals::listen();
    let done = match connect(&global) {
        Ok(client) => dispatch(command, &client, &mut output, &mut signals).await,
        Err(failure) => Err(failure),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}

fn connect(global: &GlobalArgs) -> Result<Client, Failure> {
    let overrides = Overrides { endpoint: global.endpoint.clone(), api_key: global.api_key.clone() };
    Ok(Client::with(Settings::discover(overrides)?)?)
}

async fn dispatch(
    command: ClientCommand,
    client: &Client,
    output: &mut Output,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    // `run` has a sandbox to delete when it is interrupted; all others just end.
    if let ClientCommand::Run(args) = command {
        return Box::pin(code::run(args, client, output, signals)).await;
    }
    tokio::select! {
        done = Box::pin(perform(command, client, output)) => done,
        code = signals.next() => Ok(code),
    }
}

async fn perform(command: ClientCommand, client: &Client, output: &mut Output) -> Result<u8, Failure> {
    match command {
        ClientCommand::Create(args) => sandboxes::create(args, client, output).await,
        ClientCommand::Ls(args) => sandboxes::list(args, client, output).await,
        ClientCommand::Usage(args) => usage::usage(args, client, output).await,
        ClientCommand::Info(args) => sandboxes::info(args, client, output).await,
        ClientCommand::Rm(args) => sandboxes::remove(args, client, output).await,
        ClientCommand::Start(args) => sandboxes::start(args, client, output).await,
        ClientCommand::Stop(args) => sandboxes::stop(args, client, output).await,
        ClientCommand::Pause(args) => sandboxes::pause(args, client, output).await,
        ClientCommand::Resume(args) => sandboxes::resume(args, client, output).await,
        ClientCommand::Archive(args) => sandboxes::archive(args, client, output).await,
        ClientCommand::Fork(args) => sandboxes::fork(args, client, output).await,
        ClientCommand::Resize(args) => settings::resize(args, client, output).await,
        ClientCommand::Network(args) => settings::network(args, client, output).await,
        ClientCommand::Intervals(args) => settings::intervals(args, client, output).await,
        ClientCommand::Code(args) => contexts::code(args, client, output).await,
        ClientCommand::Logs(args) => sandboxes::logs(args, client, output).await,
        ClientCommand::Exec(args) => exec::exec(args, client, output).await,
        ClientCommand::Cp(args) => copy::copy(args, client, output).await,
        ClientCommand::Snapshot(args) => snapshots::snapshot(args, client, output).await,
        ClientCommand::Restore(args) => snapshots::restore(args, client, output).await,
        ClientCommand::Key(args) => keys::key(args, client, output).await,
        ClientCommand::Status => mesh::status(client, output).await,
        ClientCommand::Regions => mesh::regions(client, output).await,
        ClientCommand::Run(_) => unreachable!("dispatch took it"),
    }
}

/// The client with the wait that was asked for.
fn patient(client: &Client, timeout_seconds: Option<u32>) -> Client {
    match timeout_seconds {
        Some(seconds) => client.clone().with_timeout(Duration::from_secs(seconds.into())),
        None => client.clone(),
    }
}

/// Pairs as a map; of two with the same key the later one wins, as in a shell.
fn map(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    pairs.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

/// Labels as text.
fn shown(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}
