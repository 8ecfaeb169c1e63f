//! The layer around the engine in memory.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use orchestra::layer::{Fault, Faults, Layered, Method};
use orchestra::{
    Credentials, ErrorKind, ExecEvent, ExecSpec, InjectedFile, Job, OutputStream, PullImage, Result, SharedDriver,
    Task, labels,
};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_secrets::{
    Listed, MARKER, MemoryStore, Scope, SecretKey, SecretStore, SecretValue, Secrets, SecretsLayer, TaskSecrets,
};

fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

fn store() -> MemoryStore {
    [
        ("TOKEN", "hunter2-token"),
        ("USER", "robot"),
        ("PASSWORD", "pa:ss\"word"),
        ("SHORT", "abc"),
        ("NUL", "a\0bcdef"),
    ]
    .into_iter()
    .fold(MemoryStore::new(), |store, (key, value)| {
        store.with(Scope::Global, SecretKey::new(key).unwrap(), value.into())
    })
}

fn secrets() -> Secrets {
    Secrets::new([Scope::Global]).store("memory", store())
}

fn stack() -> SharedDriver {
    orchestra::layer::standard(SecretsLayer::wrap(engine().driver(), secrets()))
}

fn job(driver: &SharedDriver) -> Job {
    Job::builder(driver.clone()).build()
}

fn task(script: &str) -> Task {
    Task::new("t", "busybox").unwrap().shell(script)
}

#[test]
fn the_layer_is_in_the_stack() {
    assert_eq!(stack().to_string(), "tracing(context(timeout(secrets(memory))))");
}

#[tokio::test]
async fn a_variable_is_resolved_and_what_the_task_writes_of_it_is_not_seen() {
    let driver = stack();
    let job = job(&driver);
    let (sent, mut live) = tokio::sync::mpsc::channel(64);
    let script =
        "echo out $TOKEN; echo err $TOKEN >&2; printf '%s' hunter; printf '%s' 2-token; [ $TOKEN = hunter2-token ]";
    let result = job
        .run(task(script).env("TOKEN", "secret:TOKEN").output(sent))
        .await
        .unwrap();
    assert!(result.exit.success(), "the task itself has the value");
    assert_eq!(result.stdout.to_string(), format!("out {MARKER}\n{MARKER}"));
    assert_eq!(result.stderr.to_string(), format!("err {MARKER}\n"));
    let mut seen = Vec::new();
    while let Some(chunk) = live.recv().await {
        seen.extend_from_slice(&chunk.bytes);
    }
    assert!(!String::from_utf8_lossy(&seen).contains("hunter2"));
    job.end().await.unwrap();
}

#[tokio::test]
async fn what_one_job_has_is_no_matter_of_another() {
    let driver = stack();
    let (one, other) = (job(&driver), job(&driver));
    one.run(task("true").env("TOKEN", "secret:TOKEN")).await.unwrap();
    let seen = other.run(task("echo hunter2-token")).await.unwrap();
    assert_eq!(seen.stdout.to_string(), "hunter2-token\n");
    let seen = one
        .run(Task::new("u", "busybox").unwrap().shell("echo hunter2-token"))
        .await
        .unwrap();
    assert_eq!(
        seen.stdout.to_string(),
        format!("{MARKER}\n"),
        "a later task of the same job"
    );
}

#[tokio::test]
async fn a_missing_secret_names_the_key_where_it_was_looked_for_and_its_variable_and_nothing_is_made() {
    let engine = engine();
    let driver = SecretsLayer::wrap(engine.driver(), secrets());
    let job = job(&driver);
    let error = job.run(task("true").env("A", "secret:NONE")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let text = format!("{error:?}");
    for part in [
        "there is no secret NONE",
        "looked in memory",
        "scopes global",
        "variable=A",
        "orchestra secrets set NONE",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(engine.driver().list(None).await.unwrap().is_empty());
    for (value, why) in [
        ("secret:", "is empty"),
        ("secret:a b", "contains ' '"),
        ("secret:NUL", "NUL byte"),
    ] {
        let error = job.run(task("true").env("A", value)).await.unwrap_err();
        assert!(error.message().contains(why), "{value}: {error}");
    }
}

#[tokio::test]
async fn files_are_resolved_as_a_whole_and_in_json() {
    let driver = stack();
    let job = job(&driver);
    let file = |path: &str, content: &str| InjectedFile::new(path.parse().unwrap(), content.to_owned());
    let config = r#"{"auths":{"r.example.com":{"username":"secret:USER","password":"secret:PASSWORD"}}}"#;
    let script = "[ \"$(cat /s/token)\" = hunter2-token ] || exit 1; cat /s/token /s/other /root/.docker/config.json";
    let run = task(script)
        .file(file("/s/token", "secret:TOKEN"))
        .file(file("/s/other", "secret: none\n"))
        .file(file("/root/.docker/config.json", config));
    let result = job.run(run).await.unwrap().success().unwrap();
    let seen = result.stdout.to_string();
    assert!(seen.starts_with(&format!("{MARKER}secret: none\n")), "{seen}");
    assert!(
        !seen.contains("robot") && !seen.contains("pa:ss") && seen.contains("username"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_file_that_was_said_to_be_a_secret_is_redacted() {
    let driver = stack();
    let job = job(&driver);
    let file = |path: &str, content: &'static [u8]| InjectedFile::secret(path.parse().unwrap(), content);
    let run = task("cat /s/text; echo; cat /s/bytes; cat /s/open")
        .file(file("/s/text", b"made-up-word"))
        .file(file("/s/bytes", b"\xffmade-up-bytes\n"))
        .file(InjectedFile::new("/s/open".parse().unwrap(), "anybody's"));
    let seen = job.run(run).await.unwrap().stdout.to_string();
    assert_eq!(seen, format!("{MARKER}\n{MARKER}\nanybody's"));
    let long = InjectedFile::secret("/s/long".parse().unwrap(), vec![b'x'; 100_000]);
    let error = job
        .run(Task::new("u", "busybox").unwrap().shell("true").file(long))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(format!("{error:?}").contains("file=/s/long"), "{error:?}");
}

#[tokio::test]
async fn credentials_in_a_clients_config_are_redacted_given_as_references_or_not() {
    let driver = stack();
    let job = job(&driver);
    let pair = STANDARD.encode("robot:hunter2hunter2");
    let config = format!(r#"{{"auths":{{"r.example.com":{{"auth":"{pair}"}}}}}}"#);
    let file = InjectedFile::new("/root/.docker/config.json".parse().unwrap(), config);
    let script = format!("cat /root/.docker/config.json; echo; echo hunter2hunter2 robot:hunter2hunter2 {pair}");
    let seen = job.run(task(&script).file(file)).await.unwrap().stdout.to_string();
    assert!(
        !seen.contains("hunter2hunter2") && !seen.contains(&pair[..pair.len() - 2]),
        "{seen}"
    );
}

#[tokio::test]
async fn a_value_that_a_task_announces_is_redacted_from_then_on_in_the_whole_job() {
    let driver = stack();
    let (job, other) = (job(&driver), job(&driver));
    let script = "echo before made-up; echo ::add-mask::made-up; echo made-up; echo made-up >&2";
    let result = job.run(task(script)).await.unwrap();
    assert_eq!(
        result.stdout.to_string(),
        format!("before made-up\n::add-mask::{MARKER}\n{MARKER}\n")
    );
    let later = job
        .run(Task::new("later", "busybox").unwrap().shell("echo made-up"))
        .await
        .unwrap();
    assert_eq!(later.stdout.to_string(), format!("{MARKER}\n"));
    assert_eq!(
        other.run(task("echo made-up")).await.unwrap().stdout.to_string(),
        "made-up\n"
    );
}

#[tokio::test]
async fn an_execs_output_is_redacted_and_its_variables_are_resolved() {
    let driver = stack();
    let job = job(&driver);
    let mut running = job.start(task("sleep 60").env("TOKEN", "secret:TOKEN"));
    let id = job.id().container(&"t".parse().unwrap(), 1);
    let mut spec = ExecSpec::new(["sh", "-c", "[ $AGAIN = hunter2-token ] && echo exec $AGAIN"]);
    spec.env = [("AGAIN", "secret:TOKEN")].into_iter().collect();
    let events = loop {
        match driver.exec(&id, &spec, None).await {
            Ok(events) => break events,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    let events: Vec<ExecEvent> = events.map(Result::unwrap).collect().await;
    let text: Vec<u8> = events
        .iter()
        .filter_map(|event| match event {
            ExecEvent::Output(chunk) => Some(chunk.bytes.to_vec()),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(String::from_utf8(text).unwrap(), format!("exec {MARKER}\n"));
    assert!(matches!(events.last(), Some(ExecEvent::Exit(exit)) if exit.success()));
    running.cancel();
    running.wait().await.unwrap();
}

#[tokio::test]
async fn a_volumes_content_stays_as_it_is_though_a_secret_is_in_it() {
    let driver = stack();
    let job = job(&driver);
    let mut waits = task("sleep 60").env("TOKEN", "secret:TOKEN");
    let content = labels::OUTPUT_CONTENT.to_owned();
    waits.spec.labels.insert(labels::OUTPUT.to_owned(), content);
    let mut running = job.start(waits);
    let id = job.id().container(&"t".parse().unwrap(), 1);
    let spec = ExecSpec::new(["sh", "-c", "echo tar hunter2-token; echo warning hunter2-token >&2"]);
    let events = loop {
        match driver.exec(&id, &spec, None).await {
            Ok(events) => break events,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    };
    let (mut content, mut said) = (Vec::new(), Vec::new());
    for event in events.map(Result::unwrap).collect::<Vec<_>>().await {
        if let ExecEvent::Output(chunk) = event {
            let of = if chunk.stream == OutputStream::Stdout {
                &mut content
            } else {
                &mut said
            };
            of.extend_from_slice(&chunk.bytes);
        }
    }
    assert_eq!(String::from_utf8(content).unwrap(), "tar hunter2-token\n");
    assert_eq!(String::from_utf8(said).unwrap(), format!("warning {MARKER}\n"));
    running.cancel();
    running.wait().await.unwrap();
}

#[tokio::test]
async fn an_error_of_the_engine_holds_no_secret() {
    // What an engine says of a container's program that it lacks.
    let driver = stack();
    let job = job(&driver);
    let mut run = Task::new("t", "busybox").unwrap().command(["/no/such/hunter2-token"]);
    run.spec.env = [("TOKEN", "secret:TOKEN")].into_iter().collect();
    let error = job.run(run).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(!text.contains("hunter2") && text.contains(MARKER), "{text}");

    let faults = Faults::new().on(Method::Logs, Fault::CutStream(0, ErrorKind::Interrupted));
    let driver = SecretsLayer::wrap(Layered::wrap(engine().driver(), faults), secrets());
    let error = Job::builder(driver)
        .build()
        .run(task("true").env("T", "secret:TOKEN"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

#[tokio::test]
async fn a_pull_has_its_credentials_resolved() {
    let engine = engine();
    engine.add_registry("private.test:5000", Some(("robot", "pa:ss\"word")));
    let driver = SecretsLayer::wrap(engine.driver(), secrets());
    let pull = |password: &str| {
        let mut pull = PullImage::new("private.test:5000/x".parse().unwrap());
        pull.credentials = Some(Credentials::new("secret:USER", password));
        pull
    };
    let outcome = async |pull: PullImage| match driver.pull_image(&pull).await {
        Ok(mut stream) => match stream.next().await {
            Some(Err(error)) => error.kind(),
            _ => panic!("there is no such image"),
        },
        Err(error) => error.kind(),
    };
    assert_eq!(outcome(pull("wrong")).await, ErrorKind::Unauthorized);
    assert_eq!(outcome(pull("secret:PASSWORD")).await, ErrorKind::ImageNotFound);
    assert_eq!(outcome(pull("secret:NONE")).await, ErrorKind::InvalidInput);
}

/// Counts how often it is asked.
#[derive(Debug)]
struct Counting(MemoryStore, Arc<AtomicUsize>);

#[async_trait]
impl SecretStore for Counting {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        self.0.get(scope, key).await
    }
    async fn set(&self, scope: &Scope, key: &SecretKey, value: &SecretValue) -> Result<()> {
        self.0.set(scope, key, value).await
    }
    async fn list(&self) -> Result<Vec<Listed>> {
        self.0.list().await
    }
    async fn remove(&self, scope: &Scope, key: &SecretKey) -> Result<bool> {
        self.0.remove(scope, key).await
    }
}

#[tokio::test]
async fn a_secret_is_fetched_once_a_job() {
    let asked = Arc::new(AtomicUsize::new(0));
    let secrets = Secrets::new([Scope::Global]).store("counting", Counting(store(), asked.clone()));
    let driver = SecretsLayer::wrap(engine().driver(), secrets);
    for jobs in 1..=2 {
        let job = job(&driver);
        let run = |name: &str| {
            job.run(
                Task::new(name, "busybox")
                    .unwrap()
                    .shell("true")
                    .env("T", "secret:TOKEN"),
            )
        };
        let (a, b, c) = tokio::join!(run("a"), run("b"), run("c"));
        assert!([a, b, c].iter().all(Result::is_ok));
        assert_eq!(asked.load(Ordering::Relaxed), jobs);
        job.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_value_that_is_too_long_to_be_redacted_is_given_to_no_task() {
    let long = MemoryStore::new().with(
        Scope::Global,
        SecretKey::new("LONG").unwrap(),
        SecretValue::new(vec![b'x'; (64 << 10) + 1]),
    );
    let driver = SecretsLayer::wrap(engine().driver(), Secrets::new([Scope::Global]).store("memory", long));
    let error = job(&driver)
        .run(task("true").env("T", "secret:LONG"))
        .await
        .unwrap_err();
    assert!(
        error.message().contains("the secret LONG is 65537 bytes long"),
        "{error}"
    );
}

#[tokio::test]
async fn a_short_secret_shreds_no_log() {
    let driver = stack();
    let result = job(&driver)
        .run(task("echo abcdef $A").env("A", "secret:SHORT"))
        .await
        .unwrap();
    assert_eq!(result.stdout.to_string(), "abcdef abc\n");
}

#[tokio::test]
async fn it_is_told_once_that_what_a_task_announces_is_too_short() {
    let engine = engine();
    let secrets = secrets();
    let driver = SecretsLayer::wrap(engine.driver(), secrets.clone());
    let job = job(&driver);
    let script = "for value in '' abc abd; do echo ::add-mask::$value; done; echo abc";
    let result = job.run(task(script)).await.unwrap();
    assert!(result.stdout.to_string().ends_with("\nabc\n"));
    let told = secrets.job(job.id().as_str()).warnings();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("::add-mask::"), "{told:?}");
    assert!(secrets.job(job.id().as_str()).warnings().is_empty());
}

#[tokio::test]
async fn a_prompt_appears_while_the_task_still_runs() {
    prompt_appears("printf 'Name of the h'; sleep 30").await;
}

#[tokio::test]
async fn a_prompt_appears_while_the_other_stream_talks() {
    prompt_appears("printf 'Name of the h'; for i in 1 2 3 4 5 6 7 8 9; do for j in 1 2 3 4 5; do echo $i$j >&2; sleep 0.1; done; done").await;
}

async fn prompt_appears(script: &str) {
    let driver = stack();
    let job = job(&driver);
    let (sent, mut live) = tokio::sync::mpsc::channel(64);
    let mut running = job.start(task(script).env("T", "secret:TOKEN").output(sent));
    let mut seen = String::new();
    let wait = async {
        while seen != "Name of the h" {
            let chunk = live.recv().await.unwrap();
            if chunk.stream == OutputStream::Stdout {
                seen += std::str::from_utf8(&chunk.bytes).unwrap();
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(3), wait)
        .await
        .unwrap();
    running.cancel();
    running.wait().await.unwrap();
}

#[tokio::test]
async fn what_can_not_be_hidden_is_refused_and_a_file_falls_back_to_the_containers_own() {
    let engine = engine().with_capabilities(|capabilities| capabilities.stdin = false);
    let driver = SecretsLayer::wrap(engine.driver(), secrets());
    let job = job(&driver);
    let error = job
        .run(task("true").env("T", "secret:TOKEN").hide_secret_env())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("the engine lacks stdin"), "{error}");
    // One within a longer text, and too short to be redacted, is hidden too once it is known.
    let told = || task("true").env("T", "pin: abc.").hide_secret_env();
    job.run(told()).await.unwrap();
    job.run(task("true").env("T", "secret:SHORT")).await.unwrap();
    let error = job.run(told()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let key = SecretKey::new("TOKEN").unwrap();
    let script = "cat /run/secrets/t; stat -c %a:%u /run/secrets/t";
    let mut reads = Task::new("u", "busybox")
        .unwrap()
        .shell(script)
        .secret_file("/run/secrets/t", &key)
        .unwrap();
    reads.spec.user = Some("1000:1000".parse().unwrap());
    assert_eq!(
        job.run(reads).await.unwrap().stdout.to_string(),
        format!("{MARKER}400:1000\n")
    );
    for (path, why) in [
        ("t", "not absolute"),
        ("/etc/t", "holds other files"),
        ("/t", "holds other files"),
        ("/usr/lib/t", "holds"),
    ] {
        let error = task("true").secret_file(path, &key).unwrap_err();
        assert!(error.message().contains(why), "{path}: {error}");
    }
}

#[tokio::test]
async fn nothing_of_a_secret_is_in_debug() {
    let secrets = secrets();
    let layer = SecretsLayer::new(engine().driver(), secrets.clone());
    let job = secrets.job("j");
    job.resolve(&"TOKEN".parse().unwrap()).await.unwrap();
    let shown = format!("{layer:?} {job:?} {secrets:?} {:?}", store());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert_eq!(
        secrets.redact("a log line with hunter2-token"),
        format!("a log line with {MARKER}")
    );
}

#[tokio::test]
async fn a_registry_without_a_password_shreds_no_log_and_a_short_one_is_told() {
    let secrets = secrets();
    let job = secrets.job("a");
    let login = |password: &str| orchestra::Credentials::new("robot", password.to_owned());
    job.credentials(&login("")).await.unwrap();
    assert_eq!(job.redact("robot: cm9ib3Q6"), "robot: cm9ib3Q6");
    assert!(job.warnings().is_empty());
    job.credentials(&login("abc")).await.unwrap();
    let told = job.warnings();
    assert!(
        told.len() == 1 && told[0].contains("password of a registry is too short"),
        "{told:?}"
    );
    job.credentials(&login("abc")).await.unwrap();
    assert!(job.warnings().is_empty(), "it is told once");
}

#[tokio::test]
async fn a_password_of_a_clients_own_is_no_reference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let pair = STANDARD.encode("robot:secret:none");
    std::fs::write(
        &path,
        format!(r#"{{"auths": {{"private.test:5000": {{"auth": "{pair}"}}}}}}"#),
    )
    .unwrap();
    let client = orchestra_secrets::ClientConfig::read(path).unwrap();
    let engine = engine();
    engine.add_registry("private.test:5000", Some(("robot", "secret:none")));
    let driver = SecretsLayer::wrap(engine.driver(), secrets().client_config(client));
    let pull = PullImage::new("private.test:5000/x".parse().unwrap());
    let pulled = match driver.pull_image(&pull).await {
        Ok(mut stream) => stream.next().await.unwrap().map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(pulled.unwrap_err().kind(), ErrorKind::ImageNotFound, "it was logged in");
}
