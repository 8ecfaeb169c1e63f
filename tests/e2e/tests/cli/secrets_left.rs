//! What a run with secrets leaves, searched for them: reports, folders, the store of caches, and all that the engine keeps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use orchestra_e2e::{Dir, Endpoint, Fixture};
use serde_json::{Value, json};

use crate::building::base_image;
use crate::support::{assert_gone, assert_says, dead_runs, left_of, plan, run_id, task, tests, until};

tests![
    what_is_left_of_a_run_holds_no_secret,
    what_is_kept_of_a_build_has_none_of_its_secrets
];

/// What nobody else writes: the value and its forms, of base64 without what depends on the neighbours.
struct Wanted(Vec<String>);

impl Wanted {
    fn of(value: &str) -> Self {
        let hex = |byte: u8| format!("{byte:02x}");
        let mut forms = vec![value.to_owned(), value.bytes().map(hex).collect()];
        for before in ["", "x", "xy"] {
            let text = format!("{before}{value}");
            let skipped = (before.len() * 8).div_ceil(6);
            for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
                forms.push(encoded[skipped..encoded.len() - 1].to_owned());
            }
        }
        // As a page, a form, a JSON text and a shell's argument have it.
        forms.push(value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"));
        let escaped = [
            ('/', "%2F"),
            ('+', "%2B"),
            ('<', "%3C"),
            ('>', "%3E"),
            ('&', "%26"),
            ('\'', "%27"),
        ];
        let percent = |text: String, (from, to): (char, &str)| text.replace(from, to);
        forms.push(escaped.into_iter().fold(value.to_owned(), percent));
        forms.push(value.replace('<', "\\u003c"));
        forms.push(value.replace('\'', "'\\''"));
        Self(forms)
    }

    fn assert_not_in(&self, what: &str, text: &str) {
        for wanted in &self.0 {
            assert!(!text.contains(wanted), "{wanted:?} is in {what}:\n{text}");
        }
    }

    /// Searches all files of a folder, whatever they are.
    fn assert_not_in_folder(&self, folder: &Path) {
        let mut grep = Command::new("grep");
        grep.args([
            "--recursive",
            "--text",
            "--fixed-strings",
            "--files-with-matches",
            "--devices=skip",
        ]);
        for wanted in &self.0 {
            grep.args(["-e", wanted]);
        }
        // What is removed while it is read is no error of ours.
        let output = grep.args(["--no-messages", "--"]).arg(folder).output().expect("grep");
        let found = String::from_utf8_lossy(&output.stdout);
        assert!(found.is_empty(), "the secret is in these files:\n{found}");
    }
}

fn what_is_left_of_a_run_holds_no_secret(fixture: &Fixture) {
    let id = run_id("left");
    let value = format!("{id}/Value+<42>&'q");
    let wanted = Wanted::of(&value);
    let script = r#"
echo kept > kept/file; echo task-is-awake; sleep 6
for out in 1 2; do
  echo "plain $TOKEN"; printf %s "$TOKEN" | base64; printf %s "xy$TOKEN" | base64
  printf %s "$TOKEN" | od -An -v -tx1 | tr -d ' \n'; echo; printf %s "x$TOKEN" | base64 | tr '+/' '-_'
  printf %s "$TOKEN" | sed "s:/:%2F:g; s:+:%2B:g; s:<:%3C:g; s:>:%3E:g; s:&:%26:g; s:':%27:g"; echo
  printf %s "$TOKEN" | sed 's:<:\\u003c:g'; echo; printf %s "$TOKEN" | sed "s:':'\\\\'':g"; echo
  i=0; while [ $i -lt ${#TOKEN} ]; do printf %s "${TOKEN:$i:1}"; i=$((i+1)); done; echo
  cat /run/secrets/token; echo
  exec >&2
done
"#;
    let mut prints = task(fixture, "prints", script);
    prints["env"] = json!({"TOKEN": "secret:TOKEN"});
    prints["secret_env"] = json!("hidden");
    prints["secret_files"] = json!({"/run/secrets/token": "secret:TOKEN"});
    prints["config"]["caches"] = json!([{"path": "kept"}]);
    prints["config"]["outputs"] = json!([{"name": "context"}]);
    let dockerfile = |ends: &str| {
        let shows = "cat /run/secrets/TOKEN; base64 /run/secrets/TOKEN >&2";
        format!(
            "FROM {}\nRUN --mount=type=secret,id=TOKEN echo build-is-awake; sleep 8; {shows}; {ends}\n",
            base_image(fixture)
        )
    };
    prints["env"]["DOCKERFILE"] = json!(dockerfile("echo built > /built"));
    prints["env"]["FAILS"] = json!(dockerfile("exit 3"));
    let run = &mut prints["config"]["run"]["args"][1];
    let writes = "printf %s \"$DOCKERFILE\" > context/Dockerfile; printf %s \"$FAILS\" > context/Fails";
    *run = json!(format!("{writes}\n{script}"));
    let tag = format!("{}/e2e/{id}:1", fixture.registry);
    let build = json!({"name": "built", "context": "context", "tag": tag, "push": true, "network": "host",
        "image": fixture.buildkit_image, "registry": {"insecure": true, "username": "robot", "password": "secret:TOKEN"},
        "secrets": {"TOKEN": "secret:TOKEN"}, "caches": [{"path": "/var/lib/buildkit"}]});
    let mut fails = build.clone();
    (fails["name"], fails["dockerfile"]) = (json!("fails"), json!("Fails"));
    fails.as_object_mut().expect("a map").remove("caches");
    let steps = [
        prints,
        json!({"build_image": build}),
        json!({"try": {"build_image": fails}}),
    ];
    let dir = Dir::with([("p.yml", plan(steps)), ("tmp/.keep", String::new())]);
    let store = format!("file://{}", dir.file("store").display());
    let reports = ["--report", "run.html", "--junit", "run.xml"];
    let given = ["run", "p.yml", "--json", "--run-id", &id, "--secret", "TOKEN=-"];
    let running = fixture
        .orchestra(given.iter().chain(&reports))
        .env("XDG_STATE_HOME", dir.file("state"))
        .dir(dir.path())
        .env("ORCHESTRA_CACHES__STORE", &store)
        .env("ORCHESTRA_LOG", "debug")
        .env("TMPDIR", dir.file("tmp"))
        .input(value.as_str())
        .start();
    _ = running.line_with("task-is-awake");
    let told = fixture.engine.inspect(&format!("orchestra.{id}.1.prints"));
    wanted.assert_not_in(
        "what the engine tells",
        &told.expect("the engine answers").texts.join("\n"),
    );
    let state = dir.file(&format!("state/orchestra/runs/{id}.sqlite"));
    assert!(state.exists(), "{}", state.display());
    wanted.assert_not_in_folder(dir.path());
    // Of both builds, what the engine tells while a step of theirs has the secret.
    for build in ["built", "fails"] {
        let step = format!("\"{build}\"");
        // The step's own name has it too, with what comes after.
        let awake = |line: &str| !line.contains("build-is-awake;") && line.contains(&step);
        while !awake(&running.line_with("build-is-awake")) {}
        let containers = left_of(fixture, &id).0;
        let mut containers = containers.iter().filter_map(|thing| thing.strip_prefix("container "));
        let container = containers
            .find(|name| name.contains(build))
            .expect("the build's container");
        let told = fixture.engine.inspect(container).expect("the engine answers");
        wanted.assert_not_in("what the engine tells of a build", &told.texts.join("\n"));
    }
    let finished = running.finish();
    assert_eq!(finished.code, 0, "{finished}");
    assert_says(&finished, &["exit code: 3"]);
    wanted.assert_not_in("the report", &finished.all());
    assert!(finished.all().contains("***REDACTED***"), "{finished}");
    assert_gone(fixture, &id, &finished);

    // What is in the store is compressed.
    let caches = |args: &[&str]| {
        let caches = fixture.orchestra(["caches"].iter().chain(args)).dir(dir.path());
        let done = caches.env("ORCHESTRA_CACHES__STORE", &store).run();
        assert_eq!(done.code, 0, "{done}");
        done.stdout()
    };
    let listed: Value = serde_json::from_str(&caches(&["list", "--json"])).expect("JSON");
    let keys: Vec<&str> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cache| cache["key"].as_str())
        .collect();
    assert_eq!(keys.len(), 2, "{listed}\n{finished}");
    for (at, key) in keys.iter().enumerate() {
        caches(&["export", key, &format!("export-{at}.tar")]);
    }
    assert!(fs::metadata(dir.file("export-1.tar")).expect("a file").len() > 0);
    let saved = fs::read_to_string(dir.file("run.html")).expect("a report");
    assert!(saved.contains("***REDACTED***") && dir.file("run.xml").exists());
    wanted.assert_not_in_folder(dir.path());
    if fixture.is_private {
        wanted.assert_not_in_folder(&folder_of(fixture));
    }
}

fn what_is_kept_of_a_build_has_none_of_its_secrets(fixture: &Fixture) {
    if !fixture.is_private {
        println!("left out: a user's own engine is not searched");
        return;
    }
    let _alone = dead_runs();
    let id = run_id("kept-build");
    let wanted = Wanted::of(&format!("{id}/Value+<42>&'q"));
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=secret,id=TOKEN test -s /run/secrets/TOKEN\n",
        base_image(fixture)
    );
    let mut makes = task(fixture, "makes", "printf %s \"$DOCKERFILE\" > context/Dockerfile");
    makes["env"] = json!({"DOCKERFILE": dockerfile});
    makes["config"]["outputs"] = json!([{"name": "context"}]);
    let build = json!({"build_image": {"name": "built", "context": "context", "network": "host", "push": true,
        "tag": format!("{}/e2e/{id}:1", fixture.registry), "image": fixture.buildkit_image,
        "registry": {"insecure": true, "username": "robot", "password": "secret:TOKEN"},
        "secrets": {"TOKEN": "secret:TOKEN"}}});
    let dir = Dir::with([("p.yml", plan([makes, build]))]);
    let given = ["run", "p.yml", "--keep", "--run-id", &id, "--secret", "TOKEN=-"];
    let running = fixture.orchestra(given).dir(dir.path()).input(wanted.0[0].as_str());
    let finished = running.run();
    assert_eq!(finished.code, 0, "{finished}");
    let left = left_of(fixture, &id);
    assert!(left.0.iter().any(|thing| thing.starts_with("container")), "{left:?}");
    wanted.assert_not_in_folder(&folder_of(fixture));
    until("the kept run is collected", Duration::from_secs(20), || {
        assert_eq!(fixture.orchestra(["gc"]).run().code, 0);
        left_of(fixture, &id).0.is_empty()
    });
}

/// The folder of a private engine: it keeps all that it has beside its socket.
fn folder_of(fixture: &Fixture) -> PathBuf {
    let Endpoint::Unix(socket) = fixture.engine.endpoint() else {
        panic!("a private engine listens on a socket");
    };
    let folder = socket.parent().expect("a folder").to_owned();
    assert!(folder.join("data").is_dir(), "{}", folder.display());
    folder
}
