//! What a case says when a promise is broken, and where.

use std::fmt::{self, Debug, Display};
use std::panic::Location;
use std::time::Duration;

use orchestra::{Error, ErrorKind, Result};

/// How a case ends.
pub type Outcome<T = ()> = std::result::Result<T, Failure>;

/// A broken promise: what was seen, and the line of the suite that saw it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    location: &'static Location<'static>,
}

impl Failure {
    /// A failure at the caller's line.
    #[track_caller]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            location: Location::caller(),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  at {}", self.message, self.location)
    }
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::new(format!("unexpected error: {error:?}"))
    }
}

/// Fails with `what` unless it holds.
#[track_caller]
pub(crate) fn holds(condition: bool, what: impl Display) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(Failure::new(what.to_string()))
    }
}

/// Fails unless both are equal.
#[track_caller]
pub(crate) fn same<T: PartialEq<U> + Debug, U: Debug>(what: impl Display, got: T, wanted: U) -> Outcome {
    if got == wanted {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{what}: got {}, wanted {}",
        short(&got),
        short(&wanted)
    )))
}

/// What is shown of a value: logs can be large.
fn short(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(2000) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// Fails unless `result` is an error of one of these kinds.
#[track_caller]
pub(crate) fn fails<T>(what: impl Display, result: Result<T>, kinds: &[ErrorKind]) -> Outcome<Error> {
    match result {
        Ok(_) => Err(Failure::new(format!(
            "{what}: got success, wanted an error of kind {kinds:?}"
        ))),
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => Err(Failure::new(format!(
            "{what}: got {:?} ({error}), wanted {kinds:?}",
            error.kind()
        ))),
    }
}

/// Fails if `future` takes longer.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Outcome<T> {
    let late = Failure::new(format!("{what} took longer than {limit:?}"));
    tokio::time::timeout(limit, future).await.map_err(|_| late)
}
