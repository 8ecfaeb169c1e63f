//! Measurements, side by side on one engine.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cargo::{self, cargo},
    environment::Environment,
    fixtures, process, term,
};

/// The programs that a measurement needs, as they are released.
#[derive(Debug)]
pub(crate) struct Programs {
    orchestra: PathBuf,
    bench: PathBuf,
}

/// Builds them.
pub(crate) fn build() -> Result<Programs> {
    let build = |package| cargo::executable(&format!("build --release --package={package}"));
    term::step("build orchestra and its benchmark for release", || {
        Ok(Programs {
            orchestra: build("orchestra-cli")?,
            bench: build("orchestra-bench")?,
        })
    })
}

/// Measures in the environment.
pub(crate) fn run(environment: &Environment, programs: &Programs, args: &[String]) -> Result<()> {
    process::run(
        environment
            .command(&programs.bench.display().to_string())
            .args(args)
            .current_dir(fixtures::repository())
            .env("ORCHESTRA_BIN", &programs.orchestra),
    )
}

/// Whether redaction is all that is to be measured, which needs no engine.
pub(crate) fn is_redact(args: &[String]) -> bool {
    let mut names = args.iter().filter(|arg| !arg.starts_with('-')).peekable();
    names.peek().is_some() && names.all(|name| name == "redact")
}

/// Measures redaction.
pub(crate) fn redact(args: &[String]) -> Result<()> {
    let options = args.iter().filter(|arg| arg.starts_with('-'));
    let bench = "bench --package=orchestra-secrets --bench=redact --";
    process::run(cargo(bench).args(options))
}
