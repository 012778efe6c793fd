//! Builds the real image (or reuses it) under the source tree's `.atoll/image`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and tells what it measured")]

use std::collections::BTreeSet;
use std::path::Path;

use guest_image::{ImageDir, ImageInputs, digest, ensure, find_or_build_agent};

/// A VM test by name: it needs the same packages and the same minutes.
#[test]
fn vm_image_is_built_once_and_reused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.atoll/image");
    let inputs = ImageInputs::new(find_or_build_agent().unwrap()).unwrap();
    // The recipe runs the host's apt with a configuration of its own: the host's lists must not be touched.
    let lists = || -> BTreeSet<_> {
        std::fs::read_dir("/var/lib/apt/lists").unwrap().flatten().map(|entry| entry.file_name()).collect()
    };
    let lists_before = lists();
    let image =
        ensure(&root, &inputs, &mut |progress| eprintln!("{}: {}", progress.step.name(), progress.detail)).unwrap();
    assert_eq!(lists(), lists_before);
    image.verify_digests().unwrap();
    assert_eq!(image.dir, root.canonicalize().unwrap().join(digest(&inputs).unwrap()));
    assert!(image.manifest.packages.iter().any(|package| package.name == "python3"));
    assert!(image.manifest.packages.iter().any(|package| package.name.starts_with("linux-image-")));

    let again = ensure(&root, &inputs, &mut |progress| panic!("built again: {progress:?}")).unwrap();
    assert_eq!(again, image);
    assert_eq!(ImageDir::open(&image.dir).unwrap(), image);
}
