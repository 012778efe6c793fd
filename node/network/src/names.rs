//! What the resolver says: which names a guest may ask for, and what becomes of the answers. Pure.
//!
//! ```text
//! question -> decide -> Say(code): refused, denied, nothing there     never leaves the node
//!                    -> Ask -> answer -> judge -> Say(code)           an address that no guest reaches: rebinding
//!                                              -> Reply(records, pins)
//! ```

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use fabric_types::NetworkPolicy;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::Ipv4Net;

use crate::plan::is_forbidden;

/// Shortest time that an answer holds, seconds: a name that changes each second would fill the set.
const TTL_SECONDS_MIN: u32 = 30;
/// Longest, seconds: an address given up by its owner is reached no longer than this.
const TTL_SECONDS_MAX: u32 = 3600;
/// How much longer an address passes than the guest was told that it holds: time to open the connection.
const GRACE_SECONDS: u32 = 5;
/// Most records of one answer; one with more is cut.
const RECORDS_MAX: usize = 64;
/// Under which addresses are asked for their names (RFC 1035, section 3.5).
const REVERSE: &str = ".in-addr.arpa";

/// A question that is one: of the usual class, with a name of usual letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    pub(crate) query: Query,
    /// The name, lower case and without a final dot.
    pub(crate) name: String,
    /// Longest answer that the guest takes over UDP, bytes.
    pub(crate) payload: u16,
}

/// What to do about a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Answer at once, with no record.
    Say(ResponseCode),
    /// Ask those who know.
    Ask,
}

/// What to tell of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Judgement {
    /// No record.
    Say(ResponseCode),
    /// These, and let the guest reach these addresses for so many seconds first.
    Reply { code: ResponseCode, records: Vec<Record>, pins: Vec<(Ipv4Addr, u32)> },
}

/// Reads what a guest sent: nothing for what deserves no answer, the code alone for what is no question for us.
pub(crate) fn read(bytes: &[u8]) -> Option<Result<Question, Message>> {
    let message = Message::from_vec(bytes).ok()?;
    if message.metadata.message_type != MessageType::Query {
        return None;
    }
    let refuse = |code| Some(Err(Message::error_msg(message.metadata.id, message.metadata.op_code, code)));
    if message.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
    // Other bytes would be written with a backslash, and a dot inside of a label be taken for one between two.
    let usual = |label: &[u8]| label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if query.query_class() != DNSClass::IN || !query.name().iter().all(usual) {
        return refuse(ResponseCode::Refused);
    }
    Some(Ok(Question {
        id: message.metadata.id,
        recursion_desired: message.metadata.recursion_desired,
        name: plain(query.name()),
        query: query.clone(),
        payload: message.max_payload(),
    }))
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a guest may ask. One that may reach only what is listed may ask only for listed names, so for none where only
/// ranges are listed: a question is a way out too.
pub(crate) fn decide(policy: &NetworkPolicy, question: &Question, forbidden: &[Ipv4Net]) -> Decision {
    if policy.block_all {
        return Decision::Say(ResponseCode::Refused);
    }
    if policy.deny_domains.iter().any(|pattern| pattern.covers(&question.name)) {
        return Decision::Say(ResponseCode::NXDomain);
    }
    let allowed = policy.allow_domains.iter().any(|pattern| pattern.covers(&question.name));
    if policy.is_closed() && !allowed {
        return Decision::Say(ResponseCode::Refused);
    }
    if reversed(&question.name).is_some_and(|address| is_forbidden(forbidden, address.into())) {
        return Decision::Say(ResponseCode::Refused);
    }
    match question.query.query_type() {
        // Guests have no IPv6, and hints of addresses would come past the pins (RFC 9460).
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Decision::Say(ResponseCode::NoError),
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR => Decision::Say(ResponseCode::NotImp),
        _ => Decision::Ask,
    }
}

/// The address that a reverse question is about.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let labels: Vec<u8> = name.strip_suffix(REVERSE)?.split('.').filter_map(|label| label.parse().ok()).collect();
    let [d, c, b, a] = labels.try_into().ok()?;
    Some(Ipv4Addr::new(a, b, c, d))
}

/// What of an answer the guest is told. Only records of the name asked for count, and of those that it is said to be.
pub(crate) fn judge(policy: &NetworkPolicy, question: &Question, answer: &Message, forbidden: &[Ipv4Net]) -> Judgement {
    let code = answer.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Judgement::Say(ResponseCode::ServFail);
    }
    let answers: Vec<&Record> = answer.answers.iter().take(RECORDS_MAX).collect();
    let mut names = HashSet::from([question.name.clone()]);
    // Each round finds one more link of the chain, so there are no more rounds than records.
    for _ in 0..answers.len() {
        let known = names.len();
        for record in &answers {
            if let RData::CNAME(target) = &record.data
                && names.contains(&plain(&record.name))
            {
                names.insert(plain(&target.0));
            }
        }
        if names.len() == known {
            break;
        }
    }
    if names.iter().any(|name| policy.deny_domains.iter().any(|pattern| pattern.covers(name))) {
        return Judgement::Say(ResponseCode::NXDomain);
    }

    let mut records: Vec<Record> = Vec::new();
    for record in answers.into_iter().filter(|record| names.contains(&plain(&record.name))) {
        match &record.data {
            RData::A(address) if is_forbidden(forbidden, IpAddr::V4(address.0)) => {
                return Judgement::Say(ResponseCode::Refused);
            }
            RData::AAAA(_) | RData::HTTPS(_) | RData::SVCB(_) => {}
            _ => records.push(record.clone()),
        }
    }
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0).clamp(TTL_SECONDS_MIN, TTL_SECONDS_MAX);
    for record in &mut records {
        record.ttl = ttl;
    }
    let covered = policy.allow_domains.iter().any(|pattern| pattern.covers(&question.name));
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some((address.0, ttl + GRACE_SECONDS)),
        _ => None,
    };
    let pins = if covered { records.iter().filter_map(address).collect() } else { Vec::new() };
    Judgement::Reply { code, records, pins }
}

/// The bytes for a guest: cut, and marked so, where they are more than it takes.
pub(crate) fn write(question: &Question, code: ResponseCode, records: Vec<Record>, longest: usize) -> Option<Vec<u8>> {
    let mut message = Message::error_msg(question.id, OpCode::Query, code);
    message.metadata.recursion_desired = question.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_query(question.query.clone());
    message.insert_answers(records);
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= longest {
        return Some(bytes);
    }
    message.truncate().to_vec().ok()
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
