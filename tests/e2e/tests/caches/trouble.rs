//! Runs whose store is slow, refuses, hangs, breaks off, is full or read-only, and runs that are killed: a step pays a
//! bounded delay and goes without, and what the store had stays.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use orchestra::JobId;
use orchestra_e2e::{Dir, Fault, FaultProxy, Finished, Fixture};
use serde_json::json;

use crate::bucket::S3;
use crate::runs::counting;
use crate::{run, says};

/// A pipeline that counts its runs in a cache and puts so many bytes that do not compress beside the count.
fn growing(fixture: &Fixture, bytes: u64) -> String {
    let script = format!(
        "echo run >> state/runs; head -c {bytes} /dev/urandom > state/noise; echo seen $(cat state/runs | wc -l)"
    );
    let grow = json!({"task": "grow", "image": fixture.image, "config": {
        "platform": "linux", "caches": [{"path": "state"}], "run": {"path": "sh", "args": ["-c", script]},
    }});
    json!({"plan": [grow]}).to_string()
}

/// What a run says, which was green and took no longer than this.
fn green(finished: Finished, limit: u64, parts: &[&str]) {
    assert_eq!(finished.code, 0, "{finished}");
    says(&finished, parts);
    let limit = Duration::from_secs(limit);
    assert!(finished.duration < limit, "it took {:?}\n{finished}", finished.duration);
}

/// A bucket of its own behind a proxy.
struct Bucket {
    proxy: FaultProxy,
    environment: Vec<(String, String)>,
}

impl Bucket {
    async fn new(name: &str) -> Self {
        let s3 = S3::from_env().unwrap();
        let proxy = s3.proxy().await;
        let mut environment = s3.environment(name);
        for (name, value) in &mut environment {
            if name == "ORCHESTRA_CACHES__ENDPOINT" {
                *value = format!("http://{}", proxy.address());
            }
        }
        Self { proxy, environment }
    }

    fn environment(&self) -> Vec<(&str, &str)> {
        let pairs = self.environment.iter();
        pairs.map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

pub(crate) async fn whatever_a_bucket_does_costs_a_run_a_bounded_delay(fixture: &Fixture) {
    let bucket = Bucket::new("trouble").await;
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let go = || run(fixture, &dir, &bucket.environment(), &["run", "ci.yml"]);
    says(&go(), &["count | 1", "count cache state: persisted"]);
    for (fault, why) in [
        (Fault::Refuse(u32::MAX), "503"),
        (Fault::Hang, "did not answer within 30s"),
        (Fault::Cut(0, u32::MAX), "the cache store"),
    ] {
        bucket.proxy.set(fault);
        let warned = [
            "warning: count: the cache state was not restored; the step runs without it",
            why,
            "count | 1",
            "the cache state was not persisted; what the store has of it stays",
        ];
        green(go(), 70, &warned);
        assert!(bucket.proxy.met() > 0, "{fault:?}");
    }
    bucket.proxy.set(Fault::Delay(Duration::from_millis(500)));
    green(go(), 70, &["count cache state: hit", "count | 2"]);
    bucket.proxy.set(Fault::None);
    green(go(), 60, &["count cache state: hit", "count | 3"]);
}

/// A file system of its own in memory, as long as this lives.
struct Disk(PathBuf);

impl Disk {
    /// `None` for who may not mount.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }

    fn read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok();
    }
}

pub(crate) async fn a_store_that_is_full_or_read_only_keeps_what_it_has(fixture: &Fixture) {
    let dir = Dir::with([
        ("small.yml", growing(fixture, 1000)),
        ("large.yml", growing(fixture, 3 << 20)),
    ]);
    // The pipeline's name is a part of the key.
    let use_as = |name: &str| std::fs::copy(dir.file(name), dir.file("ci.yml")).map(drop).unwrap();
    let Some(disk) = Disk::mount(&dir.file("disk"), "1m") else {
        println!("left out: this user may not mount a small disk");
        return;
    };
    let store = format!("file://{}/store", disk.0.display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let go = || run(fixture, &dir, &environment, &["run", "ci.yml"]);
    use_as("small.yml");
    green(go(), 60, &["seen 1", "grow cache state: persisted"]);
    use_as("large.yml");
    let full = [
        "grow cache state: hit",
        "seen 2",
        "warning: grow: the cache state was not persisted; what the store has of it stays",
        "o space left on device",
        "orchestra caches prune",
    ];
    green(go(), 60, &full);
    // Nothing half written takes the room of what comes next.
    use_as("small.yml");
    green(go(), 60, &["seen 2", "grow cache state: persisted"]);
    says(
        &run(fixture, &dir, &environment, &["caches", "verify"]),
        &["1 whole cache"],
    );

    disk.read_only();
    let read_only = [
        "grow cache state: hit",
        "seen 3",
        "warning: grow: the cache state was not persisted",
        "ead-only file system",
        "give this user access to the store's folder",
    ];
    green(go(), 60, &read_only);
    let refused = run(fixture, &dir, &environment, &["caches", "prune"]);
    assert_eq!(refused.code, 3, "{refused}");
}

pub(crate) async fn two_runs_persist_one_key_at_once(fixture: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let environment = s3.environment("at-once");
    let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let dir = Dir::with([("ci.yml", growing(fixture, 6 << 20))]);
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let finished = run(fixture, &dir, &environment, &["run", "ci.yml"]);
                    green(finished, 60, &["grow cache state: persisted"]);
                });
            }
        });
        says(
            &run(fixture, &dir, &environment, &["caches", "verify"]),
            &["1 whole cache"],
        );
    }
    let third = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    green(third, 60, &["grow cache state: hit", "seen 4"]);
}

pub(crate) async fn a_run_that_is_killed_while_it_persists_leaves_the_old_cache_or_the_new(fixture: &Fixture) {
    let bucket = Bucket::new("killed").await;
    let dir = Dir::with([("ci.yml", growing(fixture, 12 << 20))]);
    let environment = bucket.environment();
    let start = || {
        let command = fixture.orchestra(["run", "ci.yml"]).dir(dir.path());
        let with = |command: orchestra_e2e::Orchestra, (name, value): &(&str, &str)| command.env(name, value);
        environment.iter().fold(command, with).start()
    };
    says(&start().finish(), &["seen 1"]);
    // Each connection takes its time, so that the kills meet different requests.
    bucket.proxy.set(Fault::Delay(Duration::from_millis(80)));
    let mut seen = 2;
    for milliseconds in [20, 200, 500, 900, 1400] {
        let killed = start();
        let line = killed.line_with("seen ");
        let now: u32 = line.rsplit(' ').next().unwrap().trim().parse().unwrap();
        // The run before was killed: what it saw is in the store, or what the run before that one saw.
        assert!(now == seen || now + 1 == seen, "{now} after {seen}");
        std::thread::sleep(Duration::from_millis(milliseconds));
        killed.signal("KILL");
        let _ = killed.finish();
        let verified = run(fixture, &dir, &environment, &["caches", "verify"]);
        assert_eq!(verified.code, 0, "{verified}");
        says(&verified, &["1 whole cache"]);
        seen = now + 1;
    }
    bucket.proxy.set(Fault::None);
    let collected = run(fixture, &dir, &[], &["gc"]);
    assert_eq!(collected.code, 0, "{collected}");
    green(
        start().finish(),
        60,
        &["grow cache state: hit", "grow cache state: persisted"],
    );
    // What the killed ones sent for nothing goes.
    let prune = || run(fixture, &dir, &environment, &["caches", "prune", "--grace", "1s"]);
    for _ in 0..2 {
        let pruned = prune();
        assert_eq!(pruned.code, 0, "{pruned}");
        std::thread::sleep(Duration::from_millis(1100));
    }
    let last = prune();
    says(&last, &["removed 0 caches, 0 objects"]);
    says(
        &run(fixture, &dir, &environment, &["caches", "verify"]),
        &["1 whole cache"],
    );
}

pub(crate) async fn a_run_that_is_interrupted_while_it_restores_ends_soon_and_leaves_nothing(fixture: &Fixture) {
    let bucket = Bucket::new("interrupted").await;
    let dir = Dir::with([("ci.yml", growing(fixture, 12 << 20))]);
    let first = run(fixture, &dir, &bucket.environment(), &["run", "ci.yml"]);
    green(first, 60, &["seen 1", "grow cache state: persisted"]);
    // While it asks for the cache, and while it fetches it: each connection that it makes takes so long to be made.
    for (delay, after) in [(3000, 500), (1500, 2300)] {
        bucket.proxy.set(Fault::Delay(Duration::from_millis(delay)));
        let id = JobId::unique().to_string();
        let command = fixture.orchestra(["run", "ci.yml", "--run-id", &id]).dir(dir.path());
        let command = (bucket.environment().iter()).fold(command, |command, (name, value)| command.env(name, value));
        let restoring = command.start();
        std::thread::sleep(Duration::from_millis(after));
        let began = std::time::Instant::now();
        restoring.signal("INT");
        let ended = restoring.finish();
        assert_eq!(ended.code, 130, "{ended}");
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{:?}\n{ended}",
            began.elapsed()
        );
        assert!(!ended.all().contains("seen"), "{ended}");
        assert!(fixture.engine.leftovers_of(&id).unwrap().0.is_empty(), "{ended}");
    }
    bucket.proxy.set(Fault::None);
    let whole = run(fixture, &dir, &bucket.environment(), &["run", "ci.yml"]);
    green(whole, 60, &["grow cache state: hit", "seen 2"]);
}

pub(crate) async fn a_run_that_is_interrupted_while_it_persists_ends_soon_and_leaves_nothing(fixture: &Fixture) {
    let bucket = Bucket::new("persisting").await;
    let dir = Dir::with([("ci.yml", growing(fixture, 12 << 20))]);
    let first = run(fixture, &dir, &bucket.environment(), &["run", "ci.yml"]);
    green(first, 60, &["seen 1", "grow cache state: persisted"]);
    let id = JobId::unique().to_string();
    let command = fixture.orchestra(["run", "ci.yml", "--run-id", &id]).dir(dir.path());
    let command = (bucket.environment().iter()).fold(command, |command, (name, value)| command.env(name, value));
    let persisting = command.start();
    let _ = persisting.line_with("seen 2");
    // Connections that were made go on, and those of the packs are new.
    bucket.proxy.set(Fault::Delay(Duration::from_secs(20)));
    std::thread::sleep(Duration::from_millis(1500));
    let began = std::time::Instant::now();
    persisting.signal("INT");
    let ended = persisting.finish();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}\n{ended}",
        began.elapsed()
    );
    // All steps had succeeded.
    assert_eq!(ended.code, 0, "{ended}");
    assert!(fixture.engine.leftovers_of(&id).unwrap().0.is_empty(), "{ended}");
    bucket.proxy.set(Fault::None);
    let whole = run(fixture, &dir, &bucket.environment(), &["run", "ci.yml"]);
    green(whole, 60, &["grow cache state: hit", "seen 2"]);
}
