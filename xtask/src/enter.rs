//! Running a command in a sandbox that runs already.
//!
//! `nsenter` does nearly this, but its waiting half dies by a Ctrl-C, and with it goes the engine that the
//! interrupted command needs to clean up. This one lets the command decide.

use std::{
    env, fs,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{Command, ExitCode, ExitStatus},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context, Result};
use rustix::{
    process::{chroot, fchdir},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use signal_hook::consts::SIGINT;

/// The namespaces of a sandbox under `/proc/OWNER/ns`, the one with the others' names last.
const NAMESPACES: [(&str, LinkNameSpaceType); 3] = [
    ("pid_for_children", LinkNameSpaceType::ProcessID),
    ("net", LinkNameSpaceType::Network),
    ("mnt", LinkNameSpaceType::Mount),
];

/// Moves into the namespaces that process `owner` has made, and runs the command there.
pub(crate) fn run(owner: u32, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("there is no command to run")?;
    // A handler, unlike an ignored signal, is not inherited by the command.
    signal_hook::flag::register(SIGINT, Arc::new(AtomicBool::new(false)))?;
    let folder = env::current_dir()?;
    let root = fs::File::open(format!("/proc/{owner}/root")).context("the sandbox has ended")?;
    for (name, kind) in NAMESPACES {
        let namespace = fs::File::open(format!("/proc/{owner}/ns/{name}")).context("the sandbox has ended")?;
        move_into_link_name_space(namespace.as_fd(), Some(kind))
            .with_context(|| format!("cannot enter the sandbox's {name} namespace"))?;
    }
    // Entering a mount namespace leads to its own root, which in a chroot is not ours.
    fchdir(&root)?;
    chroot(".")?;
    env::set_current_dir(&folder).with_context(|| format!("cannot return to {}", folder.display()))?;
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("cannot start `{program}`"))?;
    Ok(exit_code(status))
}

/// The exit code of a command as ours; a death by a signal is 128 and its number, as a shell has it.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
