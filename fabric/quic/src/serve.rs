//! Taking the streams that peers open: each is served by a task of its own, a bounded number at a time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BiStream;

/// How long what is being served may go on after the last stream was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Until it is done: whoever serves bounds it.
    Unbounded,
    /// So long; what is left then is dropped.
    Within(Duration),
}

/// Serves streams until `shutdown`, or until there will be no more of them, at most `concurrency` at a time: what comes
/// meanwhile waits in the protocol's queue, and is refused when that is full (see [`Fabric::accept`]). Returns when
/// all that had begun is over.
///
/// Dropped, it takes no more streams; those that are being served go on without a bound.
///
/// [`Fabric::accept`]: crate::Fabric::accept
pub async fn serve_streams<H, F>(
    mut streams: mpsc::Receiver<BiStream>,
    concurrency: usize,
    drain: Drain,
    shutdown: CancellationToken,
    serve: H,
) where
    H: Fn(BiStream) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(concurrency));
    let tasks = TaskTracker::new();
    let end = CancellationToken::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, streams.recv().await?))
        };
        let (slot, stream) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => match next {
                Some(next) => next,
                None => break,
            },
        };
        let (serving, end) = (serve(stream), end.clone());
        tasks.spawn(async move {
            end.run_until_cancelled(serving).await;
            drop(slot);
        });
    }
    tasks.close();
    if let Drain::Within(limit) = drain
        && timeout(limit, tasks.wait()).await.is_err()
    {
        end.cancel();
    }
    tasks.wait().await;
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(600);

    fn stream() -> BiStream {
        BiStream {
            peer: "fra-1".parse().expect("a node id"),
            address: ([127, 0, 0, 1], 1).into(),
            send: Box::pin(tokio::io::sink()),
            recv: Box::pin(tokio::io::empty()),
        }
    }

    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    struct Counts {
        begun: usize,
        ended: usize,
        most: usize,
    }

    /// Counts what begins, what ends and what goes on at once; whatever has begun ends when the gate lets it.
    struct Scene {
        counts: watch::Sender<Counts>,
        gate: Semaphore,
    }

    impl Scene {
        fn new() -> Arc<Self> {
            Arc::new(Self { counts: watch::Sender::new(Counts::default()), gate: Semaphore::new(0) })
        }

        async fn serve(self: Arc<Self>) {
            self.counts.send_modify(|counts| {
                counts.begun += 1;
                counts.most = counts.most.max(counts.begun - counts.ended);
            });
            self.gate.acquire().await.expect("an open gate").forget();
            self.counts.send_modify(|counts| counts.ended += 1);
        }

        async fn begun(&self, number: usize) {
            self.counts.subscribe().wait_for(|counts| counts.begun == number).await.expect("the sender is ours");
        }

        fn counts(&self) -> Counts {
            *self.counts.borrow()
        }
    }

    /// Ten streams that are served four at a time; the queue is closed.
    fn ten_streams(scene: &Arc<Scene>, drain: Drain, shutdown: &CancellationToken) -> tokio::task::JoinHandle<()> {
        let (sender, streams) = mpsc::channel(10);
        for _ in 0..10 {
            sender.try_send(stream()).expect("room");
        }
        let (scene, shutdown) = (Arc::clone(scene), shutdown.clone());
        tokio::spawn(async move {
            serve_streams(streams, 4, drain, shutdown, |_| Arc::clone(&scene).serve()).await;
        })
    }

    #[tokio::test]
    async fn no_more_than_the_limit_go_on_at_once_until_the_queue_is_at_its_end() {
        let scene = Scene::new();
        let server = ten_streams(&scene, Drain::Unbounded, &CancellationToken::new());
        scene.begun(4).await;
        scene.gate.add_permits(10);
        server.await.expect("no panic");
        assert_eq!(scene.counts(), Counts { begun: 10, ended: 10, most: 4 });
    }

    #[tokio::test]
    async fn what_had_begun_at_the_shutdown_is_ended_and_nothing_more_begins() {
        for drain in [Drain::Unbounded, Drain::Within(LONG)] {
            let (scene, shutdown) = (Scene::new(), CancellationToken::new());
            let server = ten_streams(&scene, drain, &shutdown);
            scene.begun(4).await;
            shutdown.cancel();
            tokio::task::yield_now().await;
            assert!(!server.is_finished());
            scene.gate.add_permits(10);
            server.await.expect("no panic");
            assert_eq!(scene.counts(), Counts { begun: 4, ended: 4, most: 4 });
        }
    }

    #[tokio::test]
    async fn what_takes_longer_than_the_drain_is_dropped() {
        let (scene, shutdown) = (Scene::new(), CancellationToken::new());
        let server = ten_streams(&scene, Drain::Within(Duration::from_millis(20)), &shutdown);
        scene.begun(4).await;
        shutdown.cancel();
        server.await.expect("no panic");
        assert_eq!(scene.counts(), Counts { begun: 4, ended: 0, most: 4 });
        assert_eq!(Arc::strong_count(&scene), 1);
    }
}
