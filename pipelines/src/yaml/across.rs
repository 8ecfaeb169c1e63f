//! `across`: one step becomes one for each value, in [`in_parallel`](super::steps) steps, before any step is read.

use std::collections::BTreeMap;

use super::fields::Known;
use super::reader::Reader;
use super::steps::{AT_ONCE, HOOKS, OWN_VARIABLES, STEPS, at_once};
use super::tree::{At, Node, Spot, Value};
use super::variables::{self, Interpolation};
use crate::Variables;

/// Far above what a person means; a few vars of a few values multiply fast.
const MAX_STEPS: usize = 1000;
const MAX_NODES: usize = 200_000;

/// What all `across` of a job have made so far.
#[derive(Default)]
pub(super) struct Size {
    steps: usize,
    nodes: usize,
    told: bool,
}

struct Var<'n> {
    name: String,
    values: &'n [Node],
    at_once: usize,
}

/// The node without any `across` in it.
pub(super) fn expand(reader: &Reader<'_>, node: &Node, size: &mut Size) -> Node {
    let value = match &node.value {
        Value::List(items) => Value::List(items.iter().map(|item| expand(reader, item, size)).collect()),
        Value::Map(entries) => {
            if let Some((key, across)) = entries.iter().find(|(key, _)| is(key, "across"))
                && entries.iter().any(|(key, _)| is_step(key))
            {
                return put_out(reader, (key, across), node, entries, size);
            }
            let entry = |(key, value): &(Node, Node)| (key.clone(), expand(reader, value, size));
            Value::Map(entries.iter().map(entry).collect())
        }
        other => other.clone(),
    };
    At {
        value,
        spot: node.spot.clone(),
    }
}

fn is(key: &Node, name: &str) -> bool {
    matches!(&key.value, Value::Text(text) if text == name)
}

fn is_step(key: &Node) -> bool {
    STEPS.iter().any(|name| is(key, name))
}

fn put_out(
    reader: &Reader<'_>,
    (key, across): (&Node, &Node),
    node: &Node,
    entries: &[(Node, Node)],
    size: &mut Size,
) -> Node {
    let fail_fast = entries.iter().find(|(key, _)| is(key, "fail_fast"));
    // What follows the end of the step follows that of all of them, as in Concourse.
    let (hooks, own): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter(|(key, _)| !is(key, "across") && !is(key, "fail_fast"))
        .cloned()
        .partition(|(key, _)| HOOKS.iter().any(|hook| is(key, hook)));
    let inner = At {
        value: Value::Map(own),
        spot: node.spot.clone(),
    };
    let inner = expand(reader, &inner, size);
    let vars = vars(reader, across);
    let steps = vars.iter().map(|var| var.values.len()).product::<usize>();
    size.steps = size.steps.saturating_add(steps);
    size.nodes = size.nodes.saturating_add(steps.saturating_mul(count(&inner)));
    if size.steps > MAX_STEPS || size.nodes > MAX_NODES {
        if !size.told {
            let help = format!("use fewer vars or values: {MAX_STEPS} steps are the most");
            reader.report(&key.spot, "", "`across` makes too many steps", help);
        }
        size.told = true;
        return inner;
    }
    if vars.is_empty() {
        return inner;
    }
    let mut node = level(reader, &key.spot, &vars, fail_fast, &inner, &mut BTreeMap::new());
    if let Value::Map(entries) = &mut node.value {
        entries.extend(hooks.into_iter().map(|(key, hook)| (key, expand(reader, &hook, size))));
    }
    node
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| count(key) + count(value)).sum(),
        _ => 0,
    }
}

fn vars<'n, 't: 'n>(reader: &Reader<'t>, node: &'n Node) -> Vec<Var<'n>> {
    const KEYS: Known = Known::of(&["var", "values", "max_in_flight"]);
    let mut vars: Vec<Var<'n>> = Vec::new();
    let before = reader.count();
    for item in reader.items(node, "`across`") {
        let Some(fields) = reader.fields(item, "a var of `across`", KEYS) else {
            continue;
        };
        let name = fields.required("var", "var: version").and_then(|_| fields.text("var"));
        let Some(values) = fields.required("values", "values: [1.94, 1.95]") else {
            continue;
        };
        let values = reader.items(values, "`values`");
        let at_once = match fields.text("max_in_flight") {
            None => 1,
            Some(text) if text.value == "all" => AT_ONCE,
            Some(_) => fields.read("max_in_flight", "number of steps", at_once).unwrap_or(1),
        };
        let Some(name) = name else { continue };
        if values.is_empty() {
            let help = "give it at least one".to_owned();
            reader.report(&name.spot, "", format!("the var `{}` has no values", name.value), help);
        } else if vars.iter().any(|var| var.name == name.value) {
            let help = "rename one of them".to_owned();
            reader.report(&name.spot, "", format!("two vars are called `{}`", name.value), help);
        } else {
            vars.push(Var {
                name: name.value,
                values,
                at_once,
            });
        }
    }
    if vars.is_empty() && reader.count() == before {
        let help = "add one: `- var: version`, with its `values`".to_owned();
        reader.report(&node.spot, "empty", "`across` has no vars", help);
    }
    vars
}

/// One `in_parallel` for the first var, with those of the others in it.
fn level(
    reader: &Reader<'_>,
    spot: &Spot,
    vars: &[Var<'_>],
    fail_fast: Option<&(Node, Node)>,
    inner: &Node,
    set: &mut BTreeMap<String, Value>,
) -> Node {
    let Some((var, others)) = vars.split_first() else {
        let mut variables = Variables::new();
        for (name, value) in set.iter() {
            variables.set_value(name, value.clone());
        }
        return Interpolation {
            reader,
            variables: &variables,
            fetched: reader.fetched,
            used: BTreeMap::new(),
            local: true,
        }
        .node(inner.clone());
    };
    let at = |value| At {
        value,
        spot: spot.clone(),
    };
    let text = |text: &str| at(Value::Text(text.to_owned()));
    let mut steps = Vec::new();
    for value in var.values {
        set.insert(var.name.clone(), value.value.clone());
        steps.push(level(reader, spot, others, fail_fast, inner, set));
    }
    let mut keys = vec![
        (text("steps"), at(Value::List(steps))),
        (text("limit"), at(Value::Number(var.at_once.to_string()))),
        (text(OWN_VARIABLES), at(Value::Bool(true))),
    ];
    keys.extend(fail_fast.cloned());
    at(Value::Map(vec![(text("in_parallel"), at(Value::Map(keys)))]))
}

/// The variables in a step that no `across` around it has set, and where.
pub(super) fn unset(node: &Node, found: &mut Vec<At<String>>) {
    match &node.value {
        Value::Text(text) => found.extend(variables::locals(text).map(|name| At {
            value: name.to_owned(),
            spot: node.spot.clone(),
        })),
        Value::List(items) => items.iter().for_each(|item| unset(item, found)),
        Value::Map(entries) => entries.iter().for_each(|(key, value)| {
            unset(key, found);
            unset(value, found);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
