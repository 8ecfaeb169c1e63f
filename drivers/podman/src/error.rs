//! What went wrong, in the terms of [`ErrorKind`].
//!
//! libpod answers many refusals with 500, and not the same ones in each version: 4.3 has 500 for an image that does not
//! exist, where 5.4 has 404. What is the same in all of them is `cause`, the innermost error's own text, and that is one of
//! a list of constants (`libpod/define/errors.go` and containers/storage's `errors.go`): so this is the engine's native
//! code. `message` is for people; it is passed on and not read, but for a pull that fails after its answer has begun, which
//! has nothing else (`image.rs`).

use std::error::Error as StdError;
use std::io;

use orchestra::{Error, ErrorKind};
use serde::Deserialize;

/// What a call was about. It decides what the engine's 404 stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing in particular.
    Engine,
    /// An image in the engine.
    Image,
    /// An image in a registry: the engine passes on what it got from there.
    Registry,
    /// A container.
    Container,
    /// A volume.
    Volume,
    /// A path in a container that is known to exist.
    Path,
}

/// A call that did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection came about.
    Connect(io::Error),
    /// The connection broke.
    Broken(Box<dyn StdError + Send + Sync>),
    /// The engine refused.
    Refused(Refusal),
    /// The engine's answer can't be understood.
    Protocol(String),
}

/// The engine's words and codes.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) cause: Cause,
    message: String,
}

/// Those of libpod's innermost errors that make a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    NoContainer,
    NoVolume,
    NoImage,
    /// A container or volume of this name exists.
    Exists,
    /// A container uses it.
    InUse,
    /// The container is in a state that rules the call out.
    State,
    /// The image lacks the program, or it can't be executed.
    Unrunnable,
    /// The runtime could not do what was asked of it.
    Runtime,
    DiskFull,
    /// libpod itself broke while it answered.
    Panic,
    Other,
}

impl Cause {
    fn new(text: &str) -> Self {
        match text {
            "no such container" | "no such exec session" => Self::NoContainer,
            "no such volume" => Self::NoVolume,
            "image not known" | "no such image" => Self::NoImage,
            "that name is already in use" | "container already exists" | "volume already exists" => Self::Exists,
            "volume is being used" | "image is being used" | "image is in use by a container" => Self::InUse,
            "container state improper" | "container is running" | "container is stopped" => Self::State,
            "OCI runtime attempted to invoke a command that was not found" | "OCI permission denied" => {
                Self::Unrunnable
            }
            "OCI runtime error" => Self::Runtime,
            "no space left on device" => Self::DiskFull,
            panic if panic.starts_with("runtime error: ") => Self::Panic,
            _ => Self::Other,
        }
    }
}

impl Refusal {
    /// Reads an answer that is no success.
    pub(crate) fn new(status: u16, body: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Body {
            cause: String,
            message: String,
        }
        let Body { cause, message } = serde_json::from_slice(body).unwrap_or_else(|_| Body {
            // Paths that the API does not have are answered in plain text.
            message: String::from_utf8_lossy(body).into_owned(),
            ..Body::default()
        });
        let message = match message.trim() {
            "" => "the engine gave no reason".to_owned(),
            message => without_request(message),
        };
        Self {
            status,
            cause: Cause::new(&cause),
            message,
        }
    }
}

/// libpod's words about a tar that can't be unpacked hold kilobytes of its own request, as Go prints it (5.8.6 still). What
/// happened stands behind that.
fn without_request(message: &str) -> String {
    match (message.find(" for copier.request{"), message.find("}: copier: ")) {
        (Some(begin), Some(end)) if begin < end => format!("{}{}", &message[..begin], &message[end + 1..]),
        _ => message.to_owned(),
    }
}

/// Turns the failure of a call about `subject` into our error.
pub(crate) fn about(subject: Subject) -> impl Fn(Failure) -> Error + Copy {
    move |failure| match failure {
        Failure::Connect(error) => {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unreachable,
            };
            Error::new(kind, error.to_string()).with_source(error)
        }
        Failure::Broken(error) => {
            let words = format!("the connection broke: {}", innermost(error.as_ref()));
            Error::new(ErrorKind::Interrupted, words).with_source(error)
        }
        Failure::Refused(Refusal { status, cause, message }) => match cause {
            Cause::Unrunnable => unrunnable(&message),
            _ => Error::new(kind(subject, status, cause), message),
        },
        Failure::Protocol(message) => Error::new(ErrorKind::Protocol, message),
    }
}

/// The image lacks the program, or it can't be executed.
pub(crate) fn unrunnable(message: &str) -> Error {
    Error::invalid(message).with_hint("check that the image has the program, and that it may be executed")
}

/// The libpod cause of a refusal.
pub(crate) fn cause_of(failure: &Failure) -> Option<Cause> {
    match failure {
        Failure::Refused(refusal) => Some(refusal.cause),
        _ => None,
    }
}

/// Whether the engine says that there is no such thing.
pub(crate) fn is_missing(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(Refusal { status, cause, .. }) => {
            *status == 404 || matches!(cause, Cause::NoContainer | Cause::NoVolume | Cause::NoImage)
        }
        _ => false,
    }
}

fn kind(subject: Subject, status: u16, cause: Cause) -> ErrorKind {
    match cause {
        Cause::NoContainer => return ErrorKind::ContainerNotFound,
        Cause::NoVolume => return ErrorKind::VolumeNotFound,
        Cause::NoImage => return ErrorKind::ImageNotFound,
        Cause::Exists | Cause::InUse | Cause::State => return ErrorKind::Conflict,
        Cause::Unrunnable => return ErrorKind::InvalidInput,
        Cause::DiskFull => return ErrorKind::DiskFull,
        Cause::Runtime | Cause::Panic | Cause::Other => {}
    }
    match status {
        404 => match subject {
            Subject::Image | Subject::Registry => ErrorKind::ImageNotFound,
            Subject::Container => ErrorKind::ContainerNotFound,
            Subject::Volume => ErrorKind::VolumeNotFound,
            Subject::Path => ErrorKind::PathNotFound,
            Subject::Engine => ErrorKind::Protocol,
        },
        400 => ErrorKind::InvalidInput,
        401 | 403 => ErrorKind::Unauthorized,
        409 => ErrorKind::Conflict,
        429 | 500.. if subject == Subject::Registry => ErrorKind::Registry,
        500.. => ErrorKind::Engine,
        _ => ErrorKind::Protocol,
    }
}

/// An engine that can't be reached any more was reachable when the call began: it went away in the middle.
pub(crate) fn meanwhile(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unreachable => Error::new(
            ErrorKind::Interrupted,
            format!("the engine went away: {}", error.message()),
        )
        .with_source(error),
        _ => error,
    }
}

/// The innermost cause: hyper's outer ones say "connection error".
fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> String {
    let next = |error: &&'a (dyn StdError + 'static)| (*error).source();
    std::iter::successors(Some(error), next)
        .last()
        .unwrap_or(error)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_are_kept_but_for_its_own_request() {
        let message =
            |text: &str| Refusal::new(500, serde_json::json!({"message": text}).to_string().as_bytes()).message;
        let told = "error during bulk transfer for copier.request{Root:\"/\", Options:copier.Put{A:{}}}: copier: put: lchown /x: invalid argument";
        assert_eq!(
            message(told),
            "error during bulk transfer: copier: put: lchown /x: invalid argument"
        );
        assert_eq!(message("no such volume: copier"), "no such volume: copier");
        assert_eq!(message(" "), "the engine gave no reason");
        assert_eq!(Refusal::new(404, b"Not Found\n").message, "Not Found");
    }
}
