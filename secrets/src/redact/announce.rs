//! Values that a running task announces on its own output: `::add-mask::VALUE` on a line of its own.

use std::time::Duration;

use bytes::Bytes;
use memchr::{memchr, memmem};

use super::LONGEST;
use super::redactor::MOMENT;
use crate::SecretValue;

const SIGN: &[u8] = b"::add-mask::";

/// Listens to one stream. A line that may be an announcement is held until it is whole, so that its value can be
/// redacted in it too.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    /// The beginning of a line that may become an announcement.
    held: Vec<u8>,
    /// How many bytes of it are out.
    done: usize,
    /// Whether the stream is in the middle of a line.
    within: bool,
}

impl Announcements {
    /// Reads on: what passes, and the values that were announced in it.
    pub(crate) fn push(&mut self, chunk: Bytes) -> (Bytes, Vec<SecretValue>) {
        let mut values = Vec::new();
        let direct = self.held.is_empty();
        if direct && self.within && memchr(b'\n', &chunk).is_none() {
            return (chunk, values);
        }
        let text: Bytes = if direct {
            chunk
        } else {
            let mut text = std::mem::take(&mut self.held);
            text.extend_from_slice(&chunk);
            text.into()
        };
        let done = std::mem::take(&mut self.done);
        let mut hold = text.len();
        let within = self.within;
        let begins = |at: usize| if at == 0 { !within } else { text[at - 1] == b'\n' };
        for at in memmem::find_iter(&text, SIGN).filter(|at| begins(*at)) {
            let line = &text[at + SIGN.len()..];
            match memchr(b'\n', line) {
                Some(end) => values.extend(value(&line[..end])),
                None if line.len() <= 3 * LONGEST => hold = at,
                // Longer than anything that can be redacted: the value is, too, and so refused by whoever takes it.
                None => values.extend(value(line)),
            }
        }
        if hold == text.len() {
            // Only the beginning of the sign?
            let earliest = text.len().saturating_sub(SIGN.len() - 1);
            let partial = (earliest..text.len()).find(|at| begins(*at) && SIGN.starts_with(&text[*at..]));
            hold = partial.unwrap_or(hold);
        }
        if let Some(last) = hold.checked_sub(1) {
            self.within = text[last] != b'\n';
        }
        self.held = text[hold..].to_vec();
        self.done = done.saturating_sub(hold);
        (text.slice(done.min(hold)..hold), values)
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.done < self.held.len() && self.held.len() < SIGN.len()
    }

    /// Lets out a beginning that was held so long; an announcement itself is never let out before it is whole.
    pub(crate) fn flush(&mut self, held: Duration) -> Bytes {
        if !self.is_holding() || held < MOMENT {
            return Bytes::new();
        }
        let out = Bytes::copy_from_slice(&self.held[self.done..]);
        self.done = self.held.len();
        out
    }

    /// The rest of a stream that has ended.
    pub(crate) fn finish(&mut self) -> (Bytes, Vec<SecretValue>) {
        let rest = std::mem::take(&mut self.held);
        let announced = rest.strip_prefix(SIGN).and_then(value);
        let done = std::mem::take(&mut self.done);
        self.within = false;
        (Bytes::from(rest).slice(done..), announced.into_iter().collect())
    }
}

/// A line can't hold a line feed: `%0A`, `%0D` and `%25` stand for what they do in GitHub's workflow commands.
fn value(line: &[u8]) -> Option<SecretValue> {
    let text = line.trim_ascii();
    let mut value = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let escaped = [(b"%0A", b'\n'), (b"%0D", b'\r'), (b"%25", b'%')];
        match escaped
            .iter()
            .find(|(code, _)| rest.len() >= 3 && rest[..3].eq_ignore_ascii_case(*code))
        {
            Some((_, byte)) => {
                value.push(*byte);
                rest = &rest[3..];
            }
            None => {
                value.push(*first);
                rest = more;
            }
        }
    }
    (!value.is_empty()).then(|| SecretValue::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&str]) -> (String, Vec<String>) {
        let mut announcements = Announcements::default();
        let (mut out, mut values) = (Vec::new(), Vec::new());
        let mut take = |(passed, announced): (Bytes, Vec<SecretValue>)| {
            out.extend_from_slice(&passed);
            values.extend(
                announced
                    .iter()
                    .map(|value| String::from_utf8_lossy(value.expose()).into_owned()),
            );
        };
        for piece in pieces {
            take(announcements.push(Bytes::copy_from_slice(piece.as_bytes())));
        }
        take(announcements.finish());
        (String::from_utf8(out).unwrap(), values)
    }

    #[test]
    fn an_announcement_is_heard_however_it_is_cut_and_every_byte_passes() {
        let text = "a\n::add-mask::one\nb::add-mask::no\n::add-mask::a%0Ab%25 \r\n::add\n::add-mask::last";
        for size in 1..text.len() {
            let pieces: Vec<&str> = text
                .as_bytes()
                .chunks(size)
                .map(|piece| std::str::from_utf8(piece).unwrap())
                .collect();
            let (out, values) = run(&pieces);
            assert_eq!(out, text, "{size}");
            assert_eq!(values, ["one", "a\nb%", "last"], "{size}");
        }
    }

    #[test]
    fn an_announcement_without_an_end_is_not_held_for_ever_and_not_overheard() {
        let mut announcements = Announcements::default();
        let piece = "x".repeat(LONGEST);
        let mut pushed = announcements.push(format!("::add-mask::{piece}").into());
        for _ in 0..3 {
            assert!(pushed.1.is_empty());
            pushed = announcements.push(piece.clone().into());
        }
        assert!(pushed.1[0].expose().len() > LONGEST && announcements.held.is_empty());
    }

    #[test]
    fn a_prompt_that_begins_like_one_appears_after_a_moment() {
        let mut announcements = Announcements::default();
        assert_eq!(announcements.push("x\n: ".into()).0, "x\n: ");
        assert_eq!(announcements.push("\n::".into()).0, "\n");
        assert_eq!(announcements.flush(MOMENT), "::");
        let (out, values) = announcements.push("add-mask::token\n".into());
        assert_eq!((out.as_ref(), values.len()), (b"add-mask::token\n".as_slice(), 1));
    }
}
