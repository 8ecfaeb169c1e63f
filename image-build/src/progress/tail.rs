//! The last bytes of a text.

use std::collections::VecDeque;

/// Keeps the last [`LIMIT`](Self::LIMIT) bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    pub(super) const LIMIT: usize = 16 * 1024;

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(Self::LIMIT)..];
        let overflow = (self.bytes.len() + kept.len()).saturating_sub(Self::LIMIT);
        self.cut |= overflow > 0 || kept.len() < bytes.len();
        self.bytes.drain(..overflow);
        self.bytes.extend(kept);
    }

    /// As text, from the first line that is whole.
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once('\n') {
            Some((_, whole)) if self.cut && !whole.is_empty() => whole.to_owned(),
            _ => text.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_bounded_and_begins_with_a_whole_line() {
        let mut tail = Tail::default();
        for line in 0..10_000 {
            tail.push(format!("line {line}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= Tail::LIMIT && text.len() > Tail::LIMIT - 20);
        assert!(text.starts_with("line ") && text.ends_with("line 9999\n"));
        tail.push(&[b'x'; Tail::LIMIT + 1]);
        assert_eq!(tail.text().len(), Tail::LIMIT);
    }
}
