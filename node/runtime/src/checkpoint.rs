//! Checkpoints of clones: whole monitors as files, which machines are copied from in milliseconds. Where they lie, which may
//! be used, and the copy itself; the pool makes them.
//!
//! ```text
//! <templates>/<template>.<plug>.checkpoint/       one for each kind of plug; whole or absent, made under the template's lock
//! <templates>/<template>.<plug>.checkpoint.new-*/ one that is being made
//! <templates>/<template>.<plug>.checkpoint.old/   one that is being removed
//! ```
//! A checkpoint is of one boot of the host and one version: it is replaced when it isn't current any more. Every use of one
//! may find that it has just gone, and falls back on a clone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use node_hypervisor::Vm;
use node_network::Port;
use tokio::time::Instant;

use crate::context::Context;
use crate::durable::{self, At, blocking};
use crate::machine::{self, Plan};
use crate::network::Plug;
use crate::template::Template;
use crate::{RuntimeError, identity};

/// How long a checkpoint isn't used after a copy of it came to nothing: clones are made meanwhile.
const DISTRUST: Duration = Duration::from_secs(60);
/// So many copies in a row that came to nothing make a checkpoint one that is replaced.
const FAILURES_MAX: u32 = 3;
/// Bytes of chance in the name of one that is being made.
const NEW_BYTES: usize = 4;
/// How often one copy is tried: another node may just have replaced the checkpoint.
const COPY_TRIES: usize = 2;

/// See the module.
pub(crate) struct Checkpoints {
    templates: PathBuf,
    /// Whether this host can take up what lies in a folder.
    is_current: fn(&Path) -> bool,
    doubts: Mutex<BTreeMap<PathBuf, Doubt>>,
}

/// What speaks against a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    failures: u32,
    until: Instant,
}

impl Checkpoints {
    pub(crate) fn new(templates: PathBuf, is_current: fn(&Path) -> bool) -> Self {
        Self { templates, is_current, doubts: Mutex::default() }
    }

    /// Where the checkpoint of a template lies, for machines with this kind of plug.
    pub(crate) fn folder(&self, template: &str, plug: Plug) -> PathBuf {
        self.templates.join(format!("{template}.{}.checkpoint", plug.as_str()))
    }

    /// The checkpoint for a machine with this port, if there is one that may be used. Reads one small file.
    pub(crate) async fn find(&self, template: &Template, port: Option<&Port>) -> Option<PathBuf> {
        let folder = self.folder(&template.name, Plug::of(port));
        (!self.rests(&folder, Instant::now()) && self.look(&folder).await).then_some(folder)
    }

    /// What stands for all checkpoints that forks are made from: each is of its own, and used once.
    pub(crate) fn of_forks(&self, plug: Plug) -> PathBuf {
        self.folder("forks", plug)
    }

    /// Whether copies of it are given up for a while.
    pub(crate) fn rests(&self, folder: &Path, now: Instant) -> bool {
        self.lock().get(folder).is_some_and(|doubt| now < doubt.until)
    }

    async fn look(&self, folder: &Path) -> bool {
        let (is_current, folder) = (self.is_current, folder.to_owned());
        blocking(move || is_current(&folder)).await
    }

    /// Whether what lies there is to stay: it is current, and its copies live.
    pub(crate) async fn is_good(&self, folder: &Path) -> bool {
        let broken = self.lock().get(folder).is_some_and(|doubt| doubt.failures >= FAILURES_MAX);
        !broken && self.look(folder).await
    }

    /// A copy came to nothing: it isn't used for a while.
    pub(crate) fn failed(&self, folder: &Path, error: &RuntimeError, now: Instant) {
        let mut doubts = self.lock();
        let failures = doubts.get(folder).map_or(0, |doubt| doubt.failures).saturating_add(1);
        doubts.insert(folder.to_owned(), Doubt { failures, until: now + DISTRUST });
        drop(doubts);
        tracing::warn!(%error, failures, checkpoint = %folder.display(), "a copy came to nothing; cloning for a while");
    }

    /// A copy lives.
    pub(crate) fn succeeded(&self, folder: &Path) {
        self.lock().remove(folder);
    }

    /// Puts what was made beside it into the place of what is there. Under the template's lock.
    pub(crate) async fn publish(&self, new: &Path, folder: &Path) -> Result<(), RuntimeError> {
        let (new, to) = (new.to_owned(), folder.to_owned());
        blocking(move || {
            set_aside(&to)?;
            std::fs::rename(&new, &to).at("rename a checkpoint to", &to)
        })
        .await?;
        self.succeeded(folder);
        Ok(())
    }

    /// Removes what can't be used any more, and what was begun and not finished. Under the template's lock.
    pub(crate) async fn clear(&self, folder: &Path) -> Result<(), RuntimeError> {
        let folder = folder.to_owned();
        blocking(move || {
            for half in half_made(&folder)? {
                durable::remove_folder(&half)?;
            }
            set_aside(&folder)
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Doubt>> {
        // Nothing under this lock panics half-way through a change.
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a checkpoint is made: a name of its own, since what a killed process has left may still be written to.
pub(crate) fn new_of(folder: &Path) -> Result<PathBuf, RuntimeError> {
    let chance = hex::encode(identity::chance::<NEW_BYTES>()?);
    Ok(folder.with_extension(format!("checkpoint.new-{chance}")))
}

/// What was begun beside a checkpoint and not finished.
fn half_made(folder: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else { return Ok(Vec::new()) };
    let begins = format!("{}.new-", name.display());
    let list = || -> std::io::Result<Vec<PathBuf>> {
        let paths = std::fs::read_dir(parent)?.map(|entry| Ok(entry?.path()));
        let ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.display().to_string().starts_with(&begins));
        paths.filter(|path| path.as_ref().map_or(true, ours)).collect()
    };
    list().at("list", parent)
}

/// Removes a checkpoint at once for all who look for it: by its name first.
fn set_aside(folder: &Path) -> Result<(), RuntimeError> {
    let old = folder.with_extension("checkpoint.old");
    durable::remove_folder(&old)?;
    match std::fs::rename(folder, &old) {
        Ok(()) => durable::remove_folder(&old),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).at("set aside the checkpoint", folder),
    }
}

/// A machine by `plan`, paused, as a copy of its template's checkpoint. None where there is no checkpoint to be used, or the
/// copy came to nothing: then nothing of it is left but its disk's file, and a clone is the way.
pub(crate) async fn copy(context: &Context, template: &Template, plan: &Plan) -> Option<Arc<dyn Vm>> {
    for _ in 0..COPY_TRIES {
        let folder = context.checkpoints.find(template, plan.port.as_ref()).await?;
        match machine::make_copy(context.driver.as_ref(), template, folder.clone(), plan.clone()).await {
            Ok(vm) => return Some(vm),
            Err(error) if context.checkpoints.look(&folder).await => {
                context.checkpoints.failed(&folder, &error, Instant::now());
                return None;
            }
            Err(error) => tracing::debug!(%error, "a checkpoint has gone while it was copied"),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn there(folder: &Path) -> bool {
        folder.join("current").is_file()
    }

    fn fault() -> RuntimeError {
        RuntimeError::Stopping
    }

    #[tokio::test]
    async fn a_checkpoint_that_failed_rests_and_is_replaced_when_it_failed_too_often() {
        let root = tempfile::tempdir().expect("a folder");
        let checkpoints = Checkpoints::new(root.path().to_owned(), there);
        let template = Template { name: "t".to_owned(), dir: root.path().join("t"), shape: testing::spec(1).shape };
        let folder = checkpoints.folder("t", Plug::None);
        assert_eq!(checkpoints.find(&template, None).await, None);
        let new = new_of(&folder).expect("named");
        std::fs::create_dir(&new).expect("made");
        std::fs::write(new.join("current"), "").expect("written");
        assert_eq!(checkpoints.find(&template, None).await, None, "half-made");
        checkpoints.publish(&new, &folder).await.expect("published");
        assert_eq!(checkpoints.find(&template, None).await.as_ref(), Some(&folder));
        for failures in 1..=FAILURES_MAX {
            let now = Instant::now();
            checkpoints.failed(&folder, &fault(), now);
            assert_eq!(checkpoints.find(&template, None).await, None);
            assert_eq!(checkpoints.is_good(&folder).await, failures < FAILURES_MAX);
            assert!(!checkpoints.rests(&folder, now + DISTRUST));
        }
        checkpoints.succeeded(&folder);
        assert_eq!(checkpoints.find(&template, None).await.as_ref(), Some(&folder));
        assert!(checkpoints.is_good(&folder).await);
    }

    #[tokio::test]
    async fn one_takes_the_place_of_another_and_leavings_go() {
        let root = tempfile::tempdir().expect("a folder");
        let checkpoints = Checkpoints::new(root.path().to_owned(), there);
        let folder = checkpoints.folder("t", Plug::Tap);
        for made in ["one", "two"] {
            let new = new_of(&folder).expect("named");
            std::fs::create_dir(&new).expect("made");
            std::fs::write(new.join("current"), made).expect("written");
            checkpoints.publish(&new, &folder).await.expect("published");
            assert_eq!(std::fs::read_to_string(folder.join("current")).expect("read"), made);
        }
        for _ in 0..2 {
            std::fs::create_dir_all(new_of(&folder).expect("named").join("half")).expect("made");
        }
        let other = checkpoints.folder("t", Plug::None);
        std::fs::create_dir_all(new_of(&other).expect("named")).expect("made");
        std::fs::create_dir_all(folder.with_extension("checkpoint.old").join("half")).expect("made");
        checkpoints.clear(&folder).await.expect("cleared");
        assert_eq!(std::fs::read_dir(root.path()).expect("listed").count(), 1, "another's alone");
        checkpoints.clear(&folder).await.expect("and again");
    }

    #[test]
    fn each_kind_of_plug_has_a_checkpoint_of_its_own() {
        let checkpoints = Checkpoints::new("/t".into(), there);
        let folders = [Plug::None, Plug::Tap, Plug::Passt].map(|plug| checkpoints.folder("a.b", plug));
        assert_eq!(folders[1], Path::new("/t/a.b.tap.checkpoint"));
        let new = new_of(&folders[1]).expect("named").display().to_string();
        assert!(new.starts_with("/t/a.b.tap.checkpoint.new-"), "{new}");
        assert!(folders[0] != folders[1] && folders[1] != folders[2] && folders[0] != folders[2]);
    }
}
