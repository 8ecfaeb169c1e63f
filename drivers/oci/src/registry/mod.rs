//! Images from registries.
//!
//! A pull has two steps. [`resolve`] logs in, follows the name through indices to one platform's manifest and
//! brings that and the configuration into the store. [`Resolved::layers`] brings the layers, several at a time, and tells
//! of each in order, so that one is unpacked while the next ones come. What the store has is not fetched again, and what
//! it has half is taken up where it was left.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use oci_spec::image::{Descriptor, MediaType};
use orchestra::{Error, ErrorKind, Platform, PullEvent, PullImage, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::content::{self, ContentStore};
use crate::image::{self, Document, Image, MAX_INDICES};

mod blob;
mod session;

use blob::{Progress, fetch};
use session::Session;

/// Layers that are fetched at once.
const PARALLEL: usize = 4;

/// An image whose layers are still to be fetched.
pub struct Resolved {
    /// The image.
    pub image: Image,
    session: Session,
    store: Arc<dyn ContentStore>,
    progress: mpsc::Sender<PullEvent>,
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// Brings the manifest and the configuration of an image into `store`: for `pull.platform`, else for `platform`. Events
/// go to `progress`, which has to be read while this is waited for.
///
/// # Errors
/// [`ErrorKind::ImageNotFound`], also where no platform fits; [`ErrorKind::Unauthorized`]; [`ErrorKind::Registry`];
/// [`ErrorKind::Unsupported`] for layers of a kind that can't be unpacked; otherwise the store's.
pub async fn resolve(
    store: Arc<dyn ContentStore>,
    pull: &PullImage,
    platform: &Platform,
    progress: mpsc::Sender<PullEvent>,
) -> Result<Resolved> {
    let wanted = pull.platform.as_ref().unwrap_or(platform);
    let session = Session::open(pull).await?;
    let (mut content, mut digest) = session.manifest(None).await?;
    let mut indices = 0;
    let (manifest, parsed) = loop {
        // What can't be read of a registry's is no fault of the caller's.
        match Document::parse(&content).map_err(|error| session.nonsense(format!("sent {}", error.message())))? {
            Document::Manifest(parsed) => {
                let kind = parsed.media_type().clone().unwrap_or(MediaType::ImageManifest);
                break (Descriptor::new(kind, content.len() as u64, digest), parsed);
            }
            Document::Index(_) if indices == MAX_INDICES => {
                return Err(session.nonsense("has indices that are nested too deeply"));
            }
            Document::Index(index) => {
                indices += 1;
                digest = {
                    let images = image::images(index.manifests());
                    let chosen = image::fitting(&images, wanted);
                    let chosen = chosen.ok_or_else(|| image::lacks(&pull.image, wanted, &images))?;
                    chosen.digest().clone()
                };
                content = session.manifest(Some(&digest)).await?.0;
            }
        }
    };
    image::check(&parsed)?;
    if parsed.config().size() > content::MAX_DOCUMENT {
        return Err(session.nonsense("has a configuration that is larger than 4 MiB"));
    }
    fetch(&session, &*store, parsed.config(), None).await?;
    let config = content::document(&*store, parsed.config()).await?;
    let image = Image::new(manifest, &parsed, &config)
        .map_err(|error| session.nonsense(format!("has no such image: {}", error.message())))?;
    // An index has said so already; a manifest alone says it in its configuration.
    if let Some(wanted) = pull.platform.as_ref().filter(|_| indices == 0)
        && !image.fits(wanted)
    {
        let message = format!("{} is not there for {wanted}, but for {}", pull.image, image.platform());
        return Err(Error::new(ErrorKind::ImageNotFound, message));
    }
    let mut children = vec![image.config_descriptor.clone()];
    children.extend(image.layers.iter().cloned());
    content::put(&*store, &image.manifest, content, &children).await?;
    let message = format!("Digest: {}", image.manifest.digest());
    let _ = progress.send(PullEvent::Status { message }).await;
    Ok(Resolved {
        image,
        session,
        store,
        progress,
    })
}

/// A layer that is to be fetched, and who waits for it.
type Order = (Descriptor, oneshot::Sender<()>);

impl Resolved {
    /// Fetches the layers, and yields the place of each in [`Image::layers`] when the store has it, in order. An error is
    /// the last item, and comes as soon as any layer fails. Fetching goes on while the stream is not polled; dropping the
    /// stream ends it.
    ///
    /// # Errors
    /// Of the stream: [`ErrorKind::Registry`], [`ErrorKind::Unauthorized`] and the store's.
    pub fn layers(&self) -> BoxStream<'static, Result<usize>> {
        let mut orders: VecDeque<Order> = VecDeque::new();
        let waits: Vec<_> = (self.image.layers.iter().enumerate())
            .map(|(place, layer)| {
                let seen = self.image.layers[..place]
                    .iter()
                    .any(|below| below.digest() == layer.digest());
                let wait = (!seen).then(|| {
                    let (done, wait) = oneshot::channel();
                    orders.push_back((layer.clone(), done));
                    wait
                });
                (place, wait)
            })
            .collect();
        let workers = PARALLEL.min(orders.len());
        let orders = Arc::new(Mutex::new(orders));
        let (failed, failure) = mpsc::channel::<Error>(PARALLEL);
        let mut work = JoinSet::new();
        for _ in 0..workers {
            let (orders, failed) = (orders.clone(), failed.clone());
            let (session, store, progress) = (self.session.clone(), self.store.clone(), self.progress.clone());
            work.spawn(async move {
                loop {
                    let order = orders.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((layer, done)) = order else { return };
                    let told = Progress::new(&progress, &layer);
                    match fetch(&session, &*store, &layer, Some(told)).await {
                        // Who does not wait any more has dropped the stream, which ends this too.
                        Ok(()) => drop(done.send(())),
                        Err(error) => return drop(failed.send(error).await),
                    }
                }
            });
        }
        let state = (waits.into_iter(), failure, work);
        stream::try_unfold(state, |(mut waits, mut failure, work)| async move {
            let Some((place, wait)) = waits.next() else { return Ok(None) };
            if let Some(wait) = wait {
                tokio::select! {
                    biased;
                    Some(error) = failure.recv() => return Err(error),
                    done = wait => done.map_err(|_| Error::new(ErrorKind::Protocol, "fetching a layer ended without a result"))?,
                }
            }
            Ok(Some((place, (waits, failure, work))))
        })
        .boxed()
    }
}
