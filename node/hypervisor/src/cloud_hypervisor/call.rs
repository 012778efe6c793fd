//! One HTTP/1.1 request to a monitor's socket and its answer, within limits. The crate of the API's models has a client
//! too, but one that reads an answer of any length, and that sends no descriptors: a monitor that its guest has taken
//! over must not fill the node's memory, and a tap is given to a monitor that may not open one.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
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
/// leaves nothing that a later one could read. `descriptors` go with the request's first byte (SCM_RIGHTS, unix(7)); the
/// monitor gives them to the devices in its body, in their order. An error of kind `InvalidData` is an answer that can't
/// be read; any other, no answer.
pub(super) async fn call(
    socket: &Path,
    method: &str,
    name: &str,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    let length = body.len();
    let mut request = format!(
        "{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    let sent = send_first(&stream, &request, descriptors).await?;
    stream.write_all(&request[sent..]).await?;
    read_answer(&mut stream).await
}

/// Sends the descriptors with as much of the request as the socket takes at once; answers how much that was.
async fn send_first(stream: &UnixStream, request: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.is_empty() {
        return Ok(0);
    }
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let send = || {
        let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(request)], &rights, MsgFlags::MSG_NOSIGNAL, None);
        sent.map_err(io::Error::from)
    };
    stream.async_io(Interest::WRITABLE, send).await
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

    #[tokio::test]
    async fn a_descriptor_arrives_with_the_request_it_belongs_to() {
        use std::fs::File;
        use std::io::{IoSliceMut, Read, Seek, Write};
        use std::os::fd::AsFd;
        use std::os::unix::net::UnixListener;

        use nix::sys::socket::{ControlMessageOwned, recvmsg};

        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("q");
        let listener = UnixListener::bind(&socket).expect("it listens");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("asked");
            let (mut bytes, mut space) = ([0; 4096], nix::cmsg_space!([RawFd; 2]));
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg::<()>(stream.as_raw_fd(), &mut pieces, Some(&mut space), MsgFlags::empty());
            let message = message.expect("received");
            let mut found = Vec::new();
            for part in message.cmsgs().expect("whole") {
                if let ControlMessageOwned::ScmRights(numbers) = part {
                    found.extend(numbers);
                }
            }
            let got = message.bytes;
            stream.write_all(b"HTTP/1.1 204 \r\n\r\n").expect("answered");
            (String::from_utf8_lossy(&bytes[..got]).into_owned(), found)
        });
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"the very file").expect("written");
        let answer = call(&socket, "PUT", "vm.add-net", b"{}", &[file.as_fd()]).await.expect("answered");
        assert_eq!(answer.status, 204);
        let (request, found) = server.join().expect("no panic");
        assert!(request.starts_with("PUT /api/v1/vm.add-net HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{}"));
        assert_eq!(found.len(), 1);
        let mut text = String::new();
        // The number is this process's own now, read through /proc rather than owned.
        let mut same = File::open(format!("/proc/self/fd/{}", found[0])).expect("it is open");
        same.rewind().expect("rewound");
        same.read_to_string(&mut text).expect("read");
        assert_eq!(text, "the very file");
    }

    proptest! {
        #[test]
        fn any_head_is_read_or_refused(head in "(HTTP/1\\.1 )?[ -~\r\n]{0,80}", bytes in any::<Vec<u8>>()) {
            let _ = Head::parse(head.as_bytes());
            let _ = Head::parse(&bytes);
        }
    }
}
