//! The program: its first argument says which part is asked for.
//!
//! - `pack-tree ROOT PATH…` writes files of a tree to its output as a tar;
//! - `pack-tree-unless FINGERPRINT ROOT PATH…` does so, unless the tree has that fingerprint;
//! - `unpack-tree ROOT PATH` unpacks a tar from its input into a directory of a tree;
//! - `fill-tree ROOT` unpacks one into the whole tree, and writes its fingerprint to its output;
//! - `init PROGRAM ARGUMENT…` reads secrets from its input and becomes the program;
//! - `idle` does nothing until it is killed: a container to execute the others in.
//!
//! It exits with 0, or with a code of [`exit`] and the reason on its error output.

#![deny(unsafe_code)]

mod exit;
mod keep_log;
mod init;
mod shim;
#[expect(unused_imports, dead_code, reason = "what goes on within one process is no part of it")]
mod tree;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use tree::TreeError;

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let part = arguments.next().unwrap_or_default();
    if part == "init" {
        return init::run(arguments);
    }
    let arguments: Vec<OsString> = arguments.collect();
    let arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
    let done = match (part.to_str(), arguments.as_slice()) {
        (Some("pack-tree"), [root, paths @ ..]) => {
            piped(io::stdout().as_fd()).and_then(|mut output| tree::pack(root, paths, &mut output))
        }
        (Some("pack-tree-unless"), [fingerprint, root, paths @ ..]) => match tree::fingerprint(root) {
            Ok(found) if fingerprint.as_os_str() == found.as_str() => return ExitCode::from(exit::UNCHANGED),
            // What can't be looked at is told by packing it.
            _ => piped(io::stdout().as_fd()).and_then(|mut output| tree::pack(root, paths, &mut output)),
        },
        (Some("unpack-tree"), [root, path]) => unpack(root, path),
        (Some("fill-tree"), [root]) => unpack(root, Path::new(""))
            .and_then(|()| tree::fingerprint(root))
            .map(|fingerprint| println!("{fingerprint}")),
        (Some("keep-log"), [log]) => keep_log_of_shim(log).map_err(keeping),
        (Some("keep-log"), [log, stdout, stderr]) => keep_log_of_fifos(log, stdout, stderr).map_err(keeping),
        (Some("idle"), []) => loop {
            std::thread::park();
        },
        _ => {
            eprintln!("orchestra-helper: there is no part {part:?} with these arguments");
            return ExitCode::from(exit::USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            // An engine may tell who feeds a process that has ended of a broken connection, and of no exit. Who reads the
            // line above ends the input.
            if part == "unpack-tree" || part == "fill-tree" {
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            }
            ExitCode::from(code(&error))
        }
    }
}

fn unpack(root: &Path, path: &Path) -> Result<(), TreeError> {
    piped(io::stdin().as_fd()).and_then(|mut input| tree::unpack(root, path, &mut input))
}

/// The standard library's own handles have a small buffer each.
fn piped(end: BorrowedFd<'_>) -> Result<File, TreeError> {
    let own = end.try_clone_to_owned().map_err(|source| TreeError::Io {
        doing: "use the standard input and output".to_owned(),
        source,
    })?;
    let file = File::from(own);
    tree::widen_pipe(&file);
    Ok(file)
}

fn code(error: &TreeError) -> u8 {
    match error {
        TreeError::NotFound(_) => exit::NOT_FOUND,
        TreeError::Invalid(_) => exit::INVALID,
        TreeError::Changed(_) => exit::IO,
        TreeError::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => exit::DISK_FULL,
            _ => exit::IO,
        },
    }
}

fn keeping(source: io::Error) -> TreeError {
    TreeError::Io {
        doing: "keep a log".to_owned(),
        source,
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
    // Held: what has its place later is another container's log.
    let own = File::open(folder)?;
    keep_log::forget_exit(folder)?;
    let (noted, done) = std::sync::mpsc::channel();
    // It ends with this program, whatever the shim answers.
    std::thread::spawn(move || noted.send(note_exit(&own)));
    // A shim that is told nothing takes the end of the pipe for an answer.
    let kept = keep_log::keep(folder, limit, streams, || {
        let _ = ready.write_all(&[0]);
    });
    // The streams may end before what the shim has answered is on the disk.
    let _ = done.recv_timeout(std::time::Duration::from_secs(1));
    kept
}

/// Notes beside the log how the container ended: an engine that is away when that happens may know nothing of it later. A
/// shim starts its keeper in its bundle, and tells it whose it is.
fn note_exit(folder: &File) -> io::Result<()> {
    let [id, namespace] = ["CONTAINER_ID", "CONTAINER_NAMESPACE"].map(|name| env::var(name).unwrap_or_default());
    let code = shim::wait(Path::new("."), &id)?;
    let out_of_memory = shim::out_of_memory(&format!("{namespace}/{id}"));
    let folder = format!("/proc/self/fd/{}", folder.as_raw_fd());
    keep_log::note_exit(Path::new(&folder), shim::Exit { code, out_of_memory })
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
        Some((limit, Path::new(OsStr::from_bytes(&bytes[colon + 1..]))))
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
