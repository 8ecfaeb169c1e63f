//! The layer, on the in-memory engine.

#![allow(clippy::unwrap_used, reason = "a test program: a failed unwrap is a failed case")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orchestra::layer::{Fault, Faults, Layered, Method};
use orchestra::tar::{self, Head};
use orchestra::{Job, JobId, Labels, Task};
use orchestra_caches::{CacheEventKind, CachesLayer, CachesOptions, Policy};
use support::world::*;
use support::*;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn what_one_run_leaves_in_a_cache_the_next_one_finds() {
    let world = World::new();
    let told = write(&world, "ci/a", "hello").await;
    assert!(matches!(told[0], CacheEventKind::Missed { .. }), "{told:?}");
    assert!(
        matches!(&told[1], CacheEventKind::Persisted(persisted) if persisted.new > 0),
        "{told:?}"
    );
    let (found, told) = read(&world, &spec("ci/a")).await;
    assert_eq!(found, "hello");
    assert!(
        matches!(&told[0], CacheEventKind::Restored { exact: true, size, .. } if *size > 0),
        "{told:?}"
    );
    assert!(
        matches!(&told[1], CacheEventKind::Persisted(persisted) if persisted.unchanged),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_fallback_is_restored_and_persisted_under_the_key_that_was_asked_for() {
    let world = World::new();
    write(&world, "ci/lock-1", "old").await;
    let mut fallback = spec("ci/lock-2");
    fallback.restore_keys = vec!["ci/lock-".to_owned()];
    let (found, told) = read(&world, &fallback).await;
    assert_eq!(found, "old");
    assert!(
        matches!(&told[0], CacheEventKind::Restored { exact: false, from, .. } if from.as_str() == "ci/lock-1"),
        "{told:?}"
    );
    assert!(
        matches!(&told[1], CacheEventKind::Persisted(persisted) if persisted.new == 0),
        "{told:?}"
    );
    assert_eq!(read(&world, &spec("ci/lock-2")).await.0, "old");
}

#[tokio::test]
async fn a_task_that_fails_or_is_not_waited_for_persists_nothing() {
    let world = World::new();
    write(&world, "ci/a", "good").await;
    let run = world.run();
    let volume = run.volume(&spec("ci/a")).await;
    run.task("breaks", &volume, "echo bad > c/file; exit 1").await;
    let told = run.end().await;
    assert!(
        matches!(&told[1], CacheEventKind::Skipped { task } if task == "breaks"),
        "{told:?}"
    );
    assert_eq!(read(&world, &spec("ci/a")).await.0, "good");
}

#[tokio::test]
async fn the_last_attempt_of_a_task_decides() {
    let world = World::new();
    let run = world.run();
    let volume = run.volume(&spec("ci/a")).await;
    let script = "if test -e c/file; then exit 0; else echo x > c/file; exit 1; fi";
    let task = Task::new("flaky", "busybox")
        .unwrap()
        .shell(script)
        .mount(&volume, "c")
        .unwrap()
        .attempts(2);
    assert!(run.job.run(task).await.unwrap().exit.success());
    let told = run.end().await;
    assert!(matches!(told[1], CacheEventKind::Persisted(_)), "{told:?}");
}

#[tokio::test]
async fn policies_pull_and_push_do_one_half_and_a_run_can_be_held_to_one() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    let mut pull = spec("ci/a");
    pull.policy = Policy::Pull;
    let mut push = spec("ci/a");
    push.policy = Policy::Push;
    let (found, told) = read(&world, &pull).await;
    assert_eq!((found.as_str(), told.len()), ("old", 1), "{told:?}");
    let mut options = CachesOptions::default();
    options.policy = Policy::Pull;
    let run = world.run_with(None, options);
    let volume = run.volume(&push).await;
    run.task("write", &volume, "echo evil > c/file").await;
    assert!(run.end().await.is_empty());
    assert_eq!(read(&world, &spec("ci/a")).await.0, "old");
    assert_eq!(read(&world, &push).await.0, "nothing");
    assert_eq!(read(&world, &spec("ci/a")).await.0, "nothing");
}

#[tokio::test]
async fn only_the_paths_that_were_asked_for_are_persisted_and_missing_ones_are_no_failure() {
    let world = World::new();
    let mut some = spec("ci/a");
    some.paths = vec![
        "keep".parse().unwrap(),
        "missing/dir".parse().unwrap(),
        "also/this".parse().unwrap(),
    ];
    let run = world.run();
    let volume = run.volume(&some).await;
    run.task(
        "write",
        &volume,
        "mkdir -p c/keep c/also/this c/not; echo 1 > c/keep/a; echo 2 > c/also/this/b; echo 3 > c/not/x",
    )
    .await;
    let told = run.end().await;
    assert!(matches!(told[1], CacheEventKind::Persisted(_)), "{told:?}");
    let run = world.run();
    let volume = run.volume(&some).await;
    assert_eq!(
        run.task(
            "read",
            &volume,
            "cat c/keep/a c/also/this/b; test -e c/not || echo gone"
        )
        .await,
        "1\n2\ngone\n"
    );
    run.end().await;
}

#[tokio::test]
async fn a_cache_over_its_limit_is_kept_out_with_a_warning_and_the_old_one_stays() {
    let world = World::new();
    write(&world, "ci/a", "small").await;
    let mut limited = spec("ci/a");
    limited.size_limit = Some(3000);
    let run = world.run();
    let volume = run.volume(&limited).await;
    run.task("write", &volume, &format!("echo {} > c/large", "x".repeat(5000)))
        .await;
    let told = run.end().await;
    assert!(
        matches!(&told[1], CacheEventKind::NotPersisted { error, .. } if error.contains("limit of 3000")),
        "{told:?}"
    );
    assert_eq!(read(&world, &spec("ci/a")).await.0, "small");
    limited.size_limit = Some(100);
    let (found, told) = read(&world, &limited).await;
    assert_eq!(found, "nothing", "nor is one restored that is larger");
    assert!(
        matches!(&told[0], CacheEventKind::NotRestored { error, .. } if error.contains("over its limit of 100")),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_volume_that_is_removed_is_persisted_then_and_not_again_at_the_end() {
    let world = World::new();
    let mut run = world.run();
    let volume = run.volume(&spec("ci/a")).await;
    run.task("write", &volume, "echo early > c/file").await;
    run.job.driver().remove_volume(&volume).await.unwrap();
    assert!(matches!(
        run.events.recv().await.unwrap().kind,
        CacheEventKind::Missed { .. }
    ));
    assert!(matches!(
        run.events.recv().await.unwrap().kind,
        CacheEventKind::Persisted(_)
    ));
    // Another task of the same job finds it again.
    let volume = run.volume(&spec("ci/a")).await;
    assert_eq!(run.task("read", &volume, "cat c/file").await, "early\n");
    let told = run.end().await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(world.engine.driver().list(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_cache_lives_as_long_as_it_is_persisted_again() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    let entries = files(world.folder.path()).into_iter();
    let entries: Vec<_> = entries.filter(|(name, _)| name.starts_with("entries/")).collect();
    let [(name, entry)] = entries.as_slice() else {
        panic!("one cache")
    };
    let file = world.folder.path().join(name);
    let hour = Duration::from_secs(3600);
    let told = async || {
        let mut options = CachesOptions::default();
        options.time_to_live = Some(hour);
        options.policy = Policy::Pull;
        let run = world.run_with(None, options);
        run.volume(&spec("ci/a")).await;
        run.end().await
    };
    // First persisted long ago, and again just now, unchanged.
    let mut first: serde_json::Value = serde_json::from_slice(entry).unwrap();
    first["created"] = 1_000_000_000.into();
    std::fs::write(&file, serde_json::to_vec(&first).unwrap()).unwrap();
    let found = told().await;
    assert!(matches!(&found[0], CacheEventKind::Restored { .. }), "{found:?}");
    std::fs::write(&file, entry).unwrap();
    let written = std::fs::File::options().write(true).open(&file).unwrap();
    written.set_modified(std::time::SystemTime::now() - 2 * hour).unwrap();
    let missed = told().await;
    assert!(matches!(&missed[0], CacheEventKind::Missed { .. }), "{missed:?}");
}

#[tokio::test]
async fn a_restore_waits_for_no_persist_of_another_key() {
    let world = World::new();
    write(&world, "ci/b", "there").await;
    let faults = Faults::new().on(Method::ReadVolume, Fault::Hang);
    let mut options = CachesOptions::default();
    options.timeout = Duration::from_secs(4);
    let run = world.run_among(faults, options);
    let first = run.volume(&spec("ci/a")).await;
    run.task("write", &first, "echo x > c/file").await;
    let job = run.job.clone();
    let persisting = tokio::spawn(async move { job.driver().remove_volume(&first).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let labels = Labels::from([spec("ci/b").label()]);
    let second = run.job.create_volume_with("cache.b", labels).await.unwrap();
    assert!(!persisting.is_finished(), "the restore waited for the persist");
    assert_eq!(run.task("read", &second, "cat c/file").await, "there\n");
    persisting.await.unwrap().unwrap();
    let told = run.end().await;
    assert!(matches!(told[1], CacheEventKind::Restored { .. }), "{told:?}");
    assert!(matches!(told[2], CacheEventKind::NotPersisted { .. }), "{told:?}");
}

#[tokio::test]
async fn what_is_being_persisted_under_a_key_is_waited_for_by_who_asks_for_it() {
    let world = World::new();
    write(&world, "ci/a", "old").await;
    // Long enough that a restore which does not wait finds the old one.
    let faults = Faults::new().on(Method::ReadVolume, Fault::Delay(Duration::from_millis(700)));
    let run = world.run_among(faults, CachesOptions::default());
    let first = run.volume(&spec("ci/a")).await;
    run.task("write", &first, "echo new > c/file").await;
    let job = run.job.clone();
    let persisting = tokio::spawn(async move { job.driver().remove_volume(&first).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let labels = Labels::from([spec("ci/a").label()]);
    let second = run.job.create_volume_with("cache.b", labels).await.unwrap();
    assert_eq!(run.task("read", &second, "cat c/file").await, "new\n");
    persisting.await.unwrap().unwrap();
    run.end().await;
}

#[tokio::test]
async fn a_volume_of_an_earlier_process_is_persisted_only_when_its_last_user_has_ended() {
    let world = World::new();
    let first = world.run_with(Some("carried"), CachesOptions::default());
    let volume = first.volume(&spec("ci/a")).await;
    let torn = [Head::file(4).blocks("file"), vec![tar::padded(b"torn"), tar::END]];
    // In the middle of this the process is gone.
    world
        .engine
        .driver()
        .write_volume(
            &volume,
            &orchestra::VolumePath::root(),
            orchestra::stream::once(torn.concat().concat()),
        )
        .await
        .unwrap();
    std::mem::forget(first.job);
    let second = world.run_with(Some("carried"), CachesOptions::default());
    second.volume(&spec("ci/a")).await;
    let told = second.end().await;
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(read(&world, &spec("ci/a")).await.0, "nothing");

    let first = world.run_with(Some("whole"), CachesOptions::default());
    let volume = first.volume(&spec("ci/a")).await;
    let whole = [Head::file(6).blocks("file"), vec![tar::padded(b"whole\n"), tar::END]];
    let whole = orchestra::stream::once(whole.concat().concat());
    let root = orchestra::VolumePath::root();
    world.engine.driver().write_volume(&volume, &root, whole).await.unwrap();
    std::mem::forget(first.job);
    let second = world.run_with(Some("whole"), CachesOptions::default());
    let volume = second.volume(&spec("ci/a")).await;
    second.job.driver().remove_volume(&volume).await.unwrap();
    let told = second.end().await;
    assert!(matches!(told[..], [CacheEventKind::Persisted(_)]), "{told:?}");
    assert_eq!(read(&world, &spec("ci/a")).await.0, "whole");
}

#[tokio::test]
async fn a_restore_that_a_killed_process_left_half_done_is_done_again() {
    let world = World::new();
    write(&world, "ci/a", "whole").await;
    // It hangs in the middle, and is gone.
    let faults = Faults::new().on(Method::WriteVolume, Fault::Hang);
    let (layer, _events) = world.layer(Layered::wrap(world.engine.driver(), faults), CachesOptions::default());
    let killed = Job::builder(Arc::new(layer)).id(JobId::new("run-1").unwrap()).build();
    let work = killed.create_volume_with("cache.a", Labels::from([spec("ci/a").label()]));
    assert!(tokio::time::timeout(Duration::from_millis(200), work).await.is_err());
    killed.keep();
    drop(killed);
    let run = world.run_with(Some("run-1"), CachesOptions::default());
    let volume = run.volume(&spec("ci/a")).await;
    assert_eq!(
        run.task("read", &volume, "cat c/file; echo more > c/file").await,
        "whole\n"
    );
    // A process that takes over after that finds what is in the volume, and restores nothing.
    run.job.keep();
    drop(run);
    let run = world.run_with(Some("run-1"), CachesOptions::default());
    let volume = run.volume(&spec("ci/a")).await;
    assert_eq!(run.task("again", &volume, "cat c/file").await, "more\n");
    let told = run.end().await;
    assert!(matches!(told[..], [CacheEventKind::Persisted(_)]), "{told:?}");
    assert!(world.engine.driver().list(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_run_that_is_cancelled_waits_for_no_store() {
    let world = World::new();
    let cancel = CancellationToken::new();
    let (send, events) = mpsc::channel(64);
    let layer = CachesLayer::new(world.engine.driver(), world.store(), CachesOptions::default())
        .events(send)
        .cancel_with(&cancel);
    let run = Run {
        job: Job::builder(Arc::new(layer)).build(),
        events,
    };
    let volume = run.volume(&spec("ci/a")).await;
    run.task("write", &volume, "echo x > c/file").await;
    cancel.cancel();
    let puts = world.objects.puts.load(Ordering::SeqCst);
    let told = run.end().await;
    assert!(
        matches!(&told[1], CacheEventKind::NotPersisted { error, .. } if error.contains("cancelled")),
        "{told:?}"
    );
    assert_eq!(world.objects.puts.load(Ordering::SeqCst), puts);
}

#[tokio::test]
async fn volumes_that_are_no_caches_pass_through_and_the_stack_says_so() {
    let world = World::new();
    let (layer, _events) = world.layer(world.engine.driver(), CachesOptions::default());
    assert_eq!(layer.to_string(), format!("caches({})", world.engine.driver()));
    let job = Job::builder(Arc::new(layer)).build();
    job.create_volume("plain").await.unwrap();
    job.end().await.unwrap();
    assert!(files(world.folder.path()).is_empty());
}
