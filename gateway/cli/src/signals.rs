//! Ctrl-C and SIGTERM as values, so that what was begun can be undone first.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for both from its making on.
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    /// Where the system refuses a handler, its default (to end the process) stays in force.
    pub(crate) fn listen() -> Self {
        Self { interrupt: signal(SignalKind::interrupt()).ok(), terminate: signal(SignalKind::terminate()).ok() }
    }

    /// The exit code that the next signal asks for: 130 or 143. Cancel safe.
    pub(crate) async fn next(&mut self) -> u8 {
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        let kind = tokio::select! {
            () = heard(&mut self.interrupt) => interrupt,
            () = heard(&mut self.terminate) => terminate,
        };
        128 + kind.as_raw_value() as u8
    }
}

async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
