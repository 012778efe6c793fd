//! The guest image for `atoll dev` and `atoll image build`: found, or built with progress.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context as _;
use guest_image::{ImageDir, ImageInputs, Step, ensure, find_or_build_agent};

use crate::dev::say;

/// Where images are built: beside the data of development meshes, never in it.
const DEFAULT_ROOT: &str = ".atoll/image";

/// How long a person is left without a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// The image folder to run: `asked` itself if it is a finished image, else the one built under it (or under the default).
pub(crate) fn find_or_build(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let root = asked.unwrap_or(Path::new(DEFAULT_ROOT));
    let image = if root.join("manifest.json").is_file() {
        ImageDir::open(root).with_context(|| format!("{} is not a whole guest image", root.display()))?
    } else {
        built(root)?
    };
    image.dir.canonicalize().with_context(|| format!("can't find the image folder {}", image.dir.display()))
}

/// `atoll image build`: builds what is missing and says where it is.
pub(crate) fn build(root: &Path, json: bool) -> anyhow::Result<()> {
    let image = built(root)?;
    let manifest = &image.manifest;
    if json {
        let view = serde_json::json!({ "dir": image.dir, "manifest": manifest });
        say::result(&serde_json::to_string(&view).context("can't write the image's manifest as JSON")?);
    } else {
        say::result(&image.dir.display().to_string());
    }
    Ok(())
}

fn built(root: &Path) -> anyhow::Result<ImageDir> {
    let agent = patiently("guest image: building the agent", find_or_build_agent)
        .context("the guest image needs the agent's binary")?;
    let inputs = ImageInputs::new(agent)?;
    std::fs::create_dir_all(root).with_context(|| format!("can't make the folder {}", root.display()))?;
    let began = std::time::Instant::now();
    let mut last: Option<Step> = None;
    let image = ensure(root, &inputs, &mut |progress| {
        if last != Some(progress.step) && progress.step != Step::Done {
            say::line(&format!("guest image: {} ({})", progress.step.name(), progress.detail));
        }
        last = Some(progress.step);
    })
    .with_context(|| format!("can't build the guest image under {}", root.display()))?;
    if last.is_some() {
        say::line(&format!("guest image: built in {:.1} s", began.elapsed().as_secs_f64()));
    }
    Ok(image)
}

/// Does something, and says what it is if that takes longer than a person is left without a word.
fn patiently<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                say::line(&format!("{what} ..."));
            }
        });
        let result = work();
        drop(done);
        result
    })
}
