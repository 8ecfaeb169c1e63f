//! One more engine, for a test that kills or stops it.
//!
//! It has a sandbox of its own and no network, holds the busybox image, listens on `engine.sock` in the folder that
//! it is given, and writes its daemon's process id to `engine.pid` there, and what its driver is to be told besides
//! the socket to `engine.env`, a `NAME=VALUE` a line. It says `ready` on its standard output,
//! and ends when its standard input does.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
};

use anyhow::{Context, Result};
use rustix::net::sockopt::socket_peercred;

use crate::{
    engine::{Driver, Engine},
    environment::PrivateEngine,
    fixtures,
};

/// Runs the daemon until standard input ends.
pub(crate) fn run(driver: Driver, engine: Engine, folder: &Path) -> Result<()> {
    let private = PrivateEngine::start(driver, engine, None)?;
    let socket = &private.socket;
    let [link, pid_file, settings_file] = ["sock", "pid", "env"].map(|kind| folder.join(format!("engine.{kind}")));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    symlink(socket, &link).with_context(|| format!("cannot create {}", link.display()))?;
    // The daemon's own file has its number in the sandbox; the socket tells the one that it has for us and our caller.
    let pid = socket_peercred(UnixStream::connect(socket)?)?.pid;
    fs::write(&pid_file, pid.as_raw_nonzero().to_string())?;
    let settings = private.settings.iter().map(|(name, value)| format!("{name}={value}\n"));
    fs::write(&settings_file, settings.collect::<String>())?;

    writeln!(io::stdout(), "ready")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    drop(private);
    fixtures::remove(&link)?;
    fixtures::remove(&pid_file)?;
    fixtures::remove(&settings_file)
}
