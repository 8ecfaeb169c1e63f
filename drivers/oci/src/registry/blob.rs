//! One blob from a registry into a store, taken up again where a connection broke.

use std::time::{Duration, Instant};

use oci_spec::image::Descriptor;
use orchestra::{Error, ErrorKind, PullEvent, Result};
use tokio::sync::mpsc;

use super::session::Session;
use crate::content::{self, ContentStore, Ingest, Labels};

/// Tries in a row that bring nothing, before it is given up.
const TRIES: u32 = 6;
/// Tries in all: a registry that breaks off after each byte is no registry.
const MAX_TRIES: u32 = 30;
/// Wait before the second try; it doubles from one to the next.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between two events of one layer.
const EVENTS: Duration = Duration::from_millis(100);

/// How often something was asked for.
#[derive(Default)]
pub(super) struct Tries {
    in_vain: u32,
    in_all: u32,
}

impl Tries {
    /// Waits until it is time to ask again, or gives the error back.
    pub(super) async fn again(&mut self, error: Error) -> Result<()> {
        self.in_vain += 1;
        self.in_all += 1;
        if !error.is_retryable() || self.in_vain >= TRIES || self.in_all >= MAX_TRIES {
            return Err(error);
        }
        tracing::debug!(%error, tries = self.in_all, "the registry is asked again");
        tokio::time::sleep(PAUSE * 2_u32.saturating_pow(self.in_vain - 1)).await;
        Ok(())
    }

    /// The last try brought something.
    fn reset(&mut self) {
        self.in_vain = 0;
    }
}

/// Who hears of a blob's progress.
pub(super) struct Progress<'a> {
    sender: &'a mpsc::Sender<PullEvent>,
    id: String,
    total: u64,
    told: Instant,
}

impl<'a> Progress<'a> {
    pub(super) fn new(sender: &'a mpsc::Sender<PullEvent>, blob: &Descriptor) -> Self {
        let id = blob.digest().digest().get(..12).unwrap_or_default().to_owned();
        Self {
            sender,
            id,
            total: blob.size(),
            told: Instant::now(),
        }
    }

    fn event(&self, status: &str, current: u64) -> PullEvent {
        PullEvent::Layer {
            id: self.id.clone(),
            status: status.to_owned(),
            current: Some(current),
            total: Some(self.total),
        }
    }

    /// What has to be heard. That nobody listens any more ends the pull by other means.
    async fn tell(&self, status: &str, current: u64) {
        let _ = self.sender.send(self.event(status, current)).await;
    }

    /// What may be missed.
    fn count(&mut self, current: u64) {
        if self.told.elapsed() >= EVENTS {
            self.told = Instant::now();
            let _ = self.sender.try_send(self.event("Downloading", current));
        }
    }
}

/// Fetches a blob that the store may have, or have a part of.
pub(super) async fn fetch(
    session: &Session,
    store: &dyn ContentStore,
    blob: &Descriptor,
    mut progress: Option<Progress<'_>>,
) -> Result<()> {
    let (digest, size) = (blob.digest(), blob.size());
    let mut again = true;
    loop {
        let expected = Some((digest, size));
        let Some(mut ingest) = store.ingest(&content::reference(digest), expected).await? else {
            if let Some(progress) = &progress {
                progress.tell("Already exists", size).await;
            }
            return Ok(());
        };
        if ingest.offset() > size {
            ingest.abort().await?;
            continue;
        }
        if let Some(progress) = &progress {
            progress.tell("Downloading", ingest.offset()).await;
        }
        if let Err(error) = copy(session, ingest.as_mut(), blob, progress.as_mut()).await {
            if !error.is_retryable() && error.kind() == ErrorKind::Registry {
                ingest.abort().await?;
            }
            return Err(error);
        }
        match ingest.commit(Labels::new()).await {
            // What a try before left may be what is wrong: once more from the beginning.
            Err(error) if error.kind() == ErrorKind::InvalidInput && again => again = false,
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                return Err(session
                    .nonsense(format!("sent other bytes than {digest}"))
                    .with_source(error));
            }
            Err(error) => return Err(error),
            Ok(_) => {
                if let Some(progress) = &progress {
                    progress.tell("Download complete", size).await;
                }
                return Ok(());
            }
        }
    }
}

/// Writes what the ingest lacks.
async fn copy(
    session: &Session,
    ingest: &mut dyn Ingest,
    blob: &Descriptor,
    mut progress: Option<&mut Progress<'_>>,
) -> Result<()> {
    let size = blob.size();
    let mut at = ingest.offset();
    let mut tries = Tries::default();
    while at < size {
        let before = at;
        let error = match session.blob(blob, at).await {
            Ok((from, mut stream)) => {
                // Bytes that are there already, where the registry does not serve a part alone.
                let mut skip = at - from;
                loop {
                    match session.piece(&mut stream).await {
                        Ok(Some(mut piece)) => {
                            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
                            skip -= known as u64;
                            let piece = piece.split_off(known);
                            at += piece.len() as u64;
                            if at > size {
                                let what = format!("sent more for {} than its {size} bytes", blob.digest());
                                return Err(session.nonsense(what));
                            }
                            if !piece.is_empty() {
                                ingest.write(piece).await?;
                            }
                            if let Some(progress) = progress.as_deref_mut() {
                                progress.count(at);
                            }
                        }
                        Ok(None) if at == size => return Ok(()),
                        Ok(None) => {
                            break session
                                .nonsense("broke off: it sent less than it has to")
                                .retryable(true);
                        }
                        // `at == size`: nothing is lacking. What is wrong shows when the blob is committed.
                        Err(_) if at == size => return Ok(()),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        if at > before {
            tries.reset();
        }
        tries.again(error).await?;
    }
    Ok(())
}
