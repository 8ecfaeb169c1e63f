//! What is refused before anything runs: at which place, with which words.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::Write as _;

use miette::{GraphicalReportHandler, GraphicalTheme};
use orchestra_pipelines::{Invalid, Pipeline};
use proptest::prelude::*;

fn refused(text: &str) -> Invalid {
    match Pipeline::parse("ci.yml", text) {
        Ok(pipeline) => panic!("accepted:\n{text}\n{pipeline:#?}"),
        Err(invalid) => invalid,
    }
}

/// `LINE:COLUMN message | help` for each problem.
fn lines(invalid: &Invalid) -> Vec<String> {
    let line = |problem: &orchestra_pipelines::Problem| {
        let place = problem
            .line()
            .zip(problem.column())
            .map(|(line, column)| format!("{line}:{column} "))
            .unwrap_or_default();
        format!(
            "{place}{} | {}",
            problem.message,
            problem.help.as_deref().unwrap_or("-")
        )
    };
    invalid.problems().iter().map(line).collect()
}

/// The one problem of a text.
fn problem(text: &str) -> String {
    let lines = lines(&refused(text));
    assert_eq!(lines.len(), 1, "{text}\n{lines:#?}");
    lines[0].clone()
}

fn rendered(invalid: &Invalid) -> String {
    let mut out = String::new();
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .render_report(&mut out, invalid)
        .unwrap();
    out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A task whose step, or whose config, has these lines too.
fn in_step(lines: &str) -> String {
    format!("plan:\n- task: t\n  image: busybox\n  config: {{ run: {{ path: sh }} }}\n  {lines}\n")
}

fn in_config(lines: &str) -> String {
    format!("plan:\n- task: t\n  image: busybox\n  config:\n    run: {{ path: sh }}\n    {lines}\n")
}

fn in_build(lines: &str) -> String {
    format!(
        "plan:\n- task: make\n  image: busybox\n  config: {{ outputs: [{{ name: source }}], run: {{ path: sh }} }}\n- build_image:\n    context: source\n    tag: team/app:1\n    {lines}\n"
    )
}

/// Each text has exactly one problem, at this place and with these words.
fn each_is_refused(cases: &[(String, &str, &str)]) {
    let mut wrong = Vec::new();
    for (text, place, words) in cases {
        let found = lines(&refused(text));
        if found.len() != 1 || !found[0].starts_with(&format!("{place} ")) || !found[0].contains(words) {
            wrong.push(format!("{text}expected {place} {words}\nfound {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_secret_of_a_build_is_a_value_or_a_file_and_stands_once() {
    for (secrets, expected) in [
        ("secrets: { a: { path: x } }", "unknown key `path` in a secret"),
        ("secrets: { a: { file: /etc/shadow } }", "`file` is an absolute path"),
        ("secrets: { a: {} }", "a secret needs `file`"),
        ("secrets: { a: [x] }", "is text, not a list"),
        ("secrets: { a: x, a: { file: s/x } }", "`a` stands twice in `secrets`"),
        (
            "secrets: { a: { file: s/y }, a: { file: s/x } }",
            "`a` stands twice in `secrets`",
        ),
    ] {
        let found = lines(&refused(&in_build(secrets)));
        assert!(
            found.iter().any(|line| line.contains(expected)),
            "{secrets}: {found:#?}"
        );
    }
}

#[test]
fn misspelt_unknown_and_misplaced_keys_are_refused_with_what_was_meant() {
    each_is_refused(&[
        (
            in_step("privledged: true"),
            "5:3",
            "unknown key `privledged` in a task step | did you mean `privileged`?",
        ),
        (in_step("timeuot: 1m"), "5:3", "did you mean `timeout`?"),
        (in_step("frobnicate: 1"), "5:3", "known are `task`, `config`, `image`"),
        (
            in_step("inputs: []"),
            "5:3",
            "`inputs` does not stand in a task step | it belongs under `config`",
        ),
        (in_config("timeout: 1m"), "6:5", "it belongs beside `config`"),
        (in_config("ouputs: []"), "6:5", "did you mean `outputs`?"),
        (in_build("buildargs: {}"), "8:5", "did you mean `build_args`?"),
        (
            in_build("registry: { user: x }"),
            "8:17",
            "unknown key `user` in `registry`",
        ),
        (
            "paln: []\n".into(),
            "1:1",
            "unknown key `paln` in a pipeline | did you mean `plan`?",
        ),
        (
            "var_sources: []\nplan:\n- {task: t, image: a, config: {run: {path: sh}}}\n".into(),
            "1:1",
            "`var_sources` in a pipeline is not supported yet",
        ),
        ("task: t\n".into(), "1:1", "it belongs in a list under `plan`"),
        (
            "plan:\n- tsak: t\n".into(),
            "2:3",
            "unknown step `tsak` | did you mean `task`?",
        ),
        (
            "plan:\n- get: repo\n".into(),
            "2:8",
            "there is no resource `repo` | add it under `resources`",
        ),
        (
            "plan:\n- set_pipeline: self\n".into(),
            "2:3",
            "`set_pipeline` has nothing to set",
        ),
        (
            "plan:\n- { config: {} }\n".into(),
            "2:5",
            "neither `task` nor `build_image`",
        ),
        ("plan:\n- { task: t, build_image: {} }\n".into(), "2:14", "not both"),
    ]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    each_is_refused(&[
        ("plan: hello\n".into(), "1:7", "`plan` is a list, not text"),
        (
            "- a\n".into(),
            "1:1",
            "a pipeline is a map of keys and values, not a list",
        ),
        (
            "plan:\n- hello\n".into(),
            "2:3",
            "a step is a map of keys and values, not text",
        ),
        (
            in_step("privileged: yes"),
            "5:15",
            "`privileged` is true or false, not text",
        ),
        (in_step("attempts: many"), "5:13", "write a whole number from 1 to 100"),
        (in_step("attempts: 0"), "5:13", "write a whole number from 1 to 100"),
        (in_config("inputs: source"), "6:13", "`inputs` is a list, not text"),
        (in_config("outputs: [source]"), "6:15", "write `- name: source`"),
        (
            in_config("params: [A=b]"),
            "6:13",
            "`params` is a map of names and values, not a list",
        ),
        (
            in_config("params: { A: [1, { b: secret:TOKEN }] }"),
            "6:27",
            "can't stand within a list or a map",
        ),
        (in_config("caches: [{}]"), "6:14", "a cache needs `path`"),
        (in_config("caches: [{ path: ../x }]"), "6:22", "contains `..`"),
        (
            in_config("caches: [{ path: a, scope: repo }]"),
            "6:32",
            "no scope of a cache",
        ),
        (
            in_config("caches: [{ path: a, policy: never }]"),
            "6:33",
            "no cache policy",
        ),
        (
            in_config("caches: [{ path: a, size_limit: big }]"),
            "6:37",
            "not a valid size",
        ),
        (
            in_config("caches: [{ path: a, paths: [/etc] }]"),
            "6:33",
            "must be relative",
        ),
        (
            in_config("caches: [{ path: a, paths: ['*.o'] }]"),
            "6:33",
            "*.o is a pattern",
        ),
        (
            in_config("caches: [{ path: a, key: 'a{{ b }}' }]"),
            "6:30",
            "something else than `checksum`",
        ),
        (
            in_config("caches: [{ path: a, key: 'a{{ checksum \"x/y\" }}' }]"),
            "6:30",
            "in none of the step's inputs",
        ),
        (in_config("caches: [{ path: a }, { path: a/b }]"), "6:35", "overlap"),
        (
            in_config("caches: [{ path: a }, { path: ./a }]"),
            "6:35",
            "two mounts stand at",
        ),
        (
            in_config("caches: [{ path: a, key: k }, { path: b, key: k }]"),
            "6:43",
            "the same key",
        ),
        (in_build("push: 'true'"), "8:11", "`push` is true or false, not text"),
        (
            in_build("platforms: linux/amd64"),
            "8:16",
            "`platforms` is a list, not text",
        ),
        (
            "plan:\n- build_image: app\n".into(),
            "2:16",
            "`build_image` is a map of keys and values, not text",
        ),
    ]);
}

#[test]
fn names_paths_and_references_that_are_not_valid_are_refused() {
    each_is_refused(&[
        ("plan:\n- {task: a/b, image: a, config: {run: {path: sh}}}\n".into(), "2:10", "name \"a/b\" contains '/'"),
        ("plan:\n- {task: .., image: a, config: {run: {path: sh}}}\n".into(), "2:10", "must start with a letter or a digit"),
        ("plan:\n- {task: \"a\\nb\", image: a, config: {run: {path: sh}}}\n".into(), "2:10", "contains '\\n'"),
        ("jobs:\n- name: a b\n  plan: [{task: t, image: a, config: {run: {path: sh}}}]\n".into(), "2:9", "contains ' '"),
        (in_config("outputs: [{ name: ../up }]"), "6:23", "contains '/'"),
        (in_config("outputs: [{ name: cache.x }]"), "6:23", "a name that Orchestra keeps for itself"),
        (in_config("outputs: [{ name: a, path: ../up }]"), "6:32", "contains `..`"),
        (in_config("outputs: [{ name: a, path: / }]"), "6:23", "nothing can be mounted at `/`"),
        (in_step("network: bridge"), "5:12", "there are default, none and host"),
        (in_config("platform: windows"), "6:15", "tasks run on linux, not on `windows`"),
        (in_config("limits: { memory: lots }"), "6:23", "for example `512MB`"),
        (in_config("limits: { cpu: 1024 }"), "6:20", "it is a quota, where Concourse takes shares"),
        (in_config("limits: { cpu: 0 }"), "6:20", "at least 0.01"),
        (in_step("timeout: 10"), "5:12", "for example `90s`"),
        ("plan:\n- {task: t, image: 'App:1', config: {run: {path: sh}}}\n".into(), "2:20", "image reference \"App:1\" is not valid"),
        (
            "plan:\n- task: t\n  config:\n    run: { path: sh }\n    image_resource: { type: git, source: { repository: a } }\n".into(),
            "5:29",
            "write `type: registry-image`",
        ),
        (
            "plan:\n- task: t\n  config:\n    run: { path: sh }\n    image_resource: { type: registry-image, source: { repository: a, tag: b c } }\n".into(),
            "5:75",
            "\"a:b c\" is not valid",
        ),
        (in_build("target: ''"), "8:13", "is not a name that a stage can have"),
        (in_build("platforms: [linux/amd64, linux/arm64]"), "8:16", "2 platforms are asked for without push"),
        (in_build("build_args: { a b: x }"), "8:17", "build argument \"a b\" is not a name"),
        (in_build("registry: { hostname: 'https://r.example.com' }"), "8:15", "write host and port alone"),
        (in_build("name: x23456789-123456789-123456789-123456789-123456789-1234567"), "8:11", "is too long"),
        (in_build("dockerfile: /Dockerfile"), "8:17", "`dockerfile` is an absolute path"),
        (in_build("platforms: [amd64]"), "8:17", "write OS/ARCHITECTURE"),
        (in_build("registry: { username: x }"), "8:17", "`username` without `password`"),
        (in_build("ulimits: [nofile=2:1]"), "8:14", "ulimit nofile is softer than it is hard"),
        (in_build("ulimits: [nofile]"), "8:15", "write NAME=SOFT:HARD"),
        (in_build("extra_hosts: [db]"), "8:19", "write NAME:ADDRESS"),
        (in_build("tags: ['a@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945']"), "8:11", "is pinned to a digest"),
        (in_build("no_cache_filter: ['a,b']"), "8:22", "is not a stage's name"),
        (in_build("build_contexts: { more: 'oci://x' }"), "8:21", "of no kind that a build context can be"),
        (in_build("build_contexts: { more: /etc }"), "8:21", "build context /etc is absolute"),
        (in_build("dockerfile_inline: ' '"), "8:24", "the inline Dockerfile is empty"),
        (in_build("source_date_epoch: now"), "8:24", "write a number"),
        (in_build("provenance: max"), "8:17", "asked for without push"),
        (in_build("provenance: all"), "8:17", "neither min nor max"),
        (in_build("outputs: [{ name: a }]"), "8:15", "needs `type`"),
        (in_build("outputs: [{ name: a, type: zip }]"), "8:32", "no output of type \"zip\""),
        (in_build("outputs: [{ name: a, type: oci, form: x }]"), "8:37", "unknown key `form`"),
        (in_build("cache_from: [type=gha]"), "8:18", "\"gha\" is not known"),
        (in_build("cache_to: ['type=registry,ref=x:c,mode=all']"), "8:16", "neither min nor max"),
        (in_build("cache_to: ['type=local,dest=layers']"), "8:15", "is in no cache"),
        (in_build("cache_to: [type=inline]"), "8:15", "without push"),
        (in_build("mirrors: { docker.io: ['https://m'] }"), "8:14", "are not a registry's host"),
        (in_build("mirrors: docker.io"), "8:14", "a map of registries"),
        (in_build("cache_form: [x]"), "8:5", "cache_from"),
        (in_build("registry: [{ username: x }]"), "8:18", "`username` without `password`"),
        (in_build("registry: [{ insecure: true }, { insecure: true }]"), "8:36", "is given twice"),
        (in_build("shm_size: large"), "8:15", "write bytes or a number with a unit"),
        (in_build("image: 'UP'"), "8:12", "image reference \"UP\" is not valid"),
    ]);
}

#[test]
fn what_is_missing_is_named_with_an_example() {
    each_is_refused(&[
        ("plan: []\n".into(), "1:1", "`plan` has no step"),
        ("plan:\n".into(), "1:1", "`plan` has no step"),
        ("jobs: []\n".into(), "1:1", "`jobs` has no job"),
        ("x-a: 1\n".into(), "1:1", "neither `plan` nor `jobs`"),
        ("jobs:\n- name: a\n".into(), "2:3", "a job needs `plan`"),
        (
            "plan:\n- task: t\n  image: a\n".into(),
            "2:3",
            "a task step needs `config`",
        ),
        (
            "plan:\n- task: t\n  config: { run: { path: sh } }\n".into(),
            "2:3",
            "nothing says which image the task runs in | add `image: busybox`",
        ),
        (
            "plan:\n- task: t\n  image: a\n  config: { platform: linux }\n".into(),
            "4:11",
            "a task's `config` needs `run`",
        ),
        (
            "plan:\n- build_image: { tag: a }\n".into(),
            "2:16",
            "`build_image` needs `context` | for example `context: source`",
        ),
    ]);
}

#[test]
fn secrets_and_variables_are_never_passed_on_as_they_are() {
    let secret = "`secret:KEY` has no value: there are no secrets here";
    each_is_refused(&[
        (in_config("params: { TOKEN: secret:KEY }"), "6:22", secret),
        (in_step("env: { TOKEN: secret:KEY }"), "5:17", secret),
        (
            in_build("build_args: { TOKEN: secret:KEY }"),
            "8:26",
            "`secret:KEY` in `build_args` can't be a secret",
        ),
        (
            in_build("env: { TOKEN: secret:KEY }"),
            "8:19",
            "`secret:KEY` in `env` can't be a secret | the engine shows a build's environment",
        ),
        (in_build("secrets: { token: secret:KEY }"), "8:23", secret),
        (
            in_build("registry: { username: robot, password: secret:KEY }"),
            "8:44",
            secret,
        ),
        (
            in_build("registry: { username: secret:KEY, password: x }"),
            "8:27",
            secret,
        ),
        (
            in_config("params: { TOKEN: ((token)) }"),
            "6:22",
            "`((token))` has no value: there are no secrets here",
        ),
        (
            in_step("secret_env: maybe"),
            "5:15",
            "`secret_env: maybe` is not a valid",
        ),
        (
            in_step("secret_files: { /run/secrets/t: token }"),
            "5:35",
            "is written `secret:KEY`",
        ),
        (
            in_step("secret_files: { /run/secrets/t: 'secret:a b' }"),
            "5:35",
            "contains ' '",
        ),
    ]);
}

#[test]
fn steps_that_do_not_fit_together_are_refused_with_both_places() {
    let task =
        |name: &str, config: &str| format!("- {{task: {name}, image: a, config: {{run: {{path: sh}}, {config}}}}}\n");
    let plan = |steps: &[String]| format!("plan:\n{}", steps.concat());
    let cases = [
        (plan(&[task("a", "outputs: [{name: o}, {name: o, path: p}]")]), "two outputs of one step are called `o`", (2, 2)),
        (plan(&[task("a", "outputs: [{name: o}, {name: p, path: ./o}]")]), "two mounts stand at /workspace/o", (2, 2)),
        (plan(&[task("a", "outputs: [{name: o}], caches: [{path: /workspace/o}]")]), "two mounts stand at /workspace/o", (2, 2)),
        (plan(&[task("a", "inputs: [{name: o}]"), task("b", "outputs: [{name: o}]")]), "no earlier step makes the artifact `o`", (2, 3)),
        ("jobs:\n- {name: j, plan: [{task: t, image: a, config: {run: {path: sh}}}]}\n- {name: j, plan: [{task: t, image: a, config: {run: {path: sh}}}]}\n".to_owned(), "two jobs are called `j`", (3, 2)),
        (format!("{}\n  hermetic: true\n", in_step("network: host").trim_end()), "a task that is `hermetic` has no network", (6, 5)),
        (format!("{}\n  timeout: 2m\n", in_build("timeout: 1m").trim_end()), "`timeout` stands both in `build_image` and beside it", (9, 8)),
        ("plan: &p\n- {task: t, image: a, config: {run: {path: sh}}}\njobs: *p\n".to_owned(), "either `jobs` or a `plan` of its own", (1, 3)),
        (in_config("limits: {}\n    container_limits: {}"), "`limits` and `container_limits` mean the same", (7, 6)),
        ("plan:\n- task: t\n  config:\n    run: { path: sh }\n    image: a\n    image_resource: { type: registry-image, source: { repository: a } }\n".to_owned(), "both name the task's image", (6, 5)),
        ("plan:\n- task: t\n  task: u\n  image: a\n  config: { run: { path: sh } }\n".to_owned(), "the key `task` stands twice in a task step", (3, 2)),
    ];
    for (text, words, (change, other)) in cases {
        let invalid = refused(&text);
        let [problem] = invalid.problems() else {
            panic!("{text}\n{:#?}", lines(&invalid))
        };
        assert!(problem.message.contains(words), "{text}\n{problem:?}");
        assert_eq!(
            problem.places.iter().map(|place| place.line).collect::<Vec<_>>(),
            [change, other],
            "{text}\n{problem:?}"
        );
    }
}

#[test]
fn a_missing_artifact_is_told_with_what_there_is() {
    let plan = |made: &str, used: &str| {
        format!(
            "plan:\n- {{task: a, image: a, config: {{run: {{path: sh}}, outputs: [{{name: {made}}}]}}}}\n- {{task: b, image: a, config: {{run: {{path: sh}}, inputs: [{{name: {used}}}]}}}}\n"
        )
    };
    assert_eq!(
        problem(&plan("source", "sourec")),
        "3:65 no earlier step makes the artifact `sourec` | did you mean `source`?"
    );
    assert_eq!(
        problem(&plan("source", "binaries")),
        "3:65 no earlier step makes the artifact `binaries` | made so far: `source`"
    );
    let build = "plan:\n- build_image: { context: source/app, tag: app }\n";
    assert_eq!(
        problem(build),
        "2:27 no earlier step makes the artifact `source` | add `outputs: [{ name: source }]` to a task before it"
    );
    assert!(
        problem(&in_build("inputs: [{ name: source, path: src }]"))
            .contains("the context `source` is in none of the build's inputs | mounted are `src`")
    );
}

#[test]
fn one_mistake_is_told_once() {
    // What the misspelt key would have made is not reported as missing too, nor is an anchor's mistake once an alias.
    let text = "
x-t: &t { image: busybox, tiemout: 1m }
plan:
- { <<: *t, task: a, config: { run: { path: sh }, ouputs: [{ name: o }] } }
- { <<: *t, task: b, config: { run: { path: sh }, inputs: [{ name: o }] } }
";
    let found = lines(&refused(text));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[0].starts_with("2:27 unknown key `tiemout`") && found[1].starts_with("4:51 unknown key `ouputs`"),
        "{found:#?}"
    );
}

#[test]
fn text_that_is_no_yaml_is_refused_at_its_place() {
    each_is_refused(&[
        ("plan:\n\t- task: t\n".into(), "2:2", "indent with spaces"),
        ("plan: [\n".into(), "1:7", "unclosed bracket"),
        ("plan:\n- task: a: b\n".into(), "2:10", "quote text that contains `: `"),
        ("plan: *none\n".into(), "1:7", "unknown anchor"),
        ("plan: []\n---\nplan: []\n".into(), "2:1", "a pipeline is one document"),
    ]);
}

#[test]
fn files_that_are_no_text_each_have_their_own_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(content).unwrap();
        path
    };
    let large = vec![b'#'; (4 << 20) + 1];
    for (path, words) in [
        (folder.path().join("missing.yml"), "there is no such file"),
        (folder.path().to_owned(), "it is a directory"),
        (file("binary.yml", b"plan:\n- \xff\xfe\n"), "line 2 is not UTF-8 text"),
        (file("empty.yml", b" \n\n"), "it is empty"),
        (file("comments.yml", b"# later\n---\n"), "it is empty"),
        (file("large.yml", &large), "it is larger than 4 MiB"),
    ] {
        let invalid = Pipeline::read(&path).unwrap_err();
        let [problem] = invalid.problems() else {
            panic!("{invalid:?}")
        };
        assert!(
            problem.message.contains(words) && problem.help.is_some() && problem.line().is_none(),
            "{invalid:?}"
        );
        assert!(invalid.to_string().contains(path.to_str().unwrap()), "{invalid}");
    }
}

#[test]
fn a_file_of_nonsense_has_a_bounded_number_of_problems() {
    let text: String = (0..10_000).map(|key| format!("nonsense-{key}: 1\n")).collect();
    let found = lines(&refused(&text));
    assert_eq!(found.len(), 51);
    assert!(found[50].contains("more than 50 problems"));
}

#[test]
fn a_report_shows_file_line_and_what_to_do() {
    let invalid = refused(
        "
plan:
  - task: checkout
    image: alpine
    config:
      outputs:
        - name: source
      run: { path: sh, args: [-c, 'git clone $REPO source'] }

  - task: test
    image: golang:1.26
    tiemout: 10m
    config:
      inputs:
        - name: sources
      outputs:
        - { name: report, path: out }
        - { name: binary, path: ./out }
      run: { path: go, args: [test, ./...] }

  - build_image:
      name: test
      context: source
      tag: registry.example.com/myapp:latest
",
    );
    insta::assert_snapshot!(rendered(&invalid));
}

/// A pipeline that uses most of what there is, to be broken.
const WHOLE: &str = r#"x-t: &t { image: "b\u00fcsy:1", timeout: 1m }
jobs:
- name: jöb
  plan:
  - <<: *t
    task: make
    config:
      outputs: [{ name: source, path: ./src }]
      run: { path: sh, args: [-c, 'echo ü'], dir: src }
      params: { A: 1.20, B: }
  - build_image:
      context: src
      inputs: [{ name: source, path: src }]
      tag: team/app:1
      build_args: { "A": |
        text
      }
"#;

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_file_that_is_broken_anywhere_is_refused_at_places_that_it_has(
        cuts in proptest::collection::vec((0usize..600, 0usize..40, "[-a-z:&*{}\\[\\]'\"|<>!#%@`,? \n\tü\u{0}.0-9]{0,6}"), 1..6),
    ) {
        let mut text: Vec<char> = WHOLE.chars().collect();
        for (at, length, put) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(invalid) = Pipeline::parse("ci.yml", &text) {
            prop_assert!(!invalid.problems().is_empty());
            for place in invalid.problems().iter().flat_map(|problem| &problem.places) {
                prop_assert!(place.line >= 1 && place.line <= text.split('\n').count() && text.get(place.span.clone()).is_some());
            }
            let shown = rendered(&invalid);
            prop_assert!(shown.contains("ci.yml") && !shown.contains("OutOfBounds") && !shown.contains("Failed to read"), "{}", shown);
        }
    }
}
