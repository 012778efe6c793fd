//! The rules of policies, as bytes and as properties.

use fabric_types::NetworkPolicy;
use proptest::prelude::*;

use super::*;

fn json(commands: &[Command]) -> String {
    commands.iter().map(|command| serde_json::to_string(command).expect("JSON") + "\n").collect()
}

fn rules(policy_of: &NetworkPolicy) -> String {
    json(&policy(Number(7), policy_of, Edition(3), "d", &mut Sets::default(), &[]))
}

fn parsed(text: &str) -> NetworkPolicy {
    serde_json::from_str(text).expect("a policy")
}

#[test]
fn the_default_policy_has_this_golden_form() {
    assert_eq!(rules(&NetworkPolicy::default()), include_str!("../tests/golden/default.jsonl"));
}

#[test]
fn a_policy_of_every_list_has_this_golden_form() {
    let policy = parsed(
        r#"{"blockAll":false,"allow":["1.0.0.0/8","2.2.2.2/32","::ffff:3.3.0.0/112","2001:db8::/32"],
            "deny":["1.2.0.0/16"],"allowDomains":["example.com","*.example.org"],"denyDomains":["bad.example.com"]}"#,
    );
    assert_eq!(rules(&policy), include_str!("../tests/golden/lists.jsonl"));
}

#[test]
fn a_blocked_guest_has_one_rule() {
    let policy = parsed(r#"{"blockAll":true,"allow":["1.0.0.0/8"],"allowDomains":["example.com"]}"#);
    let rules = rules(&policy);
    assert!(!rules.contains("accept") && !rules.contains("admit") && !rules.contains("1.0.0.0"), "{rules}");
}

#[test]
fn sets_come_and_go_with_the_lists() {
    let mut sets = Sets::default();
    let lists = parsed(r#"{"blockAll":false,"allow":["1.0.0.0/8"],"allowDomains":["a.com"]}"#);
    policy(Number(1), &lists, Edition(1), "", &mut sets, &[]);
    assert_eq!(sets, Sets { allow: true, deny: false, pins: true });
    let gone = json(&policy(Number(1), &NetworkPolicy::default(), Edition(2), "", &mut sets, &[]));
    assert_eq!(sets, Sets::default());
    assert!(gone.contains(r#"{"delete":{"set""#), "{gone}");
}

#[test]
fn the_kernel_remembers_the_policy() {
    assert_eq!(read_comment(&comment(Edition(9), "abc")), Some((Edition(9), "abc".to_owned())));
    assert_eq!(read_comment("policy x y"), None);
    assert_eq!(read_comment("else"), None);
}

fn any_net() -> impl Strategy<Value = ipnet::IpNet> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(a, p)| ipnet::Ipv4Net::new(a.into(), p).expect("a range").into()),
        (any::<u128>(), 0u8..=128).prop_map(|(a, p)| ipnet::Ipv6Net::new(a.into(), p).expect("a range").into()),
    ]
}

fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
    let nets = || proptest::collection::vec(any_net(), 0..6);
    let names = || proptest::collection::vec("[a-z]{1,5}\\.com".prop_map(|name| name.parse().expect("a name")), 0..3);
    (any::<bool>(), nets(), nets(), names(), names()).prop_map(
        |(block_all, allow, deny, allow_domains, deny_domains)| NetworkPolicy {
            block_all,
            allow,
            deny,
            allow_domains,
            deny_domains,
        },
    )
}

proptest! {
    /// Whatever a client writes: the forbidden ranges are refused before anything new is admitted, a closed policy
    /// ends in a refusal, and no set is named that isn't there.
    #[test]
    fn no_policy_opens_what_is_forbidden(policy_of in any_policy(), had in (any::<bool>(), any::<bool>(), any::<bool>())) {
        let mut sets = Sets { allow: had.0, deny: had.1, pins: had.2 };
        let all = policy(Number(7), &policy_of, Edition(3), "d", &mut sets, &[]);
        let lines: Vec<String> = all.iter().map(|command| serde_json::to_string(command).expect("JSON")).collect();
        let of_port: Vec<&String> = lines.iter().filter(|line| line.contains(r#""add":{"rule""#) && line.contains(r#""chain":"port_7""#)).collect();
        let refused = of_port.iter().position(|line| line.contains("@forbidden"));
        let admitted = of_port.iter().position(|line| line.contains("admit_7"));
        if policy_of.block_all {
            prop_assert!(of_port.len() == 1 && of_port[0].contains("refuse"));
        } else {
            prop_assert!(refused.is_some());
            prop_assert!(admitted.is_none_or(|admitted| refused.is_some_and(|refused| refused < admitted)));
            let last = of_port.last().expect("a rule");
            prop_assert_eq!(last.contains("refuse"), policy_of.is_closed());
        }
        for (name, there) in [("allow", sets.allow), ("deny", sets.deny), ("pins", sets.pins)] {
            let named = lines.iter().any(|line| line.contains(&format!("@{name}_7")));
            prop_assert_eq!(named, there);
        }
    }
}
