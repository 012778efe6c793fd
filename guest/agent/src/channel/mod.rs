//! The channel to the host: a virtio-serial port or vsock, found by what the machine has.

mod fd;
mod port;
mod vsock;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_proto::boot::{PORT_NAME, VSOCK_PORT};
use guest_proto::session::guest::{Listener, SessionStream};
use thiserror::Error;

use crate::console::say;
use vsock::VsockListener;

/// How long a channel may take to appear: the port's name comes in a message after its driver is loaded.
const CHANNEL_WAIT: Duration = Duration::from_secs(10);
/// Between two looks.
const CHANNEL_POLL: Duration = Duration::from_millis(2);

/// Why there is no channel.
#[derive(Debug, Error)]
pub(crate) enum ChannelError {
    /// Neither device appeared.
    #[error("no virtio-serial port named '{PORT_NAME}' and no vsock device in {} s", CHANNEL_WAIT.as_secs())]
    Missing,
    /// It is there and can't be opened.
    #[error("can't open the channel: {0}")]
    Open(#[from] io::Error),
}

/// Where sessions come from.
#[derive(Debug)]
pub(crate) enum Channel {
    /// One port for the machine's whole life.
    Port(Listener),
    /// One listener at a time: the newest connection wins.
    Vsock {
        /// Takes connections.
        connections: VsockListener,
        /// Takes the newest connection's sessions.
        newest: Option<Listener>,
    },
}

impl Channel {
    /// Finds and opens the channel. Must be called on the runtime.
    pub(crate) async fn open() -> Result<Self, ChannelError> {
        let start = Instant::now();
        loop {
            if let Some(path) = port::find(Path::new(port::PORTS), PORT_NAME) {
                return Ok(Self::Port(Listener::new(port::open(&path)?)));
            }
            if vsock::is_present() {
                return Ok(Self::Vsock { connections: VsockListener::bind(VSOCK_PORT)?, newest: None });
            }
            if start.elapsed() > CHANNEL_WAIT {
                return Err(ChannelError::Missing);
            }
            tokio::time::sleep(CHANNEL_POLL).await;
        }
    }

    /// The next session.
    ///
    /// # Errors
    /// When the channel has failed for good.
    pub(crate) async fn accept(&mut self) -> Result<SessionStream, ChannelError> {
        match self {
            Self::Port(listener) => listener.accept().await.map_err(|error| io::Error::other(error).into()),
            Self::Vsock { connections, newest } => loop {
                let session = async {
                    match newest.as_mut() {
                        Some(listener) => listener.accept().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    connection = connections.accept() => *newest = Some(Listener::new(connection?)),
                    session = session => match session {
                        Ok(session) => return Ok(session),
                        Err(error) => {
                            say(&format!("a connection ended: {error}"));
                            *newest = None;
                        }
                    },
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_proto::session::host;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    /// A channel of connections, over the kind of socket that every machine has.
    fn channel(folder: &Path) -> Channel {
        let listener = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let connections = VsockListener::from_listening(listener.into()).unwrap();
        Channel::Vsock { connections, newest: None }
    }

    #[tokio::test]
    async fn the_newest_connection_wins_and_one_that_ends_is_no_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut channel = channel(folder.path());
        // One that never opens a session, and one that ends at once.
        let silent = UnixStream::connect(&path).await.unwrap();
        drop(UnixStream::connect(&path).await.unwrap());
        let mut before: Option<SessionStream> = None;
        for round in 0..3u8 {
            let connection = UnixStream::connect(&path).await.unwrap();
            let opened = host::open(connection, [round; 16], Duration::from_secs(30));
            let (host, guest) = tokio::join!(opened, channel.accept());
            let (mut host, mut guest) = (host.unwrap(), guest.unwrap());
            if let Some(mut before) = before.take() {
                assert_eq!(before.read(&mut [0; 1]).await.unwrap(), 0, "the session before is over");
            }
            guest.write_all(&[round]).await.unwrap();
            assert_eq!(host.read_u8().await.unwrap(), round);
            before = Some(guest);
        }
        drop(silent);
    }
}
