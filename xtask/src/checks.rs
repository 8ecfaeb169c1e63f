//! `cargo xtask test`: all that has to hold before a change lands.
//!
//! Every stage runs even when an earlier one failed, so that one run tells all. At the end stand the stages with
//! their times, and the number of tests, which is the sum of what the test programs reported.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    cargo::cargo,
    e2e,
    engine::{Driver, Engine},
    environment::Environment,
    packages, process,
    results::{self, Counts, Outcome},
    signals, term,
};

/// The checks that are one command of cargo and need no engine. The fast ones come first.
const STATIC: [(&str, &str); 2] = [
    ("format", "fmt --all --check -- -l"),
    ("lints", "clippy --workspace --all-targets -- --deny=warnings"),
];

/// A stage that has run.
struct Stage {
    name: String,
    outcome: Outcome,
    time: Duration,
}

/// Runs all stages; the exit code tells whether all passed.
pub(crate) fn run() -> Result<ExitCode> {
    let engines = engines();
    engines
        .iter()
        .try_for_each(|engine| packages::prepare(Driver::Docker, *engine))?;

    let mut stages = Vec::new();
    for (name, args) in STATIC {
        stages.push(stage(name, || {
            process::run(&mut cargo(args)).map(|()| Outcome::default())
        })?);
    }
    // What needs an engine is for the stages with one.
    let tests = "test --workspace --exclude=orchestra-e2e --exclude=orchestra-docker --no-fail-fast";
    stages.push(stage("unit and doc tests", || results::run_tests(&mut cargo(tests)))?);
    stages.push(stage("documentation", || {
        let mut doc = cargo("doc --workspace --no-deps");
        process::run(doc.env("RUSTDOCFLAGS", "--deny=warnings")).map(|()| Outcome::default())
    })?);
    for engine in engines {
        stages.push(stage(&format!("docker of {engine}"), || {
            let orchestra = e2e::build(Driver::Docker)?;
            let environment = Environment::start(Driver::Docker, engine)?;
            e2e::run(&environment, Driver::Docker, &orchestra, &[])
        })?);
    }
    Ok(report(&stages))
}

/// The user's engine alone, where there is one: on their machine nothing is to be installed. Else the oldest
/// generation and a newer one.
fn engines() -> Vec<Engine> {
    match Engine::default_here(Driver::Docker) {
        Engine::Host => vec![Engine::Host],
        default => vec![default, Engine::Trixie],
    }
}

/// Runs one stage. Only an interruption is an error.
fn stage(name: &str, work: impl FnOnce() -> Result<Outcome>) -> Result<Stage> {
    term::note(&format!("=== {name} ==="));
    let start = Instant::now();
    let outcome = work().unwrap_or_else(|error| {
        term::error(&error);
        Outcome {
            failure: Some(format!("{error:#}")),
            ..Outcome::default()
        }
    });
    signals::check()?;
    let time = start.elapsed();
    term::note(&format!(
        "=== {name}: {}, {:.1} s ===",
        verdict(&outcome),
        time.as_secs_f64()
    ));
    Ok(Stage {
        name: name.to_owned(),
        outcome,
        time,
    })
}

fn verdict(outcome: &Outcome) -> &str {
    if outcome.failure.is_none() { "ok" } else { "FAILED" }
}

#[expect(clippy::print_stdout, reason = "the summary is the result of the command")]
fn report(stages: &[Stage]) -> ExitCode {
    println!("\n{:<24} {:>10}  result", "stage", "time");
    for Stage { name, outcome, time } in stages {
        let counts = match outcome.counts {
            counts if counts == Counts::default() => String::new(),
            counts => counts.to_string(),
        };
        let (seconds, verdict) = (time.as_secs_f64(), verdict(outcome));
        println!("{name:<24} {seconds:>8.1} s  {verdict:<6}  {counts}");
    }
    let failures: Vec<String> = stages
        .iter()
        .filter_map(|stage| Some(format!("{}: {}", stage.name, stage.outcome.failure.as_ref()?)))
        .collect();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    let total: Counts = stages.iter().map(|stage| stage.outcome.counts).sum();
    println!("\n{total}");
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
