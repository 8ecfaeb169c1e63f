//! The whole file: jobs, their steps, and what has to fit between the steps of a job.

use std::collections::BTreeMap;

use orchestra::Name;

use super::across;
use super::fields::Known;
use super::reader::Reader;
use super::steps::{self, Tree};
use super::tree::{At, Node, Spot};
use crate::{Hooks, JobPlan, Pipeline, Step};

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
        "assert",
    ],
    ..Known::of(&[
        "name",
        "plan",
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
            let (plan, hooks) = plan(reader, node, fields.key("plan").unwrap_or(fields.spot), &[]);
            vec![JobPlan {
                name: job_name(name)?,
                plan,
                hooks,
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
        let after = steps::HOOKS.map(|hook| fields.get(hook));
        let (plan, hooks) = steps
            .map(|node| plan(reader, node, fields.key("plan").unwrap_or(fields.spot), &after))
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
        jobs.push(JobPlan { name, plan, hooks });
    }
    jobs
}

/// A job's steps and hooks, in the order of [`steps::HOOKS`].
fn plan(reader: &Reader<'_>, node: &Node, spot: &Spot, hooks: &[Option<&Node>]) -> (Vec<Step>, Hooks) {
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
    steps::artifacts(reader, &whole);
    whole.into_job().unwrap_or_default()
}
