//! Caches for CI jobs, on any engine: a content-addressed [`Store`], and [`CachesLayer`], which fills volumes from it and
//! persists them to it.
//!
//! ```
//! use std::sync::Arc;
//! use orchestra::{Job, Labels, SharedDriver, Task};
//! use orchestra_caches::{CacheSpec, CachesLayer, CachesOptions, Store, StoreOptions};
//!
//! async fn build(driver: SharedDriver) -> orchestra::Result<()> {
//!     let mut options = StoreOptions::default();
//!     options.url = "file:///var/cache/orchestra".to_owned();
//!     let store = Store::open(&options)?;
//!     let driver = Arc::new(CachesLayer::new(driver, store, CachesOptions::default()));
//!
//!     let job = Job::builder(driver).build();
//!     let cache = CacheSpec::new("ci/build/.cargo".parse()?);
//!     // Restored when this returns ...
//!     let volume = job.create_volume_with("cargo", Labels::from([cache.label()])).await?;
//!     job.run(Task::new("build", "rust")?.shell("cargo build").mount(&volume, ".cargo")?).await?.success()?;
//!     // ... and persisted when this does.
//!     job.end().await?;
//!     Ok(())
//! }
//! ```
//!
//! # How data flows
//! A volume's tar is cut into chunks where its content says so ([FastCDC](https://www.usenix.org/conference/atc16/technical-sessions/presentation/xia)),
//! so that a change moves no other cuts. Chunks that the store lacks are compressed together and sent in packs of some
//! 8 MiB; then the manifest, the list of all chunks, or what of it has changed; then the entry, one small object that is replaced atomically. A
//! restore goes the other way, fetches ahead and verifies each chunk before it is passed on. Both hold some 30 MiB of content
//! at most, and the list of chunks, which is 10 to 20 MiB for each GiB of cache; neither waits longer for a store that failed
//! once than it took to fail. A persist knows 4 GiB of content again: that of the cache itself, then of those 32 others whose
//! keys are most alike. What is beyond is compressed again, and sent again unless it makes the same packs.
//!
//! Where [`ExactVolumes`](orchestra_volumes::ExactVolumes) fills a volume, it also says what that then is; a volume that is
//! the same at its end is not read, and only the entry's time changes. Of one that is a directory of this machine, files that
//! are the same are not read either: 1 % of 50,000 files that changed cost a sixth of a first persist.

mod archive;
mod event;
mod format;
mod key;
mod layer;
mod spec;
mod store;

pub use event::{CacheEvent, CacheEventKind};
pub use format::Entry;
pub use key::CacheKey;
pub use layer::{CachesLayer, CachesOptions};
pub use spec::{CacheSpec, LABEL, Policy};
pub use store::{
    Damage, Found, Persist, Persisted, Prune, Pruned, Restoring, S3Options, Store, StoreOptions, Verified,
};
