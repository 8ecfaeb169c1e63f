//! The conformance suite, the end-to-end tests of the binary and the driver's own tests, on one engine.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    cargo::{self, cargo},
    engine::Driver,
    environment::Environment,
    fixtures, process,
    results::{self, Outcome},
    term,
};

/// The packages whose tests need an engine.
fn packages(driver: Driver) -> [String; 2] {
    ["orchestra-e2e", driver.package()].map(|package| format!("--package={package}"))
}

/// Builds the tests and the binary, and returns the binary. That is done outside of the environment, whose
/// network has no package registry.
pub(crate) fn build(driver: Driver) -> Result<PathBuf> {
    term::step("build orchestra and its end-to-end tests", || {
        process::run(cargo("test --no-run").args(packages(driver)))?;
        cargo::executable("build --package=orchestra-cli")
    })
}

/// Runs the tests against the environment's engine.
pub(crate) fn run(environment: &Environment, driver: Driver, orchestra: &Path, args: &[String]) -> Result<Outcome> {
    let mut command = environment.command("cargo");
    command
        .args(["test", "--offline", "--no-fail-fast"])
        .args(packages(driver))
        .arg("--")
        .args(args)
        .current_dir(fixtures::repository())
        .env("ORCHESTRA_BIN", orchestra);
    results::run_tests(&mut command)
}
