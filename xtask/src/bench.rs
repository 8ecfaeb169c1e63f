//! Measurements, side by side on one engine.

use std::path::PathBuf;

use anyhow::Result;

use crate::{cargo, environment::Environment, fixtures, process, term};

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
