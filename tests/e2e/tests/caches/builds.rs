//! The state of BuildKit as a cache.

use orchestra::JobId;
use orchestra_e2e::{Dir, Fixture};
use serde_json::json;

use crate::{run, says};

/// A build whose later layers replace a directory and delete a file, and a task that shows what the image holds.
fn building(fixture: &Fixture, tag: &str, last: &str) -> String {
    let dockerfile = format!(
        r#"FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin"]
SHELL ["/bin/sh", "-c"]
RUN mkdir /d /e && echo a > /d/lower && echo gone > /e/gone && echo stays > /e/stays
RUN rm -rf /d && mkdir /d && echo b > /d/upper
RUN rm /e/gone && ln /e/stays /e/hard && chmod 4755 /e/stays
RUN --mount=type=cache,target=/c echo run >> /c/runs
RUN ls /d; echo {last} > /last
"#
    );
    let context = json!({"task": "context", "config": {
        "platform": "linux", "image": fixture.image, "outputs": [{"name": "source"}], "params": {"DOCKERFILE": dockerfile},
        "run": {"path": "sh", "args": ["-c", "cp /bin/busybox source/busybox; printf %s \"$DOCKERFILE\" > source/Dockerfile; touch -d '2020-01-01 00:00' source/*"]},
    }});
    let build = json!({"build_image": {
        "name": "app", "context": "source", "tag": tag, "push": true, "network": "host", "image": fixture.buildkit_image,
        "registry": {"insecure": true}, "caches": [{"path": "/var/lib/buildkit"}],
    }});
    let show = json!({"task": "show", "image": tag, "config": {
        "platform": "linux", "run": {"path": "sh", "args": ["-c", "ls -ln /d /e | grep -v total; cat /d/* /e/*"]},
    }});
    json!({"plan": [context, build, show]}).to_string()
}

/// The lines of a step.
fn lines_of<'a>(finished: &'a str, step: &str) -> Vec<&'a str> {
    let prefix = format!("{step} ");
    let lines = finished
        .lines()
        .filter(|line| line.starts_with(&prefix) && line.contains('|'));
    lines.filter_map(|line| Some(line.split_once('|')?.1.trim())).collect()
}

pub(crate) async fn a_builds_layers_come_back_exactly(fixture: &Fixture) {
    let tag = |name: &str| format!("{}/e2e/{name}-{}:1", fixture.registry, JobId::unique());
    let (first_tag, second_tag, clean_tag) = (tag("cached"), tag("rebuilt"), tag("clean"));
    let dir = Dir::with([("ci.yml", building(fixture, &first_tag, "one"))]);
    let store = format!("file://{}", dir.file("store").display());
    let environment = [("ORCHESTRA_CACHES__STORE", store.as_str())];
    let first = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(first.code, 0, "{first}");
    says(
        &first,
        &[
            "app cache /var/lib/buildkit: miss",
            "app cache /var/lib/buildkit: persisted",
        ],
    );

    std::fs::write(dir.file("ci.yml"), building(fixture, &second_tag, "two")).unwrap();
    let second = run(fixture, &dir, &environment, &["run", "ci.yml"]);
    assert_eq!(second.code, 0, "{second}");
    says(&second, &["app cache /var/lib/buildkit: hit"]);
    let text = second.all();
    let build = lines_of(&text, "app");
    let cached = build.iter().filter(|line| line.contains("CACHED")).count();
    assert!(cached >= 6, "{cached} steps were cached\n{second}");
    assert!(build.iter().any(|line| line.ends_with("upper")), "{second}");
    assert!(
        !build.iter().any(|line| line.ends_with(" lower")),
        "a directory that was replaced shines through\n{second}"
    );

    std::fs::write(dir.file("ci.yml"), building(fixture, &clean_tag, "two")).unwrap();
    let clean = run(fixture, &dir, &environment, &["run", "ci.yml", "--no-cache"]);
    assert_eq!(clean.code, 0, "{clean}");
    let all = clean.all();
    let without_times = |lines: Vec<&str>| -> Vec<String> {
        // `ls -ln` has the time in fields 6 to 8.
        let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words
            .map(|words| {
                let kept = words
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| words.len() < 9 || !(5..8).contains(at));
                kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
            })
            .collect()
    };
    let (cached, from_nothing) = (
        without_times(lines_of(&text, "show")),
        without_times(lines_of(&all, "show")),
    );
    assert!(cached.len() > 5, "{second}");
    assert_eq!(cached, from_nothing, "{second}\n{clean}");
    for tag in [first_tag, second_tag, clean_tag] {
        fixture.engine.remove_image(&tag).unwrap();
    }
}
