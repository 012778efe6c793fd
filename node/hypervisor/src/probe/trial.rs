//! One boot of our own kernel under a deadline, saved and cloned: a node is there to clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fabric_types::{DiskGib, Shape};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::{
    Hypervisor, ImagePaths, MemorySource, Vm, VmError, VmFolder, VmSpec, copy_sparse, end_machine, make_disk,
    template_disk,
};

/// The kernel says all it does, from its first moment.
pub(super) const KERNEL_ARGS: &str = "ignore_loglevel earlyprintk=serial,ttyS0,115200";
/// The kernel's first line.
const FIRST_SIGN: &str = "Linux version";
/// What it says when it starts the agent.
const LAST_SIGN: &str = "Run /init as init process";
/// Until the first sign: with working hardware virtualization it takes 0.3 s; a paravirtual KVM was seen to spend 3 s
/// in the firmware and then hang while the kernel unpacks itself.
const FIRST_LIMIT: Duration = Duration::from_secs(6);
/// Until the last sign: about 1 s, with slack for a busy host.
const LAST_LIMIT: Duration = Duration::from_secs(15);
/// How long the guest must live on after it: a first process that can't run ends it at once.
const SETTLE: Duration = Duration::from_millis(500);
/// Between two looks at the console.
const LOOK: Duration = Duration::from_millis(20);
/// The trial's memory, MiB, and disk, GiB.
const SIZE: (i64, i64) = (512, 1);

/// Boots a machine, saves it and has a clone run; answers the milliseconds to the boot's last sign, or why it doesn't
/// work. Nothing of it remains.
pub(super) async fn boot(
    driver: &dyn Hypervisor,
    image: &ImagePaths,
    scratch: &Path,
    run: &Path,
) -> Result<u64, String> {
    let folder = VmFolder { dir: scratch.join("trial"), run: run.join("p") };
    let own = folder.clone();
    // A trial that was killed has left its folder; there is one trial at a time.
    let cleared = spawn_blocking(move || {
        end_machine(&own);
        remove(&own);
    });
    cleared.await.map_err(|error| error.to_string())?;
    let outcome = try_boot(driver, image, &folder).await;
    remove(&folder);
    outcome
}

fn remove(folder: &VmFolder) {
    for path in [&folder.dir, &folder.run] {
        // It may not be there; what stays is removed by the next trial.
        let _ = fs::remove_dir_all(path);
    }
}

async fn try_boot(driver: &dyn Hypervisor, image: &ImagePaths, folder: &VmFolder) -> Result<u64, String> {
    let disk = folder.dir.join("disk");
    let (dir, path) = (folder.dir.clone(), disk.clone());
    let size = DiskGib(u32::try_from(SIZE.1).unwrap_or(1));
    let made = spawn_blocking(move || {
        fs::create_dir_all(&dir).map_err(|source| VmError::File { action: "make", path: dir, source })?;
        make_disk(&path, size)
    });
    made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let template = folder.dir.join("template");
    let spec = VmSpec {
        label: "probe".to_owned(),
        folder: folder.clone(),
        shape: Shape::new(1, SIZE.0, SIZE.1).map_err(|error| error.to_string())?,
        image: image.clone(),
        disk,
        memory: MemorySource::BootTemplate { template: template.clone() },
        checkpoint: None,
        network: crate::NetworkDevice::None,
        limits: crate::MachineLimits::default(),
    };
    let start = Instant::now();
    let vm = driver.create(spec.clone()).await.map_err(|error| error.to_string())?;
    let watched = ends_or("the trial's machine", vm.as_ref(), watch(vm.as_ref(), folder)).await;
    let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let saved = match watched {
        Ok(()) => vm.save_template().await.map_err(|error| format!("it boots our kernel and can't save it: {error}")),
        Err(why) => Err(why),
    };
    end(vm.as_ref()).await;
    saved?;
    runs_a_clone(driver, spec, template)
        .await
        .map_err(|why| format!("it boots our kernel and can't clone it: {why}"))?;
    Ok(took_ms)
}

/// Whether a clone of what was booted runs on.
async fn runs_a_clone(driver: &dyn Hypervisor, booted: VmSpec, template: PathBuf) -> Result<(), String> {
    let disk = booted.disk.clone();
    let from = template_disk(&template);
    let copied = spawn_blocking(move || copy_sparse(&from, &disk)).await.map_err(|error| error.to_string())?;
    copied.map_err(|error| error.to_string())?;
    let spec = VmSpec { memory: MemorySource::Clone { template }, ..booted };
    let vm = driver.create(spec).await.map_err(|error| error.to_string())?;
    let lives = async {
        vm.resume().await.map_err(|error| error.to_string())?;
        sleep(SETTLE).await;
        Ok(())
    };
    let lived = ends_or("its clone", vm.as_ref(), lives).await;
    end(vm.as_ref()).await;
    lived
}

/// What comes of the work, unless the machine ends meanwhile.
async fn ends_or(what: &str, vm: &dyn Vm, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::select! {
        how = vm.ended() => Err(format!("{what} ended: {how}")),
        done = work => done,
    }
}

async fn end(vm: &dyn Vm) {
    // A machine that resists is named in the log and ended by the next trial.
    if let Err(error) = vm.shutdown().await {
        tracing::warn!(%error, "a trial's machine doesn't end");
    }
}

async fn watch(vm: &dyn Vm, folder: &VmFolder) -> Result<(), String> {
    vm.resume().await.map_err(|error| error.to_string())?;
    let console = folder.console_log();
    for (sign, limit) in [(FIRST_SIGN, FIRST_LIMIT), (LAST_SIGN, LAST_LIMIT)] {
        let seen = async {
            while !fs::read(&console).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(sign)) {
                sleep(LOOK).await;
            }
        };
        if timeout(limit, seen).await.is_err() {
            return Err(format!("our kernel didn't come to '{sign}' within {} s", limit.as_secs()));
        }
    }
    sleep(SETTLE).await;
    Ok(())
}
