//! The whole file: jobs, their steps, and what has to fit between the steps of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orchestra::Name;

use super::fields::{Fields, Known};
use super::reader::{Reader, closest, list};
use super::steps::{self, Tree};
use super::tree::{At, Node, Spot};
use super::{across, flow, resource};
use crate::{Hooks, JobPlan, Pipeline, Step};

pub(super) const TOP: Known = Known {
    later: &["var_sources"],
    without_meaning: &["groups", "display"],
    misplaced: &["task", "build_image"],
    belongs: "in a list under `plan`",
    extensions: true,
    ..Known::of(&["jobs", "plan", "resources", "resource_types", "assert"])
};

const ASSERT: Known = Known {
    misplaced: &["code", "stdout", "stderr"],
    belongs: "in the `assert` of a task",
    ..Known::of(&["execution"])
};

pub(super) const JOB: Known = Known {
    without_meaning: &[
        "public",
        "build_log_retention",
        "build_logs_to_retain",
        "disable_manual_trigger",
        "interruptible",
        "old_name",
    ],
    ..Known::of(&[
        "name",
        "plan",
        "serial",
        "serial_groups",
        "max_in_flight",
        "assert",
        "on_success",
        "on_failure",
        "on_abort",
        "on_error",
        "ensure",
    ])
};

/// Reads a file's tree. The result counts only if the reader has no problems.
pub(super) fn read(reader: &Reader<'_>, name: &str, root: &Node) -> Option<Pipeline> {
    let fields = reader.fields(root, "a pipeline", TOP)?;
    reader.set_resources(Arc::new(resource::read(reader, &fields)));
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
            let (plan, hooks, flow) = plan(reader, node, fields.key("plan").unwrap_or(fields.spot), &[]);
            let name = job_name(name)?;
            passed(reader, &[(name.clone(), flow)]);
            vec![JobPlan {
                name,
                plan,
                hooks,
                after: Vec::new(),
                serial_groups: Vec::new(),
                execution: None,
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
        execution: execution(reader, fields.get("assert")),
        is_graph: fields.get("resources").is_some(),
        digest: String::new(),
        notes: Vec::new(),
        warnings: Vec::new(),
        secrets: Vec::new(),
        wholes: Vec::new(),
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
    let mut flows = Vec::new();
    for item in items {
        let Some(fields) = reader.fields(item, "a job", JOB) else {
            continue;
        };
        let name = fields
            .required("name", "name: test")
            .and_then(|_| fields.parse::<Name>("name"));
        let steps = fields.required("plan", "plan: [{ task: test, … }]");
        let after = steps::HOOKS.map(|hook| fields.get(hook));
        let (plan, hooks, flow) = steps
            .map(|node| plan(reader, node, fields.key("plan").unwrap_or(fields.spot), &after))
            .unwrap_or_default();
        let serial_groups = alone(reader, &fields);
        let execution = execution(reader, fields.get("assert"));
        let Some(At { value: name, spot }) = name else { continue };
        match names.get(&name) {
            Some(first) => reader.conflict(
                [(&spot, "again here"), (first, "first here")],
                format!("two jobs are called `{name}`"),
                "rename one of them",
            ),
            None => _ = names.insert(name.clone(), spot),
        }
        flows.push((name.clone(), flow));
        jobs.push(JobPlan {
            name,
            plan,
            hooks,
            after: Vec::new(),
            serial_groups,
            execution,
        });
    }
    let mut after = passed(reader, &flows);
    for job in &mut jobs {
        job.after = after.remove(&job.name).unwrap_or_default();
    }
    jobs
}

/// `serial_groups`. How often a job may run at once says nothing to a run, which runs each once.
fn alone(reader: &Reader<'_>, fields: &Fields<'_, '_>) -> Vec<Name> {
    fields.flag("serial");
    fields.read("max_in_flight", "number of builds", steps::at_once);
    for key in ["serial", "max_in_flight"] {
        if let Some(spot) = fields.key(key) {
            reader.remark(spot, format!("`{key}` says nothing here: a run runs each job once"));
        }
    }
    let groups = fields.items("serial_groups").iter();
    groups
        .filter_map(|node| reader.parse(node, "an item of `serial_groups`"))
        .map(|group| group.value)
        .collect()
}

/// `assert.execution`.
fn execution(reader: &Reader<'_>, node: Option<&Node>) -> Option<Vec<Name>> {
    let fields = reader.fields(node?, "`assert`", ASSERT)?;
    fields.get("execution")?;
    let names = fields.items("execution").iter();
    Some(
        names
            .filter_map(|node| reader.parse(node, "an item of `execution`"))
            .map(|name| name.value)
            .collect(),
    )
}

/// What a job has to do with resources: which ones it gets or puts, and which jobs a version has to have passed.
#[derive(Default)]
struct Flow {
    resources: Vec<Name>,
    passed: Vec<(Name, At<Name>)>,
}

/// The jobs that each job comes after.
fn passed(reader: &Reader<'_>, flows: &[(Name, Flow)]) -> BTreeMap<Name, Vec<Name>> {
    let mut after: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
    for (job, flow) in flows {
        for (resource, At { value: earlier, spot }) in &flow.passed {
            let Some((_, found)) = flows.iter().find(|(name, _)| name == earlier) else {
                let names: Vec<&str> = flows.iter().map(|(name, _)| name.as_str()).collect();
                let help = match closest(earlier.as_str(), &names) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("there are {}", list(&names)),
                };
                reader.report(spot, "", format!("there is no job `{earlier}`"), help);
                continue;
            };
            if !found.resources.contains(resource) {
                let message =
                    format!("no version of `{resource}` passes the job `{earlier}`, which neither gets nor puts it");
                let help = format!("add `- get: {resource}` to `{earlier}`, or name another job");
                reader.report(spot, "", message, help);
            } else if reaches(earlier, job, &after) || earlier == job {
                let message = format!("`{job}` and `{earlier}` wait for each other");
                reader.report(spot, "", message, "remove one of the `passed`".to_owned());
            } else {
                let jobs = after.entry(job.clone()).or_default();
                if !jobs.contains(earlier) {
                    jobs.push(earlier.clone());
                }
            }
        }
    }
    after
}

/// Whether `from` comes after `to`, at any distance. There is no cycle yet.
fn reaches(from: &Name, to: &Name, after: &BTreeMap<Name, Vec<Name>>) -> bool {
    let mut open = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(job) = open.pop() {
        if job == to {
            return true;
        }
        if seen.insert(job) {
            open.extend(after.get(job).into_iter().flatten());
        }
    }
    false
}

/// A job's steps and hooks, in the order of [`steps::HOOKS`].
fn plan(reader: &Reader<'_>, node: &Node, spot: &Spot, hooks: &[Option<&Node>]) -> (Vec<Step>, Hooks, Flow) {
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
    let mut size = across::Size::default();
    let mut read = |node: &Node| {
        let node = across::expand(reader, node, &mut size);
        steps::read(reader, &node)
    };
    let plan: Vec<Tree> = items.iter().map(&mut read).collect();
    let hooks: Vec<Option<Tree>> = hooks.iter().map(|hook| hook.map(&mut read)).collect();
    let mut whole = Tree::job(plan, hooks, spot);
    steps::names(reader, &mut whole);
    flow::artifacts(reader, &whole);
    let mut leaves = Vec::new();
    whole.leaves(&mut leaves);
    let mut flow = Flow::default();
    for read in leaves {
        let Some(resource) = &read.resource else { continue };
        flow.resources.push(resource.clone());
        let passed = read.passed.iter().map(|job| (resource.clone(), job.clone()));
        flow.passed.extend(passed);
    }
    let (plan, hooks) = whole.into_job(reader).unwrap_or_default();
    (plan, hooks, flow)
}
