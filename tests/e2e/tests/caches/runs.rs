//! Pipelines whose caches come back, and the command that looks after their store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra::JobId;
use orchestra_e2e::{Dir, Fixture};
use serde_json::json;

use crate::{run, says};

/// A pipeline that counts its runs in a cache.
pub(crate) fn counting(fixture: &Fixture) -> String {
    let count = json!({"task": "count", "image": fixture.image, "config": {
        "platform": "linux", "caches": [{"path": "state"}],
        "run": {"path": "sh", "args": ["-c", "echo run >> state/runs; ln -f state/runs state/hard; chmod 4755 state/runs; cat state/runs | wc -l"]},
    }});
    let after =
        json!({"task": "after", "image": fixture.image, "config": {"platform": "linux", "run": {"path": "true"}}});
    json!({"plan": [count, after]}).to_string()
}

pub(crate) async fn a_cache_of_a_task_comes_back_on_the_next_run(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = format!("file://{}", dir.file("store").display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let first = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(first.code, 0, "{first}");
    says(
        &first,
        &["count cache state: miss", "count | 1", "count cache state: persisted"],
    );
    let second = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(second.code, 0, "{second}");
    says(
        &second,
        &["count cache state: hit ci.yml/ci/-/workspace/state", "count | 2"],
    );
    let json = run(fixture, &dir, &environment, &["run", "ci.yml", "--json"]);
    let events = json.events().unwrap();
    let restored = events.iter().find(|event| event["event"] == "cache").unwrap();
    assert_eq!(
        (restored["step"].as_str(), restored["detail"]["cache"].as_str()),
        (Some("count"), Some("restored"))
    );
    // A run that can be carried on with keeps its containers until its end, and persists all the same.
    let id = JobId::unique().to_string();
    let resumable = run(fixture, &dir, &environment, &["run", "ci.yml", "--run-id", &id]);
    says(&resumable, &["count | 4", "count cache state: persisted"]);
    assert!(fixture.engine.leftovers_of(&id).unwrap().0.is_empty());
}

pub(crate) async fn what_a_run_leaves_as_it_was_is_unchanged_and_what_it_hides_is_not(fixture: &Fixture) {
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    let ran = |script: &str| {
        let task = json!({"task": "use", "image": fixture.image, "config": {
            "platform": "linux", "caches": [{"path": "state", "key": "kept"}],
            "run": {"path": "sh", "args": ["-c", script]},
        }});
        std::fs::write(dir.file("ci.yml"), json!({"plan": [task]}).to_string()).unwrap();
        let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
        let finished = run(fixture, &dir, &environment, &["run", "ci.yml"]);
        assert_eq!(finished.code, 0, "{finished}");
        finished
    };
    says(
        &ran("echo one > state/file; mkdir state/folder"),
        &["cache state: persisted"],
    );
    let names = |kind: &str| {
        let names = std::fs::read_dir(dir.file("store").join(kind)).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = (names("packs"), names("manifests"));
    says(&ran("cat state/file"), &["use | one", "cache state: unchanged"]);
    assert_eq!((names("packs"), names("manifests")), before);
    // As long as before, and its time set back: only its time of change tells.
    let hidden = "touch -r state/file /tmp/time; echo two > state/file; touch -r /tmp/time state/file";
    says(&ran(hidden), &["cache state: persisted"]);
    says(&ran("cat state/file"), &["use | two", "cache state: unchanged"]);
}

pub(crate) async fn a_cache_that_changes_in_part_comes_back_whole(fixture: &Fixture) {
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    let ran = |key: &str, script: &str| {
        let cache = json!({"path": "state", "key": key, "restore_keys": ["files-"]});
        let task = json!({"task": "use", "image": fixture.image, "config": {
            "platform": "linux", "caches": [cache], "run": {"path": "sh", "args": ["-c", script]},
        }});
        std::fs::write(dir.file("ci.yml"), json!({"plan": [task]}).to_string()).unwrap();
        let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
        let finished = run(fixture, &dir, &environment, &["run", "ci.yml"]);
        assert_eq!(finished.code, 0, "{finished}");
        finished
    };
    let sums = "cd state; find . | sort | xargs ls -ld; find . -type f | sort | xargs md5sum";
    let listed = |finished: &orchestra_e2e::Finished| {
        let all = finished.all();
        let lines = all.lines().filter_map(|line| line.split_once("use | "));
        let of_files = lines
            .map(|(_, line)| line.to_owned())
            .filter(|line| line.contains(" ./"));
        of_files.collect::<Vec<_>>()
    };
    let many = "for d in a b c d; do mkdir state/$d; for i in $(seq 100); do seq $i 900 > state/$d/$i; done; done";
    ran("files-1", many);
    let some = "echo more >> state/a/50; rm state/b/7; mv state/b/8 state/b/new; ln state/c/1 state/c/hard; chmod 700 state/c/2; rm -r state/d/4*";
    let changed = ran("files-1", &format!("{some}; {sums}"));
    says(&changed, &["cache state: hit", "cache state: persisted"]);
    let expected = listed(&changed);
    assert!(expected.len() > 700, "{changed}");
    let back = ran("files-1", sums);
    says(&back, &["cache state: unchanged"]);
    assert_eq!(listed(&back), expected);
    // What fell back is persisted as a whole under its own key.
    let fallback = ran("files-2", &format!("echo again >> state/a/1; {sums}"));
    says(&fallback, &["cache state: persisted"]);
    let back = ran("files-2", sums);
    says(&back, &["cache state: hit", "cache state: unchanged"]);
    assert_eq!(listed(&back), listed(&fallback));
}

pub(crate) async fn what_is_configured_of_caches_holds(fixture: &Fixture) {
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    let config = |settings: &str| {
        std::fs::write(
            dir.file("orchestra.toml"),
            format!("[caches]\nstore = \"{store}\"\n{settings}\n"),
        )
        .unwrap();
    };
    let ran = |cache: serde_json::Value, script: &str, more: &[&str]| {
        let task = json!({"task": "use", "image": fixture.image, "config": {
            "platform": "linux", "caches": [cache], "run": {"path": "sh", "args": ["-c", script]},
        }});
        std::fs::write(dir.file("ci.yml"), json!({"plan": [task]}).to_string()).unwrap();
        let finished = run(fixture, &dir, &[], &[&["run", "ci.yml"], more].concat());
        assert_eq!(finished.code, 0, "{finished}");
        finished
    };
    let write = "seq 200000 > state/numbers";
    let stored = |key: &str| {
        let inspected = run(fixture, &dir, &[], &["caches", "inspect", key]);
        let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
        inspected["stored"].as_u64().unwrap()
    };

    // A variable in a key, and what comes of a level.
    let keyed = |key: &str| json!({"path": "state", "scope": "pipeline", "key": key});
    config("level = 1");
    says(
        &ran(keyed("((branch))-1"), write, &["--var", "branch=fast"]),
        &[
            "cache state: miss ci.yml/-/-/fast-1",
            "cache state: persisted 1.29 MB, 0% reused, ",
            " kB sent in ",
        ],
    );
    config("level = 19");
    ran(keyed("small"), "seq 200001 400000 > state/numbers", &[]);
    let (fast, small) = (stored("ci.yml/-/-/fast-1"), stored("ci.yml/-/-/small"));
    assert!(small * 10 < fast * 9, "{small} bytes of level 19, {fast} of level 1");

    // By a beginning of its key, and told so with sizes.
    let mut other = keyed("fast-2");
    other["restore_keys"] = json!(["none-", "fast-"]);
    let fallback = ran(other, "wc -l < state/numbers", &[]);
    says(
        &fallback,
        &[
            "cache state: fallback to ci.yml/-/-/fast-1 for ci.yml/-/-/fast-2, 1.29 MB (",
            "kB fetched) in ",
            "use | 200000",
            ", 100% reused, ",
            " B sent in ",
        ],
    );

    // Devices only where they were asked for.
    let made = ran(keyed("devices"), "mknod state/gone c 0 0; echo x > state/file", &[]);
    says(
        &made,
        &["use: 1 devices were left out of the cache state; set `devices: true` on it"],
    );
    let found = ran(keyed("devices"), "ls state", &[]);
    says(&found, &["cache state: hit", "use | file"]);
    assert!(!found.all().contains("gone"), "{found}");

    // A limit for all, and a longest time; both leave a green run and what was there.
    config("size_limit = \"1MB\"");
    says(
        &ran(keyed("large"), write, &[]),
        &[
            "not persisted; what the store has of it stays",
            "limit of 1048576 bytes",
        ],
    );
    let restored = ran(keyed("fast-1"), "ls state", &[]);
    says(
        &restored,
        &[
            "not restored; the step runs without it",
            "over its limit of 1048576 bytes",
        ],
    );
    config("");
    ran(keyed("fast-1"), "seq 2000000 > state/numbers", &[]);
    config("timeout = \"1ms\"");
    let late = ran(keyed("fast-1"), "ls state", &[]);
    says(
        &late,
        &["not restored; the step runs without it: deadline exceeded: it took longer than 1ms"],
    );

    // A run that is not trusted reads and does not write, whatever the file says.
    config("policy = \"pull-push\"");
    let environment = [("ORCHESTRA_CACHES__POLICY", "pull")];
    ran(keyed("fast-1"), "echo one > state/kept", &[]);
    std::fs::write(
        dir.file("ci.yml"),
        std::fs::read_to_string(dir.file("ci.yml"))
            .unwrap()
            .replace("one", "two; cat state/kept"),
    )
    .unwrap();
    let untrusted = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(untrusted.code, 0, "{untrusted}");
    says(&untrusted, &["cache state: hit ci.yml/-/-/fast-1"]);
    assert!(!untrusted.all().contains("persisted"), "{untrusted}");
    says(
        &ran(keyed("fast-1"), "cat state/kept", &[]),
        &["use | one", "cache state: unchanged"],
    );

    // What no run has persisted for so long is not restored.
    config("time_to_live = \"1s\"");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    says(&ran(keyed("fast-1"), "ls state", &[]), &["cache state: miss"]);
}

pub(crate) async fn the_examples_find_their_packages_again(fixture: &Fixture) {
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    for (example, first, again) in [
        (
            "examples/caches.yml",
            "install | installing",
            &[
                "install | found left-pad 1.3.0",
                "cache packages: hit caches.yml/-/-/packages-",
            ][..],
        ),
        // It persists one cache by hand.
        (
            "examples/typescript/caches.ts",
            "install | fetched",
            &["install | cached"][..],
        ),
    ] {
        let run = || {
            let command = fixture.orchestra(["run", example]);
            command.env("ORCHESTRA_CACHES__STORE", &store).run()
        };
        says(&run(), &[first]);
        let second = run();
        assert_eq!(second.code, 0, "{second}");
        says(&second, again);
    }
}

pub(crate) async fn a_run_without_caches_leaves_the_store_alone(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = format!("file://{}", dir.file("store").display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let finished = run(fixture, &dir, &environment, &["run", "ci.yml", "--no-cache"]);
    assert_eq!(finished.code, 0, "{finished}");
    says(&finished, &["count | 1"]);
    assert!(!finished.all().contains("cache state"), "{finished}");
    assert!(!dir.file("store").exists());
}

pub(crate) async fn the_store_is_looked_after_by_the_command(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = format!("file://{}", dir.file("store").display());
    std::fs::write(dir.file("orchestra.toml"), format!("[caches]\nstore = \"{store}\"\n")).unwrap();
    let caches = |args: &[&str]| run(fixture, &dir, &[], &[&["caches"], args].concat());
    says(&caches(&["list"]), &["there are no caches"]);
    assert_eq!(run(fixture, &dir, &[], &["run", "ci.yml"]).code, 0);
    let name = "ci.yml/ci/-/workspace/state";
    says(&caches(&["list"]), &[name, "ago"]);
    says(&caches(&["inspect", name]), &["\"size\"", "\"persisted\""]);
    let missing = caches(&["inspect", "nothing"]);
    assert_eq!(missing.code, 2, "{missing}");
    says(&caches(&["verify"]), &["1 whole cache"]);
    let exported = caches(&["export", name, "state.tar"]);
    assert_eq!(exported.code, 0, "{exported}");
    says(
        &caches(&["import", "copy", "state.tar"]),
        &["imported copy", "0 B were new"],
    );
    std::fs::write(dir.file("no.tar"), "this is no tar").unwrap();
    assert_eq!(caches(&["import", "copy", "no.tar"]).code, 2);
    let listed = caches(&["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed[0]["key"], "copy");
    assert_eq!(
        (&listed[1]["key"], &listed[1]["size"]),
        (&json!(name), &listed[0]["size"])
    );
    says(&caches(&["list", "co"]), &["copy"]);
    // Through pipes, and into a store of another place.
    let piped = caches(&["export", name, "-"]);
    assert!(
        piped.code == 0 && piped.stdout.windows(5).any(|part| part == b"ustar"),
        "{piped}"
    );
    let elsewhere = format!("--store=file://{}", dir.file("elsewhere").display());
    let command = fixture
        .orchestra(["caches", "import", "piped", "-", &elsewhere])
        .dir(dir.path());
    let imported = command.input(std::fs::read(dir.file("state.tar")).unwrap()).run();
    says(&imported, &["imported piped"]);
    says(&caches(&["verify", &elsewhere]), &["1 whole cache"]);
    let young = caches(&["prune", "--older-than", "1h", "--json", "--dry-run"]);
    let young: serde_json::Value = serde_json::from_slice(&young.stdout).unwrap();
    assert_eq!(young["caches"], json!([]));
    says(&caches(&["prune", "--keep-size", "1B", &elsewhere]), &["removed piped"]);
    says(&caches(&["list", &elsewhere]), &["there are no caches"]);
    // As long as the grace period is.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let at_once = caches(&["prune", "--grace", "1s", &elsewhere]);
    says(
        &at_once,
        &["removed 0 caches, 2 objects", "one that runs now can lose its cache"],
    );
    says(&caches(&["rm", "copy"]), &["removed copy"]);
    assert_eq!(caches(&["rm", "copy"]).code, 2);
    says(&caches(&["prune", "--dry-run"]), &["would remove 0 caches, 0 objects"]);
    assert_eq!(caches(&["prune"]).code, 0);
    for pack in std::fs::read_dir(dir.file("store/packs")).unwrap().flatten() {
        std::fs::write(pack.path(), "damaged").unwrap();
    }
    let damaged = caches(&["verify"]);
    assert_eq!(damaged.code, 1, "{damaged}");
    says(&damaged, &["damaged: ci.yml/ci/-/workspace/state", "--repair"]);
    let again = run(fixture, &dir, &[], &["run", "ci.yml"]);
    assert_eq!(again.code, 0, "{again}");
    says(
        &again,
        &[
            "warning: count: the cache state was not restored",
            "damaged",
            "count | 1",
            "cache state: persisted",
        ],
    );
    says(&caches(&["verify"]), &["1 whole cache"]);
    for entry in std::fs::read_dir(dir.file("store/manifests")).unwrap().flatten() {
        std::fs::write(entry.path(), "damaged").unwrap();
    }
    let repaired = caches(&["verify", "--repair"]);
    assert_eq!(repaired.code, 1, "{repaired}");
    says(&caches(&["verify"]), &["0 whole caches"]);
    says(
        &caches(&["inspect", "workspace/state"]),
        &["there is no cache workspace/state", "orchestra caches list"],
    );
    says(
        &run(fixture, &dir, &[], &["run", "ci.yml"]),
        &["count | 1", "cache state: persisted"],
    );
    says(&caches(&["verify"]), &["1 whole cache"]);
    says(
        &caches(&["inspect", "workspace/state"]),
        &[
            "there is no cache workspace/state",
            "there is ci.yml/ci/-/workspace/state",
        ],
    );
    std::fs::write(dir.file("store/orchestra-caches.json"), "{\"version\": 99}").unwrap();
    let newer = caches(&["list"]);
    assert_eq!(newer.code, 2, "{newer}");
    says(&newer, &["version 99", "newer orchestra"]);
    let before = files_of(&dir.file("store"));
    let without = run(fixture, &dir, &[], &["run", "ci.yml"]);
    assert_eq!(without.code, 0, "{without}");
    says(
        &without,
        &["was not restored", "version 99", "count | 1", "not persisted"],
    );
    assert_eq!(files_of(&dir.file("store")), before, "it is left as it is");
}

/// All files of a folder, by their content.
fn files_of(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => drop(files.insert(entry.path(), std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    files
}

pub(crate) async fn a_prune_takes_what_is_older_than_the_configured_time_to_live(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = format!("file://{}", dir.file("store").display());
    let config = |time: &str| {
        let text = format!("[caches]\nstore = \"{store}\"\n{time}");
        std::fs::write(dir.file("orchestra.toml"), text).unwrap();
    };
    let caches = |args: &[&str]| run(fixture, &dir, &[], &[&["caches"], args].concat());
    config("");
    assert_eq!(run(fixture, &dir, &[], &["run", "ci.yml"]).code, 0);
    std::thread::sleep(Duration::from_millis(2100));
    let kept = caches(&["prune"]);
    assert!(kept.code == 0 && !kept.all().contains("removed ci.yml"), "{kept}");
    config("time_to_live = \"1s\"\n");
    says(
        &caches(&["prune", "--older-than", "1h", "--dry-run"]),
        &["would remove 0"],
    );
    says(&caches(&["prune"]), &["removed ci.yml/ci/-/workspace/state"]);
    says(&caches(&["list"]), &["there are no caches"]);
}

pub(crate) async fn a_store_that_does_not_work_leaves_a_green_run(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let environment = [
        ("ORCHESTRA_CACHES__STORE", "s3://bucket/x"),
        ("ORCHESTRA_CACHES__ENDPOINT", "http://127.0.0.1:1"),
        ("ORCHESTRA_CACHES__ACCESS_KEY_ID", "me"),
        ("ORCHESTRA_CACHES__SECRET_ACCESS_KEY", "hunter2hunter2"),
    ];
    let finished = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(finished.code, 0, "{finished}");
    says(
        &finished,
        &[
            "warning: count: the cache state was not restored",
            "count | 1",
            "not persisted",
        ],
    );
    assert!(!finished.all().contains("hunter2"), "{finished}");
    let bad = [("ORCHESTRA_CACHES__STORE", "ftp://x")];
    let refused = run(fixture, &dir, &bad, &["run", "ci.yml"]);
    assert_eq!(refused.code, 2, "{refused}");
    says(&refused, &["ftp://x", "s3://bucket/prefix"]);
}
