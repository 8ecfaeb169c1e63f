//! `orchestra gc`: removes what runs that died left in the engine.

use std::collections::BTreeMap;
use std::io::Write;

use orchestra::{Collected, GcOptions, Resource, ResourceKind};

use crate::args::GcArgs;
use crate::config::Config;
use crate::console::Console;
use crate::drivers;
use crate::exit::{Exit, Failure};
use crate::validate::count;

pub(crate) async fn run(args: GcArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.engine)?;
    let driver = drivers::connect(&config, None).await?;
    let mut options = GcOptions::default();
    options.older_than = args.older_than;
    options.dry_run = args.dry_run;
    let collected = orchestra::collect_garbage(driver.as_ref(), options).await?;
    let answer = if args.json {
        json(&collected, args.dry_run)
    } else {
        text(&collected, args.dry_run)
    };
    // Who does not read the answer has the exit code.
    std::io::stdout().write_all(answer.as_bytes()).ok();
    let mut exit = Exit::Success;
    for (resource, error) in collected
        .iter()
        .filter_map(|job| job.report.as_ref())
        .flat_map(|report| &report.remaining)
    {
        exit = Exit::Engine;
        let label = Console::detect().stderr.bad("error");
        writeln!(
            std::io::stderr(),
            "{label}: {} {} was not removed: {error}",
            kind(resource.kind),
            resource.id
        )
        .ok();
    }
    Ok(exit)
}

fn text(collected: &[Collected], dry_run: bool) -> String {
    if collected.is_empty() {
        return "nothing was left behind\n".to_owned();
    }
    let line = |job: &Collected| {
        let (verb, resources) = match &job.report {
            Some(report) => ("removed", &report.removed),
            None => ("would remove", &job.resources),
        };
        format!("{}: {verb} {}\n", job.job, counts(resources))
    };
    let mut text: String = collected.iter().map(line).collect();
    if dry_run {
        text.push_str("nothing was removed\n");
    }
    text
}

/// `2 containers, 1 volume`.
pub(crate) fn counts<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> String {
    let mut counts = BTreeMap::new();
    for resource in resources {
        *counts.entry(kind(resource.kind)).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(kind, number)| count(number, kind)).collect();
    if counts.is_empty() {
        "nothing".to_owned()
    } else {
        counts.join(", ")
    }
}

fn kind(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Container => "container",
        ResourceKind::Volume => "volume",
        ResourceKind::Image => "image",
        ResourceKind::Network => "network",
        _ => "thing",
    }
}

fn json(collected: &[Collected], dry_run: bool) -> String {
    let jobs: Vec<_> = collected
        .iter()
        .map(|job| {
            let report = job.report.as_ref();
            let remaining = report.map(|report| {
                let remaining = report.remaining.iter();
                remaining
                    .map(|(resource, error)| serde_json::json!({"resource": resource, "error": error.to_string()}))
                    .collect::<Vec<_>>()
            });
            serde_json::json!({
                "job": job.job,
                "found": job.resources,
                "removed": report.map(|report| &report.removed),
                "remaining": remaining,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({"dry_run": dry_run, "jobs": jobs}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_counted_by_kind() {
        let of = |kind| Resource::new(kind, "x");
        let found = [
            of(ResourceKind::Volume),
            of(ResourceKind::Container),
            of(ResourceKind::Volume),
        ];
        assert_eq!(counts(&found), "1 container, 2 volumes");
        assert_eq!(counts(&[]), "nothing");
        assert_eq!(text(&[], true), "nothing was left behind\n");
    }
}
