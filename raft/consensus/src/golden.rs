//! The written forms of votes, entries and calls, held against a file. openraft's serde forms are in them, so this
//! also says when a new version of it would no longer read what an older one wrote.

use openraft::alias::LogIdOf;
use openraft::entry::RaftEntry;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::vote::RaftLeaderIdExt;
use openraft::{EntryPayload, Membership};
use raft_placement::Versioned;
use raft_placement::region::{Command, Placement};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::GroupName;
use crate::record;
use crate::types::{Entry, LogId, Member, RaftNode, Types, Vote};
use crate::wire::{Call, decode_body, decode_request, encode_request};

/// With commands of version 2.
const GOLDEN: &str = include_str!("../tests/golden/records.v2.jsonl");
/// With commands of version 1, as earlier programs wrote them.
const EARLIER: &str = include_str!("../tests/golden/records.v1.jsonl");

type LeaderIdOf = <Types<Placement> as openraft::RaftTypeConfig>::LeaderId;

fn log_id(term: u64, index: u64) -> LogId<Placement> {
    LogIdOf::<Types<Placement>>::new(LeaderIdOf::new_committed(term, RaftNode::from(0)), index)
}

fn entries() -> Vec<Entry<Placement>> {
    let voters = [RaftNode::from(0), RaftNode::from(1)].into();
    let members = [0, 1, 2].map(|number| (RaftNode::from(number), Member::default()));
    let membership = Membership::new(vec![voters], std::collections::BTreeMap::from(members)).expect("a membership");
    let command = Command::RemoveNode { node: RaftNode::from(2).0 };
    let entry = |index, payload| Entry::<Placement> { log_id: log_id(1, index), payload };
    vec![
        entry(0, EntryPayload::Membership(membership)),
        entry(1, EntryPayload::Blank),
        entry(2, EntryPayload::Normal(Versioned(command))),
    ]
}

fn text<T: Serialize>(value: &T) -> String {
    let record = record::encode("a record", value).expect("a record");
    assert_eq!(record[0], 1, "the golden files' records are of version 1");
    String::from_utf8(record[1..].to_vec()).expect("JSON is text")
}

/// Reads a written form and writes it again.
type Again = fn(&str) -> String;

/// Each written form and what it reads back as, written again.
fn lines() -> Vec<(String, Again)> {
    fn again<T: Serialize + DeserializeOwned>(line: &str) -> String {
        let bytes = [&[1], line.as_bytes()].concat();
        text(&record::decode::<T>("a record", &bytes).unwrap_or_else(|error| panic!("{line}: {error}")))
    }
    let vote = Vote::<Placement>::new_committed(3, RaftNode::from(1));
    let append = AppendEntriesRequest::<Types<Placement>> {
        vote: vote.clone(),
        prev_log_id: Some(log_id(1, 0)),
        entries: entries().split_off(1),
        leader_commit: None,
    };
    let ask = VoteRequest::<Types<Placement>>::new(vote.clone(), Some(log_id(1, 2)));
    let mut lines: Vec<(String, Again)> =
        entries().iter().map(|entry| (text(entry), again::<Entry<Placement>> as Again)).collect();
    lines.push((text(&vote), again::<Vote<Placement>>));
    lines.push((text(&Some(log_id(3, 7))), again::<Option<LogId<Placement>>>));
    lines.push((text(&append), again::<AppendEntriesRequest<Types<Placement>>>));
    lines.push((text(&ask), again::<VoteRequest<Types<Placement>>>));
    lines
}

#[test]
fn records_are_written_as_frozen_and_those_of_earlier_commands_are_read() {
    let golden: Vec<_> = GOLDEN.lines().zip(EARLIER.lines()).collect();
    let lines = lines();
    assert_eq!(lines.len(), golden.len(), "{}", lines.iter().map(|(l, _)| l.as_str()).collect::<Vec<_>>().join("\n"));
    for ((written, again), (golden, earlier)) in lines.iter().zip(golden) {
        assert_eq!(written, golden, "the written form has changed");
        assert_eq!(again(golden), golden, "it doesn't read back");
        assert_eq!(again(earlier), golden, "what an earlier program wrote doesn't read");
    }
}

#[test]
fn a_record_of_another_version_is_refused_with_a_sentence() {
    let error = record::decode::<u32>("a vote", b"\x097").expect_err("newer").to_string();
    assert_eq!(error, "the store holds a vote that can't be read: it has version 9; this program knows 1: upgrade it");
}

#[test]
fn an_entry_on_the_wire_is_what_it_is_on_disk() {
    let entry = entries().remove(2);
    let frame = encode_request(Call::Append, &GroupName::catalog(), &entry).expect("a frame");
    let (_, _, body) = decode_request(&frame.into()).expect("a request");
    assert_eq!(body, text(&entry).as_bytes());
    let read: Entry<Placement> = decode_body(&body).expect("an entry");
    assert_eq!(read.log_id(), log_id(1, 2));
}
