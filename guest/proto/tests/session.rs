//! Both ends of the session layer over channels that behave, break and lie.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use guest_proto::session::guest::{IN_BYTES_MAX, Listener, STALL};
use guest_proto::session::{PAYLOAD_BYTES_MAX, SessionError, host};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

const DEADLINE: Duration = Duration::from_secs(30);

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

async fn open(io: &mut DuplexStream, id: u8) -> host::SessionStream<&mut DuplexStream> {
    host::open(io, [id; 16], DEADLINE).await.unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_fin_ends_each() {
    let (io, guest_io) = duplex(1000);
    let mut listener = Listener::new(guest_io);
    let mut host = host::open(io, [1; 16], DEADLINE).await.unwrap();
    let mut guest = listener.accept().await.unwrap();

    host.write_all(b"ping").await.unwrap();
    host.flush().await.unwrap();
    let mut four = [0; 4];
    guest.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");
    guest.write_all(b"pong").await.unwrap();
    host.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"pong");

    host.shutdown().await.unwrap();
    assert_eq!(guest.read(&mut four).await.unwrap(), 0);
    guest.write_all(b"late").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"late");
    assert_eq!(host.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(guest.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn much_goes_both_ways_at_once_through_a_narrow_channel() {
    let (io, guest_io) = duplex(777);
    let mut listener = Listener::new(guest_io);
    let host = host::open(io, [1; 16], DEADLINE).await.unwrap();
    let guest = listener.accept().await.unwrap();
    let (up, down) = (bytes(1, 3 * PAYLOAD_BYTES_MAX + 17), bytes(2, 1 << 20));
    let (mut host_read, mut host_write) = tokio::io::split(host);
    let (mut guest_read, mut guest_write) = tokio::io::split(guest);
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    tokio::join!(
        async {
            host_write.write_all(&up).await.unwrap();
            host_write.shutdown().await.unwrap();
        },
        async {
            guest_write.write_all(&down).await.unwrap();
            guest_write.shutdown().await.unwrap();
        },
        async { guest_read.read_to_end(&mut got_up).await.map(drop).unwrap() },
        async { host_read.read_to_end(&mut got_down).await.map(drop).unwrap() },
    );
    assert!(got_up == up && got_down == down);
}

#[tokio::test]
async fn a_new_session_ends_the_one_before() {
    let (mut io, guest_io) = duplex(1 << 16);
    let mut listener = Listener::new(guest_io);
    let mut first = open(&mut io, 1).await;
    let mut first_guest = listener.accept().await.unwrap();
    first.write_all(b"unread").await.unwrap();
    first.flush().await.unwrap();
    first_guest.write_all(b"stale, for the first host").await.unwrap();
    drop(first);

    let mut second = open(&mut io, 2).await;
    let mut second_guest = listener.accept().await.unwrap();
    let mut buf = [0; 64];
    assert_eq!(first_guest.read(&mut buf).await.unwrap(), 0, "the first session reads as ended");
    assert_eq!(first_guest.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    drop(first_guest);

    second_guest.write_all(b"fresh").await.unwrap();
    let read = second.read(&mut buf).await.unwrap();
    assert_eq!(&buf[..read], b"fresh", "nothing of the first session, and the second outlives its drop");
}

#[tokio::test]
async fn half_a_message_before_a_session_does_no_harm() {
    for cut in [1, 7, 30, 500, 20_000] {
        let (mut io, guest_io) = duplex(1 << 20);
        let mut listener = Listener::new(guest_io);
        io.write_all(&vec![0x55; cut]).await.unwrap();

        let mut host = open(&mut io, 1).await;
        let mut guest = listener.accept().await.unwrap();
        host.write_all(b"whole").await.unwrap();
        host.flush().await.unwrap();
        let mut five = [0; 5];
        guest.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"whole");
    }
}

/// A channel that swallows the first bytes written to it, as a device does that is still being restored.
struct Swallowing {
    io: DuplexStream,
    left: usize,
}

impl AsyncRead for Swallowing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Swallowing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let swallowed = self.left.min(bytes.len());
        if swallowed > 0 {
            self.left -= swallowed;
            return Poll::Ready(Ok(swallowed));
        }
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_lost_hello_is_sent_again() {
    let (io, guest_io) = duplex(1 << 16);
    let mut listener = Listener::new(guest_io);
    let mut host = host::open(Swallowing { io, left: 60 }, [1; 16], DEADLINE).await.unwrap();
    let mut guest = listener.accept().await.unwrap();
    guest.write_all(b"hi").await.unwrap();
    let mut two = [0; 2];
    host.read_exact(&mut two).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_is_late_finds_one_session() {
    let (io, guest_io) = duplex(1 << 16);
    let guest = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut listener = Listener::new(guest_io);
        let mut guest = listener.accept().await.unwrap();
        guest.write_all(b"hi").await.unwrap();
        let more = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        assert!(more.is_err(), "the HELLOs that piled up are one session");
    });
    let mut host = host::open(io, [1; 16], DEADLINE).await.unwrap();
    let mut two = [0; 2];
    host.read_exact(&mut two).await.unwrap();
    guest.await.unwrap();
}

#[tokio::test]
async fn a_guest_that_never_answers_is_an_error_in_time() {
    let mut tries = 0;
    loop {
        let (io, _guest_io) = duplex(100);
        let start = std::time::Instant::now();
        let error = host::open(io, [1; 16], Duration::from_millis(500)).await.unwrap_err();
        tries += 1;
        // A machine that stood still meanwhile left no time for all of them.
        if tries < 30 && matches!(error, SessionError::Deadline { waited_ms: 500, hellos: 1..3 }) {
            continue;
        }
        assert!(matches!(error, SessionError::Deadline { waited_ms: 500, hellos: 3 }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(10));
        break;
    }
}

#[tokio::test]
async fn a_channel_that_ends_ends_everything() {
    let (mut io, guest_io) = duplex(1000);
    let mut listener = Listener::new(guest_io);
    let host = open(&mut io, 1).await;
    let mut guest = listener.accept().await.unwrap();
    drop(host);
    drop(io);
    assert!(matches!(listener.accept().await, Err(SessionError::Closed)));
    assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);

    let (io, guest_io) = duplex(1000);
    let mut listener = Listener::new(guest_io);
    let mut host = host::open(io, [1; 16], DEADLINE).await.unwrap();
    let guest = listener.accept().await.unwrap();
    drop(listener);
    drop(guest);
    let error = host.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn a_reader_that_stops_holds_back_the_writer() {
    let (io, guest_io) = duplex(1 << 16);
    let mut listener = Listener::new(guest_io);
    let mut host = host::open(io, [1; 16], DEADLINE).await.unwrap();
    let mut guest = listener.accept().await.unwrap();
    let chunk = bytes(3, 64 << 10);
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), host.write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < IN_BYTES_MAX + (1 << 20), "nothing holds it back");
    }
    assert!(sent >= IN_BYTES_MAX);
    let mut got = vec![0; sent];
    let (flushed, read) = tokio::join!(host.flush(), guest.read_exact(&mut got));
    flushed.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn a_session_that_stalls_does_not_lock_out_the_next_host() {
    let (mut io, guest_io) = duplex(1 << 16);
    let mut listener = Listener::new(guest_io);
    let mut first = open(&mut io, 1).await;
    let mut stalled = listener.accept().await.unwrap();
    let chunk = bytes(3, PAYLOAD_BYTES_MAX);
    while tokio::time::timeout(Duration::from_millis(100), first.write_all(&chunk)).await.is_ok() {}
    drop(first);
    let start = std::time::Instant::now();
    let mut second = host::open(&mut io, [2; 16], DEADLINE).await.unwrap();
    assert!(start.elapsed() <= 4 * STALL);
    let mut guest = listener.accept().await.unwrap();
    assert_eq!(stalled.read(&mut [0; 8]).await.unwrap(), 0);
    guest.write_all(b"hi").await.unwrap();
    let mut two = [0; 2];
    second.read_exact(&mut two).await.unwrap();
}

/// Hosts come and go at random over one channel, each cut off at a random moment; the guest echoes.
#[tokio::test]
async fn hosts_cut_off_at_random_never_see_wrong_bytes() {
    let mut random = SmallRng::seed_from_u64(42);
    let (mut io, guest_io) = duplex(4096);
    let mut listener = Listener::new(guest_io);
    tokio::spawn(async move {
        while let Ok(guest) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(guest);
                // A session that is replaced ends the copy, one way or the other.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    for round in 0..200u64 {
        let mut id = [0; 16];
        random.fill_bytes(&mut id);
        let mut host = host::open(&mut io, id, DEADLINE).await.unwrap();
        let sent = bytes(round, random.random_range(1..60_000));
        let stop_at = random.random_range(0..=sent.len());
        let (mut read, mut write) = tokio::io::split(&mut host);
        let mut got = vec![0; stop_at];
        tokio::select! {
            result = write.write_all(&sent) => {
                result.unwrap();
                write.flush().await.unwrap();
                read.read_exact(&mut got).await.unwrap();
            }
            result = read.read_exact(&mut got) => drop(result.unwrap()),
        }
        assert!(sent.starts_with(&got), "round {round}");
    }
}
