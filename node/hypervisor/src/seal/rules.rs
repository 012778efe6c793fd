//! The view once more, for landlock (landlock(7)): it also holds where a mount would be found a way around.

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};

use super::view::View;

/// The newest version whose rights are asked for; an older kernel takes those that it knows.
const NEWEST: ABI = ABI::V6;

/// The rules of a view whose files lie below `root`; none where the kernel has no landlock.
pub(super) fn ruleset(view: &View, root: &Path) -> Result<Option<OwnedFd>, RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    let mut ruleset = ruleset.create()?;
    let read = AccessFs::from_read(NEWEST);
    // Controls of devices (ioctl) are their drivers' affair; a disk's file takes none that matter.
    let write = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let own = AccessFs::from_all(NEWEST);
    let shown = view.read.iter().chain(&view.shared).map(|path| (path.as_path(), read));
    let written = view.write.iter().chain(&view.made).map(|path| (path.as_path(), own));
    let devices = view.devices.iter().map(|path| (path.as_path(), write));
    for (path, access) in shown.chain(written).chain(devices) {
        let path = root.join(path.strip_prefix("/").unwrap_or(path));
        let Ok(about) = std::fs::metadata(&path) else { continue };
        // A file has fewer rights than a folder; the kernel refuses others.
        let access: BitFlags<AccessFs> = if about.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        if let Ok(descriptor) = PathFd::new(&path) {
            ruleset = ruleset.add_rule(PathBeneath::new(descriptor, access))?;
        }
    }
    Ok(ruleset.into())
}
