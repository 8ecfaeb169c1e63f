//! Output that is kept for the result, in bounded memory.

use std::collections::VecDeque;
use std::fmt;

/// One output stream as far as it was kept: all of it, or its head and tail with the number of bytes cut between them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Captured {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
    limit: usize,
}

impl Captured {
    /// Keeps up to `limit` bytes from the start and `limit` from the end.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    /// Adds what was written next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.limit - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.limit)..];
        let overflow = (self.tail.len() + rest.len()).saturating_sub(self.limit);
        self.tail.drain(..overflow);
        self.tail.extend(rest);
    }

    /// How many bytes were written in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many bytes between head and tail are not kept.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.total - (self.head.len() + self.tail.len()) as u64
    }

    /// What was kept, with a line that says how much was cut where something was.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.clone();
        if self.cut() > 0 {
            bytes.extend_from_slice(format!("\n[... {} bytes cut ...]\n", self.cut()).as_bytes());
        }
        let (front, back) = self.tail.as_slices();
        bytes.extend_from_slice(front);
        bytes.extend_from_slice(back);
        bytes
    }

    /// The last `lines` lines of what was kept.
    #[must_use]
    pub fn last_lines(&self, lines: usize) -> String {
        let text = self.to_string();
        let start = text
            .trim_end_matches('\n')
            .rmatch_indices('\n')
            .nth(lines.saturating_sub(1))
            .map_or(0, |(at, _)| at + 1);
        text[start..].to_owned()
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_bytes()))
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} cut", self.total, self.cut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_cut_is_said() {
        let mut captured = Captured::new(4);
        captured.push(b"abcdefghijkl");
        assert_eq!(captured.to_string(), "abcd\n[... 4 bytes cut ...]\nijkl");
        assert_eq!((captured.total(), captured.cut()), (12, 4));
    }

    #[test]
    fn the_last_lines_are_whole_lines() {
        let mut captured = Captured::new(100);
        captured.push(b"a\nb\nc\n");
        assert_eq!(captured.last_lines(2), "b\nc\n");
        assert_eq!(captured.last_lines(9), "a\nb\nc\n");
    }

    proptest! {
        #[test]
        fn head_and_tail_are_those_of_the_input_however_it_is_cut(input in proptest::collection::vec(any::<u8>(), 0..200), limit in 0usize..40, size in 1usize..50) {
            let mut captured = Captured::new(limit);
            input.chunks(size).for_each(|piece| captured.push(piece));
            let bytes = captured.to_bytes();
            if input.len() <= 2 * limit {
                prop_assert_eq!(&bytes, &input);
                prop_assert_eq!(captured.cut(), 0);
            } else {
                prop_assert!(bytes.starts_with(&input[..limit]) && bytes.ends_with(&input[input.len() - limit..]));
                prop_assert_eq!(captured.cut(), (input.len() - 2 * limit) as u64);
            }
        }
    }
}
