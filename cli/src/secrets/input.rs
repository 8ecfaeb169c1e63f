//! Values that a person types, or another program writes.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use orchestra_secrets::SecretValue;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use crate::exit::{Exit, Failure};

/// Most bytes of a line that a terminal gives (`N_TTY_BUF_SIZE` of Linux, without its end): the rest is cut off.
const LONGEST_LINE: usize = 4095;

/// What a terminal has for Ctrl-C.
const INTERRUPT: u8 = 3;

/// What is pasted arrives as a whole; nobody types the next line so soon.
const PASTE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// A value from standard input: typed without echo where that is a terminal.
pub(crate) fn value(key: &str) -> Result<SecretValue, Failure> {
    match std::io::stdin().is_terminal() {
        true => typed(&format!("value of {key}")),
        false => piped(std::io::stdin()),
    }
}

/// All of a stream; a single line loses its line feed.
pub(super) fn piped(from: impl Read) -> Result<SecretValue, Failure> {
    // A line's end, and a byte more than may be kept: what goes on behind the end is no single line.
    let most = SecretValue::MAX + 3;
    let mut bytes = Vec::with_capacity(most);
    from.take(most as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::bad_input(format!("read the secret from standard input: {error}")))?;
    Ok(SecretValue::from_input(bytes))
}

/// A file to the byte.
pub(crate) fn file(path: &Path) -> Result<SecretValue, Failure> {
    let mut bytes = Vec::with_capacity(SecretValue::MAX + 1);
    File::open(path)
        .and_then(|file| file.take(SecretValue::MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::bad_input(format!("read the secret's file {}: {error}", path.display())))?;
    Ok(SecretValue::new(bytes))
}

/// A passphrase, typed on the terminal whatever standard input is.
pub(super) fn passphrase(prompt: &str) -> Result<SecretValue, Failure> {
    typed(prompt)
}

/// A new passphrase, typed twice.
pub(super) fn new_passphrase() -> Result<SecretValue, Failure> {
    let first = typed("new passphrase")?;
    match typed("new passphrase again")?.expose() == first.expose() {
        true => Ok(first),
        false => Err(Failure::bad_input("the two passphrases differ")),
    }
}

/// A terminal whose echo comes back when this goes.
struct Quiet(File, Termios);

impl Drop for Quiet {
    fn drop(&mut self) {
        // What can't be restored is no reason to fail.
        // What was typed beyond the answer would be shown, and be whoever's comes next: a shell's.
        tcsetattr(&self.0, OptionalActions::Flush, &self.1).ok();
    }
}

fn typed(prompt: &str) -> Result<SecretValue, Failure> {
    let missing = |_| {
        Failure::bad_input(format!("there is no terminal to type the {prompt} on"))
            .with_hint("set `key_file` under [secrets] to open the file without a passphrase; pipe values in")
    };
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(missing)?;
    let failed = |error: std::io::Error| Failure::bad_input(format!("read the {prompt}: {error}"));
    let before = tcgetattr(&terminal).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    // Ctrl-C ends the line instead of the program, which would leave the terminal without echo.
    silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
    silent.special_codes[SpecialCodeIndex::VEOL] = INTERRUPT;
    tcsetattr(&terminal, OptionalActions::Flush, &silent).map_err(|error| failed(error.into()))?;
    let quiet = Quiet(terminal.try_clone().map_err(failed)?, before);
    // Only now: what is typed in answer to it must be neither shown nor flushed.
    write!(terminal, "{prompt}: ").map_err(failed)?;
    let mut line = Zeroizing::new(Vec::with_capacity(SecretValue::MAX));
    let mut byte = [0];
    while line.len() < SecretValue::MAX && terminal.read(&mut byte).map_err(failed)? == 1 && byte[0] != b'\n' {
        if byte[0] == INTERRUPT {
            drop(quiet);
            writeln!(terminal).map_err(failed)?;
            return Err(Failure::text(
                Exit::Interrupted,
                format!("the {prompt} was not given"),
                None,
            ));
        }
        line.push(byte[0]);
    }
    // Of a line without an end nothing is known before it may be read byte by byte.
    silent.local_modes.remove(LocalModes::ICANON);
    tcsetattr(&terminal, OptionalActions::Now, &silent).map_err(|error| failed(error.into()))?;
    let mut next = [PollFd::new(&terminal, PollFlags::IN)];
    let more = rustix::io::retry_on_intr(|| poll(&mut next, Some(&PASTE))).is_ok_and(|ready| ready > 0);
    drop(quiet);
    writeln!(terminal).map_err(failed)?;
    if more || line.len() >= LONGEST_LINE {
        let what = if more {
            "more than one line"
        } else {
            "a line that is longer than a terminal gives"
        };
        return Err(
            Failure::bad_input(format!("the {prompt}: {what} was typed, and nothing is kept of it"))
                .with_hint("pipe it in, or read it from its file with --from-file"),
        );
    }
    Ok(SecretValue::new(line.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_behind_a_line_as_long_as_may_be_is_not_lost() {
        let longest = "x".repeat(SecretValue::MAX);
        for (input, kept) in [
            (longest.clone(), true),
            (format!("{longest}\r\n"), true),
            (format!("{longest}\r\nmore"), false),
            (format!("{longest}\nmore"), false),
        ] {
            let value = piped(input.as_bytes()).unwrap_or_else(|_| panic!("it is read"));
            assert_eq!(value.check("KEY").is_ok(), kept);
        }
    }
}
