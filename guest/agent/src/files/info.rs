//! Facts about files and folders; making and removing them.

use std::collections::HashMap;
use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest_proto::surface::{AgentErrorCode, FileInfo, FileList};

use crate::refusal::{Answer, file_error, refuse};

/// Entries in one list. A folder with more is beyond what a client shows.
const ENTRIES_MAX: usize = 10_000;

/// Facts about one file or folder; a link is told as what it leads to.
pub(crate) fn info(path: &Path) -> Answer<FileInfo> {
    let names = Names::read();
    let link = fs::symlink_metadata(path).map_err(file_error("look at", path))?;
    Ok(describe(&names, path, &link))
}

/// A folder's entries, sorted by name.
pub(crate) fn list(path: &Path) -> Answer<FileList> {
    let names = Names::read();
    let mut entries = Vec::new();
    let mut truncated = false;
    for entry in fs::read_dir(path).map_err(file_error("list", path))? {
        let entry = entry.map_err(file_error("list", path))?;
        if entries.len() == ENTRIES_MAX {
            truncated = true;
            break;
        }
        // One that was removed meanwhile isn't there.
        if let Ok(link) = entry.metadata() {
            entries.push(describe(&names, &entry.path(), &link));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(FileList { entries, truncated })
}

/// Makes a folder and its parents. One that is there already is fine.
pub(crate) fn make_folder(path: &Path, mode: Option<u32>) -> Answer<FileInfo> {
    let failed = file_error("make the folder", path);
    fs::create_dir_all(path).map_err(failed)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(file_error("set the mode of", path))?;
    }
    info(path)
}

/// Removes a file, a link, an empty folder, or with `recursive` a folder and all in it.
pub(crate) fn remove(path: &Path, recursive: bool) -> Answer<()> {
    let link = fs::symlink_metadata(path).map_err(file_error("remove", path))?;
    if path.parent().is_none() || fs::canonicalize(path).is_ok_and(|path| path.parent().is_none()) {
        return Err(refuse(AgentErrorCode::Forbidden, "the root folder can't be removed"));
    }
    if !link.is_dir() {
        return fs::remove_file(path).map_err(file_error("remove", path));
    }
    if recursive {
        return fs::remove_dir_all(path).map_err(file_error("remove", path));
    }
    fs::remove_dir(path).map_err(|error| {
        let mut refusal = file_error("remove", path)(error);
        if refusal.code == AgentErrorCode::Conflict {
            refusal.message.push_str("; recursive=true removes what is in it too");
        }
        refusal
    })
}

fn describe(names: &Names, path: &Path, link: &Metadata) -> FileInfo {
    let target = if link.is_symlink() { fs::metadata(path).ok() } else { None };
    let metadata = target.as_ref().unwrap_or(link);
    let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
    FileInfo {
        name: name.into_owned(),
        path: absolute(path).to_string_lossy().into_owned(),
        is_dir: metadata.is_dir(),
        size: metadata.size(),
        modified: metadata.mtime(),
        mode: mode_string(kind_letter(link), metadata.mode()),
        permissions: format!("{:04o}", metadata.mode() & 0o7777),
        owner: names.users.get(&metadata.uid()).cloned().unwrap_or_else(|| metadata.uid().to_string()),
        group: names.groups.get(&metadata.gid()).cloned().unwrap_or_else(|| metadata.gid().to_string()),
    }
}

/// The path without `.` and doubled slashes; `..` stays, since a link may stand before it.
fn absolute(path: &Path) -> PathBuf {
    path.components().collect()
}

fn kind_letter(metadata: &Metadata) -> char {
    let kind = metadata.file_type();
    if kind.is_dir() {
        'd'
    } else if kind.is_symlink() {
        'l'
    } else if kind.is_fifo() {
        'p'
    } else if kind.is_socket() {
        's'
    } else if kind.is_char_device() {
        'c'
    } else if kind.is_block_device() {
        'b'
    } else {
        '-'
    }
}

/// As ls(1) writes it.
fn mode_string(kind: char, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift & 7;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Users and groups of the guest, by number.
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn read() -> Self {
        Self { users: parse_names("/etc/passwd"), groups: parse_names("/etc/group") }
    }
}

/// `name:x:number:...` lines (passwd(5), group(5)); a file that can't be read names nobody.
fn parse_names(path: &str) -> HashMap<u32, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let number = fields.nth(1)?.parse().ok()?;
            Some((number, name.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        let cases = [
            ('-', 0o644, "-rw-r--r--"),
            ('d', 0o1777, "drwxrwxrwt"),
            ('-', 0o4755, "-rwsr-xr-x"),
            ('-', 0o2640, "-rw-r-S---"),
        ];
        for (kind, mode, text) in cases {
            assert_eq!(mode_string(kind, mode), text);
        }
    }

    #[test]
    fn a_list_is_sorted_and_tells_links() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), b"12345").unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("c")).unwrap();
        symlink("nowhere", folder.path().join("d")).unwrap();
        let list = list(folder.path()).unwrap();
        let facts: Vec<(&str, bool, &str)> =
            list.entries.iter().map(|entry| (entry.name.as_str(), entry.is_dir, &entry.mode[..1])).collect();
        assert_eq!(facts, [("a", true, "d"), ("b", false, "-"), ("c", true, "l"), ("d", false, "l")]);
        assert_eq!(list.entries[1].size, 5);
        assert!(!list.truncated);
        let owner = &info(Path::new("/etc/passwd")).unwrap().owner;
        assert_eq!(owner, "root");
    }

    #[test]
    fn removing_says_what_stands_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let full = folder.path().join("full");
        make_folder(&full.join("inner"), Some(0o700)).unwrap();
        assert_eq!(info(&full.join("inner")).unwrap().permissions, "0700");
        let error = remove(&full, false).unwrap_err();
        assert_eq!(error.code, AgentErrorCode::Conflict);
        assert!(error.message.contains("recursive=true"), "{}", error.message);
        remove(&full, true).unwrap();
        assert_eq!(remove(&full, true).unwrap_err().code, AgentErrorCode::NotFound);
        for root in ["/", "/.", "/usr/..", "//"] {
            assert_eq!(remove(Path::new(root), true).unwrap_err().code, AgentErrorCode::Forbidden, "{root}");
        }
        fs::write(&full, b"").unwrap();
        assert_eq!(make_folder(&full, None).unwrap_err().code, AgentErrorCode::Conflict);
        assert_eq!(list(&full).unwrap_err().code, AgentErrorCode::Conflict);
        // A link goes, not what it leads to.
        let link = folder.path().join("link");
        symlink("/etc", &link).unwrap();
        remove(&link, true).unwrap();
        assert!(Path::new("/etc/passwd").exists());
    }
}
