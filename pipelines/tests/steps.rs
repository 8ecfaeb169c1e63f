//! Steps within steps: Concourse's rules for `do`, `in_parallel`, `try`, `across`, `attempts`, `timeout` and hooks.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use orchestra::JobId;
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunEventKind, RunOptions, RunReport, Status, run};
use tokio::sync::mpsc;

/// A plan in a short form: `$name:script$` is a task that runs the script.
fn text(plan: &str) -> String {
    let mut text = String::new();
    for (at, part) in plan.split('$').enumerate() {
        match part.split_once(':').filter(|_| at % 2 == 1) {
            Some((name, script)) => {
                text += &format!("task: {name}, image: busybox, config: {{run: {{path: sh, args: [-c, '{script}']}}}}");
            }
            None => text += part,
        }
    }
    format!("jobs: [{{name: ci, {text}}}]\n")
}

fn pipeline(plan: &str) -> Pipeline {
    Pipeline::parse("ci.yml", &text(plan)).unwrap_or_else(|invalid| panic!("{plan}: {invalid:?}"))
}

async fn run_with(plan: &str, options: RunOptions) -> RunReport {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    let report = run(&pipeline(plan), engine.driver(), options).await;
    let left = engine.driver().list(None).await.unwrap();
    assert!(left.is_empty(), "{plan}: {left:?}");
    report
}

/// The run's status, then each step with the first letter of its own.
fn outcome(report: &RunReport) -> String {
    let steps = report.steps.iter().map(|step| {
        let status = step.status.to_string();
        format!(" {}:{}", step.name, &status[..2])
    });
    format!("{}{}", report.status, steps.collect::<String>())
}

#[tokio::test]
async fn steps_and_hooks_end_as_in_concourse() {
    // A task whose image is nowhere fails; one that can't be mounted errors: see `errors`.
    let cases = [
        // Order.
        (
            "plan: [{do: [{$a:true$}, {$b:exit 1$}, {$c:true$}]}, {$d:true$}]",
            "failed a:su b:fa c:sk d:sk",
        ),
        ("plan: [{do: [{do: [{$a:true$}]}, {$b:true$}]}]", "succeeded a:su b:su"),
        // In parallel, all run though one fails; with `fail_fast`, what runs is aborted and what waits is not begun.
        (
            "plan: [{in_parallel: [{$a:exit 1$}, {$b:true$}]}, {$c:true$}]",
            "failed a:fa b:su c:sk",
        ),
        (
            "plan: [{in_parallel: {limit: 1, steps: [{$a:exit 1$}, {$b:true$}]}}]",
            "failed a:fa b:su",
        ),
        (
            "plan: [{in_parallel: {fail_fast: true, steps: [{$a:exit 1$}, {$b:sleep 60$}]}}]",
            "failed a:fa b:ab",
        ),
        (
            "plan: [{in_parallel: {fail_fast: true, limit: 1, steps: [{$a:exit 1$}, {$b:sleep 60$}]}}]",
            "failed a:fa b:sk",
        ),
        // What `fail_fast` aborts has its hooks, which are not aborted.
        (
            "plan: [{in_parallel: {fail_fast: true, steps: [{$a:exit 1$}, {$b:sleep 60$, on_abort: {$x:true$}, on_failure: {$y:true$}, ensure: {$z:true$}}]}}]",
            "failed a:fa b:ab y:sk x:su z:su",
        ),
        // `try` succeeds, and hooks in it and on it see what they are on.
        ("plan: [{try: {$a:exit 1$}}, {$b:true$}]", "succeeded a:fa b:su"),
        (
            "plan: [{try: {$a:exit 1$, on_failure: {$x:true$}}, on_success: {$y:true$}}]",
            "succeeded a:fa x:su y:su",
        ),
        (
            "plan: [{try: {$a:exit 1$}, on_failure: {$x:true$}}]",
            "succeeded a:fa x:sk",
        ),
        // Hooks.
        (
            "plan: [{$a:true$, on_success: {$x:true$}, on_failure: {$y:true$}}]",
            "succeeded a:su x:su y:sk",
        ),
        (
            "plan: [{$a:exit 1$, on_success: {$x:true$}, on_failure: {$y:true$}}]",
            "failed a:fa x:sk y:su",
        ),
        (
            "plan: [{$a:true$, on_success: {$x:exit 1$}, on_failure: {$y:true$}}]",
            "failed a:su x:fa y:su",
        ),
        (
            "plan: [{$a:exit 1$, on_failure: {$x:exit 1$}, ensure: {$y:true$}}]",
            "failed a:fa x:fa y:su",
        ),
        (
            "plan: [{$a:true$, ensure: {$x:exit 1$}}, {$b:true$}]",
            "failed a:su x:fa b:sk",
        ),
        ("plan: [{$a:exit 1$, ensure: {$x:true$}}]", "failed a:fa x:su"),
        (
            "plan: [{$a:exit 1$, on_error: {$x:true$}, on_abort: {$y:true$}}]",
            "failed a:fa y:sk x:sk",
        ),
        // Hooks of hooks, of what holds steps, and of jobs.
        (
            "plan: [{$a:exit 1$, on_failure: {do: [{$x:true$, ensure: {$y:true$}}, {$z:true$}]}}]",
            "failed a:fa x:su y:su z:su",
        ),
        (
            "plan: [{do: [{$a:exit 1$}], on_failure: {$x:true$}}]",
            "failed a:fa x:su",
        ),
        (
            "plan: [{$a:exit 1$}], on_failure: {$x:true$}, on_success: {$y:true$}, ensure: {$z:true$}",
            "failed a:fa y:sk x:su z:su",
        ),
        ("plan: [{$a:true$}], on_success: {$x:exit 1$}", "failed a:su x:fa"),
        // Tries and time.
        (
            "plan: [{do: [{$a:true$}, {$b:exit 1$}], attempts: 3}]",
            "failed a:su b:fa",
        ),
        (
            "plan: [{do: [{$a:sleep 60$}], timeout: 300ms, on_failure: {$x:true$}}]",
            "failed a:fa x:su",
        ),
        (
            "plan: [{do: [{$a:sleep 60$, on_failure: {$y:true$}, on_abort: {$w:true$}, ensure: {$z:true$}}], timeout: 300ms, on_failure: {$x:true$}}]",
            "failed a:fa y:sk w:sk z:su x:su",
        ),
        ("plan: [{try: {$a:sleep 60$, timeout: 300ms}}]", "succeeded a:fa"),
        // Across.
        (
            "plan: [{across: [{var: v, values: [1, 2]}], $a:exit ((.:v))$}]",
            "failed a:fa a-2:fa",
        ),
        (
            "plan: [{across: [{var: v, values: [1, 2]}], fail_fast: true, $a:exit ((.:v))$}, {$b:true$}]",
            "failed a:fa a-2:sk b:sk",
        ),
        (
            "plan: [{across: [{var: v, values: [x, y]}, {var: w, values: [{n: 1}, {n: 2}]}], task: a-((.:v))-((.:w.n)), image: busybox, config: {run: {path: echo}}, on_success: {$z:true$}}]",
            "succeeded a-x-1:su a-x-2:su a-y-1:su a-y-2:su z:su",
        ),
    ];
    for (plan, expected) in cases {
        let mut options = RunOptions::default();
        options.grace = Duration::from_millis(100);
        assert_eq!(outcome(&run_with(plan, options).await), expected, "{plan}");
    }
}

#[tokio::test]
async fn a_run_that_is_cancelled_runs_what_follows_an_abort_and_nothing_else() {
    for (plan, expected) in [
        (
            "plan: [{do: [{$a:echo up; sleep 60$, on_abort: {$x:true$}, ensure: {$y:true$}}, {$b:true$}], on_failure: {$z:true$}}]",
            "aborted a:ab x:su y:su b:sk z:sk",
        ),
        (
            "plan: [{try: {$a:echo up; sleep 60$}}, {$b:true$}]",
            "aborted a:ab b:sk",
        ),
        ("plan: [{do: [{$a:echo up; sleep 60$}], attempts: 5}]", "aborted a:ab"),
        (
            "plan: [{in_parallel: [{$a:echo up; sleep 60$}, {$b:sleep 60$}]}], on_abort: {$x:true$}, ensure: {$y:true$}",
            "aborted a:ab b:ab x:su y:su",
        ),
    ] {
        let (events, mut received) = mpsc::channel(8);
        let mut options = RunOptions::default();
        options.grace = Duration::from_millis(100);
        options.events = Some(events);
        let cancel = options.cancel.clone();
        tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                if matches!(event.kind, RunEventKind::Output { .. }) {
                    cancel.cancel();
                }
            }
        });
        assert_eq!(outcome(&run_with(plan, options).await), expected, "{plan}");
    }
}

#[tokio::test]
async fn what_holds_steps_is_tried_again_as_a_whole_also_in_a_run_that_can_be_carried_on_with() {
    let text = "
plan:
- attempts: 3
  do:
  - { task: a, image: busybox, config: { caches: [{ path: s, key: s }], run: { path: sh, args: [-c, 'echo x >> s/log'] } } }
  - { task: b, image: busybox, config: { caches: [{ path: s, key: s }], run: { path: sh, args: [-c, 'exit 1'] } } }
";
    for run_id in [None, Some(JobId::new("again").unwrap())] {
        let engine = MemoryEngine::new();
        engine.add_image("busybox", MemoryImage::busybox()).unwrap();
        let (events, mut received) = mpsc::channel(8);
        let mut options = RunOptions::default();
        options.run_id = run_id;
        options.events = Some(events);
        let started = tokio::spawn(async move {
            let mut started = String::new();
            while let Some(event) = received.recv().await {
                match event.kind {
                    RunEventKind::StepStarted { step, .. } => started += step.as_str(),
                    RunEventKind::Engine { step: Some(step), .. } => {
                        assert!(["a", "b"].contains(&step.as_str()), "{step}")
                    }
                    _ => {}
                }
            }
            started
        });
        let report = run(&Pipeline::parse("ci.yml", text).unwrap(), engine.driver(), options).await;
        assert_eq!(
            (report.status, started.await.unwrap().as_str()),
            (Status::Failed, "ababab")
        );
        assert!(engine.driver().list(None).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn no_more_steps_run_at_once_than_the_limit_says() {
    let steps: Vec<String> = (0..8).map(|at| format!("{{$s{at}:sleep 0.1$}}")).collect();
    let plan = format!("plan: [{{in_parallel: {{limit: 3, steps: [{}]}}}}]", steps.join(", "));
    let (events, mut received) = mpsc::channel(8);
    let mut options = RunOptions::default();
    options.events = Some(events);
    let most = tokio::spawn(async move {
        let (mut running, mut most) = (0_usize, 0);
        while let Some(event) = received.recv().await {
            match event.kind {
                RunEventKind::StepStarted { .. } => running += 1,
                RunEventKind::StepFinished { .. } => running -= 1,
                _ => {}
            }
            most = most.max(running);
        }
        most
    });
    assert_eq!(run_with(&plan, options).await.status, Status::Succeeded);
    assert_eq!(most.await.unwrap(), 3);
}

#[tokio::test]
async fn an_artifact_is_made_anew_and_a_name_stands_for_more_than_one_step() {
    let task = |name: &str, io: &str, script: &str| {
        format!("{{task: {name}, image: busybox, config: {{{io}, run: {{path: sh, args: [-c, '{script}']}}}}}}")
    };
    let makes = |word: &str| {
        task(
            "make",
            "outputs: [{name: o}]",
            &format!("test ! -e o/any && echo > o/any && echo > o/{word}"),
        )
    };
    let shows = |word: &str| task("show", "inputs: [{name: o}]", &format!("test -e o/{word}"));
    let changes = "inputs: [{name: o}], outputs: [{name: o}]";
    let copies = "inputs: [{name: o, path: from}], outputs: [{name: o, path: to}]";
    let renames = "inputs: [{name: o}], outputs: [{name: p, path: ./o}]";
    let cases = [
        // The last one that was made is what others get.
        format!("{}, {}, {}, {}", makes("one"), shows("one"), makes("two"), shows("two")),
        format!(
            "{}, {}, {}",
            makes("one"),
            task("change", changes, "test -e o/one && echo > o/more"),
            shows("more")
        ),
        format!(
            "{}, {}, {}",
            makes("one"),
            task("copy", copies, "test -e from/one && test ! -e to/any && echo > to/new"),
            shows("new")
        ),
        format!(
            "{}, {}, {}",
            makes("one"),
            task("rename", renames, "test -e o/one && echo > o/p"),
            task("show", "inputs: [{name: p}]", "test -e p/p")
        ),
        format!(
            "{{across: [{{var: v, values: [1, 2]}}], do: [{}, {}]}}",
            makes("((.:v))"),
            shows("((.:v))")
        ),
        // A hook that stands twice.
        format!(
            "{{do: [{}], on_success: {}}}, {{do: [{}], on_success: {}}}",
            makes("a"),
            shows("a"),
            makes("b"),
            shows("b")
        ),
        // One that may be missing is made where it is.
        format!(
            "{}, {}",
            task(
                "make",
                "inputs: [{name: o, optional: true}], outputs: [{name: o}]",
                "echo > o/new"
            ),
            shows("new")
        ),
        // What runs beside it is not seen: each uses what it made itself.
        format!(
            "{{across: [{{var: v, values: [1, 2, 3], max_in_flight: all}}], do: [{}, {}, {}]}}",
            makes("((.:v))"),
            task("wait", "inputs: [{name: o}]", "sleep 0.1"),
            shows("((.:v))")
        ),
        // Each of several has the input at its place and fills the one output.
        format!(
            "{}, {{task: part, image: busybox, parallelism: 3, config: {{{copies}, run: {{path: sh, args: [-c, 'test -e from/one && echo > to/part']}}}}}}, {}",
            makes("one"),
            shows("part")
        ),
        // Also of a file, and what another step makes under the name then is new.
        format!(
            "{}, {{task: part, image: busybox, file: src/t.yml, parallelism: 2}}, {}, {}, {}, {}",
            task(
                "write",
                "outputs: [{name: src}]",
                "echo \"{outputs: [{name: o}], run: {path: sh, args: [-c, echo >o/late]}}\" > src/t.yml"
            ),
            shows("late"),
            makes("one"),
            shows("one"),
            task("gone", "inputs: [{name: o}]", "test ! -e o/late")
        ),
        // A try that is not the first has its input again.
        format!(
            "{}, {{do: [{}], attempts: 2}}, {}",
            makes("one"),
            task(
                "copy",
                copies,
                "test -e from/one || exit 2; if test -e to/tried; then echo > to/new; else echo > to/tried; exit 1; fi"
            ),
            shows("new")
        ),
        // Of a file that is read when it runs.
        format!(
            "{}, {}, {{task: late, image: busybox, file: o/t.yml}}, {}",
            makes("one"),
            task(
                "write",
                changes,
                "echo \"{outputs: [{name: o}], run: {path: sh, args: [-c, test ! -e o/any && echo >o/late]}}\" > o/t.yml"
            ),
            shows("late")
        ),
    ];
    for plan in cases {
        let report = run_with(&format!("plan: [{plan}]"), RunOptions::default()).await;
        assert_eq!(report.status, Status::Succeeded, "{plan}\n{report:#?}");
    }
    // Told at its place in the file that it is of.
    let write = task(
        "write",
        "outputs: [{name: src}]",
        "echo \"{outputs: [{name: a}, {name: b}], run: {path: sh}}\" > src/t.yml",
    );
    let two =
        format!("plan: [{write}, {{task: late, image: busybox, file: src/t.yml, output_mapping: {{a: x, b: x}}}}]");
    let report = run_with(&two, RunOptions::default()).await;
    let error = report.steps[1].error.clone().unwrap_or_default();
    assert!(
        error.contains("src/t.yml:1:") && error.contains("two outputs of one step are called `x`"),
        "{report:#?}"
    );
    let report = run_with(
        &format!("plan: [{}, {}]", makes("a"), makes("b")),
        RunOptions::default(),
    )
    .await;
    assert_eq!(outcome(&report), "succeeded make:su make-2:su");
}

#[tokio::test]
async fn a_variable_that_can_not_be_loaded_is_tried_again() {
    let make = "{task: make, image: busybox, config: {outputs: [{name: o}], run: {path: 'true'}}}";
    let plan = format!("plan: [{make}, {{load_var: v, file: o/x, attempts: 3, timeout: 1m}}]");
    let report = run_with(&plan, RunOptions::default()).await;
    assert_eq!(report.steps[1].attempt, Some(3), "{report:#?}");
    assert_ne!(report.status, Status::Succeeded);
}

#[tokio::test]
async fn the_example_of_all_steps_runs() {
    let engine = MemoryEngine::new();
    engine.add_image("busybox:stable", MemoryImage::busybox()).unwrap();
    let pipeline = Pipeline::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/steps.yml")).unwrap();
    let report = run(&pipeline, engine.driver(), RunOptions::default()).await;
    assert_eq!(
        outcome(&report),
        "succeeded left:su right:su right-again:su both:su good:su bad:sk check:su check-2:su check-3:su check-4:su may-fail:fa clean-up:su",
        "{report:#?}"
    );
}

#[test]
fn what_a_step_may_not_use_is_told_before_anything_runs() {
    let task = |name: &str, io: &str| format!("{{task: {name}, image: busybox, config: {{{io}, run: {{path: sh}}}}}}");
    let (makes, uses) = (task("m", "outputs: [{name: x}]"), task("u", "inputs: [{name: x}]"));
    for (plan, words) in [
        (
            format!("[{{in_parallel: [{makes}, {uses}]}}]"),
            "put both into one `do`",
        ),
        (
            format!("[{{in_parallel: [{uses}, {makes}]}}]"),
            "move the step that makes it up",
        ),
        (
            format!("[{{do: [{}], on_failure: {makes}}}, {uses}]", task("a", "caches: []")),
            "put both into one `do`",
        ),
        ("[{do: []}]".to_owned(), "has no step"),
        ("[{do: [], try: {}}]".to_owned(), "not both"),
        (
            format!("[{{in_parallel: {{limit: 0, steps: [{makes}]}}}}]"),
            "from 1 to 256",
        ),
        (
            format!("[{{in_parallel: {{stesp: [{makes}]}}}}]"),
            "did you mean `steps`?",
        ),
        (format!("[{{try: [{makes}]}}]"), "a step is a map"),
        (
            format!("[{{do: [{makes}], on_failre: {uses}}}]"),
            "did you mean `on_failure`?",
        ),
        (
            "[{across: [{var: v, values: []}], task: a, image: b, config: {run: {path: sh}}}]".to_owned(),
            "has no values",
        ),
        (
            "[{task: 'a', image: 'b:((.:v))', config: {run: {path: sh}}}]".to_owned(),
            "`((.:v))` has no value",
        ),
        ("[{set_pipeline: self}]".to_owned(), "run that of the other file"),
        (
            "[{load_var: v, file: a/b}]".to_owned(),
            "no earlier step makes the artifact `a`",
        ),
        ("[{put: image}]".to_owned(), "there is no resource `image`"),
        (
            format!(
                "[{{across: [{{var: a, values: [{0}]}}, {{var: b, values: [{0}]}}], task: t, image: b, config: {{run: {{path: sh}}}}}}]",
                vec!["1"; 40].join(", ")
            ),
            "too many steps",
        ),
    ] {
        let invalid = Pipeline::parse("ci.yml", &format!("plan: {plan}\n")).unwrap_err();
        let told = invalid.problems().iter().any(|problem| {
            let help = problem.help.clone().unwrap_or_default();
            problem.line() == Some(1) && format!("{problem} {help}").contains(words)
        });
        assert!(told, "{plan}\n{words}\n{invalid:?} {:?}", invalid.problems());
    }
    for plan in [
        format!("[{{in_parallel: [{makes}]}}, {uses}]"),
        format!("[{{try: {makes}}}, {uses}]"),
        format!("[{{do: [{makes}], on_failure: {uses}}}]"),
        format!("[{{do: [{makes}, {uses}]}}]"),
    ] {
        Pipeline::parse("ci.yml", &format!("plan: {plan}\n")).unwrap();
    }
}

#[tokio::test]
async fn an_error_is_told_from_a_failure() {
    use orchestra::ErrorKind;
    use orchestra::layer::{Fault, Faults, Layered, Method};
    let once = || Faults::new().on(Method::CreateContainer, Fault::Before(ErrorKind::Engine));
    for (plan, faults, expected) in [
        (
            "plan: [{$a:true$, on_error: {$x:true$}, on_failure: {$y:true$}, ensure: {$z:true$}}, {$b:true$}]",
            once(),
            "errored a:er y:sk x:su z:su b:sk",
        ),
        ("plan: [{try: {$a:true$}}, {$b:true$}]", once(), "succeeded a:er b:su"),
        ("plan: [{do: [{$a:true$}], attempts: 2}]", once(), "succeeded a:su"),
        (
            "plan: [{in_parallel: {limit: 1, steps: [{$a:true$}, {$b:exit 1$}]}}]",
            once(),
            "errored a:er b:fa",
        ),
        (
            "plan: [{$a:exit 1$, on_failure: {$x:true$}, on_error: {$y:true$}}]",
            Faults::new().on_calls(Method::CreateContainer, 1, 1, Fault::Before(ErrorKind::Engine)),
            "errored a:fa x:er y:su",
        ),
        ("plan: [{$a:true$}], on_error: {$x:true$}", once(), "errored a:er x:su"),
    ] {
        let engine = MemoryEngine::new();
        engine.add_image("busybox", MemoryImage::busybox()).unwrap();
        let driver = std::sync::Arc::new(Layered::new(engine.driver(), faults));
        let report = run(&pipeline(plan), driver, RunOptions::default()).await;
        assert_eq!(outcome(&report), expected, "{plan}");
        assert!(engine.driver().list(None).await.unwrap().is_empty());
    }
}
