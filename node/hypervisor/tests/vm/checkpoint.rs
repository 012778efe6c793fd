//! Copies of a whole monitor, under QEMU with TCG.

use std::fs;
use std::path::Path;
use std::time::Instant;

use node_hypervisor::{
    Copies, Hypervisor, MemorySource, NetworkDevice, VmError, VmSpec, VmState, checkpoint_disk, checkpoint_is_current,
    copy_sparse,
};

use crate::guest::Guest;
use crate::support::{Place, files_in, image, ms, processes_naming, skip};
use crate::template::{clone_spec, driver, restore_spec, save_template, sectors, snapshot};

/// Copies that live beside each other.
const COPIES: usize = 4;

/// A copy's specification, its disk made.
fn copy_spec(place: &Place, checkpoint: &Path) -> VmSpec {
    let mut spec = place.spec(MemorySource::Clone { template: place.template() });
    copy_sparse(&checkpoint_disk(checkpoint), &spec.disk).expect("a disk");
    spec.checkpoint = Some(checkpoint.to_owned());
    spec
}

/// Prints what the processor's own random instruction answers, which the monitor draws from a generator of its own.
const RDRAND: &str = r#"python3 -c '
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes([0x48, 0x0f, 0xc7, 0xf0, 0xc3]))
draw = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print(*[draw() for _ in range(4)])
'"#;

#[tokio::test]
async fn vm_copies_of_a_monitor_are_machines_of_their_own() {
    let Some(image) = image() else { return skip("checkpoint tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let vm = driver.create(clone_spec(&place)).await.expect("cloned");
    vm.resume().await.expect("it runs");
    let mut guest = Guest::identify(vm.as_ref(), 2).await;
    for round in 0..3 {
        assert_eq!(guest.sh(&format!("echo {round} > /root/kept; cat /root/kept")).await, round.to_string());
    }
    let mut drawn = vec![guest.sh(RDRAND).await];
    let checkpoint = place.path("checkpoint");
    let taken = vm.checkpoint(&checkpoint, Copies::Many).await.expect("taken");
    println!("stop {} us, shared {} KiB", taken.stop_us, taken.shared_bytes >> 10);
    assert!(checkpoint_is_current(&checkpoint));
    // The one that was taken goes on, in the same session.
    assert_eq!(guest.sh("echo on").await, "on");

    let mut machines = Vec::new();
    for number in 0..COPIES {
        let start = Instant::now();
        let copy = driver.create(copy_spec(&place, &checkpoint)).await.expect("copied");
        let created = ms(start);
        assert_eq!(copy.state().await.expect("a state"), VmState::Paused);
        copy.resume().await.expect("it runs");
        let mut guest = Guest::identify(copy.as_ref(), 3).await;
        let identified = ms(start);
        assert_eq!(guest.sh("cat /root/kept").await, "2");
        let first = ms(start);
        guest.sh("cat /usr/bin/python3 /lib/x86_64-linux-gnu/libc.so.6 | md5sum").await;
        assert_eq!(guest.sh(&format!("echo {number} > /root/own; sync; cat /root/own")).await, number.to_string());
        drawn.push(guest.sh(RDRAND).await);
        let private = copy.counters().await.expect("counters").private_kib;
        println!(
            "copy {number}: created {created:.1}, identified {identified:.1}, first command {first:.1} ms; {private} KiB"
        );
        machines.push((copy, guest));
    }
    for (number, (_, guest)) in machines.iter_mut().enumerate() {
        assert_eq!(guest.sh("cat /root/own").await, number.to_string(), "another's disk or memory");
    }
    drawn.push(guest.sh(RDRAND).await);
    let mut numbers: Vec<&str> = drawn.iter().flat_map(|line| line.split_whitespace()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4 * (COPIES + 2), "copies draw the same numbers: {drawn:?}");
    for (copy, _) in machines {
        copy.shutdown().await.expect("it ends");
    }
    vm.shutdown().await.expect("it ends");
    assert_eq!(processes_naming(&place), [0; 0]);
}

/// A line of /proc/PID/status.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of ours");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel says so");
    line.trim_start_matches(':').trim().to_owned()
}

/// What a process has open, without the numbers that differ.
fn open_files(pid: u32) -> Vec<(String, String)> {
    let mut found: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of ours")
        .map(|entry| {
            let entry = entry.expect("an entry");
            let target = fs::read_link(entry.path()).expect("a link").to_string_lossy().into_owned();
            // A path's last part, or what stands before a number.
            let last = target.rsplit('/').next().unwrap_or_default();
            let kind = last.split(':').next().unwrap_or_default().to_owned();
            (entry.file_name().to_string_lossy().into_owned(), kind)
        })
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn vm_a_copy_does_all_that_a_machine_does_and_is_as_sealed() {
    let Some(image) = image() else { return skip("checkpoint tests", "there is no guest image") };
    let (place, driver) = (Place::new(image), driver().await);
    save_template(&driver, &place).await;
    let first = driver.create(clone_spec(&place)).await.expect("cloned");
    first.resume().await.expect("it runs");
    let mut guest = Guest::identify(first.as_ref(), 2).await;
    guest.sh("echo kept > /root/kept; sync").await;
    let checkpoint = place.path("checkpoint");
    first.pause().await.expect("it pauses");
    first.checkpoint(&checkpoint, Copies::Many).await.expect("taken");
    assert_eq!(first.state().await.expect("a state"), VmState::Paused, "a paused machine stays paused");
    let original = first.counters().await.expect("counters").vmm_pid;

    let spec = copy_spec(&place, &checkpoint);
    let (folder, label) = (spec.folder.clone(), spec.label.clone());
    let copy = driver.create(spec).await.expect("copied");
    copy.resume().await.expect("it runs");
    let mut guest = Guest::identify(copy.as_ref(), 3).await;
    let pid = copy.counters().await.expect("counters").vmm_pid;
    for (key, sealed) in [("Seccomp", "2"), ("NoNewPrivs", "1"), ("CapEff", "0000000000000000")] {
        assert_eq!((key, status(pid, key).as_str()), (key, sealed));
    }
    for key in ["Seccomp_filters", "CapBnd", "SigCgt", "SigIgn", "SigBlk"] {
        assert_eq!(status(pid, key), status(original, key), "{key} is another than the original's");
    }
    let shown = fs::read(format!("/proc/{pid}/cmdline")).expect("a command line");
    let shown = String::from_utf8_lossy(&shown).replace('\0', " ");
    assert!(shown.contains(&format!("guest={label}")) && !shown.contains("guest=vm1 "), "{shown}");
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).expect("readable"), [0; 0]);
    let (its, originals) = (open_files(pid), open_files(original));
    let unknown: Vec<_> = its.iter().filter(|(_, kind)| !originals.iter().any(|(_, other)| other == kind)).collect();
    assert!(unknown.is_empty(), "a copy has files open that its original has not: {unknown:?}");

    // Stopped for a snapshot it lets go of its disk and takes it up again.
    guest.sh("echo mine > /root/own; sync").await;
    let taken = snapshot(copy.as_ref(), &place.path("snapshot")).await;
    assert_eq!(guest.sh("echo after >> /root/own; sync; cat /root/own").await, "mine\nafter");
    let restored = driver.create(restore_spec(&place, &taken)).await.expect("restored");
    restored.resume().await.expect("it runs");
    let mut other = Guest::identify(restored.as_ref(), 4).await;
    assert_eq!(other.sh("cat /root/kept /root/own").await, "kept\nmine");
    restored.shutdown().await.expect("it ends");

    // A copy of a copy, taken while it runs; then the first files are gone.
    let again = place.path("again");
    copy.checkpoint(&again, Copies::Few).await.expect("taken");
    let length = |folder: &Path, name: &str| fs::metadata(folder.join(name)).expect("a file").len();
    assert_eq!(length(&again, "base"), length(&checkpoint, "pages"), "what is there is not written again");
    assert!(length(&again, "pages") < length(&checkpoint, "pages") / 2);
    assert_eq!(guest.sh("echo on").await, "on");
    fs::remove_dir_all(&checkpoint).expect("removed");
    let second = driver.create(copy_spec(&place, &again)).await.expect("copied");
    second.resume().await.expect("it runs");
    let mut grandchild = Guest::identify(second.as_ref(), 5).await;
    assert_eq!(grandchild.sh("cat /root/own; sleep 0.2; echo done").await, "mine\nafter\ndone");
    second.shutdown().await.expect("it ends");

    // Growing, pausing, and another process of the node.
    let bytes = fs::metadata(&copy.spec().disk).expect("a disk").len() + (64 << 20);
    fs::OpenOptions::new().write(true).open(&copy.spec().disk).and_then(|file| file.set_len(bytes)).expect("grown");
    copy.resize_disk(bytes).await.expect("told");
    assert_eq!(sectors(&mut guest, bytes).await, (bytes / 512).to_string());
    copy.pause().await.expect("it pauses");
    drop((guest, copy));
    let adopted = driver.adopt(&folder).await.expect("adopted");
    adopted.resume().await.expect("it runs");
    let mut guest = Guest::reach(adopted.as_ref(), 3).await;
    assert_eq!(guest.sh("cat /root/own").await, "mine\nafter");
    adopted.shutdown().await.expect("it ends");
    first.shutdown().await.expect("it ends");
    assert_eq!(processes_naming(&place), [0; 0]);
    a_bad_checkpoint_is_refused_and_leaves_nothing(&driver, &place, &again).await;
}

async fn a_bad_checkpoint_is_refused_and_leaves_nothing(driver: &dyn Hypervisor, place: &Place, checkpoint: &Path) {
    let mut plugged = copy_spec(place, checkpoint);
    plugged.network = NetworkDevice::Tap { name: "atollnone0".into(), netns: None };
    let error = driver.create(plugged).await.err().expect("refused");
    assert!(matches!(error, VmError::Unsupported { .. }), "{error}");

    let manifest = checkpoint.join("checkpoint.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    fs::write(&manifest, text.replace(boot.trim(), "another boot")).expect("written");
    assert!(!checkpoint_is_current(checkpoint));
    let error = driver.create(copy_spec(place, checkpoint)).await.err().expect("refused").to_string();
    assert!(error.contains("another boot"), "{error}");
    fs::write(&manifest, &text).expect("written");

    // The process's memory is another than the manifest says: its own code isn't where its threads wait.
    for name in ["pages", "base"] {
        let file = fs::OpenOptions::new().write(true).open(checkpoint.join(name)).expect("memory");
        let length = file.metadata().expect("a length").len();
        file.set_len(0).and_then(|()| file.set_len(length)).expect("emptied");
    }
    let spec = copy_spec(place, checkpoint);
    let folder = spec.folder.clone();
    let error = driver.create(spec).await.err().expect("refused").to_string();
    assert!(error.contains("restore the monitor") && error.contains("isn't what was taken"), "{error}");
    assert_eq!(files_in(&folder.dir), ["disk"]);
    assert_eq!(processes_naming(place), [0; 0]);
}
