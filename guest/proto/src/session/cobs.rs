//! Consistent Overhead Byte Stuffing (Cheshire and Baker, 1999): bytes without a zero among them.
//!
//! A block is a code byte n and n-1 bytes that aren't zero; it stands for those bytes and a zero after them, but for
//! n = 255 (no zero) and for the last block (none either).

use bytes::{BufMut, BytesMut};

/// Bytes in the longest block.
const BLOCK_BYTES_MAX: usize = 254;

/// Most bytes that `len` bytes take when encoded.
pub(super) const fn encoded_len_max(len: usize) -> usize {
    len + len / BLOCK_BYTES_MAX + 1
}

/// Encodes parts into one run of blocks at the end of a buffer.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    out: &'a mut BytesMut,
    /// Where the current block's code byte is.
    code_at: usize,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        let code_at = out.len();
        out.put_u8(0);
        Self { out, code_at }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let in_block = self.out.len() - self.code_at - 1;
            if in_block == BLOCK_BYTES_MAX {
                self.next_block(255);
                continue;
            }
            let window = &bytes[..bytes.len().min(BLOCK_BYTES_MAX - in_block)];
            match window.iter().position(|&byte| byte == 0) {
                Some(zero) => {
                    self.out.extend_from_slice(&window[..zero]);
                    bytes = &bytes[zero + 1..];
                    self.next_block(code(in_block + zero));
                }
                None => {
                    self.out.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                }
            }
        }
    }

    /// Closes the last block.
    pub(super) fn finish(self) {
        let in_block = self.out.len() - self.code_at - 1;
        self.out[self.code_at] = code(in_block);
    }

    fn next_block(&mut self, code: u8) {
        self.out[self.code_at] = code;
        self.code_at = self.out.len();
        self.out.put_u8(0);
    }
}

/// The code byte of a block.
fn code(in_block: usize) -> u8 {
    u8::try_from(in_block + 1).unwrap_or(255)
}

/// Decodes in place; the length, or `None` if the bytes are no encoding.
pub(super) fn decode(bytes: &mut [u8]) -> Option<usize> {
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        let code = usize::from(bytes[from]);
        let end = from + code;
        if code == 0 || end > bytes.len() {
            return None;
        }
        bytes.copy_within(from + 1..end, to);
        to += code - 1;
        from = end;
        if code != 255 && from < bytes.len() {
            bytes[to] = 0;
            to += 1;
        }
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(parts: &[&[u8]]) -> BytesMut {
        let mut out = BytesMut::new();
        let mut encoder = Encoder::new(&mut out);
        parts.iter().for_each(|part| encoder.push(part));
        encoder.finish();
        out
    }

    #[test]
    fn known_encodings() {
        let cases: [(&[u8], &[u8]); 5] = [
            (&[], &[1]),
            (&[0], &[1, 1]),
            (&[0, 0], &[1, 1, 1]),
            (&[0x11, 0x22, 0, 0x33], &[3, 0x11, 0x22, 2, 0x33]),
            (&[0x11, 0, 0, 0], &[2, 0x11, 1, 1, 1]),
        ];
        for (plain, stuffed) in cases {
            assert_eq!(encoded(&[plain]), stuffed);
        }
        let full: Vec<u8> = (1..=254).collect();
        assert_eq!(encoded(&[&full])[0], 255);
        assert_eq!(encoded(&[&full]).len(), 255);
    }

    /// Bytes with many zeros and with long runs without one.
    fn plain() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(0u8..3, 0..600),
            prop::collection::vec(1u8..=255, 0..1200),
            prop::collection::vec(any::<u8>(), 0..2000),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_and_holds_no_zero(bytes in plain(), at: prop::sample::Index) {
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            let mut stuffed = encoded(&[head, tail]);
            prop_assert!(!stuffed.contains(&0));
            prop_assert!(stuffed.len() <= encoded_len_max(bytes.len()));
            prop_assert_eq!(&stuffed, &encoded(&[&bytes]));
            let len = decode(&mut stuffed).unwrap();
            prop_assert_eq!(&stuffed[..len], &bytes[..]);
        }

        #[test]
        fn hostile_bytes_never_panic(mut bytes: Vec<u8>) {
            let before = bytes.len();
            if let Some(len) = decode(&mut bytes) {
                prop_assert!(len <= before);
            }
        }
    }
}
