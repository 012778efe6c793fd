//! What members of a group say to each other: one stream a call, one frame each way (a snapshot's parts follow the
//! request as frames of their own).
//!
//! ```text
//! request   version | call | length of group | group | JSON        each of the first three is one byte
//! answer    version | outcome | JSON                                outcome 0: the answer; 1: a sentence, why not
//! ```
//! The group stands in every request, so that one accept queue serves all groups of a process. JSON carries
//! openraft's own types by their serde forms; the version changes when they do.

use std::fmt;

use bytes::Bytes;
use fabric_quic::CALL_FRAME_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::GroupName;

/// The version of these forms.
pub(crate) const WIRE_VERSION: u8 = 1;
/// Bytes of a request or an answer at most: a batch of entries stays under half of it.
pub(crate) const FRAME_BYTES_MAX: usize = CALL_FRAME_BYTES_MAX;
/// Bytes of one part of a snapshot on the wire.
pub(crate) const SNAPSHOT_PART_BYTES: usize = 1024 * 1024;

const OUTCOME_ANSWER: u8 = 0;
const OUTCOME_REFUSED: u8 = 1;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// To append entries, or to hear a heartbeat.
    Append,
    /// For a vote.
    Vote,
    /// Whether there would be a vote, without a new term.
    PreVote,
    /// To install a snapshot, whose parts follow.
    Snapshot,
    /// To take over as the leader.
    TransferLeader,
    /// To do as the leader what only a leader may.
    Lead,
    /// Whether the group has begun here.
    Status,
}

impl Call {
    const ALL: [Self; 7] =
        [Self::Append, Self::Vote, Self::PreVote, Self::Snapshot, Self::TransferLeader, Self::Lead, Self::Status];

    fn byte(self) -> u8 {
        match self {
            Self::Append => 1,
            Self::Vote => 2,
            Self::PreVote => 3,
            Self::Snapshot => 4,
            Self::TransferLeader => 5,
            Self::Lead => 6,
            Self::Status => 7,
        }
    }

    /// The name in logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::Snapshot => "snapshot",
            Self::TransferLeader => "transfer-leader",
            Self::Lead => "lead",
            Self::Status => "status",
        }
    }
}

/// A frame that isn't what it should be.
#[derive(Debug, Error)]
pub(crate) enum WireError {
    #[error("raft's wire version {theirs} is unknown; this node speaks {WIRE_VERSION}; upgrade the older of the two")]
    Version { theirs: u8 },
    #[error("a malformed {what}: {cause}")]
    Malformed { what: &'static str, cause: String },
    #[error("{0}")]
    Refused(String),
}

fn malformed(what: &'static str, cause: impl fmt::Display) -> WireError {
    WireError::Malformed { what, cause: cause.to_string() }
}

/// A request's frame.
pub(crate) fn encode_request<T: Serialize>(call: Call, group: &GroupName, body: &T) -> Result<Vec<u8>, WireError> {
    let name = group.as_str().as_bytes();
    let length = u8::try_from(name.len()).map_err(|error| malformed("group name", error))?;
    let mut frame = vec![WIRE_VERSION, call.byte(), length];
    frame.extend_from_slice(name);
    serde_json::to_writer(&mut frame, body).map_err(|error| malformed("request", error))?;
    Ok(frame)
}

/// What a request's frame asks, of which group, and the rest of it.
pub(crate) fn decode_request(frame: &Bytes) -> Result<(Call, GroupName, Bytes), WireError> {
    let short = || malformed("request", "it is too short");
    let (&version, rest) = frame.split_first().ok_or_else(short)?;
    if version != WIRE_VERSION {
        return Err(WireError::Version { theirs: version });
    }
    let (&byte, rest) = rest.split_first().ok_or_else(short)?;
    let call = Call::ALL.into_iter().find(|call| call.byte() == byte);
    let call = call.ok_or_else(|| malformed("request", format_args!("call {byte} is unknown")))?;
    let (&length, rest) = rest.split_first().ok_or_else(short)?;
    let name = rest.get(..usize::from(length)).ok_or_else(short)?;
    let name = std::str::from_utf8(name).map_err(|error| malformed("group name", error))?;
    let group = GroupName::parse(name).map_err(|error| malformed("group name", error))?;
    Ok((call, group, frame.slice(3 + usize::from(length)..)))
}

/// Reads the JSON of a request.
pub(crate) fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    serde_json::from_slice(body).map_err(|error| malformed("request", error))
}

/// An answer's JSON.
pub(crate) fn encode_body<T: Serialize>(body: &T) -> Result<Vec<u8>, WireError> {
    serde_json::to_vec(body).map_err(|error| malformed("answer", error))
}

/// An answer's frame.
pub(crate) fn encode_answer(answer: Result<Vec<u8>, WireError>) -> Vec<u8> {
    let (outcome, body) = match answer {
        Ok(body) => (OUTCOME_ANSWER, body),
        Err(error) => (OUTCOME_REFUSED, serde_json::Value::String(error.to_string()).to_string().into_bytes()),
    };
    let mut frame = vec![WIRE_VERSION, outcome];
    frame.extend_from_slice(&body);
    frame
}

/// Reads an answer's frame.
pub(crate) fn decode_answer<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    let [version, outcome, body @ ..] = frame else { return Err(malformed("answer", "it is too short")) };
    if *version != WIRE_VERSION {
        return Err(WireError::Version { theirs: *version });
    }
    match *outcome {
        OUTCOME_ANSWER => serde_json::from_slice(body).map_err(|error| malformed("answer", error)),
        OUTCOME_REFUSED => {
            Err(WireError::Refused(serde_json::from_slice(body).map_err(|error| malformed("answer", error))?))
        }
        other => Err(malformed("answer", format_args!("outcome {other} is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_answers_read_back() {
        for call in Call::ALL {
            let frame = encode_request(call, &GroupName::catalog(), &7).expect("a frame");
            let (read, group, body) = decode_request(&frame.into()).expect("a request");
            assert_eq!((read, group), (call, GroupName::catalog()));
            assert_eq!(decode_body::<u32>(&body).expect("a number"), 7);
        }
        assert_eq!(decode_answer::<u32>(&encode_answer(encode_body(&7))).expect("a number"), 7);
        let refused = encode_answer(Err(WireError::Refused("not here".into())));
        assert_eq!(decode_answer::<u32>(&refused).expect_err("refused").to_string(), "not here");
    }

    #[test]
    fn another_version_is_answered_with_a_sentence() {
        let error = decode_request(&Bytes::from_static(&[9, 1])).expect_err("another version").to_string();
        assert!(error.contains("wire version 9 is unknown; this node speaks 1"), "{error}");
    }

    proptest! {
        #[test]
        fn arbitrary_frames_are_errors_and_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_answer::<u32>(&frame);
            let mut valid = vec![WIRE_VERSION, 1];
            valid.extend_from_slice(&frame);
            let _ = decode_request(&frame.into());
            let _ = decode_request(&valid.into());
        }
    }
}
