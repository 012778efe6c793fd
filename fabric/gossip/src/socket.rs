//! Chitchat's transport over the fabric's messages. Its traits speak `anyhow`, and so does this file alone.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use fabric_quic::{Fabric, Message};
use tokio::sync::mpsc;
use tracing::debug;

/// Opens the one socket there is.
pub(crate) struct FabricTransport {
    socket: Mutex<Option<FabricSocket>>,
}

/// See the module.
pub(crate) struct FabricSocket {
    fabric: Arc<dyn Fabric>,
    messages: mpsc::Receiver<Message>,
}

impl FabricTransport {
    pub(crate) fn new(fabric: Arc<dyn Fabric>, messages: mpsc::Receiver<Message>) -> Self {
        Self { socket: Mutex::new(Some(FabricSocket { fabric, messages })) }
    }
}

#[async_trait]
impl Transport for FabricTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().expect("no code panics while it holds this lock").take();
        Ok(Box::new(socket.context("the fabric's messages are taken already")?))
    }
}

#[async_trait]
impl Socket for FabricSocket {
    /// Awaited inside chitchat's loop, so it must not wait: the fabric queues or drops.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let bytes = message.serialize_to_vec();
        if let Err(error) = self.fabric.send_message(to, bytes.into()) {
            // An error would end gossip for good; the next round says it again.
            debug!(%to, %error, "a gossip message was not sent");
        }
        Ok(())
    }

    /// Cancel safe, as chitchat's loop needs it: nothing is awaited between taking a message and returning it.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let Message { from, bytes } = self.messages.recv().await.context("the fabric is closed")?;
            match decode(&bytes) {
                Ok(message) => return Ok((from, message)),
                Err(error) => debug!(%from, %error, "a message is not gossip"),
            }
        }
    }
}

fn decode(mut bytes: &[u8]) -> anyhow::Result<ChitchatMessage> {
    let message = ChitchatMessage::deserialize(&mut bytes)?;
    anyhow::ensure!(bytes.is_empty(), "{} bytes follow the message", bytes.len());
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_message_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(decode(&bytes));
        }

        /// Behind a valid head (magic, version, kind) the decoder gets further.
        #[test]
        fn arbitrary_bodies_do_not_panic(kind in 0..4_u8, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = ChitchatMessage::BadCluster.serialize_to_vec();
            bytes.pop();
            bytes.push(kind);
            bytes.extend_from_slice(&body);
            drop(decode(&bytes));
        }
    }

    #[test]
    fn a_message_reads_back_and_nothing_may_follow_it() {
        let mut bytes = ChitchatMessage::BadCluster.serialize_to_vec();
        assert_eq!(decode(&bytes).expect("a message"), ChitchatMessage::BadCluster);
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }
}
