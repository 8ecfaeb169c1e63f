//! The one error of the workspace's libraries.
//!
//! A driver says what happened ([`ErrorKind`]), whether trying again can help, and the engine's own words. Which
//! operation, driver and resource it was is added once, by [`ContextLayer`](crate::layer::ContextLayer), so that no
//! driver repeats it.

use std::error::Error as StdError;
use std::fmt;

/// What `orchestra` returns everywhere.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, in terms that do not depend on the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value the caller gave is not acceptable; nothing was done.
    InvalidInput,
    /// The engine cannot do what was asked ([`Capabilities`](crate::Capabilities)); nothing was done.
    Unsupported,
    /// No engine answers at the endpoint: not running, wrong address, no such socket.
    Unreachable,
    /// The engine's endpoint exists, but this user may not use it.
    PermissionDenied,
    /// The image is neither in the engine nor in its registry, or the registry hides it from these credentials.
    ImageNotFound,
    /// No such container.
    ContainerNotFound,
    /// No such volume.
    VolumeNotFound,
    /// No such file or directory in a volume or container.
    PathNotFound,
    /// The resource is in a state that rules the call out, or exists with another definition.
    Conflict,
    /// The registry refused the credentials, or wants some.
    Unauthorized,
    /// The registry could not be reached or answered with an error.
    Registry,
    /// The engine or this machine has no space left.
    DiskFull,
    /// The call did not answer in its time.
    DeadlineExceeded,
    /// The connection was lost in the middle: the engine died, restarted or closed it.
    Interrupted,
    /// The caller cancelled.
    Cancelled,
    /// A task ran and did not succeed.
    TaskFailed,
    /// The engine reported a failure of its own.
    Engine,
    /// The engine answered something this driver does not understand.
    Protocol,
    /// Reading or writing on this side failed: an output sink, an archive, a local file.
    Io,
}

impl ErrorKind {
    /// What a person can do about an error of this kind, when nothing more specific is known.
    #[must_use]
    pub fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable => {
                "start the engine or correct its endpoint; `--driver auto` takes whichever engine answers"
            }
            Self::PermissionDenied => {
                "give this user access to the engine's socket (often a group membership), or run as one that has it"
            }
            Self::ImageNotFound => "check the image's name and tag, and log in if its repository is private",
            Self::Unauthorized => "check the registry's user name and password",
            Self::Registry => {
                "check that the registry runs and is reachable from the engine, and how it is to be spoken to (TLS or plain HTTP)"
            }
            Self::DiskFull => "free space where the engine keeps its data",
            Self::DeadlineExceeded => {
                "the engine is overloaded or hangs; `orchestra doctor` tells if it answers at all"
            }
            Self::Interrupted => {
                "check whether the engine was restarted, then run again with the same run id to carry on"
            }
            _ => return None,
        })
    }

    fn retryable(self) -> bool {
        matches!(self, Self::Interrupted | Self::DeadlineExceeded | Self::Registry)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidInput => "invalid input",
            Self::Unsupported => "not supported by this engine",
            Self::Unreachable => "unreachable",
            Self::PermissionDenied => "permission denied",
            Self::ImageNotFound => "image not found",
            Self::ContainerNotFound => "container not found",
            Self::VolumeNotFound => "volume not found",
            Self::PathNotFound => "path not found",
            Self::Conflict => "conflict",
            Self::Unauthorized => "unauthorized",
            Self::Registry => "registry failure",
            Self::DiskFull => "no space left",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
            Self::TaskFailed => "task failed",
            Self::Engine => "engine failure",
            Self::Protocol => "unexpected answer",
            Self::Io => "input/output failure",
        })
    }
}

/// An error with its kind, the operation it broke and what it was about.
///
/// `Display` is one line: `docker: create_container: image not found: no such image (image=busybox:9)`. `Debug` has
/// the source chain too.
///
/// ```
/// use orchestra::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::ImageNotFound, "no such image").with("image", "busybox:9").during("create_container");
/// assert_eq!(error.to_string(), "create_container: image not found: no such image (image=busybox:9)");
/// assert!(!error.is_retryable());
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    retryable: bool,
    message: String,
    driver: Option<String>,
    operation: Option<&'static str>,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Source>,
}

impl Error {
    /// An error of `kind`; `message` is a lower-case fragment, or the engine's own words.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            retryable: kind.retryable(),
            message: message.into(),
            driver: None,
            operation: None,
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// An [`ErrorKind::InvalidInput`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// An [`ErrorKind::Io`] that keeps its source; `doing` is what was being done ("read context.tar").
    pub fn io(doing: impl fmt::Display, source: std::io::Error) -> Self {
        // An error of ours that went through an `io::Read` comes back as it was.
        match source.downcast::<Error>() {
            Ok(error) => error,
            Err(source) => {
                let kind = match source.kind() {
                    std::io::ErrorKind::StorageFull => ErrorKind::DiskFull,
                    _ => ErrorKind::Io,
                };
                Self::new(kind, format!("{doing}: {source}")).with_source(source)
            }
        }
    }

    /// Adds what the error is about; pairs are shown in the order they were added, a key that is there already wins.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        if !self.0.context.iter().any(|(k, _)| *k == key) {
            self.0.context.push((key, value.to_string()));
        }
        self
    }

    /// Names the operation; the innermost one stays.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Names the driver; the innermost one stays.
    #[must_use]
    pub fn on_driver(mut self, driver: &str) -> Self {
        self.0.driver.get_or_insert_with(|| driver.to_owned());
        self
    }

    /// Replaces the kind's general hint by a better one.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps what caused this error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Overrides whether a retry can help.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call can succeed later without anything being changed by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// The operation that failed, where known: a method of [`Driver`](crate::Driver).
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The message alone, without operation and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What it was about, as key and value pairs.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(k, v)| (*k, v.as_str()))
    }

    /// What to do next, if anything is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref().or_else(|| self.0.kind.hint())
    }

    /// Passes every text of this error through `f`: how a redacting layer keeps secrets out of errors. The source is
    /// dropped, as it cannot be rewritten.
    #[must_use]
    pub fn map_text(mut self, mut f: impl FnMut(&str) -> String) -> Self {
        self.0.message = f(&self.0.message);
        self.0.hint = self.0.hint.as_deref().map(&mut f);
        for (_, value) in &mut self.0.context {
            *value = f(value);
        }
        self.0.source = None;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.0;
        if let Some(driver) = &inner.driver {
            write!(f, "{driver}: ")?;
        }
        if let Some(operation) = inner.operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{}: {}", inner.kind, inner.message)?;
        for (i, (key, value)) in inner.context.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if !inner.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if let Some(hint) = self.hint() {
            write!(f, "\n  hint: {hint}")?;
        }
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, "\n  caused by: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_context_wins_and_is_shown_once() {
        let error = Error::new(ErrorKind::Conflict, "name in use")
            .with("container", "a")
            .during("create_container")
            .on_driver("docker")
            .with("container", "b")
            .during("end_job")
            .on_driver("timeout");
        assert_eq!(
            error.to_string(),
            "docker: create_container: conflict: name in use (container=a)"
        );
    }

    #[test]
    fn an_error_survives_an_io_error_round_trip() {
        let error = std::io::Error::from(Error::new(ErrorKind::Interrupted, "socket closed"));
        assert_eq!(Error::io("read tar", error).kind(), ErrorKind::Interrupted);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(Error::io("write tar", full).kind(), ErrorKind::DiskFull);
    }

    #[test]
    fn no_text_of_an_error_escapes_a_redactor() {
        let error = Error::new(ErrorKind::Engine, "bad hunter2")
            .with("image", "hunter2/x")
            .with_hint("not hunter2")
            .with_source(std::io::Error::other("hunter2"))
            .map_text(|text| text.replace("hunter2", "***"));
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
