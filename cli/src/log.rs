//! The program's own log, for who looks for a fault: `ORCHESTRA_LOG=debug` writes it to standard error.

use std::io::{self, Write};
use std::sync::OnceLock;

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
        match SECRETS.get() {
            Some(secrets) => {
                let clean = secrets.redact(&String::from_utf8_lossy(bytes));
                io::stderr().write_all(clean.as_bytes())?;
            }
            None => io::stderr().write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
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
