//! Bytes as they come, as text: a character that was cut waits for its rest.

use super::execution::TEXT_BYTES_MAX;

/// One output of an execution.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// The beginning of a character.
    cut: Vec<u8>,
    passed: usize,
    /// Whether something was dropped past the limit.
    pub(super) truncated: bool,
}

impl Text {
    /// The text that can be told now; what is no UTF-8 is replaced.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let kept = bytes.len().min(TEXT_BYTES_MAX - self.passed);
        self.truncated |= kept < bytes.len();
        self.passed += kept;
        self.cut.extend_from_slice(&bytes[..kept]);
        let mut text = String::new();
        let mut rest = self.cut.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                }
                Err(error) => {
                    let (whole, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    rest = after;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.cut = rest.to_vec();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bad_bytes_are_replaced_and_what_is_past_the_limit_is_dropped() {
        let mut text = Text::default();
        assert_eq!(text.push(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(text.push(b"\xac!"), "€!");
        let mut text = Text { passed: TEXT_BYTES_MAX - 2, ..Text::default() };
        assert_eq!(text.push(b"abc"), "ab");
        assert!(text.truncated);
        assert_eq!(text.push(b"d"), "");
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(text in "\\PC{0,40}", cuts: Vec<prop::sample::Index>) {
            let bytes = text.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let mut output = Text::default();
            let got: String = at.windows(2).map(|pair| output.push(&bytes[pair[0]..pair[1]])).collect();
            prop_assert_eq!(got, text);
        }
    }
}
