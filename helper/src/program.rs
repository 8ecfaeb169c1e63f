//! The program: its first argument says which part is asked for.
//!
//! - `keep-log LIMIT:FOLDER [STDOUT STDERR]` keeps a log in a folder: of two fifos, or of what a shim hands to the program of its logging URI (file
//!   descriptors 3 and 4, and 5 to tell that it is ready).

#![deny(unsafe_code)]

mod keep_log;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let part = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
    let done = match (part.to_str(), arguments.as_slice()) {
        (Some("keep-log"), [log]) => keep_log_of_shim(log),
        (Some("keep-log"), [log, stdout, stderr]) => keep_log_of_fifos(log, stdout, stderr),
        _ => {
            eprintln!("orchestra-helper: there is no part {part:?} with these arguments");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orchestra-helper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn keep_log_of_shim(log: &Path) -> io::Result<()> {
    ignore_termination();
    let (limit, folder) = limit_and_folder(log)?;
    let mut ready = inherited(5);
    let streams = [
        (keep_log::STDOUT, inherited(3)),
        (keep_log::STDERR, inherited(4)),
    ];
    let streams = streams.map(|(kind, stream)| (kind, move || Ok(stream)));
    // A shim that is told nothing takes the end of the pipe for an answer.
    keep_log::keep(folder, limit, streams, || {
        let _ = ready.write_all(&[0]);
    })
}

fn keep_log_of_fifos(log: &Path, stdout: &Path, stderr: &Path) -> io::Result<()> {
    ignore_termination();
    let (limit, folder) = limit_and_folder(log)?;
    let streams = [(keep_log::STDOUT, stdout), (keep_log::STDERR, stderr)];
    let streams = streams.map(|(kind, fifo)| (kind, move || File::open(fifo)));
    keep_log::keep(folder, limit, streams, || {})
}

fn limit_and_folder(log: &Path) -> io::Result<(u64, &Path)> {
    let bytes = log.as_os_str().as_bytes();
    let parts = bytes.iter().position(|byte| *byte == b':').and_then(|colon| {
        let limit = std::str::from_utf8(&bytes[..colon]).ok()?.parse().ok()?;
        Some((limit, Path::new(std::ffi::OsStr::from_bytes(&bytes[colon + 1..]))))
    });
    parts.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a log is given as LIMIT:FOLDER"))
}

/// What whoever started this program left open for it.
#[expect(
    unsafe_code,
    reason = "the numbers are the caller's promise; each is taken once, before anything else is opened"
)]
fn inherited(descriptor: i32) -> File {
    // SAFETY: nothing else of this program owns the descriptor.
    unsafe { File::from_raw_fd(descriptor) }
}

/// A shim asks the keeper to end as soon as its container has: what is in the pipes would be lost. It ends with them.
#[expect(unsafe_code, reason = "the standard library has no way to ignore a signal")]
fn ignore_termination() {
    unsafe extern "C" {
        fn signal(number: i32, action: usize) -> usize;
    }
    const SIGTERM: i32 = 15;
    const IGNORE: usize = 1;
    // SAFETY: no handler is set, only the kernel's own.
    unsafe { signal(SIGTERM, IGNORE) };
}
