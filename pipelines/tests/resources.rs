//! `get`, `put` and the graph of jobs, with a resource type whose programs keep their versions in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use orchestra_pipelines::{Pipeline, RunEventKind, RunOptions, RunReport, Status, run};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A type that counts: each `put` makes the next version, whose content is a file.
#[derive(Clone, Default)]
struct Counter {
    versions: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Counter {
    fn image(&self) -> MemoryImage {
        let mut image = MemoryImage::busybox();
        for program in ["check", "in", "out"] {
            let counter = self.clone();
            image = image.with_program(&format!("/opt/resource/{program}"), move |process| {
                let counter = counter.clone();
                async move {
                    let mut text = String::new();
                    while let Some(line) = process.stdin.read_line().await {
                        text += &line;
                    }
                    let input: Value = serde_json::from_str(&text).unwrap();
                    counter.asked.lock().unwrap().push((program.to_owned(), input.clone()));
                    let told = ["BUILD_ID", "BUILD_JOB_NAME", "BUILD_PIPELINE_NAME"];
                    if told
                        .iter()
                        .any(|name| process.env.get(*name).is_none_or(String::is_empty))
                    {
                        return 99;
                    }
                    process.stderr.write(format!("log of {program}\n")).await;
                    if input["source"]["broken"] == program {
                        process.stdout.write("nonsense").await;
                        return 0;
                    }
                    let answer = match program {
                        "check" => {
                            let versions = counter.versions.lock().unwrap();
                            json!(versions.iter().map(|n| json!({ "n": n })).collect::<Vec<_>>())
                        }
                        "in" => {
                            let n = input["version"]["n"].as_str().unwrap().to_owned();
                            let file = format!("{}/number", process.args[1]);
                            process.write_file(&file, n.clone()).unwrap();
                            json!({ "version": { "n": n }, "metadata": [{ "name": "who", "value": "counter" }] })
                        }
                        _ if input["params"]["nothing"] == true => {
                            let there = process
                                .list_dir(&process.args[1])
                                .unwrap_or_else(|_| vec!["none".to_owned()]);
                            json!({ "version": { "n": format!("{there:?}") } })
                        }
                        _ => {
                            let file = input["params"]["file"].as_str().unwrap();
                            let made = process.read_file(&format!("{}/{file}", process.args[1])).unwrap();
                            let n = String::from_utf8(made.to_vec()).unwrap().trim().to_owned();
                            counter.versions.lock().unwrap().push(n.clone());
                            json!({ "version": { "n": n } })
                        }
                    };
                    process.stdout.write(answer.to_string()).await;
                    0
                }
            });
        }
        image
    }

    fn asked(&self, program: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|(name, _)| name == program)
            .map(|(_, input)| input.clone())
            .collect()
    }
}

const HEAD: &str = "
resource_types:
- { name: counter, type: registry-image, source: { repository: counter } }
resources:
- { name: number, type: counter, source: { start: 1 } }
";

async fn run_text(counter: &Counter, text: &str) -> RunReport {
    run_with(counter, text, RunOptions::default()).await
}

async fn run_with(counter: &Counter, text: &str, options: RunOptions) -> RunReport {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine.add_image("counter", counter.image()).unwrap();
    let pipeline = Pipeline::parse("ci.yml", text).unwrap_or_else(|invalid| panic!("{text}\n{invalid:#}"));
    let report = run(&pipeline, engine.driver(), options).await;
    assert!(engine.driver().list(None).await.unwrap().is_empty(), "{text}");
    report
}

fn counter(versions: &[&str]) -> Counter {
    let counter = Counter::default();
    *counter.versions.lock().unwrap() = versions.iter().map(|n| (*n).to_owned()).collect();
    counter
}

fn version(n: &str) -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([("n".to_owned(), n.to_owned())]))
}

fn task(name: &str, script: &str) -> String {
    format!(
        "{{ task: {name}, image: busybox, config: {{ inputs: [{{ name: number }}], run: {{ path: sh, args: [-c, '{script}'] }} }} }}"
    )
}

#[tokio::test]
async fn the_newest_version_is_fetched_and_a_pinned_one_where_it_is_pinned() {
    for (get, expected) in [
        ("{ get: number, trigger: true, params: { deep: [1, true] } }", "3"),
        ("{ get: number, version: { n: 2 } }", "2"),
        ("{ get: mine, resource: number, version: latest }", "3"),
    ] {
        let counter = counter(&["1", "2", "3"]);
        let show = task("show", &format!("test \"$(cat number/number)\" = {expected}")).replace(
            "name: number",
            if get.contains("mine") {
                "name: mine, path: number"
            } else {
                "name: number"
            },
        );
        let report = run_text(&counter, &format!("{HEAD}plan: [{get}, {show}]\n")).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        assert_eq!(report.steps[0].version, version(expected));
        assert_eq!(report.steps[0].metadata[0].value, "counter");
        let input = counter.asked("in").remove(0);
        assert_eq!(
            (&input["source"]["start"], &input["version"]["n"]),
            (&json!(1), &json!(expected))
        );
        assert_eq!(counter.asked("check").len(), usize::from(expected == "3"));
    }
}

#[tokio::test]
async fn what_is_put_is_fetched_and_is_what_later_jobs_get() {
    let counter = counter(&["1"]);
    let text = format!(
        "{HEAD}
jobs:
- name: bump
  plan:
  - get: number
  - {{ task: add, image: busybox, config: {{ inputs: [{{ name: number }}], outputs: [{{ name: next }}], run: {{ path: sh, args: [-c, 'echo \"$(cat number/number)1\" > next/number'] }} }} }}
  - put: number
    params: {{ file: next/number }}
  - {}
- name: use
  plan:
  - {{ get: number, passed: [bump] }}
  - {}
",
        task("after", "test \"$(cat number/number)\" = 11"),
        task("later", "test \"$(cat number/number)\" = 11")
    );
    let report = run_text(&counter, &text).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    assert_eq!(report.steps[2].version, version("11"));
    assert_eq!(
        counter.asked("check").len(),
        1,
        "a run has one version of each resource"
    );
}

#[tokio::test]
async fn what_goes_wrong_with_a_resource_is_told_with_its_name() {
    for (versions, source, words) in [
        (&[][..], "start: 1", "the resource `number` has no version"),
        (
            &["1"][..],
            "broken: check",
            "`check` of the resource `number` did not write what the protocol asks for",
        ),
        (&["1"][..], "broken: in", "`in` of the resource `number` did not write"),
    ] {
        let text = format!(
            "{}plan: [{{ get: number, attempts: 2 }}]\n",
            HEAD.replace("start: 1", source)
        );
        let counter = counter(versions);
        let report = run_text(&counter, &text).await;
        let step = &report.steps[0];
        assert_eq!(step.status, Status::Failed, "{step:#?}");
        assert!(step.error.clone().unwrap().contains(words), "{step:#?}");
        assert!(step.log_tail.contains("log of check"), "{step:#?}");
        assert_eq!(step.attempt, Some(2));
    }
}

#[tokio::test]
async fn jobs_are_a_graph_where_versions_have_to_pass() {
    let job = |name: &str, passed: &str, script: &str| {
        format!(
            "- {{ name: {name}, plan: [{{ get: number, passed: [{passed}] }}, {}] }}\n",
            task("t", script)
        )
    };
    let graph = |middle: &str| {
        format!(
            "{HEAD}jobs:\n{}{}{}{}",
            job("last", "left, right", "true"),
            job("left", "first", middle),
            job("right", "first", "true"),
            job("first", "", "true")
        )
    };
    let report = run_text(&counter(&["1"]), &graph("true")).await;
    assert_eq!(report.status, Status::Succeeded, "{report:#?}");
    let report = run_text(&counter(&["1"]), &graph("exit 1")).await;
    let of = |job: &str| {
        let steps = report.steps.iter().filter(|step| step.job.as_str() == job);
        steps.map(|step| step.status).collect::<Vec<_>>()
    };
    assert_eq!(report.status, Status::Failed);
    assert_eq!(of("first"), [Status::Succeeded; 2]);
    assert_eq!(of("right"), [Status::Succeeded; 2]);
    assert_eq!(of("left"), [Status::Succeeded, Status::Failed]);
    assert_eq!(of("last"), [Status::Skipped; 2]);
}

#[tokio::test]
async fn jobs_of_a_pipeline_with_resources_do_not_wait_for_each_other_unless_versions_pass() {
    let job = |name: &str, script: &str| {
        format!(
            "- {{ name: {name}, plan: [{{ get: number }}, {}] }}\n",
            task("t", script)
        )
    };
    let text = format!("{HEAD}jobs:\n{}{}", job("lint", "exit 1"), job("unit", "true"));
    let report = run_text(&counter(&["1"]), &text).await;
    let statuses: Vec<Status> = report.steps.iter().map(|step| step.status).collect();
    let (good, bad) = (Status::Succeeded, Status::Failed);
    assert_eq!((report.status, statuses), (bad, vec![good, bad, good, good]));
}

#[tokio::test]
async fn a_job_that_is_run_alone_says_which_versions_it_takes() {
    let job = |name: &str, more: &str| {
        format!(
            "- {{ name: {name}, plan: [{{ get: number{more} }}, {}] }}\n",
            task("t", "true")
        )
    };
    let text = format!("{HEAD}jobs:\n{}{}", job("first", ""), job("last", ", passed: [first]"));
    for (only, told) in [("first", false), ("last", true)] {
        let mut options = RunOptions::default();
        options.job = Some(orchestra::Name::new(only).unwrap());
        let report = run_with(&counter(&["1", "2"]), &text, options).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        let warned = report
            .warnings
            .iter()
            .any(|warning| warning.contains("`last` is run without `first`"));
        assert_eq!(warned, told, "{report:#?}");
        assert_eq!(report.steps[0].version, version("2"));
    }
}

#[tokio::test]
async fn what_is_put_of_nothing_has_its_directory_and_a_check_knows_no_version() {
    let counter = counter(&["1"]);
    let text = format!("{HEAD}plan: [{{ put: number, inputs: [], no_get: true, params: {{ nothing: true }} }}]\n");
    let report = run_text(&counter, &text).await;
    assert_eq!(report.steps[0].version, version("[]"), "{report:#?}");
    run_text(&counter, &format!("{HEAD}plan: [{{ get: number }}]\n")).await;
    assert!(counter.asked("check")[0].get("version").is_none());
}

#[tokio::test]
async fn jobs_of_one_serial_group_do_not_run_at_once() {
    let job = |name: &str, groups: &str| {
        let sleeps = task("t", "sleep 0.2");
        format!(
            "- {{ name: {name}, serial_groups: [{groups}], plan: [{{ get: number, passed: [first] }}, {sleeps}] }}\n"
        )
    };
    let most_at_once = async |left: &str, right: &str| {
        let first = "- { name: first, plan: [{ get: number }] }\n";
        let text = format!("{HEAD}jobs:\n{first}{}{}", job("left", left), job("right", right));
        let (events, mut received) = mpsc::channel(64);
        let mut options = RunOptions::default();
        options.events = Some(events);
        let most = tokio::spawn(async move {
            let (mut running, mut most) = (0_usize, 0);
            while let Some(event) = received.recv().await {
                match event.kind {
                    RunEventKind::StepStarted { step, .. } if step.as_str() == "t" => running += 1,
                    RunEventKind::StepFinished { report } if report.name.as_str() == "t" => running -= 1,
                    _ => {}
                }
                most = most.max(running);
            }
            most
        });
        let report = run_with(&counter(&["1"]), &text, options).await;
        assert_eq!(report.status, Status::Succeeded, "{report:#?}");
        most.await.unwrap()
    };
    assert_eq!(most_at_once("a", "b").await, 2);
    assert_eq!(most_at_once("a, c", "c, b").await, 1);
}

#[test]
fn what_resources_are_is_checked_before_anything_runs() {
    let plan = |steps: &str| format!("{HEAD}plan: [{steps}]\n");
    let jobs = |jobs: &str| format!("{HEAD}jobs: [{jobs}]\n");
    for (text, words) in [
        (plan("{ get: nmuber }"), "did you mean `number`?"),
        (plan("{ get: number, version: newest }"), "`newest` is not a version"),
        (plan("{ get: number, passed: [none] }"), "there is no job `none`"),
        (
            plan("{ put: number, inputs: some }"),
            "`all`, `detect` or a list of artifacts",
        ),
        (
            plan("{ put: number, inputs: [none] }"),
            "no earlier step makes the artifact `none`",
        ),
        (
            HEAD.replace("type: counter", "type: countr") + "plan: [{ get: number }]\n",
            "did you mean `counter`?",
        ),
        (
            HEAD.replace("type: registry-image", "type: git") + "plan: [{ get: number }]\n",
            "is not supported",
        ),
        (
            jobs(
                "{ name: a, plan: [{ get: number, passed: [b] }] }, { name: b, plan: [{ get: number, passed: [a] }] }",
            ),
            "wait for each other",
        ),
        (
            jobs(
                "{ name: a, plan: [{ task: t, image: b, config: { run: { path: sh } } }] }, { name: b, plan: [{ get: number, passed: [a] }] }",
            ),
            "no version of `number` passes the job `a`",
        ),
    ] {
        let told = match Pipeline::parse("ci.yml", &text) {
            Ok(_) => String::new(),
            Err(invalid) => invalid
                .problems()
                .iter()
                .map(|problem| format!("{problem} {}\n", problem.help.clone().unwrap_or_default()))
                .collect(),
        };
        assert!(told.contains(words), "{text}\n{words}\n{told}");
    }
    let noted = Pipeline::parse("ci.yml", &plan("{ get: number, trigger: true }")).unwrap();
    let notes: Vec<String> = noted.notes().iter().map(ToString::to_string).collect();
    assert_eq!(notes, ["`trigger` has no meaning in a run of your own"]);
}
