//! One HTTP/1.1 request to a monitor's socket and its answer, within limits. The crate of the API's models has a client
//! too, but one that reads an answer of any length: a monitor that its guest has taken over must not fill the node's
//! memory.

use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer, bytes: `vm.info` of a machine with all its devices is 8 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest head of an answer, bytes: the monitor writes five short lines.
const HEAD_BYTES_MAX: usize = 4096;
/// The end of a head (RFC 9112, section 2.1).
const HEAD_END: &[u8] = b"\r\n\r\n";

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Asks over a connection of its own: a monitor answers one request at a time anyway, and a call that was given up
/// leaves nothing that a later one could read. An error of kind `InvalidData` is an answer that can't be read; any other,
/// no answer.
pub(super) async fn call(socket: &Path, method: &str, name: &str, body: &[u8]) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    let length = body.len();
    let mut request = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    stream.write_all(&request).await?;
    read_answer(&mut stream).await
}

async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Answer> {
    let mut bytes = Vec::with_capacity(1024);
    let (head_length, head) = loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        if let Some(at) = bytes.windows(HEAD_END.len()).position(|window| window == HEAD_END) {
            break (at + HEAD_END.len(), Head::parse(&bytes[..at])?);
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(unreadable("its answer has no end of its head"));
        }
    };
    if head.length > ANSWER_BYTES_MAX {
        return Err(unreadable("its answer is longer than 1 MiB"));
    }
    let mut body = bytes.split_off(head_length);
    let got = body.len().min(head.length);
    body.resize(head.length, 0);
    stream.read_exact(&mut body[got..]).await?;
    Ok(Answer { status: head.status, body })
}

/// What matters of an answer's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
}

impl Head {
    /// The monitor states each length and knows no chunks; without a length there is no body.
    fn parse(head: &[u8]) -> io::Result<Self> {
        let head = std::str::from_utf8(head).map_err(|_| unreadable("its answer isn't HTTP"))?;
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        let status = status.ok_or_else(|| unreadable("its answer isn't HTTP"))?;
        let mut length = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| unreadable("its answer has no length"))?;
            }
        }
        Ok(Self { status, length })
    }
}

fn unreadable(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn read(bytes: &[u8]) -> io::Result<Answer> {
        read_answer(&mut &*bytes).await
    }

    fn kind(answer: io::Result<Answer>) -> io::ErrorKind {
        answer.expect_err("no answer").kind()
    }

    #[tokio::test]
    async fn an_answer_is_its_status_and_as_many_bytes_as_it_says() {
        let none = read(b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(none.expect("read"), Answer { status: 204, body: vec![] });
        let some = read(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\r\n\r\nmore").await;
        assert_eq!(some.expect("read"), Answer { status: 200, body: b"\r\n\r\n".to_vec() });
    }

    #[tokio::test]
    async fn what_is_too_long_cut_or_no_answer_is_an_error() {
        assert_eq!(kind(read(b"").await), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(read(b"HTTP/1.1 200 OK\r\n").await), io::ErrorKind::UnexpectedEof);
        let cut = read(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").await;
        assert_eq!(kind(cut), io::ErrorKind::UnexpectedEof);
        for long in ["1048577", "18446744073709551615", "99999999999999999999", "-1", "many"] {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {long}\r\n\r\n");
            assert_eq!(kind(read(head.as_bytes()).await), io::ErrorKind::InvalidData, "{long}");
        }
        assert_eq!(kind(read(&[b'x'; 2 * HEAD_BYTES_MAX]).await), io::ErrorKind::InvalidData);
        assert_eq!(kind(read(b"SSH-2.0-OpenSSH\r\n\r\n").await), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(head in "(HTTP/1\\.1 )?[ -~\r\n]{0,80}", bytes in any::<Vec<u8>>()) {
            let _ = Head::parse(head.as_bytes());
            let _ = Head::parse(&bytes);
        }
    }
}
