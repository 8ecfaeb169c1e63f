//! The conformance suite, the end-to-end tests of the binary and the driver's own tests, on one engine.

use std::path::Path;

use anyhow::Result;

use crate::{
    cargo::{Built, TestProgram},
    engine::{Driver, Engine},
    environment::Environment,
    process,
    results::{self, Outcome},
    term,
};

/// The package of the tests that any engine is put to.
pub(crate) const PACKAGE: &str = "orchestra-e2e";
/// That of the suite among its tests.
pub(crate) const SUITE: &str = "tests/conformance.rs";

/// What runs containers beside containerd's driver, some of whose tests need what that needs.
const OCI: &str = "orchestra-oci";

/// What runs on an engine.
#[derive(Debug)]
pub(crate) struct Programs {
    built: Built,
}

impl Programs {
    /// Builds the tests and the binary. That is done outside of the environment, whose network has no package registry.
    pub(crate) fn build() -> Result<Self> {
        term::step("build orchestra and its tests", Built::make).map(|built| Self { built })
    }

    /// The command itself.
    pub(crate) fn orchestra(&self) -> Result<&Path> {
        self.built.program("orchestra")
    }

    /// The tests of the driver and of all engines, and of what the driver does itself that is another's engine's.
    pub(crate) fn tests(&self, driver: Driver) -> Vec<TestProgram> {
        let own = |package: &str| driver == Driver::Containerd && package == OCI;
        self.built
            .tests_of(|package| package == PACKAGE || package == driver.package() || own(package))
    }

    /// Runs the tests of the workspace that need no engine, as those do that are [run](Self::run) on one of these.
    pub(crate) fn run_without_engine(&self, tested: &[(Driver, Engine)]) -> Result<Outcome> {
        let on_engine = |package: &str| {
            let mut drivers = tested.iter().map(|(driver, _)| driver.package());
            package == PACKAGE || drivers.any(|driver| driver == package)
        };
        let tests = self.built.tests_of(|package| !on_engine(package));
        results::run_programs(&tests, &[], |program| process::command(program))
    }

    /// Runs all of them against the environment's engine.
    pub(crate) fn run(&self, environment: &Environment, driver: Driver, args: &[String]) -> Result<Outcome> {
        self.run_tests(&self.tests(driver), environment, args)
    }

    /// Runs the conformance suite alone.
    pub(crate) fn run_suite(&self, environment: &Environment, driver: Driver) -> Result<Outcome> {
        let mut tests = self.tests(driver);
        tests.retain(|test| test.is_of(SUITE));
        self.run_tests(&tests, environment, &[])
    }

    fn run_tests(&self, tests: &[TestProgram], environment: &Environment, args: &[String]) -> Result<Outcome> {
        let orchestra = self.orchestra()?;
        results::run_programs(tests, args, |program| {
            let mut command = environment.command(program);
            command.env("ORCHESTRA_BIN", orchestra);
            command
        })
    }
}
