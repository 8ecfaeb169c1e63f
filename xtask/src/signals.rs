//! Ctrl-C and its relatives: the command in the foreground is let go first, then the sandboxes, then xtask.
//!
//! A terminal sends Ctrl-C to the command in the foreground too, which may have to clean up and needs the engine
//! for that. So it is waited for, up to a limit; a second signal, or one that asks for a quick end, cuts that short.

use std::{
    process::{self, Child},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::sandbox;

/// How long a command that was interrupted has to clean up.
const GRACE: Duration = Duration::from_secs(30);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The process id of the command in the foreground, or 0.
static FOREGROUND: AtomicI32 = AtomicI32::new(0);

/// Starts listening for signals.
pub(crate) fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            end(signal, &mut signals);
        }
    });
    Ok(())
}

/// Fails once a signal has come, so that nothing more is started.
pub(crate) fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Marks a child as the command in the foreground until the mark is dropped.
pub(crate) fn foreground(child: &Child) -> Foreground {
    FOREGROUND.store(i32::try_from(child.id()).unwrap_or_default(), Ordering::SeqCst);
    Foreground(())
}

/// See [`foreground`].
#[derive(Debug)]
pub(crate) struct Foreground(());

impl Drop for Foreground {
    fn drop(&mut self) {
        FOREGROUND.store(0, Ordering::SeqCst);
    }
}

fn end(signal: i32, signals: &mut Signals) {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let command = || Pid::from_raw(FOREGROUND.load(Ordering::SeqCst));
    if signal == SIGINT {
        let deadline = Instant::now() + GRACE;
        while command().is_some() && Instant::now() < deadline && signals.pending().next().is_none() {
            thread::sleep(Duration::from_millis(20));
        }
    } else if let Some(command) = command() {
        // Not sent by a terminal, so the command has not got it.
        let _ = kill_process(command, Signal::TERM);
    }
    sandbox::stop_all();
    process::exit(128 + signal);
}
