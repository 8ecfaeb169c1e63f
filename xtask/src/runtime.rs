//! Whether docker needs the `runc-bounded` runtime here, and where it is.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{cargo, fixtures};

const SOURCE: &str = include_str!("bin/runc_bounded.rs");

/// Puts the runtime at `target` when this process tree cannot have a capability that docker asks for; tells
/// whether it did.
pub(crate) fn provide(target: &Path) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read the capabilities")?;
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").context("cannot read the capabilities")?;
    if !lacks_capability(&status, last.trim().parse()?) {
        return Ok(false);
    }
    let fixture = fixtures::get(&format!("runc-bounded-{}", fixtures::key(&[SOURCE.as_bytes()])), build)?;
    fs::copy(fixture, target)?;
    Ok(true)
}

/// Whether a process with this `/proc/PID/status` is denied one of the capabilities 0 to `last`.
fn lacks_capability(status: &str, last: u32) -> bool {
    let all = (1_u64 << (last + 1)) - 1;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bounding| bounding & all != all)
}

fn build(target: &Path) -> Result<()> {
    // Only the program itself is optimised: its dependencies are shared with xtask, and need not be built again.
    let flags = "-Ctarget-feature=+crt-static -Copt-level=3 -Cstrip=symbols";
    let program = cargo::executable(&format!("rustc --package=xtask --bin=runc-bounded -- {flags}"))?;
    fs::copy(program, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_seen() {
        assert!(lacks_capability("CapBnd:\t000001fffeffffff", 40));
        assert!(!lacks_capability("CapBnd:\t000001ffffffffff", 40));
    }
}
