//! Reports and drawings: what browsers and CI products make of them.

use std::fs;
use std::process::Command;

use orchestra_e2e::{Dir, Fixture};
use serde_json::{Value, json};

use crate::support::{assert_says, plan, producer, task, tests};

tests![
    a_report_is_a_page_that_a_browser_shows,
    a_report_shows_ten_thousand_lines_and_finds_one,
    a_report_has_the_graph_of_what_a_script_ran,
    a_report_has_no_secret,
    a_report_that_cant_be_written_is_refused_before_anything_runs,
    junit_tells_what_became_of_each_step,
    a_plan_is_drawn_without_an_engine,
];

/// The page as it is when its script has run.
fn open(dir: &Dir, page: &str) -> String {
    let url = format!("file://{}/{page}", dir.path().display());
    let profile = tempfile::tempdir().expect("a folder for the browser");
    let shown = Command::new("chromium-headless-shell")
        .args([
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(&url)
        .output()
        .expect("chromium-headless-shell runs: `cargo xtask setup` installs it");
    let page = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.status.success(),
        "{}\n{page}",
        String::from_utf8_lossy(&shown.stderr)
    );
    assert!(
        page.contains("data-ready=\"yes\""),
        "the page's script did not come to its end: {}",
        String::from_utf8_lossy(&shown.stderr)
    );
    page
}

fn reported(fixture: &Fixture, steps: impl IntoIterator<Item = Value>, args: &[&str]) -> (Dir, i32) {
    let dir = Dir::with([("p.yml", plan(steps))]);
    let all = ["run", "p.yml", "--report", "run.html", "--junit", "run.xml"];
    let finished = fixture.orchestra(all.iter().chain(args)).dir(dir.path()).run();
    (dir, finished.code)
}

fn a_report_is_a_page_that_a_browser_shows(fixture: &Fixture) {
    let steps = [
        producer(
            fixture,
            "words",
            r"printf '\033[1;31mred\033[0m and </script><b>plain</b>\n' ; echo x > words/x",
        ),
        task(fixture, "fails", "echo to standard error >&2; exit 3"),
        task(fixture, "late", "true"),
    ];
    let (dir, code) = reported(fixture, steps, &[]);
    assert_eq!(code, 1);
    let page = open(&dir, "run.html");
    for part in [
        // The plan's picture, with how its steps ended.
        r#"class="leaf succeeded" data-job="p" data-step="words""#,
        r#"class="leaf failed" data-job="p" data-step="fails""#,
        r#"class="leaf skipped" data-job="p" data-step="late""#,
        // The timeline has the parts of a step.
        r#"title="run: run ("#,
        "p / fails",
        "error: exit code 3",
        // A step that failed is open.
        "to standard error",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    let page = open(&dir, "run.html#step-0");
    for part in [
        r#"color: rgb(207, 34, 46); font-weight: bold;">red</span>"#,
        " and &lt;/script&gt;&lt;b&gt;plain&lt;/b&gt;",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    let text = fs::read_to_string(dir.file("run.html")).expect("the page");
    for outside in ["http://", "https://", " src=", "<link", "@import"] {
        let named = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!named.contains(outside), "the page loads nothing: {outside}");
    }
}

fn a_report_shows_ten_thousand_lines_and_finds_one(fixture: &Fixture) {
    let (dir, code) = reported(fixture, [task(fixture, "long", "seq 1 10000 | sed 's/^/line /'")], &[]);
    assert_eq!(code, 0);
    let page = open(&dir, "run.html#step-0");
    assert_eq!(page.matches("data-n=\"").count(), 10_000);
    assert!(page.contains("10000 lines"), "the step's head tells how many");
    let found = open(&dir, "run.html#q=line%209999");
    assert_eq!(found.matches("data-n=\"").count(), 1);
    assert!(
        found.contains("<mark>line 9999</mark>") && found.contains("1 lines"),
        "{found}"
    );
}

fn a_report_has_the_graph_of_what_a_script_ran(fixture: &Fixture) {
    let script = r#"
const run = (runtime, name, script) => runtime.run({ name, image: IMAGE, command: ["sh", "-c", script] });
export const pipeline = async () => {
    await run(runtime, "first", "true");
    await pipeline.job("test", ({ runtime }) => Promise.all([run(runtime, "unit", "sleep 2"), run(runtime, "lint", "sleep 2")]));
    await run(runtime, "last", "exit 3");
};
"#;
    let dir = Dir::with([("p.ts", script.replace("IMAGE", &format!("{:?}", fixture.image)))]);
    let args = ["run", "p.ts", "--report", "run.html"];
    let finished = fixture.orchestra(args).dir(dir.path()).run();
    assert_eq!(finished.code, 1, "{finished}");
    let page = open(&dir, "run.html");
    let place = |status: &str, step: &str| {
        let leaf = format!(r#"class="leaf {status}" data-job="p" data-step="{step}""#);
        let leaf = page.split_once(&leaf).unwrap_or_else(|| panic!("{leaf}\n{page}")).1;
        let number = |key: &str| -> f64 {
            let rest = leaf.split_once(&format!(" {key}=\"")).expect("the box").1;
            rest.split_once('"').expect("its end").0.parse().expect("a number")
        };
        (number("x"), number("y"))
    };
    let [first, unit, lint] = [
        ("succeeded", "first"),
        ("succeeded", "test.unit"),
        ("succeeded", "test.lint"),
    ]
    .map(|(status, step)| place(status, step));
    let last = place("failed", "last");
    assert!(first.0 < unit.0 && unit.0 < last.0, "one after the other: {page}");
    assert!(
        (unit.0 - lint.0).abs() < 1.0 && (unit.1 - lint.1).abs() > 1.0,
        "at once: {page}"
    );
}

fn a_report_has_no_secret(fixture: &Fixture) {
    let secret = "correct-horse-battery";
    let mut tells = task(fixture, "tells", "echo it is $TOKEN; exit 1");
    tells["params"] = json!({"TOKEN": "secret:TOKEN"});
    let (dir, code) = reported(fixture, [tells], &["--secret", &format!("TOKEN={secret}")]);
    assert_eq!(code, 1);
    for file in ["run.html", "run.xml"] {
        let text = fs::read_to_string(dir.file(file)).expect("a report");
        assert!(text.contains("it is ***"), "{text}");
        assert!(!text.contains(secret), "{text}");
    }
}

fn a_report_that_cant_be_written_is_refused_before_anything_runs(fixture: &Fixture) {
    let dir = Dir::with([("p.yml", plan([task(fixture, "a", "echo ran")]))]);
    let refused = fixture
        .orchestra(["run", "p.yml", "--report", "nowhere/run.html"])
        .dir(dir.path())
        .run();
    assert_eq!(refused.code, 2, "{refused}");
    assert_says(&refused, &["nowhere/run.html can't be written", "hint: "]);
    assert!(!refused.all().contains("ran\n"), "{refused}");
}

fn junit_tells_what_became_of_each_step(fixture: &Fixture) {
    let steps = [
        task(fixture, "good", "true"),
        json!({"try": task(fixture, "may-fail", "exit 4")}),
        task(fixture, "bad", r"printf 'a \033[31m<b>\033[0m \001\n'; exit 3"),
        task(fixture, "late", "true"),
    ];
    let (dir, _) = reported(fixture, steps, &[]);
    let text = fs::read_to_string(dir.file("run.xml")).expect("a report");
    for part in [
        r#"<testsuite name="p" tests="4" skipped="2" errors="0" failures="1">"#,
        r#"<skipped message="failed, and may: exit code 4"/>"#,
        r#"<failure message="exit code 3" type="failed">"#,
        "<skipped/>",
        "a &lt;b&gt;",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

fn a_plan_is_drawn_without_an_engine(fixture: &Fixture) {
    for (format, parts) in [
        (
            "mermaid",
            &["flowchart LR", "subgraph job0[\"steps\"]", "-. on_success .->"][..],
        ),
        ("svg", &["<svg ", "data-step=\"right-again\""][..]),
    ] {
        let drawn = fixture
            .orchestra(["graph", "examples/steps.yml", "--format", format])
            .env(fixture.host_variable, "unix:///nowhere")
            .run();
        assert_eq!(drawn.code, 0, "{drawn}");
        assert_says(&drawn, parts);
    }
}
