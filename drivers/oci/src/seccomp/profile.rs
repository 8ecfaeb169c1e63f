//! docker's format of a profile, and what of it holds for one container.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use rustix::system::uname;
use serde::Deserialize;

use crate::spec::capability_bit;

/// What rules are about besides capabilities.
pub(super) struct Machine {
    /// As Go names it.
    architecture: &'static str,
    /// As libseccomp names it; `None` where the kernel's own is taken.
    native: Option<Arch>,
    kernel: (u32, u32),
}

impl Machine {
    pub(super) fn this() -> Self {
        let (architecture, native) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", Some(Arch::ScmpArchX86_64)),
            "x86" => ("386", Some(Arch::ScmpArchX86)),
            "aarch64" => ("arm64", Some(Arch::ScmpArchAarch64)),
            "arm" => ("arm", Some(Arch::ScmpArchArm)),
            "powerpc64" => ("ppc64le", Some(Arch::ScmpArchPpc64le)),
            "s390x" => ("s390x", Some(Arch::ScmpArchS390x)),
            "riscv64" => ("riscv64", Some(Arch::ScmpArchRiscv64)),
            other => (other, None),
        };
        let kernel = version(&uname().release().to_string_lossy()).unwrap_or_default();
        Self {
            architecture,
            native,
            kernel,
        }
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<SubArchitectures>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SubArchitectures {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// The older form.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
    #[expect(dead_code, reason = "for people, and the format has it")]
    comment: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

pub(super) fn filter(text: &str, capabilities: u64, machine: &Machine) -> Result<LinuxSeccomp, String> {
    let document: Document = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !document.architectures.is_empty() && !document.arch_map.is_empty() {
        return Err("`architectures` and `archMap` exclude each other".to_owned());
    }
    let mut syscalls = Vec::new();
    for rule in document.syscalls {
        if rule.holds(capabilities, machine)? {
            syscalls.push(rule.syscall()?);
        }
    }
    let mut filter = LinuxSeccomp::default();
    filter
        .set_default_action(document.default_action)
        .set_default_errno_ret(document.default_errno_ret)
        .set_architectures(Some(architectures(document.architectures, &document.arch_map, machine)))
        .set_flags(document.flags)
        .set_syscalls(Some(syscalls));
    Ok(filter)
}

fn architectures(named: Vec<Arch>, map: &[SubArchitectures], machine: &Machine) -> Vec<Arch> {
    let here = map.iter().find(|entry| Some(entry.architecture) == machine.native);
    match here {
        Some(entry) => {
            let others = entry.sub_architectures.iter().flatten().copied();
            std::iter::once(entry.architecture).chain(others).collect()
        }
        None => named,
    }
}

impl Rule {
    fn holds(&self, capabilities: u64, machine: &Machine) -> Result<bool, String> {
        let has =
            |name: &String| capability_bit(name.trim_start_matches("CAP_")).is_some_and(|bit| capabilities & bit != 0);
        let here = |name: &String| name == machine.architecture;
        let new_enough = |wanted: &Option<String>| match wanted {
            Some(text) => version(text)
                .map(|wanted| Some(machine.kernel >= wanted))
                .ok_or_else(|| format!("{text:?} is no kernel version")),
            None => Ok(None),
        };
        let Condition { caps, arches, .. } = &self.includes;
        let included = caps.iter().all(has)
            && (arches.is_empty() || arches.iter().any(here))
            && new_enough(&self.includes.min_kernel)?.unwrap_or(true);
        let Condition { caps, arches, .. } = &self.excludes;
        let excluded =
            caps.iter().any(has) || arches.iter().any(here) || new_enough(&self.excludes.min_kernel)?.unwrap_or(false);
        Ok(included && !excluded)
    }

    fn syscall(self) -> Result<LinuxSyscall, String> {
        let names = match (self.names, self.name) {
            (names, None) if !names.is_empty() => names,
            (names, Some(name)) if names.is_empty() => vec![name],
            _ => return Err("a rule of `syscalls` needs `names`, or `name`, and not both".to_owned()),
        };
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(self.action)
            .set_errno_ret(self.errno_ret)
            .set_args(self.args.filter(|args| !args.is_empty()));
        Ok(syscall)
    }
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULT;
    use super::*;

    fn machine(architecture: &'static str, native: Arch) -> Machine {
        Machine {
            architecture,
            native: Some(native),
            kernel: (6, 1),
        }
    }

    fn amd64() -> Machine {
        machine("amd64", Arch::ScmpArchX86_64)
    }

    /// What is done with a system call, whatever its arguments; `None` where the default is.
    fn action(filter: &LinuxSeccomp, name: &str) -> Option<LinuxSeccompAction> {
        let rules = filter.syscalls().as_ref().unwrap();
        let plain = |rule: &&LinuxSyscall| rule.args().is_none() && rule.names().iter().any(|known| known == name);
        rules.iter().find(plain).map(LinuxSyscall::action)
    }

    #[test]
    fn what_reaches_the_machine_needs_its_capability() {
        let allow = Some(LinuxSeccompAction::ScmpActAllow);
        for (call, capability) in [
            ("mount", "SYS_ADMIN"),
            ("unshare", "SYS_ADMIN"),
            ("reboot", "SYS_BOOT"),
            ("init_module", "SYS_MODULE"),
            ("bpf", "BPF"),
            ("clock_settime", "SYS_TIME"),
            ("chroot", "SYS_CHROOT"),
        ] {
            let without = filter(DEFAULT, 0, &amd64()).unwrap();
            assert_eq!(action(&without, call), None, "{call}");
            let with = filter(DEFAULT, capability_bit(capability).unwrap(), &amd64()).unwrap();
            assert_eq!(action(&with, call), allow, "{call} with {capability}");
        }
        let ordinary = filter(DEFAULT, 0, &amd64()).unwrap();
        assert_eq!(action(&ordinary, "openat"), allow);
        assert_eq!(action(&ordinary, "keyctl"), None);
        assert_eq!(action(&ordinary, "clone3"), Some(LinuxSeccompAction::ScmpActErrno));
    }

    #[test]
    fn rules_of_other_architectures_do_not_hold() {
        let here = filter(DEFAULT, 0, &amd64()).unwrap();
        assert!(action(&here, "arch_prctl").is_some() && action(&here, "cacheflush").is_none());
        let architectures = [Arch::ScmpArchX86_64, Arch::ScmpArchX86];
        assert_eq!(here.architectures().as_deref(), Some(architectures.as_slice()));
        let arm = filter(DEFAULT, 0, &machine("arm64", Arch::ScmpArchAarch64)).unwrap();
        assert!(action(&arm, "arch_prctl").is_none() && action(&arm, "cacheflush").is_some());
    }

    #[test]
    fn a_profile_of_ones_own_holds_as_it_is_and_a_wrong_one_is_refused() {
        let own = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"},
            {"name":"rmdir","action":"SCMP_ACT_KILL","includes":{"minKernel":"9.0"}}]}"#;
        let seen = filter(own, 0, &amd64()).unwrap();
        assert_eq!(action(&seen, "mkdir"), Some(LinuxSeccompAction::ScmpActErrno));
        assert_eq!(action(&seen, "rmdir"), None, "this kernel is older");
        for wrong in [
            "unconfined",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_ALOW"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","sycalls":[]}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}"#,
        ] {
            assert!(filter(wrong, 0, &amd64()).is_err(), "{wrong}");
        }
    }
}
