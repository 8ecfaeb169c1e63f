//! Running programs: finding them, and turning their failures into errors that say which one it was.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::signals;

/// Where daemons are looked for besides `PATH`, which for some users lacks them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The file that a program's name stands for.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A `PATH` that has the folders of daemons too.
pub(crate) fn path_with_sbin() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:{}", SBIN.join(":"))
}

/// A command without the variables that `cargo run` has set for xtask: a cargo among its descendants would
/// take them for a change, and build again what looks at them.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(&*name);
        }
    }
    command
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command whose output the user sees; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    succeeded(command, status)
}

/// Runs a command whose output the user sees.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    let mut child = spawn(command)?;
    let _foreground = signals::foreground(&child);
    Ok(child.wait()?)
}

/// Runs a command, shows its standard output line by line as it comes, and returns it with the exit status.
pub(crate) fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let _foreground = signals::foreground(&child);
    let mut text = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let mut line = Vec::new();
        while stdout.read_until(b'\n', &mut line)? > 0 {
            std::io::stdout().write_all(&line)?;
            text.push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    }
    Ok((child.wait()?, text))
}

/// Runs a command and returns its standard output; its error output is shown only when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    output_beside(command, Stdio::piped())
}

/// Runs a command and returns its standard output; the user sees its error output as it comes.
pub(crate) fn output_with_progress(command: &mut Command) -> Result<String> {
    output_beside(command, Stdio::inherit())
}

fn output_beside(command: &mut Command, stderr: Stdio) -> Result<String> {
    let child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr))?;
    let _foreground = signals::foreground(&child);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{}", show(command), output.status, stderr.trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn spawn(command: &mut Command) -> Result<Child> {
    signals::check()?;
    command
        .spawn()
        .with_context(|| format!("cannot start `{}`", show(command)))
}

/// Makes an exit status other than 0 an error.
pub(crate) fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed: {status}", show(command));
    }
    Ok(())
}

/// A command as a person would type it. How it gets into a sandbox, by `xtask enter OWNER --`, is left out.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words: Vec<_> = std::iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    match words.as_slice() {
        [_, enter, _, dashes, rest @ ..] if enter == "enter" && dashes == "--" => rest.join(" "),
        words => words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_the_way_into_its_sandbox() {
        assert_eq!(
            show(Command::new("/usr/bin/cargo").args(["test", "--", "x"])),
            "cargo test -- x"
        );
        let entering = ["enter", "12", "--", "cargo", "test", "--", "x"];
        assert_eq!(show(Command::new("/x/xtask").args(entering)), "cargo test -- x");
    }
}
