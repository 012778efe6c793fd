//! The error that crosses processes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as a code that programs can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Malformed or mistyped request.
    BadRequest,
    /// No key, or an unknown one.
    Unauthorized,
    /// The key may not do this.
    Forbidden,
    /// No such sandbox, snapshot, region, key or path.
    NotFound,
    /// The path exists, not with this method.
    MethodNotAllowed,
    /// A command passed its timeout.
    CommandTimeout,
    /// A name that exists, a phase that doesn't allow it.
    Conflict,
    /// A generation that is no longer the newest.
    StaleGeneration,
    /// A body or value over its limit.
    TooLarge,
    /// Too much at once.
    Busy,
    /// A fault of ours.
    Internal,
    /// Known, but not built or not possible on this mesh.
    NotImplemented,
    /// No node has room.
    NoCapacity,
    /// A region, leader or node can't be reached now.
    Unavailable,
    /// No answer in time.
    DeadlineExceeded,
    /// A node's disk is full or broken.
    Storage,
}

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The caller's: the same request will fail again.
    Caller,
    /// The mesh's.
    Mesh,
}

/// Whether and where to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// Not as it is.
    Never,
    /// The same place, a little later.
    Later,
    /// Another region or node may do.
    Elsewhere,
}

impl ErrorCode {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::CommandTimeout => 408,
            Self::Conflict | Self::StaleGeneration => 409,
            Self::TooLarge => 413,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::NoCapacity | Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
            Self::Storage => 507,
        }
    }

    /// Whose fault it is.
    pub fn fault(self) -> Fault {
        match self {
            Self::BadRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::CommandTimeout
            | Self::Conflict
            | Self::TooLarge
            | Self::NotImplemented => Fault::Caller,
            Self::StaleGeneration
            | Self::Busy
            | Self::Internal
            | Self::NoCapacity
            | Self::Unavailable
            | Self::DeadlineExceeded
            | Self::Storage => Fault::Mesh,
        }
    }

    /// Whether and where to try again.
    pub fn retry(self) -> Retry {
        match self {
            Self::StaleGeneration | Self::Busy | Self::Unavailable | Self::DeadlineExceeded => Retry::Later,
            Self::NoCapacity | Self::Storage => Retry::Elsewhere,
            Self::BadRequest
            | Self::Unauthorized
            | Self::Forbidden
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::CommandTimeout
            | Self::Conflict
            | Self::TooLarge
            | Self::Internal
            | Self::NotImplemented => Retry::Never,
        }
    }
}

/// An error as it crosses a process: the code, and a sentence that says what was tried, with what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The code; status, fault and retry follow from it.
    pub code: ErrorCode,
    /// The sentence.
    pub message: String,
}

impl ApiError {
    /// An error of this code with this sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}
