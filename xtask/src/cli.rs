//! The command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::{
    bench, checks, demo, e2e,
    engine::{Driver, Engine},
    enter,
    environment::Environment,
    guard, matrix, packages, process, signals, throwaway, typescript,
};

/// Provisions engines, runs the tests and measures, for those who work on orchestra.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Args)]
struct Target {
    /// The driver under test.
    #[arg(long, value_enum, default_value_t = Driver::Docker)]
    driver: Driver,
    /// The engine's generation [default: host where such an engine runs already, else bookworm]
    #[arg(long, value_enum)]
    engine: Option<Engine>,
}

impl Target {
    fn engine(self) -> Engine {
        self.engine.unwrap_or_else(|| Engine::default_here(self.driver))
    }

    fn prepare(self) -> Result<()> {
        packages::prepare(self.driver, self.engine())
    }

    fn start(self) -> Result<Environment> {
        Environment::start(self.driver, self.engine())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing to build and test
    Setup,
    /// Build and run an image by examples/image-build.yml, and check the digest that it prints
    Demo {
        #[command(flatten)]
        target: Target,
    },
    /// Run all checks: format, lints, unit, doc, and end-to-end tests on every engine that there is
    Test,
    /// Check the examples in TypeScript with the real compiler
    Types,
    /// Run the conformance suite and the end-to-end tests on one engine
    E2e {
        #[command(flatten)]
        target: Target,
        /// Arguments for the test programs, for example a filter
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Run the conformance suite on every driver and generation, and print a table of what came of it
    Matrix {
        /// Only this driver; may be given more than once
        #[arg(long = "driver", value_enum)]
        drivers: Vec<Driver>,
        /// Arguments for the suite, for example a filter
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Measure orchestra against the engine's own client, or by `redact` alone the redaction of logs, without an engine
    Bench {
        /// The driver; may be given more than once, for one table of all
        #[arg(long = "driver", value_enum, default_values_t = [Driver::Docker])]
        drivers: Vec<Driver>,
        /// The engines' generation [default: host where such an engine runs already, else bookworm]
        #[arg(long, value_enum)]
        engine: Option<Engine>,
        /// Arguments for the measuring program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run a command beside an engine, of which `DOCKER_HOST` or `CONTAINER_HOST` and `ORCHESTRA_TEST_*` tell it
    With {
        #[command(flatten)]
        target: Target,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Be the first process of a sandbox
    #[command(hide = true)]
    Guard { plan: PathBuf },
    /// Run a command in a sandbox
    #[command(hide = true)]
    Enter {
        owner: u32,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run one more engine for a test
    #[command(hide = true)]
    Throwaway {
        #[arg(long, value_enum)]
        driver: Driver,
        #[arg(long, value_enum)]
        engine: Engine,
        /// Give it the image that builds images, and room to do so
        #[arg(long)]
        builds: bool,
        folder: PathBuf,
    },
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    // These two do not end by signals, and have no threads before they are where they belong.
    match &cli.command {
        Command::Guard { plan } => return guard::main(plan),
        Command::Enter { owner, command } => return enter::run(*owner, command),
        _ => {}
    }
    signals::listen()?;
    match cli.command {
        Command::Setup => packages::setup()?,
        Command::Demo { target } => {
            target.prepare()?;
            let orchestra = demo::build()?;
            demo::run(&target.start()?, target.driver, &orchestra)?;
        }
        Command::Test => return checks::run(),
        Command::Types => typescript::check()?,
        Command::E2e { target, args } => {
            packages::prepare_tests(target.driver, target.engine())?;
            let programs = e2e::Programs::build()?;
            programs.run(&target.start()?, target.driver, &args)?.into_result()?;
        }
        Command::Matrix { drivers, args } => return matrix::run(&drivers, &args),
        Command::Bench { args, .. } if bench::is_redact(&args) => bench::redact(&args)?,
        Command::Bench { drivers, engine, args } => {
            let targets: Vec<Target> = drivers.into_iter().map(|driver| Target { driver, engine }).collect();
            targets.iter().try_for_each(|target| target.prepare())?;
            let programs = bench::build()?;
            let tables = targets
                .iter()
                .map(|target| bench::run(&target.start()?, target.driver, &programs, &args));
            bench::print(&tables.collect::<Result<Vec<_>>>()?);
        }
        Command::With { target, command } => return with(target, &command),
        Command::Throwaway {
            driver,
            engine,
            builds,
            folder,
        } => throwaway::run(driver, engine, builds, &folder)?,
        Command::Guard { .. } | Command::Enter { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn with(target: Target, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("there is no command to run")?;
    let environment = target.start()?;
    let status = process::status(environment.command(program).args(args))?;
    Ok(enter::exit_code(status))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_benchmark_gets_the_arguments_that_are_not_ours() {
        let cli = Cli::parse_from(["xtask", "bench", "--engine", "sid", "--only", "logs"]);
        let Command::Bench { drivers, engine, args } = cli.command else {
            panic!("parsed as something else");
        };
        assert_eq!((drivers, engine), (vec![Driver::Docker], Some(Engine::Sid)));
        assert_eq!(args, ["--only", "logs"]);
        assert!(!bench::is_redact(&args));
        assert!(bench::is_redact(&["redact".into(), "--rounds=3".into()]));
        assert!(!bench::is_redact(&["redact".into(), "logs".into()]) && !bench::is_redact(&[]));
    }

    #[test]
    fn a_command_keeps_its_options() {
        let cli = Cli::parse_from(["xtask", "with", "--engine", "trixie", "--", "ls", "--engine", "x"]);
        let Command::With { command, .. } = cli.command else {
            panic!("parsed as something else");
        };
        assert_eq!(command, ["ls", "--engine", "x"]);
    }
}
