//! The written form of `/v1` is frozen: what clients of this version send and read stays as it is. A field may be added, and
//! then stands here too; what is there is neither renamed nor taken away.

use fabric_api::v1::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A line for each type, with all of its fields; some a second one, with as few as may be.
const GOLDEN: &str = include_str!("golden/v1.jsonl");

fn written_again<T: DeserializeOwned + Serialize>(body: &Value) -> Value {
    let read: T = serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("{body}: {error}"));
    serde_json::to_value(read).expect("JSON")
}

/// Reads a body as the type of that name and writes it.
fn again(kind: &str, body: &Value) -> Value {
    match kind {
        "CreateSandbox" => written_again::<CreateSandbox>(body),
        "Sandbox" => written_again::<Sandbox>(body),
        "SandboxList" => written_again::<SandboxList>(body),
        "Network" => written_again::<Network>(body),
        "Intervals" => written_again::<Intervals>(body),
        "Fork" => written_again::<Fork>(body),
        "Forked" => written_again::<Forked>(body),
        "Resize" => written_again::<Resize>(body),
        "Usage" => written_again::<Usage>(body),
        "Exec" => written_again::<Exec>(body),
        "ExecResult" => written_again::<ExecResult>(body),
        "CodeRun" => written_again::<CodeRun>(body),
        "NewContext" => written_again::<NewContext>(body),
        "ContextList" => written_again::<ContextList>(body),
        "Interpret" => written_again::<Interpret>(body),
        "Interpreted" => written_again::<Interpreted>(body),
        "CreateSnapshot" => written_again::<CreateSnapshot>(body),
        "SnapshotList" => written_again::<SnapshotList>(body),
        "RestoreSnapshot" => written_again::<RestoreSnapshot>(body),
        "Restored" => written_again::<Restored>(body),
        "CreateKey" => written_again::<CreateKey>(body),
        "NewKey" => written_again::<NewKey>(body),
        "KeyList" => written_again::<KeyList>(body),
        "RegionList" => written_again::<RegionList>(body),
        "Mesh" => written_again::<Mesh>(body),
        "ErrorBody" => written_again::<ErrorBody>(body),
        unknown => panic!("no type {unknown}"),
    }
}

fn lines() -> impl Iterator<Item = (String, Value)> {
    GOLDEN.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        (line["type"].as_str().expect("a type").to_owned(), line["body"].take())
    })
}

#[test]
fn what_is_written_is_what_was_written() {
    for (kind, body) in lines() {
        assert_eq!(again(&kind, &body), body, "{kind}");
    }
}

#[test]
fn what_a_client_misspells_is_refused() {
    let asks =
        ["CreateSandbox", "Network", "Intervals", "Fork", "Resize", "Exec", "CodeRun", "NewContext", "Interpret"];
    let asks = asks.into_iter().chain(["CreateSnapshot", "RestoreSnapshot", "CreateKey"]);
    for kind in asks {
        let (_, mut body) = lines().find(|(known, _)| known == kind).expect("a line for each");
        body["odd"] = Value::Bool(true);
        let refused = std::panic::catch_unwind(|| again(kind, &body));
        assert!(refused.is_err(), "{kind} takes a field that it doesn't know");
    }
}

#[test]
fn every_answer_may_gain_a_field() {
    let answers = ["Sandbox", "SandboxList", "Forked", "Usage", "ExecResult", "ContextList", "Interpreted", "Mesh"];
    let answers =
        answers.into_iter().chain(["SnapshotList", "Restored", "NewKey", "KeyList", "RegionList", "ErrorBody"]);
    for kind in answers {
        let (_, body) = lines().find(|(known, _)| known == kind).expect("a line for each");
        let mut newer = body.clone();
        newer["newer"] = Value::Bool(true);
        assert_eq!(again(kind, &newer), body, "{kind}: a client of this version reads a newer answer");
    }
}
