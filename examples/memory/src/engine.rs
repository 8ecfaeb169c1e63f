//! The memory engine's state, its registries, and what can be done to it that no driver can do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use orchestra::{
    Capabilities, ContainerId, Error, ErrorKind, ExposeSecret, ImageRef, Labels, Platform, PullEvent, PullImage,
    PullStream, Result, SharedDriver, VolumeId,
};
use tokio::sync::watch;

use super::container::Container;
use super::driver::MemoryDriver;
use super::files::{Tree, lock};
use super::image::MemoryImage;

/// A container engine that lives in this process: drivers that share one see the same containers.
///
/// ```
/// use orchestra_memory::{MemoryEngine, MemoryImage};
/// let engine = MemoryEngine::new();
/// engine.add_image("busybox:stable", MemoryImage::busybox())?;
/// let driver = engine.driver();
/// assert_eq!(driver.to_string(), "memory");
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone)]
pub struct MemoryEngine {
    pub(super) state: Arc<Mutex<State>>,
    capabilities: Capabilities,
    health: watch::Sender<Health>,
}

#[derive(Default)]
pub(super) struct State {
    /// By canonical reference.
    pub(super) images: BTreeMap<String, Arc<MemoryImage>>,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) containers: BTreeMap<ContainerId, Arc<Container>>,
    registries: BTreeMap<String, Registry>,
}

#[derive(Clone)]
pub(super) struct Volume {
    pub(super) tree: Arc<Tree>,
    pub(super) labels: Labels,
}

#[derive(Default)]
struct Registry {
    /// User name and password, where it wants some.
    credentials: Option<(String, String)>,
    /// Image archives by canonical reference.
    images: BTreeMap<String, Bytes>,
}

#[derive(Clone, Copy, PartialEq)]
enum Health {
    Well,
    Hanging,
    Dead,
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryEngine")
    }
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryEngine {
    /// What it does: everything that needs no kernel.
    const CAPABILITIES: Capabilities = {
        let mut capabilities = Capabilities::NONE;
        capabilities.default_network = true;
        capabilities.no_network = true;
        capabilities.extra_hosts = true;
        capabilities.stdin = true;
        capabilities.user = true;
        capabilities.exec = true;
        capabilities.import_image = true;
        capabilities.exact_volumes = true;
        capabilities.any_file = true;
        capabilities.insecure_pull = true;
        capabilities
    };

    /// An engine that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            capabilities: Self::CAPABILITIES,
            health: watch::Sender::new(Health::Well),
        }
    }

    /// Changes what its drivers say that it can do; it does not do more for that.
    #[must_use]
    pub fn with_capabilities(mut self, change: impl FnOnce(&mut Capabilities)) -> Self {
        change(&mut self.capabilities);
        self
    }

    /// A driver of it.
    #[must_use]
    pub fn driver(&self) -> SharedDriver {
        Arc::new(MemoryDriver::new(self.clone(), self.capabilities))
    }

    /// Gives the engine an image.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if `name` is not a reference.
    pub fn add_image(&self, name: &str, image: MemoryImage) -> Result<()> {
        let name = ImageRef::new(name)?.canonical();
        lock(&self.state).images.insert(name, Arc::new(image));
        Ok(())
    }

    /// Makes a registry at `address`, with credentials if it is to want some.
    pub fn add_registry(&self, address: &str, credentials: Option<(&str, &str)>) {
        let credentials = credentials.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let registry = Registry {
            credentials,
            images: BTreeMap::new(),
        };
        lock(&self.state).registries.insert(address.to_owned(), registry);
    }

    /// Puts an image, as an archive, into the registry that its name says.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] if there is no such registry.
    pub fn publish(&self, image: &ImageRef, archive: Bytes) -> Result<()> {
        let mut state = lock(&self.state);
        let registry = state.registries.get_mut(image.registry());
        let registry = registry.ok_or_else(|| Error::new(ErrorKind::Registry, "no such registry"))?;
        registry.images.insert(image.canonical(), archive);
        Ok(())
    }

    /// Ends the engine: every call and stream fails from now on.
    pub fn kill(&self) {
        self.health.send_replace(Health::Dead);
    }

    /// Keeps the engine from answering until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.health.send_replace(Health::Hanging);
    }

    /// Lets the engine answer again.
    pub fn resume(&self) {
        self.health.send_replace(Health::Well);
    }

    /// The start of every call.
    pub(super) async fn answer(&self) -> Result<()> {
        let mut health = self.health.subscribe();
        match health
            .wait_for(|health| *health != Health::Hanging)
            .await
            .map(|health| *health)
        {
            Ok(Health::Well) => Ok(()),
            _ => Err(Error::new(ErrorKind::Unreachable, "the engine has ended")),
        }
    }

    /// Comes when the engine dies.
    pub(super) async fn death(&self) -> Error {
        // The sender is in `self`: it can't be gone.
        let _ = self.health.subscribe().wait_for(|health| *health == Health::Dead).await;
        Error::new(ErrorKind::Interrupted, "the engine ended")
    }

    pub(super) fn pull(&self, pull: &PullImage, own: &Platform) -> Result<PullStream> {
        let platform = pull.platform.clone().unwrap_or_else(|| own.clone());
        let name = pull.image.canonical();
        let archive = {
            let state = lock(&self.state);
            let Some(registry) = state.registries.get(pull.image.registry()) else {
                return Err(Error::new(ErrorKind::Registry, "no such registry").with("image", &pull.image));
            };
            let given = pull.credentials.as_ref().map(|c| {
                (
                    c.username.expose_secret().to_owned(),
                    c.password.expose_secret().to_owned(),
                )
            });
            if registry.credentials.is_some() && registry.credentials != given {
                return Err(Error::new(ErrorKind::Unauthorized, "authentication required").with("image", &pull.image));
            }
            let archive = registry.images.get(&name).cloned();
            archive
                .ok_or_else(|| Error::new(ErrorKind::ImageNotFound, "manifest unknown").with("image", &pull.image))?
        };
        let started = PullEvent::Status {
            message: format!("pulling {name}"),
        };
        let images = self.state.clone();
        let size = archive.len() as u64;
        let fetched = async move {
            let image = MemoryImage::from_archive(orchestra::stream::once(archive), Some(&platform)).await;
            let image = image.map_err(|error| match error.kind() {
                ErrorKind::ImageNotFound => error,
                _ => Error::new(ErrorKind::Registry, error.message()),
            })?;
            lock(&images).images.insert(name.clone(), Arc::new(image));
            Ok(PullEvent::Layer {
                id: name,
                status: "Pull complete".to_owned(),
                current: Some(size),
                total: Some(size),
            })
        };
        Ok(stream::once(async { Ok(started) }).chain(stream::once(fetched)).boxed())
    }
}
