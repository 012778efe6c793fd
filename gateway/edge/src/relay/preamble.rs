//! The first frame of a relay stream.

use fabric_api::{ApiError, ErrorCode};
use fabric_types::{Generation, OrganizationId, SandboxId};
use serde::{Deserialize, Serialize};

/// The version of this preamble and of what follows it.
pub const RELAY_VERSION: u32 = 1;
/// Largest preamble, in bytes: ids and a request id fit many times over.
pub(super) const PREAMBLE_BYTES_MAX: usize = 4096;

/// What a relay stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Preamble {
    /// [`RELAY_VERSION`] of the sender.
    pub(super) version: u32,
    /// The sandbox.
    pub(super) sandbox: SandboxId,
    /// The generation under which the sender knows it.
    pub(super) generation: Generation,
    /// The id of the client's request.
    pub(super) request_id: String,
    /// Whose key asked.
    pub(super) organization: OrganizationId,
}

/// The part of a preamble that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Preamble {
    /// Reads a preamble of this version; of another only its number.
    pub(super) fn parse(frame: &[u8]) -> Result<Self, ApiError> {
        let malformed = |error: serde_json::Error| {
            ApiError::new(ErrorCode::BadRequest, format!("the relay's preamble can't be read: {error}"))
        };
        let Versioned { version } = serde_json::from_slice(frame).map_err(malformed)?;
        if version != RELAY_VERSION {
            let message = format!(
                "a gateway speaks version {version} of the relay; this node speaks {RELAY_VERSION}; upgrade the older of the two"
            );
            return Err(ApiError::new(ErrorCode::Unavailable, message));
        }
        serde_json::from_slice(frame).map_err(malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of version 1, as they were when it was first spoken.
    const GOLDEN: &str =
        r#"{"version":1,"sandbox":"fraaaaaaaaaaaaaaaaa","generation":3,"requestId":"r1","organization":"default"}"#;

    #[test]
    fn version_1_is_written_and_read_as_ever() {
        let preamble = Preamble::parse(GOLDEN.as_bytes()).expect("version 1");
        assert_eq!(serde_json::to_string(&preamble).expect("JSON"), GOLDEN);
        assert_eq!(preamble.generation, Generation(3));
    }

    #[test]
    fn another_version_is_told_apart_from_a_broken_preamble() {
        let newer = Preamble::parse(br#"{"version":2,"anything":[]}"#).expect_err("newer");
        assert!(newer.message.contains("version 2"), "{newer}");
        assert_eq!(Preamble::parse(b"{}").expect_err("broken").code, ErrorCode::BadRequest);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            drop(Preamble::parse(&bytes));
        }
    }
}
