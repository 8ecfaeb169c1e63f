//! One more engine, for a test that kills or stops it, or takes something to it from another one.
//!
//! It has a sandbox of its own and no network, holds the busybox image, and that of BuildKit if it is to build, listens on `engine.sock` in the folder that
//! it is given, and writes its daemon's process id to `engine.pid` there, and what its driver is to be told besides
//! the socket to `engine.env`, a `NAME=VALUE` a line. It says `ready` on its standard output,
//! and ends when its standard input does. A line `restart` there kills the daemon and starts it again, which is answered
//! by `ready` too, with its new process id in the file.

use std::{
    fs,
    io::{self, BufRead, Write},
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::net::sockopt::socket_peercred;
use serde_json::json;

use crate::{
    engine::{Driver, Engine},
    environment::{PrivateEngine, Purpose},
    fixtures,
    guard::RESTART,
};

/// What a test is told of it, as JSON: the driver's name, and the command to which its folder is to be added.
pub(crate) fn told(program: &Path, driver: Driver, engine: Engine, purpose: Purpose<'_>) -> String {
    let name = driver.name();
    let (driver, engine) = (driver.to_string(), engine.to_string());
    let program = program.display().to_string();
    let mut command = vec![&*program, "throwaway", "--driver", &driver, "--engine", &engine];
    if matches!(purpose, Purpose::Other) {
        command.push("--builds");
    }
    json!({"driver": name, "command": command}).to_string()
}

/// Runs the daemon until standard input ends.
pub(crate) fn run(driver: Driver, engine: Engine, builds: bool, folder: &Path) -> Result<()> {
    let purpose = if builds { Purpose::Other } else { Purpose::Throwaway };
    let mut private = PrivateEngine::start(driver, engine, purpose)?;
    let socket = private.socket.clone();
    let [link, pid_file, settings_file] = ["sock", "pid", "env"].map(|kind| folder.join(format!("engine.{kind}")));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    symlink(&socket, &link).with_context(|| format!("cannot create {}", link.display()))?;
    let settings = private.settings.iter().map(|(name, value)| format!("{name}={value}\n"));
    fs::write(&settings_file, settings.collect::<String>())?;

    let ready = || -> Result<()> {
        // The daemon's own file has its number in the sandbox; the socket tells the one that it has for us and our caller.
        let pid = socket_peercred(UnixStream::connect(&socket)?)?.pid;
        fs::write(&pid_file, pid.as_raw_nonzero().to_string())?;
        Ok(writeln!(io::stdout(), "ready")?)
    };
    ready()?;
    for line in io::stdin().lock().lines() {
        if line? == RESTART {
            private.restart()?;
            ready()?;
        }
    }
    drop(private);
    fixtures::remove(&link)?;
    fixtures::remove(&pid_file)?;
    fixtures::remove(&settings_file)
}
