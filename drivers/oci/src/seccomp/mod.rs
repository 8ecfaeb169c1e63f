//! The system call filter.
//!
//! A profile is data, in docker's own format: rules that hold only with or without a capability, on an architecture or from
//! a kernel version on. `default.json` is the profile of a container that asks for none; a caller's own is read by the same code. What comes out
//! has only what holds for one container, as a runtime spec wants it.

mod profile;

use oci_spec::runtime::LinuxSeccomp;
use orchestra::{Error, ErrorKind, Profile, Result};

/// docker's meanings: all that programs use is let through, and what reaches the machine itself needs the capability for it.
/// Without x32, which docker's has: its part of the filter takes runc 4 of the 40 ms that a container needs (1.1.5 with
/// libseccomp 2.5.4), most kernels have none of its calls, and no distribution makes programs for it.
const DEFAULT: &str = include_str!("default.json");

/// The filter for a container whose processes have these `capabilities` (bits of capabilities(7)); `None` for none.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) if a profile of the caller's own is none, in the terms of
/// [docker's documentation](https://docs.docker.com/engine/security/seccomp/).
pub fn filter(profile: &Profile, capabilities: u64) -> Result<Option<LinuxSeccomp>> {
    let of_machine = profile::Machine::this();
    match profile {
        Profile::Unconfined => Ok(None),
        Profile::Custom(text) => profile::filter(text, capabilities, &of_machine)
            .map(Some)
            .map_err(|error| {
                Error::invalid(format!("the seccomp profile can't be used: {error}"))
                    .with_hint("a profile is a JSON document with `defaultAction` and `syscalls`, as docker takes it")
            }),
        _ => profile::filter(DEFAULT, capabilities, &of_machine)
            .map(Some)
            .map_err(|error| Error::new(ErrorKind::Protocol, format!("the default seccomp profile: {error}"))),
    }
}
