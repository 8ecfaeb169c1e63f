//! Whether everything in a store is what it was.

use std::sync::Arc;

use futures_util::StreamExt;
use orchestra::{Error, ErrorKind, Result};

use super::restore::Plan;
use super::{Store, pack_path};
use crate::CacheKey;

/// What a verification found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Caches that are whole.
    pub whole: usize,
    /// Caches that are not.
    pub damaged: Vec<Damage>,
    /// Bytes that were read.
    pub read: u64,
}

/// A cache that can't be restored.
#[derive(Debug)]
#[non_exhaustive]
pub struct Damage {
    /// Which.
    pub key: CacheKey,
    /// Why.
    pub error: Error,
}

impl Store {
    /// Reads all that caches whose keys begin with `prefix` are made of, and compares it with its hashes.
    ///
    /// With `repair`, packs that are damaged and caches that have no readable entry are deleted, so that every later
    /// persist, on whichever machine, sends them anew.
    ///
    /// # Errors
    /// As [`check`](Self::check). Damage is a result, not an error.
    pub async fn verify(&self, prefix: &str, repair: bool) -> Result<Verified> {
        let mut verified = Verified::default();
        for (key, _) in self.objects_with(prefix).await? {
            match self.verify_one(&key, &mut verified.read).await {
                Ok(()) => verified.whole += 1,
                Err(error) if error.kind() == ErrorKind::Protocol => verified.damaged.push(Damage { key, error }),
                Err(error) => return Err(error),
            }
        }
        if repair {
            for damage in &verified.damaged {
                if let Err(error) = self.get(&damage.key).await
                    && error.kind() == ErrorKind::Protocol
                {
                    self.remove(&damage.key).await?;
                }
            }
            let bad: Vec<_> = self.bad_packs().iter().copied().collect();
            for pack in bad {
                self.delete(&pack_path(&pack)).await?;
            }
        }
        Ok(verified)
    }

    async fn verify_one(&self, key: &CacheKey, read: &mut u64) -> Result<()> {
        let Some(entry) = self.get(key).await? else {
            return Ok(());
        };
        let plan = Arc::new(Plan::new(self.load_manifest(&entry.manifest).await?));
        let mut loads = futures_util::stream::iter(plan.loads())
            .map(|load| {
                let plan = plan.clone();
                async move {
                    let bytes = load.range.end - load.range.start;
                    self.load(plan, load).await.map(|_| bytes)
                }
            })
            .buffer_unordered(2)
            .boxed();
        let mut damage = None;
        // To the end: each damaged pack is to be known.
        while let Some(loaded) = loads.next().await {
            match loaded {
                Ok(bytes) => *read += bytes,
                Err(error) if error.kind() == ErrorKind::Protocol => damage = Some(error),
                Err(error) => return Err(error),
            }
        }
        damage.map_or(Ok(()), Err)
    }
}
