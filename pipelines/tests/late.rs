//! What is known only when a step runs: variables from files, tasks from files, mappings, images and assertions.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunEventKind, RunOptions, RunReport, Status, Values, run};
use tokio::sync::mpsc;

/// A task that writes files of an artifact.
fn writes(name: &str, artifact: &str, script: &str) -> String {
    format!(
        "- {{ task: {name}, image: busybox, config: {{ outputs: [{{ name: {artifact} }}], run: {{ path: sh, args: [-c, {script:?}] }} }} }}\n"
    )
}

async fn run_text(text: &str) -> (RunReport, String) {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    let pipeline = Pipeline::parse_with("ci.yml", text, &Values::default())
        .await
        .unwrap_or_else(|invalid| panic!("{text}\n{invalid:?}"));
    let (events, mut received) = mpsc::channel(8);
    let mut options = RunOptions::default();
    options.events = Some(events);
    let output = tokio::spawn(async move {
        let mut output = String::new();
        while let Some(event) = received.recv().await {
            if let RunEventKind::Output { data, .. } = event.kind {
                output += &String::from_utf8_lossy(&data.0);
            }
        }
        output
    });
    let report = run(&pipeline, engine.driver(), options).await;
    assert!(engine.driver().list(None).await.unwrap().is_empty(), "{text}");
    (report, output.await.unwrap())
}

fn statuses(report: &RunReport) -> String {
    let step = |step: &orchestra_pipelines::StepReport| format!("{}:{}", step.name, step.status);
    report.steps.iter().map(step).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_variable_from_a_file_stands_in_later_steps_as_text_and_as_a_whole_value() {
    let text = format!(
        "plan:
{}- load_var: version
  file: made/version
- load_var: info
  file: made/info.json
- task: show
  image: busybox:((.:info.tag))
  timeout: ((.:info.timeout))
  params: {{ VERSION: ((.:version)) }}
  config: {{ run: {{ path: sh, args: ((.:info.args)) }} }}
",
        writes(
            "make",
            "made",
            r#"echo ' 1.20 ' > made/version; echo '{"args": ["-c", "echo got $VERSION"], "timeout": "1m", "tag": "latest"}' > made/info.json"#
        )
    );
    let (report, output) = run_text(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    assert_eq!(output, "got 1.20\n");
    assert_eq!(
        statuses(&report),
        "make:succeeded version:succeeded info:succeeded show:succeeded"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_value_that_came_late_is_told_with_its_place() {
    let text = format!(
        "plan:
{}- load_var: v
  file: made/v
- task: show
  image: busybox
  attempts: ((.:v))
  config: {{ run: {{ path: 'true' }} }}
",
        writes("make", "made", "echo many > made/v")
    );
    let (report, _) = run_text(&text).await;
    let step = report.steps.last().unwrap();
    assert_eq!((report.status, step.status), (Status::Failed, Status::Failed));
    let error = step.error.clone().unwrap();
    assert!(
        error.contains("ci.yml:7:13: `attempts: many` is not a valid number"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_of_a_task_cannot_choose_a_secret_and_a_missing_one_is_told() {
    for (script, file, words) in [
        ("echo secret:PROD > made/v", "made/v", "a reference to a secret"),
        ("true", "made/none", "no such file"),
        ("echo '{' > made/v.json", "made/v.json", "is no JSON"),
        ("printf 'a: [' > made/v.yml", "made/v.yml", "made/v.yml:1:"),
    ] {
        let text = format!(
            "plan:\n{}- {{ load_var: v, file: {file} }}\n",
            writes("make", "made", script)
        );
        let (report, _) = run_text(&text).await;
        let step = report.steps.last().unwrap();
        assert_eq!(step.status, Status::Failed, "{step:#?}");
        let error = step.error.clone().unwrap();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn variables_of_an_across_are_its_own() {
    let text = format!(
        "plan:
{}- across: [{{ var: name, values: [a, b], max_in_flight: all }}]
  do:
  - load_var: v
    file: made/((.:name))
  - task: show-((.:name))
    image: busybox
    config: {{ run: {{ path: echo, args: ['((.:name))=((.:v))'] }} }}
",
        writes("make", "made", "echo 1 > made/a; echo 2 > made/b")
    );
    let (report, output) = run_text(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["a=1", "b=2"]);
    let outside =
        format!("{text}- task: after\n  image: busybox\n  config: {{ run: {{ path: echo, args: [((.:v))] }} }}\n");
    let invalid = Pipeline::parse("ci.yml", &outside).unwrap_err();
    assert!(format!("{invalid:#}").contains("`((.:v))` has no value"), "{invalid:#}");
}

#[tokio::test]
async fn a_task_is_read_from_a_file_of_an_artifact() {
    let task = r#"cat > /dev/null; printf 'image: busybox\ninputs: [{ name: code }]\noutputs: [{ name: built, path: out/put }]\nparams: { WHO: file, MORE: (%s) }\nrun: { path: sh, args: [-c, "cat code/text; echo $WHO $MORE; echo done > out/put/text"] }\n' '(more)' > repo/task.yml; echo hello > repo/text"#;
    let text = format!(
        "plan:
{}- task: build
  file: repo/task.yml
  vars: {{ more: var }}
  input_mapping: {{ code: repo }}
  output_mapping: {{ built: result }}
  params: {{ WHO: step }}
- task: show
  image: busybox
  config: {{ inputs: [{{ name: result }}], run: {{ path: cat, args: [result/text] }} }}
",
        writes("make", "repo", task)
    );
    let (report, output) = run_text(&text).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    assert_eq!(output, "hello\nstep var\ndone\n");

    let wrong = text.replace("\\nrun: {", "\\nrnu: {");
    let (report, _) = run_text(&wrong).await;
    let error = report.steps[1].error.clone().unwrap();
    assert!(error.contains("repo/task.yml:5:1: unknown key `rnu`"), "{error}");
    let unmapped = text.replace("{ code: repo }", "{ cdoe: repo }");
    let (report, _) = run_text(&unmapped).await;
    let error = report.steps[1].error.clone().unwrap();
    assert!(error.contains("ci.yml:6:20: the task has no input `cdoe`"), "{error}");
}

#[tokio::test]
async fn an_optional_input_may_be_missing_and_another_may_not() {
    let task = |optional| {
        format!(
            "plan:\n- {{ task: t, image: busybox, config: {{ inputs: [{{ name: x, optional: {optional} }}], run: {{ path: sh, args: [-c, '! test -e x'] }} }} }}\n"
        )
    };
    assert_eq!(run_text(&task(true)).await.0.status, Status::Succeeded);
    assert!(Pipeline::parse("ci.yml", &task(false)).is_err());
    let skipped = "
plan:
- try:
    do:
    - { task: fails, image: busybox, config: { run: { path: 'false' } } }
    - { task: make, image: busybox, config: { outputs: [{ name: x }], run: { path: 'true' } } }
- { task: use, image: busybox, config: { inputs: [{ name: x }], run: { path: ls, args: [x] } } }
";
    let (report, _) = run_text(skipped).await;
    let error = report.steps[2].error.clone().unwrap();
    assert!(error.contains("no step has made the artifact `x`"), "{error}");
}

#[tokio::test]
async fn a_task_runs_so_many_times_at_once_each_told_which_one_it_is() {
    let text = "
plan:
- task: part
  image: busybox
  parallelism: 3
  config: { outputs: [{ name: out }], run: { path: sh, args: [-c, 'echo $CI_TASK_INDEX of $CI_TASK_COUNT > out/$CI_TASK_INDEX'] } }
- { task: show, image: busybox, config: { inputs: [{ name: out }], run: { path: cat, args: [out/1, out/2, out/3] } } }
";
    let (report, output) = run_text(text).await;
    assert_eq!(output, "1 of 3\n2 of 3\n3 of 3\n", "{report:#?}");
    assert_eq!(
        statuses(&report),
        "part-1:succeeded part-2:succeeded part-3:succeeded show:succeeded"
    );
}

#[tokio::test]
async fn assertions_fail_what_does_not_hold() {
    let task = |script: &str, assert: &str| {
        format!(
            "{{ task: t, image: busybox, assert: {{ {assert} }}, config: {{ run: {{ path: sh, args: [-c, '{script}'] }} }} }}"
        )
    };
    for (script, assert, words) in [
        ("echo hello; exit 0", "code: 0, stdout: ell", None),
        ("echo hello >&2", "stderr: hello", None),
        ("exit 3", "code: 0", Some("the exit code is not 0: exit code 3")),
        (
            "echo hello",
            "stdout: bye",
            Some("standard output does not contain \"bye\""),
        ),
        ("echo hello", "code: 1, stderr: x", Some("the exit code is not 1")),
    ] {
        let (report, _) = run_text(&format!("plan: [{}]\n", task(script, assert))).await;
        let error = report.steps[0].error.clone().unwrap_or_default();
        match words {
            None => assert_eq!(report.status, Status::Succeeded, "{error}"),
            Some(words) => assert!(report.status == Status::Failed && error.contains(words), "{error}"),
        }
    }
    // A code that is expected is still the code that it is: the step has failed, as in Concourse.
    let (report, _) = run_text(&format!("plan: [{{ try: {} }}]\n", task("exit 3", "code: 3"))).await;
    assert_eq!(
        (report.status, report.steps[0].status),
        (Status::Succeeded, Status::Failed)
    );
    for (execution, status) in [
        ("[a, b]", Status::Succeeded),
        ("[b, a]", Status::Failed),
        ("[a]", Status::Failed),
    ] {
        let step = |name: &str| format!("{{ task: {name}, image: busybox, config: {{ run: {{ path: 'true' }} }} }}");
        let text = format!(
            "jobs: [{{ name: j, assert: {{ execution: {execution} }}, plan: [{}, {}] }}]\nassert: {{ execution: [j] }}\n",
            step("a"),
            step("b")
        );
        let (report, _) = run_text(&text).await;
        assert_eq!(report.status, status, "{execution} {report:#?}");
        assert_eq!(report.warnings.is_empty(), status == Status::Succeeded);
    }
}

#[test]
fn what_can_be_known_of_a_late_step_is_told_before_anything_runs() {
    let load = "- { task: m, image: b, config: { outputs: [{ name: a }], run: { path: sh } } }\n- { load_var: v, file: a/v }\n";
    for (step, words) in [
        (
            "- { task: t, image: 'b:((.:v))', config: { rnu: { path: sh } } }",
            "unknown key `rnu`",
        ),
        (
            "- { task: t, image: 'b:((.:w))', config: { run: { path: sh } } }",
            "`((.:w))` has no value",
        ),
        (
            "- { task: 't-((.:v))', image: b, config: { run: { path: sh } } }",
            "a step's name is known before it runs",
        ),
        ("- { task: t, file: a }", "names no file in an artifact"),
        (
            "- { task: t, file: none/x.yml }",
            "no earlier step makes the artifact `none`",
        ),
        (
            "- { task: t, file: a/x.yml, config: { run: { path: sh } } }",
            "both say what the task is",
        ),
        (
            "- { task: t, image: b, vars: { x: 1 }, config: { run: { path: sh } } }",
            "are for a task's `file`",
        ),
        (
            "- { load_var: w, file: a/w, format: xml }",
            "write `trim`, `raw`, `yaml` or `json`",
        ),
        ("- { load_var: w }", "needs `file`"),
        (
            "- { task: t, image: b, parallelism: 0, config: { run: { path: sh } } }",
            "from 1 to 256",
        ),
        (
            "- { task: t, image: b, assert: { code: 900 }, config: { run: { path: sh } } }",
            "from 0 to 255",
        ),
        (
            "- { task: t, image: b, security: { secomp: unconfined }, config: { run: { path: sh } } }",
            "did you mean `seccomp`?",
        ),
    ] {
        let text = format!("plan:\n{load}{step}\n");
        let told = match Pipeline::parse("ci.yml", &text) {
            Ok(_) => String::new(),
            Err(invalid) => invalid
                .problems()
                .iter()
                .map(|problem| format!("{problem} {}\n", problem.help.clone().unwrap_or_default()))
                .collect(),
        };
        assert!(told.contains(words), "{step}\n{words}\n{told}");
    }
}
