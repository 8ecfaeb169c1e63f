//! A process that is killed at any moment.

#![allow(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use orchestra_caches::Prune;
use support::*;

const FOLDER: &str = "ORCHESTRA_CACHES_CRASH_FOLDER";

fn content(seed: u64) -> Vec<u8> {
    tar(&[
        ("seed", seed.to_le_bytes().to_vec()),
        ("x", noise(seed, 4 << 20)),
        ("same", noise(0, 1 << 20)),
    ])
}

/// What the killed process does; no test of its own.
#[tokio::test]
async fn child_that_persists_and_prunes_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let store = folder_store(folder.as_ref());
    for seed in 1.. {
        persist(&store, "ci/a", &content(seed)).await.unwrap();
        let mut prune = Prune::default();
        prune.grace = Duration::from_millis(1);
        store.prune(prune).await.unwrap();
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_a_store_with_the_old_or_the_new_cache() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &content(0)).await.unwrap();
    let mut newest = 0;
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_that_persists_and_prunes_until_it_is_killed", "--exact"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(150 + 37 * round)).await;
        assert!(
            child.try_wait().unwrap().is_none(),
            "round {round}: the process ended by itself"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let found = restore(&store, "ci/a").await.unwrap().unwrap();
        let seed = u64::from_le_bytes(found[512..520].try_into().unwrap());
        assert!(found == content(seed), "round {round}");
        newest = newest.max(seed);
        assert!(store.verify("", false).await.unwrap().damaged.is_empty());
    }
    assert!(newest > 0, "no process has persisted anything");
    // Nothing but the cache is left in the end.
    let mut prune = Prune::default();
    prune.grace = Duration::ZERO;
    store.prune(prune).await.unwrap();
    store.prune(prune).await.unwrap();
    let last = store.prune(prune).await.unwrap();
    assert_eq!((last.objects, last.condemned), (0, 0), "{last:?}");
    for (name, _) in files(folder.path()) {
        assert!(!name.contains('#') && !name.starts_with("condemned"), "{name} is left");
    }
}
