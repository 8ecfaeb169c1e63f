//! Whether everything in a store is what it was.

use std::collections::HashSet;

use futures_util::StreamExt;
use orchestra::{Error, ErrorKind, Result};

use super::{Store, pack_path};
use crate::CacheKey;
use crate::format::{Hash, damaged};

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
    /// With `repair`, packs that are damaged and caches that can't be restored are deleted, so that every later persist, on
    /// whichever machine, sends them anew. A pack is read twice before it is: one answer of a store may be cut short. Other
    /// caches that have content in it are then among the damaged ones, whatever their keys begin with.
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
            self.repair(prefix, &mut verified).await?;
        }
        Ok(verified)
    }

    async fn repair(&self, prefix: &str, verified: &mut Verified) -> Result<()> {
        let first = std::mem::take(&mut *self.bad_packs());
        for damage in std::mem::take(&mut verified.damaged) {
            let key = damage.key.clone();
            match self.verify_one(&key, &mut verified.read).await {
                Ok(()) => verified.whole += 1,
                Err(error) if error.kind() != ErrorKind::Protocol => return Err(error),
                Err(_) => verified.damaged.push(damage),
            }
        }
        let bad: HashSet<_> = self.bad_packs().intersection(&first).copied().collect();
        self.bad_packs().extend(first);
        for pack in &bad {
            self.delete(&pack_path(pack)).await?;
        }
        if !bad.is_empty() {
            self.find_others(prefix, verified, &bad).await?;
        }
        for damage in &verified.damaged {
            // A run may have persisted it meanwhile.
            match self.verify_one(&damage.key, &mut verified.read).await {
                Err(error) if error.kind() == ErrorKind::Protocol => _ = self.remove(&damage.key).await?,
                found => found?,
            }
        }
        Ok(())
    }

    /// Finds whatever else has content in packs that are deleted.
    async fn find_others(&self, prefix: &str, verified: &mut Verified, bad: &HashSet<Hash>) -> Result<()> {
        let known: HashSet<CacheKey> = verified.damaged.iter().map(|damage| damage.key.clone()).collect();
        for entry in self
            .list("")
            .await?
            .into_iter()
            .filter(|entry| !known.contains(&entry.key))
        {
            let manifest = match self.load_manifest(&entry.manifest).await {
                Err(error) if error.kind() == ErrorKind::Protocol => continue,
                loaded => loaded?.manifest,
            };
            if let Some((pack, _)) = manifest.packs.iter().find(|(pack, _)| bad.contains(pack)) {
                let error = damaged(format!(
                    "it has content in the pack {pack}, which was damaged and is deleted"
                ));
                if entry.key.as_str().starts_with(prefix) {
                    verified.whole = verified.whole.saturating_sub(1);
                }
                verified.damaged.push(Damage { key: entry.key, error });
            }
        }
        Ok(())
    }

    async fn verify_one(&self, key: &CacheKey, read: &mut u64) -> Result<()> {
        let Some(entry) = self.get(key).await? else {
            return Ok(());
        };
        let plan = self.plan(&entry).await?;
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
