//! Questions and answers, hostile ones among them.

use std::str::FromStr;

use hickory_proto::rr::rdata::{A, CNAME};
use proptest::prelude::*;

use super::*;
use crate::plan;

fn policy(text: &str) -> NetworkPolicy {
    serde_json::from_str(text).expect("a policy")
}

fn name(text: &str) -> Name {
    Name::from_str(text).expect("a name")
}

fn question(of: &str, kind: RecordType) -> Question {
    let mut message = Message::query();
    message.add_query(Query::query(name(of), kind));
    read(&message.to_vec().expect("bytes")).expect("a question").expect("one for us")
}

fn answer(records: Vec<Record>) -> Message {
    let mut message = Message::response(1, OpCode::Query);
    message.insert_answers(records);
    message
}

fn a(of: &str, address: &str, ttl: u32) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(A(address.parse().expect("an address"))))
}

fn cname(of: &str, to: &str) -> Record {
    Record::from_rdata(name(of), 300, RData::CNAME(CNAME(name(to))))
}

const ALLOWED: &str = r#"{"blockAll":false,"allowDomains":["a.com","*.b.com"],"denyDomains":["bad.b.com"]}"#;

#[test]
fn only_what_is_allowed_is_asked_for() {
    let forbidden = plan::forbidden(&[]);
    let closed = policy(ALLOWED);
    let decided = |policy: &NetworkPolicy, of: &str, kind| decide(policy, &question(of, kind), &forbidden);
    assert_eq!(decided(&closed, "A.com.", RecordType::A), Decision::Ask);
    assert_eq!(decided(&closed, "x.b.com.", RecordType::TXT), Decision::Ask);
    assert_eq!(decided(&closed, "bad.b.com.", RecordType::A), Decision::Say(ResponseCode::NXDomain));
    assert_eq!(decided(&closed, "secret.evil.com.", RecordType::A), Decision::Say(ResponseCode::Refused));
    assert_eq!(decided(&closed, "a.com.", RecordType::AAAA), Decision::Say(ResponseCode::NoError));
    assert_eq!(decided(&closed, "a.com.", RecordType::HTTPS), Decision::Say(ResponseCode::NoError));
    let open = NetworkPolicy::default();
    assert_eq!(decided(&open, "any.com.", RecordType::A), Decision::Ask);
    assert_eq!(decided(&open, "any.com.", RecordType::ANY), Decision::Say(ResponseCode::NotImp));
    assert_eq!(decided(&open, "1.0.0.10.in-addr.arpa.", RecordType::PTR), Decision::Say(ResponseCode::Refused));
    assert_eq!(decided(&open, "8.8.8.8.in-addr.arpa.", RecordType::PTR), Decision::Ask);
    let ranges = policy(r#"{"blockAll":false,"allow":["203.0.113.0/24"]}"#);
    assert_eq!(decided(&ranges, "secret.evil.com.", RecordType::TXT), Decision::Say(ResponseCode::Refused));
    assert_eq!(decided(&ranges, "7.113.0.203.in-addr.arpa.", RecordType::PTR), Decision::Say(ResponseCode::Refused));
    let both = policy(r#"{"blockAll":false,"allow":["203.0.113.0/24"],"allowDomains":["a.com"]}"#);
    assert_eq!(decided(&both, "a.com.", RecordType::A), Decision::Ask);
    assert_eq!(decided(&both, "b.com.", RecordType::A), Decision::Say(ResponseCode::Refused));
    let denied = policy(r#"{"blockAll":false,"deny":["203.0.113.0/24"]}"#);
    assert_eq!(decided(&denied, "any.com.", RecordType::A), Decision::Ask, "what is open stays open");
    let blocked = policy(r#"{"blockAll":true}"#);
    assert_eq!(decided(&blocked, "any.com.", RecordType::A), Decision::Say(ResponseCode::Refused));
}

#[test]
fn a_dot_inside_of_a_label_is_no_way_around_a_pattern() {
    let mut message = Message::query();
    let odd = Name::from_labels(vec![b"x.b".as_slice(), b"com"]).expect("a name");
    message.add_query(Query::query(odd, RecordType::A));
    let read = read(&message.to_vec().expect("bytes")).expect("answered");
    assert_eq!(read.expect_err("refused").metadata.response_code, ResponseCode::Refused);
}

#[test]
fn addresses_are_pinned_for_as_long_as_the_guest_is_told() {
    let asked = question("a.com.", RecordType::A);
    let forbidden = plan::forbidden(&[]);
    for (ttl, told) in [(0, 30), (300, 300), (100_000, 3600)] {
        let given = answer(vec![a("a.com.", "1.2.3.4", ttl), a("other.com.", "5.5.5.5", 60)]);
        let Judgement::Reply { records, pins, .. } = judge(&policy(ALLOWED), &asked, &given, &forbidden) else {
            panic!("no reply");
        };
        assert_eq!(pins, [(Ipv4Addr::new(1, 2, 3, 4), told + GRACE_SECONDS)]);
        assert_eq!(records.iter().map(|record| record.ttl).collect::<Vec<_>>(), [told]);
    }
    let open = judge(&NetworkPolicy::default(), &asked, &answer(vec![a("a.com.", "1.2.3.4", 60)]), &forbidden);
    assert!(matches!(open, Judgement::Reply { pins, .. } if pins.is_empty()));
}

#[test]
fn rebinding_is_refused_also_behind_an_alias_and_beside_a_public_address() {
    let asked = question("a.com.", RecordType::A);
    let forbidden = plan::forbidden(&["9.9.9.0/24".parse().expect("a range")]);
    for inside in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "192.168.1.1", "9.9.9.9", "0.0.0.0"] {
        for policy in [policy(ALLOWED), NetworkPolicy::default()] {
            let plain = answer(vec![a("a.com.", "1.2.3.4", 60), a("a.com.", inside, 60)]);
            assert_eq!(judge(&policy, &asked, &plain, &forbidden), Judgement::Say(ResponseCode::Refused), "{inside}");
            let alias = answer(vec![a("c.com.", inside, 60), cname("b.com.", "c.com."), cname("a.com.", "b.com.")]);
            assert_eq!(judge(&policy, &asked, &alias, &forbidden), Judgement::Say(ResponseCode::Refused), "{inside}");
        }
    }
}

#[test]
fn an_alias_of_what_is_denied_is_denied() {
    let given = answer(vec![cname("a.com.", "bad.b.com."), a("bad.b.com.", "1.2.3.4", 60)]);
    let judged = judge(&policy(ALLOWED), &question("a.com.", RecordType::A), &given, &plan::forbidden(&[]));
    assert_eq!(judged, Judgement::Say(ResponseCode::NXDomain));
}

#[test]
fn a_long_answer_is_cut_and_marked() {
    let asked = question("a.com.", RecordType::A);
    let records: Vec<Record> = (0..64).map(|n| a("a.com.", &format!("1.2.3.{n}"), 60)).collect();
    let cut = write(&asked, ResponseCode::NoError, records.clone(), 512).expect("bytes");
    let cut = Message::from_vec(&cut).expect("a message");
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = write(&asked, ResponseCode::NoError, records, usize::MAX).expect("bytes");
    assert_eq!(Message::from_vec(&whole).expect("a message").answers.len(), 64);
}

proptest! {
    /// Whatever a guest sends is read without harm, and what is answered can be read again.
    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Some(Ok(question)) = read(&bytes) {
            prop_assert!(write(&question, ResponseCode::NoError, Vec::new(), 512).is_some());
        }
    }
}
