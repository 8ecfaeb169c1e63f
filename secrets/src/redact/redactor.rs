//! Redaction of a stream, wherever it is cut.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::patterns::Before;
use super::{MARKER, Patterns};

/// How long up to [`FEW`] bytes are held that may be the beginning of a value: a prompt has to appear.
pub(crate) const MOMENT: Duration = Duration::from_millis(250);
/// How long more are held; then they are taken for what they seem to be.
pub(crate) const LONG_MOMENT: Duration = Duration::from_secs(1);
/// So few bytes of a value tell nothing.
const FEW: usize = 3;

/// Replaces what a list of [`Patterns`] finds in one stream. What is not found comes out as it went in, byte for byte;
/// held back is only what may be the beginning of a value.
#[derive(Debug)]
pub(crate) struct Redactor {
    patterns: Arc<Patterns>,
    /// What may be the beginning of a value.
    pending: Vec<u8>,
    /// How many bytes of it are out already, as they are or replaced.
    done: usize,
    /// What is before it.
    before: Before,
    /// Whether the last that went out is the marker.
    marked: bool,
    /// Whether a base64 digit that follows belongs to the last match.
    eat: bool,
}

impl Redactor {
    pub(crate) fn new(patterns: Arc<Patterns>) -> Self {
        Self {
            patterns,
            pending: Vec::new(),
            done: 0,
            before: Before::default(),
            marked: false,
            eat: false,
        }
    }

    /// Looks for another list from here on.
    pub(crate) fn set(&mut self, patterns: Arc<Patterns>) {
        self.patterns = patterns;
    }

    /// Whether something waits that has to come out in time.
    pub(crate) fn is_holding(&self) -> bool {
        self.done < self.pending.len()
    }

    /// Reads on; what comes out is safe.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        if chunk.is_empty() {
            return chunk;
        }
        if self.pending.is_empty() && !self.eat {
            let found = self.patterns.find(&chunk, self.before);
            if found.spans.is_empty() {
                // The usual case: nothing is copied but what is held.
                self.before = self.before.and(&chunk[..found.hold]);
                self.marked &= found.hold == 0;
                self.eat = found.eat;
                self.pending.extend_from_slice(&chunk[found.hold..]);
                self.done = 0;
                return chunk.slice(..found.hold);
            }
        }
        // A match of which a part is held is found again, with its digit.
        if self.eat && self.done == self.pending.len() && super::forms::is_digit(chunk[0]) {
            self.done += 1;
        }
        self.pending.extend_from_slice(&chunk);
        self.advance(false)
    }

    /// Lets out what was held for so long.
    pub(crate) fn flush(&mut self, held: Duration) -> Bytes {
        if !self.is_holding() || held < MOMENT {
            return Bytes::new();
        }
        let found = self.patterns.find(&self.pending, self.before);
        // A line break tells nothing.
        let bytes = self.pending[found.partial..].iter();
        let few = bytes.filter(|byte| !b"\r\n".contains(byte)).count() <= FEW;
        if !few && held < LONG_MOMENT {
            return Bytes::new();
        }
        let mut out = Vec::new();
        let end = if few { self.pending.len() } else { found.partial };
        self.write(&found.spans, end, &mut out);
        if !few {
            self.mark(&mut out);
        }
        self.done = self.pending.len();
        out.into()
    }

    /// The rest of a stream that has ended.
    pub(crate) fn finish(&mut self) -> Bytes {
        let rest = self.advance(true);
        self.pending.clear();
        self.done = 0;
        self.before = Before::default();
        (self.marked, self.eat) = (false, false);
        rest
    }

    fn advance(&mut self, last: bool) -> Bytes {
        let length = self.pending.len();
        if last {
            // The end of the stream ends its last line.
            self.pending.push(b'\n');
        }
        let found = self.patterns.find(&self.pending, self.before);
        self.pending.truncate(length);
        let hold = if last { length } else { found.hold };
        self.eat = found.eat;
        let mut out = Vec::with_capacity(hold.saturating_sub(self.done));
        self.write(&found.spans, hold, &mut out);
        // Of a match that goes on into what is held, the rest is replaced already.
        let replaced = found.spans.iter().find(|(start, end)| *start < hold && *end > hold);
        if let Some((_, end)) = replaced {
            self.done = self.done.max((*end).min(length));
        }
        self.before = self.before.and(&self.pending[..hold]);
        self.pending.drain(..hold);
        self.done = self.done.saturating_sub(hold);
        out.into()
    }

    /// Writes out up to `end` what is not out yet, and replaces the spans.
    fn write(&mut self, spans: &[(usize, usize)], end: usize, out: &mut Vec<u8>) {
        for (start, stop) in spans.iter().copied().filter(|(start, _)| *start < end) {
            if stop <= self.done {
                continue;
            }
            if start > self.done {
                out.extend_from_slice(&self.pending[self.done..start]);
                self.marked = false;
                self.done = start;
            }
            self.mark(out);
            self.done = stop.min(end);
        }
        if self.done < end {
            out.extend_from_slice(&self.pending[self.done..end]);
            self.marked = false;
            self.done = end;
        }
    }

    fn mark(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.marked, true) {
            out.extend_from_slice(MARKER.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
