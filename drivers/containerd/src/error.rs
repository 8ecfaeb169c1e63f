//! containerd's errors as ours: by gRPC's status codes, never by text.

use std::error::Error as StdError;
use std::io;

use containerd_client::tonic::{self, Code, Status};
use orchestra::{Error, ErrorKind};

/// What a call is about. It decides what "not found" stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Engine,
    Image,
    Content,
    Snapshot,
    Container,
}

/// An error of a call about `subject`.
pub(crate) fn about(subject: Subject) -> impl Fn(Status) -> Error {
    move |status| {
        let (kind, message) = match status.source() {
            // Only what did not come from the engine has a source.
            Some(source) => broken(source),
            None => (kind_of(subject, status.code()), words(status.message())),
        };
        Error::new(kind, message).with_source(status)
    }
}

/// Whether the connection failed, and not the engine: a call that only reads may be made again.
pub(crate) fn is_lost(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether containerd went away during a call, or was away: it may come back.
pub(crate) fn is_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Unreachable)
}

/// An error of a call that followed another one's answer: an engine that can't be reached any more went away meanwhile.
pub(crate) fn meanwhile(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unreachable => {
            let message = format!("the engine went away: {}", error.message());
            Error::new(ErrorKind::Interrupted, message).with_source(error)
        }
        _ => error,
    }
}

fn kind_of(subject: Subject, code: Code) -> ErrorKind {
    match code {
        Code::NotFound => match subject {
            Subject::Image | Subject::Content => ErrorKind::ImageNotFound,
            Subject::Container => ErrorKind::ContainerNotFound,
            Subject::Engine | Subject::Snapshot => ErrorKind::Engine,
        },
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::InvalidInput,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => ErrorKind::Conflict,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::PermissionDenied,
        Code::DeadlineExceeded => ErrorKind::DeadlineExceeded,
        Code::Unimplemented => ErrorKind::Protocol,
        _ => ErrorKind::Engine,
    }
}

/// A call that got no answer: nobody listens, or the connection broke.
fn broken(error: &(dyn StdError + 'static)) -> (ErrorKind, String) {
    let cause = innermost(error).to_string();
    if !chain(error).any(|cause| cause.is::<tonic::ConnectError>()) {
        return (ErrorKind::Interrupted, format!("the connection broke: {cause}"));
    }
    let denied = chain(error).any(|cause| {
        let system = cause.downcast_ref::<io::Error>();
        system.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    match denied {
        true => (ErrorKind::PermissionDenied, cause),
        false => (ErrorKind::Unreachable, cause),
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The innermost cause: the outer ones say "transport error".
fn innermost<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    chain(error).last().unwrap_or(error)
}

/// An answer without a text still needs words.
fn words(message: &str) -> String {
    match message.trim() {
        "" => "containerd gave no reason".to_owned(),
        message => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_is_what_the_call_was_about() {
        for (subject, kind) in [
            (Subject::Image, ErrorKind::ImageNotFound),
            (Subject::Content, ErrorKind::ImageNotFound),
            (Subject::Container, ErrorKind::ContainerNotFound),
            (Subject::Snapshot, ErrorKind::Engine),
        ] {
            let error = about(subject)(Status::not_found("no such thing\n"));
            assert_eq!(error.kind(), kind, "{subject:?}");
            assert_eq!(error.message(), "no such thing", "the engine's words are kept");
        }
    }

    #[test]
    fn codes_decide_the_kind_and_a_silent_answer_gets_words() {
        for (code, kind) in [
            (Code::InvalidArgument, ErrorKind::InvalidInput),
            (Code::AlreadyExists, ErrorKind::Conflict),
            (Code::FailedPrecondition, ErrorKind::Conflict),
            (Code::Unknown, ErrorKind::Engine),
            (Code::Unavailable, ErrorKind::Engine),
            (Code::Unimplemented, ErrorKind::Protocol),
        ] {
            let error = about(Subject::Engine)(Status::new(code, ""));
            assert_eq!(error.kind(), kind, "{code:?}");
            assert_eq!(error.message(), "containerd gave no reason");
        }
    }

    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_is_unreachable() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("containerd.sock");
        let client = crate::client::Client::new(&socket, "test").unwrap();
        assert_eq!(
            client.engine_version().await.unwrap_err().kind(),
            ErrorKind::Unreachable
        );
        // One whose listener has gone.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(
            client.engine_version().await.unwrap_err().kind(),
            ErrorKind::Unreachable
        );
    }
}
