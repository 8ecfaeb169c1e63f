//! `across`: one step becomes one for each value, in [`in_parallel`](super::steps) steps, before any step is read. Where its
//! values are loaded by a `load_var`, that is done when it [runs](super::loaded).

use std::collections::BTreeMap;

use super::fields::Known;
use super::late;
use super::reader::Reader;
use super::steps::{AT_ONCE, HOOKS, OWN_VARIABLES, STEPS, at_once};
use super::tree::{At, Node, Spot, Value};
use super::variables::{self, Interpolation};
use crate::Variables;

/// Far above what a person means; a few vars of a few values multiply fast.
pub(crate) const MAX_STEPS: usize = 1000;
const MAX_NODES: usize = 200_000;

/// What all `across` of a job have made so far.
#[derive(Default)]
pub(super) struct Size {
    steps: usize,
    nodes: usize,
    told: bool,
}

pub(super) struct Var<'n> {
    pub(super) name: At<String>,
    values: Values<'n>,
    at_once: usize,
}

enum Values<'n> {
    Known(&'n [Node]),
    /// The variable that has them when it runs.
    Loaded,
}

impl<'n> Var<'n> {
    fn known(&self) -> &'n [Node] {
        match self.values {
            Values::Known(values) => values,
            Values::Loaded => &[],
        }
    }

    fn is_loaded(&self) -> bool {
        matches!(self.values, Values::Loaded)
    }
}

/// The node without any `across` in it but those whose values are loaded.
pub(super) fn expand(reader: &Reader<'_>, node: &Node, size: &mut Size) -> Node {
    let value = match &node.value {
        Value::List(items) => Value::List(items.iter().map(|item| expand(reader, item, size)).collect()),
        Value::Map(entries) => {
            if let Some((key, across)) = of(entries) {
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

/// The key `across` of a step and what stands there.
pub(super) fn of(entries: &[(Node, Node)]) -> Option<(&Node, &Node)> {
    let is_step = |key: &Node| STEPS.iter().any(|name| is(key, name));
    let (key, across) = entries.iter().find(|(key, _)| is(key, "across"))?;
    entries.iter().any(|(key, _)| is_step(key)).then_some((key, across))
}

/// The step that is run for each value, what says so, and what follows the end of all of them, as in Concourse.
struct Parts {
    one: Node,
    fail_fast: Option<(Node, Node)>,
    hooks: Vec<(Node, Node)>,
}

fn parts(node: &Node, entries: &[(Node, Node)]) -> Parts {
    let (hooks, own): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter(|(key, _)| !is(key, "across") && !is(key, "fail_fast"))
        .cloned()
        .partition(|(key, _)| HOOKS.iter().any(|hook| is(key, hook)));
    Parts {
        one: At {
            value: Value::Map(own),
            spot: node.spot.clone(),
        },
        fail_fast: entries.iter().find(|(key, _)| is(key, "fail_fast")).cloned(),
        hooks,
    }
}

/// The step of an `across` that is run for each value.
pub(super) fn one(node: &Node, entries: &[(Node, Node)]) -> Node {
    parts(node, entries).one
}

/// Checks what is read when it is put out.
pub(super) fn fail_fast(reader: &Reader<'_>, node: &Node) {
    let Value::Map(entries) = &node.value else { return };
    let own = entries
        .iter()
        .filter(|(key, _)| is(key, "fail_fast"))
        .cloned()
        .collect();
    let own = At {
        value: Value::Map(own),
        spot: node.spot.clone(),
    };
    if let Some(fields) = reader.fields(&own, "an `across`", Known::of(&["fail_fast"])) {
        fields.flag("fail_fast");
    }
}

fn put_out(
    reader: &Reader<'_>,
    (key, across): (&Node, &Node),
    node: &Node,
    entries: &[(Node, Node)],
    size: &mut Size,
) -> Node {
    let Parts { one, fail_fast, hooks } = parts(node, entries);
    let one = expand(reader, &one, size);
    let hooks = hooks.into_iter().map(|(key, hook)| (key, expand(reader, &hook, size)));
    let hooks: Vec<_> = hooks.collect();
    let vars = vars(reader, across);
    let mut within = Vec::new();
    loaded(&one, &mut within);
    for across in &within {
        let inner = self::vars(reader, across);
        let names = inner.iter().map(|var| &var.name);
        let same = names.filter(|name| vars.iter().any(|var| var.name.value == name.value));
        same.for_each(|name| twice(reader, name));
    }
    let mut node = if vars.iter().any(Var::is_loaded) {
        let mut entries = vec![(key.clone(), across.clone())];
        entries.extend(fail_fast);
        if let Value::Map(one) = one.value {
            entries.extend(one);
        }
        At {
            value: Value::Map(entries),
            spot: node.spot.clone(),
        }
    } else {
        let steps = vars.iter().map(|var| var.known().len()).product::<usize>();
        size.steps = size.steps.saturating_add(steps);
        size.nodes = size.nodes.saturating_add(steps.saturating_mul(count(&one)));
        if size.steps > MAX_STEPS || size.nodes > MAX_NODES {
            if !size.told {
                let help = format!("use fewer vars or values: {MAX_STEPS} steps are the most");
                reader.report(&key.spot, "", "`across` makes too many steps", help);
            }
            size.told = true;
            return one;
        }
        if vars.is_empty() {
            return one;
        }
        let steps = level(reader, &key.spot, &vars, fail_fast.as_ref(), &one, &mut BTreeMap::new());
        // What is loaded may be a value of this one.
        match within.is_empty() {
            true => steps,
            false => expand(reader, &steps, size),
        }
    };
    if let Value::Map(entries) = &mut node.value {
        entries.extend(hooks);
    }
    node
}

/// Every `across` in a node whose values are loaded.
fn loaded<'n>(node: &'n Node, found: &mut Vec<&'n Node>) {
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| loaded(item, found)),
        Value::Map(entries) => {
            found.extend(of(entries).map(|(_, across)| across));
            entries.iter().for_each(|(_, value)| loaded(value, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {}
    }
}

fn twice(reader: &Reader<'_>, name: &At<String>) {
    let message = format!("two vars are called `{}`", name.value);
    reader.report(&name.spot, "", message, "rename one of them".to_owned());
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(count).sum(),
        Value::Map(entries) => entries.iter().map(|(key, value)| count(key) + count(value)).sum(),
        _ => 0,
    }
}

/// What an `across` runs its step for.
pub(super) fn vars<'n, 't: 'n>(reader: &Reader<'t>, node: &'n Node) -> Vec<Var<'n>> {
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
        let values = match &values.value {
            Value::Text(text) if variables::is_local(text) => Values::Loaded,
            _ => Values::Known(reader.items(values, "`values`")),
        };
        let at_once = match fields.text("max_in_flight") {
            None => 1,
            Some(text) if text.value == "all" => AT_ONCE,
            Some(_) => fields.read("max_in_flight", "number of steps", at_once).unwrap_or(1),
        };
        let Some(name) = name else { continue };
        // What was loaded may be none.
        if matches!(values, Values::Known([])) && reader.depth().is_none() {
            let help = "give it at least one".to_owned();
            reader.report(&name.spot, "", format!("the var `{}` has no values", name.value), help);
        } else if vars.iter().any(|var| var.name.value == name.value) {
            twice(reader, &name);
        } else {
            vars.push(Var { name, values, at_once });
        }
    }
    if vars.is_empty() && reader.count() == before {
        let help = "add one: `- var: version`, with its `values`".to_owned();
        reader.report(&node.spot, "empty", "`across` has no vars", help);
    }
    vars
}

/// A step with loaded values in its `across`, and nothing else.
pub(super) fn placed(reader: &Reader<'_>, mut node: Node, variables: &Variables) -> Node {
    if let Value::Map(entries) = &mut node.value
        && let Some((_, across)) = entries.iter_mut().find(|(key, _)| is(key, "across"))
    {
        *across = late::set(reader, variables, across.clone());
    }
    node
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
        return Interpolation::of_locals(reader, &variables).node(inner.clone());
    };
    let at = |value| At {
        value,
        spot: spot.clone(),
    };
    let text = |text: &str| at(Value::Text(text.to_owned()));
    let mut steps = Vec::new();
    for value in var.known() {
        set.insert(var.name.value.clone(), value.value.clone());
        steps.push(level(reader, spot, others, fail_fast, inner, set));
    }
    let name = text(&var.name.value);
    let values = Value::List(var.known().to_vec());
    let mut keys = vec![
        (text("steps"), at(Value::List(steps))),
        (text("limit"), at(Value::Number(var.at_once.to_string()))),
        (text(OWN_VARIABLES), at(Value::Map(vec![(name, at(values))]))),
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
