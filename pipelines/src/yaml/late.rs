//! Steps that can be read whole only when they run: their text has variables that a `load_var` sets, or their task is in
//! a file of an artifact. What can be known before is checked before; they are read again with all of it when they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use orchestra::{Name, VolumePath};
use orchestra_secrets::Reference;

use super::fields::Known;
use super::reader::Reader;
use super::resource::Resources;
use super::tree::{At, Node, Value};
use super::variables::{self, Interpolation};
use super::{across, load_var, steps, task, tree};
use crate::values::{Fetched, Variables};
use crate::{Problem, Step, StepKind};

/// The file that a step stands in.
pub(crate) struct Source {
    pub(super) name: String,
    text: String,
    resources: Arc<Resources>,
    /// Where the values begin into which a secret was put.
    secret: BTreeSet<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: &str, resources: Arc<Resources>, secret: BTreeSet<usize>) -> Self {
        Self {
            name: name.to_owned(),
            text: text.to_owned(),
            resources,
            secret,
        }
    }

    pub(super) fn reader<'s>(&'s self, fetched: &'s Fetched) -> Reader<'s> {
        let reader = Reader::new(&self.name, &self.text, fetched);
        reader.set_resources(self.resources.clone());
        reader.put_secrets(&self.secret);
        reader
    }
}

/// A step that is read whole when it runs. `Debug` shows no text of it, as a secret may stand in it.
#[derive(Clone)]
pub struct LatePlan {
    kind: StepKind,
    node: Node,
    source: Arc<Source>,
    /// Added to a task's environment.
    pub(super) env: Vec<(String, String)>,
}

impl fmt::Debug for LatePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatePlan")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl LatePlan {
    pub(super) fn new(reader: &Reader<'_>, kind: StepKind, node: Node) -> Self {
        Self {
            kind,
            node,
            source: reader.source(),
            env: Vec::new(),
        }
    }

    /// What kind of step it is.
    #[must_use]
    pub fn kind(&self) -> StepKind {
        self.kind
    }

    /// Its text with the variables in their places.
    pub(crate) fn place<'l>(&'l self, variables: &Variables, known: &'l Fetched) -> Result<Placed<'l>, String> {
        let reader = self.source.reader(known);
        let node = set(&reader, variables, self.node.clone());
        let mut placed = Placed {
            late: self,
            file: None,
            vars: Variables::new(),
            wanted: BTreeSet::new(),
            content: None,
            known,
            variables: variables.clone(),
            node: variables::unquoted(node.clone()),
        };
        variables::references(&node, &Variables::default(), &mut placed.wanted);
        let node = placed.node.clone();
        if self.kind == StepKind::Task
            && let Some(fields) = reader.fields(&node, "a task step", task::STEP)
        {
            if fields.get("file").is_some() {
                placed.file = load_var::artifact_file(&fields).map(|(name, path)| (name.value, path));
            }
            if let Some(Value::Map(entries)) = fields.get("vars").map(|node| &node.value) {
                for (name, value) in entries {
                    if let Some(name) = reader.text(name, "a name in `vars`") {
                        placed.vars.set_value(&name.value, value.value.clone());
                    }
                }
            }
        }
        told(&self.source.name, reader.finish())?;
        Ok(placed)
    }
}

/// A step on its way to being whole.
pub(crate) struct Placed<'l> {
    late: &'l LatePlan,
    node: Node,
    /// The task's file, where it has one.
    pub(crate) file: Option<(Name, VolumePath)>,
    vars: Variables,
    /// Secrets that a variable may hold.
    known: &'l Fetched,
    /// Those of a `load_var` or an `across`.
    variables: Variables,
    /// The secrets that its text refers to.
    pub(crate) wanted: BTreeSet<Reference>,
    content: Option<Content>,
}

struct Content {
    name: String,
    text: String,
    root: Node,
}

impl Placed<'_> {
    /// Takes what the task's file holds.
    pub(crate) fn take_file(&mut self, name: String, text: String) -> Result<(), String> {
        let root = tree::parse(&text).map_err(|error| {
            let (line, column) = error.at.unwrap_or((1, 1));
            format!("{name}:{line}:{column}: {}", error.message)
        })?;
        let reader = Reader::new(&name, &text, self.known);
        let root = set(&reader, &self.variables, root);
        told(&name, reader.finish())?;
        variables::references(&root, &self.vars, &mut self.wanted);
        self.content = Some(Content { name, text, root });
        Ok(())
    }

    /// The step, now that all is known.
    pub(crate) fn read(self, fetched: &Fetched) -> Result<Step, String> {
        let reader = self.late.source.reader(fetched);
        let read = match &self.content {
            None => steps::read_leaf(&reader, &self.node, self.late.kind),
            Some(content) => {
                let file = Reader::new(&content.name, &content.text, fetched);
                let mut interpolation = Interpolation {
                    reader: &file,
                    variables: &self.vars,
                    fetched,
                    used: BTreeMap::new(),
                    local: false,
                };
                let root = variables::unquoted(interpolation.node(content.root.clone()));
                let read = task::read_with(&reader, &self.node, Some((&file, &root)));
                told(&content.name, file.finish())?;
                read
            }
        };
        told(&self.late.source.name, reader.finish())?;
        let step = read.and_then(|read| read.step);
        let mut step = step.ok_or_else(|| format!("{}: the step could not be read", self.late.source.name))?;
        if let crate::Action::Task(plan) = &mut step.action {
            plan.env.0.extend(self.late.env.iter().cloned());
        }
        Ok(step)
    }
}

/// The node with the variables of a `load_var` or an `across` in their places.
pub(super) fn set(reader: &Reader<'_>, variables: &Variables, node: Node) -> Node {
    let node = Interpolation::of_locals(reader, variables).node(node);
    let mut unset = Vec::new();
    across::unset(&node, &mut unset);
    for At { value: name, spot } in unset {
        let help = "the `load_var` that sets it was not run, or what it read has no such field".to_owned();
        reader.report(&spot, "", format!("`((.:{name}))` has no value"), help);
    }
    node
}

/// A line for each problem, with its place.
pub(super) fn told(name: &str, problems: Vec<Problem>) -> Result<(), String> {
    if problems.is_empty() {
        return Ok(());
    }
    let line = |problem: &Problem| {
        let place = problem.places.first();
        let place = place.map_or_else(String::new, |place| format!(":{}:{}", place.line, place.column));
        let help = problem
            .help
            .as_ref()
            .map_or_else(String::new, |help| format!(" ({help})"));
        format!("{name}{place}: {}{help}", problem.message)
    };
    Err(problems.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// The step without what follows its end, which are steps of their own.
pub(super) fn without_hooks(node: &Node) -> Node {
    let Value::Map(entries) = &node.value else {
        return node.clone();
    };
    let is_hook = |key: &Node| matches!(&key.value, Value::Text(name) if steps::HOOKS.contains(&name.as_str()));
    let own = entries.iter().filter(|(key, _)| !is_hook(key)).cloned().collect();
    At {
        value: Value::Map(own),
        spot: node.spot.clone(),
    }
}

/// A text that a `load_var` has read, as a value.
pub(crate) fn value_of(name: &str, text: String, format: crate::VarFormat) -> Result<Value, String> {
    use crate::VarFormat;
    let value = match format {
        VarFormat::Raw => Value::Text(text),
        VarFormat::Trim => Value::Text(text.trim().to_owned()),
        // JSON is YAML but for what JSON alone refuses.
        VarFormat::Json => {
            serde_json::from_str::<serde::de::IgnoredAny>(&text)
                .map_err(|error| format!("{name} is no JSON: {error}"))?;
            parsed(name, &text)?
        }
        VarFormat::Yaml => parsed(name, &text)?,
    };
    match refers(&value) {
        false => Ok(variables::quoted(value)),
        true => Err(format!(
            "{name} holds a reference to a secret, which a file of a task may not: write it in the pipeline"
        )),
    }
}

fn parsed(name: &str, text: &str) -> Result<Value, String> {
    tree::parse(text).map(|node| node.value).map_err(|error| {
        let (line, column) = error.at.unwrap_or((1, 1));
        format!("{name}:{line}:{column}: {}", error.message)
    })
}

/// Whether it would be taken for a secret: what a task writes must not choose the secrets of a pipeline.
fn refers(value: &Value) -> bool {
    match value {
        Value::Text(text) => text.starts_with("secret:"),
        Value::List(items) => items.iter().any(|item| refers(&item.value)),
        Value::Map(entries) => entries
            .iter()
            .any(|(key, value)| refers(&key.value) || refers(&value.value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What `parallelism` may say.
pub(super) fn parallelism(reader: &Reader<'_>, node: &Node) -> Option<usize> {
    const ONE: Known = Known::of(&["parallelism"]);
    let Value::Map(entries) = &node.value else { return None };
    let found = entries
        .iter()
        .find(|(key, _)| matches!(&key.value, Value::Text(name) if name == "parallelism"))?;
    let alone = At {
        value: Value::Map(vec![found.clone()]),
        spot: node.spot.clone(),
    };
    let fields = reader.fields(&alone, "a task step", ONE)?;
    fields.read("parallelism", "number of tasks", steps::at_once)
}
