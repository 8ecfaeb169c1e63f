//! Where an image's parts are kept: blobs, each under the digest of its bytes.
//!
//! A blob comes in through an [`Ingest`], which may be left and taken up again later, and is there for readers once it
//! is committed, never before. Layers pass through in pieces; only documents (manifests, configs) are held whole.

use std::collections::HashMap;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use orchestra::{ByteStream, Error, ErrorKind, Result};
use sha2::Digest as _;

/// Largest manifest, index or configuration that is read: what registries take at least is 4 MiB
/// ([distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pushing-manifests)).
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// What a store writes beside a blob, as far as it can.
pub type Labels = HashMap<String, String>;

/// A store of blobs. Every method may be called from many tasks at once.
#[async_trait]
pub trait ContentStore: fmt::Debug + Send + Sync + 'static {
    /// The blob's bytes.
    ///
    /// # Errors
    /// [`ErrorKind::ImageNotFound`] if the store does not have it.
    async fn read(&self, digest: &Digest, size: u64) -> Result<ByteStream>;

    /// Begins to write a blob, or goes on where an ingest of this `reference` was left: see [`Ingest::offset`]. `None` if
    /// the blob is there, which from now on is kept for the caller. If another writer holds the reference, the store waits for it or writes beside it.
    ///
    /// What is to come is `expected`, or not known before it has come.
    ///
    /// # Errors
    /// As far as the store has any.
    async fn ingest(&self, reference: &str, expected: Option<(&Digest, u64)>) -> Result<Option<Box<dyn Ingest>>>;

    /// The labels that keep `children` as long as a blob that names them is kept, for stores that collect garbage by
    /// labels. They are given to [`Ingest::commit`].
    fn links(&self, children: &[Descriptor]) -> Labels;
}

/// A blob that is being written. Dropped, what was written stays to be taken up again, if its bytes are known by digest;
/// else it is for the store to clean away.
#[async_trait]
pub trait Ingest: Send {
    /// The bytes that are there from an earlier try; the next piece follows them.
    fn offset(&self) -> u64;

    /// Takes the next piece; back-pressure is the wait for it.
    ///
    /// # Errors
    /// [`ErrorKind::DiskFull`], and what else the store has.
    async fn write(&mut self, piece: Bytes) -> Result<()>;

    /// Makes the blob whole and readable, and tells its digest and size. That it is there already is success.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the bytes are not those of the digest that was expected; nothing of them is kept.
    async fn commit(self: Box<Self>, labels: Labels) -> Result<(Digest, u64)>;

    /// Forgets what was written.
    ///
    /// # Errors
    /// As far as the store has any.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// A manifest, index or configuration, checked against its digest.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is larger than [`MAX_DOCUMENT`], or is not what its descriptor says.
pub async fn document(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Bytes> {
    let (digest, size) = (descriptor.digest(), descriptor.size());
    if size > MAX_DOCUMENT {
        return Err(Error::invalid(format!(
            "{} {digest} of {size} bytes is larger than 4 MiB",
            descriptor.media_type()
        )));
    }
    let mut pieces = store.read(digest, size).await?;
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    while let Some(piece) = pieces.try_next().await? {
        if content.len() as u64 + piece.len() as u64 > size {
            return Err(differs(digest));
        }
        content.extend_from_slice(&piece);
    }
    let mut digester = Digester::new(digest.algorithm())?;
    digester.update(&content);
    if content.len() as u64 != size || digester.finish() != *digest {
        return Err(differs(digest));
    }
    Ok(content.into())
}

/// Writes a document whose descriptor is known, labelled so that it keeps `children`.
///
/// # Errors
/// Those of [`ContentStore::ingest`] and of [`Ingest`].
pub async fn put(
    store: &dyn ContentStore,
    descriptor: &Descriptor,
    content: Bytes,
    children: &[Descriptor],
) -> Result<()> {
    let digest = descriptor.digest();
    let expected = Some((digest, descriptor.size()));
    let Some(mut ingest) = store.ingest(&reference(digest), expected).await? else {
        return Ok(());
    };
    let rest = usize::try_from(ingest.offset())
        .unwrap_or(usize::MAX)
        .min(content.len());
    let rest = content.slice(rest..);
    if !rest.is_empty() {
        ingest.write(rest).await?;
    }
    ingest.commit(store.links(children)).await.map(drop)
}

/// The name under which a blob of this digest is ingested, so that whoever wants it too finds what is there of it.
#[must_use]
pub fn reference(digest: &Digest) -> String {
    format!("orchestra-{digest}")
}

pub(crate) fn differs(digest: &Digest) -> Error {
    Error::invalid(format!("the content is not that of its digest {digest}"))
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub enum Digester {
    /// SHA-256, which images have as a rule.
    Sha256(sha2::Sha256),
    /// SHA-384.
    Sha384(sha2::Sha384),
    /// SHA-512.
    Sha512(sha2::Sha512),
}

impl Digester {
    /// Of no bytes yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an algorithm that the
    /// [specification](https://github.com/opencontainers/image-spec/blob/main/descriptor.md#registered-algorithms) does not have.
    pub fn new(algorithm: &DigestAlgorithm) -> Result<Self> {
        Ok(match algorithm {
            DigestAlgorithm::Sha256 => Self::sha256(),
            DigestAlgorithm::Sha384 => Self::Sha384(sha2::Sha384::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
            other => {
                let message = format!("digests by {other} can't be verified");
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        })
    }

    /// SHA-256, of no bytes yet.
    #[must_use]
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// Takes bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha384(digest) => digest.update(bytes),
            Self::Sha512(digest) => digest.update(bytes),
        }
    }

    /// The digest of all bytes that were taken in.
    #[must_use]
    pub fn finish(self) -> Digest {
        let (algorithm, hash) = match self {
            Self::Sha256(digest) => ("sha256", digest.finalize().to_vec()),
            Self::Sha384(digest) => ("sha384", digest.finalize().to_vec()),
            Self::Sha512(digest) => ("sha512", digest.finalize().to_vec()),
        };
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        #[expect(clippy::expect_used, reason = "it is written as the grammar has it")]
        Digest::try_from(format!("{algorithm}:{hex}")).expect("a digest")
    }
}

/// The SHA-256 digest of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut digester = Digester::sha256();
    digester.update(bytes);
    digester.finish()
}
