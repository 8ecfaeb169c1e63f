//! Signals: the first ends everything politely, the second at once, the third leaves.

use std::io;
use std::time::Duration;

use orchestra::{ContainerId, ContainerState, JobId, SharedDriver, Signal};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::console::Echo;
use crate::exit::{Exit, Failure};

/// One Ctrl-C can arrive twice, from the terminal and from a parent that passes it on.
const ONE_KEY: Duration = Duration::from_millis(500);

/// Listens until it is dropped.
#[derive(Debug)]
pub(crate) struct Interrupts(JoinHandle<()>);

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes SIGINT, SIGTERM and SIGHUP cancel `cancel`; asked again, kills what `jobs` run on `driver`; asked a third time,
/// ends the program.
///
/// # Errors
/// If the system has no place for handlers.
pub(crate) fn listen(
    cancel: CancellationToken,
    driver: SharedDriver,
    jobs: watch::Receiver<Vec<JobId>>,
    notes: mpsc::Sender<String>,
) -> Result<Interrupts, Failure> {
    let mut signals = Signals::new()?;
    let say = move |text: &str| {
        // A reader that does not read must not keep signals from working.
        notes.try_send(text.to_owned()).ok();
    };
    Ok(Interrupts(tokio::spawn(async move {
        let (mut times, mut last) = (0, None);
        loop {
            signals.next().await;
            if last.is_some_and(|last: Instant| last.elapsed() < ONE_KEY) {
                continue;
            }
            last = Some(Instant::now());
            times += 1;
            match times {
                1 => {
                    say(
                        "interrupted: what runs is asked to end, and everything is removed; interrupt again to kill it",
                    );
                    cancel.cancel();
                }
                2 => {
                    say(
                        "interrupted again: what runs is killed, and everything is removed; interrupt again to leave it behind",
                    );
                    let begun = jobs.borrow().clone();
                    for job in begun {
                        tokio::spawn(kill(driver.clone(), job));
                    }
                }
                _ => {
                    use std::io::Write;
                    Echo::restore();
                    writeln!(io::stderr(), "\nleft without removing everything; `orchestra gc` does").ok();
                    std::process::exit(Exit::Interrupted as i32);
                }
            }
        }
    })))
}

/// Does work, and cancels it at a signal: for what has to be known before a run begins.
///
/// # Errors
/// As [`listen`].
pub(crate) async fn hearing<T>(work: impl AsyncFnOnce(&CancellationToken) -> T) -> Result<T, Failure> {
    let (mut signals, cancel) = (Signals::new()?, CancellationToken::new());
    let mut work = std::pin::pin!(work(&cancel));
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = signals.next() => cancel.cancel(),
        }
    }
}

/// SIGINT, SIGTERM and SIGHUP.
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: Option<unix::Signal>,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: handle(SignalKind::interrupt())?,
            terminate: handle(SignalKind::terminate())?,
            // nohup(1) means it.
            hangup: if hangup_is_ignored() {
                None
            } else {
                Some(handle(SignalKind::hangup())?)
            },
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = received(&mut self.hangup) => {}
        }
    }
}

fn handle(kind: SignalKind) -> Result<unix::Signal, Failure> {
    unix::signal(kind).map_err(|error| Failure::text(Exit::Engine, format!("listen to signals: {error}"), None))
}

async fn received(signal: &mut Option<unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, SignalKind::hangup()))
}

/// proc_pid_status(5): `SigIgn` is a mask in hexadecimal, bit 0 for signal 1.
fn ignores(status: &str, signal: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask >> (signal.as_raw_value() - 1) & 1 == 1
}

/// Ends the job's containers now. Its tasks notice, and remove them.
async fn kill(driver: SharedDriver, job: JobId) {
    let resources = driver.list(Some(&job)).await.unwrap_or_default();
    for resource in resources
        .iter()
        .filter(|resource| resource.state == Some(ContainerState::Running))
    {
        if let Ok(id) = ContainerId::new(resource.id.as_str())
            && let Err(error) = driver.signal_container(&id, Signal::KILL).await
        {
            tracing::warn!(container = %id, %error, "a container could not be killed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_read_from_the_kernels_mask() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert!(ignores(status, SignalKind::hangup()));
        assert!(!ignores(status, SignalKind::interrupt()));
        assert!(!ignores("", SignalKind::hangup()));
    }
}
