//! Counts of tests, added up from what the test programs themselves say.

use std::{fmt, iter::Sum, ops::Add, process::Command};

use anyhow::{Result, bail};

use crate::{cargo::TestProgram, process, term};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds up the lines that close each test program's output:
    /// `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
    pub(crate) fn parse(output: &str) -> Self {
        let lines = output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "));
        lines.map(Self::parse_line).sum()
    }

    fn parse_line(line: &str) -> Self {
        let words: Vec<&str> = line.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        let before = |what: &str| words.windows(2).find(|pair| pair[1] == what).map(|pair| pair[0]);
        let count = |what: &str| before(what).and_then(|number| number.parse().ok()).unwrap_or_default();
        Self {
            passed: count("passed"),
            failed: count("failed"),
            skipped: count("ignored"),
        }
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// How a check ended. A failure is no error yet, as the counts of a failed run matter too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// All 0 for a check that runs no tests.
    pub(crate) counts: Counts,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
}

impl Outcome {
    /// A failed check as an error.
    pub(crate) fn into_result(self) -> Result<()> {
        match self.failure {
            Some(failure) => bail!("{failure}"),
            None => Ok(()),
        }
    }
}

/// Runs a command that runs tests, and counts them.
pub(crate) fn run_tests(command: &mut Command) -> Result<Outcome> {
    run_tests_and_tell(command).map(|(outcome, _)| outcome)
}

/// Runs each of the programs with these arguments, whatever came of the others. `start` makes the command of a program.
pub(crate) fn run_programs(
    programs: &[TestProgram],
    args: &[String],
    start: impl Fn(&str) -> Command,
) -> Result<Outcome> {
    let (mut counts, mut failures) = (Counts::default(), Vec::new());
    for program in programs {
        term::note(&format!("tests of {}", program.name()));
        let (status, output) = process::tee(program.command(&start).args(args))?;
        counts = counts + Counts::parse(&output);
        if !status.success() {
            failures.push(format!("{}: {status}{}", program.name(), told(&output)));
        }
    }
    let failure = (!failures.is_empty()).then(|| failures.join("\n"));
    Ok(judge(counts, failure))
}

/// What a test program said of its failed tests, on lines of its own: whoever reads a long log from its end finds it there.
/// libtest and libtest-mimic have it between `failures:` and the line with the counts.
fn told(output: &str) -> String {
    /// Of an output that says more, the first lines: they name the first failure's cause.
    const LINES: usize = 60;
    let after = output.lines().skip_while(|line| *line != "failures:").skip(1);
    let lines = after.take_while(|line| !line.starts_with("test result: "));
    let lines: Vec<&str> = lines.filter(|line| !line.trim().is_empty()).collect();
    let shown = lines.iter().take(LINES).map(|line| format!("\n  {line}"));
    let left = lines.len().saturating_sub(LINES);
    let more = (left > 0).then(|| format!("\n  … {left} more lines"));
    shown.chain(more).collect()
}

/// As [`run_tests`], with what was written to standard output.
pub(crate) fn run_tests_and_tell(command: &mut Command) -> Result<(Outcome, String)> {
    let (status, output) = process::tee(command)?;
    let failure = process::succeeded(command, status).err();
    let failure = failure.map(|error| format!("{error}{}", told(&output)));
    Ok((judge(Counts::parse(&output), failure), output))
}

/// To have run no test is a failure too: a wrong filter, or tests that are not built, would look like success.
fn judge(counts: Counts, failure: Option<String>) -> Outcome {
    let none = (counts == Counts::default()).then(|| "it ran no test".to_owned());
    Outcome {
        counts,
        failure: failure.or(none),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_all_test_programs_add_up() {
        let output = "running 2 tests\ntest a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            error: something\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.20s\n";
        assert_eq!(Counts::parse(output).to_string(), "15 passed, 2 failed, 1 skipped");
    }

    #[test]
    fn what_only_looks_like_a_count_is_not_one() {
        assert_eq!(
            Counts::parse("5 passed; 0 failed\ntest results: 5 passed"),
            Counts::default()
        );
    }

    #[test]
    fn what_failed_is_told_with_its_reason() {
        let output = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b ----\nexpected 1, got 2\n\n\nfailures:\n    b\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored\nlater\n";
        assert_eq!(
            told(output),
            "\n  ---- b ----\n  expected 1, got 2\n  failures:\n      b"
        );
        assert_eq!(told("test a ... ok\ntest result: ok. 1 passed\n"), "");
        let long = format!("failures:\n{}", "line\n".repeat(100));
        let long = told(&long);
        assert!(long.ends_with("\n  … 40 more lines"), "{long}");
        assert_eq!(long.lines().count(), 62, "an empty one first: {long}");
    }

    #[test]
    fn a_run_without_tests_is_a_failure() {
        let one = Counts {
            passed: 1,
            ..Counts::default()
        };
        assert!(judge(one, None).into_result().is_ok());
        assert!(judge(one, Some("exit code 1".into())).into_result().is_err());
        assert!(judge(Counts::default(), None).into_result().is_err());
    }
}
