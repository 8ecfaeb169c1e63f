//! The start program, run as a process.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// Written once: a file that is open for writing while another thread forks can't be executed.
fn program() -> Option<&'static Path> {
    static PROGRAM: LazyLock<Option<(tempfile::TempDir, PathBuf)>> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        std::fs::write(&path, orchestra_helper::program(std::env::consts::ARCH)?).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Some((dir, path))
    });
    PROGRAM.as_ref().map(|(_, path)| path.as_path())
}

fn frame(entries: &[(u8, &str, &[u8])]) -> Vec<u8> {
    let mut frame = u32::try_from(entries.len()).unwrap().to_be_bytes().to_vec();
    for (kind, name, value) in entries {
        frame.push(*kind);
        for part in [name.as_bytes(), value] {
            frame.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes());
            frame.extend_from_slice(part);
        }
    }
    frame
}

fn run(program: &Path, argv: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .arg("init")
        .args(argv)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends early does not read it all.
    child.stdin.take().unwrap().write_all(input).ok();
    child.wait_with_output().unwrap()
}

#[test]
fn it_gives_variables_and_files_to_the_program_and_leaves_it_the_rest_of_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = program() else { return };
    let file = dir.path().join("of/db/secret");
    let path = file.to_str().unwrap();
    let mut input = frame(&[(b'e', "TOKEN", b"hunter2\nline"), (b'f', path, b"\0bytes")]);
    input.extend_from_slice(b"rest\nof it");
    let script = "printf '%s|' \"$TOKEN\" \"$1\"; tr '\\000-\\377' '\\000-\\377'";
    let output = run(program, &["sh", "-c", script, "x", "an argument"], &input);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "hunter2\nline|an argument|rest\nof it"
    );
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(std::fs::read(&file).unwrap(), b"\0bytes");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o400);
}

#[test]
fn what_can_not_be_done_has_its_code_and_says_no_secret() {
    let Some(program) = program() else { return };
    let secret = frame(&[(b'e', "TOKEN", b"hunter2")]);
    // No directory can be made there.
    let unwritable = frame(&[(b'f', "/dev/null/dir/file", b"hunter2")]);
    for (argv, input, code, why) in [
        (&["/no/such/program"][..], secret.as_slice(), 127, "/no/such/program"),
        (&["/"], &secret, 126, "ermission denied"),
        (&[], &secret, 125, "no program"),
        (&["true"], &secret[..9], 125, "read the secrets"),
        (&["true"], &[0xff; 8], 125, "too large"),
        (&["true"], &unwritable, 125, "/dev/null/dir/file"),
    ] {
        let output = run(program, argv, input);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
    }
}
