//! Builds the real image (or reuses it) under the source tree's `.atoll/image`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking and tells what it measured")]

use std::path::Path;

use guest_image::{ImageDir, ImageInputs, digest, ensure, find_or_build_agent};

/// A VM test by name: it needs the same packages and the same minutes.
#[test]
fn vm_image_is_built_once_and_reused() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.atoll/image");
    let inputs = ImageInputs::new(find_or_build_agent().unwrap()).unwrap();
    let image =
        ensure(&root, &inputs, &mut |progress| eprintln!("{}: {}", progress.step.name(), progress.detail)).unwrap();
    image.verify_digests().unwrap();
    assert_eq!(image.dir, root.canonicalize().unwrap().join(digest(&inputs).unwrap()));
    assert!(image.manifest.packages.iter().any(|package| package.name == "python3"));
    assert!(image.manifest.packages.iter().any(|package| package.name.starts_with("linux-image-")));

    let again = ensure(&root, &inputs, &mut |progress| panic!("built again: {progress:?}")).unwrap();
    assert_eq!(again, image);
    assert_eq!(ImageDir::open(&image.dir).unwrap(), image);
}
