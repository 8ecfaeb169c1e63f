//! One registry, logged in to: [`oci_client`] speaks to it. What it answers as errors of ours.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol, LayerDescriptor, SizedStream};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use oci_spec::image::{Descriptor, Digest};
use orchestra::{Error, ErrorKind, ExposeSecret, ImageRef, PullImage, Result};

use super::blob::Tries;
use crate::content::{Digester, MAX_DOCUMENT};

/// Time for a connection, its TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest that a registry may send nothing.
const SILENCE: Duration = Duration::from_secs(30);

const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One image's registry.
#[derive(Clone)]
pub(super) struct Session {
    client: Client,
    auth: RegistryAuth,
    image: Reference,
}

impl Session {
    /// Finds out how the registry is spoken to, and logs in. A registry on this machine, and one that the caller calls
    /// insecure, may have any certificate, or none and plain HTTP: as docker has it.
    pub(super) async fn open(pull: &PullImage) -> Result<Self> {
        let mut tries = Tries::default();
        loop {
            match Self::log_in(pull).await {
                Err(error) => tries.again(error).await?,
                done => return done,
            }
        }
    }

    async fn log_in(pull: &PullImage) -> Result<Self> {
        // rustls panics where a program links two providers and has chosen none; one that has, keeps its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let image = reference(&pull.image);
        let auth = match &pull.credentials {
            Some(credentials) => RegistryAuth::Basic(
                credentials.username.expose_secret().to_owned(),
                credentials.password.expose_secret().to_owned(),
            ),
            None => RegistryAuth::Anonymous,
        };
        let insecure = pull.insecure || is_loopback(image.resolve_registry());
        let plain = insecure.then_some(ClientProtocol::Http);
        let mut last = None;
        for protocol in [ClientProtocol::Https].into_iter().chain(plain) {
            let config = ClientConfig {
                protocol,
                accept_invalid_certificates: insecure,
                connect_timeout: Some(CONNECT),
                read_timeout: Some(SILENCE),
                user_agent: concat!("orchestra/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            let client = Client::try_from(config).map_err(|error| refusal(&image, Subject::Registry, error))?;
            match client.auth(&image, &auth, RegistryOperation::Pull).await {
                Ok(_) => return Ok(Self { client, auth, image }),
                Err(OciDistributionError::RequestError(error)) if error.is_connect() => last = Some(error),
                Err(error) => return Err(refusal(&image, Subject::Registry, error)),
            }
        }
        let last = last.map(OciDistributionError::RequestError);
        let last = last.unwrap_or(OciDistributionError::GenericError(None));
        Err(refusal(&image, Subject::Registry, last))
    }

    /// The image's own manifest or index, or that of `digest` in its repository, with its digest.
    pub(super) async fn manifest(&self, digest: Option<&Digest>) -> Result<(Bytes, Digest)> {
        let mut tries = Tries::default();
        loop {
            match self.ask_manifest(digest).await {
                Err(error) => tries.again(error).await?,
                done => return done,
            }
        }
    }

    async fn ask_manifest(&self, digest: Option<&Digest>) -> Result<(Bytes, Digest)> {
        let image = match digest {
            Some(digest) => self.image.clone_with_digest(digest.to_string()),
            None => self.image.clone(),
        };
        let pulled = self.client.pull_manifest_raw(&image, &self.auth, MANIFESTS).await;
        let (content, _) = pulled.map_err(|error| refusal(&self.image, Subject::Manifest, error))?;
        if content.len() as u64 > MAX_DOCUMENT {
            return Err(self.nonsense(format!("sent a manifest of {} bytes; 4 MiB are read", content.len())));
        }
        let wanted = match digest {
            Some(digest) => Some(digest.clone()),
            None => image
                .digest()
                .map(Digest::try_from)
                .transpose()
                .map_err(|error| Error::invalid(error.to_string()))?,
        };
        let mut digester = match &wanted {
            Some(digest) => Digester::new(digest.algorithm())?,
            None => Digester::sha256(),
        };
        digester.update(&content);
        let found = digester.finish();
        match wanted {
            Some(wanted) if wanted != found => Err(self.nonsense(format!("sent another manifest than {wanted}"))),
            _ => Ok((content, found)),
        }
    }

    /// The blob's bytes from `offset` on, or from the beginning: where they begin is told.
    pub(super) async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<(u64, SizedStream)> {
        let layer = LayerDescriptor {
            digest: blob.digest().as_ref(),
            urls: blob.urls(),
        };
        // Ranged from the first byte on: else oci-client 0.18 hashes what passes, which the store does too.
        match self
            .client
            .pull_blob_stream_partial(&self.image, &layer, offset, None)
            .await
        {
            Ok(BlobResponse::Partial(stream)) => Ok((offset, stream)),
            Ok(BlobResponse::Full(stream)) => Ok((0, stream)),
            Err(error) => Err(refusal(&self.image, Subject::Blob, error)),
        }
    }

    /// An error about what the registry sent, which it would send again.
    pub(super) fn nonsense(&self, what: impl std::fmt::Display) -> Error {
        let registry = self.image.registry();
        Error::new(ErrorKind::Registry, format!("the registry {registry} {what}")).retryable(false)
    }

    /// The next piece of a blob.
    pub(super) async fn piece(&self, stream: &mut SizedStream) -> Result<Option<Bytes>> {
        match stream.next().await {
            Some(Ok(piece)) => Ok(Some(piece)),
            Some(Err(error)) => {
                let message = format!(
                    "the registry {} broke off: {}",
                    self.image.registry(),
                    innermost(&error)
                );
                Err(Error::new(ErrorKind::Registry, message).with_source(error))
            }
            None => Ok(None),
        }
    }
}

/// Whether a registry's address is one of this machine's own.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => registry.split_once(':').map_or(registry, |(host, _)| host),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What was asked for. It decides what "not found" stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Registry,
    Manifest,
    Blob,
}

/// The same, as [`oci_client`] has it. Its own parser would take some 60 ms for the first one.
fn reference(image: &ImageRef) -> Reference {
    let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
    match (image.tag(), image.digest()) {
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    }
}

/// An error of [`oci_client`]'s as one of ours.
fn refusal(image: &Reference, subject: Subject, error: OciDistributionError) -> Error {
    let registry = image.registry();
    let refused = |kind, why: &str| Error::new(kind, format!("the registry {registry} {why}"));
    let not_found = |why: &str| match subject {
        Subject::Manifest => Error::new(
            ErrorKind::ImageNotFound,
            format!("the registry {registry} has no {image}: {why}"),
        ),
        _ => refused(ErrorKind::Registry, &format!("lacks a part of the image: {why}")).retryable(false),
    };
    let status = |code: u16, why: &str| match code {
        404 => not_found(why),
        401 | 403 => refused(ErrorKind::Unauthorized, &format!("refuses access to {image}: {why}")),
        429 | 500.. => refused(ErrorKind::Registry, &format!("answered {code}: {why}")),
        _ => refused(ErrorKind::Registry, &format!("answered {code}: {why}")).retryable(false),
    };
    match error {
        OciDistributionError::UnauthorizedError { .. } => status(401, "it wants other credentials, or some"),
        OciDistributionError::AuthenticationFailure(why) => status(401, why.trim()),
        OciDistributionError::ImageManifestNotFoundError(why) => not_found(&why),
        OciDistributionError::ServerError { code, message, .. } => status(code, words(&message)),
        OciDistributionError::RegistryError { envelope, .. } => {
            let why: Vec<&str> = envelope.errors.iter().map(|error| error.message.as_str()).collect();
            let why = why.join("; ");
            let code = envelope.errors.first().map(|error| &error.code);
            match code {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown,
                ) => not_found(words(&why)),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => status(403, words(&why)),
                Some(OciErrorCode::Toomanyrequests) => status(429, words(&why)),
                _ => refused(ErrorKind::Registry, &format!("refused the request: {}", words(&why))).retryable(false),
            }
        }
        OciDistributionError::RequestError(error) => {
            // An address can hold a signature that is as good as a password.
            let error = error.without_url();
            let certificate = chain(&error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
            let why = innermost(&error);
            let told = match certificate {
                Some(_) => refused(ErrorKind::Registry, &format!("can't be spoken to by TLS: {why}"))
                    .retryable(false)
                    .with_hint(
                        "install the registry's certificate authority on this machine, or permit insecure access",
                    ),
                None if error.is_connect() => refused(ErrorKind::Registry, &format!("can't be reached: {why}")),
                None => refused(ErrorKind::Registry, &format!("broke off: {why}")),
            };
            told.with_source(error)
        }
        OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
            let what = format!("sent {actual} where {expected} was asked for");
            refused(ErrorKind::Registry, &what).retryable(false)
        }
        OciDistributionError::IoError(error) => {
            refused(ErrorKind::Registry, &format!("broke off: {}", innermost(&error))).with_source(error)
        }
        other => refused(
            ErrorKind::Registry,
            &format!("answered what can't be understood: {other}"),
        )
        .retryable(false),
    }
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The innermost cause: the outer ones say "error sending request".
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().unwrap_or(error).to_string()
}

/// An answer without a text still needs words.
fn words(message: &str) -> &str {
    match message.trim() {
        "" => "it gave no reason",
        message => message,
    }
}
