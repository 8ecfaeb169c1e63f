//! What the suite is told of the engine it runs on.

use std::env;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use orchestra::{Credentials, Error, ImageRef, Result, SharedDriver};

use crate::registry::HttpRegistry;

/// Makes a driver that is connected to the engine under test.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<SharedDriver>> + Send + Sync>;

/// Starts an engine of its own for one case.
pub type StartEngine = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn ThrowawayEngine>>> + Send + Sync>;

/// Everything but the driver. Cases that need what is missing here are skipped, and say so.
#[derive(Clone)]
#[non_exhaustive]
pub struct Settings {
    /// A busybox image, which the engine has or can pull.
    pub image: ImageRef,
    /// A registry for images without credentials.
    pub registry: Option<Arc<dyn Registry>>,
    /// A registry that wants credentials.
    pub private_registry: Option<Arc<dyn Registry>>,
    /// Engines that may be killed.
    pub throwaway: Option<StartEngine>,
    /// Connects to an endpoint where no engine listens.
    pub unreachable: Option<Connect>,
    /// Connects to an endpoint that takes connections and never answers.
    pub silent: Option<Connect>,
    /// How many bytes do not fit on the disk of a [`throwaway`](Self::throwaway) engine, if that is few.
    pub small_disk: Option<u64>,
    /// Whether containers of a [`throwaway`](Self::throwaway) engine run on while its daemon is killed and started again.
    pub survives_restart: bool,
    /// The size of the large log, in bytes; 1 GiB.
    pub log_bytes: u64,
    /// The size of the large file in a volume, in bytes; 5 GiB.
    pub volume_bytes: u64,
    /// How long a case may take that does not say otherwise; 120 seconds.
    pub deadline: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Settings with an image and nothing else.
    #[must_use]
    pub fn new(image: ImageRef) -> Self {
        Self {
            image,
            registry: None,
            private_registry: None,
            throwaway: None,
            unreachable: None,
            silent: None,
            small_disk: None,
            survives_restart: false,
            log_bytes: 1 << 30,
            volume_bytes: 5 << 30,
            deadline: Duration::from_secs(120),
        }
    }

    /// Settings from the environment:
    ///
    /// | variable | is |
    /// | --- | --- |
    /// | `ORCHESTRA_TEST_IMAGE` | a busybox image; `busybox:stable` where not set |
    /// | `ORCHESTRA_TEST_REGISTRY` | `HOST:PORT` of a plain-HTTP registry without credentials that the engine and this process reach |
    /// | `ORCHESTRA_TEST_REGISTRY_AUTH` | the same, for one that wants credentials |
    /// | `ORCHESTRA_TEST_REGISTRY_USER`, `ORCHESTRA_TEST_REGISTRY_PASSWORD` | those |
    /// | `ORCHESTRA_TEST_LOG_BYTES`, `ORCHESTRA_TEST_VOLUME_BYTES` | how large the large log and the large file are |
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](orchestra::ErrorKind::InvalidInput) if one can't be what it should be.
    pub fn from_env() -> Result<Self> {
        let image = env::var("ORCHESTRA_TEST_IMAGE").unwrap_or_else(|_| "busybox:stable".to_owned());
        let mut settings = Self::new(image.parse()?);
        if let Ok(address) = env::var("ORCHESTRA_TEST_REGISTRY") {
            settings.registry = Some(Arc::new(HttpRegistry::new(address, None)));
        }
        if let Ok(address) = env::var("ORCHESTRA_TEST_REGISTRY_AUTH") {
            let get = |name: &str| {
                env::var(name)
                    .map_err(|_| Error::invalid(format!("ORCHESTRA_TEST_REGISTRY_AUTH is set and {name} is not")))
            };
            let credentials = Credentials::new(
                get("ORCHESTRA_TEST_REGISTRY_USER")?,
                get("ORCHESTRA_TEST_REGISTRY_PASSWORD")?,
            );
            settings.private_registry = Some(Arc::new(HttpRegistry::new(address, Some(credentials))));
        }
        for (name, size) in [
            ("ORCHESTRA_TEST_LOG_BYTES", &mut settings.log_bytes),
            ("ORCHESTRA_TEST_VOLUME_BYTES", &mut settings.volume_bytes),
        ] {
            if let Ok(bytes) = env::var(name) {
                let wrong = |_| Error::invalid(format!("{name} is {bytes:?}, which is no number of bytes"));
                *size = bytes.parse().map_err(wrong)?;
            }
        }
        Ok(settings)
    }
}

/// A registry that the engine pulls from.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Host and port, as image references have it.
    fn address(&self) -> &str;

    /// What it wants, if it wants any.
    fn credentials(&self) -> Option<&Credentials>;

    /// Puts an image, given as an OCI image layout in a tar, into it. A layout of several manifests is an image of several
    /// platforms: its index is what the tag names.
    ///
    /// # Errors
    /// Whatever keeps it from doing so; the case fails.
    async fn publish(&self, image: &ImageRef, layout: Bytes) -> Result<()>;
}

/// An engine of one case's own, which ends when this is dropped. It holds [`Settings::image`].
#[async_trait]
pub trait ThrowawayEngine: Send + Sync {
    /// A driver of it.
    ///
    /// # Errors
    /// Whatever the driver's constructor says.
    async fn connect(&self) -> Result<SharedDriver>;

    /// Ends it at once, as a crash does.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    async fn kill(&self) -> Result<()>;

    /// Ends it at once, and starts it again with all that it kept; it answers when this returns.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    async fn restart(&self) -> Result<()>;

    /// Keeps it from answering, as an overloaded or stuck engine does.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    async fn pause(&self) -> Result<()>;

    /// Lets it answer again.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    async fn resume(&self) -> Result<()>;
}
