//! Cuts a node off in the middle of its work, for tests: as `kill -9` does, at a step of the test's choice.
//!
//! Steps are counted where something outside this process changes: a file or folder, or a machine. When the count runs
//! out, every further step of the thread waits for ever; the test then drops the whole tokio runtime. Tests that cut run
//! on a tokio runtime of one thread, so that the count is theirs alone.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    /// Steps that may still pass; all of them where there is no number.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether a step was held up.
    static CUT: Cell<bool> = const { Cell::new(false) };
}

/// Lets so many steps pass and none after them.
pub(crate) fn after(steps: u32) {
    CUT.set(false);
    LEFT.set(Some(steps));
}

/// Lets all steps pass again.
pub(crate) fn never() {
    CUT.set(false);
    LEFT.set(None);
}

/// Waits until a step is held up.
pub(crate) async fn reached() {
    while !CUT.get() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A step: passes, or never.
pub(crate) async fn point() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            CUT.set(true);
            std::future::pending::<()>().await;
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}
