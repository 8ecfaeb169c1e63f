//! All forms of all values of a list, found in one pass.
//!
//! An automaton finds how forms begin, and what it finds is compared with the forms that begin so. That keeps it small,
//! however long the values are.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, OverlappingState, StateID};
use aho_corasick::nfa::{contiguous, noncontiguous};
use aho_corasick::{Anchored, Input, MatchKind, StartKind, dfa};
use memchr::{memchr_iter, memrchr};
use orchestra::{Error, ErrorKind};

use super::Form;
use super::forms::is_digit;

/// How much of a form the automaton knows. Hardly any other text begins as a secret does for so long.
const BEGINNING: usize = 16;
/// Up to so many bytes of beginnings there is a table of every state and byte, of at most some 32 MiB: three times as fast,
/// since hardly more of it than the first bytes of beginnings is ever visited. That is enough for a hundred values.
const TABLE: usize = 16 << 10;

/// A line that ends behind so many digits was ended by the tool that wrote them: `xxd -p` does so behind 60, `openssl` and
/// PEM behind 64, coreutils and busybox behind 76.
const WRAPPED: usize = 48;

/// What stands before a text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Before {
    byte: Option<u8>,
    /// How many digits of base64 it ends with, up to [`WRAPPED`].
    digits: usize,
    margin: Margin,
}

/// Longest margin that is known for one.
const MARGIN: usize = 24;

/// How far a line is read that may have a margin before what a process wrote: BuildKit's plain progress, which it has before
/// 0.13, writes `#7 0.123 `, and `0.123 ` in what it says of a step that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Margin {
    #[default]
    Begin,
    Mark,
    Number,
    Time,
    Seconds,
    Point,
    Fraction,
    End,
    /// This is none.
    No,
}

impl Margin {
    fn and(self, byte: &u8) -> Self {
        match (self, byte) {
            (_, b'\n') => Self::Begin,
            (Self::Begin, b'#') => Self::Mark,
            (Self::Mark | Self::Number, b'0'..=b'9') => Self::Number,
            (Self::Number, b' ') => Self::Time,
            (Self::Begin | Self::Time | Self::Seconds, b'0'..=b'9') => Self::Seconds,
            (Self::Seconds, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Fraction, b' ') => Self::End,
            _ => Self::No,
        }
    }
}

impl Before {
    /// What stands before the text that follows `text`.
    pub(crate) fn and(self, text: &[u8]) -> Self {
        let Some(last) = text.last() else { return self };
        let last_ones = text.iter().rev().take(WRAPPED);
        let digits = last_ones.take_while(|byte| is_digit(**byte)).count();
        let whole = digits == text.len();
        let end = &text[text.len().saturating_sub(MARGIN)..];
        let margin = match memrchr(b'\n', end) {
            Some(before) => end[before..].iter().fold(Margin::No, Margin::and),
            None if text.len() <= MARGIN => text.iter().fold(self.margin, Margin::and),
            None => Margin::No,
        };
        Self {
            byte: Some(*last),
            digits: (digits + if whole { self.digits } else { 0 }).min(WRAPPED),
            margin,
        }
    }

    /// Whether what follows is the begin of what somebody wrote as a line.
    fn begins_line(self) -> bool {
        matches!(self.margin, Margin::Begin | Margin::End)
    }
}

/// A list of forms. Overlapping matches are all found: no fragment of one value is left behind another.
///
/// A list that grows while a task announces values is not built anew each time: it is of parts, each far smaller than the
/// one before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patterns(Vec<Arc<Part>>);

/// A part that is not so many times smaller than what is added becomes one with it.
const SMALLER: usize = 8;

/// Forms that one automaton finds.
struct Part {
    automaton: Box<dyn Automaton + Send + Sync>,
    /// The forms with each beginning.
    forms: Vec<Vec<Arc<Form>>>,
    /// The longest beginning's length.
    longest: usize,
    leads: bool,
    wraps: bool,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({})", self.count())
    }
}

/// What a text holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// What is to be replaced, in order, without overlap or touch.
    pub(crate) spans: Vec<(usize, usize)>,
    /// Where the text begins that may be the beginning of a form; its length if there is none.
    pub(crate) partial: usize,
    /// The same with the base64 digit before it, which would belong to the match.
    pub(crate) hold: usize,
    /// Whether the digit that follows the text belongs to the last match.
    pub(crate) eat: bool,
}

impl Patterns {
    /// With these forms too.
    pub(crate) fn with(&self, mut forms: Vec<Arc<Form>>) -> orchestra::Result<Self> {
        let mut parts = self.0.clone();
        while let Some(last) = parts.pop_if(|last| last.count() <= SMALLER * forms.len()) {
            forms.extend(last.forms.iter().flatten().cloned());
        }
        parts.extend(Part::new(forms)?.map(Arc::new));
        Ok(Self(parts))
    }

    /// All of these at once: nothing is left of values that overlap.
    pub(crate) fn of_all(all: &[Arc<Self>]) -> Self {
        Self(all.iter().flat_map(|patterns| patterns.0.iter().cloned()).collect())
    }

    /// Looks through a text that follows what `before` tells of.
    pub(crate) fn find(&self, text: &[u8], before: Before) -> Found {
        let mut found = Found {
            partial: text.len(),
            hold: text.len(),
            ..Found::default()
        };
        for part in &self.0 {
            let its = part.find(text, before);
            found.partial = found.partial.min(its.partial);
            found.hold = found.hold.min(its.hold);
            found.eat |= its.eat;
            found.join(its.spans);
        }
        found
    }
}

impl Part {
    /// Of these forms, if there are any.
    fn new(forms: Vec<Arc<Form>>) -> orchestra::Result<Option<Self>> {
        let mut by_beginning: BTreeMap<Vec<u8>, Vec<Arc<Form>>> = BTreeMap::new();
        for form in forms {
            let beginning = &form.bytes[..form.bytes.len().min(BEGINNING)];
            match by_beginning.get_mut(beginning) {
                Some(same) => same.push(form),
                None => _ = by_beginning.insert(beginning.to_vec(), vec![form]),
            }
        }
        if by_beginning.is_empty() {
            return Ok(None);
        }
        let failed = |error| Error::new(ErrorKind::InvalidInput, format!("too much is to be redacted: {error}"));
        let texts = || by_beginning.keys().map(Vec::as_slice);
        let nfa = noncontiguous::Builder::new()
            .match_kind(MatchKind::Standard)
            .build(texts())
            .map_err(failed)?;
        let automaton: Box<dyn Automaton + Send + Sync> = if texts().map(<[u8]>::len).sum::<usize>() <= TABLE {
            let mut builder = dfa::Builder::new();
            Box::new(
                builder
                    .start_kind(StartKind::Both)
                    .build_from_noncontiguous(&nfa)
                    .map_err(failed)?,
            )
        } else {
            Box::new(
                contiguous::Builder::new()
                    .build_from_noncontiguous(&nfa)
                    .map_err(failed)?,
            )
        };
        let longest = texts().map(<[u8]>::len).max().unwrap_or_default();
        let forms: Vec<Vec<Arc<Form>>> = by_beginning.into_values().collect();
        Ok(Some(Self {
            automaton,
            leads: forms.iter().flatten().any(|form| form.how.lead),
            wraps: forms.iter().flatten().any(|form| form.how.wraps),
            forms,
            longest,
        }))
    }

    fn count(&self) -> usize {
        self.forms.iter().map(Vec::len).sum()
    }

    fn find(&self, text: &[u8], before: Before) -> Found {
        let mut found = Found {
            partial: text.len(),
            hold: text.len(),
            ..Found::default()
        };
        let automaton = self.automaton.as_ref();
        found.partial = self.partial(automaton, text);
        let input = Input::new(text);
        let mut state = OverlappingState::start();
        // The search can't fail: the automaton has the start and the kind that are asked for.
        while automaton.try_find_overlapping(&input, &mut state).is_ok() {
            let Some(begins) = state.get_match() else { break };
            for form in &self.forms[begins.pattern().as_usize()] {
                found.compare(form, text, begins.start(), before);
            }
        }
        if self.wraps {
            let whole = std::mem::take(&mut found.spans);
            let ends = memchr_iter(b'\n', text).chain(text.last().filter(|last| **last == b'\r').map(|_| text.len()));
            for end in ends {
                self.find_across(automaton, text, end, before, &mut found);
            }
            let across = std::mem::replace(&mut found.spans, whole);
            found.join(across);
        }
        let before_partial = found
            .partial
            .checked_sub(1)
            .filter(|at| self.leads && is_digit(text[*at]));
        found.hold = before_partial.unwrap_or(found.partial);
        found
    }

    /// Looks for forms whose beginning is cut by the line break that ends at `end`, if a tool has wrapped its digits there.
    /// That one digit beyond a break, which holds a few bits of the value's first or last byte, stays.
    fn find_across(&self, automaton: &dyn Automaton, text: &[u8], end: usize, before: Before, found: &mut Found) {
        let line = text[..end].strip_suffix(b"\r").unwrap_or(&text[..end]);
        let Ok(first) = automaton.start_state(Anchored::Yes) else {
            return;
        };
        if before.and(line).digits < WRAPPED {
            return;
        }
        let rest = text.get(end + 1..).unwrap_or_default();
        for start in line.len().saturating_sub(self.longest - 1)..line.len() {
            let mut state = first;
            let digits = line[start..].iter().chain(rest);
            let alive = digits.into_iter().all(|byte| {
                state = automaton.next_state(Anchored::Yes, state, *byte);
                if automaton.is_match(state) {
                    for number in 0..automaton.match_len(state) {
                        let begun = &self.forms[automaton.match_pattern(state, number).as_usize()];
                        begun
                            .iter()
                            .filter(|form| form.how.wraps)
                            .for_each(|form| found.compare(form, text, start, before));
                    }
                }
                !automaton.is_dead(state)
            });
            let goes_on = |form: &Arc<Form>| form.how.wraps && form.end(text, start, before).is_err();
            if alive && self.forms.iter().flatten().any(goes_on) {
                found.partial = found.partial.min(start);
            }
        }
    }

    /// Where the longest end of the text begins that more text could make the beginning of a form of.
    fn partial(&self, automaton: &dyn Automaton, text: &[u8]) -> usize {
        let Ok(first) = automaton.start_state(Anchored::Yes) else {
            return text.len();
        };
        let next = |state: StateID, byte: u8| automaton.next_state(Anchored::Yes, state, byte);
        let goes_on = |state: StateID| (0..=u8::MAX).any(|byte| !automaton.is_dead(next(state, byte)));
        let begins = |at: &usize| {
            let mut state = first;
            for byte in &text[*at..] {
                state = next(state, *byte);
                if automaton.is_dead(state) {
                    return false;
                }
            }
            !automaton.is_match(state) || goes_on(state)
        };
        let earliest = text.len().saturating_sub(self.longest.saturating_sub(1));
        (earliest..text.len()).find(begins).unwrap_or(text.len())
    }
}

/// The text ends before it could tell.
struct TooShort;

impl Form {
    /// Where it ends in the text, if it is there at `start`.
    fn end(&self, text: &[u8], start: usize, before: Before) -> Result<Option<usize>, TooShort> {
        let mut at = start;
        let mut form = self.bytes.as_slice();
        loop {
            let rest = &text[at..];
            if rest.starts_with(form) {
                return Ok(Some(at + form.len()));
            }
            if form.starts_with(rest) {
                return Err(TooShort);
            }
            if !self.how.wraps {
                return Ok(None);
            }
            let same = form.iter().zip(rest).take_while(|(a, b)| a == b).count();
            (at, form) = (at + same, &form[same..]);
            let end = match &text[at..] {
                [b'\n', ..] => 1,
                [b'\r', b'\n', ..] => 2,
                [b'\r'] => 0,
                _ => return Ok(None),
            };
            if same == 0 || before.and(&text[..at]).digits < WRAPPED {
                return Ok(None);
            }
            if end == 0 {
                return Err(TooShort);
            }
            at += end;
        }
    }
}

impl Found {
    /// Adds spans that are in order.
    fn join(&mut self, more: Vec<(usize, usize)>) {
        if self.spans.is_empty() {
            self.spans = more;
        } else if !more.is_empty() {
            let mut all = [std::mem::take(&mut self.spans), more].concat();
            all.sort_unstable();
            all.into_iter()
                .for_each(|(start, end)| add(&mut self.spans, start, end));
        }
    }

    /// Notes a form if the text has it at `start`, or ends before it could tell.
    fn compare(&mut self, form: &Form, text: &[u8], mut start: usize, before: Before) {
        let mut end = match form.end(text, start, before) {
            Ok(Some(end)) => end,
            Ok(None) => return,
            Err(TooShort) => {
                self.partial = self.partial.min(start);
                return;
            }
        };
        let previous = start.checked_sub(1).map_or(before.byte, |at| Some(text[at]));
        if form.how.line {
            if !before.and(&text[..start]).begins_line() {
                return;
            }
            end -= 1;
        }
        if form.how.lead && start > 0 && previous.is_some_and(is_digit) {
            start -= 1;
        }
        if form.how.tail {
            match text.get(end) {
                Some(next) if is_digit(*next) => end += 1,
                Some(_) => {}
                None => self.eat = true,
            }
        }
        add(&mut self.spans, start, end);
    }
}

/// Adds a span to spans that are in order, joining what overlaps or touches. It belongs at the end, or not far from it.
fn add(spans: &mut Vec<(usize, usize)>, mut start: usize, mut end: usize) {
    let mut later = Vec::new();
    while let Some(last) = spans.last().copied() {
        if last.1 < start {
            break;
        }
        spans.pop();
        if last.0 > end {
            later.push(last);
        } else {
            start = start.min(last.0);
            end = end.max(last.1);
        }
    }
    spans.push((start, end));
    spans.extend(later.into_iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::forms;

    fn patterns(values: &[&str]) -> Patterns {
        let forms = values.iter().flat_map(|value| forms(value.as_bytes()));
        Patterns::default().with(forms.map(Arc::new).collect()).unwrap()
    }

    #[test]
    fn a_list_that_grows_one_by_one_finds_what_one_that_is_whole_does_and_has_few_parts() {
        let values: Vec<String> = (0..300)
            .map(|number| format!("value-{number}-{}", number * number))
            .collect();
        let all: Vec<&str> = values.iter().map(String::as_str).collect();
        let whole = patterns(&all);
        let mut grown = Patterns::default();
        for value in &values {
            let new = forms(value.as_bytes()).into_iter().map(Arc::new).collect();
            grown = grown.with(new).unwrap();
            assert!(grown.0.len() <= 5, "{grown:?}");
        }
        let count = |of: &Patterns| of.0.iter().map(|part| part.count()).sum::<usize>();
        assert_eq!(count(&grown), count(&whole));
        let text = format!("{} value-17-289value-18-324 value-299-8940", values.join("\nx"));
        for at in 0..20 {
            let (text, before) = (&text.as_bytes()[at..], Before::default());
            assert_eq!(grown.find(text, before), whole.find(text, before), "{at}");
        }
    }

    #[test]
    fn overlapping_values_are_one_span() {
        let found = patterns(&["abcdef", "defghi", "ghij"]).find(b"x abcdefghij y", Before::default());
        assert_eq!(found.spans, [(2, 12)]);
    }

    #[test]
    fn values_that_begin_alike_are_told_apart_and_a_long_one_is_held_to_its_end() {
        let begin = "-----BEGIN KEY-----";
        let long = format!("{begin}{}", "x".repeat(60_000));
        let patterns = patterns(&[&format!("{begin}aaaa"), &format!("{begin}bbbb"), &long]);
        let text = format!("{begin}aaaa {begin}cccc {begin}bbbb");
        assert_eq!(
            patterns.find(text.as_bytes(), Before::default()).spans,
            [(0, 23), (48, 71)]
        );
        let cut = format!("a{}", &long[..59_000]);
        assert_eq!(patterns.find(cut.as_bytes(), Before::default()).partial, 1);
        assert_eq!(
            patterns.find(format!("{cut}y").as_bytes(), Before::default()).partial,
            cut.len() + 1
        );
        assert_eq!(
            patterns.find(long.as_bytes(), Before::default()).spans,
            [(0, long.len())]
        );
    }

    #[test]
    fn only_what_can_become_a_value_is_held() {
        let patterns = patterns(&["hunter2hunter3"]);
        let held = |text: &str| text.len() - patterns.find(text.as_bytes(), Before::default()).partial;
        assert_eq!(held("Password: "), 0);
        assert_eq!(held("a hunt"), 4);
        assert_eq!(held("hunter2hunter2hunt"), 11);
        assert_eq!(held("hunter2hunter3"), 0, "what is whole waits for nothing");
    }

    #[test]
    fn a_line_of_a_value_counts_at_the_begin_of_a_line_only() {
        let patterns = patterns(&["first line\nsecond one"]);
        let spans = |text: &str| patterns.find(text.as_bytes(), Before::default()).spans;
        assert_eq!(spans("first line\nx"), [(0, 10)]);
        assert_eq!(spans("a\nsecond one\r\n"), [(2, 12)]);
        assert_eq!(spans("the first line\n"), []);
        assert_eq!(spans("first line, really\n"), []);
        // As BuildKit tells of a step's output.
        assert_eq!(spans("#12 103.456 second one\n"), [(12, 22)]);
        assert_eq!(spans(" > RUN a:\n0.25 first line\n"), [(15, 25)]);
        for other in [
            "#12 second one\n",
            "#12 1.5  second one\n",
            "12 second one\n",
            "1.5 the second one\n",
        ] {
            assert_eq!(spans(other), []);
        }
        let cut = Before::default().and(b"x\n#7 1.").and(b"5 ");
        assert_eq!(patterns.find(b"second one\n", cut).spans, [(0, 10)]);
        let cut = Before::default().and(b"#7 1.5 a long line of another").and(b" ");
        assert_eq!(patterns.find(b"second one\n", cut).spans, []);
    }
}
