//! What xtask says: a line for each step that did real work, with the time it took, and errors.

#![expect(clippy::print_stderr, reason = "telling what goes on is this module's job")]

use std::time::Instant;

use anyhow::Result;

/// Runs `work` and prints a line with its name and time, for steps that are worth a line.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "" } else { "  FAILED" };
    eprintln!("xtask: {name:<48} {:>6.1} s{outcome}", start.elapsed().as_secs_f64());
    result
}

/// Prints a line of its own.
pub(crate) fn note(message: &str) {
    eprintln!("xtask: {message}");
}

/// Prints an error with its causes on one line, so that it can be grepped.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("xtask: error: {error:#}");
}
