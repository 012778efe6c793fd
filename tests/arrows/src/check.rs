//! Rules and tree in, violations out.

use std::fmt;

use crate::rules::{Pattern, Rules};
use crate::tree::{Edge, Package, Tree};

/// One way in which the tree differs from the rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A package that the list doesn't name.
    Unlisted {
        /// The package.
        package: String,
    },
    /// A name in the list that no package has.
    Unknown {
        /// The name.
        name: String,
    },
    /// A package's name isn't its folder's path joined by dashes.
    Misnamed {
        /// The package.
        package: String,
        /// Its folder.
        folder: String,
    },
    /// An arrow that the list doesn't have.
    Arrow {
        /// From this package.
        from: String,
        /// To this one.
        to: String,
        /// In tests alone.
        dev: bool,
    },
    /// A dependency through a wall.
    Wall {
        /// From this package.
        from: String,
        /// To this crate of others.
        to: String,
    },
    /// A crate that is banned from the tree.
    Banned {
        /// The crate.
        name: String,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted { package } => write!(f, "{package} is not in arrows.txt"),
            Self::Unknown { name } => write!(f, "arrows.txt names {name}, which is no package"),
            Self::Misnamed { package, folder } => write!(f, "{package} lies in {folder}: its name must be the path"),
            Self::Arrow { from, to, dev: false } => write!(f, "{from} -> {to} is no arrow of arrows.txt"),
            Self::Arrow { from, to, dev: true } => write!(f, "{from} -> {to} (dev) is no arrow of arrows.txt"),
            Self::Wall { from, to } => write!(f, "{from} -> {to} goes through a wall"),
            Self::Banned { name } => write!(f, "{name} is in the lock file, and banned"),
        }
    }
}

/// Everything in which the tree differs from the rules, sorted; empty where it doesn't.
pub fn check(rules: &Rules, tree: &Tree) -> Vec<Violation> {
    let names: Vec<&str> = tree.packages.iter().map(|package| package.name.as_str()).collect();
    let mut violations: Vec<Violation> =
        tree.packages.iter().flat_map(|package| of_package(rules, &names, package)).collect();
    let listed = rules.arrows.iter().chain(&rules.dev_arrows);
    let mentioned = listed.flat_map(|(from, to)| std::iter::once(from).chain(to)).chain(rules.walls.values().flatten());
    for name in mentioned.filter_map(Pattern::name) {
        if !names.contains(&name) {
            violations.push(Violation::Unknown { name: name.to_owned() });
        }
    }
    for name in &rules.bans {
        if tree.locked.contains(name) {
            violations.push(Violation::Banned { name: name.clone() });
        }
    }
    violations.sort();
    violations.dedup();
    violations
}

fn of_package(rules: &Rules, names: &[&str], package: &Package) -> Vec<Violation> {
    let mut violations = Vec::new();
    let from = &package.name;
    if package.folder.replace('/', "-") != *from {
        violations.push(Violation::Misnamed { package: from.clone(), folder: package.folder.clone() });
    }
    let allowed = rules.arrows.iter().find(|(pattern, _)| pattern.matches(from)).map(|(_, to)| to);
    let Some(allowed) = allowed else {
        violations.push(Violation::Unlisted { package: from.clone() });
        return violations;
    };
    let in_tests = rules.dev_arrows.iter().find(|(pattern, _)| pattern.matches(from)).map(|(_, to)| to);
    for Edge { to, dev } in &package.dependencies {
        if names.contains(&to.as_str()) {
            let is_in = |list: &Vec<Pattern>| list.iter().any(|pattern| pattern.matches(to));
            let is_allowed = is_in(allowed) || *dev && in_tests.is_some_and(is_in);
            if !is_allowed {
                violations.push(Violation::Arrow { from: from.clone(), to: to.clone(), dev: *dev });
            }
        } else if let Some(inside) = rules.walls.get(to) {
            // A wall stands in tests too: what they need of a crate, its own package gives them.
            if !inside.iter().any(|pattern| pattern.matches(from)) {
                violations.push(Violation::Wall { from: from.clone(), to: to.clone() });
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        let edges = dependencies.iter().map(|(to, dev)| Edge { to: (*to).to_owned(), dev: *dev });
        Package { name: name.to_owned(), folder: name.replace('-', "/"), dependencies: edges.collect() }
    }

    fn found(rules: &str, packages: Vec<Package>) -> Vec<String> {
        let rules = Rules::parse(rules).expect("rules");
        let tree = Tree { packages, locked: vec!["serde".into(), "bad".into()] };
        check(&rules, &tree).iter().map(Violation::to_string).collect()
    }

    #[test]
    fn what_the_list_has_is_no_violation() {
        let packages = vec![package("a", &[("serde", false)]), package("b-x", &[("a", false), ("raw", false)])];
        assert!(found("a ->\nb-* -> a\nwall raw: b-x", packages).is_empty());
    }

    #[test]
    fn an_arrow_more_is_found() {
        let packages = vec![package("a", &[("b", false)]), package("b", &[])];
        assert_eq!(found("a ->\nb -> a", packages), ["a -> b is no arrow of arrows.txt"]);
    }

    #[test]
    fn a_dev_arrow_needs_its_own_line() {
        let packages = || vec![package("a", &[("b", true)]), package("b", &[])];
        assert_eq!(found("a ->\nb ->", packages()), ["a -> b (dev) is no arrow of arrows.txt"]);
        assert!(found("a ->\ndev a -> b\nb ->", packages()).is_empty());
    }

    #[test]
    fn a_dev_line_allows_no_arrow_of_the_product() {
        let packages = vec![package("a", &[("b", false)]), package("b", &[])];
        assert_eq!(found("a ->\ndev a -> b\nb ->", packages).len(), 1);
    }

    #[test]
    fn walls_bans_and_names_are_held() {
        let mut misplaced = package("a", &[("raw", true)]);
        misplaced.folder = "elsewhere/a".to_owned();
        assert_eq!(
            found("a ->\ngone ->\nwall raw: a2\nban bad", vec![misplaced, package("a2", &[])]),
            [
                "a2 is not in arrows.txt",
                "arrows.txt names gone, which is no package",
                "a lies in elsewhere/a: its name must be the path",
                "a -> raw goes through a wall",
                "bad is in the lock file, and banned",
            ]
        );
    }
}
