//! Pause, resume, fork, kill and delete in random order, against a model of what each sandbox must say afterwards.
//!
//! A sandbox's memory is a number in a shell variable of a process that runs in it; each `bump` adds one and answers it.
//! The model knows the number: a fork has its parent's, and both go on alone.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use gateway_sdk::{Client, ClientError, v1};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tests_harness::{Mesh, Signal, eventually};

use super::churn::{REGION, at_rest, keeper_of};
use super::level::Level;
use crate::Sandbox;

/// Sandboxes at once: forks beyond it are deletes.
const LIVING_MAX: usize = 6;
/// A killed machine is noticed, a busy one answers.
const SETTLE: Duration = Duration::from_secs(60);
/// The process that remembers: it reads a line from one pipe, adds one, and writes the number to the other.
const REMEMBER: &str = "mkfifo /root/in /root/out; nohup setsid sh -c 'n=0; exec 3<>/root/in 4<>/root/out; \
    while read line <&3; do n=$((n+1)); echo $n >&4; done' >/dev/null 2>&1 & sleep 0.1";
const BUMP: &str = "echo x > /root/in; head -n 1 < /root/out";

/// How long, and where chance begins.
#[derive(Debug, Clone, Copy)]
pub struct DanceOptions {
    /// Steps.
    pub steps: u32,
    /// The same seed makes the same steps.
    pub seed: u64,
}

/// How often each step was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dance {
    /// Creates.
    pub created: u32,
    /// Numbers asked for, each of them right.
    pub bumped: u32,
    /// Pauses.
    pub paused: u32,
    /// Resumes by name.
    pub resumed: u32,
    /// Resumes by a request to a paused sandbox.
    pub woken: u32,
    /// Forks.
    pub forked: u32,
    /// Keepers killed.
    pub killed: u32,
    /// Deletes.
    pub deleted: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Failed,
}

#[derive(Debug, Clone)]
struct Model {
    id: String,
    state: State,
    number: u64,
}

impl Dance {
    /// Dances on a mesh of one node of one region, with a full pool.
    ///
    /// # Errors
    /// Whatever should have held and didn't, with the step at which it was seen.
    pub fn run(mesh: &Mesh, options: DanceOptions) -> anyhow::Result<Self> {
        let client = mesh.client_of(REGION)?;
        let mut chance = StdRng::seed_from_u64(options.seed);
        let mut seen = Self::default();
        at_rest(mesh, &client)?;
        let warm_up = seen.create(mesh, &client)?;
        mesh.wait(client.delete(&warm_up.id))?;
        at_rest(mesh, &client)?;
        let before = Level::of(mesh)?;
        let mut living: Vec<Model> = Vec::new();
        for number in 0..options.steps {
            seen.step(mesh, &client, &mut living, &mut chance)
                .with_context(|| format!("step {number} of seed {}: {living:?}", options.seed))?;
        }
        for model in living {
            mesh.wait(client.delete(&model.id))?;
        }
        at_rest(mesh, &client)?;
        eventually("the mesh uses what it used before", SETTLE, || Level::of(mesh)?.is_back_to(&before))?;
        Ok(seen)
    }

    fn step(
        &mut self,
        mesh: &Mesh,
        client: &Client,
        living: &mut Vec<Model>,
        chance: &mut StdRng,
    ) -> anyhow::Result<()> {
        if living.len() < 2 {
            living.push(self.create(mesh, client)?);
            return Ok(());
        }
        let at = chance.random_range(0..living.len());
        let state = living[at].state;
        match (chance.random_range(0..100), state) {
            (_, State::Failed) | (90.., _) => self.delete(mesh, client, living, at),
            (86..90, _) => self.kill(mesh, client, &mut living[at]),
            (70..86, _) if living.len() < LIVING_MAX => self.fork(mesh, client, living, at),
            (35..60, State::Running) => {
                mesh.wait(client.pause(&living[at].id))?;
                living[at].state = State::Paused;
                self.paused += 1;
                Ok(())
            }
            (0..60, State::Paused) => {
                mesh.wait(client.resume(&living[at].id))?;
                living[at].state = State::Running;
                self.resumed += 1;
                Ok(())
            }
            (_, State::Running | State::Paused) => self.bump(mesh, client, &mut living[at]),
        }
    }

    fn create(&mut self, mesh: &Mesh, client: &Client) -> anyhow::Result<Model> {
        let sandbox = mesh.wait(client.create(&v1::CreateSandbox::default()))?;
        say(mesh, client, &sandbox.id, REMEMBER)?;
        self.created += 1;
        Ok(Model { id: sandbox.id, state: State::Running, number: 0 })
    }

    /// A request wakes a paused one.
    fn bump(&mut self, mesh: &Mesh, client: &Client, model: &mut Model) -> anyhow::Result<()> {
        let said = say(mesh, client, &model.id, BUMP)?;
        model.number += 1;
        ensure!(said.trim() == model.number.to_string(), "{} said {said:?}", model.id);
        if model.state == State::Paused {
            model.state = State::Running;
            self.woken += 1;
        }
        self.bumped += 1;
        Ok(())
    }

    fn fork(&mut self, mesh: &Mesh, client: &Client, living: &mut Vec<Model>, at: usize) -> anyhow::Result<()> {
        let ask = v1::Fork { count: Some(1), names: Vec::new() };
        let forked = mesh.wait(client.fork(&living[at].id, &ask))?;
        let child = forked.items.first().context("a child")?;
        ensure!(child.state == "started", "the child is {}", child.state);
        living.push(Model { id: child.id.clone(), state: State::Running, number: living[at].number });
        self.forked += 1;
        // Both go on alone.
        let last = living.len() - 1;
        self.bump(mesh, client, &mut living[last])?;
        self.bump(mesh, client, &mut living[at])
    }

    fn kill(&mut self, mesh: &Mesh, client: &Client, model: &mut Model) -> anyhow::Result<()> {
        let keeper = keeper_of(mesh, &Sandbox { id: model.id.clone(), region: REGION.to_owned() })?;
        keeper.signal(Signal::SIGKILL);
        eventually("a killed machine is told as failed", SETTLE, || {
            let state = mesh.wait(client.sandbox(&model.id))?.state;
            ensure!(state == "error", "{} is {state}", model.id);
            Ok(())
        })?;
        model.state = State::Failed;
        self.killed += 1;
        Ok(())
    }

    fn delete(&mut self, mesh: &Mesh, client: &Client, living: &mut Vec<Model>, at: usize) -> anyhow::Result<()> {
        let model = living.remove(at);
        mesh.wait(client.delete(&model.id))?;
        let gone = mesh.wait(client.sandbox(&model.id));
        ensure!(gone.as_ref().is_err_and(ClientError::is_not_found), "{} is still there: {gone:?}", model.id);
        self.deleted += 1;
        Ok(())
    }
}

fn say(mesh: &Mesh, client: &Client, sandbox: &str, command: &str) -> anyhow::Result<String> {
    let ask = v1::Exec { command: Some(command.to_owned()), timeout_seconds: Some(20), ..v1::Exec::default() };
    let result = mesh.wait(client.exec(sandbox, &ask))?;
    ensure!(result.exit_code == 0, "`{command}` ended with {}: {}", result.exit_code, result.stderr);
    Ok(result.stdout)
}
