//! Help for a `/dev/kvm` that is an emulation without nested state: there `vm.snapshot` fails, since Cloud Hypervisor
//! asks for it unconditionally. A library that is preloaded into the monitor answers that one call with an empty header,
//! which is what a host without nested guests would answer. It is made and used by tests alone, only where the call
//! fails, and told of.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use node_hypervisor::{CloudHypervisorConfig, CloudHypervisorDriver, Hypervisor, MemorySource, VmError};

use crate::freestanding::{self, Then};
use crate::support::{Place, keeper, skip};

/// What the monitor says where the call fails.
const SAYS: &str = "nestedstate";
/// The library. `KVM_GET_NESTED_STATE` and `struct kvm_nested_state` are linux/kvm.h's.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>

static int (*next)(int, unsigned long, ...);

__attribute__((constructor)) static void find(void) { next = dlsym(RTLD_NEXT, "ioctl"); }

int ioctl(int descriptor, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    int answer = next(descriptor, request, argument);
    if (answer >= 0 || errno != EINVAL || request != KVM_GET_NESTED_STATE) return answer;
    struct kvm_nested_state *state = argument;
    memset(state, 0, sizeof *state);
    state->size = sizeof *state;
    return 0;
}
"#;

/// The host's Cloud Hypervisor, helped where this host's KVM needs it; none where no template can be saved, which is told
/// as the reason why `what` is skipped. What is made lies in `folder`.
pub(crate) async fn helped(what: &str, folder: &Path) -> Option<CloudHypervisorConfig> {
    let config = CloudHypervisorConfig::new(keeper());
    let driver = CloudHypervisorDriver::new(config.clone()).await.expect("it was looked for before");
    let Err(error) = save(&driver, folder).await else { return Some(config) };
    assert!(error.to_string().to_lowercase().contains(SAYS), "a template can't be saved: {error}");
    match preloading(folder, &config.program) {
        Ok(program) => {
            skip(
                "cloud_hypervisor, snapshots without help",
                &format!("this KVM has no nested state ({error}); a test-only library preloaded into it answers that"),
            );
            Some(CloudHypervisorConfig { program, ..config })
        }
        Err(why) => {
            skip(what, &format!("this KVM has no nested state, and there is no help: {why}"));
            None
        }
    }
}

/// Whether a guest can be saved at all.
async fn save(driver: &CloudHypervisorDriver, folder: &Path) -> Result<(), VmError> {
    let place = Place::new(freestanding::image(&folder.join("image"), Then::Tick));
    let mut spec = place.booting();
    spec.memory = MemorySource::BootTemplate { template: place.template() };
    let vm = driver.create(spec).await?;
    vm.resume().await?;
    let saved = vm.save_template().await;
    vm.shutdown().await?;
    saved
}

/// A program that is `program` with the library in it. All of it lies in one folder, which a sealed monitor sees.
fn preloading(folder: &Path, program: &Path) -> Result<PathBuf, String> {
    let folder = folder.join("helped");
    fs::create_dir_all(&folder).expect("made");
    let [source, library, own, wrapper] =
        ["shim.c", "shim.so", "real", "cloud-hypervisor"].map(|name| folder.join(name));
    fs::write(&source, SOURCE).expect("written");
    let made = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).args([&library, &source]).output();
    let made = made.map_err(|error| format!("cc doesn't run: {error}"))?;
    if !made.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&made.stderr)));
    }
    fs::copy(in_path(program).ok_or("its program isn't in PATH")?, &own).expect("copied");
    let line = format!("#!/bin/sh\nLD_PRELOAD={} exec {} \"$@\"\n", library.display(), own.display());
    fs::write(&wrapper, line).expect("written");
    for path in [&folder, &library, &own, &wrapper] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("for every user");
    }
    Ok(wrapper)
}

fn in_path(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|file| file.is_file())
}
