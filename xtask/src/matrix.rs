//! `cargo xtask matrix`: the conformance suite on every engine that can be started here, as a table for the README.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    e2e,
    engine::{Driver, Engine},
    environment::Environment,
    packages, process,
    results::{self, Outcome},
    signals, term,
};

/// What stands before a capability's name where a case is not tried for the want of it.
const LACKS: &str = "the engine lacks ";

/// Runs the suite on each engine of these drivers, or of all; the exit code tells whether all passed.
#[expect(clippy::print_stdout, reason = "the table is the result of the command")]
pub(crate) fn run(drivers: &[Driver], args: &[String]) -> Result<ExitCode> {
    let drivers = if drivers.is_empty() { &Driver::ALL } else { drivers };
    let mut table = heading();
    let mut passed = true;
    for driver in drivers {
        let mut row = format!("| {driver} |");
        for engine in Engine::PRIVATE {
            term::note(&format!("=== {driver} of {engine} ==="));
            let cell = cell(*driver, engine, args).unwrap_or_else(|error| {
                term::error(&error);
                Cell {
                    text: "**not run**".to_owned(),
                    passed: false,
                }
            });
            signals::check()?;
            passed &= cell.passed;
            row.push_str(&format!(" {} |", cell.text));
        }
        table.push_str(&row);
        table.push('\n');
    }
    println!("\n{table}");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn heading() -> String {
    let names = Engine::PRIVATE.map(|engine| format!(" {engine} |")).concat();
    let rules = Engine::PRIVATE.map(|_| " --- |").concat();
    format!("| driver |{names}\n| --- |{rules}\n")
}

struct Cell {
    text: String,
    passed: bool,
}

fn cell(driver: Driver, engine: Engine, args: &[String]) -> Result<Cell> {
    packages::prepare(driver, engine)?;
    let programs = e2e::Programs::build()?;
    let orchestra = programs.orchestra()?;
    let environment = Environment::start(driver, engine)?;
    let mut doctor = environment.command(&orchestra.display().to_string());
    let told = process::output(doctor.args(["doctor", "--json", "--driver", driver.name()]))?;
    let told: Value = serde_json::from_str(&told).context("the doctor's answer is no JSON")?;
    let version = told["engine"]["engine_version"].as_str().unwrap_or("?");
    let tests = programs.tests(driver);
    let suite = tests.iter().find(|test| test.is_of(e2e::SUITE));
    let suite = suite.context("the workspace has no conformance suite")?;
    let mut suite = suite.command(|program| environment.command(program));
    suite.args(args);
    let (outcome, output) = results::run_tests_and_tell(&mut suite)?;
    Ok(Cell {
        text: summary(version, &outcome, &output),
        passed: outcome.failure.is_none(),
    })
}

/// `4.3.1: 150 passed, without seccomp`.
fn summary(version: &str, outcome: &Outcome, output: &str) -> String {
    let mut text = format!("{version}: {} passed", outcome.counts.passed);
    if outcome.failure.is_some() {
        text.push_str(&format!(", **{} failed**", outcome.counts.failed));
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in output.lines().filter_map(ignored) {
        *reasons.entry(reason.strip_prefix(LACKS).unwrap_or(reason)).or_default() += 1;
    }
    let reasons: Vec<String> = reasons
        .into_iter()
        .map(|(reason, cases)| format!("{reason} ({cases})"))
        .collect();
    if !reasons.is_empty() {
        text.push_str(&format!("; ruled out: {}", reasons.join(", ")));
    }
    text
}

/// Why a case was not tried, of the line that says so.
fn ignored(line: &str) -> Option<&str> {
    let (_, reason) = line.strip_prefix("test ")?.split_once("... ignored (")?;
    reason.strip_suffix(')')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Counts;

    #[test]
    fn what_is_ruled_out_is_told_with_its_reason() {
        let output = "test a ... ok\n\
            test b    ... ignored (the engine lacks seccomp)\n\
            test c    ... ignored (the engine lacks seccomp)\n\
            test d    ... ignored (no registry is given)\n";
        let mut outcome = Outcome {
            counts: Counts {
                passed: 1,
                failed: 0,
                skipped: 3,
            },
            failure: None,
        };
        let told = "4.3.1: 1 passed; ruled out: no registry is given (1), seccomp (2)";
        assert_eq!(summary("4.3.1", &outcome, output), told);
        outcome.failure = Some("exit code 101".to_owned());
        assert_eq!(summary("5", &outcome, ""), "5: 1 passed, **0 failed**");
    }
}
