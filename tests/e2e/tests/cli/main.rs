//! The `orchestra` binary on a real engine, as a user meets it.
//!
//! Tests run side by side, each in runs of its own. When all have ended, the engine must hold what it held before.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says what it expected, and the suite says what it found"
)]

mod bad_input;
mod build_flags;
mod building;
mod engines;
mod interrupting;
mod reporting;
mod resuming;
mod running;
mod scripts;
mod secrets;
mod secrets_file;
mod secrets_left;
mod secrets_typed;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use orchestra_e2e::{Contents, Fixture};

use support::Test;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let fixture = match Fixture::from_env() {
        Ok(fixture) => fixture,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let tests: Vec<(&str, Test)> = [
        running::tests(),
        bad_input::tests(),
        interrupting::tests(),
        reporting::tests(),
        resuming::tests(),
        building::tests(),
        build_flags::tests(),
        engines::tests(),
        secrets::tests(),
        secrets_file::tests(),
        secrets_left::tests(),
        secrets_typed::tests(),
        scripts::tests(),
    ]
    .concat();
    let Some(fixture) = fixture else {
        println!("no engine is given by ORCHESTRA_TEST_DRIVER: run `cargo xtask e2e`");
        let ignored = tests
            .into_iter()
            .map(|(name, _)| Trial::test(name, || Ok(())).with_ignored_flag(true));
        return libtest_mimic::run(&arguments, ignored.collect()).exit_code();
    };
    let before = contents(&fixture);
    let trials = tests.into_iter().map(|(name, test)| {
        let fixture = fixture.clone();
        Trial::test(name, move || {
            test(&fixture);
            Ok(())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    match (before, contents(&fixture)) {
        (Ok(before), Ok(after)) if before == after => conclusion.exit_code(),
        (Ok(before), Ok(after)) => {
            eprintln!(
                "the tests left {:?} and lost {:?}",
                after.minus(&before),
                before.minus(&after)
            );
            ExitCode::FAILURE
        }
        (before, after) => {
            eprintln!("the engine does not tell what it holds: {before:?} {after:?}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that the engine holds; of one that others use too, what is ours.
fn contents(fixture: &Fixture) -> orchestra_e2e::Result<Contents> {
    if fixture.is_private {
        fixture.engine.contents()
    } else {
        fixture.engine.leftovers()
    }
}
