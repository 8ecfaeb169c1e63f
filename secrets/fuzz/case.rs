//! One case: any bytes, taken for secrets, a text, and how it is cut.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use orchestra_secrets::{JobSecrets, MARKER, SHORTEST, SecretValue, Secrets};

/// Longer than anything is held.
const PAUSE: Duration = Duration::from_secs(2);

/// Takes bytes off the front; zeros where there are none left.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        usize::from(*first)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = (self.byte() % (most + 1)).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}

/// Panics if redaction does not keep its promises on this input.
pub(crate) fn check(input: &[u8]) {
    let mut input = Input(input);
    let values: Vec<Vec<u8>> = (0..1 + input.byte() % 3).map(|_| input.bytes(24)).collect();
    let cuts: Vec<usize> = (0..1 + input.byte() % 7).map(|_| 1 + input.byte() % 9).collect();
    let mut text = Vec::new();
    while !input.0.is_empty() {
        let how = input.byte();
        let value = &values[how / 8 % values.len()];
        match how % 8 {
            0 => text.extend_from_slice(value),
            1 => text.extend(STANDARD.encode(value).into_bytes()),
            2 => text.extend(hex(value)),
            3 => text.extend_from_slice(&value[..value.len() / 2]),
            4 => {
                let around = input.bytes(5);
                text.extend(
                    STANDARD
                        .encode([&around, value.as_slice(), &around].concat())
                        .into_bytes(),
                );
            }
            _ => text.extend(input.bytes(9)),
        }
    }
    // Announced values are redacted from then on only, and what looks like the marker can't be told from it.
    if holds(&text, b"::") || holds(&text, b"REDACTED") {
        return;
    }
    let job = Secrets::new([]).job("fuzz");
    for value in &values {
        job.mask(&SecretValue::new(value.clone())).expect("it is short");
    }
    let whole = redact(&job, &text, &[text.len().max(1)], false);
    let cut = redact(&job, &text, &cuts, false);
    assert_eq!(whole, cut, "the cuts matter");
    for out in [cut, redact(&job, &text, &cuts, true)] {
        let mut rest = text.as_slice();
        for left in split(&out, MARKER.as_bytes()) {
            let at = find(rest, left).unwrap_or_else(|| panic!("{left:?} is not what stood there: {out:?}"));
            rest = &rest[at + left.len()..];
            let looked_for = values.iter().map(|value| value.trim_ascii());
            for value in looked_for.filter(|value| value.len() >= SHORTEST) {
                let forms = [value.to_vec(), STANDARD.encode(value).into_bytes(), hex(value)];
                for form in forms {
                    assert!(!holds(left, &form), "{form:?} is left in {out:?}");
                }
            }
        }
    }
}

/// The text through a redactor, in pieces of these sizes in turn.
fn redact(job: &JobSecrets, mut text: &[u8], sizes: &[usize], pauses: bool) -> Vec<u8> {
    let mut redactor = job.stream();
    let mut out = Vec::new();
    for size in sizes.iter().cycle() {
        let (piece, rest) = text.split_at((*size).min(text.len()));
        if piece.is_empty() {
            break;
        }
        out.extend(
            redactor
                .push(Bytes::copy_from_slice(piece))
                .expect("nothing is announced"),
        );
        if pauses {
            out.extend(redactor.flush(PAUSE).expect("nothing is announced"));
            assert!(!redactor.is_holding(), "something is held");
        }
        text = rest;
    }
    out.extend(redactor.finish().expect("nothing is announced"));
    out
}

fn hex(value: &[u8]) -> Vec<u8> {
    value
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect()
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    (0..=text.len().checked_sub(part.len())?).find(|at| text[*at..].starts_with(part))
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    find(text, part).is_some()
}

/// The parts between marks.
fn split<'t>(mut text: &'t [u8], mark: &[u8]) -> Vec<&'t [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = find(text, mark) {
        parts.push(&text[..at]);
        text = &text[at + mark.len()..];
    }
    parts.push(text);
    parts
}
