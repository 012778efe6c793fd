//! The workspace's packages and dependencies, as cargo tells them.

use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};
use thiserror::Error;

/// The workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Our packages.
    pub packages: Vec<Package>,
    /// The names of all packages that the lock file holds.
    pub locked: Vec<String>,
}

/// One of our packages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder in the workspace, with slashes.
    pub folder: String,
    /// What its Cargo.toml depends on.
    pub dependencies: Vec<Edge>,
}

/// One dependency of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The package's name, whatever it is renamed to.
    pub to: String,
    /// Whether it is for tests, examples and benchmarks alone.
    pub dev: bool,
}

/// The workspace can't be read.
#[derive(Debug, Error)]
pub enum TreeError {
    /// cargo failed.
    #[error("cargo can't describe the workspace at {root}")]
    Cargo {
        /// Where.
        root: PathBuf,
        /// Why.
        #[source]
        source: cargo_metadata::Error,
    },
    /// The lock file.
    #[error("{path} can't be read")]
    Lock {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Reads the workspace at `root`: its manifests by cargo, without the network, and its lock file.
pub fn read_tree(root: &Path) -> Result<Tree, TreeError> {
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(|source| TreeError::Cargo { root: root.to_owned(), source })?;
    let mut packages: Vec<Package> = metadata
        .packages
        .iter()
        .map(|package| {
            let folder =
                package.manifest_path.parent().and_then(|folder| folder.strip_prefix(&metadata.workspace_root).ok());
            let edges = package.dependencies.iter().map(|dependency| Edge {
                to: dependency.name.clone(),
                dev: dependency.kind == DependencyKind::Development,
            });
            Package {
                name: package.name.to_string(),
                folder: folder.map(|folder| folder.as_str().to_owned()).unwrap_or_default(),
                dependencies: edges.collect(),
            }
        })
        .collect();
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    let path = root.join("Cargo.lock");
    let lock = std::fs::read_to_string(&path).map_err(|source| TreeError::Lock { path, source })?;
    Ok(Tree { packages, locked: locked(&lock) })
}

/// The names in a lock file. Its form is generated, one `name = "..."` a package, so no parser is needed.
fn locked(lock: &str) -> Vec<String> {
    let name = |line: &str| line.strip_prefix("name = \"")?.strip_suffix('"').map(str::to_owned);
    lock.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_out_of_a_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a-b\"\nversion = \"1.0.0\"\ndependencies = [\n \"c\",\n]\n";
        assert_eq!(locked(lock), ["a-b"]);
    }
}
