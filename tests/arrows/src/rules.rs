//! `arrows.txt` as values.

use std::collections::BTreeMap;

use thiserror::Error;

/// Which of our packages may depend on which, and which crates of others stand behind a wall.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub(crate) arrows: BTreeMap<Pattern, Vec<Pattern>>,
    pub(crate) dev_arrows: BTreeMap<Pattern, Vec<Pattern>>,
    pub(crate) walls: BTreeMap<String, Vec<Pattern>>,
    pub(crate) bans: Vec<String>,
}

/// A line of the list that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {number} of the arrows can't be read: '{line}'")]
pub struct RulesError {
    /// The line's number, from 1.
    pub number: usize,
    /// The line.
    pub line: String,
}

/// A name, or the beginning of names when it ends with `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == self.0,
        }
    }

    /// The one name that it stands for; none where it is the beginning of many.
    pub(crate) fn name(&self) -> Option<&str> {
        if self.0.ends_with('*') { None } else { Some(&self.0) }
    }
}

impl Rules {
    /// Reads the list. Two lines for one name are an error: the second would hide the first.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            rules.add(line).ok_or_else(|| RulesError { number: index + 1, line: line.to_owned() })?;
        }
        Ok(rules)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        if let Some(name) = line.strip_prefix("ban ") {
            self.bans.push(single(name)?);
            return Some(());
        }
        if let Some(rest) = line.strip_prefix("wall ") {
            let (name, from) = rest.split_once(':')?;
            let from = patterns(from)?;
            let is_new = !from.is_empty() && self.walls.insert(single(name)?, from).is_none();
            return is_new.then_some(());
        }
        let (table, rest) = match line.strip_prefix("dev ") {
            Some(rest) => (&mut self.dev_arrows, rest),
            None => (&mut self.arrows, line),
        };
        let (from, to) = rest.split_once("->")?;
        let is_new = table.insert(Pattern(single(from)?), patterns(to)?).is_none();
        is_new.then_some(())
    }
}

/// A comma-separated list, possibly empty.
fn patterns(text: &str) -> Option<Vec<Pattern>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|name| single(name).map(Pattern)).collect()
}

fn single(text: &str) -> Option<String> {
    let text = text.trim();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
    (!text.is_empty() && text.bytes().all(is_name)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let rules = Rules::parse("# a\n\na ->\nb -> a, c-*\ndev b -> d\nwall w: b, c\nban x").expect("rules");
        assert_eq!((rules.arrows.len(), rules.dev_arrows.len(), rules.walls["w"].len()), (2, 1, 2));
        assert_eq!(rules.bans, ["x"]);
    }

    #[test]
    fn malformed_lines_are_named() {
        for line in ["a", "a -> b c", "wall w", "wall w:", "a -> b,", "ban", "ban a b", "-> a"] {
            assert_eq!(Rules::parse(&format!("#\n{line}")).expect_err(line).number, 2, "{line}");
        }
        assert_eq!(Rules::parse("a ->\na -> b").expect_err("twice").number, 2);
    }

    #[test]
    fn a_star_stands_for_a_beginning() {
        assert!(Pattern("tests-*".into()).matches("tests-bench"));
        assert!(Pattern("*".into()).matches("anything"));
        assert!(!Pattern("tests-*".into()).matches("test"));
        assert!(!Pattern("fabric".into()).matches("fabric-api"));
    }
}
