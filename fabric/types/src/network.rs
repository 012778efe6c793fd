//! What a guest may reach: the policy that a client asks for, parsed.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most ranges and most names in one list: above what clients send, little enough for a set in the kernel.
pub const NETWORK_RULES_MAX: usize = 256;
/// Longest domain name, bytes (RFC 1035, section 2.3.4).
const DOMAIN_BYTES_MAX: usize = 253;
/// Characters of a refused range that its error repeats: the longest there is has 43.
const RANGE_SHOWN_MAX: usize = 64;
/// Longest label of a domain name, bytes (RFC 1035, section 2.3.4).
const LABEL_BYTES_MAX: usize = 63;

/// What the guest may reach. Whatever it says, a guest never reaches its host, the fabric, other sandboxes, loopback,
/// link-local, metadata, private or shared (CGNAT) ranges.
///
/// With anything in `allow` or `allow_domains`, only that is reached; without, everything public but what is denied.
/// A denial wins over an allowance. Names that aren't in `allow_domains` are then not answered either, so that no question
/// carries anything out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// The client asked for no network at all.
    pub block_all: bool,
    /// Ranges that may be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Ranges that may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
    /// Names whose addresses may be reached, once the node's resolver has answered them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_domains: Vec<DomainPattern>,
    /// Names that the node's resolver refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_domains: Vec<DomainPattern>,
}

impl NetworkPolicy {
    /// Whether only what is allowed is reached.
    pub fn is_closed(&self) -> bool {
        !self.allow.is_empty() || !self.allow_domains.is_empty()
    }

    /// Refuses lists longer than [`NETWORK_RULES_MAX`].
    pub fn check(&self) -> Result<(), NetworkError> {
        let lengths = [self.allow.len(), self.deny.len(), self.allow_domains.len(), self.deny_domains.len()];
        match lengths.into_iter().find(|&length| length > NETWORK_RULES_MAX) {
            Some(length) => Err(NetworkError::TooMany { length }),
            None => Ok(()),
        }
    }
}

/// A range in CIDR form, or one address; bits beyond the prefix are cleared.
pub fn network_range(text: &str) -> Result<IpNet, NetworkError> {
    let text = text.trim();
    let one = text.parse::<std::net::IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse::<IpNet>().map(|range| range.trunc()))
        .map_err(|_| NetworkError::Range { text: text.chars().take(RANGE_SHOWN_MAX).collect() })
}

/// A domain name, lower case, or `*.` and one for all names below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainPattern {
    name: String,
    below: bool,
}

impl DomainPattern {
    /// Whether the pattern covers a name (without a final dot, any case).
    pub fn covers(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        if self.below {
            name.strip_suffix(&self.name).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
        } else {
            name == self.name
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl FromStr for DomainPattern {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || NetworkError::Domain { text: text.chars().take(DOMAIN_BYTES_MAX).collect() };
        let lower = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        let label_fits = |label: &str| {
            let ends = label.starts_with('-') || label.ends_with('-');
            let bytes = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LABEL_BYTES_MAX).contains(&label.len()) && !ends && label.bytes().all(bytes)
        };
        let numeric = name.split('.').all(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if name.len() > DOMAIN_BYTES_MAX || numeric || !name.split('.').all(label_fits) {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), below })
    }
}

impl TryFrom<String> for DomainPattern {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DomainPattern> for String {
    fn from(pattern: DomainPattern) -> Self {
        pattern.to_string()
    }
}

/// Why a network policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NetworkError {
    /// No domain.
    #[error("'{text}' is no domain name, as in example.com or *.example.com")]
    Domain {
        /// What was given.
        text: String,
    },
    /// No range of addresses.
    #[error("'{text}' is no network, as in 203.0.113.0/24 or 2001:db8::/32")]
    Range {
        /// What was given.
        text: String,
    },
    /// A list that is too long.
    #[error("{length} network rules are more than the {NETWORK_RULES_MAX} that one list may have")]
    TooMany {
        /// How many were given.
        length: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> DomainPattern {
        text.parse().expect("a pattern")
    }

    #[test]
    fn a_name_covers_itself_and_a_star_only_what_is_below() {
        assert!(pattern("Example.com.").covers("EXAMPLE.com"));
        assert!(!pattern("example.com").covers("a.example.com"));
        let star = pattern("*.example.com");
        assert!(star.covers("a.example.com.") && star.covers("a.b.example.com"));
        assert!(!star.covers("example.com") && !star.covers(".example.com") && !star.covers("badexample.com"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_text() {
        for text in ["", "*", "*.", "a..b", "-a.com", "a b.com", "10.0.0.1", "*.*.com", "http://a.com", &"a".repeat(64)]
        {
            assert!(text.parse::<DomainPattern>().is_err(), "{text}");
        }
        let error = "a b".parse::<DomainPattern>().expect_err("no name");
        assert_eq!(error.to_string(), "'a b' is no domain name, as in example.com or *.example.com");
    }

    #[test]
    fn a_range_is_a_network_or_one_address_without_stray_bits() {
        for (text, range) in [
            ("203.0.113.9/24", "203.0.113.0/24"),
            (" 203.0.113.9 ", "203.0.113.9/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            assert_eq!(network_range(text).expect(text).to_string(), range);
        }
        for text in ["", "a", "10.0.0.300", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0.0/8/8", &"1".repeat(9999)] {
            let error = network_range(text).expect_err(text).to_string();
            assert!(error.len() < 150, "{error}");
        }
    }

    #[test]
    fn an_old_policy_still_reads_and_a_plain_one_keeps_its_bytes() {
        let old: NetworkPolicy = serde_json::from_str(r#"{"blockAll":true}"#).expect("read");
        assert_eq!(old, NetworkPolicy { block_all: true, ..NetworkPolicy::default() });
        assert_eq!(serde_json::to_string(&old).expect("written"), r#"{"blockAll":true}"#);
    }
}
