//! The parts of a path that a route leaves open.

use axum::extract::{FromRequestParts, RawPathParams};
use http::request::Parts;

use crate::refusal::Refusal;

/// The open parts of a path, in order. The router has decoded them; half an escape stays as it is, and no name of
/// ours holds one.
#[derive(Debug, Clone)]
pub(crate) struct Segments<const COUNT: usize>(pub(crate) [String; COUNT]);

impl<S: Send + Sync, const COUNT: usize> FromRequestParts<S> for Segments<COUNT> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let unreadable = || Refusal::bad("the path can't be read: once decoded it is not UTF-8");
        let open = RawPathParams::from_request_parts(parts, state).await.map_err(|_| unreadable())?;
        let open: Vec<String> = open.iter().map(|(_, value)| value.to_owned()).collect();
        if open.iter().any(|part| part.contains('\0')) {
            return Err(Refusal::bad("the path holds the NUL character"));
        }
        open.try_into().map(Self).map_err(|_| unreadable())
    }
}
