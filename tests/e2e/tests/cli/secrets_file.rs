//! The encrypted file of secrets.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use orchestra_e2e::{Dir, Finished, Fixture};
use serde_json::{Value, json};

use crate::support::{assert_says, plan, task, tests, until};

tests![
    secrets_are_kept_in_an_encrypted_file_from_run_to_run,
    processes_that_write_at_once_lose_nothing_of_each_other,
    a_process_that_is_killed_while_it_writes_leaves_the_old_or_the_new,
    the_program_can_not_be_dumped_and_a_file_that_is_read_only_is_told,
];

fn keyed(files: impl IntoIterator<Item = (&'static str, String)>) -> Dir {
    let dir = Dir::with(files);
    for (name, byte) in [("key", 7), ("other", 8)] {
        fs::write(dir.file(name), [byte; 32]).expect("a key");
        fs::set_permissions(dir.file(name), fs::Permissions::from_mode(0o600)).expect("permissions");
    }
    dir.write("orchestra.toml", "[secrets]\nfile = 'secrets.db'\nkey_file = 'key'\n");
    dir
}

fn secrets_are_kept_in_an_encrypted_file_from_run_to_run(fixture: &Fixture) {
    let mut prints = task(fixture, "prints", "echo \"<$TOKEN>\"; [ \"$TOKEN\" = \"$WANTED\" ]");
    prints["env"] = json!({"TOKEN": "secret:TOKEN", "WANTED": "((WANTED))"});
    let dir = keyed([("p.yml", plan([prints]))]);
    let secrets = |args: &[&str], input: &str| {
        let args = ["secrets"].iter().chain(args);
        fixture.orchestra(args).dir(dir.path()).input(input).run()
    };
    let good = |args: &[&str], input: &str| {
        let finished = secrets(args, input);
        assert_eq!(finished.code, 0, "{finished}");
        finished
    };
    good(&["set", "TOKEN"], "global-value\n");
    good(&["set", "TOKEN", "--pipeline", "p"], "pipeline-value\n");
    good(&["set", "WANTED", "--pipeline", "p"], "pipeline-value\n");
    let listed = good(&["list"], "");
    assert_says(&listed, &["TOKEN", "global", "pipeline p"]);
    assert!(!listed.all().contains("-value"), "{listed}");
    let json: Value = serde_json::from_str(&good(&["list", "--json"], "").stdout()).expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(3));
    let ran = fixture.orchestra(["run", "p.yml"]).dir(dir.path()).run();
    assert_eq!(ran.code, 0, "{ran}");
    assert!(!ran.all().contains("-value"), "{ran}");
    for value in [&["a", "shown-value"][..], &["--shown-value"], &["-shown-value=1"]] {
        let refused = secrets(&[&["set", "TOKEN"], value].concat(), "");
        assert_eq!(refused.code, 2, "{refused}");
        assert!(!refused.all().contains("shown-value"), "{refused}");
    }
    for command in [&["get", "TOKEN", "--reveal"][..], &["rm", "TOKEN"], &["rekey"]] {
        let refused = secrets(&[command, &["--file", "typo.db"]].concat(), "");
        assert_eq!(refused.code, 2, "{refused}");
        assert_says(&refused, &["there is no file of secrets typo.db", "hint:"]);
    }
    let refused = secrets(&["get", "TOKEN"], "");
    assert_eq!(refused.code, 2, "{refused}");
    assert_says(&refused, &["--reveal"]);
    assert_eq!(good(&["get", "TOKEN", "--reveal"], "").stdout(), "global-value");
    good(&["rm", "TOKEN"], "");
    assert_says(
        &secrets(&["get", "TOKEN", "--reveal"], ""),
        &["there is no secret TOKEN (global)"],
    );
    good(&["rekey", "--new-key-file", "other"], "");
    let stale = secrets(&["get", "TOKEN", "--pipeline", "p", "--reveal"], "");
    assert_eq!(stale.code, 2, "{stale}");
    assert_says(&stale, &["key does not open the secrets' file secrets.db", "hint:"]);
    good(
        &["get", "TOKEN", "--pipeline", "p", "--reveal", "--key-file", "other"],
        "",
    );
    for (args, input, says) in [
        (&["set", "odd key"][..], "x", "contains ' '"),
        (&["set", "EMPTY", "--key-file", "other"], "", "is empty"),
        (
            &["set", "LARGE", "--key-file", "other"],
            &*"x".repeat((1 << 20) + 1),
            "at most 1048576 are kept",
        ),
        (&["set", "K", "--key-file", "none"], "x", "there is no key file none"),
    ] {
        let refused = secrets(args, input);
        assert_eq!(refused.code, 2, "{refused}");
        assert_says(&refused, &[says]);
    }
    fs::set_permissions(dir.file("key"), fs::Permissions::from_mode(0o644)).expect("permissions");
    assert_says(
        &secrets(&["set", "K"], "x"),
        &["can be read or written by others (mode 644)", "chmod 600 key"],
    );
}

fn processes_that_write_at_once_lose_nothing_of_each_other(fixture: &Fixture) {
    const WRITERS: usize = 8;
    let dir = keyed([]);
    let secrets = |args: &[&str]| fixture.orchestra(["secrets"].iter().chain(args)).dir(dir.path());
    let value = |writer: usize, round: usize| format!("value-{writer}-{round}");
    // The file is made by one of them, whichever comes first.
    for round in 0..3 {
        let writers: Vec<_> = (0..WRITERS)
            .flat_map(|writer| [(writer, format!("OWN-{writer}")), (writer, "SHARED".to_owned())])
            .map(|(writer, key)| secrets(&["set", &key]).input(value(writer, round)).start())
            .collect();
        for writer in writers {
            let finished = writer.finish();
            assert_eq!(finished.code, 0, "{finished}");
        }
        for writer in 0..WRITERS {
            let got = secrets(&["get", &format!("OWN-{writer}"), "--reveal"]).run();
            assert_eq!(got.stdout(), value(writer, round), "{got}");
        }
        let shared = secrets(&["get", "SHARED", "--reveal"]).run().stdout();
        assert!((0..WRITERS).any(|writer| shared == value(writer, round)), "{shared}");
    }
    let listed = secrets(&["list", "--json"]).run().stdout();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed.as_array().map(Vec::len), Some(WRITERS + 1));
}

/// Kills a command that changes the file, `after` it began to. Whether that was in the middle: `SQLite` then takes what was
/// written back from its journal, which is still there.
fn is_cut_off(fixture: &Fixture, dir: &Dir, args: &[&str], input: &str, after: Duration) -> bool {
    let journal = dir.file("secrets.db-journal");
    // One of a process that was killed before that is left by all who open the file. Any other is gone by now.
    fs::remove_file(&journal).ok();
    let mut command = fixture
        .orchestra(["secrets"].iter().chain(args))
        .dir(dir.path())
        .into_command();
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    write!(stdin, "{input}").expect("it reads");
    drop(stdin);
    while !is_hot(&journal) && child.try_wait().expect("its state").is_none() {
        std::thread::sleep(Duration::from_micros(100));
    }
    std::thread::sleep(after);
    child.kill().ok();
    child.wait().expect("it ends");
    is_hot(&journal)
}

/// Whether the file itself may have been touched: then `SQLite` has made the head of its journal other than zero.
fn is_hot(journal: &Path) -> bool {
    let mut first = [0];
    fs::File::open(journal).is_ok_and(|mut journal| journal.read_exact(&mut first).is_ok() && first != [0])
}

fn a_process_that_is_killed_while_it_writes_leaves_the_old_or_the_new(fixture: &Fixture) {
    const ROUNDS: u32 = 4;
    /// Until a set and a rekey were cut off in the middle, however busy the machine is.
    const MOST: u32 = 60;
    /// As large as a value may be: all together are more than what `SQLite` keeps in memory, so that a rekey writes into
    /// the file itself before it is done.
    const LARGE: usize = 1 << 20;
    let dir = keyed([]);
    let run = |args: &[&str], input: &str| {
        fixture
            .orchestra(["secrets"].iter().chain(args))
            .dir(dir.path())
            .input(input)
            .run()
    };
    let names = ["A", "B", "C"];
    let mut letters = ["a"; 3];
    for name in names {
        assert_eq!(run(&["set", name], &"a".repeat(LARGE)).code, 0);
    }
    let (mut sets, mut rekeys) = (0, 0);
    for round in 0..MOST {
        if round >= ROUNDS && sets > 0 && rekeys > 0 {
            break;
        }
        let letter = if round % 2 == 0 { "x" } else { "y" };
        let after = Duration::from_micros(300) * (round % 4);
        sets += u32::from(is_cut_off(fixture, &dir, &["set", "A"], &letter.repeat(LARGE), after));
        let value = run(&["get", "A", "--reveal"], "");
        assert_eq!(value.code, 0, "{value}");
        let value = value.stdout();
        assert_eq!(value.len(), LARGE, "half of a value");
        let whole = [letters[0], letter].into_iter().find(|one| value == one.repeat(LARGE));
        letters[0] = whole.expect("neither the old nor the new");

        let after = Duration::from_millis(2) * (round % 8);
        rekeys += u32::from(is_cut_off(
            fixture,
            &dir,
            &["rekey", "--new-key-file", "other"],
            "",
            after,
        ));
        let mut is_new = false;
        for (name, letter) in names.into_iter().zip(letters) {
            let opened = ["key", "other"].map(|key| run(&["get", name, "--reveal", "--key-file", key], ""));
            let values: Vec<_> = opened
                .iter()
                .filter(|one| one.code == 0)
                .map(Finished::stdout)
                .collect();
            assert_eq!(values.len(), 1, "{name} is opened by one of the keys");
            assert!(values[0] == letter.repeat(LARGE), "{name} is as it was");
            is_new = opened[1].code == 0;
        }
        if is_new {
            let back = run(&["rekey", "--key-file", "other", "--new-key-file", "key"], "");
            assert_eq!(back.code, 0, "{back}");
        }
    }
    assert!(
        sets > 0 && rekeys > 0,
        "cut off in the middle: {sets} sets, {rekeys} rekeys of {MOST}"
    );
}

fn the_program_can_not_be_dumped_and_a_file_that_is_read_only_is_told(fixture: &Fixture) {
    let dir = keyed([]);
    let set = |input: &str| fixture.orchestra(["secrets", "set", "A"]).dir(dir.path()).input(input);
    assert_eq!(set("value-0").run().code, 0);
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root can give files away and run as another user");
        return;
    }
    // Of a process that can't be dumped, /proc belongs to root, whoever it is.
    for name in ["key", "secrets.db"] {
        std::os::unix::fs::chown(dir.file(name), Some(65534), Some(65534)).expect("chown");
    }
    fs::set_permissions(dir.file("secrets.db"), fs::Permissions::from_mode(0o444)).expect("permissions");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let mut command = set("").user(65534, 65534).into_command();
    let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let environ = format!("/proc/{}/environ", child.id());
    until("it can't be dumped", Duration::from_secs(10), || {
        fs::metadata(&environ).is_ok_and(|meta| meta.uid() == 0)
    });
    write!(child.stdin.take().expect("a pipe"), "value-1").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("can't be written to"),
        "{said}"
    );
    let value = fixture
        .orchestra(["secrets", "get", "A", "--reveal"])
        .dir(dir.path())
        .run();
    assert_eq!(value.stdout(), "value-0", "{value}");
}
