//! The engine in memory as the suite wants one: with registries, and with engines that may be killed.
#![expect(clippy::expect_used, reason = "a test may fail")]

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use orchestra::{Credentials, ImageRef, Result, SharedDriver};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_conformance::{Registry, Settings, ThrowawayEngine};

const IMAGE: &str = "busybox:stable";

/// An engine that holds the test image.
pub(crate) fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image(IMAGE, MemoryImage::busybox()).expect("a valid name");
    engine
}

struct MemoryRegistry {
    engine: MemoryEngine,
    address: &'static str,
    credentials: Option<Credentials>,
}

#[async_trait]
impl Registry for MemoryRegistry {
    fn address(&self) -> &str {
        self.address
    }

    fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    async fn publish(&self, image: &ImageRef, layout: Bytes) -> Result<()> {
        self.engine.publish(image, layout)
    }
}

/// What a driver of the engine is wrapped in.
pub(crate) type Wrap = Arc<dyn Fn(SharedDriver) -> SharedDriver + Send + Sync>;

struct Throwaway(MemoryEngine, Wrap);

#[async_trait]
impl ThrowawayEngine for Throwaway {
    async fn connect(&self) -> Result<SharedDriver> {
        Ok((self.1)(self.0.driver()))
    }

    async fn kill(&self) -> Result<()> {
        self.0.kill();
        Ok(())
    }

    async fn restart(&self) -> Result<()> {
        self.0.kill();
        self.0.resume();
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.0.pause();
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.0.resume();
        Ok(())
    }
}

/// Everything that the suite can be told, for this engine and drivers that are wrapped so.
pub(crate) fn settings(engine: &MemoryEngine, wrap: Wrap) -> Settings {
    let mut settings = Settings::new(IMAGE.parse().expect("a valid name"));
    // It is all in memory.
    settings.volume_bytes = 64 << 20;
    let registry = |address: &'static str, credentials: Option<(&str, &str)>| {
        engine.add_registry(address, credentials);
        let credentials = credentials.map(|(user, password)| Credentials::new(user, password));
        let registry = MemoryRegistry {
            engine: engine.clone(),
            address,
            credentials,
        };
        Some(Arc::new(registry) as Arc<dyn Registry>)
    };
    settings.registry = registry("open.test:5000", None);
    settings.private_registry = registry("private.test:5000", Some(("robot", "hunter2")));
    settings.throwaway = Some(Arc::new(move || {
        let wrap = wrap.clone();
        Box::pin(async move { Ok(Box::new(Throwaway(self::engine(), wrap)) as Box<dyn ThrowawayEngine>) })
    }));
    settings.unreachable = Some(Arc::new(|| {
        let dead = MemoryEngine::new();
        dead.kill();
        Box::pin(async move { Ok(dead.driver()) })
    }));
    settings.silent = Some(Arc::new(move || {
        let hanging = MemoryEngine::new();
        hanging.pause();
        Box::pin(async move { Ok(hanging.driver()) })
    }));
    settings
}
