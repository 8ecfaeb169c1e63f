//! `((name))` in strings: a plain variable, or a secret.
//!
//! A text that is one variable as a whole becomes its value, whatever kind that is; within a longer text, scalars are
//! put in as text. What a value holds is not looked through again.

use std::collections::{BTreeMap, BTreeSet};

use orchestra_secrets::{Reference, SecretKey, SecretValue};

use super::reader::Reader;
use super::tree::{At, Node, Value};
use crate::values::{Fetched, Variables};

/// The secrets that a tree refers to: in parentheses, but for plain variables, and as `secret:KEY`.
pub(super) fn references(node: &Node, variables: &Variables, found: &mut BTreeSet<Reference>) {
    match &node.value {
        Value::Text(text) => {
            for (_, name) in find(text) {
                if name.starts_with(LOCAL) {
                    continue;
                }
                if variables.get(name).is_none() {
                    found.extend(name.parse::<Reference>());
                }
            }
            found.extend(whole(text));
            // A variable's value may be a reference as a whole.
            if let Some((_, name)) = only(text)
                && let Some(Value::Text(text)) = variables.get(name)
            {
                found.extend(whole(text));
            }
        }
        Value::List(items) => items.iter().for_each(|item| references(item, variables, found)),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            references(key, variables, found);
            references(value, variables, found);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// How names of variables of an `across` or a `load_var` begin.
const LOCAL: &str = ".:";

/// The variables of an `across` or a `load_var` in a text.
pub(super) fn locals(text: &str) -> impl Iterator<Item = &str> {
    find(text).filter_map(|(_, name)| name.strip_prefix(LOCAL))
}

/// Whether a text has one that is set when the pipeline runs, if at all.
pub(crate) fn has_locals(text: &str) -> bool {
    text.contains("((.:")
}

/// Whether a text is one such variable as a whole.
pub(super) fn is_local(text: &str) -> bool {
    only(text).is_some_and(|(_, name)| name.starts_with(LOCAL))
}

/// What stands between the parentheses of a loaded text that is no variable: it is not looked through again, though the step
/// that it stands in is. No YAML has this character.
const QUOTE: &str = "(\0(";

/// A value of which no text is a variable.
pub(crate) fn quoted(value: Value) -> Value {
    texts(value, &|text| text.replace("((", QUOTE))
}

/// The node as it was before values in it were [quoted].
pub(super) fn unquoted(node: Node) -> Node {
    At {
        value: texts(node.value, &|text| text.replace(QUOTE, "((")),
        spot: node.spot,
    }
}

fn texts(value: Value, change: &impl Fn(String) -> String) -> Value {
    let within = |node: Node| At {
        value: texts(node.value, change),
        spot: node.spot,
    };
    match value {
        Value::Text(text) => Value::Text(change(text)),
        Value::List(items) => Value::List(items.into_iter().map(within).collect()),
        Value::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| (within(key), within(value)))
                .collect(),
        ),
        other => other,
    }
}

fn whole(text: &str) -> Option<Reference> {
    SecretKey::of_reference(text).ok().flatten().map(Reference::of)
}

/// Puts values in their places.
pub(super) struct Interpolation<'r, 't> {
    pub(super) reader: &'r Reader<'t>,
    pub(super) variables: &'r Variables,
    pub(super) fetched: &'r Fetched,
    /// The secrets that stand in the tree now.
    pub(super) used: BTreeMap<Reference, SecretValue>,
    /// Whether it is variables of an `across` or a `load_var` that are put in, and no others.
    pub(super) local: bool,
}

impl<'r, 't> Interpolation<'r, 't> {
    /// Of variables of an `across` or a `load_var`.
    pub(super) fn of_locals(reader: &'r Reader<'t>, variables: &'r Variables) -> Self {
        Self {
            reader,
            variables,
            fetched: reader.fetched,
            used: BTreeMap::new(),
            local: true,
        }
    }

    pub(super) fn node(&mut self, node: Node) -> Node {
        let At { value, spot } = node;
        let place = At {
            value: (),
            spot: spot.clone(),
        };
        let value = match value {
            Value::Text(text) => self.text(text, &place),
            Value::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Value::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (self.node(key), self.node(value)))
                    .collect(),
            ),
            other => other,
        };
        At { value, spot }
    }

    fn text(&mut self, text: String, place: &At<()>) -> Value {
        if let Some((_, name)) = only(&text) {
            return self.value(name, place).unwrap_or(Value::Text(text));
        }
        let (mut out, mut from) = (String::new(), 0);
        for (at, name) in find(&text) {
            let value = match self.value(name, place) {
                Some(Value::Text(value) | Value::Number(value)) => value,
                Some(Value::Bool(value)) => value.to_string(),
                None => continue,
                Some(other) => {
                    let message = format!("`(({name}))` is {}, which can't stand within a text", other.kind());
                    self.reader
                        .report(&place.spot, "", message, "let it be the whole value".to_owned());
                    continue;
                }
            };
            out.push_str(&text[from..at]);
            out.push_str(&value);
            from = at + name.len() + 4;
        }
        out.push_str(&text[from..]);
        Value::Text(out)
    }

    /// Whether a value of an `across` is one that a secret was put into.
    fn holds_secret(&self, value: &Value) -> bool {
        let Value::Text(text) = value else { return false };
        let secrets = self
            .fetched
            .values()
            .filter_map(|(_, value)| std::str::from_utf8(value.expose()).ok());
        secrets
            .filter(|secret| !secret.is_empty())
            .any(|secret| text.contains(secret))
    }

    /// The value of a variable or secret; `None` and a problem if there is none.
    fn value(&mut self, name: &str, place: &At<()>) -> Option<Value> {
        match (self.local, name.strip_prefix(LOCAL)) {
            (true, Some(name)) => {
                let value = self.variables.get(name).cloned();
                if value.as_ref().is_some_and(|value| self.holds_secret(value)) {
                    self.reader.put_secret(&place.spot);
                }
                return value;
            }
            (true, None) | (false, Some(_)) => return None,
            (false, None) => {}
        }
        if let Some(value) = self.variables.get(name) {
            return Some(value.clone());
        }
        let report = |message: &str, hint: Option<&str>| {
            let message = format!("`(({name}))` has no value: {message}");
            self.reader.report(&place.spot, "", message, hint.map(str::to_owned));
        };
        let reference = match name.parse::<Reference>() {
            Ok(reference) => reference,
            Err(error) => {
                report(error.message(), error.hint());
                return None;
            }
        };
        match self.fetched.get(&reference) {
            Err(error) => {
                let hint = error.hint().map_or_else(String::new, |hint| format!("{hint}; "));
                let hint = format!("{hint}a plain variable is given with `--var {}=…`", reference.key);
                report(error.message(), Some(&hint));
                None
            }
            Ok(value) => match value.text(&format!("the secret {reference}")) {
                Ok(text) => {
                    let text = Value::Text(text.to_owned());
                    self.used.insert(reference, value.clone());
                    self.reader.put_secret(&place.spot);
                    Some(text)
                }
                Err(error) => {
                    report(error.message(), error.hint());
                    None
                }
            },
        }
    }
}

/// The variable that a text is as a whole.
fn only(text: &str) -> Option<(usize, &str)> {
    let first = find(text).next()?;
    (first.0 == 0 && first.1.len() + 4 == text.len()).then_some(first)
}

/// The variables in a text and where they begin, by Concourse's grammar. A shell's arithmetic, `$((i))`, is none.
fn find(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut end = 0;
    text.match_indices("((").filter_map(move |(at, _)| {
        let name = text[at + 2..].split_once("))")?.0;
        let valid = |c: char| c.is_alphanumeric() || "-_./:@\"".contains(c);
        let is_one = at >= end && !text[..at].ends_with('$') && !name.is_empty() && name.chars().all(valid);
        is_one.then(|| {
            end = at + name.len() + 4;
            (at, name)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_told_from_a_shells_arithmetic() {
        for (text, expected) in [
            ("((token))", vec!["token"]),
            ("x-((vault:a/b.c))-y", vec!["vault:a/b.c"]),
            ("((a))((b))", vec!["a", "b"]),
            ("$((i))", vec![]),
            ("$((1 + 2)) ((real))", vec!["real"]),
            ("f(g(x))", vec![]),
            ("i=0; ((i++)); ((++i))", vec![]),
            ("(( a && b ))", vec![]),
            ("((", vec![]),
        ] {
            let found: Vec<&str> = find(text).map(|(_, name)| name).collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
