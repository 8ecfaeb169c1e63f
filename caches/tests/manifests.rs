//! What a store keeps of a cache's chunks, as a whole and by its changes.

#![allow(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orchestra::ErrorKind;
use support::*;

/// A tar of some thousand chunks, in which these files are not what they were.
fn project(changed: &[usize]) -> Vec<u8> {
    let content = |at: usize| noise(at as u64 + if changed.contains(&at) { 1_000_000 } else { 0 }, 60_000);
    let files: Vec<_> = (0..300).map(|at| (format!("file{at}"), content(at))).collect();
    let named: Vec<_> = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.clone()))
        .collect();
    tar(&named)
}

/// The manifests and their lengths.
fn manifests(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let files = std::fs::read_dir(folder.join("manifests")).unwrap().flatten();
    files
        .map(|file| (file.path(), file.metadata().unwrap().len()))
        .collect()
}

#[tokio::test]
async fn a_change_sends_what_the_manifest_lacks_and_what_that_is_told_by_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(&[])).await.unwrap();
    let first = manifests(folder.path());
    let (first_path, first_length) = first.first_key_value().unwrap();
    for changed in [vec![7], vec![7, 200], vec![8, 200, 201]] {
        let before = manifests(folder.path());
        persist(&store, "ci/a", &project(&changed)).await.unwrap();
        let after = manifests(folder.path());
        let new: Vec<u64> = after
            .iter()
            .filter(|(path, _)| !before.contains_key(*path))
            .map(|(_, length)| *length)
            .collect();
        assert!(
            matches!(new[..], [length] if length < first_length / 10),
            "{new:?}, the first has {first_length}"
        );
        assert!(restore(&store, "ci/a").await.unwrap().unwrap() == project(&changed));
    }
    // Once to condemn what nothing refers to, once to delete it.
    for _ in 0..2 {
        store.prune(prune_at_once()).await.unwrap();
    }
    let left = manifests(folder.path());
    assert_eq!((left.len(), left.contains_key(first_path)), (2, true), "{left:?}");
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == project(&[8, 200, 201]));
    let verified = store.verify("", false).await.unwrap();
    assert_eq!((verified.whole, verified.damaged.len()), (1, 0));
}

#[tokio::test]
async fn what_did_not_change_keeps_the_manifest_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(&[])).await.unwrap();
    persist(&store, "ci/a", &project(&[9])).await.unwrap();
    let before = manifests(folder.path());
    let again = persist(&store, "ci/a", &project(&[9])).await.unwrap();
    assert!(again.unchanged && again.sent == 0, "{again:?}");
    assert_eq!(manifests(folder.path()), before);
    // The same content under another key, which had none.
    let other = persist(&store, "ci/b", &project(&[9])).await.unwrap();
    assert_eq!(other.new, 0);
    for key in ["ci/a", "ci/b"] {
        assert!(restore(&store, key).await.unwrap().unwrap() == project(&[9]));
    }
    // What was told by changes becomes what it was.
    persist(&store, "ci/a", &project(&[])).await.unwrap();
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == project(&[]));
}

#[tokio::test]
async fn changes_of_what_is_damaged_are_a_miss_and_the_next_persist_mends_it() {
    for damage in ["missing", "junk", "changes"] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder_store(folder.path());
        persist(&store, "ci/a", &project(&[])).await.unwrap();
        let whole = manifests(folder.path());
        let whole = whole.first_key_value().unwrap().0;
        persist(&store, "ci/a", &project(&[3])).await.unwrap();
        match damage {
            "missing" => std::fs::remove_file(whole).unwrap(),
            "junk" => std::fs::write(whole, "junk").unwrap(),
            _ => {
                let all = manifests(folder.path());
                let changes = all.keys().find(|path| *path != whole).unwrap();
                std::fs::copy(changes, whole).unwrap();
            }
        }
        let entry = store.get(&key("ci/a")).await.unwrap().unwrap();
        let error = content(&store, &entry).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{damage}: {error}");
        assert_eq!(store.verify("", false).await.unwrap().damaged.len(), 1, "{damage}");
        let mended = persist(&store, "ci/a", &project(&[3])).await.unwrap();
        assert!(!mended.unchanged, "{damage}");
        assert!(
            restore(&store, "ci/a").await.unwrap().unwrap() == project(&[3]),
            "{damage}"
        );
    }
}

#[tokio::test]
async fn where_most_has_changed_the_manifest_is_sent_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(&[])).await.unwrap();
    let changed: Vec<usize> = (0..250).collect();
    persist(&store, "ci/a", &project(&changed)).await.unwrap();
    for _ in 0..2 {
        store.prune(prune_at_once()).await.unwrap();
    }
    assert_eq!(manifests(folder.path()).len(), 1);
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == project(&changed));
}
