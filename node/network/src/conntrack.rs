//! Forgets a port's connections: one message of ctnetlink, for which there is no crate.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// IPCTNL_MSG_CT_DELETE of the subsystem NFNL_SUBSYS_CTNETLINK (linux/netfilter/nfnetlink_conntrack.h).
const CT_DELETE: u16 = (1 << 8) | 2;
/// NLM_F_REQUEST and NLM_F_ACK (linux/netlink.h).
const FLAGS: u16 = 1 | 4;
/// CTA_MARK and CTA_MARK_MASK (linux/netfilter/nfnetlink_conntrack.h).
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
/// NLMSG_ERROR, which also says that all is well.
const NLMSG_ERROR: u16 = 2;

/// The tracked connections of one namespace.
pub(crate) struct Connections {
    socket: Socket,
}

impl Connections {
    /// Those of the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Forgets all whose mark is this one under the mask.
    pub(crate) fn forget(&self, mark: u32, mask: u32) -> io::Result<()> {
        self.socket.send(&message(mark, mask), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        read_answer(&answer)
    }
}

/// A header, the family (any), and two attributes in network order.
fn message(mark: u32, mask: u32) -> Vec<u8> {
    let mut body = vec![0u8, 0, 0, 0];
    for (kind, value) in [(CTA_MARK, mark), (CTA_MARK_MASK, mask)] {
        body.extend(8u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value.to_be_bytes());
    }
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(CT_DELETE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn read_answer(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        // Nothing was there to forget.
        (Some(NLMSG_ERROR), Some(code)) if code == -libc::ENOENT => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_long_as_it_says() {
        let message = message(0x0001_0000, 0xffff_0000);
        assert_eq!(message.len(), 36);
        assert_eq!(message.get(..4), Some(&36u32.to_ne_bytes()[..]));
        assert_eq!(message.get(24..28), Some(&[0, 1, 0, 0][..]));
    }

    #[test]
    fn an_answer_is_read_defensively() {
        assert!(read_answer(&[]).is_err());
        assert!(read_answer(&[0; 19]).is_err());
        let mut refused = vec![0u8; 36];
        refused[4] = 2;
        assert!(read_answer(&refused).is_ok());
        refused[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(read_answer(&refused).expect_err("refused").raw_os_error(), Some(libc::EPERM));
    }
}
