//! What a guest may reach: lists of ranges and domains as clients write them.

use fabric_types::{NETWORK_RULES_MAX, NetworkError, NetworkPolicy, network_range};

use crate::refusal::{Answer, Refusal};

/// A list under the name that its client knows it by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'given, Text> {
    /// The field.
    pub(crate) field: &'static str,
    /// Its entries.
    pub(crate) entries: &'given [Text],
}

/// A policy from its lists: ranges that may and may not be reached, domains that may and may not.
pub(crate) fn network<Text: AsRef<str>>(
    block_all: bool,
    allow: Rules<'_, Text>,
    deny: Rules<'_, Text>,
    allow_domains: Rules<'_, Text>,
    deny_domains: Rules<'_, Text>,
) -> Answer<NetworkPolicy> {
    Ok(NetworkPolicy {
        block_all,
        allow: read(allow, network_range)?,
        deny: read(deny, network_range)?,
        allow_domains: read(allow_domains, str::parse)?,
        deny_domains: read(deny_domains, str::parse)?,
    })
}

/// The entries of a list that is written with commas; empty ones are none.
pub(crate) fn separated(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect()
}

fn read<Text: AsRef<str>, T: PartialEq>(
    rules: Rules<'_, Text>,
    one: fn(&str) -> Result<T, NetworkError>,
) -> Answer<Vec<T>> {
    let Rules { field, entries } = rules;
    if entries.len() > NETWORK_RULES_MAX {
        let given = entries.len();
        return Err(Refusal::bad(format!("{field}: {given} entries are given; at most {NETWORK_RULES_MAX} are taken")));
    }
    let mut taken = Vec::new();
    for entry in entries {
        let rule = one(entry.as_ref().trim()).map_err(|error| Refusal::bad(format!("{field}: {error}")))?;
        if !taken.contains(&rule) {
            taken.push(rule);
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules<'given>(field: &'static str, entries: &'given [&'given str]) -> Rules<'given, &'given str> {
        Rules { field, entries }
    }

    fn policy(allow: &[&str], domains: &[&str]) -> Result<NetworkPolicy, String> {
        let none = || rules("deny", &[]);
        network(false, rules("allow", allow), none(), rules("domains", domains), none())
            .map_err(|refusal| refusal.0.message)
    }

    #[test]
    fn lists_are_read_once_and_refused_with_their_field() {
        let read = policy(&separated(Some(" 203.0.113.9/24, 203.0.113.0/24 ,,")), &["*.Example.com"]).expect("lists");
        assert_eq!((read.allow.len(), read.allow_domains.len()), (1, 1));
        let error = policy(&["10.0.0.300"], &[]).expect_err("no network");
        assert_eq!(error, "allow: '10.0.0.300' is no network, as in 203.0.113.0/24 or 2001:db8::/32");
        assert!(policy(&[], &["http://a.com"]).expect_err("no domain").starts_with("domains: "));
        let many: Vec<_> = (0..257).map(|number| format!("203.0.113.{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(policy(&many, &[]).expect_err("too many").contains("at most 256"));
    }
}
