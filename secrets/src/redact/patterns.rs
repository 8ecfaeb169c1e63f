//! All forms of all values of a list, found in one pass.

use std::fmt;

use aho_corasick::automaton::{Automaton, OverlappingState, StateID};
use aho_corasick::nfa::{contiguous, noncontiguous};
use aho_corasick::{Anchored, Input, MatchKind, StartKind, dfa};
use orchestra::{Error, ErrorKind, Result};

use super::Form;
use super::forms::{How, is_digit};

/// Up to so many bytes of forms, a table of every state and byte is small enough to stay in the processor's cache.
const TABLE: usize = 8 << 10;

/// An automaton over forms. Overlapping matches are all found: no fragment of one value is left behind another.
pub(crate) struct Patterns {
    automaton: Option<Box<dyn Automaton + Send + Sync>>,
    hows: Vec<How>,
    longest: usize,
    leads: bool,
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patterns({})", self.hows.len())
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
    /// Of nothing.
    pub(crate) fn none() -> Self {
        Self {
            automaton: None,
            hows: Vec::new(),
            longest: 0,
            leads: false,
        }
    }

    /// Of these forms.
    pub(crate) fn new<'f>(forms: impl Iterator<Item = &'f Form>) -> Result<Self> {
        let forms: Vec<&Form> = forms.collect();
        if forms.is_empty() {
            return Ok(Self::none());
        }
        let failed = |error| Error::new(ErrorKind::InvalidInput, format!("too much is to be redacted: {error}"));
        let texts = || forms.iter().map(|form| form.bytes.as_slice());
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
        Ok(Self {
            automaton: Some(automaton),
            hows: forms.iter().map(|form| form.how).collect(),
            longest: texts().map(<[u8]>::len).max().unwrap_or_default(),
            leads: forms.iter().any(|form| form.how.lead),
        })
    }

    /// Looks through a text that follows the byte `before`.
    pub(crate) fn find(&self, text: &[u8], before: Option<u8>) -> Found {
        let mut found = Found {
            partial: text.len(),
            hold: text.len(),
            ..Found::default()
        };
        let Some(automaton) = &self.automaton else { return found };
        let input = Input::new(text);
        let mut state = OverlappingState::start();
        // The search can't fail: the automaton has the start and the kind that are asked for.
        while automaton.try_find_overlapping(&input, &mut state).is_ok() {
            let Some(matched) = state.get_match() else { break };
            let how = self.hows[matched.pattern().as_usize()];
            let (mut start, mut end) = (matched.start(), matched.end());
            let previous = start.checked_sub(1).map_or(before, |at| Some(text[at]));
            if how.line {
                if previous.is_some_and(|byte| byte != b'\n') {
                    continue;
                }
                end -= 1;
            }
            if how.lead && start > 0 && previous.is_some_and(is_digit) {
                start -= 1;
            }
            if how.tail {
                match text.get(end) {
                    Some(next) if is_digit(*next) => end += 1,
                    Some(_) => {}
                    None => found.eat = true,
                }
            }
            add(&mut found.spans, start, end);
        }
        found.partial = self.partial(automaton.as_ref(), text);
        let before_partial = found
            .partial
            .checked_sub(1)
            .filter(|at| self.leads && is_digit(text[*at]));
        found.hold = before_partial.unwrap_or(found.partial);
        found
    }

    /// Where the longest end of the text begins that more text could make a form of.
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

/// Adds a span to spans that are in order, joining what overlaps or touches. Spans come with growing ends, but for what a
/// digit more or a line end less changes.
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
        let forms: Vec<Form> = values.iter().flat_map(|value| forms(value.as_bytes())).collect();
        Patterns::new(forms.iter()).unwrap()
    }

    #[test]
    fn overlapping_values_are_one_span() {
        let found = patterns(&["abcdef", "defghi", "ghij"]).find(b"x abcdefghij y", None);
        assert_eq!(found.spans, [(2, 12)]);
    }

    #[test]
    fn only_what_can_become_a_value_is_held() {
        let patterns = patterns(&["hunter2hunter3"]);
        let held = |text: &str| text.len() - patterns.find(text.as_bytes(), None).partial;
        assert_eq!(held("Password: "), 0);
        assert_eq!(held("a hunt"), 4);
        assert_eq!(held("hunter2hunter2hunt"), 11);
        assert_eq!(held("hunter2hunter3"), 0, "what is whole waits for nothing");
    }

    #[test]
    fn a_line_of_a_value_counts_at_the_begin_of_a_line_only() {
        let patterns = patterns(&["first line\nsecond one"]);
        let spans = |text: &str| patterns.find(text.as_bytes(), None).spans;
        assert_eq!(spans("first line\nx"), [(0, 10)]);
        assert_eq!(spans("a\nsecond one\r\n"), [(2, 12)]);
        assert_eq!(spans("the first line\n"), []);
        assert_eq!(spans("first line, really\n"), []);
    }
}
