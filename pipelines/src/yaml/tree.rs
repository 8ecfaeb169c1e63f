//! YAML text as a tree in which every node knows its place.
//!
//! A tree, and not types of ours at once, so that all that is wrong with a file can be told together, and so that a plain
//! scalar is the text that was written: `1.20` is a version to its writer, and a number only to YAML.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, NonFiniteFloatPolicy, Options, RenderOptions, SnippetMode, Spanned};

/// A place in the file, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Where the text stands.
    pub(super) span: Range<usize>,
    /// Where the alias or merge key stands that brought it elsewhere.
    pub(super) used: Option<Range<usize>>,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}

pub(crate) type Node = At<Value>;

/// What YAML has.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As it was written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// With keys that stand there twice.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// The texts and numbers in it, keys left out.
    pub(crate) fn scalars(&self) -> Vec<&str> {
        match self {
            Self::Number(text) | Self::Text(text) => vec![text],
            Self::List(items) => items.iter().flat_map(|item| item.value.scalars()).collect(),
            Self::Map(entries) => entries.iter().flat_map(|(_, value)| value.value.scalars()).collect(),
            Self::Null | Self::Bool(_) => Vec::new(),
        }
    }

    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Lists and maps within each other; a job's plan starts at the fourth.
const MAX_DEPTH: usize = 64;
const STACK: usize = 16 << 20;

/// Why a text is no YAML.
pub(super) struct SyntaxError {
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
    /// Line and column in characters, from 1.
    pub(super) at: Option<(usize, usize)>,
}

/// Parses one document.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    // Some 40 KiB of stack a level in a build without optimisation: too much for a tokio worker's.
    let parsed = std::thread::scope(|scope| {
        let parser = std::thread::Builder::new().name("yaml".to_owned()).stack_size(STACK);
        let parser = parser
            .spawn_scoped(scope, || parse_here(text))
            .map_err(|error| format!("no thread to parse it on: {error}"))?;
        parser.join().map_err(|_| "the YAML parser failed on it".to_owned())
    });
    parsed.unwrap_or_else(|message| {
        Err(SyntaxError {
            message,
            help: None,
            at: None,
        })
    })
}

fn parse_here(text: &str) -> Result<Node, SyntaxError> {
    match serde_saphyr::from_str_with_options::<Raw>(text, options()) {
        Ok(raw) => Ok(raw.place(text)),
        Err(error) => Err(refusal(error.without_snippet())),
    }
}

fn refusal(error: &serde_saphyr::Error) -> SyntaxError {
    use serde_saphyr::Error;
    let at = error
        .location()
        .and_then(|at| Some((usize::try_from(at.line()).ok()?, usize::try_from(at.column()).ok()?)));
    let mut rendering = RenderOptions::new(&serde_saphyr::DefaultMessageFormatter);
    rendering.snippets = SnippetMode::Off;
    let rendered = error.render_with_options(rendering);
    // The place is shown by the report; in the words it would stand twice.
    let words = rendered.split(" at line ").next().unwrap_or(&rendered);
    let (message, help) = match error {
        Error::Budget { .. } if words.contains("Documents") => (
            "the file holds more than one YAML document".to_owned(),
            Some("a pipeline is one document: remove what follows `---`"),
        ),
        // Inside of an alias, the error is wrapped in another one.
        _ if ["budget breached", "limit exceeded", "nesting"]
            .iter()
            .any(|sign| words.contains(sign)) =>
        {
            (
                format!("the file is too large or too deep once its aliases are expanded ({words})"),
                Some("split it, or use fewer aliases of large parts"),
            )
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => ("an anchor holds an alias of itself".to_owned(), None),
        Error::UnsupportedTag { .. } => (
            words.to_owned(),
            Some("leave the tag out; to write text that starts with `!`, quote it"),
        ),
        _ if words.contains("tab") => (
            words.to_owned(),
            Some("indent with spaces: YAML does not allow tabs there"),
        ),
        _ if words.contains("mapping values are not allowed") => (
            words.to_owned(),
            Some("quote text that contains `: `, and check that the keys of one map are indented alike"),
        ),
        _ if words.contains("unexpected character") => {
            (words.to_owned(), Some("quote text that starts with this character"))
        }
        _ => (words.to_owned(), None),
    };
    SyntaxError { message, help, at }
}

/// Aliases multiply what a file says: the limits are far above what a person writes and far below what hurts.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 1,
            max_nodes: 200_000,
            max_depth: MAX_DEPTH,
            // One anchor that every step merges is good style, not an attack.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000, max_replay_stack_depth: 32 },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    }
}

/// What serde gives, before the places are looked up in the text.
struct Raw(Spanned<RawValue>);

enum RawValue {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(Raw, Raw)>),
}

impl Raw {
    fn place(self, text: &str) -> Node {
        let span = range(&self.0.defined, text);
        let used = range(&self.0.referenced, text);
        let value = match self.0.value {
            RawValue::Null => Value::Null,
            RawValue::Bool(value) => Value::Bool(value),
            RawValue::Number(read) => Value::Number(written(&text[span.clone()]).map_or(read, str::to_owned)),
            RawValue::Text(value) => Value::Text(value),
            RawValue::List(items) => Value::List(items.into_iter().map(|item| item.place(text)).collect()),
            RawValue::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.place(text), value.place(text)))
                    .collect(),
            ),
        };
        let used = Some(used).filter(|used| *used != span);
        At {
            value,
            spot: Spot { span, used },
        }
    }
}

/// A plain scalar's text; a tagged and quoted one (`!!int "3"`) is taken as it was read.
fn written(text: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    Some(text.trim()).filter(|text| !text.is_empty() && text.chars().all(plain))
}

/// The bytes of a node's text; the beginning only of a list or map.
fn range(location: &Location, text: &str) -> Range<usize> {
    let span = location.span();
    let number = |value: Option<u64>| value.and_then(|value| usize::try_from(value).ok());
    let start = number(span.byte_offset()).unwrap_or(0).min(text.len());
    let end = (start + number(span.byte_len()).unwrap_or(0)).min(text.len());
    // Never split a character, whatever the parser says.
    if text.is_char_boundary(start) && text.is_char_boundary(end) {
        start..end
    } else {
        0..0
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<RawValue, E> {
        Ok(RawValue::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(RawValue::Map(map))
    }
}

impl fmt::Debug for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.at, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line a scalar: its text as read, the text at its span, and that at its use.
    fn scalars(text: &str) -> Vec<String> {
        fn walk(node: &Node, text: &str, out: &mut Vec<String>) {
            let used = node
                .spot
                .used
                .clone()
                .map(|used| format!(" used as {:?}", &text[used]))
                .unwrap_or_default();
            let at = &text[node.spot.span.clone()];
            match &node.value {
                Value::Null => out.push(format!("null at {at:?}{used}")),
                Value::Bool(value) => out.push(format!("bool {value} at {at:?}{used}")),
                Value::Number(value) => out.push(format!("number {value} at {at:?}{used}")),
                Value::Text(value) => out.push(format!("{value:?} at {at:?}{used}")),
                Value::List(items) => items.iter().for_each(|item| walk(item, text, out)),
                Value::Map(entries) => entries.iter().for_each(|(key, value)| {
                    walk(key, text, out);
                    walk(value, text, out);
                }),
            }
        }
        let node = parse(text)
            .map_err(|error| format!("{:?} {}", error.at, error.message))
            .unwrap();
        let mut out = Vec::new();
        walk(&node, text, &mut out);
        out
    }

    #[test]
    fn a_plain_number_stays_as_it_was_written() {
        let text = "a: 1.20\nb: 0x1F\nc: 0755\nd: 1e999\ne: \"1.0\"\nf: !!int \"3\"";
        let read: Vec<String> = scalars(text).into_iter().skip(1).step_by(2).collect();
        let expected = [
            "number 1.20 at \"1.20\"",
            "number 0x1F at \"0x1F\"",
            "\"0755\" at \"0755\"",
            "number 1e999 at \"1e999\"",
            "\"1.0\" at \"\\\"1.0\\\"\"",
            "number 3 at \"\\\"3\\\"\"",
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn what_comes_by_an_alias_or_a_merge_knows_both_of_its_places() {
        let read = scalars("base: &b {tag: 1.10, user: ä}\nstep:\n  <<: *b\n  user: root\ncopy: *b");
        let expected = [
            "\"tag\" at \"tag\" used as \"*b\"",
            "number 1.10 at \"1.10\" used as \"*b\"",
        ];
        assert!(
            expected.iter().all(|line| read.iter().any(|read| read == line)),
            "{read:#?}"
        );
        assert!(read.contains(&"\"ä\" at \"ä\" used as \"*b\"".to_owned()), "{read:#?}");
        assert_eq!(
            read.iter().filter(|line| line.starts_with("\"root\"")).count(),
            1,
            "the explicit key wins: {read:#?}"
        );
    }

    #[test]
    fn a_text_that_is_no_yaml_is_refused_at_its_place() {
        for (text, at, why) in [
            ("a:\n\tb: 1", (2, 2), "tabs"),
            ("a: [1", (1, 4), "unclosed bracket"),
            ("a: b: c", (1, 5), "mapping values"),
            ("a: *x", (1, 4), "unknown anchor"),
            ("a: !foo b", (1, 9), "unsupported tag"),
            ("a: 1\n---\nb: 2", (2, 1), "more than one YAML document"),
            ("a: &a [*a]", (1, 8), "alias of itself"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.at, Some(at), "{text}: {}", error.message);
            assert!(error.message.contains(why), "{text}: {}", error.message);
            assert!(!error.message.contains("line "), "{}", error.message);
        }
    }

    #[test]
    fn a_few_lines_that_expand_to_millions_are_refused_at_once() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let alias = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
        }
        let flow = format!("{}{}", "[".repeat(300), "]".repeat(300));
        let block = (0..100)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect::<String>();
        for text in [bomb, flow, block] {
            let error = parse(&text).unwrap_err();
            assert!(error.message.contains("too large or too deep"), "{error:?}");
        }
    }

    #[test]
    fn what_is_as_deep_as_allowed_is_read_on_any_thread() {
        let depth = MAX_DEPTH - 1;
        let block = (0..depth)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect::<String>();
        let read = || parse(&block).map(|_| ()).unwrap();
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, read)
                .unwrap()
                .join()
                .unwrap();
        });
    }
}
