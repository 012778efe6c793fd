//! Paths and modes as requests name them.

use std::path::{Path, PathBuf};

use guest_proto::surface::AgentErrorCode;

use crate::refusal::{Answer, bad_request, refuse};

/// Longest path (PATH_MAX, with its zero).
const PATH_BYTES_MAX: usize = 4095;

/// A path of a request: absolute, or from the home folder on.
pub(crate) fn resolve(home: &Path, path: &str) -> Answer<PathBuf> {
    if path.is_empty() {
        return Err(bad_request("the path is empty"));
    }
    if path.contains('\0') {
        return Err(bad_request("the path contains a zero byte"));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(refuse(AgentErrorCode::BadRequest, format!("the path is longer than {PATH_BYTES_MAX} bytes")));
    }
    Ok(match path.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if path == "~" => home.to_owned(),
        None => home.join(path),
    })
}

/// Permission bits in octal.
pub(crate) fn parse_mode(text: &str) -> Answer<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|&mode| mode <= 0o7777 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| bad_request(format!("'{text}' is no mode: give permission bits in octal, as in 644")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_home() {
        let home = Path::new("/root");
        let cases = [("a/b", "/root/a/b"), ("/etc", "/etc"), ("~", "/root"), ("~/x", "/root/x"), ("..", "/root/..")];
        for (text, path) in cases {
            assert_eq!(resolve(home, text).unwrap(), Path::new(path));
        }
        for bad in ["", "a\0b", &"x".repeat(PATH_BYTES_MAX + 1)] {
            assert_eq!(resolve(home, bad).unwrap_err().code, AgentErrorCode::BadRequest);
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("644").unwrap(), 0o644);
        assert_eq!(parse_mode("0o755").unwrap(), 0o755);
        assert_eq!(parse_mode("1777").unwrap(), 0o1777);
        for bad in ["", "8", "rw-", "+7", "-1", "77777", "99999999999"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }
}
