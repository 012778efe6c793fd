//! Network namespaces: one that outlives its maker, and threads that live in one.
//!
//! A socket, a netlink handle and a started program belong to the namespace of the thread that made them. So each
//! namespace has a thread with a small runtime of its own, and everything for it is made there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::contract::NetworkFault;

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where a thread lives.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In a namespace that is held open.
    Of(Arc<File>),
    /// In a namespace that exists.
    At(PathBuf),
    /// In the namespace bound here, made and bound if there is none.
    Kept(PathBuf),
}

fn fault(path: &Path, action: &str, cause: impl ToString) -> NetworkFault {
    NetworkFault::System {
        action: format!("{action} the network namespace {}", path.display()),
        cause: cause.to_string(),
    }
}

fn enter(path: &Path) -> Result<(), NetworkFault> {
    let file = File::open(path).map_err(|cause| fault(path, "open", cause))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|cause| fault(path, "enter", cause))
}

/// Makes a namespace, moves the calling thread there, and binds it to a path so that it stays.
fn make(path: &Path) -> Result<(), NetworkFault> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|cause| fault(path, "make a folder for", cause))?;
    }
    File::create(path).map_err(|cause| fault(path, "make a place for", cause))?;
    let made = unshare(CloneFlags::CLONE_NEWNET).map_err(|cause| fault(path, "make", cause)).and_then(|()| {
        mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|cause| fault(path, "keep", cause))
    });
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// Takes the namespace's name away; it ends with the last who uses it.
pub(crate) fn forget(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(cause) => return Err(cause.into()),
    }
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
        _ => Ok(()),
    }
}

impl Place {
    /// Where the calling thread lives, wherever it goes.
    pub(crate) fn here() -> Result<Self, NetworkFault> {
        let own = Path::new(OWN);
        File::open(own).map(|file| Self::Of(Arc::new(file))).map_err(|cause| fault(own, "open", cause))
    }

    fn go(&self) -> Result<(), NetworkFault> {
        match self {
            Self::Of(file) => {
                setns(&**file, CloneFlags::CLONE_NEWNET).map_err(|cause| fault(Path::new(OWN), "enter", cause))
            }
            Self::At(path) => enter(path),
            // A file that no namespace is bound to is what a maker that died left; entering it fails.
            Self::Kept(path) if path.exists() && enter(path).is_ok() => Ok(()),
            Self::Kept(path) => {
                forget(path).map_err(|cause| fault(path, "clear", cause))?;
                make(path)
            }
        }
    }

    /// Starts a thread that lives here and runs `work` to its end. Returns once the thread is in its place.
    pub(crate) async fn live<W, F>(self, name: &str, work: W) -> Result<(), NetworkFault>
    where
        W: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()> + 'static,
    {
        let (arrived, arrival) = oneshot::channel();
        let start =
            |cause: io::Error| NetworkFault::System { action: "start a thread".to_owned(), cause: cause.to_string() };
        let body = move || {
            let runtime = self.go().and_then(|()| Builder::new_current_thread().enable_all().build().map_err(start));
            match runtime {
                Ok(runtime) => {
                    let _ = arrived.send(Ok(()));
                    LocalSet::new().block_on(&runtime, work());
                    // Whatever still blocks in there ends with the process.
                    runtime.shutdown_background();
                }
                Err(fault) => {
                    let _ = arrived.send(Err(fault));
                }
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(start)?;
        arrival.await.unwrap_or_else(|_| Err(start(io::Error::other("it ended at once"))))
    }
}
