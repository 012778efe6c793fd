//! The body of an error on `/v1`.

use serde::{Deserialize, Serialize};

/// An error's body on `/v1`, the same as on the Daytona wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// The HTTP status.
    pub status_code: u16,
    /// A sentence.
    pub message: String,
    /// The status's name.
    pub error: String,
    /// The code, as in [`crate::ErrorCode`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The request id, as in the header `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
