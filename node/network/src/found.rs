//! Reads back, from what the kernel lists, the ports that an earlier process of this node made. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::plan::{Mac, Number, PORTS_MAX};
use crate::ruleset::{Edition, Pinned, Sets, read_comment};

/// The rules of a port that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRules {
    /// Whose frames are taken; none if that can't be told.
    pub(crate) mac: Option<Mac>,
    pub(crate) edition: Edition,
    pub(crate) digest: String,
    pub(crate) sets: Sets,
    pub(crate) pins: Vec<Pinned>,
}

/// Every port that has rules in a table, as `nft` lists it.
pub(crate) fn read(listed: &Value) -> BTreeMap<Number, FoundRules> {
    let mut found = BTreeMap::new();
    let objects = listed["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    fn named<'a>(object: &'a Value, field: &str) -> Option<(&'a str, Number)> {
        object[field].as_str().and_then(split)
    }
    for chain in objects.iter().map(|object| &object["chain"]) {
        if let Some(("port", number)) = named(chain, "name") {
            // With no remark to tell otherwise, the policy is unknown: the first that is applied replaces it.
            let unknown = FoundRules {
                mac: None,
                edition: Edition(1),
                digest: "unknown".to_owned(),
                sets: Sets::default(),
                pins: Vec::new(),
            };
            found.insert(number, unknown);
        }
    }
    for rule in objects.iter().map(|object| &object["rule"]) {
        if let Some(("enter", number)) = named(rule, "chain")
            && let Some(port) = found.get_mut(&number)
        {
            let sender = rule["expr"].as_array().into_iter().flatten().map(|part| &part["match"]["right"]);
            port.mac = port.mac.or_else(|| sender.filter_map(Value::as_str).find_map(|text| text.parse().ok()));
        }
        let remark = rule["comment"].as_str().and_then(read_comment);
        if let (Some(("port", number)), Some((edition, digest))) = (named(rule, "chain"), remark)
            && let Some(port) = found.get_mut(&number)
        {
            (port.edition, port.digest) = (edition, digest);
        }
    }
    for set in objects.iter().map(|object| &object["set"]) {
        let Some((what, number)) = named(set, "name") else { continue };
        let Some(port) = found.get_mut(&number) else { continue };
        match what {
            "allow" => port.sets.allow = true,
            "deny" => port.sets.deny = true,
            "pins" => {
                port.sets.pins = true;
                let elements = set["elem"].as_array().map(Vec::as_slice).unwrap_or_default();
                port.pins = elements.iter().filter_map(pin).collect();
            }
            _ => {}
        }
    }
    found
}

/// `port_7` is `port` of port 7.
fn split(name: &str) -> Option<(&str, Number)> {
    let (what, number) = name.rsplit_once('_')?;
    let number = number.parse().ok().filter(|&number| number < PORTS_MAX)?;
    Some((what, Number(number)))
}

fn pin(element: &Value) -> Option<Pinned> {
    let element = &element["elem"];
    let seconds = element["expires"].as_u64().and_then(|seconds| u32::try_from(seconds).ok())?;
    Some(Pinned {
        address: element["val"].as_str()?.parse().ok()?,
        name: element["comment"].as_str()?.to_owned(),
        seconds,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_with_their_policy_and_pins() {
        let listed = json!({"nftables": [
            {"metainfo": {"version": "1"}},
            {"chain": {"name": "port_3"}}, {"chain": {"name": "raw"}}, {"chain": {"name": "port_99999"}},
            {"chain": {"name": "port_4"}},
            {"set": {"name": "forbidden", "elem": ["10.0.0.0"]}},
            {"set": {"name": "allow_3"}},
            {"set": {"name": "pins_3", "elem": [
                {"elem": {"val": "1.2.3.4", "timeout": 60, "expires": 59, "comment": "a.com"}}, "5.5.5.5"]}},
            {"rule": {"chain": "port_3", "comment": "policy 5 abcd"}}, {"rule": {"chain": "port_3"}},
            {"rule": {"chain": "enter_3", "expr": [
                {"match": {"op": "!=", "left": {}, "right": "02:00:00:00:00:07"}}, {"drop": null}]}},
        ]});
        let found = read(&listed);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [Number(3), Number(4)]);
        let port = found.get(&Number(3)).expect("a port");
        assert_eq!((port.edition, port.digest.as_str()), (Edition(5), "abcd"));
        assert_eq!(port.mac, "02:00:00:00:00:07".parse().ok());
        assert_eq!(port.sets, Sets { allow: true, deny: false, pins: true });
        let pin = Pinned { address: [1, 2, 3, 4].into(), name: "a.com".to_owned(), seconds: 59 };
        assert_eq!(port.pins, [pin]);
        assert!(read(&json!(null)).is_empty());
    }
}
