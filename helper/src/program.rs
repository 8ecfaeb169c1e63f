//! The program: its first argument says which part is asked for.
//!
//! - `pack-tree ROOT PATH…` writes files of a tree to its output as a tar;
//! - `unpack-tree ROOT PATH` unpacks a tar from its input into a directory of a tree;
//! - `init PROGRAM ARGUMENT…` reads secrets from its input and becomes the program;
//! - `idle` does nothing until it is killed: a container to execute the others in.
//!
//! It exits with 0, or with a code of [`exit`] and the reason on its error output.

#![deny(unsafe_code)]

mod exit;
mod init;
mod tree;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
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
        (Some("unpack-tree"), [root, path]) => {
            piped(io::stdin().as_fd()).and_then(|mut input| tree::unpack(root, path, &mut input))
        }
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
            if part == "unpack-tree" {
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            }
            ExitCode::from(code(&error))
        }
    }
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
        TreeError::Io { source, .. } => match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => exit::DISK_FULL,
            _ => exit::IO,
        },
    }
}
