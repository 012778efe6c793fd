//! What failed underneath, as the one error that crosses processes: a code, and the sentence as it was.

use fabric_api::{ApiError, ErrorCode};
use fabric_types::Phase;
use node_hypervisor::VmError;
use node_network::NetworkFault;
use node_runtime::{GuestError, RuntimeError};
use raft_consensus::{GroupError, ProposeError};
use raft_placement::{catalog, region};

/// A failure of the runtime.
pub(crate) fn runtime(error: RuntimeError) -> ApiError {
    let code = match &error {
        RuntimeError::Unknown(_) | RuntimeError::NoTemplate(_) => ErrorCode::NotFound,
        RuntimeError::Stale { .. } => ErrorCode::StaleGeneration,
        RuntimeError::Phase { .. } | RuntimeError::Refused { .. } => ErrorCode::Conflict,
        RuntimeError::Busy(_) => ErrorCode::Busy,
        RuntimeError::Unfit { .. } | RuntimeError::Full { .. } | RuntimeError::HostMemory { .. } => {
            ErrorCode::NoCapacity
        }
        RuntimeError::HostDisk { .. } => ErrorCode::Storage,
        RuntimeError::Network(NetworkFault::Unenforceable { .. }) => ErrorCode::NotImplemented,
        RuntimeError::Network(NetworkFault::Full { .. }) => ErrorCode::NoCapacity,
        RuntimeError::Network(NetworkFault::System { .. }) => ErrorCode::Internal,
        RuntimeError::Stopping => ErrorCode::Unavailable,
        RuntimeError::File { source, .. } => storage_or_internal(source),
        RuntimeError::Machine(VmError::File { source, .. }) => storage_or_internal(source),
        RuntimeError::Machine(VmError::Timeout { .. }) => ErrorCode::DeadlineExceeded,
        RuntimeError::Machine(VmError::Unsupported { .. }) => ErrorCode::NotImplemented,
        RuntimeError::Machine(VmError::Ended { .. }) | RuntimeError::Guest { .. } => ErrorCode::Unavailable,
        RuntimeError::Machine(_) | RuntimeError::Snapshot { .. } | RuntimeError::Schema { .. } => ErrorCode::Internal,
    };
    if code == ErrorCode::Internal {
        tracing::error!(%error, "the runtime failed");
    }
    ApiError::new(code, error.to_string())
}

/// A guest that can't be reached: of one that only has to be started, that is said.
pub(crate) fn unreached(error: RuntimeError) -> ApiError {
    let asleep = matches!(
        &error,
        RuntimeError::Phase { phase: Phase::Stopping | Phase::Stopped | Phase::Archiving | Phase::Archived, .. }
    );
    let mut told = runtime(error);
    if asleep {
        told.message.push_str("; start it first");
    }
    told
}

/// A request that a guest did not answer.
pub(crate) fn guest(error: &GuestError) -> ApiError {
    let code = match error {
        GuestError::Timeout { .. } => ErrorCode::DeadlineExceeded,
        GuestError::Ended(_) | GuestError::Broken { .. } => ErrorCode::Unavailable,
    };
    ApiError::new(code, error.to_string())
}

fn storage_or_internal(source: &std::io::Error) -> ErrorCode {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::Storage,
        _ => ErrorCode::Internal,
    }
}

/// Why a state machine refused a proposal, if that is how it ended.
pub(crate) fn refusal<R: std::error::Error>(error: &ProposeError<R>) -> Option<&R> {
    match error {
        ProposeError::Refused(refusal) => Some(refusal),
        ProposeError::NoLeader { .. }
        | ProposeError::Unknown { .. }
        | ProposeError::TooLarge { .. }
        | ProposeError::Stopped { .. } => None,
    }
}

fn uncommitted<R: std::error::Error>(error: &ProposeError<R>) -> ErrorCode {
    match error {
        ProposeError::TooLarge { .. } => ErrorCode::TooLarge,
        ProposeError::Unknown { .. } => ErrorCode::DeadlineExceeded,
        ProposeError::Refused(_) | ProposeError::NoLeader { .. } | ProposeError::Stopped { .. } => {
            ErrorCode::Unavailable
        }
    }
}

/// A group that could not be read.
pub(crate) fn group(error: &GroupError) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, error.to_string())
}

/// A proposal to a region's group that came to nothing.
pub(crate) fn placement(error: &ProposeError<region::Refusal>) -> ApiError {
    use region::Refusal as R;
    let code = match refusal(error) {
        None => uncommitted(error),
        Some(R::UnknownSandbox { .. }) => ErrorCode::NotFound,
        Some(
            R::NameTaken { .. }
            | R::Exists { .. }
            | R::NodeHolds { .. }
            | R::LimitsBelowReserved { .. }
            | R::WrongIntent { .. }
            | R::ShapeChanged { .. },
        ) => ErrorCode::Conflict,
        Some(R::Children { .. }) => ErrorCode::BadRequest,
        // The same request fails in every region alike until somebody makes room: it isn't tried elsewhere.
        Some(R::QuotaReached { .. }) => ErrorCode::Forbidden,
        Some(R::Stale { .. }) => ErrorCode::StaleGeneration,
        Some(
            R::NoRoom { .. } | R::NodeFull { .. } | R::Full { .. } | R::UnknownNode { .. } | R::NotAdmitted { .. },
        ) => ErrorCode::NoCapacity,
        Some(R::TooLarge { .. }) => ErrorCode::TooLarge,
    };
    ApiError::new(code, error.to_string())
}

/// A proposal to the catalog, or a read of it, that came to nothing.
pub(crate) fn catalog(error: &ProposeError<catalog::Refusal>) -> ApiError {
    use catalog::Refusal as R;
    let code = match refusal(error) {
        None => uncommitted(error),
        Some(R::UnknownRegion { .. } | R::UnknownNode { .. } | R::UnknownSnapshot { .. }) => ErrorCode::NotFound,
        Some(
            R::RegionHolds { .. }
            | R::KeyExists { .. }
            | R::SameKey { .. }
            | R::SnapshotExists { .. }
            | R::NameTaken { .. },
        ) => ErrorCode::Conflict,
        Some(R::Full { .. }) => ErrorCode::NoCapacity,
        Some(R::TooLarge { .. }) => ErrorCode::TooLarge,
    };
    ApiError::new(code, error.to_string())
}
