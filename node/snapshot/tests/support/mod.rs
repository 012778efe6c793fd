//! What the tests of the store and of pulls share: a made-up guest of a few MiB.
#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fabric_types::{Accelerator, Digest, Fit, Generation, HypervisorKind, Shape};
use node_snapshot::{FileName, SandboxInput, SnapshotStore, TemplateFiles, TemplateInput};
use tempfile::TempDir;

pub const PAGE: usize = 4096;

pub fn fit() -> Fit {
    Fit {
        hypervisor: HypervisorKind::Qemu,
        version: "7.2.0".into(),
        machine: "pc-q35-7.2".into(),
        accelerator: Accelerator::Tcg,
        cpu_model: "max".into(),
        cpu_features: vec![],
    }
}

/// Page contents that don't compress to nothing and differ by `seed`.
pub fn noise(seed: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of each word: guest memory compresses about that well.
        word[..4].copy_from_slice(&state.to_le_bytes()[..4]);
    }
    page
}

/// Writes a sparse file of `length` bytes with these pages.
pub fn sparse_file(path: &Path, length: u64, pages: &BTreeMap<u64, [u8; PAGE]>) {
    let file = File::create(path).expect("makes a file");
    file.set_len(length).expect("sets its length");
    for (page, bytes) in pages {
        let start = page * PAGE as u64;
        let fits = bytes.len().min(usize::try_from(length.saturating_sub(start)).expect("small"));
        file.write_all_at(&bytes[..fits], start).expect("writes a page");
    }
}

pub struct Guest {
    pub dir: TempDir,
    pub memory_length: u64,
    pub disk_length: u64,
    pub template_memory: BTreeMap<u64, [u8; PAGE]>,
    pub template_disk: BTreeMap<u64, [u8; PAGE]>,
}

impl Guest {
    /// A template with every third page of memory and of disk filled.
    pub fn new(memory_pages: u64, disk_pages: u64) -> Self {
        let every_third =
            |pages: u64, seed: u64| (0..pages).step_by(3).map(|page| (page, noise(page + seed))).collect();
        let guest = Self {
            dir: tempfile::tempdir().expect("a folder"),
            memory_length: memory_pages * PAGE as u64,
            // Not a whole number of pages: the last page is cut.
            disk_length: disk_pages * PAGE as u64 - 1000,
            template_memory: every_third(memory_pages, 1),
            template_disk: every_third(disk_pages, 1_000_000),
        };
        fs::create_dir(guest.path("template")).expect("a folder");
        sparse_file(&guest.path("template/memory"), guest.memory_length, &guest.template_memory);
        sparse_file(&guest.path("template/disk"), guest.disk_length, &guest.template_disk);
        fs::write(guest.path("template/device_state"), b"devices at rest").expect("writes");
        fs::write(guest.path("template/template.json"), b"{\"schema\":1}").expect("writes");
        guest
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn template_input(&self) -> TemplateInput {
        let files = ["memory", "disk", "device_state", "template.json"]
            .map(|name| (name.parse::<FileName>().expect("a name"), self.path("template").join(name)));
        TemplateInput {
            fit: fit(),
            shape: Shape::DEFAULT,
            meta: serde_json::json!({"agentProtocol": 1}),
            files: files.into(),
        }
    }

    /// A sandbox of this template in which `memory` was written privately and the disk is `disk`.
    pub fn sandbox_input(
        &self,
        template: Digest,
        memory: &BTreeMap<u64, [u8; PAGE]>,
        disk: &BTreeMap<u64, [u8; PAGE]>,
        with_template_files: bool,
    ) -> SandboxInput {
        let dir = self.path("stopped");
        fs::create_dir_all(&dir).expect("a folder");
        sparse_file(&dir.join("pages"), self.memory_length, memory);
        sparse_file(&dir.join("disk"), self.disk_length, disk);
        fs::write(dir.join("device_state"), vec![0xd5; 79_000]).expect("writes");
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for page in memory.keys() {
            let offset = page * PAGE as u64;
            match runs.last_mut() {
                Some((start, length)) if *start + *length == offset => *length += PAGE as u64,
                _ => runs.push((offset, PAGE as u64)),
            }
        }
        let here = |name: &str| with_template_files.then(|| self.path("template").join(name));
        SandboxInput {
            fit: fit(),
            shape: Shape::DEFAULT,
            generation: Generation(3),
            meta: serde_json::json!({"env": {"A": "1"}}),
            template: Some(TemplateFiles { manifest: template, memory: here("memory"), disk: here("disk") }),
            device_state: dir.join("device_state"),
            pages: dir.join("pages"),
            runs,
            disk: dir.join("disk"),
        }
    }

    /// Guest memory as the sandbox saw it.
    pub fn memory(&self, private: &BTreeMap<u64, [u8; PAGE]>) -> Vec<u8> {
        let mut memory = vec![0; usize::try_from(self.memory_length).expect("small")];
        for (page, bytes) in self.template_memory.iter().chain(private) {
            let start = usize::try_from(*page).expect("small") * PAGE;
            memory[start..start + PAGE].copy_from_slice(bytes);
        }
        memory
    }
}

/// A file's bytes with the runs of another laid over it, as a driver does to resume.
pub fn lay_over(base: &Path, pages: &Path, runs: &[(u64, u64)]) -> Vec<u8> {
    let mut memory = fs::read(base).expect("reads");
    let pages = File::open(pages).expect("opens");
    for (offset, length) in runs {
        let start = usize::try_from(*offset).expect("small");
        let end = start + usize::try_from(*length).expect("small");
        pages.read_exact_at(&mut memory[start..end], *offset).expect("reads");
    }
    memory
}

/// Every chunk file of a store.
pub fn chunk_files(store: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(store.join("chunks")).expect("lists");
    let files = folders.flat_map(|folder| fs::read_dir(folder.expect("lists").path()).expect("lists"));
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("lists").path()).collect();
    files.sort();
    files
}

/// Pages written privately: some new, some cleared, some back at what the template has.
pub fn private_pages(guest: &Guest, count: u64) -> BTreeMap<u64, [u8; PAGE]> {
    let pages = guest.memory_length / PAGE as u64;
    let page_of = |number: u64| (number * 7 + number / 5) % pages;
    (0..count)
        .map(|number| {
            let page = page_of(number);
            let content = match number % 5 {
                0 => [0; PAGE],
                1 => guest.template_memory.get(&page).copied().unwrap_or([0; PAGE]),
                _ => noise(number + 5_000_000),
            };
            (page, content)
        })
        .collect()
}

pub async fn open(dir: &Path) -> SnapshotStore {
    SnapshotStore::open(dir).await.expect("opens the store")
}
