//! The `orchestra` command: runs pipelines and builds images on container engines.
//!
//! Arguments ([`args`]) and configuration ([`config`]) decide which driver is made ([`drivers`]); each command has a module
//! of its name; what happens comes back as events that [`progress`] shows; how it ends is an [`exit`].

mod args;
mod build;
mod caches;
mod config;
mod console;
mod context;
mod doctor;
mod drivers;
mod duration;
mod exit;
mod gc;
mod graph;
mod init;
mod interrupt;
mod log;
mod progress;
mod report;
mod run;
mod secrets;
mod state;
mod validate;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::args::{Cli, Command};
use crate::exit::{Exit, Failure};

fn main() -> ExitCode {
    // No debugger and no core dump sees what this process holds. Where it can't be had, a program of the same user could
    // read it anyway.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    log::start_telling_panics();
    let cli = Cli::parse();
    let json = match &cli.command {
        Command::Run(args) => args.show.json,
        Command::Build(args) => args.show.json,
        Command::Validate(_) | Command::Graph(_) | Command::Schema | Command::Init(_) => false,
        Command::Secrets(args) => args.json(),
        Command::Doctor(args) => args.json,
        Command::Gc(args) => args.json,
        Command::Caches(_) => false,
    };
    log::start()
        .and_then(|()| execute(cli.command))
        .unwrap_or_else(|failure| failure.report(json))
        .into()
}

fn execute(command: Command) -> Result<Exit, Failure> {
    // One thread is enough for waiting, and costs the least to start; what blocks has its own (progress, packing).
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::text(Exit::Engine, format!("start the runtime: {error}"), None))?;
    let outcome = match command {
        Command::Run(args) => runtime.block_on(run::run(args)),
        Command::Build(args) => runtime.block_on(build::run(*args)),
        Command::Validate(args) => runtime.block_on(validate::run(&args)),
        Command::Graph(args) => runtime.block_on(graph::run(&args)),
        Command::Schema => graph::schema(),
        Command::Init(args) => init::run(&args),
        Command::Secrets(args) => runtime.block_on(secrets::run(args)),
        Command::Doctor(args) => runtime.block_on(doctor::run(args)),
        Command::Gc(args) => runtime.block_on(gc::run(args)),
        Command::Caches(args) => runtime.block_on(caches::run(args)),
    };
    // Nothing that is still waited for in the background is worth waiting for.
    runtime.shutdown_background();
    outcome
}
