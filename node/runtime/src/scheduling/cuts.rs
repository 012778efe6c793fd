//! The node is killed at every step of every verb, and the next start repairs what that left.
//!
//! A verb is begun on a node of its own and cut off after none of its steps, after one, after two, until it gets through.
//! Each time the next process of the node must find the sandbox where it was or where it was going, with its memory where it
//! had one, and must be able to carry the verb out, and to leave nothing behind.

use std::pin::Pin;
use std::sync::atomic::AtomicUsize;

use tokio::runtime::{Builder, Runtime as Tokio};

use super::life::{child, memory, remember};
use super::*;
use crate::cut;

/// More steps than any verb has.
const STEPS_MAX: u32 = 200;

type Work<'a> = Pin<Box<dyn Future<Output = Result<(), RuntimeError>> + 'a>>;

/// A verb in a situation.
struct Case {
    name: &'static str,
    /// Whether what is paused goes to disk at once.
    swaps: bool,
    /// Whether machines can be copied, and the template has its checkpoint.
    copies: bool,
    /// Sandboxes that exist before, by number, and what is done to each.
    before: &'static [(u8, &'static [Verb])],
    verb: fn(&Runtime) -> Work<'_>,
    /// Phases in which sandboxes may be found afterwards.
    found: &'static [(u8, &'static [&'static str])],
    /// Sandboxes that are running or paused before and after, so that their memory must be what it was.
    keep: &'static [u8],
    /// Phases when the verb has been carried out.
    after: &'static [(u8, &'static str)],
}

fn act(runtime: &Runtime, verb: Verb) -> Work<'_> {
    Box::pin(async move { runtime.act(&spec(1).id, ONE, verb).await.map(drop) })
}

const STOP: Verb = Verb::Stop { force: true };

const CASES: &[Case] = &[
    Case {
        name: "create",
        swaps: false,
        copies: false,
        before: &[],
        verb: |runtime| Box::pin(async move { runtime.run(request(1)).await.map(drop) }),
        found: &[(1, &["absent", "running"])],
        keep: &[],
        after: &[(1, "running")],
    },
    Case {
        name: "create, as a copy",
        swaps: false,
        copies: true,
        before: &[],
        verb: |runtime| Box::pin(async move { runtime.run(request(1)).await.map(drop) }),
        found: &[(1, &["absent", "running"])],
        keep: &[],
        after: &[(1, "running")],
    },
    Case {
        name: "pause",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| act(runtime, Verb::Pause),
        found: &[(1, &["running", "paused"])],
        keep: &[1],
        after: &[(1, "paused")],
    },
    Case {
        name: "resume",
        swaps: false,
        copies: false,
        before: &[(1, &[Verb::Pause])],
        verb: |runtime| act(runtime, Verb::Resume),
        found: &[(1, &["running", "paused"])],
        keep: &[1],
        after: &[(1, "running")],
    },
    Case {
        name: "pause, and to disk",
        swaps: true,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| {
            Box::pin(async move {
                runtime.act(&spec(1).id, ONE, Verb::Pause).await?;
                // Answered when it is on disk: one request at a time.
                runtime.act(&spec(1).id, ONE, Verb::Pause).await.map(drop)
            })
        },
        found: &[(1, &["running", "paused"])],
        keep: &[1],
        after: &[(1, "paused")],
    },
    Case {
        name: "resume from disk",
        swaps: true,
        copies: false,
        before: &[(1, &[Verb::Pause])],
        verb: |runtime| act(runtime, Verb::Resume),
        found: &[(1, &["running", "paused"])],
        keep: &[1],
        after: &[(1, "running")],
    },
    Case {
        name: "stop",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| act(runtime, Verb::Stop { force: false }),
        found: &[(1, &["running", "stopped"])],
        keep: &[],
        after: &[(1, "stopped")],
    },
    Case {
        name: "stop from disk",
        swaps: true,
        copies: false,
        before: &[(1, &[Verb::Pause])],
        verb: |runtime| act(runtime, STOP),
        found: &[(1, &["paused", "stopped"])],
        keep: &[],
        after: &[(1, "stopped")],
    },
    Case {
        name: "start",
        swaps: false,
        copies: false,
        before: &[(1, &[STOP])],
        verb: |runtime| act(runtime, Verb::Start),
        found: &[(1, &["running", "stopped"])],
        keep: &[],
        after: &[(1, "running")],
    },
    Case {
        name: "archive",
        swaps: false,
        copies: false,
        before: &[(1, &[STOP])],
        verb: |runtime| act(runtime, Verb::Archive),
        found: &[(1, &["stopped", "archived"])],
        keep: &[],
        after: &[(1, "archived")],
    },
    Case {
        name: "start from the archive",
        swaps: false,
        copies: false,
        before: &[(1, &[STOP, Verb::Archive])],
        verb: |runtime| act(runtime, Verb::Start),
        found: &[(1, &["archived", "stopped", "running"])],
        keep: &[],
        after: &[(1, "running")],
    },
    Case {
        name: "fork",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| Box::pin(fork(runtime)),
        found: &[(1, &["running"]), (2, &["absent", "running"])],
        keep: &[1],
        after: &[(1, "running"), (2, "running")],
    },
    Case {
        name: "fork, as copies",
        swaps: false,
        copies: true,
        before: &[(1, &[])],
        verb: |runtime| Box::pin(fork(runtime)),
        found: &[(1, &["running"]), (2, &["absent", "running"])],
        keep: &[1],
        after: &[(1, "running"), (2, "running")],
    },
    Case {
        name: "fork from disk",
        swaps: true,
        copies: false,
        before: &[(1, &[Verb::Pause])],
        verb: |runtime| Box::pin(fork(runtime)),
        found: &[(1, &["paused"]), (2, &["absent", "running"])],
        keep: &[1],
        after: &[(1, "paused"), (2, "running")],
    },
    Case {
        name: "snapshot",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| {
            Box::pin(async move {
                let id = "snap-aaaaaaaaaaaaaaaa".parse().expect("a snapshot id");
                runtime.snapshot(&spec(1).id, ONE, id).await.map(drop)
            })
        },
        found: &[(1, &["running"])],
        keep: &[1],
        after: &[(1, "running")],
    },
    Case {
        name: "grow",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| Box::pin(grow(runtime)),
        found: &[(1, &["running"])],
        keep: &[1],
        after: &[(1, "running")],
    },
    Case {
        name: "grow, stopped",
        swaps: false,
        copies: false,
        before: &[(1, &[STOP])],
        verb: |runtime| Box::pin(grow(runtime)),
        found: &[(1, &["stopped"])],
        keep: &[],
        after: &[(1, "stopped")],
    },
    Case {
        name: "delete",
        swaps: false,
        copies: false,
        before: &[(1, &[])],
        verb: |runtime| act(runtime, Verb::Delete),
        found: &[(1, &["absent", "running"])],
        keep: &[],
        after: &[(1, "absent")],
    },
    Case {
        name: "delete from disk",
        swaps: true,
        copies: false,
        before: &[(1, &[Verb::Pause])],
        verb: |runtime| act(runtime, Verb::Delete),
        found: &[(1, &["absent", "paused"])],
        keep: &[],
        after: &[(1, "absent")],
    },
    Case {
        name: "delete from the archive",
        swaps: false,
        copies: false,
        before: &[(1, &[STOP, Verb::Archive])],
        verb: |runtime| act(runtime, Verb::Delete),
        found: &[(1, &["absent", "archived"])],
        keep: &[],
        after: &[(1, "absent")],
    },
];

async fn fork(runtime: &Runtime) -> Result<(), RuntimeError> {
    let outcome = runtime.fork(&spec(1).id, ONE, vec![child(2, 1)]).await?;
    outcome.children.into_iter().next().expect("one was asked for").map(drop)
}

async fn grow(runtime: &Runtime) -> Result<(), RuntimeError> {
    let mut larger = spec(1);
    larger.shape = Shape::new(1, 1024, 4).expect("a shape");
    runtime.update(larger, ONE).await.map(drop)
}

/// A process of the node: its tasks end where they stand when it is dropped.
struct Process(Option<Tokio>);

impl Process {
    fn new() -> Self {
        Self(Some(Builder::new_current_thread().enable_all().build().expect("a tokio runtime")))
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it runs").block_on(work)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What has begun to write ends its write, as a kernel would.
        self.0.take().expect("it runs").shutdown_timeout(LIMIT);
    }
}

fn phase(runtime: &Runtime, number: u8) -> String {
    let observed = runtime.observed();
    let all = observed.borrow();
    all.get(&spec(number).id).map_or("absent", |seen| seen.phase.as_str()).to_owned()
}

impl Case {
    /// Whether the verb got through before it was cut off.
    fn cut_after(&self, steps: u32) -> bool {
        let what = format!("{}, cut after {steps} steps", self.name);
        let first = Process::new();
        let (node, done) = first.block_on(async {
            let mut node = Node::new().await;
            node.swap_after = self.swaps.then_some(Duration::ZERO);
            if self.copies {
                node.copies();
            }
            let runtime = node.start(0).await;
            // Another sandbox makes the template: its boot is cut in tests of its own.
            runtime.run(request(9)).await.expect("run");
            runtime.act(&spec(9).id, ONE, Verb::Delete).await.expect("deleted");
            if self.copies {
                node.leave_checkpoints();
            }
            for (number, verbs) in self.before {
                runtime.run(request(*number)).await.expect("run");
                remember(&node, *number, "kept");
                for verb in *verbs {
                    runtime.act(&spec(*number).id, ONE, *verb).await.expect("done");
                }
                if self.swaps && *verbs == [Verb::Pause] {
                    runtime.act(&spec(*number).id, ONE, Verb::Pause).await.expect("it is on disk now");
                }
            }
            cut::after(steps);
            let done = tokio::select! {
                biased;
                done = (self.verb)(&runtime) => Some(done),
                () = cut::reached() => None,
            };
            (node, done)
        });
        if let Some(done) = &done {
            assert!(done.is_ok(), "{what}: {done:?}");
        }
        drop(first);
        cut::never();
        self.repaired(&node, &what);
        done.is_some()
    }

    /// The next process of the node finds what it may find, and goes on.
    fn repaired(&self, node: &Node, what: &str) {
        Process::new().block_on(async {
            let runtime = node.start(0).await;
            for (number, phases) in self.found {
                let found = phase(&runtime, *number);
                assert!(phases.contains(&found.as_str()), "{what}: {number} is {found}");
            }
            let machines = node.driver.living().len();
            let with_machine = runtime.observed().borrow().values().filter(|seen| seen.phase.has_machine()).count();
            assert!(machines <= with_machine, "{what}: {machines} machines of {with_machine} sandboxes");
            let snapshots = super::life::files(&node.root.path().join("node/snapshots"));
            assert!(snapshots.is_empty(), "{what}: {snapshots:?}");

            let seen = runtime.observed().borrow().clone();
            for (id, _) in seen.iter().filter(|(_, seen)| seen.phase == Phase::Running) {
                assert!(node.driver.of(id.as_str()).is_some(), "{what}: {id} runs as someone else");
            }

            let again = (self.verb)(&runtime).await;
            assert!(again.is_ok(), "{what}, again: {again:?}");
            for (number, wanted) in self.after {
                assert_eq!(phase(&runtime, *number), *wanted, "{what}, again");
            }
            for number in self.keep {
                if phase(&runtime, *number) == "paused" {
                    runtime.act(&spec(*number).id, ONE, Verb::Resume).await.expect("resumed");
                }
                assert_eq!(memory(node, *number), "kept", "{what}");
            }
            runtime.destroy_all(LIMIT).await;
            assert!(node.left().is_empty(), "{what}: {:?}", node.left());
            assert!(node.driver.living().is_empty(), "{what}");
            assert!(runtime.archives().is_empty(), "{what}");
        });
    }
}

/// Cases at a time: they wait for their disk most of the time.
const AT_ONCE: usize = 6;

#[test]
fn every_verb_survives_a_kill_at_every_step() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let through = (0..STEPS_MAX).find(|steps| case.cut_after(*steps));
            let steps = through.unwrap_or_else(|| panic!("{} never got through", case.name));
            println!("{}: {steps} steps", case.name);
            assert!(steps > 0, "{}: nothing was cut", case.name);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
}
