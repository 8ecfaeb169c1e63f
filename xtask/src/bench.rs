//! Measurements, side by side on one engine.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cargo::{self, cargo},
    engine::Driver,
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

/// Measures in the environment, and answers the table.
pub(crate) fn run(environment: &Environment, driver: Driver, programs: &Programs, args: &[String]) -> Result<String> {
    let mut bench = environment.command(&programs.bench.display().to_string());
    bench
        .args(args)
        .arg(format!("--name={driver}"))
        .current_dir(fixtures::repository())
        .env("ORCHESTRA_BIN", &programs.orchestra);
    let (status, output) = process::tee(&mut bench)?;
    process::succeeded(&bench, status)?;
    Ok(output)
}

/// Prints what the tables have as one, where there is more than one.
#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn print(tables: &[String]) {
    if tables.len() > 1 {
        println!("\n{}", joint(tables));
    }
}

/// The lines of tables of one heading, which has two lines.
fn joint(tables: &[String]) -> String {
    let rows = |table: &str| -> Vec<String> {
        let lines = table.lines().filter(|line| line.starts_with('|'));
        lines.map(str::to_owned).collect()
    };
    let heading = tables.iter().take(1).flat_map(|table| rows(table).into_iter().take(2));
    let below = tables.iter().flat_map(|table| rows(table).into_iter().skip(2));
    heading.chain(below).collect::<Vec<_>>().join("\n")
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

#[cfg(test)]
mod tests {
    use super::joint;

    #[test]
    fn tables_of_several_engines_become_one() {
        let table = |engine: &str| format!("{engine} 1.0\n\n| engine | ours |\n| --- | --- |\n| {engine} | 1 ms |\n");
        let both = joint(&[table("docker"), table("podman")]);
        assert_eq!(
            both,
            "| engine | ours |\n| --- | --- |\n| docker | 1 ms |\n| podman | 1 ms |"
        );
    }
}
