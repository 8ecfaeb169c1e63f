//! The whole file: jobs, their steps, and what has to fit between the steps of a job.

use std::collections::{BTreeMap, BTreeSet};

use orchestra::Name;

use super::fields::Known;
use super::reader::{Reader, closest, list};
use super::step::Read;
use super::tree::{At, Node, Spot, Value};
use super::{build, task};
use crate::{JobPlan, Pipeline, Step, StepKind};

const TOP: Known = Known {
    later: &[
        "resources",
        "resource_types",
        "groups",
        "var_sources",
        "display",
        "assert",
    ],
    misplaced: &["task", "build_image"],
    belongs: "in a list under `plan`",
    extensions: true,
    ..Known::of(&["jobs", "plan"])
};

const JOB: Known = Known {
    later: &[
        "serial",
        "serial_groups",
        "max_in_flight",
        "public",
        "build_log_retention",
        "build_logs_to_retain",
        "disable_manual_trigger",
        "interruptible",
        "old_name",
        "on_success",
        "on_failure",
        "on_error",
        "on_abort",
        "ensure",
        "assert",
    ],
    ..Known::of(&["name", "plan"])
};

const STEPS: [&str; 2] = ["task", "build_image"];
const LATER: [&str; 8] = [
    "get",
    "put",
    "do",
    "in_parallel",
    "try",
    "across",
    "load_var",
    "set_pipeline",
];

/// Reads a file's tree. The result counts only if the reader has no problems.
pub(super) fn read(reader: &Reader<'_>, name: &str, root: &Node) -> Option<Pipeline> {
    let fields = reader.fields(root, "a pipeline", TOP)?;
    let jobs = match (fields.get("jobs"), fields.get("plan")) {
        (Some(_), Some(_)) => {
            let places = [fields.key("plan"), fields.key("jobs")].map(|spot| (spot.unwrap_or(fields.spot), "here"));
            reader.conflict(
                places,
                "a pipeline has either `jobs` or a `plan` of its own",
                "move the plan into a job",
            );
            return None;
        }
        (Some(node), None) => jobs(reader, node, fields.key("jobs").unwrap_or(fields.spot)),
        (None, Some(node)) => {
            let plan = plan(reader, node, fields.key("plan").unwrap_or(fields.spot));
            vec![JobPlan {
                name: job_name(name)?,
                plan,
            }]
        }
        (None, None) => {
            // A misspelt `plan` is told already.
            if reader.count() == 0 {
                let help = "start with `plan:` and a list of steps, or with `jobs:`".to_owned();
                reader.report(fields.spot, "", "the file has neither `plan` nor `jobs`", help);
            }
            return None;
        }
    };
    Some(Pipeline {
        name: name.to_owned(),
        jobs,
        secrets: Vec::new(),
    })
}

/// A bare plan's job is called after the file.
fn job_name(file: &str) -> Option<Name> {
    let stem = std::path::Path::new(file)
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    let name: String = stem
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    Name::new(name).or_else(|_| Name::new("main")).ok()
}

fn jobs(reader: &Reader<'_>, node: &Node, spot: &Spot) -> Vec<JobPlan> {
    let before = reader.count();
    let items = reader.items(node, "`jobs`");
    if items.is_empty() && reader.count() == before {
        reader.report(
            spot,
            "empty",
            "`jobs` has no job",
            "add one: `- name: test`, with a `plan`".to_owned(),
        );
    }
    let mut jobs = Vec::new();
    let mut names: BTreeMap<Name, Spot> = BTreeMap::new();
    for item in items {
        let Some(fields) = reader.fields(item, "a job", JOB) else {
            continue;
        };
        let name = fields
            .required("name", "name: test")
            .and_then(|_| fields.parse::<Name>("name"));
        let steps = fields.required("plan", "plan: [{ task: test, … }]");
        let plan = steps
            .map(|node| plan(reader, node, fields.key("plan").unwrap_or(fields.spot)))
            .unwrap_or_default();
        let Some(At { value: name, spot }) = name else { continue };
        match names.get(&name) {
            Some(first) => reader.conflict(
                [(&spot, "again here"), (first, "first here")],
                format!("two jobs are called `{name}`"),
                "rename one of them",
            ),
            None => _ = names.insert(name.clone(), spot),
        }
        jobs.push(JobPlan { name, plan });
    }
    jobs
}

fn plan(reader: &Reader<'_>, node: &Node, spot: &Spot) -> Vec<Step> {
    let before = reader.count();
    let items = reader.items(node, "`plan`");
    if items.is_empty() && reader.count() == before {
        reader.report(
            spot,
            "empty",
            "`plan` has no step",
            "add one: `- task: test`, with its `config`".to_owned(),
        );
    }
    let mut steps: Vec<Option<Read>> = items.iter().map(|item| step(reader, item)).collect();
    names(reader, &mut steps);
    artifacts(reader, &steps);
    steps.into_iter().filter_map(|read| read?.step).collect()
}

fn step(reader: &Reader<'_>, node: &Node) -> Option<Read> {
    let Value::Map(entries) = &node.value else {
        reader.wrong(&node.spot, "a step", "a map of keys and values", &node.value);
        return None;
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
            "a step is one of `task` and `build_image`, not both",
            "make two steps of it",
        );
        return None;
    }
    match kinds.first().map(|kind| kind.0) {
        Some("task") => task::read(reader, node),
        Some(_) => build::read(reader, node),
        None => {
            no_kind(reader, &node.spot, &keys);
            None
        }
    }
}

fn no_kind(reader: &Reader<'_>, spot: &Spot, keys: &[(&str, &Spot)]) {
    if let Some((name, spot)) = keys.iter().find(|(name, _)| LATER.contains(name)) {
        let help = "Concourse has it, Orchestra does not support it yet: steps are `task` and `build_image`".to_owned();
        return reader.report(
            spot,
            "not supported yet",
            format!("`{name}` steps are not supported yet"),
            help,
        );
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
                "a step has neither `task` nor `build_image`",
                "start it with `- task: NAME` or `- build_image:`".to_owned(),
            );
        }
    }
}

/// Gives names to builds that have none, and refuses two steps of one name: containers are called after their steps.
fn names(reader: &Reader<'_>, steps: &mut [Option<Read>]) {
    let mut taken: BTreeMap<Name, Spot> = BTreeMap::new();
    for At { value, spot } in steps.iter().flatten().filter_map(|read| read.name.as_ref()) {
        match taken.get(value) {
            Some(first) => {
                let places = [(spot, "again here"), (first, "first here")];
                reader.conflict(
                    places,
                    format!("two steps are called `{value}`"),
                    "rename one of them: a step's name is unique in its job",
                );
            }
            None => _ = taken.insert(value.clone(), spot.clone()),
        }
    }
    let unnamed = steps
        .iter_mut()
        .flatten()
        .filter(|read| read.name.is_none() && read.kind == StepKind::BuildImage);
    for read in unnamed {
        let Some(step) = &mut read.step else { continue };
        let numbered = (2..).map(|number| Name::new(format!("{}-{number}", step.name)));
        let free = std::iter::once(Ok(step.name.clone()))
            .chain(numbered)
            .flatten()
            .find(|name| !taken.contains_key(name));
        if let Some(name) = free {
            taken.insert(name.clone(), read.spot.clone());
            step.name = name;
        }
    }
}

/// Follows artifacts through the steps: each is made once, before it is used.
fn artifacts(reader: &Reader<'_>, steps: &[Option<Read>]) {
    let mut made: BTreeMap<&Name, &Spot> = BTreeMap::new();
    // Where a step could not be read, nobody knows what it makes.
    let mut all_known = true;
    for (index, read) in steps.iter().enumerate() {
        let Some(read) = read else {
            all_known = false;
            continue;
        };
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
            if !made.contains_key(name) && all_known {
                missing(reader, name, spot, &made, steps.get(index + 1..).unwrap_or_default());
            }
        }
        for At { value: name, spot } in &read.outputs {
            if let Some(input) = inputs.get(name) {
                let message = format!("`{name}` is both an input and an output of one step");
                let help = "an artifact is made once: give the output another name (its `path` may stay)";
                reader.conflict([(spot, "the output"), (input, "the input")], message, help);
            } else if let Some(first) = made.get(name) {
                let message = format!("two outputs are called `{name}`");
                let help = "an artifact is made once, by one step: rename one of them (its `path` may stay)";
                reader.conflict([(spot, "again here"), (first, "first here")], message, help);
            }
        }
        all_known &= read.complete;
        made.extend(read.outputs.iter().map(|at| (&at.value, &at.spot)));
    }
}

fn missing(reader: &Reader<'_>, name: &Name, spot: &Spot, made: &BTreeMap<&Name, &Spot>, later: &[Option<Read>]) {
    let message = format!("no earlier step makes the artifact `{name}`");
    let maker = later
        .iter()
        .flatten()
        .find_map(|read| read.outputs.iter().find(|output| output.value == *name));
    if let Some(maker) = maker {
        return reader.conflict(
            [(spot, "used here"), (&maker.spot, "made here")],
            message,
            "move the step that makes it up",
        );
    }
    let known: BTreeSet<&str> = made.keys().map(|name| name.as_str()).collect();
    let known: Vec<&str> = known.into_iter().collect();
    let help = match closest(name.as_str(), &known) {
        Some(close) => format!("did you mean `{close}`?"),
        None if known.is_empty() => format!("add `outputs: [{{ name: {name} }}]` to a task before it"),
        None => format!("made so far: {}", list(&known)),
    };
    reader.report(spot, "made by no step", message, help);
}
