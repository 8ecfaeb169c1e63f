//! Text from strangers, made fit for a terminal or a log.

use std::borrow::Cow;

use crate::log::redacted;

/// Longest part of a line that is kept in memory before it is shown.
pub(crate) const LONGEST_LINE: usize = 16 * 1024;

/// A line of a task's output for a terminal: printable characters, tabs as spaces, and colours (the SGR sequences of
/// ECMA-48) if `colours`. Everything that would move the cursor, clear, retitle or beep is left out. Of a line that was
/// written over by carriage returns, the last version is shown, as a terminal would.
pub(crate) fn clean(line: &str, colours: bool) -> Cow<'_, str> {
    let line = line.trim_end_matches('\r');
    let line = line.rsplit_once('\r').map_or(line, |(_, last)| last);
    if !line.chars().any(char::is_control) {
        return Cow::Borrowed(line);
    }
    let (mut shown, mut coloured) = (String::with_capacity(line.len()), false);
    let mut rest = line;
    while let Some(at) = rest.find(char::is_control) {
        shown.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = control(rest);
        let sequence = &rest[..length];
        if sequence == "\t" {
            shown.push_str("    ");
        } else if colours && is_colour(sequence) {
            shown.push_str(sequence);
            coloured = true;
        }
        rest = &rest[length..];
    }
    shown.push_str(rest);
    if coloured {
        // What one line switches on must not colour the next.
        shown.push_str("\x1b[0m");
    }
    // A secret that was cut by what is left out is whole now.
    Cow::Owned(redacted(&shown))
}

/// The bytes of the control character or escape sequence that `text` starts with.
fn control(text: &str) -> usize {
    let mut chars = text.char_indices();
    let first = chars.next().map_or(0, |(_, c)| c.len_utf8());
    if !text.starts_with('\x1b') {
        return first;
    }
    match chars.next() {
        // CSI: parameters, then one final byte.
        Some((_, '[')) => chars
            .find(|(_, c)| ('@'..='~').contains(c) || c.is_control())
            .map_or(text.len(), |(at, c)| at + c.len_utf8()),
        // OSC and its kin: until BEL or ST.
        Some((_, ']' | 'P' | 'X' | '^' | '_')) => match text
            .find(['\x07', '\u{9c}'])
            .into_iter()
            .chain(text[1..].find("\x1b\\").map(|at| at + 2))
            .min()
        {
            Some(end) => end + text[end..].chars().next().map_or(1, char::len_utf8),
            None => text.len(),
        },
        Some((at, c)) => at + c.len_utf8(),
        None => first,
    }
}

fn is_colour(sequence: &str) -> bool {
    let parameters = sequence.strip_prefix("\x1b[").and_then(|rest| rest.strip_suffix('m'));
    parameters.is_some_and(|parameters| parameters.chars().all(|c| c.is_ascii_digit() || c == ';' || c == ':'))
}

/// Cuts a stream into lines. A line that is longer than [`LONGEST_LINE`] comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `line` with each line that is whole now, without its line feed.
    pub(crate) fn push<E>(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.last() == Some(&b'\n');
            let piece = piece.strip_suffix(b"\n").unwrap_or(piece);
            if whole && self.partial.is_empty() {
                line(piece)?;
                continue;
            }
            self.partial.extend_from_slice(piece);
            if whole || self.partial.len() >= LONGEST_LINE {
                line(&self.partial)?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// The rest, where the last line has no line feed.
    pub(crate) fn rest(&mut self) -> Option<Vec<u8>> {
        Some(std::mem::take(&mut self.partial)).filter(|rest| !rest.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn colours_stay_and_what_moves_the_cursor_goes() {
        for (line, shown) in [
            ("plain", "plain"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
            ("\x1b[2J\x1b[1;1Hclear", "clear"),
            ("a\x1b]0;title\x07b", "ab"),
            ("a\x1b]8;;http://x\x1b\\link", "alink"),
            ("a\x1b]0;never ends", "a"),
            ("10%\r50%\r100%\r", "100%"),
            ("bell\x07 and\ttab", "bell and    tab"),
            ("\x1b(B\x1bcx", "Bx"),
            ("\u{9b}2Jc1", "2Jc1"),
            ("cut \x1b", "cut "),
            ("cut \x1b[3", "cut "),
            ("\x1b[?25lhidden", "hidden"),
        ] {
            assert_eq!(clean(line, true), shown, "{line:?}");
        }
        assert_eq!(clean("\x1b[31mred\x1b[0m", false), "red");
    }

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["a", "b\nc", "", "\n\nd"] {
            let push = |line: &[u8]| -> Result<(), Infallible> {
                seen.push(String::from_utf8(line.to_vec()).unwrap());
                Ok(())
            };
            lines.push(piece.as_bytes(), push).unwrap();
        }
        assert_eq!(seen, ["ab", "c", ""]);
        assert_eq!(lines.rest().unwrap(), b"d");
        assert_eq!(lines.rest(), None);
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory() {
        let (mut lines, mut pieces) = (Lines::default(), 0);
        for _ in 0..64 {
            let count = |_: &[u8]| -> Result<(), Infallible> {
                pieces += 1;
                Ok(())
            };
            lines.push(&[b'x'; 4096], count).unwrap();
        }
        assert_eq!(pieces, 64 * 4096 / LONGEST_LINE);
    }
}
