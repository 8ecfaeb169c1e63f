//! Maps: which keys they may have, and what stands under them.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::reader::{Reader, closest, list};
use super::tree::{At, Node, Spot, Value};

/// Which keys a map may have.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) keys: &'static [&'static str],
    /// Keys that Concourse has and we do not have yet.
    pub(super) later: &'static [&'static str],
    /// Keys that stand elsewhere in a pipeline, and where.
    pub(super) misplaced: &'static [&'static str],
    pub(super) belongs: &'static str,
    /// Keys of Concourse's that change nothing in a run of one's own.
    pub(super) without_meaning: &'static [&'static str],
    /// Whether keys that start with `x-` are left alone.
    pub(super) extensions: bool,
}

impl Known {
    pub(super) const fn of(keys: &'static [&'static str]) -> Self {
        Self {
            keys,
            later: &[],
            misplaced: &[],
            belongs: "",
            without_meaning: &[],
            extensions: false,
        }
    }
}

impl<'t> Reader<'t> {
    /// The map in a node, or a problem; nothing counts as an empty one.
    pub(super) fn fields<'n>(&self, node: &'n Node, what: &'static str, known: Known) -> Option<Fields<'_, 'n>>
    where
        't: 'n,
    {
        let entries = match &node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            other => {
                self.wrong(&node.spot, what, "a map of keys and values", other);
                return None;
            }
        };
        let mut map: BTreeMap<&'n str, (&'n Node, &'n Node)> = BTreeMap::new();
        for (key, value) in entries {
            let Value::Text(name) = &key.value else {
                self.report(
                    &key.spot,
                    "not a key",
                    format!("a key of {what} is text, not {}", key.value.kind()),
                    None,
                );
                continue;
            };
            if let Some((first, _)) = map.get(name.as_str()) {
                let places = [(&key.spot, "again here"), (&first.spot, "first here")];
                self.conflict(
                    places,
                    format!("the key `{name}` stands twice in {what}"),
                    "keep one of the two",
                );
                continue;
            }
            let extension = known.extensions && name.starts_with("x-");
            if known.without_meaning.contains(&name.as_str()) {
                self.remark(&key.spot, format!("`{name}` has no meaning in a run of your own"));
            } else if !extension && !known.keys.contains(&name.as_str()) {
                self.unknown(key, name, what, &known);
            }
            map.insert(name, (key, value));
        }
        Some(Fields {
            reader: self,
            what,
            spot: &node.spot,
            map,
        })
    }

    fn unknown(&self, key: &Node, name: &str, what: &str, known: &Known) {
        if known.later.contains(&name) {
            let help = "Concourse has it, Orchestra does not support it yet: remove it".to_owned();
            return self.report(
                &key.spot,
                "not supported yet",
                format!("`{name}` in {what} is not supported yet"),
                help,
            );
        }
        if known.misplaced.contains(&name) {
            let help = format!("it belongs {}", known.belongs);
            return self.report(
                &key.spot,
                "not here",
                format!("`{name}` does not stand in {what}"),
                help,
            );
        }
        let help = match closest(name, known.keys) {
            Some(close) => format!("did you mean `{close}`?"),
            None if known.extensions => format!("known are {}; keys for anchors start with `x-`", list(known.keys)),
            None => format!("known are {}", list(known.keys)),
        };
        self.report(
            &key.spot,
            "unknown key",
            format!("unknown key `{name}` in {what}"),
            help,
        );
    }
}

/// A map that is being read.
pub(super) struct Fields<'r, 'n> {
    pub(super) reader: &'r Reader<'r>,
    what: &'static str,
    pub(super) spot: &'n Spot,
    map: BTreeMap<&'n str, (&'n Node, &'n Node)>,
}

impl<'n> Fields<'_, 'n> {
    /// A key's value.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.map.get(key).map(|(_, value)| *value)
    }

    /// Where a key stands.
    pub(super) fn key(&self, key: &str) -> Option<&'n Spot> {
        self.map.get(key).map(|(key, _)| &key.spot)
    }

    /// The value under one of two names for the same thing; both at once are a problem.
    pub(super) fn either(&self, one: &str, other: &str) -> Option<&'n Node> {
        if let (Some(first), Some(second)) = (self.key(one), self.key(other)) {
            let message = format!("`{one}` and `{other}` mean the same in {}", self.what);
            self.reader.conflict(
                [(second, "this one"), (first, "and this one")],
                message,
                "keep one of the two",
            );
        }
        self.get(one).or_else(|| self.get(other))
    }

    /// The value of a key that has to be there.
    pub(super) fn required(&self, key: &str, example: &str) -> Option<&'n Node> {
        let found = self.get(key).filter(|node| !matches!(node.value, Value::Null));
        if found.is_none() {
            let spot = self.key(key).unwrap_or(self.spot);
            self.reader.report(
                spot,
                &format!("`{key}` is missing here"),
                format!("{} needs `{key}`", self.what),
                format!("for example `{example}`"),
            );
        }
        found
    }

    pub(super) fn text(&self, key: &str) -> Option<At<String>> {
        self.reader.text(self.get(key)?, &format!("`{key}`"))
    }

    /// A text that is shown to others, and so no secret.
    pub(super) fn shown(&self, key: &str) -> Option<At<String>> {
        self.reader.shown_text(self.get(key)?, &format!("`{key}`"))
    }

    pub(super) fn parse<T: FromStr<Err = orchestra::Error>>(&self, key: &str) -> Option<At<T>> {
        self.reader.parse(self.get(key)?, &format!("`{key}`"))
    }

    /// A text that `parse` reads, with its own words on what is wrong.
    pub(super) fn read<T>(
        &self,
        key: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let At { value, spot } = self.text(key)?;
        parse(&value)
            .map_err(|help| {
                self.reader.report(
                    &spot,
                    "",
                    format!("`{key}: {value}` is not a valid {what}"),
                    help.to_owned(),
                )
            })
            .ok()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        let node = self.get(key)?;
        if let Value::Bool(value) = node.value {
            return Some(value);
        }
        self.reader
            .wrong(&node.spot, &format!("`{key}`"), "true or false", &node.value);
        None
    }

    pub(super) fn items(&self, key: &str) -> &'n [Node] {
        self.get(key)
            .map_or(&[], |node| self.reader.items(node, &format!("`{key}`")))
    }

    /// A map of texts: an environment. As in Concourse, a name without a value has an empty one.
    pub(super) fn texts(&self, key: &str) -> BTreeMap<String, String> {
        self.get(key)
            .map(|node| texts(self.reader, node, key))
            .unwrap_or_default()
    }

    /// The same of texts that are shown to others.
    pub(super) fn shown_texts(&self, key: &str) -> BTreeMap<String, String> {
        let read = |node| read_texts(self.reader, node, key, false);
        self.get(key).map(read).unwrap_or_default()
    }
}

pub(super) fn texts(reader: &Reader<'_>, node: &Node, what: &str) -> BTreeMap<String, String> {
    read_texts(reader, node, what, true)
}

fn read_texts(reader: &Reader<'_>, node: &Node, what: &str, holds_secrets: bool) -> BTreeMap<String, String> {
    let entries = match &node.value {
        Value::Map(entries) => entries.as_slice(),
        Value::Null => &[],
        other => {
            reader.wrong(&node.spot, &format!("`{what}`"), "a map of names and values", other);
            &[]
        }
    };
    let mut map: BTreeMap<String, (String, Spot)> = BTreeMap::new();
    for (key, value) in entries {
        let Some(name) = reader.shown_text(key, &format!("a name in `{what}`")) else {
            continue;
        };
        if name.value.is_empty() || name.value.contains(['=', '\0', '\n']) {
            reader.report(
                &key.spot,
                "",
                format!("{:?} can't be a name in `{what}`", name.value),
                "a name is not empty and has no `=` or line feed".to_owned(),
            );
        }
        let value = match &value.value {
            Value::Null => Some(At {
                value: String::new(),
                spot: value.spot.clone(),
            }),
            Value::List(_) | Value::Map(_) => {
                let help = "write lists and maps as JSON text in quotes".to_owned();
                reader.report(
                    &key.spot,
                    "",
                    format!("`{}` in `{what}` is text, not {}", name.value, value.value.kind()),
                    help,
                );
                None
            }
            _ => reader.text(value, what),
        };
        let is_good = |value: &At<String>| {
            if holds_secrets {
                reader.checked(value)
            } else {
                reader.literal(value, what) && reader.shown(&value.spot, &format!("`{what}`"))
            }
        };
        let Some(value) = value.filter(is_good) else {
            continue;
        };
        if value.value.contains('\0') {
            reader.report(
                &value.spot,
                "",
                format!("the value of `{}` in `{what}` has a NUL byte", name.value),
                None,
            );
        }
        if let Some((_, first)) = map.get(&name.value) {
            let places = [(&key.spot, "again here"), (first, "first here")];
            reader.conflict(
                places,
                format!("`{}` stands twice in `{what}`", name.value),
                "keep one of the two",
            );
            continue;
        }
        map.insert(name.value, (value.value, key.spot.clone()));
    }
    map.into_iter().map(|(name, (value, _))| (name, value)).collect()
}
