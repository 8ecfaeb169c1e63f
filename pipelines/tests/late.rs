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

/// A pipeline whose first step makes `list/values.yml`, which is loaded as `((.:v))`.
fn with_values(values: &str, plan: &str) -> String {
    // `@` is a parenthesis: two of them would be a variable of the pipeline itself.
    let parentheses = " '('".repeat(values.matches('@').count());
    let values = values.replace('@', "%s");
    let make = writes(
        "make",
        "list",
        &format!("printf '{values}'{parentheses} > list/values.yml"),
    );
    format!("plan:\n{make}- load_var: v\n  file: list/values.yml\n{plan}")
}

/// A step that says its words.
fn says(name: &str, words: &str) -> String {
    format!("{{ task: {name}, image: busybox, config: {{ run: {{ path: echo, args: ['{words}'] }} }} }}")
}

#[tokio::test]
async fn a_step_is_run_across_values_that_are_loaded() {
    let inner = says("test", "got ((.:x))");
    for (values, plan, output, expected) in [
        (
            "[1.94, 1.95]",
            "- across: [{ var: x, values: ((.:v)) }]\n  task: test\n  image: busybox\n  config: { run: { path: echo, args: ['got ((.:x))'] } }\n  on_success: ".to_owned() + &says("after", "done") + "\n",
            "got 1.94\ngot 1.95\ndone\n",
            "test:succeeded test.x2:succeeded after:succeeded",
        ),
        // A field of what was loaded, beside values that are known, and values of any kind.
        (
            "{ of: { rust: [{ n: 1 }, { n: 2 }] } }",
            format!(
                "- across: [{{ var: x, values: [a, b] }}, {{ var: y, values: ((.:v.of.rust)), max_in_flight: 1 }}]\n  do: [{}]\n",
                says("test", "((.:x))((.:y.n))")
            ),
            "a1\na2\nb1\nb2\n",
            "test:succeeded test.x2:succeeded test.x3:succeeded test.x4:succeeded",
        ),
        // Within values that are known, which may say where the list is.
        (
            "{ a: [1], b: [2, 3] }",
            format!(
                "- across: [{{ var: x, values: [{{ of: [7, 8] }}, {{ of: [9] }}] }}]\n  do:\n  - across: [{{ var: y, values: ((.:x.of)) }}]\n    do: [{}]\n  - across: [{{ var: z, values: ((.:v.b)) }}]\n    do: [{}]\n",
                says("known", "((.:y))"),
                says("loaded", "z((.:z))")
            ),
            "7\n8\nz2\nz3\n9\nz2\nz3\n",
            "known:succeeded known-2:succeeded loaded:succeeded loaded.x2:succeeded known-3:succeeded loaded-2:succeeded loaded-2.x2:succeeded",
        ),
        // Within others that are loaded: what the outer one's values are, and what a step of it loads.
        (
            "[[1, 2], [], [3]]",
            format!(
                "- across: [{{ var: x, values: ((.:v)) }}]\n  do:\n  - across: [{{ var: y, values: ((.:x)) }}]\n    do: [{}]\n  - load_var: w\n    file: list/values.yml\n  - across: [{{ var: z, values: ((.:w)) }}]\n    do: [{}]\n",
                says("deep", "((.:y))"),
                says("late", "z")
            ),
            "1\n2\nz\nz\nz\nz\nz\nz\n3\nz\nz\nz\n",
            "deep:succeeded deep.x2:succeeded deep.x3:succeeded w:succeeded w.x2:succeeded w.x3:succeeded late:succeeded late.x2:succeeded late.x3:succeeded late.xx2:succeeded late.xx3:succeeded late.x2.xx2:succeeded late.x2.xx3:succeeded late.x3.xx2:succeeded late.x3.xx3:succeeded",
        ),
        // None at all.
        (
            "[]",
            format!("- across: [{{ var: x, values: ((.:v)) }}]\n  do: [{inner}]\n- {}\n", says("after", "after")),
            "after\n",
            "test:skipped after:succeeded",
        ),
        // A value is text, whatever stands in it.
        (
            "[@(.:v)), @(KEY))]",
            format!("- across: [{{ var: x, values: ((.:v)) }}]\n  do: [{}]\n", says("test", "a")),
            "a\na\n",
            "test:succeeded test.x2:succeeded",
        ),
    ] {
        let text = with_values(values, &plan);
        let (report, said) = run_text(&text).await;
        assert_eq!(report.status, Status::Succeeded, "{text}\n{report:#?}");
        assert_eq!(said, output, "{text}");
        let statuses = statuses(&report);
        assert_eq!(statuses, format!("make:succeeded v:succeeded {expected}"), "{text}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_loaded_values_fails_their_step() {
    let plan = format!(
        "- across: [{{ var: x, values: ((.:v.of)) }}]\n  do: [{}]\n- {}\n",
        says("test", "a"),
        says("after", "b")
    );
    let many = format!("{{ of: [{}] }}", vec!["1"; 1001].join(", "));
    for (values, words) in [
        ("{ of: { a: 1 } }", "ci.yml:5:30: `values` is a list, not a map"),
        ("{ of: text }", "`values` is a list, not text"),
        (
            "{ no: 1 }",
            "`((.:v.of))` has no value (the `load_var` that sets it was not run",
        ),
        (many.as_str(), "`across` makes too many steps"),
    ] {
        let (report, _) = run_text(&with_values(values, &plan)).await;
        assert_eq!(
            statuses(&report),
            "make:succeeded v:succeeded test:failed after:skipped",
            "{values}"
        );
        let error = report.steps[2].error.clone().unwrap();
        assert!(error.contains(words), "{error}");
    }
    // The first that fails ends the others, and what follows an end follows that of all of them.
    let plan = "- across: [{ var: x, values: ((.:v)) }]
  fail_fast: true
  task: test
  image: busybox
  config: { run: { path: sh, args: [-c, 'exit ((.:x))'] } }
  on_failure: "
        .to_owned()
        + &says("told", "told")
        + "\n";
    let (report, said) = run_text(&with_values("[0, 1, 0]", &plan)).await;
    assert_eq!((report.status, said.as_str()), (Status::Failed, "told\n"));
    let expected = "make:succeeded v:succeeded test:succeeded test.x2:failed test.x3:skipped told:succeeded";
    assert_eq!(statuses(&report), expected);
}

#[test]
fn what_an_across_of_loaded_values_can_not_be_is_told_before() {
    let across = |vars: &str, step: &str| with_values("[]", &format!("- across: [{vars}]\n  do: [{step}]\n"));
    let loaded = "{ var: x, values: ((.:v)) }";
    for (text, words) in [
        (
            across("{ var: x, values: ((.:w)) }", &says("a", "b")),
            "`((.:w))` has no value",
        ),
        (
            across("{ var: x, values: 'a ((.:v))' }", &says("a", "b")),
            "`values` is a list, not text",
        ),
        (
            across(loaded, &says("a-((.:x))", "b")),
            "a step's name is known before it runs",
        ),
        (
            across(loaded, &says("a", "b")).replace("  do:", "  fail_fast: maybe\n  do:"),
            "`fail_fast` is true or false",
        ),
        (across(loaded, &says("a", "((.:y))")), "`((.:y))` has no value"),
        (
            across(
                loaded,
                &format!(
                    "{{ across: [{{ var: x, values: ((.:v)) }}], do: [{}] }}",
                    says("a", "b")
                ),
            ),
            "two vars are called `x`",
        ),
        (
            across(
                "{ var: x, values: [1] }",
                &format!("{{ across: [{loaded}], do: [{}] }}", says("a", "b")),
            ),
            "two vars are called `x`",
        ),
        (
            across(loaded, &says("a", "b")) + "- " + &says("a.x2", "b") + "\n",
            "the name `a.x2` is one that a step of an `across` gets",
        ),
        (
            across(loaded, "{ task: a, image: busybox, config: { run: { paht: x } } }"),
            "unknown key `paht`",
        ),
        (
            across(loaded, &says("a", "b")) + "- " + &says("c", "((.:x))") + "\n",
            "`((.:x))` has no value",
        ),
    ] {
        let invalid = Pipeline::parse("ci.yml", &text).map(|_| ()).unwrap_err();
        assert!(format!("{invalid:#}").contains(words), "{text}\n{invalid:#}");
    }
}

#[tokio::test]
async fn steps_across_loaded_values_make_artifacts_of_their_own() {
    let plan = "- across: [{ var: x, values: ((.:v)), max_in_flight: all }]
  do:
  - task: make-one
    image: busybox
    config: { outputs: [{ name: one }], run: { path: sh, args: [-c, 'echo ((.:x)) > one/value'] } }
  - task: use-one
    image: busybox
    config: { inputs: [{ name: one }], run: { path: cat, args: [one/value] } }
- task: last
  image: busybox
  config: { inputs: [{ name: one }], run: { path: cat, args: [one/value] } }
";
    let (report, said) = run_text(&with_values("[1, 2, 3]", plan)).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    let mut lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.pop(), Some("3"), "{said}");
    lines.sort_unstable();
    assert_eq!(lines, ["1", "2", "3"]);
}

#[tokio::test]
async fn steps_run_as_deep_within_each_other_as_the_file_may_have_them() {
    let within = |open: &dyn Fn(usize) -> String, close: &str, depth: usize| {
        let opens: String = (0..depth).map(open).collect();
        format!("{opens}{}{}", says("deep", "deep"), close.repeat(depth))
    };
    let across = |level: usize| format!("{{ across: [{{ var: x{level}, values: ((.:v)) }}], do: [");
    let kinds: [(&dyn Fn(usize) -> String, &str); 5] = [
        (&|_| "{ do: [".to_owned(), "] }"),
        (&|_| "{ in_parallel: [".to_owned(), "] }"),
        (&|_| "{ attempts: 2, timeout: 1h, do: [".to_owned(), "] }"),
        (&|_| "{ try: ".to_owned(), " }"),
        (&across, "] }"),
    ];
    for (open, close) in kinds {
        let text = |depth| with_values("[1]", &format!("- {}\n", within(open, close, depth)));
        let deepest = (1..100)
            .map(text)
            .take_while(|text| Pipeline::parse("ci.yml", text).is_ok());
        let text = deepest.last().unwrap();
        let (report, said) = run_text(&text).await;
        assert_eq!(
            (report.status, said.as_str()),
            (Status::Succeeded, "deep\n"),
            "{text}\n{report:#?}"
        );
    }
}

#[tokio::test]
async fn variables_of_the_run_stand_in_a_file_of_a_task_too() {
    // A parenthesis that `printf` puts in: two of them would be a variable of the pipeline itself.
    let task = "printf 'image: busybox\\nrun: { path: echo, args: [\"(%s.:v)) (%s.:x)) (%sown))\"] }\\n' '(' '(' '(' > repo/task.yml; echo 1.20 > repo/version";
    let text = format!(
        "plan:
{}- load_var: v
  file: repo/version
- across: [{{ var: x, values: [one] }}]
  task: show
  file: repo/task.yml
  vars: {{ own: mine }}
",
        writes("make", "repo", task)
    );
    let (report, output) = run_text(&text).await;
    assert_eq!(
        (report.status, output.as_str()),
        (Status::Succeeded, "1.20 one mine\n"),
        "{report:#?}"
    );
    let (report, _) = run_text(&text.replace("load_var: v", "load_var: other")).await;
    let error = report.steps.last().unwrap().error.clone().unwrap();
    assert!(error.contains("repo/task.yml:2:27: `((.:v))` has no value"), "{error}");
}
