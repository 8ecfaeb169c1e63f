//! The declarations of pipelines in TypeScript, checked against the examples by the real compiler: the npm package
//! `typescript` at the version and checksum that `tests/typescript/package-lock.json` pins.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};

use crate::{fixtures, process};

const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// Checks the examples, the starter, and that what is wrong is found.
pub(crate) fn check() -> Result<()> {
    let compiler = compiler()?;
    for project in ["examples/typescript", "typescript/starter", "tests/typescript"] {
        let mut command = process::command("node");
        command.arg(&compiler).args(["--project", project, "--pretty", "false"]);
        process::run(command.current_dir(fixtures::repository()))?;
    }
    Ok(())
}

/// The compiler's program.
fn compiler() -> Result<PathBuf> {
    let pinned = fixtures::repository().join("tests/typescript");
    let [package, lock] = FILES.map(|name| fs::read(pinned.join(name)));
    let key = fixtures::key(&[&package?, &lock?]);
    let folder = fixtures::get(&format!("typescript-{key}"), |folder| {
        if process::find("npm").is_none() || process::find("node").is_none() {
            bail!("there is no npm or no node: install nodejs and npm");
        }
        fs::create_dir_all(folder)?;
        for name in FILES {
            fs::copy(pinned.join(name), folder.join(name))?;
        }
        let mut install = process::command("npm");
        install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
        process::output(install.current_dir(folder))?;
        Ok(())
    })?;
    Ok(folder.join("node_modules/typescript/bin/tsc"))
}
