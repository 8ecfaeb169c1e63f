//! Kernel capabilities: docker's default set, and what is added to it and taken from it.

use orchestra::{ContainerSpec, Error, KernelCapability, Result};

use super::Host;

/// All there are, each at its number: capabilities(7).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has where nothing else is said.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a capability.
pub(crate) fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// The names of a set, as a runtime spec has them.
pub(super) fn names(set: u64) -> impl Iterator<Item = String> {
    let numbered = NAMES.iter().enumerate();
    numbered
        .filter(move |(number, _)| set & (1 << number) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
}

/// What the container's processes have, never more than the runtime can give: a privileged one has all of that, and neither
/// additions nor losses, as with docker.
pub(super) fn granted(container: &ContainerSpec, host: &Host) -> Result<u64> {
    let known = (1 << NAMES.len()) - 1;
    let all = host.bounding & known;
    if container.privileged {
        return Ok(all);
    }
    let default = DEFAULT.iter().filter_map(|name| bit(name)).sum::<u64>() & all;
    let (add_all, added) = set(&container.cap_add)?;
    let (drop_all, dropped) = set(&container.cap_drop)?;
    if added & !all != 0 {
        let missing = names(added & !all).collect::<Vec<_>>().join(", ");
        return Err(Error::invalid(format!(
            "{missing} can't be added: the processes that start containers on this machine don't have it themselves"
        ))
        .with_hint("leave it out, or start the engine with a full bounding set (CapBnd of its /proc/PID/status)"));
    }
    Ok(match (add_all, drop_all) {
        (true, _) => all & !dropped,
        (false, true) => added,
        (false, false) => default & !dropped | added,
    })
}

/// Whether `ALL` is among them, and the others.
fn set(capabilities: &[KernelCapability]) -> Result<(bool, u64)> {
    let mut set = (false, 0);
    for capability in capabilities {
        match capability.as_str() {
            "ALL" => set.0 = true,
            name => {
                set.1 |= bit(name).ok_or_else(|| {
                    Error::invalid(format!(
                        "there is no kernel capability {name}; capabilities(7) lists them"
                    ))
                })?;
            }
        }
    }
    Ok(set)
}
