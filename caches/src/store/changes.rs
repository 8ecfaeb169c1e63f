//! Persists of what has changed in part, through the store and back.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::Result;
use orchestra::stream::once;
use orchestra_helper::tree::{self, Known};
use orchestra_volumes::{Part, Parts};

use super::{Content, Persist, Persisted, Store, StoreOptions};
use crate::CacheKey;

/// The files of a tree, and how many there are.
const FILES: usize = 300;

struct World {
    folder: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            url: format!("file://{}", folder.path().join("store").display()),
            ..StoreOptions::default()
        };
        let store = Store::open(&options).unwrap();
        let tree = folder.path().join("tree");
        for at in 0..FILES {
            let directory = tree.join(format!("{:02}", at / 20));
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(format!("{at:03}")), content(at, 0)).unwrap();
        }
        Self { folder, store }
    }

    /// Persists the tree that the test began with, and fills another one from the cache.
    async fn restored(&self, key: &CacheKey) -> Arc<Known> {
        let tar = tar_of(&self.folder.path().join("tree"));
        self.store.persist(key, once(tar), Persist::default()).await.unwrap();
        let tar = self.content(key).await.unwrap();
        std::fs::create_dir(self.volume()).unwrap();
        let known = tree::fill(&self.volume(), &mut tar.as_slice()).unwrap();
        // The kernel's clock for times of change ticks every few milliseconds.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Arc::new(known)
    }

    fn volume(&self) -> std::path::PathBuf {
        self.folder.path().join("volume")
    }

    async fn content(&self, key: &CacheKey) -> Result<Vec<u8>> {
        let entry = self.store.get(key).await?.unwrap();
        let pieces: Vec<Bytes> = self.store.restore(&entry).await?.content.try_collect().await?;
        Ok(pieces.concat())
    }

    /// Persists what became of the volume. Also how many bytes were not read again.
    async fn persist(&self, key: &CacheKey, from: &CacheKey, known: Arc<Known>) -> Result<(Persisted, u64)> {
        let filled = self.store.get(from).await?.unwrap();
        self.persist_from(key, &filled, known).await
    }

    async fn persist_from(&self, key: &CacheKey, filled: &crate::Entry, known: Arc<Known>) -> Result<(Persisted, u64)> {
        let (volume, same) = (self.volume(), Arc::new(Mutex::new(0)));
        let counted = same.clone();
        let read = move |cuts: Option<Arc<Vec<u64>>>| {
            let parts = changes(&volume, &known, cuts.as_ref().map_or(&[], |cuts| cuts));
            for part in &parts {
                if let Part::Same(range) = part {
                    *counted.lock().unwrap() += range.end - range.start;
                }
            }
            let parts: Parts = stream::iter(parts.into_iter().map(Ok)).boxed();
            parts
        };
        let contents = vec![Content::Parts(Box::new(read))];
        let persisted = self
            .store
            .persist_all(key, Some(filled), contents, Persist::default())
            .await?;
        let same = *same.lock().unwrap();
        Ok((persisted, same))
    }
}

/// 3 kB that are not those of another file.
fn content(file: usize, version: usize) -> String {
    let line = |line: usize| format!("{:x} {version}\n", (file * 1000 + line) * 7_919);
    (0..300).map(line).collect()
}

fn key(name: &str) -> CacheKey {
    name.parse().unwrap()
}

fn tar_of(tree: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    tree::pack(tree, &[Path::new("")], &mut tar).unwrap();
    tar
}

fn changes(volume: &Path, known: &Known, cuts: &[u64]) -> Vec<Part> {
    struct Written<'p>(&'p Mutex<Vec<Part>>);
    impl io::Write for Written<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(Part::Tar(Bytes::copy_from_slice(bytes)));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let parts = Mutex::new(Vec::new());
    let mut same = |range| {
        parts.lock().unwrap().push(Part::Same(range));
        Ok(())
    };
    let comparison = known.compare(volume).unwrap();
    let since = tree::Since {
        comparison: &comparison,
        cuts,
        same: &mut same,
    };
    let devices_left_out = tree::pack_since(volume, &[Path::new("")], Some(since), true, &mut Written(&parts)).unwrap();
    let mut parts = parts.into_inner().unwrap();
    parts.push(Part::End { devices_left_out });
    parts
}

#[tokio::test]
async fn what_has_changed_is_read_and_the_whole_comes_back() {
    let world = World::new();
    let known = world.restored(&key("a")).await;
    let first = world.store.get(&key("a")).await.unwrap().unwrap();
    for (at, version) in [(7, 1), (150, 1), (151, 1)] {
        std::fs::write(
            world.volume().join(format!("{:02}/{at:03}", at / 20)),
            content(at, version),
        )
        .unwrap();
    }
    std::fs::remove_file(world.volume().join("10/205")).unwrap();
    std::fs::write(world.volume().join("12/new"), content(1, 9)).unwrap();
    let (persisted, same) = world.persist(&key("a"), &key("a"), known.clone()).await.unwrap();
    assert!(!persisted.unchanged);
    assert!(
        same > persisted.size * 8 / 10,
        "{same} of {} bytes were not read",
        persisted.size
    );
    assert!(persisted.new < persisted.size / 5, "{persisted:?}");
    assert_eq!(persisted.size, tar_of(&world.volume()).len() as u64);
    assert!(world.content(&key("a")).await.unwrap() == tar_of(&world.volume()));

    // Once more from the volume's own cache, which is no longer the one under the key.
    std::fs::write(world.volume().join("00/000"), content(0, 1)).unwrap();
    let (_, same) = world.persist_from(&key("a"), &first, known.clone()).await.unwrap();
    assert!(same > persisted.size * 8 / 10, "{same}");
    assert!(world.content(&key("a")).await.unwrap() == tar_of(&world.volume()));
    let (again, _) = world.persist_from(&key("a"), &first, known).await.unwrap();
    assert!(again.unchanged, "{again:?}");
}

#[tokio::test]
async fn a_fallback_that_did_not_change_is_read_nowhere_but_at_its_ends() {
    let world = World::new();
    let known = world.restored(&key("deps-1")).await;
    let (persisted, same) = world.persist(&key("deps-2"), &key("deps-1"), known).await.unwrap();
    assert!(
        same > persisted.size * 9 / 10,
        "{same} of {} bytes were not read",
        persisted.size
    );
    assert!(persisted.new < 100 << 10, "{persisted:?}");
    assert!(world.content(&key("deps-2")).await.unwrap() == world.content(&key("deps-1")).await.unwrap());
}

#[tokio::test]
async fn what_the_store_does_not_have_any_more_is_read_again() {
    let world = World::new();
    let known = world.restored(&key("a")).await;
    let filled = world.store.get(&key("a")).await.unwrap().unwrap();
    let packs = world.folder.path().join("store/packs");
    for pack in std::fs::read_dir(&packs).unwrap() {
        std::fs::remove_file(pack.unwrap().path()).unwrap();
    }
    let (persisted, same) = world.persist_from(&key("a"), &filled, known).await.unwrap();
    assert_eq!((same, persisted.new > 0), (0, true), "{persisted:?}");
    assert!(world.content(&key("a")).await.unwrap() == tar_of(&world.volume()));
}

#[tokio::test]
async fn what_changes_are_told_by_is_taken_back_from_a_prune() {
    let world = World::new();
    let known = world.restored(&key("a")).await;
    let filled = world.store.get(&key("a")).await.unwrap().unwrap();
    std::fs::write(world.volume().join("00/000"), content(0, 1)).unwrap();
    world.store.remove(&key("a")).await.unwrap();
    let condemned = world.store.prune(crate::Prune::default()).await.unwrap().condemned;
    assert!(condemned >= 2, "{condemned}");
    world.persist_from(&key("b"), &filled, known).await.unwrap();
    let marks = std::fs::read_dir(world.folder.path().join("store/condemned")).unwrap();
    let names: Vec<_> = marks
        .map(|mark| mark.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!names.iter().any(|name| name.starts_with("manifests-")), "{names:?}");
    let prune = crate::Prune {
        grace: std::time::Duration::ZERO,
        ..crate::Prune::default()
    };
    for _ in 0..2 {
        world.store.prune(prune).await.unwrap();
    }
    let manifests = std::fs::read_dir(world.folder.path().join("store/manifests")).unwrap();
    assert_eq!(manifests.count(), 2);
    assert!(world.content(&key("b")).await.unwrap() == tar_of(&world.volume()));
}

#[tokio::test]
async fn parts_of_what_was_not_there_are_refused() {
    let world = World::new();
    for range in [0..512, 3..5] {
        let parts: Parts = stream::iter([Ok(Part::Same(range)), Ok(Part::End { devices_left_out: 0 })]).boxed();
        let refused = world
            .store
            .persist_parts(&key("a"), parts, Persist::default())
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), orchestra::ErrorKind::Protocol, "{refused}");
    }
    let broken: Parts = stream::iter([Ok(Part::Tar(Bytes::from_static(&[0; 512])))]).boxed();
    let refused = world
        .store
        .persist_parts(&key("a"), broken, Persist::default())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), orchestra::ErrorKind::Interrupted, "{refused}");
    assert!(world.store.get(&key("a")).await.unwrap().is_none());
}
