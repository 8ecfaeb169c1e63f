//! The conformance suite on the engine that `cargo xtask e2e` started, through its own driver.
//!
//! `ORCHESTRA_TEST_DRIVER` names the driver; without it nothing is tried. `ORCHESTRA_TEST_THROWAWAY` tells how one more
//! engine is started, and `ORCHESTRA_TEST_SMALL_DISK` how many bytes do not fit on that one's disk, if that is few.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "this is a test target's main function"
)]

use std::env;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Result, SharedDriver};
use orchestra_conformance::{Settings, ThrowawayEngine};
use orchestra_e2e::{KnownDriver, OwnEngine, Purpose};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

/// An engine of a case's own.
struct Throwaway(Arc<OwnEngine>);

impl Throwaway {
    /// Does with it what blocks.
    async fn blocking<T: Send + 'static>(
        work: impl FnOnce() -> orchestra_e2e::Result<T> + Send + 'static,
    ) -> Result<T> {
        let worked = spawn_blocking(work).await;
        worked.map_err(|error| failed(&error))?.map_err(|error| failed(&*error))
    }

    async fn start() -> Result<Self> {
        let engine = Self::blocking(|| OwnEngine::start(Purpose::Throwaway)).await?;
        Ok(Self(Arc::new(engine)))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.0.signal(signal).map_err(|error| failed(&*error))
    }

    /// Whether all threads are in the state `T` of proc_pid_stat(5).
    fn stopped(&self) -> Result<bool> {
        let pid = self.0.pid().map_err(|error| failed(&*error))?;
        let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
        Ok(threads.into_iter().flatten().flatten().all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
        }))
    }
}

fn failed(error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Engine, format!("the engine of the case's own: {error}"))
}

#[async_trait]
impl ThrowawayEngine for Throwaway {
    async fn connect(&self) -> Result<SharedDriver> {
        self.0.connect().await
    }

    async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    async fn restart(&self) -> Result<()> {
        let engine = self.0.clone();
        Self::blocking(move || engine.restart()).await
    }

    async fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // The signal's sender does not wait until the last thread has stopped.
        for _ in 0..500 {
            if self.stopped()? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(Error::new(ErrorKind::Engine, "the engine does not stop"))
    }

    async fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }
}

fn main() -> ExitCode {
    let Some(driver) = KnownDriver::chosen() else {
        println!("skipped: ORCHESTRA_TEST_DRIVER names no driver that is known here; run this by `cargo xtask e2e`");
        return ExitCode::SUCCESS;
    };
    let mut settings = Settings::from_env().expect("settings in the environment");
    if OwnEngine::is_given(Purpose::Throwaway) {
        settings.throwaway = Some(Arc::new(|| {
            Box::pin(async { Ok(Box::new(Throwaway::start().await?) as Box<dyn ThrowawayEngine>) })
        }));
    }
    // docker's daemon takes its containers along, unless it is configured otherwise.
    settings.survives_restart = driver != KnownDriver::Docker;
    settings.small_disk = env::var("ORCHESTRA_TEST_SMALL_DISK")
        .ok()
        .and_then(|bytes| bytes.parse().ok());
    let nowhere = env::temp_dir().join(format!("no-engine-listens-here-{}.sock", std::process::id()));
    settings.unreachable = Some(Arc::new(move || {
        let host = format!("unix://{}", nowhere.display());
        Box::pin(driver.connect(Some(host)))
    }));
    // It takes connections, as many as the kernel keeps waiting, and nobody reads them.
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("silent.sock");
    let listener = Arc::new(UnixListener::bind(&path).expect("a socket"));
    settings.silent = Some(Arc::new(move || {
        let (host, listener) = (format!("unix://{}", path.display()), listener.clone());
        Box::pin(async move {
            let connected = driver.connect(Some(host)).await;
            drop(listener);
            connected
        })
    }));
    orchestra_conformance::main(settings, move || driver.connect(None))
}
