//! One end's view of a session: which frames count, and what they mean.

use bytes::{Bytes, BytesMut};

use super::SessionId;
use super::frame::{Frame, Kind, PAYLOAD_BYTES_MAX, encode};

/// What a frame means to the end that got it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The next bytes.
    Bytes(Bytes),
    /// The other end sends no more.
    End,
    /// Bytes were lost, or the other end says so.
    Broken,
    /// Nothing: another session's, or out of place.
    Nothing,
}

/// An open session, as one end sees it.
#[derive(Debug)]
pub(super) struct Half {
    id: SessionId,
    next_in: u32,
    next_out: u32,
    ended_in: bool,
    ended_out: bool,
}

impl Half {
    pub(super) fn new(id: SessionId) -> Self {
        Self { id, next_in: 0, next_out: 0, ended_in: false, ended_out: false }
    }

    pub(super) fn id(&self) -> &SessionId {
        &self.id
    }

    /// Whether this end has said that it sends no more.
    pub(super) fn ended_out(&self) -> bool {
        self.ended_out
    }

    /// Judges a frame. Numbers go up by one for DATA and FIN, so nothing can be lost, doubled or swapped unnoticed.
    pub(super) fn take(&mut self, frame: Frame) -> Meaning {
        if frame.session != self.id || self.ended_in {
            return Meaning::Nothing;
        }
        match frame.kind {
            Kind::Hello | Kind::Ack | Kind::Refuse => Meaning::Nothing,
            Kind::Reset => self.broken(),
            Kind::Data | Kind::Fin if frame.number != self.next_in => self.broken(),
            Kind::Data => {
                self.next_in = self.next_in.wrapping_add(1);
                // A read of no bytes would look like the end.
                if frame.payload.is_empty() { Meaning::Nothing } else { Meaning::Bytes(frame.payload) }
            }
            Kind::Fin => {
                self.ended_in = true;
                Meaning::End
            }
        }
    }

    /// Appends DATA with as many of the bytes as one frame holds, and tells how many.
    pub(super) fn send(&mut self, out: &mut BytesMut, bytes: &[u8]) -> usize {
        let bytes = &bytes[..bytes.len().min(PAYLOAD_BYTES_MAX)];
        encode(out, Kind::Data, &self.id, self.next_out, bytes);
        self.next_out = self.next_out.wrapping_add(1);
        bytes.len()
    }

    /// Appends FIN, once.
    pub(super) fn finish(&mut self, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.ended_out, true) {
            encode(out, Kind::Fin, &self.id, self.next_out, &[]);
        }
    }

    /// Appends RESET: the other end must not wait for what can't come.
    pub(super) fn reset(&mut self, out: &mut BytesMut) {
        self.ended_out = true;
        encode(out, Kind::Reset, &self.id, 0, &[]);
    }

    fn broken(&mut self) -> Meaning {
        self.ended_in = true;
        Meaning::Broken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::Decoder;
    use super::*;

    fn decoded(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(bytes);
        std::iter::from_fn(|| decoder.next_frame()).collect()
    }

    /// What a receiver of `id` makes of bytes: what it read, and how it ended.
    fn received(id: SessionId, bytes: &[u8]) -> (Vec<u8>, Meaning) {
        let mut half = Half::new(id);
        let mut read = Vec::new();
        for frame in decoded(bytes) {
            match half.take(frame) {
                Meaning::Bytes(bytes) => read.extend_from_slice(&bytes),
                Meaning::Nothing => {}
                end => return (read, end),
            }
        }
        (read, Meaning::Nothing)
    }

    fn sent(id: SessionId, messages: &[Vec<u8>]) -> BytesMut {
        let mut half = Half::new(id);
        let mut out = BytesMut::new();
        for message in messages {
            half.send(&mut out, message);
        }
        half.finish(&mut out);
        half.finish(&mut out);
        out
    }

    #[test]
    fn a_lost_frame_breaks_the_session_and_ends_it_for_good() {
        let bytes = sent([1; 16], &[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
        let mut frames = decoded(&bytes);
        frames.remove(1);
        let mut half = Half::new([1; 16]);
        assert_eq!(half.take(frames.remove(0)), Meaning::Bytes(Bytes::from_static(b"one")));
        assert_eq!(half.take(frames.remove(0)), Meaning::Broken);
        assert_eq!(half.take(frames.remove(0)), Meaning::Nothing);
    }

    proptest! {
        #[test]
        fn two_sessions_interleaved_each_read_their_own(
            a in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..8),
            b in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..8),
            order: Vec<bool>,
        ) {
            let frames = |bytes: &BytesMut| -> Vec<Vec<u8>> { bytes.split_inclusive(|&byte| byte == 0).map(<[u8]>::to_vec).collect() };
            let (mut from_a, mut from_b) = (frames(&sent([1; 16], &a)), frames(&sent([2; 16], &b)));
            let mut mixed = Vec::new();
            for first in order {
                let from = if first { &mut from_a } else { &mut from_b };
                if !from.is_empty() {
                    mixed.extend(from.remove(0));
                }
            }
            mixed.extend(from_a.concat());
            mixed.extend(from_b.concat());
            prop_assert_eq!(received([1; 16], &mixed), (a.concat(), Meaning::End));
            prop_assert_eq!(received([2; 16], &mixed), (b.concat(), Meaning::End));
        }

        /// Cut anywhere, or with anything in the middle gone: what is read is a prefix of what was sent.
        #[test]
        fn a_cut_gives_a_prefix(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..8),
            from: prop::sample::Index,
            len in 0usize..400,
        ) {
            let mut bytes = sent([1; 16], &messages).to_vec();
            let from = from.index(bytes.len());
            let to = (from + len).min(bytes.len());
            bytes.drain(from..to);
            let (read, _) = received([1; 16], &bytes);
            prop_assert!(messages.concat().starts_with(&read));
        }
    }
}
