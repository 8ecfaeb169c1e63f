//! What bollard and docker report, as [`ErrorKind`]s. Codes decide; the engine's words are passed on and never read.

use std::error::Error as StdError;
use std::io;

use bollard::errors::Error as Bollard;
use orchestra::{Error, ErrorKind};

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

/// Turns bollard's errors of a call about `subject` into ours.
pub(crate) fn about(subject: Subject) -> impl Fn(Bollard) -> Error + Copy {
    move |error| {
        let (kind, message) = match &error {
            Bollard::DockerResponseServerError { status_code, message } => {
                (status(subject, *status_code), words(message))
            }
            Bollard::DockerStreamError { error } if subject == Subject::Registry => (ErrorKind::Registry, words(error)),
            Bollard::DockerStreamError { error } => (ErrorKind::Engine, words(error)),
            Bollard::SocketNotFoundError(path) => (ErrorKind::Unreachable, format!("no socket at {path}")),
            Bollard::RequestTimeoutError => (ErrorKind::DeadlineExceeded, "the engine did not answer".to_owned()),
            Bollard::HyperLegacyError { err } if err.is_connect() => (connecting(err), innermost(err)),
            Bollard::IOError { .. } | Bollard::HyperLegacyError { .. } | Bollard::HyperResponseError { .. } => (
                ErrorKind::Interrupted,
                format!("the connection broke: {}", innermost(&error)),
            ),
            other => (ErrorKind::Protocol, innermost(other)),
        };
        Error::new(kind, message).with_source(error)
    }
}

/// An error of a call that followed another one's output: an engine that can't be reached any more went away meanwhile.
pub(crate) fn meanwhile(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unreachable => {
            let message = format!("the engine went away: {}", error.message());
            Error::new(ErrorKind::Interrupted, message).with_source(error)
        }
        _ => error,
    }
}

/// The HTTP status of an answer, or `None` if there was no answer.
pub(crate) fn status_of(error: &Bollard) -> Option<u16> {
    match error {
        Bollard::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn status(subject: Subject, code: u16) -> ErrorKind {
    match code {
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
        500.. if subject == Subject::Registry => ErrorKind::Registry,
        500.. => ErrorKind::Engine,
        _ => ErrorKind::Protocol,
    }
}

/// Why no connection came about: the operating system's own code, wherever in the chain it is.
fn connecting(error: &(dyn StdError + 'static)) -> ErrorKind {
    let denied = chain(error).any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    if denied {
        ErrorKind::PermissionDenied
    } else {
        ErrorKind::Unreachable
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The innermost cause: hyper's outer ones say "client error (Connect)".
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

/// An answer without a body still needs words.
fn words(message: &str) -> String {
    match message.trim() {
        "" => "the engine gave no reason".to_owned(),
        message => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status_code: u16) -> Bollard {
        Bollard::DockerResponseServerError {
            status_code,
            message: "No such thing\n".to_owned(),
        }
    }

    #[test]
    fn a_404_is_what_the_call_was_about() {
        for (subject, kind) in [
            (Subject::Image, ErrorKind::ImageNotFound),
            (Subject::Registry, ErrorKind::ImageNotFound),
            (Subject::Container, ErrorKind::ContainerNotFound),
            (Subject::Volume, ErrorKind::VolumeNotFound),
            (Subject::Path, ErrorKind::PathNotFound),
        ] {
            let error = about(subject)(answer(404));
            assert_eq!(error.kind(), kind, "{subject:?}");
            assert_eq!(error.message(), "No such thing", "the engine's words are kept");
        }
    }

    #[test]
    fn status_codes_decide_the_kind() {
        for (code, kind) in [
            (400, ErrorKind::InvalidInput),
            (401, ErrorKind::Unauthorized),
            (403, ErrorKind::Unauthorized),
            (409, ErrorKind::Conflict),
            (500, ErrorKind::Engine),
            (503, ErrorKind::Engine),
            (418, ErrorKind::Protocol),
        ] {
            assert_eq!(about(Subject::Container)(answer(code)).kind(), kind, "{code}");
        }
        assert_eq!(about(Subject::Registry)(answer(500)).kind(), ErrorKind::Registry);
    }

    #[test]
    fn a_connection_that_breaks_is_worth_another_try_and_bad_json_is_not() {
        let broken = Bollard::IOError {
            err: io::ErrorKind::UnexpectedEof.into(),
        };
        let broken = about(Subject::Container)(broken);
        assert_eq!((broken.kind(), broken.is_retryable()), (ErrorKind::Interrupted, true));
        let json = serde_json::from_str::<u8>("x").unwrap_err();
        let json = about(Subject::Container)(Bollard::JsonSerdeError { err: json });
        assert_eq!((json.kind(), json.is_retryable()), (ErrorKind::Protocol, false));
    }

    #[test]
    fn an_answer_without_words_gets_some() {
        let error = about(Subject::Path)(Bollard::DockerResponseServerError {
            status_code: 404,
            message: String::new(),
        });
        assert_eq!(error.message(), "the engine gave no reason");
    }
}
