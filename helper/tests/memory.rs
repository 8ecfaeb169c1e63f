//! What a tar says of its files takes no memory for each of those that several threads make.

#[path = "support/members.rs"]
mod members;

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use orchestra_helper::tree::unpack;
use tempfile::TempDir;

use self::members::member;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The most that this process has had resident, in KiB.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("the kernel does not tell")?.parse()?)
}

/// A record of an extended header, whose length counts its own digits.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

#[test]
fn what_is_said_of_all_files_is_held_once() -> Result<()> {
    let to = TempDir::new()?;
    // A label that is left out, so that nothing fails because of its length.
    let said = record("SCHILY.xattr.security.selinux", &"x".repeat(2 << 20));
    let global = member("global", b'g', "", 0, &said);
    let files: Vec<u8> = (0..200)
        .flat_map(|at| member(&at.to_string(), b'0', "", 0, b""))
        .collect();
    let before = peak()?;
    unpack(
        to.path(),
        Path::new(""),
        &mut Cursor::new(&global).chain(Cursor::new(files)),
    )?;
    assert_eq!(fs::read_dir(to.path())?.count(), 200);
    let grown = peak()? - before;
    assert!(grown < 64 << 10, "{grown} KiB more are resident");

    // And what all files have said of them together is bounded.
    let many = global.repeat(9);
    let refused = unpack(to.path(), Path::new(""), &mut Cursor::new(many)).unwrap_err();
    assert!(refused.to_string().contains("global headers"), "{refused}");
    Ok(())
}
