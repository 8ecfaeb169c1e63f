//! Pipelines and questions that many tests share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orchestra_e2e::{Contents, Dir, Finished, Fixture};
use serde_json::{Value, json};

/// Panics where the binary does not do what the test's name says.
pub(crate) type Test = fn(&Fixture);

/// Lists tests by their own names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub(crate) fn tests() -> Vec<(&'static str, crate::support::Test)> {
            vec![$((stringify!($test), $test as crate::support::Test)),*]
        }
    };
}
pub(crate) use tests;

/// A task that runs a shell script.
pub(crate) fn task(fixture: &Fixture, name: &str, script: &str) -> Value {
    json!({"task": name, "config": {"platform": "linux", "image": fixture.image, "run": {"path": "sh", "args": ["-c", script]}}})
}

/// A task with an output of the same name as itself.
pub(crate) fn producer(fixture: &Fixture, name: &str, script: &str) -> Value {
    let mut task = task(fixture, name, script);
    task["config"]["outputs"] = json!([{"name": name}]);
    task
}

/// A pipeline's text. JSON is YAML, and quotes everything right.
pub(crate) fn plan(steps: impl IntoIterator<Item = Value>) -> String {
    json!({"plan": steps.into_iter().collect::<Vec<_>>()}).to_string()
}

/// A directory with a pipeline.
pub(crate) fn pipeline(steps: impl IntoIterator<Item = Value>) -> Dir {
    Dir::with([("p.yml", plan(steps))])
}

/// Runs a pipeline to its end.
pub(crate) fn run(fixture: &Fixture, steps: impl IntoIterator<Item = Value>, args: &[&str]) -> Finished {
    let dir = pipeline(steps);
    fixture
        .orchestra(["run", "p.yml"].iter().chain(args))
        .dir(dir.path())
        .run()
}

/// A run id that no other test has.
pub(crate) fn run_id(test: &str) -> String {
    let time = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{test}-{}", time.as_nanos() % 1_000_000_000_000)
}

/// What the engine holds of a run: everything of its jobs has its id in its name.
pub(crate) fn left_of(fixture: &Fixture, run_id: &str) -> Contents {
    let all = fixture.engine.leftovers().expect("the engine answers");
    Contents(all.0.into_iter().filter(|thing| thing.contains(run_id)).collect())
}

/// Asserts that nothing of a run is left.
pub(crate) fn assert_gone(fixture: &Fixture, run_id: &str, finished: &Finished) {
    let left = left_of(fixture, run_id);
    assert!(left.0.is_empty(), "it left {left:?}\n{finished}");
}

/// Waits until something is so.
pub(crate) fn until(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Held by tests that leave dead runs behind for a while, or that collect garbage, which would remove those.
pub(crate) fn dead_runs() -> MutexGuard<'static, ()> {
    static DEAD_RUNS: Mutex<()> = Mutex::new(());
    DEAD_RUNS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asserts that `text` holds each of `parts`.
pub(crate) fn assert_says(finished: &Finished, parts: &[&str]) {
    let all = finished.all();
    for part in parts {
        assert!(all.contains(part), "it does not say {part:?}\n{finished}");
    }
}
