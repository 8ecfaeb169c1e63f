//! Secrets and passphrases that a person types, on a terminal made by `script`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use orchestra_e2e::{Dir, Fixture};

use crate::support::tests;

tests![
    a_value_and_a_passphrase_are_typed_without_echo,
    what_is_pasted_of_many_lines_is_refused_and_nothing_of_it_is_shown,
    a_terminal_has_its_echo_back_when_nothing_was_given,
];

const LIMIT: Duration = Duration::from_secs(30);

/// A program on a terminal.
struct Typed {
    child: Child,
    shown: Receiver<u8>,
    seen: String,
}

impl Typed {
    fn start(fixture: &Fixture, dir: &Dir, arguments: &str) -> Self {
        Self::run(dir, &Self::command(fixture, arguments))
    }

    fn command(fixture: &Fixture, arguments: &str) -> String {
        format!("{} secrets --file secrets.db {arguments}", fixture.binary().display())
    }

    fn run(dir: &Dir, command: &str) -> Self {
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", command, "/dev/null"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`script` of util-linux");
        let mut stdout = child.stdout.take().expect("a pipe");
        let (sent, shown) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while matches!(stdout.read(&mut byte), Ok(1)) && sent.send(byte[0]).is_ok() {}
        });
        Self {
            child,
            shown,
            seen: String::new(),
        }
    }

    /// Types in answer to a prompt, at once.
    fn answer(&mut self, prompt: &str, typed: &str) {
        self.paste(prompt, &format!("{typed}\n"));
    }

    /// The same to the byte.
    fn paste(&mut self, prompt: &str, pasted: &str) {
        let end = Instant::now() + LIMIT;
        while !self.seen.ends_with(prompt) {
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(byte) => self.seen.push(char::from(byte)),
                Err(_) => panic!("never asked for {prompt:?}; it said {:?}", self.seen),
            }
        }
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(pasted.as_bytes()).expect("it reads");
        stdin.flush().expect("it reads");
    }

    /// Its exit code, and all that was shown.
    fn end(mut self) -> (i32, String) {
        let end = Instant::now() + LIMIT;
        while let Ok(byte) = self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.seen.push(char::from(byte));
        }
        let status = self.child.wait().expect("it ends");
        (status.code().unwrap_or(-1), self.seen)
    }
}

fn a_value_and_a_passphrase_are_typed_without_echo(fixture: &Fixture) {
    let dir = Dir::with([("empty", "")]);
    let mut set = Typed::start(fixture, &dir, "set A");
    set.answer("new passphrase: ", "correct horse");
    set.answer("new passphrase again: ", "correct horse");
    set.answer("value of A: ", "typed-value");
    let (code, seen) = set.end();
    assert_eq!(code, 0, "{seen}");
    assert!(!seen.contains("horse") && !seen.contains("typed-value"), "{seen}");

    let mut get = Typed::start(fixture, &dir, "get A --reveal");
    get.answer("passphrase of secrets.db: ", "correct horse");
    let (code, seen) = get.end();
    assert!(
        code == 0 && seen.ends_with("typed-value") && !seen.contains("horse"),
        "{seen}"
    );

    let mut wrong = Typed::start(fixture, &dir, "get A --reveal");
    wrong.answer("passphrase of secrets.db: ", "wrong horse");
    let (code, seen) = wrong.end();
    assert!(code == 2 && seen.contains("the passphrase does not open"), "{seen}");

    let mut rekey = Typed::start(fixture, &dir, "rekey");
    rekey.answer("passphrase of secrets.db: ", "correct horse");
    rekey.answer("new passphrase: ", "better battery");
    rekey.answer("new passphrase again: ", "bitter battery");
    let (code, seen) = rekey.end();
    assert!(code == 2 && seen.contains("the two passphrases differ"), "{seen}");
    let mut rekey = Typed::start(fixture, &dir, "rekey");
    rekey.answer("passphrase of secrets.db: ", "correct horse");
    rekey.answer("new passphrase: ", "better battery");
    rekey.answer("new passphrase again: ", "better battery");
    let (code, seen) = rekey.end();
    assert!(code == 0 && seen.contains("1 secret is sealed anew"), "{seen}");

    let mut new = Typed::start(fixture, &dir, "get A --reveal");
    new.answer("passphrase of secrets.db: ", "better battery");
    let (code, seen) = new.end();
    assert!(code == 0 && seen.ends_with("typed-value"), "{seen}");
}

fn a_terminal_has_its_echo_back_when_nothing_was_given(fixture: &Fixture) {
    let dir = Dir::with([("key", "a key that opens the file, long enough\n")]);
    std::fs::set_permissions(dir.file("key"), std::fs::Permissions::from_mode(0o600)).expect("permissions");
    let set = Typed::command(fixture, "--key-file key set A");
    let mut typed = Typed::run(
        &dir,
        &format!("{set}; echo ended $?; stty -a | tr ' ;' '\\n\\n' | grep -w echo"),
    );
    // Ctrl-C, in the middle of a line.
    typed.paste("value of A: ", "hunter2\x03");
    let (_, seen) = typed.end();
    assert!(seen.contains("ended 130") && !seen.contains("hunter2"), "{seen}");
    assert!(seen.trim_end().ends_with("\necho"), "{seen}");
}

fn what_is_pasted_of_many_lines_is_refused_and_nothing_of_it_is_shown(fixture: &Fixture) {
    let dir = Dir::with([("key", "a key that opens the file, long enough\n")]);
    std::fs::set_permissions(dir.file("key"), std::fs::Permissions::from_mode(0o600)).expect("permissions");
    let too_long = format!("{}\n", "x".repeat(5000));
    for (pasted, why) in [
        (
            "-----BEGIN KEY-----\nhunter2\n-----END KEY-----\n",
            "more than one line was typed",
        ),
        ("user\nhunter2", "more than one line was typed"),
        (&too_long, "longer than a terminal gives"),
    ] {
        let mut set = Typed::start(fixture, &dir, "--key-file key set A");
        set.paste("value of A: ", pasted);
        let (code, seen) = set.end();
        assert!(
            code == 2 && seen.contains(why) && seen.contains("--from-file"),
            "{seen}"
        );
        assert!(!seen.contains("hunter2") && !seen.contains("xxx"), "{seen}");
    }
    let listed = fixture.orchestra(["secrets", "--file", "secrets.db", "--key-file", "key", "list"]);
    let listed = listed.dir(dir.path()).run();
    assert!(!listed.stdout().contains('A'), "{listed}");
}
