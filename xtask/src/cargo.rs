//! Calls of cargo in the workspace.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{fixtures, process};

/// Makes cargo tell what it made, a line of JSON each, and what the compiler complains of as ever.
const REPORT: &str = "--message-format=json-render-diagnostics";

/// A call of cargo with arguments that hold no spaces.
pub(crate) fn cargo(args: &str) -> Command {
    let mut command = process::command("cargo");
    command.current_dir(fixtures::repository()).args(args.split(' '));
    command
}

/// Builds one program by a cargo command, and returns where cargo put it. What stands behind `--` is for rustc.
pub(crate) fn executable(args: &str) -> Result<PathBuf> {
    let args = match args.split_once(" -- ") {
        Some((args, for_rustc)) => format!("{args} {REPORT} -- {for_rustc}"),
        None => format!("{args} {REPORT}"),
    };
    artifacts(&args)?
        .iter()
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("`cargo {args}` made no program"))
}

/// What a cargo command that has [`REPORT`] made.
fn artifacts(args: &str) -> Result<Vec<Value>> {
    let output = process::output_with_progress(&mut cargo(args))?;
    let messages = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages
        .filter(|message| message["reason"] == "compiler-artifact")
        .collect())
}

/// All programs and tests of the workspace.
#[derive(Debug)]
pub(crate) struct Built {
    programs: Vec<(String, PathBuf)>,
    tests: Vec<TestProgram>,
}

/// A program that runs tests.
#[derive(Clone, Debug)]
pub(crate) struct TestProgram {
    package: String,
    /// The package's folder, in which cargo runs it, too.
    folder: PathBuf,
    /// What it was made of: `tests/cli/main.rs`.
    source: String,
    program: PathBuf,
}

impl Built {
    /// Builds them. All at once, however few are wanted: another selection of packages gives the dependencies that they share other
    /// features, with which cargo compiles these once more.
    pub(crate) fn make() -> Result<Self> {
        let mut built = Self {
            programs: Vec::new(),
            tests: Vec::new(),
        };
        for artifact in artifacts(&format!("build --workspace --bins --tests {REPORT}"))? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let Some(program) = artifact["executable"].as_str().map(PathBuf::from) else {
                continue;
            };
            let name = text(&artifact["target"]["name"]);
            if artifact["profile"]["test"] != true {
                built.programs.push((name, program));
                continue;
            }
            let folder = PathBuf::from(text(&artifact["manifest_path"]));
            let folder = folder.parent().unwrap_or(Path::new("/")).to_owned();
            let source = PathBuf::from(text(&artifact["target"]["src_path"]));
            // `path+file:///FOLDER#NAME@VERSION`, or `#VERSION` where the folder has the package's name.
            let id = text(&artifact["package_id"]);
            let id = id.rsplit(['#', '/']).next().unwrap_or_default();
            let in_id = id.split_once('@').map(|(name, _)| name.to_owned());
            built.tests.push(TestProgram {
                package: in_id.unwrap_or_else(|| folder.file_name().unwrap_or_default().display().to_string()),
                source: source.strip_prefix(&folder).unwrap_or(&source).display().to_string(),
                folder,
                program,
            });
        }
        built
            .tests
            .sort_by(|a, b| (&a.package, &a.source).cmp(&(&b.package, &b.source)));
        Ok(built)
    }

    /// The program of this name.
    pub(crate) fn program(&self, name: &str) -> Result<&Path> {
        let found = self.programs.iter().find(|(known, _)| known == name);
        found
            .map(|(_, program)| program.as_path())
            .with_context(|| format!("the workspace has no program {name}"))
    }

    /// The tests of the packages that `wanted` says yes to.
    pub(crate) fn tests_of(&self, wanted: impl Fn(&str) -> bool) -> Vec<TestProgram> {
        let tests = self.tests.iter().filter(|test| wanted(&test.package));
        tests.cloned().collect()
    }
}

impl TestProgram {
    /// Whether it is made of this file of its package.
    pub(crate) fn is_of(&self, source: &str) -> bool {
        self.source == source
    }

    /// What it is, as a person finds it.
    pub(crate) fn name(&self) -> String {
        let folder = self.folder.strip_prefix(fixtures::repository()).unwrap_or(&self.folder);
        folder.join(&self.source).display().to_string()
    }

    /// The command that runs it, as cargo would. `start` makes the command of a program.
    pub(crate) fn command(&self, start: impl FnOnce(&str) -> Command) -> Command {
        let mut command = start(&self.program.display().to_string());
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}
