//! Who runs a job: a process, told apart from every other one that ever ran, so that what a dead one left can be removed
//! while nothing of a living one is touched.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A process on a machine: machine, boot, process namespace, number and start time.
///
/// It stands in the label [`labels::RUNNER`](crate::labels::RUNNER). The machine's id goes in as a hash, as
/// machine-id(5) asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Runner {
    machine: String,
    boot: String,
    namespace: u64,
    pid: u32,
    start: u64,
}

/// Whether a [`Runner`] still lives, as far as can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It has ended.
    Dead,
    /// It ran on another machine or in another process namespace.
    Unknown,
}

impl Runner {
    /// This process.
    #[must_use]
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            machine: machine(),
            boot: read("/proc/sys/kernel/random/boot_id"),
            namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()),
            pid,
            start: start_time(pid).unwrap_or(0),
        }
    }

    /// Whether it still lives.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        let here = Self::current();
        if self.machine.is_empty() || self.machine != here.machine {
            return Liveness::Unknown;
        }
        if self.boot != here.boot {
            return Liveness::Dead;
        }
        if self.namespace != here.namespace {
            return Liveness::Unknown;
        }
        if start_time(self.pid) == Some(self.start) {
            Liveness::Alive
        } else {
            Liveness::Dead
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// A machine without a machine-id(5), as many containers are, is known by its boot alone.
fn machine() -> String {
    let id = match read("/etc/machine-id") {
        id if id.is_empty() => read("/proc/sys/kernel/random/boot_id"),
        id => id,
    };
    let digest = Sha256::digest(format!("dev.orchestra {id}"));
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// A process's start in clock ticks since boot: field 22 of proc_pid_stat(5), counted after the name, which may hold anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie has ended, even if nobody has asked for its exit code yet.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

impl fmt::Display for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}/{}/{}",
            self.machine, self.boot, self.namespace, self.pid, self.start
        )
    }
}

impl FromStr for Runner {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        let bad = || Error::invalid(format!("runner label {value:?} is not one of ours"));
        let parts: Vec<&str> = value.split('/').collect();
        let [machine, boot, namespace, pid, start] = parts[..] else {
            return Err(bad());
        };
        Ok(Self {
            machine: machine.to_owned(),
            boot: boot.to_owned(),
            namespace: namespace.parse().map_err(|_| bad())?,
            pid: pid.parse().map_err(|_| bad())?,
            start: start.parse().map_err(|_| bad())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_its_label_says_the_same() {
        let runner = Runner::current();
        assert_eq!(runner.liveness(), Liveness::Alive);
        assert_eq!(runner.to_string().parse::<Runner>().unwrap(), runner);
    }

    #[test]
    fn a_number_that_another_process_has_now_is_a_dead_runner() {
        let reused = Runner {
            start: 1,
            ..Runner::current()
        };
        assert_eq!(reused.liveness(), Liveness::Dead);
    }

    #[test]
    fn a_process_of_another_boot_is_dead_and_of_another_machine_unknown() {
        assert_eq!(
            Runner {
                boot: "x".into(),
                ..Runner::current()
            }
            .liveness(),
            Liveness::Dead
        );
        assert_eq!(
            Runner {
                machine: "x".into(),
                ..Runner::current()
            }
            .liveness(),
            Liveness::Unknown
        );
        assert_eq!(
            Runner {
                namespace: 1,
                ..Runner::current()
            }
            .liveness(),
            Liveness::Unknown
        );
    }

    #[test]
    fn an_ended_process_is_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let runner = Runner {
            pid: child.id(),
            start: start_time(child.id()).unwrap(),
            ..Runner::current()
        };
        assert_eq!(runner.liveness(), Liveness::Alive);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(runner.liveness(), Liveness::Dead);
    }
}
