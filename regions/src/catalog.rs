//! Where descriptors come from: those built in, and those of a folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

use fabric_types::RegionCode;

use crate::{RegionDescriptor, RegionError};

/// A descriptor is about 300 bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The design is for 100 regions.
const REGIONS_MAX: usize = 1000;

static BUILTINS: LazyLock<BTreeMap<RegionCode, RegionDescriptor>> = LazyLock::new(|| {
    [include_str!("../fra.json"), include_str!("../iad.json"), include_str!("../sin.json")]
        .into_iter()
        .map(|json| RegionDescriptor::parse(json).expect("a test reads each descriptor that is built in"))
        .map(|region| (region.code.clone(), region))
        .collect()
});

/// The built-in descriptor of a region, if there is one. Any other code is a region too: see
/// [`RegionDescriptor::unknown`].
pub fn builtin(code: &RegionCode) -> Option<&'static RegionDescriptor> {
    BUILTINS.get(code)
}

/// The regions that are built in, by code.
pub fn builtins() -> &'static BTreeMap<RegionCode, RegionDescriptor> {
    &BUILTINS
}

/// Reads every `<code>.json` of a folder. Other files are left alone; a descriptor must be named after its code.
pub fn load_dir(folder: &Path) -> Result<BTreeMap<RegionCode, RegionDescriptor>, RegionError> {
    let unreadable = |source| RegionError::File { path: folder.display().to_string(), source };
    let mut regions = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        if regions.len() == REGIONS_MAX {
            let path = folder.display().to_string();
            return Err(RegionError::TooLarge { path, limit: REGIONS_MAX as u64, unit: "descriptors" });
        }
        let region = load_file(&path)?;
        regions.insert(region.code.clone(), region);
    }
    Ok(regions)
}

fn load_file(path: &Path) -> Result<RegionDescriptor, RegionError> {
    let name = || path.display().to_string();
    let mut json = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut json));
    let bytes = read.map_err(|source| RegionError::File { path: name(), source })?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(RegionError::TooLarge { path: name(), limit: FILE_BYTES_MAX, unit: "bytes" });
    }
    let region = RegionDescriptor::parse(&json).map_err(|cause| RegionError::Malformed { path: name(), cause })?;
    if path.file_stem().is_none_or(|stem| stem != region.code.as_str()) {
        let cause = format!("it describes {}, so its name must be {}.json", region.code, region.code);
        return Err(RegionError::Malformed { path: name(), cause });
    }
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_descriptors_are_the_files_of_this_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = load_dir(folder).expect("reads");
        assert_eq!(&files, builtins());
        for code in ["fra", "iad", "sin"] {
            let region = builtin(&code.parse().expect("a code")).expect("built in");
            assert!(region.location.is_some() && region.endpoints.http.is_some(), "{code}");
        }
        assert_eq!(builtin(&"zz1".parse().expect("a code")), None);
    }

    #[test]
    fn a_descriptor_under_another_name_and_a_file_that_is_none_are_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("notes.txt"), "not looked at").expect("writes");
        assert!(load_dir(folder.path()).expect("reads").is_empty());
        let wrong = folder.path().join("ber.json");
        fs::write(&wrong, include_str!("../fra.json")).expect("writes");
        let error = load_dir(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("ber.json") && error.contains("must be fra.json"), "{error}");
        fs::write(&wrong, "x".repeat(70_000)).expect("writes");
        let error = load_dir(folder.path()).expect_err("refused").to_string();
        assert!(error.ends_with("ber.json holds more than 65536 bytes"), "{error}");
        fs::remove_file(&wrong).expect("removes");
        fs::remove_dir_all(folder.path()).expect("removes");
        assert!(matches!(load_dir(folder.path()), Err(RegionError::File { .. })));
    }
}
