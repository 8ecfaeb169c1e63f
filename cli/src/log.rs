//! The program's own log, for who looks for a fault: `ORCHESTRA_LOG=debug` writes it to standard error.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use orchestra_secrets::Secrets;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, filter, fmt, registry};

use crate::exit::Failure;

/// The secrets that what is written is redacted by.
static SECRETS: OnceLock<Secrets> = OnceLock::new();

/// From now on, nothing that these hold for a job is written.
pub(crate) fn redact_by(secrets: &Secrets) {
    // One command has one set of secrets.
    SECRETS.set(secrets.clone()).ok();
}

/// Standard error, redacted. Each event is one call.
struct Clean;

impl Write for Clean {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(redacted(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// How long the secrets are waited for that a panic's words are redacted by.
const WAIT: Duration = Duration::from_secs(1);

/// Has a panic told on standard error as the log is: redacted.
pub(crate) fn start_telling_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current().name().unwrap_or("<unnamed>").to_owned();
        let trace = Backtrace::capture();
        let trace = match trace.status() {
            BacktraceStatus::Captured => format!("\n{trace}"),
            _ => String::new(),
        };
        let told = within(WAIT, format!("thread '{thread}' {panic}{trace}\n"), redacted)
            .unwrap_or_else(|| format!("thread '{thread}' panicked at {place}; its message can't be redacted now\n"));
        // There is nobody to tell that it can't be written.
        io::stderr().write_all(told.as_bytes()).ok();
    }));
}

/// What the work makes of a text. `None` if it takes too long, as the thread that panics may hold what it waits for, or if
/// it panics itself.
fn within(wait: Duration, text: String, work: fn(&str) -> String) -> Option<String> {
    thread_local!(static TELLS: Cell<bool> = const { Cell::new(false) });
    if TELLS.get() {
        return None;
    }
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        TELLS.set(true);
        sender.send(work(&text)).ok();
    };
    thread::Builder::new().spawn(work).ok()?;
    receiver.recv_timeout(wait).ok()
}

/// A text that belongs to no job.
pub(crate) fn redacted(text: &str) -> String {
    SECRETS
        .get()
        .map_or_else(|| text.to_owned(), |secrets| secrets.redact(text))
}

const VARIABLE: &str = "ORCHESTRA_LOG";

/// Whether it was asked for.
pub(crate) fn is_on() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|filter| !filter.is_empty())
}

/// Starts it if it was asked for.
///
/// # Errors
/// Bad input if what was asked for is not understood.
pub(crate) fn start() -> Result<(), Failure> {
    if is_on() {
        let asked = std::env::var(VARIABLE).unwrap_or_default();
        let subscriber = subscriber(&asked, || Clean).map_err(|error| {
            Failure::bad_input(format!(
                "the environment variable {VARIABLE}={asked:?} is no filter: {error}"
            ))
            .with_hint("write a level (debug), or modules with levels (orchestra=trace,info)")
        })?;
        subscriber.init();
    }
    Ok(())
}

fn subscriber<W>(asked: &str, writer: W) -> Result<impl Subscriber + Send + Sync + 'static, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let asked = EnvFilter::builder().parse(asked)?;
    let output = fmt::layer().with_writer(writer).with_ansi(false);
    Ok(registry()
        .with(asked)
        .with(filter::filter_fn(may_be_logged))
        .with(output))
}

/// bollard 0.21 logs the bodies of requests, in which the environments of tasks stand, and with them their secrets.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("bollard") || *metadata.level() <= Level::WARN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_panic_says_is_redacted_or_not_told() {
        let secrets = Secrets::new([]);
        secrets.job("a").mask(&"hunter2".into()).unwrap();
        redact_by(&secrets);
        let told = |wait, work| within(Duration::from_millis(wait), "it was hunter2".to_owned(), work);
        assert_eq!(told(10_000, redacted).as_deref(), Some("it was ***REDACTED***"));
        assert_eq!(told(10_000, |_| panic!("within a panic")), None);
        let never = |_: &str| loop {
            thread::park();
        };
        assert_eq!(told(200, never), None);
    }

    #[test]
    fn request_bodies_are_never_logged_whatever_is_asked_for() {
        for asked in [
            "trace",
            "bollard=trace",
            "bollard::docker=trace",
            "orchestra=debug,bollard=debug",
        ] {
            tracing::subscriber::with_default(subscriber(asked, std::io::sink).unwrap(), || {
                assert!(!tracing::enabled!(target: "bollard::docker", Level::DEBUG), "{asked}");
                assert!(
                    asked.starts_with("bollard") || tracing::enabled!(target: "orchestra", Level::DEBUG),
                    "{asked}"
                );
            });
        }
        assert!(subscriber("a=no=level", std::io::sink).is_err());
    }
}
