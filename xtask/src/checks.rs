//! `cargo xtask test`: all that has to hold before a change lands.
//!
//! Every stage runs even when an earlier one failed, so that one run tells all. At the end stand the stages with
//! their times, and the number of tests, which is the sum of what the test programs reported.

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    cargo::cargo,
    e2e,
    engine::{Driver, Engine},
    environment::Environment,
    folders::Folders,
    packages, process,
    results::{self, Counts, Outcome},
    signals, term, typescript,
};

/// The checks that are one command of cargo and need no engine. The fast ones come first.
const STATIC: [(&str, &str); 2] = [
    ("format", "fmt --all --check -- -l"),
    ("lints", "clippy --workspace --all-targets -- --deny=warnings"),
];

/// The engines that are started where the user has none: the oldest generation and a newer one of docker's, and of podman's
/// the one that rules out the fewest cases; containerd's oldest, which has the fewest services. `cargo xtask matrix` runs on
/// all.
const TESTED: [(Driver, Engine); 4] = [
    (Driver::Docker, Engine::Bookworm),
    (Driver::Docker, Engine::Trixie),
    (Driver::Podman, Engine::Trixie),
    (Driver::Containerd, Engine::Bookworm),
];

/// What is put to the conformance suite beside them: podman as most have it.
const CONFORMING: (Driver, Engine) = (Driver::PodmanRootless, Engine::Trixie);

/// Bytes that are wanted on the disk: a build from nothing was seen to take 6 GiB, and these engines with their images and the
/// suite's large file 8 GiB at most.
const ROOM: u64 = 16 << 30;

/// A stage that has run.
struct Stage {
    name: String,
    outcome: Outcome,
    time: Duration,
}

/// Runs all stages; the exit code tells whether all passed.
pub(crate) fn run() -> Result<ExitCode> {
    let tested = tested();
    let conforming = (tested == TESTED).then_some(CONFORMING);
    if conforming.is_some() {
        Folders::check_room(ROOM)?;
    }
    tested
        .iter()
        .chain(&conforming)
        .try_for_each(|(driver, engine)| packages::prepare_tests(*driver, *engine))?;

    let (mut stages, mut built) = (Vec::new(), None);
    for (name, args) in STATIC {
        stages.push(stage(name, || {
            process::run(&mut cargo(args)).map(|()| Outcome::default())
        })?);
    }
    stages.push(stage("TypeScript's compiler", || {
        typescript::check().map(|()| Outcome::default())
    })?);
    stages.push(stage("build", || {
        built = Some(e2e::Programs::build()?);
        Ok(Outcome::default())
    })?);
    if let Some(programs) = &built {
        stages.push(stage("unit tests", || programs.run_without_engine(&tested))?);
    }
    stages.push(stage("examples in documentation", || {
        results::run_tests(&mut cargo("test --workspace --doc --no-fail-fast"))
    })?);
    stages.push(stage("documentation", || {
        let mut doc = cargo("doc --workspace --no-deps");
        process::run(doc.env("RUSTDOCFLAGS", "--deny=warnings")).map(|()| Outcome::default())
    })?);
    if let Some(programs) = &built {
        for (driver, engine) in tested {
            stages.push(stage(&format!("{driver} of {engine}"), || {
                programs.run(&Environment::start(driver, engine)?, driver, &[])
            })?);
        }
        if let Some((driver, engine)) = conforming {
            stages.push(stage(&format!("{driver} of {engine}"), || {
                programs.run_suite(&Environment::start(driver, engine)?, driver)
            })?);
        }
    }
    Ok(report(&stages))
}

/// The user's own engines alone, where there are any: on their machine nothing is to be installed.
fn tested() -> Vec<(Driver, Engine)> {
    let own = Driver::ALL
        .into_iter()
        .map(|driver| (driver, Engine::default_here(driver)))
        .filter(|(_, engine)| *engine == Engine::Host);
    let mut own: Vec<_> = own.collect();
    // docker has a containerd of its own, in which nobody asked for tests.
    if own.len() > 1 && env::var_os(Driver::Containerd.variable()).is_none() {
        own.retain(|(driver, _)| *driver != Driver::Containerd);
    }
    // Whoever runs it, it is one engine.
    own.dedup_by_key(|(driver, _)| driver.name());
    if own.is_empty() { TESTED.to_vec() } else { own }
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
