//! Files of the guest: paths, facts, folders, contents.
//!
//! Everything here may wait for a disk, so it runs on the runtime's blocking threads; contents are streamed.

mod content;
mod info;
mod path;

pub(crate) use content::{Download, Upload};
pub(crate) use info::{info, list, make_folder, remove};
pub(crate) use path::{parse_mode, resolve};

use guest_proto::surface::AgentErrorCode;

use crate::refusal::{Answer, refuse};

/// Runs something that may wait for a disk.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(_) => Err(refuse(AgentErrorCode::Internal, "a file operation broke off")),
    }
}
