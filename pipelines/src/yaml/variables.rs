//! `((variables))`, which are not supported yet: passed on as they are, they would be used as the value itself.

use super::reader::Reader;
use super::tree::{Node, Value};

/// Notes every variable in the tree.
pub(super) fn refuse(reader: &Reader<'_>, node: &Node) {
    match &node.value {
        Value::Text(text) => {
            if let Some(variable) = find(text) {
                let help = "write the value itself here".to_owned();
                reader.report(
                    &node.spot,
                    "",
                    format!("variables are not available yet: `(({variable}))` can't be replaced"),
                    help,
                );
            }
        }
        Value::List(items) => items.iter().for_each(|item| refuse(reader, item)),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            refuse(reader, key);
            refuse(reader, value);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The first variable, by Concourse's grammar. A shell's arithmetic, `$((i))`, is none.
fn find(text: &str) -> Option<&str> {
    text.match_indices("((").find_map(|(at, _)| {
        let name = text[at + 2..].split_once("))")?.0;
        let valid = |c: char| c.is_alphanumeric() || "-_./:@\"".contains(c);
        (!text[..at].ends_with('$') && !name.is_empty() && name.chars().all(valid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_told_from_a_shells_arithmetic() {
        for (text, expected) in [
            ("((token))", Some("token")),
            ("x-((vault:a/b.c))-y", Some("vault:a/b.c")),
            ("$((i))", None),
            ("$((1 + 2)) ((real))", Some("real")),
            ("f(g(x))", None),
            ("(( a && b ))", None),
            ("((", None),
        ] {
            assert_eq!(find(text), expected, "{text}");
        }
    }
}
