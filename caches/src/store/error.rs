//! From what a store failed with to the error that says what to do.

use std::error::Error as StdError;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};
use orchestra::{Error, ErrorKind};

/// Whether it says that there is no such object.
pub(super) fn missing(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotFound { .. })
}

/// Whether it says that there is no such bucket: object_store 0.14 has a kind for an absent object alone, and shows of a
/// listing's answer only its text. The code in it is [S3's own](https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
pub(super) fn no_bucket(error: &object_store::Error) -> bool {
    missing(error) || element(&error.to_string(), "Code") == Some("NoSuchBucket")
}

/// The one place where a store's errors become ours.
pub(super) fn failed(doing: &str, address: &str, error: object_store::Error) -> Error {
    let (kind, hint) = classify(&error);
    let message = format!("{doing} in the cache store {address}: {}", words(&error));
    let error = Error::new(kind, message).with_source(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// The innermost words: those around them are about retries and the request.
fn words(error: &object_store::Error) -> String {
    let mut innermost: &dyn StdError = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    if let Some(answer) = answer_of_s3(&outer) {
        return answer;
    }
    if outer.contains(&inner) {
        outer
    } else {
        format!("{outer}: {inner}")
    }
}

/// What [S3 answers](https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html): its code and its message. The rest
/// of a refusal is pages of what the request was signed by.
fn answer_of_s3(text: &str) -> Option<String> {
    let code = element(text, "Code")?;
    Some(match element(text, "Message") {
        Some(message) if !message.is_empty() => format!("{code}: {message}"),
        _ => code.to_owned(),
    })
}

/// What stands in the first element of this name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0.trim())
}

fn classify(error: &object_store::Error) -> (ErrorKind, Option<&'static str>) {
    use object_store::Error as Store;
    const CREDENTIALS: &str = "check the credentials under `[caches]`, and what they are allowed to do";
    match error {
        Store::NotFound { .. } => return (ErrorKind::PathNotFound, None),
        Store::PermissionDenied { .. } => return (ErrorKind::PermissionDenied, Some(CREDENTIALS)),
        Store::Unauthenticated { .. } => return (ErrorKind::Unauthorized, Some(CREDENTIALS)),
        _ => {}
    }
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    return (
                        ErrorKind::DiskFull,
                        Some("free space in the store: `orchestra caches prune`"),
                    );
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    return (
                        ErrorKind::PermissionDenied,
                        Some("give this user access to the store's folder"),
                    );
                }
                _ => {}
            }
        }
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return match error.kind() {
                HttpErrorKind::Timeout => (ErrorKind::DeadlineExceeded, Some(UNREACHABLE)),
                _ => (ErrorKind::Unreachable, Some(UNREACHABLE)),
            };
        }
        cause = error.source();
    }
    (
        ErrorKind::Io,
        Some("check the store's address, endpoint and credentials under `[caches]`"),
    )
}

const UNREACHABLE: &str = "check the store's endpoint under `[caches]`, and whether it runs";
