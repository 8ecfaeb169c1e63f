//! What a run with secrets leaves, searched for them: reports, folders, the store of caches, and all that the engine keeps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use orchestra_e2e::{Dir, Endpoint, Fixture};
use serde_json::{Value, json};

use crate::building::base_image;
use crate::support::{assert_gone, plan, run_id, task, tests};

tests![what_is_left_of_a_run_holds_no_secret];

/// What nobody else writes: the value, and its base64 without what depends on the neighbours.
struct Wanted(Vec<String>);

impl Wanted {
    fn of(value: &str) -> Self {
        let encoded = STANDARD_NO_PAD.encode(value);
        Self(vec![value.to_owned(), encoded[..encoded.len() - 2].to_owned()])
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
    let dockerfile = format!(
        "FROM {}\nRUN --mount=type=secret,id=TOKEN cat /run/secrets/TOKEN; base64 /run/secrets/TOKEN >&2; echo built > /built\n",
        base_image(fixture)
    );
    prints["env"]["DOCKERFILE"] = json!(dockerfile);
    let run = &mut prints["config"]["run"]["args"][1];
    *run = json!(format!("printf %s \"$DOCKERFILE\" > context/Dockerfile\n{script}"));
    let tag = format!("{}/e2e/{id}:1", fixture.registry);
    let build = json!({"build_image": {"name": "built", "context": "context", "tag": tag, "push": true, "network": "host",
        "image": fixture.buildkit_image, "registry": {"insecure": true, "username": "robot", "password": "secret:TOKEN"},
        "secrets": {"TOKEN": "secret:TOKEN"}, "caches": [{"path": "/var/lib/buildkit"}]}});
    let dir = Dir::with([("p.yml", plan([prints, build])), ("tmp/.keep", String::new())]);
    let store = format!("file://{}", dir.file("store").display());
    let running = fixture
        .orchestra(["run", "p.yml", "--json", "--run-id", &id, "--secret", "TOKEN=-"])
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
    let finished = running.finish();
    assert_eq!(finished.code, 0, "{finished}");
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
    wanted.assert_not_in_folder(dir.path());
    if fixture.is_private {
        wanted.assert_not_in_folder(&folder_of(fixture));
    }
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
