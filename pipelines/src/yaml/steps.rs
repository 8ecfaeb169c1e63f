//! Steps within steps: which kind each is, how they are called, and which artifacts each may use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use orchestra::Name;

use super::fields::Known;
use super::loaded::{self, AcrossPlan, Leaves};
use super::reader::{Reader, closest};
use super::step::{self, Read};
use super::tree::{At, Node, Spot, Value};
use super::{across, build, late, load_var, resource, task};
use crate::plan::AcrossValues;
use crate::{Action, Hooks, LatePlan, Parallel, Step, StepKind};

/// The keys that steps start with.
pub(super) const STEPS: [&str; 8] = [
    "task",
    "build_image",
    "do",
    "in_parallel",
    "try",
    "get",
    "put",
    "load_var",
];

/// Says that each step of an `in_parallel` has a variable of its own, and which one: the name, and a value for each step. No
/// person writes it.
pub(super) const OWN_VARIABLES: &str = "\u{0}own_variables";

/// From the inside out.
pub(super) const HOOKS: [&str; 5] = ["on_success", "on_failure", "on_abort", "on_error", "ensure"];

/// How many steps of one `in_parallel` run at once where nothing is said: what one engine does well.
pub(super) const AT_ONCE: usize = 16;
const MAX_AT_ONCE: usize = 256;

macro_rules! holds_steps {
    ($kind:literal) => {
        Known {
            later: &["tags"],
            misplaced: &["config", "image", "params"],
            belongs: "in a task",
            ..Known::of(&[
                $kind,
                "timeout",
                "attempts",
                "on_success",
                "on_failure",
                "on_abort",
                "on_error",
                "ensure",
            ])
        }
    };
}

/// A step as far as it could be read, with those in it.
pub(super) struct Tree {
    pub(super) shape: Shape,
    spot: Spot,
    timeout: Option<Duration>,
    attempts: u32,
    /// In the order of [`HOOKS`].
    pub(super) hooks: Vec<Option<Tree>>,
}

pub(super) enum Shape {
    Leaf(Box<Read>),
    Do(Vec<Tree>),
    InParallel {
        steps: Vec<Tree>,
        limit: usize,
        fail_fast: bool,
        across: Option<AcrossValues>,
    },
    Try(Box<Tree>),
    /// A step that is run for values that are loaded.
    Across(Box<Across>),
    /// It could not be read, and was told.
    Unknown,
}

pub(super) struct Across {
    /// As far as it can be read without them.
    pub(super) one: Tree,
    /// What it sets.
    pub(super) vars: Vec<String>,
    /// What has the values.
    pub(super) variables: Vec<At<String>>,
    node: Node,
}

impl Tree {
    fn new(shape: Shape, spot: &Spot) -> Self {
        Self {
            shape,
            spot: spot.clone(),
            timeout: None,
            attempts: 1,
            hooks: Vec::new(),
        }
    }

    /// A job's whole plan.
    pub(super) fn job(plan: Vec<Self>, hooks: Vec<Option<Self>>, spot: &Spot) -> Self {
        Self {
            hooks,
            ..Self::new(Shape::Do(plan), spot)
        }
    }

    /// The steps and hooks, if all are valid.
    pub(super) fn into_job(self, reader: &Reader<'_>) -> Option<(Vec<Step>, Hooks)> {
        let Step { action, hooks, .. } = self.into_step(reader)?;
        match action {
            Action::Do(steps) => Some((steps, hooks)),
            _ => None,
        }
    }

    pub(super) fn into_step(self, reader: &Reader<'_>) -> Option<Step> {
        let mut hooks = Hooks::default();
        let places = [
            &mut hooks.on_success,
            &mut hooks.on_failure,
            &mut hooks.on_abort,
            &mut hooks.on_error,
            &mut hooks.ensure,
        ];
        for (place, hook) in places.into_iter().zip(self.hooks) {
            *place = match hook {
                Some(hook) => Some(Box::new(hook.into_step(reader)?)),
                None => None,
            };
        }
        let all = |steps: Vec<Self>| {
            steps
                .into_iter()
                .map(|step| step.into_step(reader))
                .collect::<Option<Vec<_>>>()
        };
        let (kind, action) = match self.shape {
            Shape::Leaf(read) => return read.step.map(|step| Step { hooks, ..step }),
            Shape::Do(steps) => (StepKind::Do, Action::Do(all(steps)?)),
            Shape::InParallel {
                steps,
                limit,
                fail_fast,
                across,
            } => {
                let steps = all(steps)?;
                let parallel = Parallel {
                    steps,
                    limit,
                    fail_fast,
                    across,
                };
                (StepKind::InParallel, Action::InParallel(parallel))
            }
            Shape::Try(step) => (StepKind::Try, Action::Try(Box::new(step.into_step(reader)?))),
            Shape::Across(across) => {
                let Across { one, node, .. } = *across;
                let mut leaves = Vec::new();
                one.leaves(&mut leaves);
                let leaves = Leaves::of(&leaves);
                let plan = AcrossPlan::new(reader, one.into_step(reader)?, node, leaves);
                (StepKind::Across, Action::Across(Box::new(plan)))
            }
            Shape::Unknown => return None,
        };
        Some(Step {
            name: Name::new(kind.to_string()).ok()?,
            action,
            timeout: self.timeout,
            attempts: self.attempts,
            hooks,
            volumes: BTreeMap::new(),
            base: None,
        })
    }

    fn within(&self) -> &[Self] {
        match &self.shape {
            Shape::Do(steps) | Shape::InParallel { steps, .. } => steps,
            Shape::Try(step) => std::slice::from_ref(step),
            Shape::Across(across) => std::slice::from_ref(&across.one),
            Shape::Leaf(_) | Shape::Unknown => &[],
        }
    }

    /// All steps that hold no others, in the order of the file.
    pub(super) fn leaves<'t>(&'t self, found: &mut Vec<&'t Read>) {
        if let Shape::Leaf(read) = &self.shape {
            found.push(read);
        }
        let hooks = self.hooks.iter().flatten();
        self.within().iter().chain(hooks).for_each(|tree| tree.leaves(found));
    }

    /// Every `across` whose values are loaded, but for those within others.
    fn across<'t>(&'t self, found: &mut Vec<&'t Across>) {
        if let Shape::Across(across) = &self.shape {
            found.push(across);
        } else {
            self.within().iter().for_each(|tree| tree.across(found));
        }
        self.hooks.iter().flatten().for_each(|tree| tree.across(found));
    }

    pub(super) fn leaves_mut<'t>(&'t mut self, found: &mut Vec<&'t mut Read>) {
        match &mut self.shape {
            Shape::Leaf(read) => found.push(read),
            Shape::Do(steps) | Shape::InParallel { steps, .. } => {
                steps.iter_mut().for_each(|tree| tree.leaves_mut(found));
            }
            Shape::Try(step) => step.leaves_mut(found),
            Shape::Across(across) => across.one.leaves_mut(found),
            Shape::Unknown => {}
        }
        self.hooks.iter_mut().flatten().for_each(|tree| tree.leaves_mut(found));
    }
}

/// Reads a step in which no `across` has known values any more.
pub(super) fn read(reader: &Reader<'_>, node: &Node) -> Tree {
    let Value::Map(entries) = &node.value else {
        reader.wrong(&node.spot, "a step", "a map of keys and values", &node.value);
        return Tree::new(Shape::Unknown, &node.spot);
    };
    let keys: Vec<(&str, &Spot)> = entries
        .iter()
        .filter_map(|(key, _)| match &key.value {
            Value::Text(name) => Some((name.as_str(), &key.spot)),
            _ => None,
        })
        .collect();
    let kinds: Vec<_> = keys.iter().filter(|(name, _)| STEPS.contains(name)).collect();
    if let [first, second, ..] = kinds.as_slice()
        && first.0 != second.0
    {
        let places = [(second.1, "this one"), (first.1, "and this one")];
        reader.conflict(
            places,
            format!("a step is one of `{}` and `{}`, not both", first.0, second.0),
            "make two steps of it",
        );
        return Tree::new(Shape::Unknown, &node.spot);
    }
    let Some((kind, spot)) = kinds.first() else {
        no_kind(reader, &node.spot, &keys);
        return Tree::new(Shape::Unknown, &node.spot);
    };
    let mut tree = match (across::of(entries), *kind) {
        (Some((_, vars)), _) => of_loaded(reader, node, entries, vars),
        (None, "task") => leaf(reader, node, StepKind::Task),
        (None, "build_image") => leaf(reader, node, StepKind::BuildImage),
        (None, "get") => leaf(reader, node, StepKind::Get),
        (None, "put") => leaf(reader, node, StepKind::Put),
        (None, "load_var") => leaf(reader, node, StepKind::LoadVar),
        (None, kind) => holding(reader, node, kind),
    };
    tree.spot = (*spot).clone();
    // A second key of the same name is told where the step's own keys are read.
    let hook = |hook: &str| {
        let found = entries
            .iter()
            .find(|(key, _)| matches!(&key.value, Value::Text(name) if name == hook));
        found.map(|(_, value)| read(reader, value))
    };
    tree.hooks = HOOKS.iter().map(|name| hook(name)).collect();
    tree
}

/// An `across` whose values are loaded.
fn of_loaded(reader: &Reader<'_>, node: &Node, entries: &[(Node, Node)], vars: &Node) -> Tree {
    let one = read(reader, &across::one(node, entries));
    let mut variables = Vec::new();
    across::unset(vars, &mut variables);
    let vars = across::vars(reader, vars);
    across::fail_fast(reader, node);
    let across = Across {
        one,
        vars: vars.into_iter().map(|var| var.name.value).collect(),
        variables,
        node: late::without_hooks(node),
    };
    Tree::new(Shape::Across(Box::new(across)), &node.spot)
}

/// Reads a step that holds no others.
pub(super) fn read_leaf(reader: &Reader<'_>, node: &Node, kind: StepKind) -> Option<Read> {
    match kind {
        StepKind::Task => task::read(reader, node),
        StepKind::BuildImage => build::read(reader, node),
        StepKind::Get => resource::get(reader, node),
        StepKind::Put => resource::put(reader, node),
        StepKind::LoadVar => load_var::read(reader, node),
        StepKind::Do | StepKind::InParallel | StepKind::Try | StepKind::Across | StepKind::Script => None,
    }
}

fn leaf(reader: &Reader<'_>, node: &Node, kind: StepKind) -> Tree {
    let own = late::without_hooks(node);
    let mut variables = Vec::new();
    across::unset(&own, &mut variables);
    let (told, at_once) = (reader.told(), late::parallelism(reader, &own));
    let is_late = !variables.is_empty() || reader.depth().is_some();
    reader.wait_for_variables(is_late);
    let read = read_leaf(reader, node, kind);
    reader.wait_for_variables(false);
    let Some(mut read) = read else {
        return Tree::new(Shape::Unknown, &node.spot);
    };
    if is_late {
        if reader.told() == told {
            read.step = late_step(reader, own, kind, &read);
        }
        read.variables = variables;
    }
    match at_once {
        Some(number) => many(read, number, &node.spot),
        None => Tree::new(Shape::Leaf(Box::new(read)), &node.spot),
    }
}

/// A step that is read again when its variables are known.
fn late_step(reader: &Reader<'_>, node: Node, kind: StepKind, read: &Read) -> Option<Step> {
    let known = read.step.as_ref();
    let name = match (&read.name, known) {
        (_, Some(step)) => step.name.clone(),
        (Some(name), None) => name.value.clone(),
        (None, None) if kind == StepKind::Task && reader.depth().is_none() => {
            let help = "name it without variables that are known only when it runs".to_owned();
            reader.report(&read.spot, "", "a step's name is known before it runs", help);
            return None;
        }
        (None, None) => Name::new(kind.to_string()).ok()?,
    };
    Some(Step {
        name,
        timeout: known.and_then(|step| step.timeout),
        attempts: known.map_or(1, |step| step.attempts),
        action: Action::Late(Box::new(LatePlan::new(reader, kind, node))),
        hooks: Hooks::default(),
        volumes: BTreeMap::new(),
        base: None,
    })
}

/// `parallelism`: a task so many times at once, each told which one it is.
fn many(read: Read, number: usize, spot: &Spot) -> Tree {
    let one = |index: usize| {
        let mut one = read.clone();
        one.name = read.name.as_ref().and_then(|name| {
            let value = Name::new(format!("{}-{index}", name.value)).ok()?;
            Some(At {
                value,
                spot: name.spot.clone(),
            })
        });
        one.replaces |= index > 1;
        if let (Some(step), Some(name)) = (&mut one.step, &one.name) {
            step.name = name.value.clone();
            let env = [("CI_TASK_INDEX", index), ("CI_TASK_COUNT", number)];
            let env = env.map(|(name, value)| (name.to_owned(), value.to_string()));
            match &mut step.action {
                Action::Task(plan) => plan.env.0.extend(env),
                Action::Late(plan) => plan.env.extend(env),
                _ => {}
            }
        }
        Tree::new(Shape::Leaf(Box::new(one)), spot)
    };
    let shape = Shape::InParallel {
        steps: (1..=number).map(one).collect(),
        limit: AT_ONCE,
        fail_fast: false,
        across: None,
    };
    Tree::new(shape, spot)
}

fn holding(reader: &Reader<'_>, node: &Node, kind: &str) -> Tree {
    let unknown = || Tree::new(Shape::Unknown, &node.spot);
    let (what, known) = match kind {
        "do" => ("a `do` step", const { holds_steps!("do") }),
        "in_parallel" => ("an `in_parallel` step", const { holds_steps!("in_parallel") }),
        _ => ("a `try` step", const { holds_steps!("try") }),
    };
    let Some(fields) = reader.fields(node, what, known) else {
        return unknown();
    };
    let (timeout, attempts) = step::modifiers(&fields);
    let Some(value) = fields.required(kind, "do: [{ task: test, … }]") else {
        return unknown();
    };
    let shape = match kind {
        "try" => Shape::Try(Box::new(read(reader, value))),
        "do" => Shape::Do(list_of(reader, value, "`do`")),
        _ => parallel(reader, value),
    };
    Tree {
        timeout,
        attempts: attempts.unwrap_or(1),
        ..Tree::new(shape, &node.spot)
    }
}

fn list_of(reader: &Reader<'_>, node: &Node, what: &str) -> Vec<Tree> {
    let before = reader.count();
    let items = reader.items(node, what);
    // An `across` of loaded values may have none.
    if items.is_empty() && reader.count() == before && reader.depth().is_none() {
        let help = "add one: `- task: test`, with its `config`".to_owned();
        reader.report(&node.spot, "empty", format!("{what} has no step"), help);
    }
    items.iter().map(|item| read(reader, item)).collect()
}

/// A list of steps, or a map with what else there is to say.
fn parallel(reader: &Reader<'_>, node: &Node) -> Shape {
    const KEYS: Known = Known::of(&["steps", "limit", "fail_fast", OWN_VARIABLES]);
    if !matches!(node.value, Value::Map(_)) {
        return Shape::InParallel {
            steps: list_of(reader, node, "`in_parallel`"),
            limit: AT_ONCE,
            fail_fast: false,
            across: None,
        };
    }
    let Some(fields) = reader.fields(node, "`in_parallel`", KEYS) else {
        return Shape::Unknown;
    };
    let limit = fields.read("limit", "number of steps", at_once).unwrap_or(AT_ONCE);
    let fail_fast = fields.flag("fail_fast").unwrap_or(false);
    let Some(steps) = fields.required("steps", "steps: [{ task: test, … }]") else {
        return Shape::Unknown;
    };
    let across = fields.get(OWN_VARIABLES).and_then(|of| match &of.value {
        Value::Map(entries) => entries
            .first()
            .and_then(|(name, values)| AcrossValues::of(name, values)),
        _ => None,
    });
    Shape::InParallel {
        steps: list_of(reader, steps, "`steps`"),
        limit,
        fail_fast,
        across,
    }
}

/// How many at once.
pub(super) fn at_once(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(number @ 1..=MAX_AT_ONCE) => Ok(number),
        _ => Err("write a whole number from 1 to 256"),
    }
}

fn no_kind(reader: &Reader<'_>, spot: &Spot, keys: &[(&str, &Spot)]) {
    if let Some((_, spot)) = keys.iter().find(|(name, _)| *name == "set_pipeline") {
        let help = "a run has the pipeline of its file: run that of the other file".to_owned();
        let message = "`set_pipeline` has nothing to set: there is no server that keeps pipelines";
        return reader.report(spot, "not supported", message, help);
    }
    let close = keys
        .iter()
        .find_map(|(name, spot)| Some((name, spot, closest(name, &STEPS)?)));
    match close {
        Some((name, spot, close)) => reader.report(
            spot,
            "unknown key",
            format!("unknown step `{name}`"),
            format!("did you mean `{close}`?"),
        ),
        None => {
            let spot = keys.first().map_or(spot, |(_, spot)| spot);
            reader.report(
                spot,
                "",
                "a step has neither `task` nor `build_image`, nor does it hold other steps",
                "start it with `- task: NAME`, `- build_image:`, `- get: NAME`, `- put: NAME`, `- load_var: NAME`, `- do:`, `- in_parallel:` or `- try:`".to_owned(),
            );
        }
    }
}

/// Gives names to builds that have none, and numbers steps of one name: containers are called after their steps. So are the
/// volumes of artifacts that are made more than once, the first one's after the artifact.
pub(super) fn names(reader: &Reader<'_>, whole: &mut Tree) {
    let mut leaves = Vec::new();
    whole.leaves_mut(&mut leaves);
    let mut taken: BTreeSet<Name> = BTreeSet::new();
    let mut unnamed = Vec::new();
    for (at, read) in leaves.iter().enumerate() {
        let Some(At { value, spot }) = &read.name else {
            unnamed.push((at, read.spot.clone()));
            continue;
        };
        if !taken.insert(value.clone()) {
            unnamed.push((at, spot.clone()));
        }
    }
    for (at, spot) in unnamed {
        let Some(read) = leaves.get_mut(at) else { continue };
        let Some(step) = &mut read.step else { continue };
        let numbered = (2..).map(|number| Name::new(format!("{}-{number}", step.name)));
        // A name that is too long to be numbered has no free one.
        let free = std::iter::once(Ok(step.name.clone()))
            .chain(numbered)
            .take_while(Result::is_ok)
            .flatten()
            .find(|name| !taken.contains(name));
        match free {
            Some(name) => {
                taken.insert(name.clone());
                step.name = name;
            }
            None => {
                too_long(reader, &spot);
            }
        }
    }
    volumes(leaves);
    numbered(reader, whole);
}

pub(super) fn too_long(reader: &Reader<'_>, spot: &Spot) {
    let help = "give it a shorter name".to_owned();
    reader.report(spot, "", "the step's name is too long to be numbered", help);
}

/// Refuses names that steps of an `across` get when it runs.
fn numbered(reader: &Reader<'_>, whole: &Tree) {
    let mut across = Vec::new();
    whole.across(&mut across);
    if across.is_empty() {
        return;
    }
    let (mut within, mut all) = (Vec::new(), Vec::new());
    across.iter().for_each(|across| across.one.leaves(&mut within));
    whole.leaves(&mut all);
    for read in all {
        let Some(name) = read.step.as_ref().map(|step| &step.name) else {
            continue;
        };
        let taken = |of: &&Read| of.step.as_ref().is_some_and(|of| loaded::is_numbered(name, &of.name));
        if within.iter().any(taken) {
            let message = format!("the name `{name}` is one that a step of an `across` gets");
            reader.report(&read.spot, "", message, "rename it".to_owned());
        }
    }
}

/// Says what the volumes of artifacts are called: as they are, or after their step where there is one of that name already.
fn volumes(leaves: Vec<&mut Read>) {
    let mut made = BTreeSet::new();
    let mut first = (None, BTreeMap::new());
    for read in leaves {
        let Some(step) = &mut read.step else { continue };
        if read.replaces && !matches!(step.action, Action::Put(_)) {
            // One of those that are one step several times, which fill the same volumes.
            (step.base, step.volumes) = first.clone();
            continue;
        }
        step.base = Some(step.name.clone());
        for At { value: artifact, .. } in &read.outputs {
            let is_input = read.inputs.iter().any(|input| input.value == *artifact);
            if made.insert(artifact.clone()) && !is_input {
                step.volumes.insert(artifact.clone(), artifact.clone());
            }
        }
        first = (step.base.clone(), step.volumes.clone());
    }
}
