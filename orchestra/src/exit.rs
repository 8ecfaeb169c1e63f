//! How a container ended.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A Linux signal's number, written by name or number.
///
/// ```
/// use orchestra::Signal;
/// assert_eq!("TERM".parse::<Signal>()?, Signal::TERM);
/// assert_eq!("SIGKILL".parse::<Signal>()?.to_string(), "SIGKILL");
/// # Ok::<(), orchestra::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signal(u8);

/// Linux's numbers on the processors that container engines run on (signal(7)).
const SIGNALS: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

impl Signal {
    /// The polite request to end.
    pub const TERM: Self = Self(15);
    /// The end that can't be refused.
    pub const KILL: Self = Self(9);
    /// What Ctrl-C sends.
    pub const INT: Self = Self(2);

    /// The signal with this number, 1 to 64.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for any other number.
    pub fn from_number(number: u8) -> Result<Self> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(Error::invalid(format!(
                "{number} is not a signal's number; they are 1 to 64"
            )))
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        if let Ok(number) = value.parse() {
            return Self::from_number(number);
        }
        let upper = value.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "signal {value:?} is not known; write a name such as SIGTERM or a number from 1 to 64"
                ))
            })
    }
}

impl TryFrom<String> for Signal {
    type Error = Error;
    fn try_from(value: String) -> Result<Self> {
        value.parse()
    }
}

impl From<Signal> for String {
    fn from(value: Signal) -> Self {
        value.to_string()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "SIG{}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a container's main process ended. A driver reports the first three; [`Job`](crate::Job) adds the others, which
/// only the one who ended it can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(tag = "exit", content = "value", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitStatus {
    /// It exited by itself with this code.
    Code(u8),
    /// A signal ended it.
    Signal(Signal),
    /// The kernel ended it, or a process of it, for using more memory than its limit.
    OutOfMemory,
    /// The caller cancelled it.
    Cancelled,
    /// It ran longer than its timeout.
    TimedOut,
}

impl ExitStatus {
    /// Reads an engine's exit code, in which 128 + N stands for signal N (as OCI runtimes and shells report it: a
    /// process that itself exits with 128 + N can't be told apart). An out-of-memory kill counts only where it made
    /// the container fail.
    #[must_use]
    pub fn from_engine(code: i64, out_of_memory: bool) -> Self {
        match code {
            0 => Self::Code(0),
            _ if out_of_memory => Self::OutOfMemory,
            129..=159 => u8::try_from(code - 128)
                .ok()
                .and_then(|n| Signal::from_number(n).ok())
                .map_or(Self::Code(255), Self::Signal),
            _ => Self::Code(u8::try_from(code).unwrap_or(255)),
        }
    }

    /// Whether it exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The code a shell would show: 128 + N for signal N, 137 out of memory, 130 cancelled, 124 timed out (as
    /// `timeout(1)` says it).
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal.number(),
            Self::OutOfMemory => 137,
            Self::Cancelled => 130,
            Self::TimedOut => 124,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by {signal}"),
            Self::OutOfMemory => f.write_str("killed: out of memory"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_codes_are_read_as_runtimes_write_them() {
        assert_eq!(
            ExitStatus::from_engine(0, true),
            ExitStatus::Code(0),
            "a child was killed, the job succeeded"
        );
        assert_eq!(ExitStatus::from_engine(3, false), ExitStatus::Code(3));
        assert_eq!(ExitStatus::from_engine(143, false), ExitStatus::Signal(Signal::TERM));
        assert_eq!(ExitStatus::from_engine(137, true), ExitStatus::OutOfMemory);
        assert_eq!(ExitStatus::from_engine(200, false), ExitStatus::Code(200));
        assert_eq!(ExitStatus::from_engine(-1, false), ExitStatus::Code(255));
    }

    #[test]
    fn every_code_survives_the_way_there_and_back() {
        for code in 0..=255u8 {
            assert_eq!(ExitStatus::from_engine(i64::from(code), false).code(), code);
        }
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for (text, number) in [
            ("9", 9),
            ("sigusr1", 10),
            ("HUP", 1),
            ("SIG34", 0),
            ("0", 0),
            ("65", 0),
            ("", 0),
        ] {
            assert_eq!(text.parse::<Signal>().map_or(0, Signal::number), number, "{text:?}");
        }
    }
}
