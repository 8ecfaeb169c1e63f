//! How much memory a large cache takes. Alone in its program, because memory is the process's.

#![expect(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use futures_util::StreamExt;
use orchestra::tar::{END, Head};
use orchestra_caches::Persist;
use support::*;

const MIB: u64 = 1 << 20;

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn a_large_cache_goes_in_and_out_in_bounded_memory() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/warm-up", &tar(&[("x", vec![1; 1000])]))
        .await
        .unwrap();
    let idle = peak();
    let size = 400 * MIB;
    let head = Head::file(size).blocks("large").concat();
    let pieces = (0..size / MIB).map(|at| Ok(noise(at, 1 << 20).into()));
    let content = futures_util::stream::iter(std::iter::once(Ok(head.into())).chain(pieces).chain([Ok(END)]));
    store
        .persist(&key("ci/large"), content.boxed(), Persist::default())
        .await
        .unwrap();
    let persisted = peak() - idle;
    let entry = store.get(&key("ci/large")).await.unwrap().unwrap();
    let mut restoring = store.restore(&entry).await.unwrap();
    let mut restored = 0;
    while let Some(piece) = restoring.content.next().await {
        restored += piece.unwrap().len() as u64;
    }
    assert_eq!(restored, size + 512 + 1024);
    let both = peak() - idle;
    assert!(
        both < 128 * MIB,
        "{} MiB to persist, {} MiB in all",
        persisted / MIB,
        both / MIB
    );
}
