//! The public conformance suite for orchestra drivers: one list of cases, each a promise of [`orchestra::Driver`]'s
//! documentation, to be run against any engine.
//!
//! A driver's crate has it as a test target of its own (`harness = false`):
//!
//! ```no_run
//! use orchestra_conformance::Settings;
//! use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
//!
//! fn main() -> std::process::ExitCode {
//!     let settings = Settings::from_env().expect("settings in the environment");
//!     let engine = MemoryEngine::new();
//!     engine.add_image(settings.image.as_str(), MemoryImage::busybox()).expect("an image");
//!     orchestra_conformance::main(settings, move || {
//!         let driver = engine.driver();
//!         async move { Ok(driver) }
//!     })
//! }
//! ```
//!
//! # How it works
//! [`main()`] takes the arguments of `cargo test` (filters, `--test-threads`, `--list`). Each [`Case`](suite::Case) gets a driver
//! from the function it was given, a job of its own and a deadline; after it the job is ended, and anything that then still
//! is listed fails it. A case that needs what [`Capabilities`](orchestra::Capabilities) or [`Settings`] lack is shown as
//! ignored, with the reason. No engine's name is in here.
//!
//! Some cases start the test target a second time: [`main()`] is to be the first thing it does.
//!
//! The suite is proven on [`memory`], a whole engine in memory (`examples/memory`), and on broken ones that it has to catch
//! (`tests/broken.rs`).

mod cases;
mod check;
mod context;
mod image;
mod registry;
mod settings;
pub mod suite;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use orchestra::{JobId, Result, SharedDriver};

pub use orchestra_memory as memory;
use orchestra_memory::tarball;

pub use check::{Failure, Outcome};
pub use context::Context;
pub use settings::{Connect, Registry, Settings, StartEngine, ThrowawayEngine};
pub use suite::{Suite, Verdict};

/// More than one case a processor: most of a case's time is the engine's.
const THREADS: usize = 4;

/// [`main()`] with [`Settings::from_env`]: the whole of a third party's test target.
///
/// ```no_run
/// # use orchestra::SharedDriver;
/// # async fn connect() -> orchestra::Result<SharedDriver> { unimplemented!() }
/// fn main() -> std::process::ExitCode {
///     orchestra_conformance::run(connect)
/// }
/// ```
pub fn run<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> ExitCode
where
    F: Future<Output = Result<SharedDriver>> + Send + 'static,
{
    match Settings::from_env() {
        Ok(settings) => main(settings, connect),
        Err(error) => say(&error.to_string()),
    }
}

/// Runs the suite as a test target's `main`, for the drivers that `connect` makes.
pub fn main<F>(settings: Settings, connect: impl Fn() -> F + Send + Sync + 'static) -> ExitCode
where
    F: Future<Output = Result<SharedDriver>> + Send + 'static,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return say(&format!("no runtime can be made: {error}")),
    };
    let suite = Suite::new(settings, connect);
    if let Ok(job) = std::env::var(cases::FIRST_PROCESS) {
        return match runtime.block_on(suite.first_process(&job)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => say(&why),
        };
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let suite = Arc::new(suite);
    let trials = Suite::cases().into_iter().map(|case| {
        let (suite, runtime) = (suite.clone(), runtime.handle().clone());
        Trial::ignorable_test(case.name, move || match runtime.block_on(suite.run(&case)) {
            Verdict::Passed => Ok(Completion::Completed),
            Verdict::Skipped(reason) => Ok(Completion::ignored_with(reason)),
            Verdict::Failed(why) => Err(Failed::from(why)),
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if arguments.list {
        return conclusion.exit_code();
    }
    match runtime.block_on(suite.leftovers()) {
        Ok(left) if left.is_empty() => conclusion.exit_code(),
        Ok(left) => say(&format!("after the last case the engine still holds {left:?}")),
        Err(error) => say(&format!("what is left can't be told: {error:?}")),
    }
}

#[expect(clippy::print_stderr, reason = "this is a program's main function")]
fn say(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(101)
}

impl Suite {
    /// The part of a case that runs in a process of its own, to be killed there.
    async fn first_process(&self, what: &str) -> std::result::Result<(), String> {
        let (job, name) = what
            .split_once(' ')
            .ok_or_else(|| format!("{what:?} is not a job and a name"))?;
        let job = JobId::new(job).map_err(|error| error.to_string())?;
        let context = self.context(job).await.map_err(|error| format!("{error:?}"))?;
        cases::first_process(context, name)
            .await
            .map_err(|failure| failure.to_string())
    }
}
