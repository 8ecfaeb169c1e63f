//! Calls of cargo in the workspace.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{fixtures, process};

/// A call of cargo with arguments that hold no spaces.
pub(crate) fn cargo(args: &str) -> Command {
    let mut command = process::command("cargo");
    command.current_dir(fixtures::repository()).args(args.split(' '));
    command
}

/// Builds one program by a cargo command, and returns where cargo put it. What stands behind `--` is for rustc.
pub(crate) fn executable(args: &str) -> Result<PathBuf> {
    const REPORT: &str = "--message-format=json-render-diagnostics";

    let mut command = match args.split_once(" -- ") {
        Some((args, for_rustc)) => cargo(&format!("{args} {REPORT} -- {for_rustc}")),
        None => cargo(&format!("{args} {REPORT}")),
    };
    process::output_with_progress(&mut command)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .with_context(|| format!("`{}` made no program", process::show(&command)))
}
