//! Variables and secrets in pipelines, on the engine in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use orchestra::{Result, SharedDriver};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunOptions, RunReport, Status, Values, run};
use orchestra_secrets::{
    Listed, MARKER, MemoryStore, Scope, SecretKey, SecretStore, SecretValue, Secrets, SecretsLayer,
};
use tokio::sync::mpsc;

#[derive(Debug)]
struct Counting(MemoryStore, Arc<AtomicUsize>);

#[async_trait]
impl SecretStore for Counting {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let found = self.0.get(scope, key).await?;
        self.1.fetch_add(usize::from(found.is_some()), Ordering::Relaxed);
        Ok(found)
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

fn secrets(asked: &Arc<AtomicUsize>) -> Secrets {
    let values = [
        ("TOKEN", "hunter2-token"),
        ("DB", r#"{"password": "hunter2-field", "port": 5432}"#),
        ("NUL", "hunter2\0nul"),
        ("PIN", "42"),
    ];
    let store = values.into_iter().fold(MemoryStore::new(), |store, (key, value)| {
        store.with(Scope::Global, SecretKey::new(key).unwrap(), value.into())
    });
    let scopes = [Scope::pipeline("ci").unwrap(), Scope::Global];
    Secrets::new(scopes).store("vault", Counting(store, asked.clone()))
}

fn values() -> (Values, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut values = Values::default();
    values.variables.set("image", "busybox");
    values
        .variables
        .load(
            "vars.yml",
            "tries: 2\nlist: [-c, 'echo from-a-list']\nnested: { deep: { text: value } }\nindirect: secret:TOKEN\n",
        )
        .unwrap();
    values.secrets = Some(secrets(&asked));
    (values, asked)
}

async fn parse(text: &str) -> Pipeline {
    Pipeline::parse_with("ci.yml", text, &values().0)
        .await
        .unwrap_or_else(|invalid| panic!("{invalid:?}"))
}

fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    // A resource's programs that write a secret as no form of it is looked for.
    let answers = [
        ("check", r#"[{"n": "hunter2\u002dtoken"}]"#),
        (
            "in",
            r#"{"version": {"n": "hunter2\u002dtoken"}, "metadata": [{"name": "m", "value": "hunter2\u002dtoken"}]}"#,
        ),
    ];
    let odd = answers
        .into_iter()
        .fold(MemoryImage::busybox(), |image, (program, answer)| {
            image.with_program(&format!("/opt/resource/{program}"), move |process| async move {
                while process.stdin.read_line().await.is_some() {}
                process.stdout.write(answer).await;
                0
            })
        });
    engine.add_image("odd", odd).unwrap();
    engine
}

/// Runs it, and returns the report, all events as JSON, and how often the store was asked with success.
async fn executed(text: &str) -> (RunReport, String, usize) {
    let (values, asked) = values();
    let pipeline = Pipeline::parse_with("ci.yml", text, &values)
        .await
        .unwrap_or_else(|invalid| panic!("{invalid:?}"));
    let secrets = values.secrets.unwrap();
    let driver: SharedDriver = orchestra::layer::standard(SecretsLayer::wrap(engine().driver(), secrets.clone()));
    let (events, mut received) = mpsc::channel(8);
    let collect = tokio::spawn(async move {
        let mut all = String::new();
        while let Some(event) = received.recv().await {
            all += &format!("{}\n", serde_json::to_string(&event).unwrap());
        }
        all
    });
    let mut options = RunOptions::default();
    options.events = Some(events);
    options.secrets = Some(secrets);
    let report = run(&pipeline, driver, options).await;
    (report, collect.await.unwrap(), asked.load(Ordering::Relaxed))
}

fn step(keys: &str, script: &str) -> String {
    format!(
        "plan:\n- task: t\n  image: ((image))\n  {keys}\n  config:\n    run:\n      path: sh\n      args: [-c, \"{script}\"]\n"
    )
}

#[tokio::test]
async fn a_task_has_its_secrets_and_nobody_else_sees_them() {
    let text = step(
        "env: { TOKEN: secret:TOKEN, URL: 'db://x:((vault:DB.password))@h:((DB.port))' }",
        "[ $TOKEN = hunter2-token ] || exit 7; echo $TOKEN; echo $URL; echo ((TOKEN)) >&2; exit 1",
    );
    let (report, events, asked) = executed(&text).await;
    assert_eq!(report.status, Status::Failed);
    assert_eq!(report.steps[0].exit.unwrap().code(), 1, "{events}");
    assert_eq!(
        report.steps[0].log_tail.matches(MARKER).count(),
        4,
        "{}",
        report.steps[0].log_tail
    );
    assert!(events.contains(&format!("db://x:{MARKER}@h:")), "{events}");
    for seen in [
        &events,
        &format!("{report:?}"),
        &serde_json::to_string(&report).unwrap(),
    ] {
        assert!(!seen.contains("hunter2"), "{seen}");
    }
    assert_eq!(asked, 3, "each is fetched once, for the check and the job together");
}

#[tokio::test]
async fn fields_of_one_secret_are_of_one_answer_of_its_store() {
    let text = step(
        "env: { URL: '((DB.password))@((DB.port))' }",
        "echo ((DB.password)) $URL",
    );
    let (report, events, asked) = executed(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{events}");
    assert_eq!(asked, 1, "{events}");
    assert!(!events.contains("hunter2"), "{events}");
}

#[tokio::test]
async fn a_field_that_is_asked_for_late_is_of_the_same_answer() {
    // In two quotes, so that the pipeline itself does not refer to it.
    let writes =
        r#"printf %s '{params: {WORD: "(''(DB.password))"}, run: {path: sh, args: [-c, "echo $WORD"]}}' > o/t.yml"#;
    let text = format!(
        "plan:
- task: makes
  image: busybox
  env: {{ PORT: '((DB.port))' }}
  config: {{ outputs: [{{ name: o }}], run: {{ path: sh, args: [-c, {writes:?}] }} }}
- {{ task: t, file: o/t.yml, image: busybox }}
"
    );
    let (report, events, asked) = executed(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{events}");
    assert!(events.contains(MARKER) && !events.contains("hunter2"), "{events}");
    assert_eq!(asked, 1, "{events}");
}

#[tokio::test]
async fn the_fields_of_a_variable_that_is_not_to_be_revealed_are_redacted_wherever_they_go() {
    let makes = r#"echo '{"password": "p4ss-w0rd"}' > made/v"#;
    let text = format!(
        "plan:
- task: makes
  image: busybox
  config: {{ outputs: [{{ name: made }}], run: {{ path: sh, args: [-c, {makes:?}] }} }}
- {{ load_var: v, file: made/v, format: json, reveal: false }}
- task: shows
  image: busybox
  config: {{ run: {{ path: echo, args: ['<((.:v.password))>'] }} }}
"
    );
    let (report, events, _) = executed(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{events}");
    assert!(events.contains(&format!("<{MARKER}>")), "{events}");
    assert!(!events.contains("p4ss-w0rd"), "{events}");
}

#[tokio::test]
async fn a_failure_of_the_engine_shows_no_secret_of_a_command() {
    let text = "plan:\n- { task: t, image: busybox, config: { run: { path: /no/((TOKEN)) } } }\n";
    let (report, events, _) = executed(text).await;
    assert_eq!(report.status, Status::Failed);
    assert!(report.steps[0].error.as_ref().unwrap().contains(MARKER), "{report:?}");
    assert!(!events.contains("hunter2"), "{events}");
}

#[tokio::test]
async fn plain_variables_are_of_any_kind_and_are_not_redacted() {
    let text = "plan:\n- task: t\n  image: ((image))\n  attempts: ((tries))\n  env: { A: '<((nested.deep.text))>', T: ((indirect)) }\n  config: { run: { path: sh, args: ((list)) } }\n";
    let (report, events, _) = executed(text).await;
    assert_eq!(report.status, Status::Succeeded, "{events}");
    assert!(events.contains("from-a-list"));
    let pipeline = parse(text).await;
    assert_eq!(pipeline.jobs[0].plan[0].attempts, 2);
}

#[tokio::test]
async fn what_is_missing_is_told_with_its_place_and_where_it_was_looked_for_before_anything_is_made() {
    let text = "plan:\n- task: t\n  image: busybox\n  env:\n    A: secret:NONE\n    B: x-((nothing.at))-((vault:DB.none))\n    C: ((other:TOKEN))\n    D: ((NUL))\n  secret_files: { /run/secrets/x: secret:GONE }\n  config: { run: { path: 'true' } }\n";
    let invalid = Pipeline::parse_with("ci.yml", text, &values().0).await.unwrap_err();
    let lines: Vec<String> = invalid
        .problems()
        .iter()
        .map(|problem| {
            format!(
                "{}:{} {} | {}",
                problem.line().unwrap(),
                problem.column().unwrap(),
                problem.message,
                problem.help.clone().unwrap_or_default()
            )
        })
        .collect();
    let expected = [
        (
            "5:8",
            "there is no secret NONE: looked in vault, for the scopes pipeline ci and global",
            "orchestra secrets set NONE",
        ),
        (
            "6:8",
            "`((nothing.at))` has no value: there is no secret nothing",
            "--var nothing=…",
        ),
        (
            "6:8",
            "`((vault:DB.none))` has no value: the secret DB: it has no field `none`",
            "",
        ),
        ("7:8", "there is no store of secrets \"other\"", "there are: vault"),
        ("8:8", "the secret NUL has a NUL byte", "secret_files"),
        ("9:35", "`secret:GONE` has no value: there is no secret GONE", ""),
    ];
    for (place, message, help) in expected {
        let found = lines
            .iter()
            .any(|line| line.starts_with(place) && line.contains(message) && line.contains(help));
        assert!(found, "{place} {message}: {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert!(!format!("{invalid:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_certificate_that_is_no_secret_there_is_is_told_with_its_place() {
    for keys in ["ca: secret:GONE", "client_cert: secret:GONE, client_key: secret:TOKEN"] {
        let text = build(&format!("tag: r.example.com/a:1, registry: {{ {keys} }}"));
        let invalid = Pipeline::parse_with("ci.yml", &text, &values().0).await.unwrap_err();
        let said = format!("{invalid:?}");
        assert!(
            said.contains("ci.yml:5:") && said.contains("there is no secret GONE"),
            "{said}"
        );
    }
}

/// A pipeline with one build of which these are the keys.
fn build(keys: &str) -> String {
    format!(
        "plan:\n- task: t\n  image: busybox\n  config: {{ outputs: [{{ name: s }}], run: {{ path: a }} }}\n- build_image: {{ context: s, {keys} }}\n"
    )
}

#[tokio::test]
async fn what_others_are_shown_holds_no_secret() {
    let image = "it would stand in the image for all to see";
    let shown = "it is shown in logs, by the engine or by a registry";
    let task = |keys: &str| {
        format!(
            "plan:\n- {{ task: t, image: busybox, config: {{ run: {{ path: a }} }} }}\n- {{ {keys}, config: {{ run: {{ path: a }} }} }}\n"
        )
    };
    let across = "plan:\n- across: [{ var: x, values: [a, ((TOKEN))] }]\n  task: t\n  image: busybox:((.:x))\n  config: { run: { path: a } }\n";
    let cases = [
        (build("tag: 'app:((TOKEN))'"), "`tag`", shown),
        (build("tag: a, tags: [b, 'app:((TOKEN))']"), "an item of `tags`", shown),
        (
            build("tag: a, build_args: { A: ok, B: 'x((TOKEN))' }"),
            "`build_args`",
            image,
        ),
        (build("tag: a, labels: { A: ((DB.password)) }"), "`labels`", image),
        (build("tag: a, annotations: { a.b: ((TOKEN)) }"), "`annotations`", image),
        (
            build("tag: a, dockerfile_inline: 'FROM ((TOKEN))'"),
            "`dockerfile_inline`",
            image,
        ),
        (build("tag: a, target: ((TOKEN))"), "`target`", image),
        (
            build("tag: a, no_cache_filter: [((TOKEN))]"),
            "an item of `no_cache_filter`",
            shown,
        ),
        (
            build("tag: a, mirrors: { docker.io: ['u:((TOKEN))@mirror.test'] }"),
            "an item of a registry's mirrors",
            shown,
        ),
        (build("tag: a, name: ((TOKEN))"), "`name`", shown),
        (
            build("tag: a, buildkitd_config: \"x = '((TOKEN))'\""),
            "`buildkitd_config`",
            shown,
        ),
        (build("tag: a, labels: { ((TOKEN)): x }"), "a name in `labels`", shown),
        (build("tag: a, env: { ((TOKEN)): x }"), "a name in `env`", shown),
        (
            build("tag: a, env: { HTTPS_PROXY: 'http://u:((TOKEN))@proxy' }"),
            "`env`",
            "the engine shows a build's environment",
        ),
        (
            build("tag: a, env: { HTTPS_PROXY: secret:TOKEN }"),
            "`env`",
            "the engine shows a build\'s environment",
        ),
        (task("task: ((TOKEN)), image: busybox"), "`task`", shown),
        (task("task: u, image: 'registry.test/((TOKEN))/a'"), "`image`", shown),
        (
            task("task: u, image: busybox, caches: x").replace(
                "caches: x, config: {",
                "config: { caches: [{ path: p, key: 'k-((TOKEN))' }],",
            ),
            "`key`",
            shown,
        ),
        (across.to_owned(), "`image`", shown),
    ];
    for (text, place, why) in cases {
        let invalid = Pipeline::parse_with("ci.yml", &text, &values().0).await.unwrap_err();
        let told = invalid.problems().iter().any(|problem| {
            let is_placed = problem.line().is_some_and(|line| line >= 3);
            let help = problem.help.clone().unwrap_or_default();
            is_placed && problem.message.contains(place) && help.contains(why)
        });
        assert!(told, "{place} in {text}: {:#?}", invalid.problems());
        assert!(!format!("{:?}", invalid.problems()).contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_secret_in_a_command_is_noted_and_one_that_is_read_late_is_refused_all_the_same() {
    let text = "plan:\n- task: t\n  image: busybox\n  config: { run: { path: sh, args: [-c, 'echo ((TOKEN))'] } }\n";
    let notes: Vec<_> = parse(text).await.notes().to_vec();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].message.contains("secret_env: hidden") && notes[0].line() == Some(4),
        "{notes:?}"
    );
    let (report, told, _) = executed(text).await;
    let [warning] = &report.warnings[..] else {
        panic!("{report:#?}")
    };
    assert!(warning.starts_with("ci.yml:4: a secret in"), "{warning}");
    assert!(
        told.contains("secret_env: hidden") && !told.contains("hunter2"),
        "{told}"
    );
    let late = "plan:\n- task: makes\n  image: busybox\n  config: { outputs: [{ name: o }], run: { path: sh, args: [-c, 'echo -n 1 > o/v'] } }\n- { load_var: v, file: o/v }\n- task: t((.:v))\n  image: busybox:((TOKEN))\n  config: { run: { path: 'true' } }\n";
    let refused = Pipeline::parse_with("ci.yml", late, &values().0).await;
    let told = match refused {
        Err(invalid) => format!("{:?}", invalid.problems()),
        Ok(_) => executed(late).await.1,
    };
    assert!(
        told.contains("a secret can't stand in `image`") && !told.contains("hunter2"),
        "{told}"
    );
}

#[tokio::test]
async fn a_secret_that_is_too_short_to_be_redacted_is_told_once() {
    let text = "plan:\n- { task: t, image: busybox, env: { A: ((PIN)) }, config: { run: { path: 'true' } } }\n- { task: u, image: busybox, env: { A: secret:PIN }, config: { run: { path: 'true' } } }\n";
    let (report, _, _) = executed(text).await;
    assert_eq!(report.status, Status::Succeeded);
    let told = report
        .warnings
        .iter()
        .filter(|warning| warning.contains("the secret PIN is too short to be redacted"));
    assert_eq!(told.count(), 1, "{report:?}");
}

#[tokio::test]
async fn what_a_resource_tells_of_a_version_shows_no_secret() {
    let text = "resource_types: [{ name: odd, type: registry-image, source: { repository: odd } }]\nresources: [{ name: r, type: odd, source: { token: ((TOKEN)) } }]\nplan: [{ get: r }]\n";
    let (report, events, _) = executed(text).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    let step = &report.steps[0];
    assert_eq!(step.version.as_ref().unwrap()["n"], MARKER);
    assert_eq!(step.metadata[0].value, MARKER);
    assert!(!events.contains("hunter2"), "{events}");
}

#[tokio::test]
async fn a_made_up_value_that_is_too_short_is_told_though_its_step_is_the_last() {
    let plan = step("", "echo ::add-mask::abc; echo ::add-mask::abd");
    let (report, ..) = executed(&plan).await;
    assert_eq!(report.status, Status::Succeeded);
    let told = report
        .warnings
        .iter()
        .filter(|warning| warning.contains("::add-mask::"));
    assert_eq!(told.count(), 1, "{:?}", report.warnings);
}

#[tokio::test]
async fn a_secret_that_is_cut_by_colours_is_not_whole_where_they_are_left_out() {
    let script = r#"printf 'hun\e[31mter\e[m2-token'; exit 1"#;
    let (report, ..) = executed(&step("env: { A: secret:TOKEN }", script)).await;
    assert_eq!(report.status, Status::Failed);
    assert_eq!(report.steps[0].log_tail, MARKER);
    let harmless = step("env: { A: secret:TOKEN }", r#"printf 'a\e[31mb'; exit 1"#);
    let (report, ..) = executed(&harmless).await;
    assert_eq!(report.steps[0].log_tail, "a\u{1b}[31mb");
}

#[tokio::test]
async fn a_value_that_is_refused_is_not_shown() {
    let text = "plan:\n- { task: t, image: '((TOKEN)) x', timeout: ((TOKEN)), config: { run: { path: a } } }\n";
    let invalid = Pipeline::parse_with("ci.yml", text, &values().0).await.unwrap_err();
    let shown = format!("{invalid:?}{:?}", invalid.problems());
    assert!(!shown.contains("hunter2") && shown.contains(MARKER), "{shown}");
}

#[tokio::test]
async fn debug_of_a_plan_shows_no_secret() {
    let text = "plan:\n- task: t\n  image: busybox\n  env: { A: ((TOKEN)) }\n  config: { outputs: [{ name: s }], run: { path: sh, args: [-c, 'echo ((TOKEN))'] } }\n- build_image: { context: s, tag: a, secrets: { id: ((TOKEN)) } }\n";
    let pipeline = parse(text).await;
    assert!(!format!("{pipeline:?}").contains("hunter2"), "{pipeline:?}");
}

#[tokio::test]
async fn a_secret_stands_in_a_file_and_its_step_says_how_its_variables_go() {
    let text = step(
        "secret_env: engine\n  secret_files: { /run/secrets/token: secret:TOKEN }",
        "exit 0",
    );
    let pipeline = parse(&text).await;
    let orchestra_pipelines::Action::Task(task) = &pipeline.jobs[0].plan[0].action else {
        panic!("a task")
    };
    assert_eq!(task.secret_files[0].0.as_str(), "/run/secrets/token");
    assert!(!task.hide_secret_env);
}

#[tokio::test]
async fn a_pipeline_with_secrets_is_not_run_without_them() {
    let pipeline = parse(&step("env: { A: secret:TOKEN }", "exit 0")).await;
    let report = run(&pipeline, engine().driver(), RunOptions::default()).await;
    assert_eq!(report.status, Status::Failed);
    assert!(report.warnings[0].contains("refers to secrets"), "{report:?}");
}

#[test]
fn a_file_of_variables_that_is_none_is_refused() {
    for text in ["- a", "a: [", "1: x"] {
        assert!(Values::default().variables.load("vars.yml", text).is_err(), "{text}");
    }
    assert!(Values::default().variables.load("vars.yml", "").is_ok());
}
