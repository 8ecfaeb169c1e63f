//! Which artifacts and variables each step may use: what is made before it, and not what is made beside it.

use std::collections::{BTreeMap, BTreeSet};

use orchestra::Name;

use super::reader::{Reader, closest, list};
use super::step::Read;
use super::steps::{HOOKS, Shape, Tree};
use super::tree::{At, Spot};

/// Follows artifacts through the steps: each is made before it is used, and not by a step that runs beside.
pub(super) fn artifacts(reader: &Reader<'_>, whole: &Tree) {
    let mut all = Vec::new();
    whole.leaves(&mut all);
    let mut flow = Flow {
        reader,
        all,
        known: true,
        outputs: BTreeMap::new(),
    };
    flow.tree(whole, &mut Made::default());
}

/// What a step may use.
#[derive(Clone, Default)]
struct Made<'t> {
    artifacts: BTreeMap<&'t Name, &'t Spot>,
    variables: BTreeSet<&'t str>,
}

struct Flow<'r, 't> {
    reader: &'r Reader<'r>,
    all: Vec<&'t Read>,
    /// Whether all outputs so far are known: where a step could not be read, nobody knows what it makes.
    known: bool,
    /// Every output so far, wherever it can be used.
    outputs: BTreeMap<&'t Name, &'t Spot>,
}

impl<'t> Flow<'_, 't> {
    fn tree(&mut self, tree: &'t Tree, made: &mut Made<'t>) {
        match &tree.shape {
            Shape::Leaf(read) => self.leaf(read, made),
            Shape::Do(steps) => steps.iter().for_each(|step| self.tree(step, made)),
            Shape::InParallel { steps, across, .. } => {
                let before = made.clone();
                for step in steps {
                    let mut own = before.clone();
                    self.tree(step, &mut own);
                    made.artifacts.extend(own.artifacts);
                    if across.is_none() {
                        made.variables.extend(own.variables);
                    }
                }
            }
            Shape::Try(step) => self.tree(step, made),
            Shape::Across(across) => {
                self.variables(&across.variables, made);
                let mut own = made.clone();
                own.variables.extend(across.vars.iter().map(String::as_str));
                self.tree(&across.one, &mut own);
                made.artifacts.extend(own.artifacts);
            }
            Shape::Unknown => self.known = false,
        }
        for (name, hook) in HOOKS.iter().zip(&tree.hooks) {
            let Some(hook) = hook else { continue };
            if ["on_success", "ensure"].contains(name) {
                self.tree(hook, made);
            } else {
                // What it makes is not there when the step succeeds.
                self.tree(hook, &mut made.clone());
            }
        }
    }

    fn leaf(&mut self, read: &'t Read, made: &mut Made<'t>) {
        let reader = self.reader;
        let mut inputs: BTreeMap<&Name, &Spot> = BTreeMap::new();
        for At { value: name, spot } in &read.inputs {
            if let Some(first) = inputs.insert(name, spot) {
                let places = [(spot, "again here"), (first, "first here")];
                reader.conflict(
                    places,
                    format!("the input `{name}` is listed twice in one step"),
                    "keep one of the two",
                );
            }
            if !made.artifacts.contains_key(name) && self.known {
                self.missing(name, spot, made);
            }
        }
        self.known &= read.complete;
        let outputs = read.outputs.iter().map(|at| (&at.value, &at.spot));
        made.artifacts.extend(outputs.clone());
        self.outputs.extend(outputs);
        self.variables(&read.variables, made);
        made.variables.extend(read.loads.as_deref());
    }

    /// Each is set before it is used.
    fn variables(&self, used: &[At<String>], made: &Made<'_>) {
        for At { value: name, spot } in used {
            let first = name.split('.').next().unwrap_or(name);
            if !made.variables.contains(first) {
                let help = "variables that begin with `.:` are those of an `across` around the step, or of a `load_var` before it";
                self.reader
                    .report(spot, "", format!("`((.:{name}))` has no value"), help.to_owned());
            }
        }
    }

    fn missing(&self, name: &Name, spot: &Spot, made: &Made<'_>) {
        let reader = self.reader;
        let message = format!("no earlier step makes the artifact `{name}`");
        let outputs = self.all.iter().flat_map(|read| &read.outputs);
        if let Some(maker) = outputs.clone().find(|output| output.value == *name) {
            let help = if self.outputs.contains_key(name) {
                "it is made beside this step, or where a step has failed: put both into one `do`"
            } else {
                "move the step that makes it up"
            };
            return reader.conflict([(spot, "used here"), (&maker.spot, "made here")], message, help);
        }
        let known: BTreeSet<&str> = made.artifacts.keys().map(|name| name.as_str()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        let help = match closest(name.as_str(), &known) {
            Some(close) => format!("did you mean `{close}`?"),
            None if known.is_empty() => format!("add `outputs: [{{ name: {name} }}]` to a task before it"),
            None => format!("made so far: {}", list(&known)),
        };
        reader.report(spot, "made by no step", message, help);
    }
}
