//! Contexts with the host's own python.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::exec::{Reaper, Scope};
use crate::limits::Bounds;

struct Lab {
    contexts: Contexts,
    engine: Engine,
    warm: Warm,
    place: Place,
    environment: BTreeMap<String, String>,
    _folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let place = Place::new(folder.path().to_owned(), path("scratch"), path("scripts")).unwrap();
        let engine = Engine::new(Reaper::start(Scope::Registered).unwrap(), Arc::new(Bounds::none()));
        let environment = BTreeMap::from([("FROM".to_owned(), "identity".to_owned())]);
        Self { contexts: Contexts::default(), engine, warm: Warm::none(), place, environment, _folder: folder }
    }

    fn means(&self) -> Means<'_> {
        Means { engine: &self.engine, warm: &self.warm, place: &self.place, environment: &self.environment }
    }

    async fn begin(&self, request: InterpreterRequest) -> mpsc::Receiver<InterpreterEvent> {
        self.contexts.execute(&self.means(), request).await.unwrap()
    }

    async fn run(&self, code: &str) -> Vec<InterpreterEvent> {
        all(self.begin(text(code)).await).await
    }

    /// What one execution prints, results in brackets, errors by name, and how it ended.
    async fn told(&self, code: &str) -> (String, InterpreterOutcome) {
        summary(self.run(code).await)
    }
}

fn text(code: &str) -> InterpreterRequest {
    InterpreterRequest { code: code.to_owned(), ..InterpreterRequest::default() }
}

async fn all(mut events: mpsc::Receiver<InterpreterEvent>) -> Vec<InterpreterEvent> {
    let mut got = Vec::new();
    while let Some(event) = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap() {
        got.push(event);
    }
    got
}

fn summary(events: Vec<InterpreterEvent>) -> (String, InterpreterOutcome) {
    let mut told = String::new();
    for event in events {
        match event {
            InterpreterEvent::Stdout { text } | InterpreterEvent::Stderr { text } => told += &text,
            InterpreterEvent::Result { text } => told += &format!("[{text}]"),
            InterpreterEvent::Error { name, value, .. } => told += &format!("{name}({value})"),
            InterpreterEvent::End { outcome, .. } => return (told, outcome),
        }
    }
    panic!("no end after {told}");
}

fn completed(text: &str) -> (String, InterpreterOutcome) {
    (text.to_owned(), InterpreterOutcome::Completed)
}

#[tokio::test]
async fn what_one_execution_defines_the_next_one_sees() {
    let lab = Lab::new();
    assert_eq!(lab.told("import os\nx = 20\nprint(os.environ['FROM'])").await, completed("identity\n"));
    assert_eq!(lab.told("def f(): return x + 1\nprint('é', end=''); f()").await, completed("é[21]"));
    assert_eq!(lab.told("None").await, completed(""));
    assert_eq!(
        lab.told("class C: pass\nimport pickle; pickle.loads(pickle.dumps(C())).__class__").await.0,
        "[<class '__main__.C'>]"
    );
    assert_eq!(
        lab.told("import subprocess; subprocess.run('echo child', shell=True).returncode").await,
        completed("child\n[0]")
    );
    let env = BTreeMap::from([("ONCE".to_owned(), "1".to_owned())]);
    let events = all(lab.begin(InterpreterRequest { env, ..text("os.environ['ONCE']") }).await).await;
    assert!(matches!(&events[1], InterpreterEvent::End { execution_count: 6, .. }), "{events:?}");
    assert_eq!(lab.told("os.environ.get('ONCE')").await, completed(""));
}

#[tokio::test]
async fn an_exception_is_told_with_its_lines_and_the_state_stays() {
    let lab = Lab::new();
    let events = lab.run("x = 1\ndef f():\n    raise ValueError('no')\nf()").await;
    let InterpreterEvent::Error { name, value, traceback } = &events[0] else { panic!("{events:?}") };
    assert_eq!((name.as_str(), value.as_str()), ("ValueError", "no"));
    assert!(traceback.contains("    raise ValueError('no')") && !traceback.contains("main-"), "{traceback}");
    assert_eq!(lab.told("x").await, completed("[1]"));
    assert_eq!(lab.told("f(").await.0, "SyntaxError('(' was never closed (<input 3>, line 1))");
    assert_eq!(lab.told("import sys; sys.exit(3)").await, completed("SystemExit(3)"));
    assert_eq!(lab.told("class R:\n    def __repr__(self): 1/0\nR()").await.0, "ZeroDivisionError(division by zero)");
    assert_eq!(lab.told("x").await, completed("[1]"));
}

#[tokio::test]
async fn an_interrupt_and_a_timeout_end_an_execution_and_not_the_context() {
    let lab = Lab::new();
    lab.told("x = 1").await;
    lab.contexts.interrupt("default").unwrap();
    assert_eq!(lab.told("x").await, completed("[1]"), "one that comes when nothing runs is for nobody");
    let mut running = lab.begin(text("import time\nprint('on', flush=True)\ntime.sleep(60)")).await;
    assert_eq!(running.recv().await, Some(InterpreterEvent::Stdout { text: "on\n".to_owned() }));
    assert!(lab.contexts.list().contexts[0].busy);
    lab.contexts.interrupt("default").unwrap();
    assert_eq!(summary(all(running).await), ("KeyboardInterrupt()".to_owned(), InterpreterOutcome::Interrupted));
    let request = InterpreterRequest { timeout_seconds: Some(3), ..text("while True: pass") };
    let events = all(lab.begin(request).await).await;
    assert_eq!(summary(events).1, InterpreterOutcome::TimedOut);
    assert_eq!(lab.told("x").await, completed("[1]"));
}

#[tokio::test]
async fn one_that_does_not_end_when_interrupted_is_killed_with_its_context() {
    let lab = Lab::new();
    // Its start takes of a timeout too.
    lab.told("import signal\nignored = signal.signal(signal.SIGINT, signal.SIG_IGN)").await;
    let stubborn = "while True: pass";
    let start = Instant::now();
    let events = all(lab.begin(InterpreterRequest { timeout_seconds: Some(1), ..text(stubborn) }).await).await;
    let (told, outcome) = summary(events);
    assert!(told.starts_with("TimeoutError(") && outcome == InterpreterOutcome::Died, "{told}");
    assert!(start.elapsed() < Duration::from_secs(30));
    assert_eq!(lab.told("1").await, completed("[1]"), "the default one is made again");
}

#[tokio::test]
async fn executions_wait_their_turn_within_their_own_timeout() {
    let lab = Lab::new();
    let go = lab.place.home.join("go");
    let waits = format!(
        "import os, time\nfor _ in range(600):\n    if os.path.exists('{}'): break\n    time.sleep(0.1)\n1",
        go.display()
    );
    let first = lab.begin(text(&waits)).await;
    let second = lab.begin(text("2")).await;
    let mut hasty = lab.begin(InterpreterRequest { timeout_seconds: Some(1), ..text("y = 3") }).await;
    // Told at once, though its events end with its turn.
    let told = tokio::time::timeout(Duration::from_secs(30), hasty.recv()).await.unwrap().unwrap();
    assert_eq!(summary(vec![told]), (String::new(), InterpreterOutcome::TimedOut));
    std::fs::write(&go, b"").unwrap();
    assert_eq!(summary(all(first).await), completed("[1]"));
    assert_eq!(summary(all(second).await), completed("[2]"));
    assert_eq!(lab.told("'y' in globals()").await, completed("[False]"), "who gave up isn't run");
    lab.begin(text("time.sleep(60)")).await;
    let mut waiting = Vec::new();
    let full = loop {
        match lab.contexts.execute(&lab.means(), text("1")).await {
            Ok(events) => waiting.push(events),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code, AgentErrorCode::Busy);
    assert!((QUEUE_MAX - 1..=QUEUE_MAX).contains(&waiting.len()));
}

#[tokio::test]
async fn contexts_are_apart_listed_by_age_and_deleted_with_what_runs() {
    let lab = Lab::new();
    let new = |cwd: &str| NewContext { language: "python".to_owned(), cwd: Some(cwd.to_owned()) };
    let one = lab.contexts.create(&lab.means(), new("/")).await.unwrap();
    let two = lab.contexts.create(&lab.means(), new("/usr")).await.unwrap();
    let ids: Vec<String> = lab.contexts.list().contexts.into_iter().map(|context| context.id).collect();
    assert_eq!(ids, [one.id.clone(), two.id.clone()]);
    let in_context = |id: &str, code: &str| InterpreterRequest { context_id: Some(id.to_owned()), ..text(code) };
    all(lab.begin(in_context(&one.id, "x = 1")).await).await;
    let events = all(lab.begin(in_context(&two.id, "import os; os.getcwd(), 'x' in globals()")).await).await;
    assert_eq!(summary(events), completed("[('/usr', False)]"));

    let running = lab.begin(in_context(&one.id, "import time; time.sleep(60)")).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    lab.contexts.delete(&one.id).unwrap();
    assert_eq!(summary(all(running).await).1, InterpreterOutcome::Died);
    assert_eq!(lab.contexts.delete(&one.id).unwrap_err().code, AgentErrorCode::NotFound);
    let events = all(lab.begin(in_context(&two.id, "os._exit(3)")).await).await;
    assert_eq!(summary(events).1, InterpreterOutcome::Died);
    assert_eq!(lab.contexts.list().contexts, []);
    let unknown = lab.contexts.execute(&lab.means(), in_context(&two.id, "1")).await;
    assert_eq!(unknown.unwrap_err().code, AgentErrorCode::NotFound);
}

#[tokio::test]
async fn what_cannot_be_a_context_is_refused() {
    let lab = Lab::new();
    for request in [
        NewContext { language: "cobol".to_owned(), cwd: None },
        NewContext { language: String::new(), cwd: Some("/no/such".to_owned()) },
    ] {
        assert_eq!(lab.contexts.create(&lab.means(), request).await.unwrap_err().code, AgentErrorCode::BadRequest);
    }
    assert!(Path::new("/").is_dir() && lab.contexts.list().contexts.is_empty());
}

#[tokio::test]
async fn output_of_one_execution_is_bounded() {
    let lab = Lab::new();
    let mut events = lab.begin(text("for _ in range(20): print('x' * (1 << 20), end='')")).await;
    let mut bytes = 0;
    while let Some(event) = events.recv().await {
        match event {
            InterpreterEvent::Stdout { text } => bytes += text.len(),
            InterpreterEvent::End { truncated, outcome, .. } => {
                assert!(truncated && outcome == InterpreterOutcome::Completed);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, 16 << 20);
}
