//! `init PROGRAM ARGUMENT…`: the first process of a container with hidden secrets.
//!
//! It reads a frame from its standard input: a number of entries, then for each a kind (`e` for a variable, `f` for a
//! file), a name and a value, both after their length; numbers are 32 bits, most significant byte first. Files are made
//! with mode 0400, variables put into the environment, and the program executed in its place. What follows the frame in
//! the input is the program's: not a byte of it is read here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// More was not sent by us.
const MOST: u32 = 16 << 20;

/// What one frame holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Variables and their values.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Paths of files and their content.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a frame, and nothing behind it.
///
/// # Errors
/// Those of the reader; [`InvalidData`](io::ErrorKind::InvalidData) if it is no frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let mut frame = Frame::default();
    for _ in 0..number(from)? {
        let mut kind = [0];
        from.read_exact(&mut kind)?;
        let entry = (bytes(from)?, bytes(from)?);
        match kind[0] {
            b'e' => frame.env.push(entry),
            b'f' => frame.files.push(entry),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the secrets have an unknown kind",
                ));
            }
        }
    }
    Ok(frame)
}

fn number(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    match u32::from_be_bytes(bytes) {
        number if number <= MOST => Ok(number),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the secrets are too large")),
    }
}

fn bytes(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; number(from)? as usize];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Does all of it; returns only if the program could not be executed.
pub fn run(mut argv: impl Iterator<Item = OsString>) -> ExitCode {
    let refuse = |code: u8, why: String| {
        // Nobody is left to tell if standard error is closed.
        writeln!(io::stderr(), "orchestra-init: {why}").ok();
        ExitCode::from(code)
    };
    let Some(program) = argv.next() else {
        return refuse(125, "there is no program to run".to_owned());
    };
    let frame = input().and_then(|mut input| read_frame(&mut input));
    let frame = match frame {
        Ok(frame) => frame,
        Err(error) => return refuse(125, format!("read the secrets: {error}")),
    };
    for (path, content) in &frame.files {
        let path = OsStr::from_bytes(path);
        let made = || {
            if let Some(directory) = Path::new(path).parent() {
                fs::create_dir_all(directory)?;
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
            file.write_all(content)
        };
        if let Err(error) = made() {
            return refuse(125, format!("write the secret's file {}: {error}", path.display()));
        }
    }
    let mut command = Command::new(&program);
    command.args(argv);
    for (name, value) in &frame.env {
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
    }
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    refuse(code, format!("{}: {error}", program.display()))
}

/// Standard input without a buffer, which would take what is not ours.
fn input() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}
