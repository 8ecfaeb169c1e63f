//! A store in a bucket of a real S3 server, behind a proxy that delays, refuses and cuts.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::tar::{END, Head, padded};
use orchestra::{Error, ErrorKind, JobId};
use orchestra_caches::{CacheKey, Persist, Prune, Store, StoreOptions};
use orchestra_e2e::{Dir, Fault, FaultProxy, Fixture};

use crate::runs::counting;
use crate::{run, says};

/// The server that `cargo xtask` started.
pub(crate) struct S3 {
    endpoint: String,
    bucket: String,
    user: String,
    password: String,
}

impl S3 {
    pub(crate) fn from_env() -> Option<Self> {
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

    /// What tells `orchestra` of a store of its own.
    pub(crate) fn environment(&self, prefix: &str) -> Vec<(String, String)> {
        let settings = [
            ("STORE", self.options(prefix).url),
            ("ENDPOINT", self.endpoint.clone()),
            ("REGION", "us-east-1".to_owned()),
            ("ACCESS_KEY_ID", self.user.clone()),
            ("SECRET_ACCESS_KEY", self.password.clone()),
        ];
        settings
            .map(|(name, value)| (format!("ORCHESTRA_CACHES__{name}"), value))
            .into()
    }

    pub(crate) async fn proxy(&self) -> FaultProxy {
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

pub(crate) async fn a_bucket_is_a_store(_: &Fixture) {
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

pub(crate) async fn wrong_credentials_an_absent_bucket_and_a_dead_server_are_told_apart(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let mut wrong = s3.options("wrong");
    wrong.s3.secret_access_key = Some("not-the-key".to_owned().into());
    let error = Store::open(&wrong).unwrap().check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(format!("{error:?}").contains("check the credentials"), "{error:?}");
    // Not the pages that the server answers with.
    let said = error.to_string();
    assert!(said.contains("SignatureDoesNotMatch: ") && said.len() < 400, "{said}");
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

pub(crate) async fn a_server_that_refuses_for_a_while_costs_time_and_nothing_else(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (direct, through) = s3.stores("refusing", &proxy);
    let content = tar(1, 10 << 20);
    proxy.set(Fault::Refuse(3));
    persist(&through, "ci/a", &content).await.unwrap();
    assert_eq!(proxy.met(), 3, "it was refused");
    proxy.set(Fault::Refuse(3));
    assert!(restore(&through, "ci/a").await.unwrap() == content);
    assert!(proxy.met() > 0, "it was refused");
    assert!(restore(&direct, "ci/a").await.unwrap() == content);
}

pub(crate) async fn a_server_that_refuses_for_ever_costs_a_bounded_delay(_: &Fixture) {
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

pub(crate) async fn connections_that_are_cut_lose_nothing(_: &Fixture) {
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
        assert!(proxy.met() > 0, "{bytes}");
        proxy.set(Fault::Cut(bytes, u32::MAX));
        let cut = persist(&through, "ci/a", &new).await;
        assert!(proxy.met() > 0, "{bytes}");
        let found = restore(&direct, "ci/a").await.unwrap();
        assert!(found == if cut.is_ok() { &new[..] } else { &old[..] }, "{bytes}");
        persist(&direct, "ci/a", &old).await.unwrap();
    }
    proxy.set(Fault::None);
    persist(&through, "ci/a", &new).await.unwrap();
    assert!(restore(&through, "ci/a").await.unwrap() == new);
}

pub(crate) async fn a_slow_server_is_waited_for(_: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let proxy = s3.proxy().await;
    let (_, through) = s3.stores("slow", &proxy);
    proxy.set(Fault::Delay(Duration::from_millis(700)));
    persist(&through, "ci/a", &tar(1, 3 << 20)).await.unwrap();
    assert!(proxy.met() > 0, "it was slow");
    assert!(restore(&through, "ci/a").await.unwrap() == tar(1, 3 << 20));
}

pub(crate) async fn a_cache_goes_through_a_bucket(fixture: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let environment = s3.environment("run");
    let environment: Vec<(&str, &str)> = environment.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    says(&run(fixture, &dir, &environment, &["run", "ci.yml"]), &["count | 1"]);
    let second = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    says(&second, &["count cache state: hit", "count | 2"]);
}

pub(crate) async fn the_variables_of_other_programs_say_what_the_config_does_not(fixture: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let dir = Dir::with([("ci.yml", counting(fixture))]);
    let store = s3.options("variables").url;
    let variables = |endpoint: &str, password: &str| {
        [
            ("ORCHESTRA_CACHES__STORE", store.clone()),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1".to_owned()),
            ("AWS_ENDPOINT_URL_S3", endpoint.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", s3.user.clone()),
            ("AWS_SECRET_ACCESS_KEY", password.to_owned()),
        ]
    };
    let run = |password: &str, args: &[&str]| {
        let variables = variables(&s3.endpoint, password);
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let finished = run(fixture, &dir, &variables, args);
        assert!(!finished.all().contains(password), "{finished}");
        finished
    };
    let persisted = &["count | 1", "count cache state: persisted"];
    says(&run(&s3.password, &["run", "ci.yml"]), persisted);
    says(
        &run(&s3.password, &["caches", "list"]),
        &["ci.yml/ci/-/workspace/state"],
    );
    let refused = run("hunter2hunter2", &["caches", "list"]);
    assert_ne!(refused.code, 0, "{refused}");
    // What the config says goes before them.
    let mut both: Vec<(String, String)> = s3.environment("variables");
    both.retain(|(name, _)| name != "ORCHESTRA_CACHES__STORE");
    let wrong = variables("http://127.0.0.1:1", "hunter2hunter2").map(|(name, value)| (name.to_owned(), value));
    both.extend(wrong);
    let both: Vec<_> = both
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    says(
        &crate::run(fixture, &dir, &both, &["caches", "list"]),
        &["ci.yml/ci/-/workspace/state"],
    );
}

pub(crate) async fn credentials_of_a_bucket_may_be_secrets(fixture: &Fixture) {
    let s3 = S3::from_env().unwrap();
    let config = |store: &str, key: &str| {
        format!(
            "[caches]\nstore = {store:?}\nendpoint = {:?}\nregion = \"us-east-1\"\naccess_key_id = {:?}\n\
             secret_access_key = \"secret:{key}\"\n[secrets]\nenvironment = [\"CACHES_KEY\", \"WRONG_KEY\"]\n",
            s3.endpoint, s3.user
        )
    };
    let store = s3.options("secret").url;
    let dir = Dir::with([
        ("ci.yml", counting(fixture)),
        ("orchestra.toml", config(&store, "CACHES_KEY")),
        ("wrong.toml", config(&store, "WRONG_KEY")),
        ("missing.toml", config(&store, "NO_KEY")),
        ("absent.toml", config("s3://no-such-bucket/x", "CACHES_KEY")),
    ]);
    let environment = [("CACHES_KEY", s3.password.as_str()), ("WRONG_KEY", "hunter2hunter2")];
    let run = |args: &[&str]| {
        let finished = run(fixture, &dir, &environment, args);
        for secret in [s3.password.as_str(), "hunter2"] {
            assert!(!finished.all().contains(secret), "{finished}");
        }
        finished
    };
    says(&run(&["run", "ci.yml"]), &["count | 1", "count cache state: persisted"]);
    says(&run(&["run", "ci.yml"]), &["count cache state: hit", "count | 2"]);
    says(&run(&["caches", "list"]), &["ci.yml/ci/-/workspace/state"]);

    let refused = run(&["caches", "list", "--config", "wrong.toml"]);
    assert_eq!(refused.code, 3, "{refused}");
    says(
        &refused,
        &["SignatureDoesNotMatch", "check the credentials under `[caches]`"],
    );
    let absent = run(&["caches", "list", "--config", "absent.toml"]);
    assert_eq!(absent.code, 3, "{absent}");
    says(&absent, &["there is no bucket at s3://no-such-bucket/x"]);
    // Neither turns a green run red.
    for (config, why) in [
        ("wrong.toml", "SignatureDoesNotMatch"),
        ("absent.toml", "there is no bucket"),
    ] {
        let green = run(&["run", "ci.yml", "--config", config]);
        assert_eq!(green.code, 0, "{green}");
        says(&green, &["the cache state was not restored", why, "count | 1"]);
    }
    let given = format!("--secret=NO_KEY={}", s3.password);
    let listed = run(&["caches", "list", "--config", "missing.toml", &given]);
    says(&listed, &["ci.yml/ci/-/workspace/state"]);
    for args in [&["caches", "list"][..], &["run", "ci.yml"]] {
        let missing = run(&[args, &["--config", "missing.toml"]].concat());
        assert_eq!(missing.code, 2, "{missing}");
        says(&missing, &["there is no secret NO_KEY", "caches.secret_access_key"]);
    }
}
