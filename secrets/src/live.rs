//! Redaction of a stream that does not come from an engine.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use orchestra::Result;

use crate::JobSecrets;
use crate::channel::Channel;

/// Redacts one stream of bytes by a job's list, wherever it is cut, and listens for what is announced in it: what the
/// [layer](crate::SecretsLayer) does with the output of containers, for a stream that a product has from elsewhere.
///
/// What is not replaced comes out as it went in, byte for byte. Memory is bounded by the longest secret's.
///
/// ```
/// use orchestra_secrets::{MARKER, Secrets};
///
/// # fn main() -> orchestra::Result<()> {
/// let job = Secrets::new([]).job("deploy-7");
/// job.mask(&"hunter2".into())?;
/// let mut redactor = job.stream();
/// let mut out = redactor.push("the password is hun".into())?.to_vec();
/// assert_eq!(out, b"the password is ");
/// out.extend(redactor.push("ter2!\n".into())?);
/// out.extend(redactor.finish()?);
/// assert_eq!(out, format!("the password is {MARKER}!\n").into_bytes());
/// # Ok(())
/// # }
/// ```
pub struct StreamRedactor {
    job: JobSecrets,
    channel: Channel,
}

impl StreamRedactor {
    pub(crate) fn new(job: JobSecrets) -> Self {
        Self {
            job,
            channel: Channel::new(false),
        }
    }

    /// Reads on; what comes out may be shown.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if the stream announces a value that can't be
    /// redacted, as [`JobSecrets::mask`] refuses it. What follows in the stream is not to be shown.
    pub fn push(&mut self, bytes: Bytes) -> Result<Bytes> {
        self.channel.push(&self.job, bytes)
    }

    /// Whether something is held back that may be the beginning of a secret: if nothing follows within 250 ms,
    /// [`flush`](Self::flush) is to be called, and again a second after the last byte.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.channel.is_holding()
    }

    /// Lets out what was held for `held`, without any input: up to three bytes after 250 ms; after a second what is more
    /// is taken for the secret that it seems to begin, and replaced.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn flush(&mut self, held: Duration) -> Result<Bytes> {
        self.channel.flush(&self.job, held)
    }

    /// The rest, when the stream has ended. Another one may follow.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<Bytes> {
        self.channel.finish(&self.job)
    }
}

impl fmt::Debug for StreamRedactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamRedactor").finish_non_exhaustive()
    }
}
