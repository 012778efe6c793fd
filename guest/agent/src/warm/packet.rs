//! What is said to esbuild's service and what it answers (esbuild's `cmd/esbuild/stdio_protocol.go`).
//!
//! ```text
//! packet = length of the rest (u32), number (u32: twice the request's, one more in its answer), value
//! value  = 0 nothing | 1 bool (u8) | 2 int (u32) | 3 text, 4 bytes (length u32, bytes)
//!        | 5 list (count u32, values) | 6 map (count u32; a key's length u32 and bytes, its value)
//! ```
//! Numbers are little-endian. Before the first answer comes one packet with its version alone.

use std::io;

/// Longest answer that is read. A program without its types is about as long as with them.
pub(super) const ANSWER_BYTES_MAX: u32 = 8 << 20;
/// Lists and maps in each other: an answer has errors, in them notes, in them places.
const DEPTH_MAX: u32 = 8;
/// The number of every request: one is answered before the next is sent.
const NUMBER: u32 = 1;

/// A request to transform a program, as a packet.
pub(super) fn transform(options: &[&str], code: &[u8]) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 4];
    packet.extend((NUMBER << 1).to_le_bytes());
    packet.push(6);
    packet.extend(4u32.to_le_bytes());
    key(&mut packet, "command")?;
    bytes(&mut packet, 3, b"transform")?;
    key(&mut packet, "flags")?;
    packet.push(5);
    packet.extend(length(options.len())?);
    for option in options {
        bytes(&mut packet, 3, option.as_bytes())?;
    }
    key(&mut packet, "inputFS")?;
    packet.extend([1, 0]);
    key(&mut packet, "input")?;
    bytes(&mut packet, 4, code)?;
    let rest = length(packet.len() - 4)?;
    packet[..4].copy_from_slice(&rest);
    Ok(packet)
}

/// The program in an answer, its length already read; none if there are errors in it. Anything else is an error.
pub(super) fn transformed(answer: &[u8]) -> io::Result<Option<String>> {
    let mut rest = Rest(answer);
    if rest.number()? != (NUMBER << 1) | 1 {
        return Err(invalid("it answers something else"));
    }
    if rest.byte()? != 6 {
        return Err(invalid("its answer is no map"));
    }
    let (mut code, mut errors, mut is_in_file) = (None, None, None);
    for _ in 0..rest.number()? {
        match rest.bytes()? {
            b"code" => code = Some(rest.text()?),
            b"errors" => errors = Some(rest.list()?),
            b"codeFS" => is_in_file = Some(rest.truth()?),
            _ => rest.skip(DEPTH_MAX)?,
        }
    }
    match (code, errors, is_in_file) {
        _ if !rest.0.is_empty() => Err(invalid("its answer is longer than it says")),
        (Some(code), Some(0), Some(false)) => Ok(Some(code)),
        (Some(_), Some(_), Some(_)) => Ok(None),
        _ => Err(invalid("its answer lacks something")),
    }
}

/// Any bytes as an answer.
pub(crate) fn hostile(data: &[u8]) {
    // Whatever it is, it is a program, none, or an error.
    let _ = transformed(data);
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    Ok(u32::try_from(bytes).map_err(|_| invalid("it is too long"))?.to_le_bytes())
}

fn key(packet: &mut Vec<u8>, name: &str) -> io::Result<()> {
    packet.extend(length(name.len())?);
    packet.extend(name.as_bytes());
    Ok(())
}

fn bytes(packet: &mut Vec<u8>, kind: u8, bytes: &[u8]) -> io::Result<()> {
    packet.push(kind);
    packet.extend(length(bytes.len())?);
    packet.extend(bytes);
    Ok(())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| invalid("its answer is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let count = self.number()?;
        self.take(usize::try_from(count).map_err(|_| invalid("its answer is cut short"))?)
    }

    fn kind(&mut self, kind: u8) -> io::Result<()> {
        if self.byte()? == kind { Ok(()) } else { Err(invalid("its answer has something of another kind")) }
    }

    fn text(&mut self) -> io::Result<String> {
        self.kind(3)?;
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| invalid("its answer is no UTF-8"))
    }

    fn truth(&mut self) -> io::Result<bool> {
        self.kind(1)?;
        Ok(self.byte()? != 0)
    }

    /// How many a list has, which are passed over.
    fn list(&mut self) -> io::Result<u32> {
        self.kind(5)?;
        let count = self.number()?;
        for _ in 0..count {
            self.skip(DEPTH_MAX)?;
        }
        Ok(count)
    }

    fn skip(&mut self, depth: u32) -> io::Result<()> {
        let deeper = || depth.checked_sub(1).ok_or_else(|| invalid("its answer is too deep"));
        match self.byte()? {
            0 => {}
            1 => drop(self.byte()?),
            2 => drop(self.number()?),
            3 | 4 => drop(self.bytes()?),
            5 => {
                let depth = deeper()?;
                for _ in 0..self.number()? {
                    self.skip(depth)?;
                }
            }
            6 => {
                let depth = deeper()?;
                for _ in 0..self.number()? {
                    self.bytes()?;
                    self.skip(depth)?;
                }
            }
            _ => return Err(invalid("its answer has something of no kind")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer with these errors, as esbuild 0.17 writes one.
    fn answer(code: &str, errors: &[&str]) -> Vec<u8> {
        let mut packet = ((NUMBER << 1) | 1).to_le_bytes().to_vec();
        packet.push(6);
        packet.extend(4u32.to_le_bytes());
        key(&mut packet, "code").unwrap();
        bytes(&mut packet, 3, code.as_bytes()).unwrap();
        key(&mut packet, "codeFS").unwrap();
        packet.extend([1, 0]);
        key(&mut packet, "errors").unwrap();
        packet.push(5);
        packet.extend(length(errors.len()).unwrap());
        for error in errors {
            packet.extend([6, 1, 0, 0, 0]);
            key(&mut packet, "text").unwrap();
            bytes(&mut packet, 3, error.as_bytes()).unwrap();
        }
        key(&mut packet, "warnings").unwrap();
        packet.extend([5, 0, 0, 0, 0]);
        packet
    }

    #[test]
    fn a_request_is_a_map_of_four() {
        let packet = transform(&["--a"], b"1").unwrap();
        let expected = b"\x46\0\0\0\x02\0\0\0\x06\x04\0\0\0\x07\0\0\0command\x03\x09\0\0\0transform\x05\0\0\0flags\
            \x05\x01\0\0\0\x03\x03\0\0\0--a\x07\0\0\0inputFS\x01\0\x05\0\0\0input\x04\x01\0\0\x001";
        assert_eq!(packet.len() - 4, usize::from(packet[0]));
        assert_eq!(packet[1..], expected[1..]);
    }

    #[test]
    fn an_answer_is_a_program_or_errors() {
        assert_eq!(transformed(&answer("a;\n", &[])).unwrap(), Some("a;\n".to_owned()));
        assert_eq!(transformed(&answer("", &["no"])).unwrap(), None);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let whole = answer("a;\n", &["no"]);
        for end in 0..whole.len() {
            assert!(transformed(&whole[..end]).is_err(), "{end}");
        }
        assert!(transformed(&[whole.as_slice(), b"\0"].concat()).is_err());
        let mut other = whole.clone();
        other[0] = 5;
        assert!(transformed(&other).is_err());
        let deep = [&b"\x03\0\0\0\x06\x01\0\0\0\x01\0\0\0x"[..], &b"\x05\x01\0\0\0".repeat(99)].concat();
        assert!(transformed(&deep).unwrap_err().to_string().contains("deep"));
    }

    proptest! {
        #[test]
        fn hostile_answers_never_panic(edits: Vec<(prop::sample::Index, u8)>) {
            let mut packet = answer("let a = 1;\n", &["one", "two"]);
            for (at, byte) in edits.into_iter().take(4) {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            hostile(&packet);
        }
    }
}
