//! The body of an error on the Daytona wire.

use serde::{Deserialize, Serialize};

/// An error's body: the same on every path of the gateway. Both generations of the wire's clients find in it what
/// they need; the toolbox's clients want `path` and `timestamp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// Status, sentence, code, request id.
    #[serde(flatten)]
    pub base: crate::v1::ErrorBody,
    /// The path that was asked for.
    pub path: String,
    /// With which method.
    pub method: String,
    /// When.
    pub timestamp: String,
    /// The sentence again, where an upload's client looks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_holds_what_both_generations_of_clients_read() {
        let base = crate::v1::ErrorBody {
            status_code: 404,
            message: "no sandbox 'x'".into(),
            error: "Not Found".into(),
            code: Some("not_found".into()),
            request_id: Some("r".into()),
        };
        let body =
            ErrorBody { base, path: "/p".into(), method: "GET".into(), timestamp: "t".into(), errors: Vec::new() };
        assert_eq!(
            serde_json::to_string(&body).expect("JSON"),
            r#"{"statusCode":404,"message":"no sandbox 'x'","error":"Not Found","code":"not_found","requestId":"r","path":"/p","method":"GET","timestamp":"t"}"#
        );
    }
}
