//! The layer when a store or an engine does not do what it should, on the in-memory engine.

#![allow(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orchestra::layer::{Fault, Faults, Method};
use orchestra::{ErrorKind, Labels};
use orchestra_caches::{CacheEventKind, CachesOptions, Persist};
use support::world::*;
use support::*;

#[tokio::test]
async fn damage_is_a_miss_with_an_empty_volume_and_is_mended_at_the_end() {
    let world = World::new();
    let run = world.run();
    let volume = run.volume(&spec("ci/a")).await;
    run.task(
        "write",
        &volume,
        &format!("echo {} > c/big; echo x > c/file", "word".repeat(2000)),
    )
    .await;
    run.end().await;
    for (name, mut bytes) in files(world.folder.path())
        .into_iter()
        .filter(|(name, _)| name.starts_with("packs/"))
    {
        let last = bytes.len() - 100;
        bytes[last] ^= 1;
        std::fs::write(world.folder.path().join(name), bytes).unwrap();
    }
    let run = world.run();
    let volume = run.volume(&spec("ci/a")).await;
    assert_eq!(run.task("read", &volume, "ls c; echo y > c/file").await, "");
    let told = run.end().await;
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("damaged")),
        "{told:?}"
    );
    assert!(matches!(told[1], CacheEventKind::Persisted(_)), "{told:?}");
    assert_eq!(read(&world, &spec("ci/a")).await.0, "y");
}

#[tokio::test]
async fn a_store_that_fails_costs_a_warning_and_the_job_runs_without() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    world.objects.fail_after(0);
    let (found, told) = read(&world, &spec("ci/a")).await;
    assert_eq!(found, "nothing");
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("503 Slow Down")),
        "{told:?}"
    );
    assert!(
        matches!(&told[1], CacheEventKind::NotPersisted { error, .. } if error.contains("failed before")),
        "{told:?}"
    );
    world.objects.fail_after(-1);
    assert_eq!(read(&world, &spec("ci/a")).await.0, "old");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_a_bounded_delay_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut objects = Flaky::new(folder.path());
    objects.hangs = true;
    objects.fail_after(0);
    let world = World {
        folder,
        objects: Arc::new(objects),
        engine: engine(),
    };
    let began = tokio::time::Instant::now();
    let run = world.run();
    for name in ["cache.a", "cache.b", "cache.c"] {
        run.job
            .create_volume_with(name, Labels::from([spec(name).label()]))
            .await
            .unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    let told = run.end().await;
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("within 30s")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_transfer_that_takes_too_long_ends_with_an_empty_volume() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    let faults = Faults::new()
        .on(Method::WriteVolume, Fault::Hang)
        .on(Method::ReadVolume, Fault::Hang)
        // What the transfer was done with has the volume for a moment longer.
        .on_calls(Method::RemoveVolume, 0, 2, Fault::Before(ErrorKind::Conflict));
    let mut options = CachesOptions::default();
    options.timeout = Duration::from_millis(300);
    let run = world.run_among(faults, options);
    let began = Instant::now();
    let volume = run.volume(&spec("ci/a")).await;
    run.task("write", &volume, "ls c > c/file").await;
    let told = run.end().await;
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("300ms")),
        "{told:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(read(&world, &spec("ci/a")).await.0, "old");
}

#[tokio::test]
async fn an_engine_that_can_not_be_read_never_fails_the_job() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    for fault in [
        Fault::Before(ErrorKind::Engine),
        Fault::CutStream(1, ErrorKind::Interrupted),
    ] {
        let faults = Faults::new().on(Method::ReadVolume, fault);
        let run = world.run_among(faults, CachesOptions::default());
        let volume = run.volume(&spec("ci/a")).await;
        run.task("write", &volume, "echo new > c/file").await;
        let told = run.end().await;
        assert!(matches!(told[1], CacheEventKind::NotPersisted { .. }), "{told:?}");
    }
    assert_eq!(read(&world, &spec("ci/a")).await.0, "old");
}

#[tokio::test]
async fn a_fallback_takes_the_place_of_what_is_damaged() {
    for damaged in ["packs/", "manifests/", "entries/"] {
        let world = World::new();
        write(&world, "deps-old", "old").await;
        let before: Vec<_> = files(world.folder.path());
        write(&world, "deps-new", "new").await;
        for (name, bytes) in files(world.folder.path()) {
            if name.starts_with(damaged) && !before.iter().any(|(known, _)| *known == name) {
                let cut = bytes[..bytes.len() / 2].to_vec();
                std::fs::write(world.folder.path().join(name), cut).unwrap();
            }
        }
        let mut spec = spec("deps-new");
        spec.restore_keys = vec!["deps-new".to_owned(), "deps-".to_owned()];
        let (found, told) = read(&world, &spec).await;
        assert_eq!(found, "old", "{damaged}: {told:?}");
        assert!(
            matches!(
                &told[0],
                CacheEventKind::Restored { from, exact: false, damaged: Some(why), .. }
                    if from.as_str() == "deps-old" && why.contains("damaged")
            ),
            "{damaged}: {told:?}"
        );
        assert!(matches!(told[1], CacheEventKind::Persisted(_)), "{damaged}: {told:?}");
        let (found, told) = read(&world, &spec).await;
        assert_eq!(found, "old", "{damaged}");
        assert!(
            matches!(told[0], CacheEventKind::Restored { exact: true, .. }),
            "{damaged}: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_stops_in_the_middle_of_a_pack_costs_a_bounded_delay() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    world.objects.stall("packs/");
    let mut options = CachesOptions::default();
    options.timeout = Duration::from_millis(500);
    let began = Instant::now();
    let run = world.run_with(None, options);
    let volume = run.volume(&spec("ci/a")).await;
    assert_eq!(run.task("read", &volume, "ls c; echo new > c/file").await, "");
    let told = run.end().await;
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("longer than 500ms")),
        "{told:?}"
    );
    assert!(matches!(&told[1], CacheEventKind::NotPersisted { .. }), "{told:?}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    world.objects.stall("");
    assert_eq!(read(&world, &spec("ci/a")).await.0, "old");
}

#[tokio::test]
async fn packs_are_fetched_several_at_a_time() {
    let world = World::new();
    let store = world.store();
    // Three packs.
    let tar = tar(&[("noise", noise(1, 20 << 20))]);
    persist(&store, "a", &tar).await.unwrap();
    world.objects.delay_gets(Duration::from_millis(50));
    assert!(restore(&store, "a").await.unwrap().unwrap() == tar);
    assert!(
        world.objects.most_gets_at_once() >= 2,
        "{}",
        world.objects.most_gets_at_once()
    );
}

#[tokio::test]
async fn what_is_left_of_a_damaged_cache_is_never_taken_for_a_whole_one() {
    let world = World::new();
    write(&world, "ci/a", &"word".repeat(2000)).await;
    for (name, bytes) in files(world.folder.path()) {
        if name.starts_with("packs/") {
            std::fs::write(world.folder.path().join(name), &bytes[..bytes.len() / 2]).unwrap();
        }
    }
    let run = world.run_among(
        Faults::new().on_calls(Method::RemoveVolume, 0, 10, Fault::Before(ErrorKind::Unreachable)),
        CachesOptions::default(),
    );
    let made = run
        .job
        .create_volume_with("cache.a", Labels::from([spec("ci/a").label()]))
        .await;
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_read_for_no_further() {
    let world = World::new();
    let store = world.store();
    persist(&store, "a", &tar(&[("x", noise(1, 1000))])).await.unwrap();
    world.objects.delay_puts(Duration::from_secs(3600));
    let read = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = read.clone();
    let content = noise(2, 200 << 20);
    let whole = tar(&[("large", content)]);
    let pieces = stream_of(whole).inspect(move |piece| {
        let length = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        counted.fetch_add(length, std::sync::atomic::Ordering::Relaxed);
    });
    let key = key("b");
    let persisting = store.persist(&key, pieces.boxed(), Persist::default());
    let given_up = tokio::time::timeout(Duration::from_secs(5), persisting).await;
    assert!(given_up.is_err(), "nothing can have been persisted");
    let read = read.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read > 8 << 20 && read < 60 << 20, "{} MiB were read", read >> 20);
}
