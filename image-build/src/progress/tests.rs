use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What BuildKit 0.34.2 wrote, by `--progress=rawjson` and `--progress=plain`.
const BUILT: &str = include_str!("../../testdata/built.rawjson");
const CACHED: &str = include_str!("../../testdata/cached.rawjson");
const FAILED: &str = include_str!("../../testdata/failed.rawjson");
const UNAUTHORIZED: &str = include_str!("../../testdata/unauthorized.rawjson");
const NO_SUCH_TARGET: &str = include_str!("../../testdata/no-such-target.rawjson");
const FAILED_PLAIN: &str = include_str!("../../testdata/failed.plain");

struct Read {
    text: String,
    events: Vec<BuildEvent>,
    outcome: Outcome,
    warnings: Vec<String>,
}

fn read(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Read {
    let mut progress = Progress::default();
    let (mut text, mut events) = (Vec::new(), Vec::new());
    let mut take = |mut rendered: Rendered| {
        if rendered.restarted {
            text.clear();
        }
        text.append(&mut rendered.text);
        events.append(&mut rendered.events);
    };
    for piece in pieces {
        take(progress.push(piece.as_ref()));
    }
    take(progress.finish());
    let text = String::from_utf8(text).unwrap();
    Read {
        text,
        events,
        outcome: progress.outcome(),
        warnings: progress.warnings(),
    }
}

/// The lines of one step.
fn step(text: &str, number: u32) -> Vec<&str> {
    let prefix = format!("#{number} ");
    text.lines()
        .filter_map(|line| line.strip_prefix(prefix.as_str()))
        .collect()
}

#[test]
fn a_step_is_shown_with_its_name_output_and_time() {
    let read = read([BUILT]);
    assert_eq!(
        step(&read.text, 7),
        [
            r#"[production 1/1] RUN ["/bin/busybox","sh","-c","for i in 1 2 3; do echo line $i; /bin/busybox sleep 0.1; done"]"#,
            "0.054 line 1",
            "0.156 line 2",
            "0.258 line 3",
            "DONE 0.4s",
        ]
    );
    assert_eq!(
        step(&read.text, 6)[1..4],
        ["0.040 hello a,b", "0.041 partial", "0.342 err"]
    );
    assert_eq!(read.outcome, Outcome::default());
}

#[test]
fn an_export_in_two_parts_is_one_step_with_one_end() {
    let export = read([BUILT]).text;
    let lines = step(&export, 8);
    assert_eq!(
        (lines[0], lines[1], lines[2]),
        ("exporting to image", "exporting layers", "exporting layers 0.1s done")
    );
    assert!(lines[lines.len() - 2].starts_with("pushing manifest for 127.0.0.1:5055/x:1@sha256:205c2d9c"));
    assert_eq!(
        lines.iter().filter(|line| line.starts_with("DONE")).count(),
        1,
        "{lines:?}"
    );
}

#[test]
fn vertexes_of_one_group_are_one_step() {
    let text = read([CACHED]).text;
    assert_eq!(
        step(&text, 5),
        ["[base 2/3] COPY --link busybox /bin/busybox2", "CACHED"]
    );
    assert!(!text.contains("LINK COPY"), "{text}");
    assert_eq!(text.matches("CACHED\n").count(), 4);
}

#[test]
fn events_have_the_number_that_the_text_shows() {
    let events = read([BUILT]).events;
    let completed = events.iter().find_map(|event| match event {
        BuildEvent::Completed {
            vertex: 7,
            name,
            cached,
            duration,
        } => Some((name.as_str(), *cached, *duration)),
        _ => None,
    });
    let (name, cached, duration) = completed.unwrap();
    assert!(name.starts_with("[production 1/1] RUN") && !cached);
    assert_eq!(duration, Duration::from_nanos(375_573_354));
    let json = serde_json::to_value(&events).unwrap();
    let log = json
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["build"] == "log")
        .unwrap();
    assert_eq!(
        (&log["vertex"], &log["stream"], &log["data"]),
        (&6.into(), &"stdout".into(), &"hello a,b\n".into())
    );
    let transferred = BuildEvent::Progress {
        vertex: 3,
        id: "transferring context:".into(),
        current: 1_982_653,
        total: None,
        completed: true,
    };
    assert!(events.contains(&transferred));
}

#[test]
fn a_failed_step_is_told_with_its_output_and_the_closing_words() {
    let Read {
        text, events, outcome, ..
    } = read([FAILED]);
    let name = r#"[fails 1/1] RUN ["/bin/busybox","sh","-c","echo about to fail; exit 3"]"#;
    let error =
        r#"process "/bin/busybox sh -c echo about to fail; exit 3" did not complete successfully: exit code: 3"#;
    assert_eq!(
        step(&text, 7),
        [name, "0.042 about to fail", &format!("ERROR: {error}")]
    );
    assert_eq!(
        (outcome.step.as_deref(), outcome.error.as_deref(), outcome.log.as_str()),
        (Some(name), Some(error), "about to fail\n")
    );
    assert!(outcome.said.starts_with("Dockerfile:9\n") && text.ends_with(&outcome.said));
    assert!(matches!(
        events.last(),
        Some(BuildEvent::Failed {
            vertex: 7,
            canceled: false,
            ..
        })
    ));
}

#[test]
fn a_push_that_is_refused_is_a_failed_step() {
    let outcome = read([UNAUTHORIZED]).outcome;
    assert_eq!(outcome.step.as_deref(), Some("exporting to image"));
    assert!(outcome.error.unwrap().ends_with("401 Unauthorized"));
}

#[test]
fn a_build_that_comes_to_no_step_still_has_an_error() {
    let outcome = read([NO_SUCH_TARGET]).outcome;
    assert_eq!(
        (outcome.step, outcome.error.as_deref()),
        (None, Some("target stage \"nosuch\" could not be found"))
    );
}

#[test]
fn plain_progress_passes_through_and_its_failed_step_is_found() {
    let Read {
        text, events, outcome, ..
    } = read([FAILED_PLAIN]);
    assert_eq!((text.as_str(), events.len()), (FAILED_PLAIN, 0));
    assert_eq!(outcome.step, read([FAILED]).outcome.step);
    assert_eq!(outcome.log, "0.050 about to fail\n");
}

#[test]
fn a_build_that_is_cut_off_names_what_was_under_way() {
    let until = FAILED.find("\"error\"").unwrap();
    let cut = FAILED[..until].rfind('\n').unwrap();
    let outcome = read([&FAILED[..cut]]).outcome;
    assert!(outcome.step.unwrap().starts_with("[fails 1/1]"));
    assert_eq!((outcome.error, outcome.log.as_str()), (None, "about to fail\n"));
}

#[test]
fn lines_that_are_no_progress_pass_through() {
    for other in [
        "{\"level\":\"info\"}\n",
        "{not json\n",
        "time=now level=warn\n",
        "[]\n",
        "no end",
    ] {
        assert_eq!(read([other]).text, other);
    }
    assert_eq!(read(["{}\n"]).text, "", "an empty update says nothing");
}

#[test]
fn text_begins_a_line_of_its_own() {
    let log = |data: &str| format!("{{\"logs\":[{{\"vertex\":\"a\",\"stream\":1,\"data\":\"{data}\"}}]}}\n");
    let vertex = "{\"vertexes\":[{\"digest\":\"a\",\"name\":\"RUN\",\"started\":\"2026-01-01T00:00:00Z\"}]}\n";
    let text = read([vertex, &log("aGFsZg=="), "lost connection\n", &log("bGluZQ==")]).text;
    assert_eq!(text, "#1 RUN\n#1 0.000 half\nlost connection\n#1 0.000 line\n");
}

#[test]
fn a_new_attempt_starts_from_nothing() {
    let read = read([FAILED, "{\"orchestra\":\"start\"}\n", CACHED]);
    assert!(read.text.starts_with("#1 [internal]") && !read.text.contains("ERROR"));
    assert_eq!(read.outcome, Outcome::default());
}

#[test]
fn a_line_that_never_ends_is_not_kept() {
    let mut progress = Progress::default();
    let mut text = progress.push(b"{\"logs\":[").text;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..20 {
        text.extend(progress.push(&piece).text);
    }
    assert!(matches!(progress.line, Line::Text));
    assert_eq!(text.len(), 9 + (20 << 20));
}

#[test]
fn vertexes_without_end_are_not_kept() {
    let mut progress = Progress::default();
    for n in 0..view::MAX_VERTEXES + 100 {
        let line = format!(
            "{{\"vertexes\":[{{\"digest\":\"{n}\",\"name\":\"RUN {n}\",\"started\":\"2026-01-01T00:00:00Z\"}}]}}\n"
        );
        let shown = !progress.push(line.as_bytes()).text.is_empty();
        assert_eq!(shown, n < view::MAX_VERTEXES);
    }
}

#[test]
fn a_warning_is_told_once_and_our_own_are_among_them() {
    // `short` is base64 of "lint".
    let lint = r#"{"warnings":[{"vertex":"v","level":1,"short":"bGludA==","url":"https://docs.test/lint"}]}"#;
    let own = r#"{"orchestra":"warning","digest":"","metadata":"the state could not be pruned"}"#;
    let read = read([format!("{lint}\n{lint}\n{own}\n{lint}\n{own}\n")]);
    let told: Vec<_> = read
        .events
        .iter()
        .filter_map(|event| match event {
            BuildEvent::Warning { message, url, .. } => Some((message.as_str(), url.as_deref())),
            _ => None,
        })
        .collect();
    let expected = [
        ("lint", Some("https://docs.test/lint")),
        ("the state could not be pruned", None),
    ];
    assert_eq!(told, expected);
    assert_eq!(read.warnings, ["lint", "the state could not be pruned"]);
    let told = read.text.matches("WARN: the state could not be pruned\n").count();
    assert_eq!(told, 1, "{}", read.text);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_does_not_matter_how_the_bytes_are_cut(cuts in proptest::collection::vec(1usize..400, 1..60), which in 0usize..6) {
        let input = [BUILT, CACHED, FAILED, UNAUTHORIZED, NO_SUCH_TARGET, FAILED_PLAIN][which].as_bytes();
        let mut pieces = Vec::new();
        let mut rest = input;
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let (whole, cut) = (read([input]), read(pieces));
        prop_assert_eq!(whole.text, cut.text);
        prop_assert_eq!(whole.events, cut.events);
        prop_assert_eq!(whole.outcome, cut.outcome);
    }

    #[test]
    fn no_input_is_too_odd(input in proptest::collection::vec(any::<u8>(), 0..300), line in "\\{\"(logs|vertexes|statuses|warnings)\":\\[\\{\"(vertex|digest|data|started)\":[\"0-9a-z]{0,9}\\}\\]\\}\n") {
        let mut progress = Progress::default();
        progress.push(&input);
        progress.push(line.as_bytes());
        progress.finish();
        progress.outcome();
    }
}

#[test]
fn the_metadata_is_that_of_the_last_line_of_the_last_attempt() {
    let line = |digest: &str| {
        format!("{{\"orchestra\":\"metadata\",\"metadata\":{{  \"containerimage.digest\": \"{digest}\"}}}}\n")
    };
    let mut progress = Progress::default();
    let shown = progress.push((line("forged") + &line("true")).as_bytes());
    assert!(shown.text.is_empty(), "it is no output");
    assert_eq!(progress.metadata().unwrap()["containerimage.digest"], "true");
    progress.push(b"{\"orchestra\":\"start\"}\n");
    assert_eq!(progress.metadata(), None);
}
