//! A spinner on a terminal while something is waited for; nothing anywhere else.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Until the spinner shows: most answers come sooner, and a flash of it is noise.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often it turns.
const TICK: Duration = Duration::from_millis(100);

/// What is being waited for. Dropping it clears its line.
pub(crate) struct Waiting {
    bar: ProgressBar,
    turning: Option<tokio::task::JoinHandle<()>>,
}

impl Waiting {
    /// Says what is waited for, after a moment, on a terminal alone.
    pub(crate) fn start(interactive: bool, what: impl Into<String>) -> Self {
        if !interactive {
            return Self { bar: ProgressBar::hidden(), turning: None };
        }
        let bar = ProgressBar::no_length().with_message(what.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        let turned = bar.clone();
        let turning = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            loop {
                turned.tick();
                tokio::time::sleep(TICK).await;
            }
        });
        Self { bar, turning: Some(turning) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(turning) = &self.turning {
            turning.abort();
        }
        self.bar.finish_and_clear();
    }
}

/// A bar of bytes; of unknown length where `total` is none.
pub(crate) fn byte_bar(interactive: bool, total: Option<u64>) -> ProgressBar {
    if !interactive {
        return ProgressBar::hidden();
    }
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
