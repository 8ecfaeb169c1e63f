//! Caches on a real engine and a real S3 server.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: a failed unwrap is a failed case"
)]

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use libtest_mimic::{Arguments, Failed, Trial};
use orchestra::tar::{END, Head, padded};
use orchestra::{Error, ErrorKind, JobId};
use orchestra_caches::{CacheKey, Persist, Prune, Store, StoreOptions};
use orchestra_e2e::{Dir, Fault, FaultProxy, Finished, Fixture};
use serde_json::json;

fn main() {
    let arguments = Arguments::from_args();
    let fixture = match Fixture::from_env() {
        Ok(Some(fixture)) => fixture,
        Ok(None) => {
            println!("skipped: needs an engine, see `cargo xtask e2e`");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    macro_rules! cases {
        ($($case:ident),* $(,)?) => { vec![$(trial(&fixture, stringify!($case), |fixture| async move { $case(&fixture).await })),*] };
    }
    let mut trials = cases![
        a_cache_of_a_task_comes_back_on_the_next_run,
        the_example_finds_its_packages_again,
        a_run_without_caches_leaves_the_store_alone,
        the_store_is_looked_after_by_the_command,
        a_store_that_does_not_work_leaves_a_green_run,
        a_builds_layers_come_back_exactly,
    ];
    if S3::from_env().is_some() {
        trials.extend(cases![
            a_bucket_is_a_store,
            wrong_credentials_an_absent_bucket_and_a_dead_server_are_told_apart,
            a_server_that_refuses_for_a_while_costs_time_and_nothing_else,
            a_server_that_refuses_for_ever_costs_a_bounded_delay,
            connections_that_are_cut_lose_nothing,
            a_slow_server_is_waited_for,
            a_cache_goes_through_a_bucket,
        ]);
    } else {
        println!("no S3 server is given: its cases are left out");
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial<Work: Future<Output = ()> + 'static>(fixture: &Fixture, name: &str, case: fn(Fixture) -> Work) -> Trial {
    let fixture = fixture.clone();
    let run = move || -> Result<(), Failed> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(case(fixture));
        Ok(())
    };
    Trial::test(name, run)
}

/// The server that `cargo xtask` started.
struct S3 {
    endpoint: String,
    bucket: String,
    user: String,
    password: String,
}

impl S3 {
    fn from_env() -> Option<Self> {
        let get = |name: &str| std::env::var(format!("ORCHESTRA_TEST_S3{name}")).ok();
        Some(Self {
            endpoint: get("")?,
            bucket: get("_BUCKET")?,
            user: get("_USER")?,
            password: get("_PASSWORD")?,
        })
    }

    fn options(&self, prefix: &str) -> StoreOptions {
        let mut options = StoreOptions::default();
        options.url = format!("s3://{}/{prefix}-{}", self.bucket, JobId::unique());
        options.s3.endpoint = Some(self.endpoint.clone());
        options.s3.region = Some("us-east-1".to_owned());
        options.s3.access_key_id = Some(self.user.clone());
        options.s3.secret_access_key = Some(self.password.clone().into());
        options
    }

    async fn proxy(&self) -> FaultProxy {
        FaultProxy::start(self.endpoint.trim_start_matches("http://"))
            .await
            .unwrap()
    }

    /// A store of its own, and the same through the proxy.
    fn stores(&self, prefix: &str, proxy: &FaultProxy) -> (Store, Store) {
        let mut options = self.options(prefix);
        let direct = Store::open(&options).unwrap();
        options.s3.endpoint = Some(format!("http://{}", proxy.address()));
        (direct, Store::open(&options).unwrap())
    }
}

fn key(text: &str) -> CacheKey {
    text.parse().unwrap()
}

/// A tar of one file that does not compress.
fn tar(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(length);
    while content.len() < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        content.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    content.truncate(length);
    let mut bytes = Head::file(length as u64).blocks("noise").concat();
    bytes.extend_from_slice(&padded(&content));
    bytes.extend_from_slice(&END);
    bytes
}

async fn persist(store: &Store, name: &str, tar: &[u8]) -> orchestra::Result<orchestra_caches::Persisted> {
    let pieces: Vec<_> = tar
        .chunks(100_000)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    store
        .persist(&key(name), stream::iter(pieces).boxed(), Persist::default())
        .await
}

async fn restore(store: &Store, name: &str) -> orchestra::Result<Vec<u8>> {
    let entry = store
        .get(&key(name))
        .await?
        .ok_or_else(|| Error::new(ErrorKind::PathNotFound, format!("the cache {name} is not there")))?;
    let pieces: Vec<Bytes> = store.restore(&entry).await?.content.try_collect().await?;
    Ok(pieces.concat())
}

async fn a_bucket_is_a_store(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let store = Store::open(&s3.options("store")).unwrap();
    store.check().await.unwrap();
    assert!(store.find(&key("ci/a"), &["ci/".to_owned()]).await.unwrap().is_none());
    let first = tar(1, 20 << 20);
    persist(&store, "ci/lock-1", &first).await.unwrap();
    let again = persist(&store, "ci/lock-1", &first).await.unwrap();
    assert!(again.unchanged && again.sent == 0, "{again:?}");
    persist(&store, "ci/other key & sign=/x", &tar(2, 1000)).await.unwrap();
    let found = store
        .find(&key("ci/lock-2"), &["ci/lock".to_owned()])
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.entry.key.as_str(), found.exact), ("ci/lock-1", false));
    assert!(restore(&store, "ci/lock-1").await.unwrap() == first);
    assert_eq!(store.list("").await.unwrap().len(), 2);
    assert_eq!(store.verify("", false).await.unwrap().whole, 2);
    assert!(store.remove(&key("ci/lock-1")).await.unwrap());
    let mut prune = Prune::default();
    prune.grace = Duration::ZERO;
    store.prune(prune).await.unwrap();
    let pruned = store.prune(prune).await.unwrap();
    assert!(pruned.objects > 1 && pruned.condemned == 0, "{pruned:?}");
    assert!(restore(&store, "ci/other key & sign=/x").await.unwrap() == tar(2, 1000));
}

async fn wrong_credentials_an_absent_bucket_and_a_dead_server_are_told_apart(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let mut wrong = s3.options("wrong");
    wrong.s3.secret_access_key = Some("not-the-key".to_owned().into());
    let error = Store::open(&wrong).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(format!("{error:?}").contains("check the credentials"), "{error:?}");
    let mut absent = s3.options("absent");
    absent.url = "s3://no-such-bucket/x".to_owned();
    let error = Store::open(&absent).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PathNotFound, "{error}");
    assert!(error.to_string().contains("there is no bucket"), "{error}");
    let mut dead = s3.options("dead");
    dead.s3.endpoint = Some("http://127.0.0.1:1".to_owned());
    let began = Instant::now();
    let error = Store::open(&dead).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

async fn a_server_that_refuses_for_a_while_costs_time_and_nothing_else(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (direct, through) = s3.stores("refusing", &proxy);
    let content = tar(1, 10 << 20);
    proxy.set(Fault::Refuse(3));
    persist(&through, "ci/a", &content).await.unwrap();
    proxy.set(Fault::Refuse(3));
    assert!(restore(&through, "ci/a").await.unwrap() == content);
    assert!(restore(&direct, "ci/a").await.unwrap() == content);
}

async fn a_server_that_refuses_for_ever_costs_a_bounded_delay(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (direct, through) = s3.stores("refused", &proxy);
    persist(&direct, "ci/a", &tar(1, 100_000)).await.unwrap();
    proxy.set(Fault::Refuse(u32::MAX));
    let began = Instant::now();
    let refused = restore(&through, "ci/a").await.unwrap_err();
    assert!(refused.to_string().contains("503"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    proxy.set(Fault::None);
    assert!(restore(&through, "ci/a").await.unwrap() == tar(1, 100_000));
}

async fn connections_that_are_cut_lose_nothing(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (direct, through) = s3.stores("cut", &proxy);
    let (old, new) = (tar(1, 12 << 20), tar(2, 12 << 20));
    persist(&direct, "ci/a", &old).await.unwrap();
    for bytes in [0, 100, 1000, 100_000, 1_500_000] {
        // A restore is whole, or an error.
        proxy.set(Fault::Cut(bytes, 2));
        if let Ok(restored) = restore(&through, "ci/a").await {
            assert!(restored == old, "{bytes}");
        }
        proxy.set(Fault::Cut(bytes, u32::MAX));
        let cut = persist(&through, "ci/a", &new).await;
        let found = restore(&direct, "ci/a").await.unwrap();
        assert!(found == if cut.is_ok() { &new[..] } else { &old[..] }, "{bytes}");
        persist(&direct, "ci/a", &old).await.unwrap();
    }
    proxy.set(Fault::None);
    persist(&through, "ci/a", &new).await.unwrap();
    assert!(restore(&through, "ci/a").await.unwrap() == new);
}

async fn a_slow_server_is_waited_for(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (_, through) = s3.stores("slow", &proxy);
    proxy.set(Fault::Delay(Duration::from_millis(700)));
    persist(&through, "ci/a", &tar(1, 3 << 20)).await.unwrap();
    assert!(restore(&through, "ci/a").await.unwrap() == tar(1, 3 << 20));
}

/// A pipeline that counts its runs in a cache.
fn counting(fixture: &Fixture) -> String {
    let count = json!({"task": "count", "config": {
        "platform": "linux", "image": fixture.image, "caches": [{"path": "state"}],
        "run": {"path": "sh", "args": ["-c", "echo run >> state/runs; ln -f state/runs state/hard; chmod 4755 state/runs; cat state/runs | wc -l"]},
    }});
    let after =
        json!({"task": "after", "config": {"platform": "linux", "image": fixture.image, "run": {"path": "true"}}});
    json!({"plan": [count, after]}).to_string()
}

fn run(fixture: &Fixture, dir: &Dir, environment: &[(&str, &str)], args: &[&str]) -> Finished {
    let command = fixture.orchestra(args).dir(dir.path());
    let with = |command: orchestra_e2e::Orchestra, (name, value): &(&str, &str)| command.env(name, value);
    environment.iter().fold(command, with).run()
}

fn says(finished: &Finished, parts: &[&str]) {
    for part in parts {
        assert!(finished.all().contains(part), "it does not say {part:?}\n{finished}");
    }
}

async fn a_cache_of_a_task_comes_back_on_the_next_run(fixture: &Fixture) {
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

async fn the_example_finds_its_packages_again(fixture: &Fixture) {
    let dir = Dir::with([("unused", "")]);
    let store = format!("file://{}", dir.file("store").display());
    let example = || {
        let command = fixture.orchestra(["run", "examples/caches.yml"]);
        command.env("ORCHESTRA_CACHES__STORE", &store).run()
    };
    says(&example(), &["install | installing"]);
    let second = example();
    assert_eq!(second.code, 0, "{second}");
    says(
        &second,
        &[
            "install | found left-pad 1.3.0",
            "cache packages: hit caches.yml/-/-/packages-",
        ],
    );
}

async fn a_run_without_caches_leaves_the_store_alone(fixture: &Fixture) {
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = format!("file://{}", dir.file("store").display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let finished = run(fixture, &dir, &environment, &["run", "ci.yml", "--no-cache"]);
    assert_eq!(finished.code, 0, "{finished}");
    says(&finished, &["count | 1"]);
    assert!(!finished.all().contains("cache state"), "{finished}");
    assert!(!dir.file("store").exists());
}

async fn the_store_is_looked_after_by_the_command(fixture: &Fixture) {
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
    says(&caches(&["rm", "copy"]), &["removed copy"]);
    says(&caches(&["prune", "--dry-run"]), &["would remove 0 objects"]);
    assert_eq!(caches(&["prune"]).code, 0);
    for pack in std::fs::read_dir(dir.file("store/packs")).unwrap().flatten() {
        std::fs::write(pack.path(), "damaged").unwrap();
    }
    let damaged = caches(&["verify"]);
    assert_eq!(damaged.code, 1, "{damaged}");
    says(&damaged, &["damaged: ci.yml/ci/-/workspace/state"]);
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
    std::fs::write(dir.file("store/orchestra-caches.json"), "{\"version\": 99}").unwrap();
    let newer = caches(&["list"]);
    assert_eq!(newer.code, 2, "{newer}");
    says(&newer, &["version 99", "newer orchestra"]);
}

async fn a_store_that_does_not_work_leaves_a_green_run(fixture: &Fixture) {
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

/// A build whose later layers replace a directory and delete a file, and a task that shows what the image holds.
fn building(fixture: &Fixture, tag: &str, last: &str) -> String {
    let dockerfile = format!(
        r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin"]
SHELL ["/bin/sh", "-c"]
RUN mkdir /d /e && echo a > /d/lower && echo gone > /e/gone && echo stays > /e/stays
RUN rm -rf /d && mkdir /d && echo b > /d/upper
RUN rm /e/gone && ln /e/stays /e/hard && chmod 4755 /e/stays
RUN --mount=type=cache,target=/c echo run >> /c/runs
RUN ls /d; echo {last} > /last
"#
    );
    let context = json!({"task": "context", "config": {
        "platform": "linux", "image": fixture.image, "outputs": [{"name": "source"}], "params": {"DOCKERFILE": dockerfile},
        "run": {"path": "sh", "args": ["-c", "cp /bin/busybox source/busybox; printf %s \"$DOCKERFILE\" > source/Dockerfile; touch -d '2020-01-01 00:00' source/*"]},
    }});
    let build = json!({"build_image": {
        "name": "app", "context": "source", "tag": tag, "push": true, "network": "host", "image": fixture.buildkit_image,
        "registry": {"insecure": true}, "caches": [{"path": "/var/lib/buildkit"}],
    }});
    let show = json!({"task": "show", "image": tag, "config": {
        "platform": "linux", "run": {"path": "sh", "args": ["-c", "ls -ln /d /e | grep -v total; cat /d/* /e/*"]},
    }});
    json!({"plan": [context, build, show]}).to_string()
}

/// The lines of a step.
fn lines_of<'a>(finished: &'a str, step: &str) -> Vec<&'a str> {
    let prefix = format!("{step} ");
    let lines = finished
        .lines()
        .filter(|line| line.starts_with(&prefix) && line.contains('|'));
    lines.filter_map(|line| Some(line.split_once('|')?.1.trim())).collect()
}

async fn a_builds_layers_come_back_exactly(fixture: &Fixture) {
    let tag = |name: &str| format!("{}/e2e/{name}-{}:1", fixture.registry, JobId::unique());
    let (first_tag, second_tag, clean_tag) = (tag("cached"), tag("rebuilt"), tag("clean"));
    let dir = Dir::with([("ci.yml", building(fixture, &first_tag, "one"))]);
    let store = format!("file://{}", dir.file("store").display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let first = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(first.code, 0, "{first}");
    says(
        &first,
        &[
            "app cache /var/lib/buildkit: miss",
            "app cache /var/lib/buildkit: persisted",
        ],
    );

    std::fs::write(dir.file("ci.yml"), building(fixture, &second_tag, "two")).unwrap();
    let second = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(second.code, 0, "{second}");
    says(&second, &["app cache /var/lib/buildkit: hit"]);
    let text = second.all();
    let build = lines_of(&text, "app");
    let cached = build.iter().filter(|line| line.contains("CACHED")).count();
    assert!(cached >= 6, "{cached} steps were cached\n{second}");
    assert!(build.iter().any(|line| line.ends_with("upper")), "{second}");
    assert!(
        !build.iter().any(|line| line.ends_with(" lower")),
        "a directory that was replaced shines through\n{second}"
    );

    std::fs::write(dir.file("ci.yml"), building(fixture, &clean_tag, "two")).unwrap();
    let clean = run(fixture, &dir, &environment, &["run", "ci.yml", "--no-cache"]);
    assert_eq!(clean.code, 0, "{clean}");
    let all = clean.all();
    let without_times = |lines: Vec<&str>| -> Vec<String> {
        // `ls -ln` has the time in fields 6 to 8.
        let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .map(|words| {
                let kept = words
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| words.len() < 9 || !(5..8).contains(at));
                kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    let (cached, from_nothing) = (
        without_times(lines_of(&text, "show")),
        without_times(lines_of(&all, "show")),
    );
    assert!(cached.len() > 5, "{second}");
    assert_eq!(cached, from_nothing, "{second}\n{clean}");
    for tag in [first_tag, second_tag, clean_tag] {
        fixture.engine.remove_image(&tag).unwrap();
    }
}

async fn a_cache_goes_through_a_bucket(fixture: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = s3.options("run").url;
    let environment = [
        ("ORCHESTRA_CACHES__STORE", store.as_str()),
        ("ORCHESTRA_CACHES__ENDPOINT", s3.endpoint.as_str()),
        ("ORCHESTRA_CACHES__REGION", "us-east-1"),
        ("ORCHESTRA_CACHES__ACCESS_KEY_ID", s3.user.as_str()),
        ("ORCHESTRA_CACHES__SECRET_ACCESS_KEY", s3.password.as_str()),
    ];
    says(&run(fixture, &dir, &environment, &["run", "ci.yml"]), &["count | 1"]);
    let second = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    says(&second, &["count cache state: hit", "count | 2"]);
}
