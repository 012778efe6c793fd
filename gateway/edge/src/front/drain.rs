//! Reading on what is not wanted: a client that still writes would lose our answer to a reset.

use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;

use crate::EdgeLimits;

/// Reads and drops what is left of a body, within the limits; what remains after that costs the client its answer.
pub(crate) async fn drain(mut body: Body, limits: &EdgeLimits) {
    if body.is_end_stream() {
        return;
    }
    let reading = async {
        let mut read = 0_u64;
        while let Some(Ok(frame)) = body.frame().await {
            read = read.saturating_add(frame.data_ref().map_or(0, bytes::Bytes::len) as u64);
            if read >= limits.drained_bytes {
                return;
            }
        }
    };
    // Running out of time is as good an end as any other.
    tokio::time::timeout(limits.drained_for, reading).await.unwrap_or_default();
}
