//! What a store promises, on a folder.

#![allow(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use orchestra::ErrorKind;
use orchestra_caches::{Persist, Prune, Store};
use proptest::prelude::*;
use support::*;

fn project(changed: u64) -> Vec<u8> {
    let names: Vec<String> = (0..600).map(|at| format!("src/module{}/file{at}", at / 20)).collect();
    let content = |at: usize| noise(if at == 300 { changed } else { at as u64 + 1_000_000 }, 5000 + at * 10);
    let files: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| (name.as_str(), content(at)))
        .collect();
    tar(&files)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_persisted_comes_back_byte_for_byte(
        files in proptest::collection::vec((0u64..4, 0usize..400_000, any::<bool>()), 0..12),
        cut in 0usize..12,
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = folder_store(folder.path());
            let tar_of = |files: &[(u64, usize, bool)]| {
                let content = |(seed, length, plain): &(u64, usize, bool)| if *plain { vec![7; *length] } else { noise(*seed, *length) };
                let named: Vec<_> = files.iter().enumerate().map(|(at, file)| (format!("f{at}"), content(file))).collect();
                tar(&named.iter().map(|(name, content)| (name.as_str(), content.clone())).collect::<Vec<_>>())
            };
            let first = tar_of(&files);
            persist(&store, "k", &first).await.unwrap();
            assert!(restore(&store, "k").await.unwrap().unwrap() == first);
            // Over the first, with which it shares a part.
            let second = tar_of(&files[files.len().min(cut)..]);
            persist(&store, "k", &second).await.unwrap();
            assert!(restore(&folder_store(folder.path()), "k").await.unwrap().unwrap() == second);
        });
    }
}

#[tokio::test]
async fn an_unchanged_cache_sends_nothing_but_its_entry() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Arc::new(Flaky::new(folder.path()));
    let store = Store::in_objects(objects.clone(), "flaky");
    let first = persist(&store, "ci/a", &project(1)).await.unwrap();
    assert!(!first.unchanged && first.new == first.size && first.sent > 3_000_000);
    let before = files(folder.path());
    let puts = objects.puts.load(Ordering::SeqCst);
    let again = persist(&store, "ci/a", &project(1)).await.unwrap();
    assert!(again.unchanged, "{again:?}");
    assert_eq!((again.new, again.sent), (0, 0));
    assert_eq!(objects.puts.load(Ordering::SeqCst) - puts, 1);
    assert_eq!(before, files(folder.path()));
}

#[tokio::test]
async fn a_changed_file_costs_little_more_than_itself_and_few_requests() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Arc::new(Flaky::new(folder.path()));
    let store = Store::in_objects(objects.clone(), "flaky");
    persist(&store, "ci/a", &project(1)).await.unwrap();
    // Version, pack, manifest, entry.
    assert_eq!(objects.puts.load(Ordering::SeqCst), 4);
    let changed = persist(&store, "ci/a", &project(2)).await.unwrap();
    assert!(!changed.unchanged && changed.new < 160_000, "{changed:?}");
    assert_eq!(objects.puts.load(Ordering::SeqCst), 7);
    objects.gets.store(0, Ordering::SeqCst);
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == project(2));
    let gets = objects.gets.load(Ordering::SeqCst);
    assert!(gets < 12, "{gets} requests");
}

#[tokio::test]
async fn caches_share_what_they_have_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    let other = persist(&store, "other/pipeline/b", &project(1)).await.unwrap();
    assert_eq!(other.new, 0);
    assert!(restore(&store, "other/pipeline/b").await.unwrap().unwrap() == project(1));
}

#[tokio::test]
async fn a_key_is_found_exactly_or_by_the_newest_of_the_first_prefix_that_has_any() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    for name in ["ci/lock-2", "ci/lock-1", "ci/other", "ci/lockless"] {
        persist(&store, name, &tar(&[(name, vec![1])])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let find = async |name: &str, restore_keys: &[&str]| {
        let restore_keys: Vec<String> = restore_keys.iter().map(ToString::to_string).collect();
        let found = store.find(&key(name), &restore_keys).await.unwrap();
        found.map(|found| (found.entry.key.to_string(), found.exact))
    };
    let some = |key: &str, exact| Some((key.to_owned(), exact));
    assert_eq!(find("ci/lock-2", &["ci/"]).await, some("ci/lock-2", true));
    assert_eq!(
        find("ci/lock-3", &["ci/none-", "ci/lock-", "ci/"]).await,
        some("ci/lock-1", false)
    );
    assert_eq!(find("ci/lock-3", &["ci/"]).await, some("ci/lockless", false));
    assert_eq!(find("ci/lock-3", &[]).await, None);
    let listed: Vec<String> = store
        .list("ci/lock-")
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.key.to_string())
        .collect();
    assert_eq!(listed, ["ci/lock-1", "ci/lock-2"]);
    assert!(store.remove(&key("ci/lock-1")).await.unwrap());
    assert!(!store.remove(&key("ci/lock-1")).await.unwrap());
    assert_eq!(find("ci/lock-3", &["ci/lock-"]).await, some("ci/lock-2", false));
}

#[tokio::test]
async fn a_store_that_was_never_used_is_empty_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(&folder.path().join("not/there"));
    store.check().await.unwrap();
    assert!(store.list("").await.unwrap().is_empty());
    assert!(store.find(&key("a"), &["b".to_owned()]).await.unwrap().is_none());
    store.prune(Prune::default()).await.unwrap();
    assert!(files(folder.path()).is_empty());
}

/// One way to damage a store: objects with this beginning are changed, or removed for `None`.
type Harm = (&'static str, fn(Vec<u8>) -> Option<Vec<u8>>);

const HARMS: [Harm; 10] = [
    ("packs/", |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    }),
    ("packs/", |mut bytes| {
        bytes[0] ^= 255;
        Some(bytes)
    }),
    ("packs/", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
    ("packs/", |_| None),
    ("packs/", |_| Some(Vec::new())),
    ("manifests/", |_| None),
    ("manifests/", |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    }),
    ("entries/", |bytes| Some(bytes[..bytes.len() / 2].to_vec())),
    ("entries/", |_| Some(Vec::new())),
    // Another size than the manifest's.
    ("entries/", |bytes| {
        Some(
            String::from_utf8(bytes)
                .unwrap()
                .replace("\"size\":", "\"size\":1")
                .into_bytes(),
        )
    }),
];

#[tokio::test]
async fn damage_never_reaches_a_volume_and_the_next_persist_mends_it() {
    for (at, (folder_name, harm)) in HARMS.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder_store(folder.path());
        let whole = project(1);
        persist(&store, "ci/a", &whole).await.unwrap();
        for (name, bytes) in files(folder.path()) {
            if name.starts_with(folder_name) {
                match harm(bytes) {
                    Some(bytes) => std::fs::write(folder.path().join(name), bytes).unwrap(),
                    None => std::fs::remove_file(folder.path().join(name)).unwrap(),
                }
            }
        }
        let store = folder_store(folder.path());
        let mut received = Vec::new();
        let error = match store.get(&key("ci/a")).await {
            Err(error) => error,
            Ok(entry) => match store.restore(&entry.unwrap()).await {
                Err(error) => error,
                Ok(mut restoring) => loop {
                    match restoring.content.next().await.expect("an error at the end") {
                        Ok(piece) => received.extend_from_slice(&piece),
                        Err(error) => break error,
                    }
                },
            },
        };
        assert_eq!(error.kind(), ErrorKind::Protocol, "{at}: {error}");
        assert!(error.to_string().contains("damaged"), "{at}: {error}");
        assert!(whole.starts_with(&received), "{at}: something else was restored");
        let verified = store.verify("", false).await.unwrap();
        assert_eq!((verified.whole, verified.damaged.len()), (0, 1), "{at}");
        persist(&store, "ci/a", &whole).await.unwrap();
        assert!(
            restore(&folder_store(folder.path()), "ci/a").await.unwrap().unwrap() == whole,
            "{at}"
        );
        assert_eq!(store.verify("", false).await.unwrap().whole, 1, "{at}");
    }
}

#[tokio::test]
async fn a_key_whose_cache_is_damaged_falls_back_as_one_that_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/lock-1", &project(1)).await.unwrap();
    let before: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
    persist(&store, "ci/lock-2", &project(2)).await.unwrap();
    let of_second = |name: &String| name.starts_with("entries/") && !before.contains(name);
    for (name, bytes) in files(folder.path()).into_iter().filter(|(name, _)| of_second(name)) {
        std::fs::write(folder.path().join(name), &bytes[..bytes.len() / 2]).unwrap();
    }
    let find = async |restore_keys: &[String]| store.find(&key("ci/lock-2"), restore_keys).await;
    let found = find(&["ci/lock-".to_owned()]).await.unwrap().unwrap();
    assert_eq!((found.entry.key.as_str(), found.exact), ("ci/lock-1", false));
    assert_eq!(
        find(&[]).await.unwrap_err().kind(),
        ErrorKind::Protocol,
        "without a fallback it is told"
    );
}

#[tokio::test]
async fn a_cache_with_damage_in_several_packs_is_mended_by_one_persist() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    for version in 1..=3 {
        persist(&store, "ci/a", &project(version)).await.unwrap();
    }
    let packs = files(folder.path());
    let packs: Vec<_> = packs
        .into_iter()
        .filter(|(name, _)| name.starts_with("packs/"))
        .collect();
    assert!(packs.len() >= 3, "{}", packs.len());
    for (name, mut bytes) in packs {
        bytes.iter_mut().step_by(500).for_each(|byte| *byte ^= 1);
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    assert_eq!(restore(&store, "ci/a").await.unwrap_err().kind(), ErrorKind::Protocol);
    persist(&store, "ci/a", &project(3)).await.unwrap();
    assert!(restore(&folder_store(folder.path()), "ci/a").await.unwrap().unwrap() == project(3));
}

#[tokio::test]
async fn a_restore_that_nobody_reads_on_asks_for_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let objects = Arc::new(Flaky::new(folder.path()));
    let store = Store::in_objects(objects.clone(), "flaky");
    persist(&store, "ci/a", &tar(&[("a", noise(1, 64 << 20))]))
        .await
        .unwrap();
    let entry = store.get(&key("ci/a")).await.unwrap().unwrap();
    let mut content = store.restore(&entry).await.unwrap().content;
    content.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (asked, whole) = (objects.gets.load(Ordering::SeqCst), 64 / 2);
    assert!(asked < whole / 2, "{asked} requests");
    let rest: usize = content
        .map(|piece| piece.unwrap().len())
        .fold(0, async |sum, piece| sum + piece)
        .await;
    assert!(rest > 60 << 20);
    assert!(
        objects.gets.load(Ordering::SeqCst) >= whole,
        "the rest was asked for then"
    );
}

#[tokio::test]
async fn a_verification_that_repairs_lets_others_send_what_is_damaged_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    for (name, mut bytes) in files(folder.path())
        .into_iter()
        .filter(|(name, _)| name.starts_with("packs/"))
    {
        bytes[1000] ^= 1;
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    assert_eq!(store.verify("", true).await.unwrap().damaged.len(), 1);
    let other = folder_store(folder.path());
    assert!(persist(&other, "ci/a", &project(1)).await.unwrap().new > 0);
    assert!(restore(&other, "ci/a").await.unwrap().unwrap() == project(1));
}

#[tokio::test]
async fn a_repair_tells_of_all_caches_that_it_takes_content_from() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    let packs = files(folder.path()).into_iter();
    let packs: Vec<_> = packs.filter(|(name, _)| name.starts_with("packs/")).collect();
    persist(&store, "other/b", &project(2)).await.unwrap();
    persist(&store, "other/alone", &tar(&[("x", noise(9, 10_000))]))
        .await
        .unwrap();
    for (name, mut bytes) in packs {
        bytes[1000] ^= 1;
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let verified = store.verify("ci/", true).await.unwrap();
    let mut damaged: Vec<_> = verified.damaged.iter().map(|damage| &damage.key).collect();
    damaged.sort();
    assert_eq!(damaged, [&key("ci/a"), &key("other/b")], "{verified:?}");
    let verified = store.verify("", false).await.unwrap();
    assert_eq!((verified.whole, verified.damaged.len()), (1, 0), "{verified:?}");
    assert!(store.get(&key("other/b")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_cache_over_its_limit_is_kept_out_and_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    let small = tar(&[("a", vec![1; 1000])]);
    persist(&store, "ci/a", &small).await.unwrap();
    let mut options = Persist::default();
    options.size_limit = Some(100_000);
    let refused = store
        .persist(&key("ci/a"), stream_of(project(1)), options)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("limit of 100000 bytes"), "{refused}");
    assert_eq!(restore(&store, "ci/a").await.unwrap().unwrap(), small);
}

#[tokio::test]
async fn a_tar_that_breaks_off_is_not_persisted() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    let whole = project(1);
    persist(&store, "ci/a", &whole).await.unwrap();
    for length in [100, 512, 5000, whole.len() - 1024] {
        let cut = store
            .persist(&key("ci/a"), stream_of(whole[..length].to_vec()), Persist::default())
            .await;
        assert!(cut.is_err(), "{length}");
    }
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == whole);
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    persist(&folder_store(folder.path()), "ci/a", &tar(&[])).await.unwrap();
    std::fs::write(folder.path().join("orchestra-caches.json"), "{\"version\":2}").unwrap();
    let before = files(folder.path());
    let store = folder_store(folder.path());
    let errors = [
        store.check().await.unwrap_err(),
        persist(&store, "ci/b", &tar(&[])).await.unwrap_err(),
        store.prune(prune_at_once()).await.unwrap_err(),
        store.get(&key("ci/a")).await.unwrap_err(),
        store.remove(&key("ci/a")).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("version 2"), "{error}");
    }
    assert_eq!(before, files(folder.path()));
}

#[tokio::test]
async fn what_no_cache_uses_goes_after_the_grace_period_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    persist(&store, "ci/b", &project(2)).await.unwrap();
    store.remove(&key("ci/a")).await.unwrap();
    let first = store.prune(Prune::default()).await.unwrap();
    // Its manifest; its pack has most of what the other one is made of.
    assert_eq!((first.objects, first.condemned), (0, 1), "{first:?}");
    assert_eq!(store.prune(prune_at_once()).await.unwrap().objects, 1);
    assert!(restore(&store, "ci/b").await.unwrap().unwrap() == project(2));
    store.remove(&key("ci/b")).await.unwrap();
    store.prune(prune_at_once()).await.unwrap();
    store.prune(prune_at_once()).await.unwrap();
    let left: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["orchestra-caches.json", "prune"]);
}

#[tokio::test]
async fn a_prune_removes_nothing_that_is_not_the_stores_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    std::fs::create_dir(folder.path().join("notes")).unwrap();
    for name in ["notes/issue#1", "todo#2", "packs/half#3"] {
        let file = std::fs::File::create(folder.path().join(name)).unwrap();
        let old = std::time::SystemTime::now() - Duration::from_secs(400 * 24 * 3600);
        file.set_modified(old).unwrap();
    }
    store.prune(Prune::default()).await.unwrap();
    let left: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
    let there = |name: &str| left.iter().any(|left| left == name);
    assert!(there("notes/issue#1") && there("todo#2"), "{left:?}");
    assert!(
        !there("packs/half#3"),
        "what a killed process left half written goes: {left:?}"
    );
}

#[tokio::test]
async fn old_caches_and_those_beyond_the_size_go_the_newest_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    for (at, name) in ["ci/old", "ci/mid", "ci/new"].into_iter().enumerate() {
        persist(&store, name, &tar(&[("x", noise(at as u64, 100_000))]))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut prune = Prune::default();
    prune.keep_bytes = Some(250_000);
    prune.dry_run = true;
    let told = store.prune(prune).await.unwrap();
    assert_eq!(told.caches, [key("ci/old")]);
    assert_eq!(store.list("").await.unwrap().len(), 3);
    prune.dry_run = false;
    store.prune(prune).await.unwrap();
    assert_eq!(store.list("").await.unwrap().len(), 2);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    // Persisted again, unchanged: that is what its age counts from.
    persist(&store, "ci/new", &tar(&[("x", noise(2, 100_000))]))
        .await
        .unwrap();
    let mut prune = Prune::default();
    prune.older_than = Some(Duration::from_secs(2));
    assert_eq!(store.prune(prune).await.unwrap().caches, [key("ci/mid")]);
    assert_eq!(store.list("").await.unwrap()[0].key, key("ci/new"));
}

#[tokio::test]
async fn a_prune_disturbs_no_restore_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    let large = tar(&[("x", noise(1, 40 << 20))]);
    persist(&store, "ci/a", &large).await.unwrap();
    let entry = store.get(&key("ci/a")).await.unwrap().unwrap();
    let mut restoring = store.restore(&entry).await.unwrap();
    let mut received = restoring.content.next().await.unwrap().unwrap().to_vec();
    // The cache is replaced, and pruned twice, while it is read.
    persist(&store, "ci/a", &tar(&[("y", noise(2, 1000))])).await.unwrap();
    store.prune(Prune::default()).await.unwrap();
    store.prune(Prune::default()).await.unwrap();
    while let Some(piece) = restoring.content.next().await {
        received.extend_from_slice(&piece.unwrap());
    }
    assert!(received == large);
}

#[tokio::test]
async fn what_a_persist_relies_on_is_taken_back_from_a_prune() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    persist(&store, "ci/a", &project(1)).await.unwrap();
    // It reads its tar slowly, after it has looked at what there is.
    let (send, receive) = tokio::sync::mpsc::channel(1);
    let slow = futures_util::stream::unfold(receive, |mut receive: tokio::sync::mpsc::Receiver<Vec<u8>>| async {
        receive.recv().await.map(|bytes| (Ok(bytes.into()), receive))
    });
    let persisting = tokio::spawn({
        let store = store.clone();
        async move { store.persist(&key("ci/b"), slow.boxed(), Persist::default()).await }
    });
    let all = project(1);
    send.send(all[..1000].to_vec()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    store.remove(&key("ci/a")).await.unwrap();
    let pruned = store.prune(Prune::default()).await.unwrap();
    assert_eq!(pruned.condemned, 2, "{pruned:?}");
    send.send(all[1000..].to_vec()).await.unwrap();
    drop(send);
    assert_eq!(persisting.await.unwrap().unwrap().new, 0);
    store.prune(prune_at_once()).await.unwrap();
    assert!(restore(&store, "ci/b").await.unwrap().unwrap() == all);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_while_others_persist_and_prune_sees_one_of_them_whole() {
    let folder = tempfile::tempdir().unwrap();
    let contents: Vec<Vec<u8>> = (1..4)
        .map(|seed| tar(&[("x", noise(seed, 300_000)), ("same", noise(9, 300_000))]))
        .collect();
    persist(&folder_store(folder.path()), "ci/a", &contents[0])
        .await
        .unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for content in contents.clone() {
        let store = folder_store(folder.path());
        writers.spawn(async move {
            for _ in 0..8 {
                persist(&store, "ci/a", &content).await.unwrap();
            }
        });
    }
    let pruning = folder_store(folder.path());
    writers.spawn(async move {
        for _ in 0..8 {
            pruning.prune(Prune::default()).await.unwrap();
        }
    });
    let store = folder_store(folder.path());
    let mut reads = 0;
    while !writers.is_empty() {
        let read = restore(&store, "ci/a").await.unwrap().unwrap();
        assert!(contents.contains(&read));
        reads += 1;
        while let Some(done) = writers.try_join_next() {
            done.unwrap();
        }
    }
    assert!(reads > 3);
}

#[tokio::test]
async fn a_persist_that_fails_at_any_request_leaves_the_old_cache_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let old = project(1);
    persist(&folder_store(folder.path()), "ci/a", &old).await.unwrap();
    let (mut failures, mut previous) = (0, old);
    for calls in 0.. {
        let objects = Arc::new(Flaky::new(folder.path()));
        objects.fail_after(calls);
        let store = Store::in_objects(objects.clone(), "flaky");
        let next = tar(&[("x", noise(calls as u64, 3 << 20))]);
        let persisted = persist(&store, "ci/a", &next).await;
        let found = restore(&folder_store(folder.path()), "ci/a").await.unwrap().unwrap();
        match persisted {
            Err(error) => {
                assert!(error.to_string().contains("503 Slow Down"), "{error}");
                assert!(found == previous, "after {calls} requests");
                failures += 1;
            }
            Ok(_) => {
                assert!(found == next);
                previous = next;
                objects.fail_after(-1);
                break;
            }
        }
    }
    assert!(failures > 5, "{failures}");
    // What the failed ones left is found, and goes.
    let store = folder_store(folder.path());
    store.prune(prune_at_once()).await.unwrap();
    store.prune(prune_at_once()).await.unwrap();
    assert!(restore(&store, "ci/a").await.unwrap().unwrap() == previous);
    assert_eq!(
        files(folder.path())
            .iter()
            .filter(|(name, _)| name.starts_with("packs/"))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_prune_that_fails_at_any_request_is_carried_on_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let kept = tar(&[("kept", noise(1, 100_000))]);
    for calls in 0.. {
        let store = folder_store(folder.path());
        persist(&store, "ci/kept", &kept).await.unwrap();
        persist(&store, "ci/gone", &tar(&[("x", noise(calls as u64 + 10, 100_000))]))
            .await
            .unwrap();
        store.remove(&key("ci/gone")).await.unwrap();
        store.prune(Prune::default()).await.unwrap();
        let objects = Arc::new(Flaky::new(folder.path()));
        objects.fail_after(calls);
        let pruned = Store::in_objects(objects, "flaky").prune(prune_at_once()).await;
        assert!(restore(&store, "ci/kept").await.unwrap().unwrap() == kept);
        store.prune(prune_at_once()).await.unwrap();
        let left: Vec<String> = files(folder.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(left.len(), 5, "{left:?}");
        if pruned.is_ok() {
            assert!(calls > 5);
            break;
        }
    }
}

#[tokio::test]
async fn a_persist_that_is_dropped_stops_and_leaves_the_old_cache() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder_store(folder.path());
    let old = tar(&[("x", vec![1; 100])]);
    persist(&store, "ci/a", &old).await.unwrap();
    let mut head = project(1);
    head.truncate(2 << 20);
    let endless = stream_of(head).chain(futures_util::stream::pending()).boxed();
    let name = key("ci/a");
    let work = store.persist(&name, endless, Persist::default());
    assert!(tokio::time::timeout(Duration::from_millis(300), work).await.is_err());
    assert_eq!(restore(&store, "ci/a").await.unwrap().unwrap(), old);
}
