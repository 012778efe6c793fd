//! The frame's form: an encoder, and an incremental decoder that survives anything.
//!
//! ```text
//! before stuffing:  kind 1 | session 16 | number 4 (little endian) | payload 0..=32768 | CRC-32 of all before 4
//! on the channel:   COBS(frame) 00
//! ```
//!
//! HELLO, ACK and REFUSE carry `MAGIC` and a version (4 bytes, little endian) as payload.

use bytes::{Buf, Bytes, BytesMut};

use super::SessionId;
use super::cobs;
use super::crc::Crc;

/// Version of this layer, in HELLO and ACK.
pub const VERSION: u32 = 1;
/// Payload of one frame: twice HTTP/2's usual frame, so that a message rarely takes two.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 10;
/// A frame on the channel, with its delimiter: the most that a decoder keeps of what isn't complete.
pub const ENCODED_BYTES_MAX: usize = cobs::encoded_len_max(HEADER_BYTES + PAYLOAD_BYTES_MAX + CRC_BYTES) + 1;

/// Tells our HELLO from any other protocol's bytes.
const MAGIC: &[u8; 8] = b"atoll/ch";
const HEADER_BYTES: usize = 1 + 16 + 4;
const CRC_BYTES: usize = 4;
/// Ends a frame.
const DELIMITER: u8 = 0;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Host: opens a session.
    Hello,
    /// Guest: it is open.
    Ack,
    /// Guest: it speaks another version.
    Refuse,
    /// Bytes.
    Data,
    /// No more bytes from this side.
    Fin,
    /// The session is broken.
    Reset,
}

impl Kind {
    const ALL: [(u8, Self); 6] =
        [(1, Self::Hello), (2, Self::Ack), (3, Self::Refuse), (4, Self::Data), (5, Self::Fin), (6, Self::Reset)];

    fn to_byte(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Ack => 2,
            Self::Refuse => 3,
            Self::Data => 4,
            Self::Fin => 5,
            Self::Reset => 6,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.iter().find(|(value, _)| *value == byte).map(|(_, kind)| *kind)
    }
}

/// A frame that arrived whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) session: SessionId,
    pub(super) number: u32,
    pub(super) payload: Bytes,
}

impl Frame {
    /// The version in a HELLO, ACK or REFUSE; `None` if the payload isn't that.
    pub(super) fn version(&self) -> Option<u32> {
        let version = self.payload.strip_prefix(MAGIC)?;
        Some(u32::from_le_bytes(version.try_into().ok()?))
    }
}

/// Appends a frame with its delimiter. `payload` is at most [`PAYLOAD_BYTES_MAX`] long.
pub(super) fn encode(out: &mut BytesMut, kind: Kind, session: &SessionId, number: u32, payload: &[u8]) {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the callers cut what they send");
    let mut header = [0; HEADER_BYTES];
    header[0] = kind.to_byte();
    header[1..17].copy_from_slice(session);
    header[17..].copy_from_slice(&number.to_le_bytes());
    let crc = Crc::new().update(&header).update(payload).finish();
    out.reserve(cobs::encoded_len_max(HEADER_BYTES + payload.len() + CRC_BYTES) + 1);
    let mut stuffed = cobs::Encoder::new(out);
    stuffed.push(&header);
    stuffed.push(payload);
    stuffed.push(&crc.to_le_bytes());
    stuffed.finish();
    out.extend_from_slice(&[DELIMITER]);
}

/// Appends a HELLO, ACK or REFUSE after a delimiter of its own, which ends whatever half frame lies before it.
pub(super) fn encode_opening(out: &mut BytesMut, kind: Kind, session: &SessionId, version: u32) {
    let mut payload = [0; 12];
    payload[..8].copy_from_slice(MAGIC);
    payload[8..].copy_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[DELIMITER]);
    encode(out, kind, session, 0, &payload);
}

/// Takes bytes as they come, gives whole frames. It keeps less than [`ENCODED_BYTES_MAX`] bytes beyond what it was fed last.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Bytes not yet looked at, and the beginning of an unfinished frame.
    raw: BytesMut,
    /// How many of them are known to hold no delimiter.
    scanned: usize,
    /// A frame that is too long is being skipped.
    skipping: bool,
}

impl Decoder {
    /// Where the next bytes are read into.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.raw
    }

    /// The next whole frame; what is none is dropped on the way.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let Some(found) = self.raw[self.scanned..].iter().position(|&byte| byte == DELIMITER) else {
                self.scanned = self.raw.len();
                if self.scanned >= ENCODED_BYTES_MAX {
                    self.skipping = true;
                }
                if self.skipping {
                    self.raw.clear();
                    self.scanned = 0;
                }
                return None;
            };
            let stuffed = self.raw.split_to(self.scanned + found);
            self.raw.advance(1);
            self.scanned = 0;
            let skipped = std::mem::take(&mut self.skipping);
            if !skipped && let Some(frame) = decode(stuffed) {
                return Some(frame);
            }
        }
    }
}

/// One stuffed frame, without its delimiter.
fn decode(mut stuffed: BytesMut) -> Option<Frame> {
    if stuffed.len() >= ENCODED_BYTES_MAX {
        return None;
    }
    let len = cobs::decode(&mut stuffed)?;
    let payload_end = len.checked_sub(CRC_BYTES).filter(|&end| end >= HEADER_BYTES)?;
    stuffed.truncate(len);
    let crc = u32::from_le_bytes(stuffed[payload_end..].try_into().ok()?);
    if Crc::new().update(&stuffed[..payload_end]).finish() != crc {
        return None;
    }
    let kind = Kind::from_byte(stuffed[0])?;
    let session = stuffed[1..17].try_into().ok()?;
    let number = u32::from_le_bytes(stuffed[17..HEADER_BYTES].try_into().ok()?);
    let payload = stuffed.freeze().slice(HEADER_BYTES..payload_end);
    if payload.len() > PAYLOAD_BYTES_MAX {
        return None;
    }
    Some(Frame { kind, session, number, payload })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    fn frames(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Frame> {
        decoder.buffer().extend_from_slice(bytes);
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    /// The bytes of version 1, which a later version must still read. Regenerate by hand: a change is a new version.
    #[test]
    fn the_golden_file_is_what_is_written_and_read() {
        let session: SessionId = std::array::from_fn(|index| index as u8);
        let mut text = String::new();
        let mut all = BytesMut::new();
        let mut line = |name: &str, write: &dyn Fn(&mut BytesMut)| {
            let mut out = BytesMut::new();
            write(&mut out);
            all.extend_from_slice(&out);
            text.push_str(name);
            text.push(' ');
            out.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        };
        line("hello", &|out| encode_opening(out, Kind::Hello, &session, 1));
        line("ack", &|out| encode_opening(out, Kind::Ack, &session, 1));
        line("refuse", &|out| encode_opening(out, Kind::Refuse, &session, 1));
        line("data", &|out| encode(out, Kind::Data, &session, 258, b"one\0two"));
        line("fin", &|out| encode(out, Kind::Fin, &session, 259, b""));
        line("reset", &|out| encode(out, Kind::Reset, &session, 0, b""));
        assert_eq!(text, include_str!("../../golden/session-1.txt"));

        let read = frames(&mut Decoder::default(), &all);
        let kinds: Vec<Kind> = read.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, Kind::ALL.map(|(_, kind)| kind));
        assert!(read.iter().all(|frame| frame.session == session));
        assert_eq!(read[0].version(), Some(1));
        assert_eq!((read[3].number, &read[3].payload[..]), (258, &b"one\0two"[..]));
        assert_eq!(read[3].version(), None);
    }

    #[test]
    fn the_largest_frame_fits_and_a_larger_one_is_skipped() {
        let session = [7; 16];
        let mut out = BytesMut::new();
        encode(&mut out, Kind::Data, &session, 1, &vec![1; PAYLOAD_BYTES_MAX]);
        assert!(out.len() <= ENCODED_BYTES_MAX);
        let mut decoder = Decoder::default();
        assert_eq!(frames(&mut decoder, &out).len(), 1);

        let mut endless = vec![9; 10 * ENCODED_BYTES_MAX];
        for chunk in endless.chunks(5000) {
            assert!(frames(&mut decoder, chunk).is_empty());
            assert!(decoder.raw.len() < ENCODED_BYTES_MAX);
        }
        endless.clear();
        endless.push(DELIMITER);
        endless.extend_from_slice(&out);
        assert_eq!(frames(&mut decoder, &endless).len(), 1);
    }

    fn sent() -> impl Strategy<Value = Vec<(u32, Vec<u8>)>> {
        prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..400)), 1..8)
    }

    proptest! {
        #[test]
        fn any_cut_of_the_reads_gives_the_same_frames(sent in sent(), chunk in 1usize..50) {
            let session = [3; 16];
            let mut out = BytesMut::new();
            for (number, payload) in &sent {
                encode(&mut out, Kind::Data, &session, *number, payload);
            }
            let mut decoder = Decoder::default();
            let got: Vec<Frame> = out.chunks(chunk).flat_map(|bytes| frames(&mut decoder, bytes)).collect();
            let got: Vec<(u32, Vec<u8>)> = got.into_iter().map(|frame| (frame.number, frame.payload.to_vec())).collect();
            prop_assert_eq!(got, sent);
        }

        /// Bytes lost, changed or put in anywhere: every frame that comes out is one that was sent.
        #[test]
        fn damage_never_makes_a_frame(
            sent in sent(),
            from: prop::sample::Index,
            len in 0usize..300,
            garbage in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let session = [3; 16];
            let mut out = BytesMut::new();
            for (number, payload) in &sent {
                encode(&mut out, Kind::Data, &session, *number, payload);
            }
            let mut bytes = out.to_vec();
            let from = from.index(bytes.len());
            let to = (from + len).min(bytes.len());
            bytes.splice(from..to, garbage);
            for frame in frames(&mut Decoder::default(), &bytes) {
                prop_assert!(sent.contains(&(frame.number, frame.payload.to_vec())));
            }
        }

        #[test]
        fn garbage_is_bounded_and_makes_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut decoder = Decoder::default();
            prop_assert!(frames(&mut decoder, &bytes).is_empty());
            prop_assert!(decoder.raw.len() < ENCODED_BYTES_MAX);
        }
    }
}
