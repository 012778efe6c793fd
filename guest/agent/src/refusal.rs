//! How the agent says no: [`AgentError`], and which kind an I/O error is.

use std::io;
use std::path::Path;

use guest_proto::surface::{AgentError, AgentErrorCode};

/// The answer of everything that can be refused.
pub(crate) type Answer<T> = Result<T, AgentError>;

/// A refusal of a kind, with its sentence.
pub(crate) fn refuse(code: AgentErrorCode, message: impl Into<String>) -> AgentError {
    AgentError { code, message: message.into() }
}

/// A request that can't be meant.
pub(crate) fn bad_request(message: impl Into<String>) -> AgentError {
    refuse(AgentErrorCode::BadRequest, message)
}

/// For `map_err`: what was tried with which file, and the kind that follows from how it failed.
pub(crate) fn file_error(action: &str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let tried = format!("can't {action} {}", path.display());
    move |error| refuse(kind_of(&error), format!("{tried}: {error}"))
}

fn kind_of(error: &io::Error) -> AgentErrorCode {
    use io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => AgentErrorCode::NotFound,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => AgentErrorCode::Forbidden,
        ErrorKind::AlreadyExists
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::DirectoryNotEmpty
        | ErrorKind::ResourceBusy
        | ErrorKind::ExecutableFileBusy
        | ErrorKind::CrossesDevices => AgentErrorCode::Conflict,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => AgentErrorCode::NoSpace,
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename | ErrorKind::ArgumentListTooLong => {
            AgentErrorCode::BadRequest
        }
        // Too many symbolic links has a kind that isn't stable yet.
        _ if error.raw_os_error() == Some(libc::ELOOP) => AgentErrorCode::Conflict,
        _ if error.raw_os_error() == Some(libc::ENXIO) => AgentErrorCode::Conflict,
        _ => AgentErrorCode::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_from_the_error() {
        let cases = [
            (libc::ENOENT, AgentErrorCode::NotFound),
            (libc::EACCES, AgentErrorCode::Forbidden),
            (libc::ENOTEMPTY, AgentErrorCode::Conflict),
            (libc::EISDIR, AgentErrorCode::Conflict),
            (libc::ENOTDIR, AgentErrorCode::Conflict),
            (libc::ELOOP, AgentErrorCode::Conflict),
            (libc::ENOSPC, AgentErrorCode::NoSpace),
            (libc::ENAMETOOLONG, AgentErrorCode::BadRequest),
            (libc::EIO, AgentErrorCode::Internal),
        ];
        for (errno, code) in cases {
            let error = file_error("read", Path::new("/x"))(io::Error::from_raw_os_error(errno));
            assert_eq!(error.code, code, "{errno}");
            assert!(error.message.starts_with("can't read /x: "), "{}", error.message);
        }
    }
}
