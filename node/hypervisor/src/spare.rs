//! A monitor that was started ahead of its use, as either driver gives it out: loaded once, or ended.

use async_trait::async_trait;

use crate::{SnapshotFiles, Spare, Vm, VmError, VmSpec};

/// A driver's monitor that waits, and its keeper.
pub(crate) trait Waiting: Sized + Send + Sync + 'static {
    /// What it becomes.
    type Machine: Vm;
    /// What it was started for.
    fn spec(&self) -> &VmSpec;
    /// Loads what it was started for. On an error nothing is left behind.
    fn load(self) -> impl Future<Output = Result<Self::Machine, VmError>> + Send;
    /// Loads a snapshot over the same template in the place of it. On an error nothing is left behind.
    fn restore(self, snapshot: SnapshotFiles) -> impl Future<Output = Result<Self::Machine, VmError>> + Send;
    /// Ends it and removes its files.
    fn discard(self) -> impl Future<Output = ()> + Send;
}

/// A clone's monitor, started ahead of its use.
pub(crate) struct Ahead<W: Waiting> {
    spec: VmSpec,
    /// None only after it was taken.
    waiting: Option<W>,
}

impl<W: Waiting> Ahead<W> {
    pub(crate) fn new(waiting: W) -> Self {
        Self { spec: waiting.spec().clone(), waiting: Some(waiting) }
    }

    fn take(&mut self) -> Result<W, VmError> {
        let gone = || VmError::Ended { label: self.spec.label.clone(), how: "it was loaded already".to_owned() };
        self.waiting.take().ok_or_else(gone)
    }
}

#[async_trait]
impl<W: Waiting> Spare for Ahead<W> {
    fn spec(&self) -> &VmSpec {
        &self.spec
    }

    async fn load(mut self: Box<Self>) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(self.take()?.load().await?))
    }

    async fn restore(mut self: Box<Self>, snapshot: SnapshotFiles) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(self.take()?.restore(snapshot).await?))
    }

    async fn discard(mut self: Box<Self>) {
        if let Some(waiting) = self.waiting.take() {
            waiting.discard().await;
        }
    }
}

impl<W: Waiting> Drop for Ahead<W> {
    /// The creator's connection closes, and the keeper ends all; small files are removed when the runtime still runs,
    /// else by the next start in the folder.
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(waiting.discard());
        }
    }
}
