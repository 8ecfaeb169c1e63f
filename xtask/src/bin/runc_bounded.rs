//! An OCI runtime that asks the kernel only for capabilities and resource limits it can have.
//!
//! docker gives a privileged container every capability there is. Where this process tree's bounding set
//! lacks one (test machines often lack `CAP_SYS_RESOURCE`), runc before 1.1.15 then fails with `unable to apply
//! caps: operation not permitted`. This program stands between docker and runc: it deletes the missing
//! capabilities from the bundle's `config.json` (or from the process file of an `exec`), then becomes runc.
//!
//! podman before 5 asks for the kernel's largest limit of files and processes, whatever its settings say, as soon as a
//! container asks for any limit. Without `CAP_SYS_RESOURCE` no process has more than its parent.
//!
//! It is compiled and static because docker calls its runtime several times a container, and because it also
//! runs inside the root file systems of other distributions.

use std::{
    env, fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::process::{Resource, getrlimit};
use serde_json::Value;

/// Capabilities by their bit, as `linux/capability.h` numbers them.
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What may raise limits, `CAP_SYS_RESOURCE`, as a bit.
const SYS_RESOURCE: u64 = 1 << 24;

/// Those limits that engines ask for by themselves, by the names of OCI's specs.
const LIMITS: [(&str, Resource); 2] = [("RLIMIT_NOFILE", Resource::Nofile), ("RLIMIT_NPROC", Resource::Nproc)];

/// Global options of runc that take their value from the next argument.
const OPTIONS_WITH_VALUE: [&str; 5] = ["--root", "--log", "--log-format", "--criu", "--rootless"];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some(target) = target(&args)
        && let Err(error) = restrict_file(&target)
    {
        return fail(&format!(
            "cannot restrict the capabilities in {}: {error}",
            target.file().display()
        ));
    }
    // Only comes back when runc could not be started.
    let error = Command::new("runc").args(&args).exec();
    fail(&format!("cannot start runc: {error}; install the package runc"))
}

#[expect(clippy::print_stderr, reason = "an OCI runtime tells its errors on stderr")]
fn fail(message: &str) -> ExitCode {
    eprintln!("runc-bounded: {message}");
    ExitCode::FAILURE
}

/// The file of a runc call that lists capabilities.
#[derive(Debug, PartialEq)]
enum Target {
    /// The `config.json` of a container's bundle: a whole spec.
    Bundle(PathBuf),
    /// The process file of an `exec`: the `process` object of a spec.
    Process(PathBuf),
}

impl Target {
    fn file(&self) -> &Path {
        match self {
            Self::Bundle(file) | Self::Process(file) => file,
        }
    }
}

/// Which file this call of runc takes capabilities from, if any.
fn target(args: &[String]) -> Option<Target> {
    let mut rest = args.iter().skip(command_position(args)?);
    let command = rest.next()?;
    let rest: Vec<&String> = rest.collect();
    match command.as_str() {
        "create" | "run" | "restore" => {
            let bundle = option(&rest, "--bundle", "-b").unwrap_or(".");
            Some(Target::Bundle(Path::new(bundle).join("config.json")))
        }
        "exec" => option(&rest, "--process", "-p").map(|file| Target::Process(file.into())),
        _ => None,
    }
}

/// Where runc's command stands, after the global options.
fn command_position(args: &[String]) -> Option<usize> {
    let mut position = 0;
    while args.get(position)?.starts_with('-') {
        let takes_next = OPTIONS_WITH_VALUE.contains(&args[position].as_str());
        position += if takes_next { 2 } else { 1 };
    }
    Some(position)
}

/// The value of `--long value`, `--long=value` or `-s value`.
fn option<'a>(args: &[&'a String], long: &str, short: &str) -> Option<&'a str> {
    args.iter().enumerate().find_map(|(position, arg)| {
        if *arg == long || *arg == short {
            return args.get(position + 1).map(|value| value.as_str());
        }
        arg.strip_prefix(long)?.strip_prefix('=')
    })
}

fn restrict_file(target: &Target) -> std::io::Result<()> {
    let bounding = bounding_set(&fs::read_to_string("/proc/self/status")?);
    let mut json: Value = serde_json::from_slice(&fs::read(target.file())?)?;
    let process = match target {
        Target::Bundle(_) => json.get_mut("process"),
        Target::Process(_) => Some(&mut json),
    };
    let Some(process) = process else {
        return Ok(());
    };
    let mut changed = restrict(process, bounding);
    if bounding & SYS_RESOURCE == 0 {
        let hard = |name: &str| {
            let (_, resource) = LIMITS.iter().find(|(known, _)| *known == name)?;
            getrlimit(*resource).maximum
        };
        changed |= restrict_limits(process, hard);
    }
    if changed {
        fs::write(target.file(), serde_json::to_vec(&json)?)?;
    }
    Ok(())
}

/// The `CapBnd` line of a `/proc/PID/status`; all capabilities when there is none to read.
fn bounding_set(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

/// Deletes from each capability set of an OCI `process` what `bounding` lacks; tells whether anything changed.
fn restrict(process: &mut Value, bounding: u64) -> bool {
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else {
        return false;
    };
    let mut changed = false;
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        let before = set.len();
        set.retain(|name| {
            let bit = CAPABILITIES.iter().position(|known| Some(*known) == name.as_str());
            // A name that is newer than the table is left for runc to judge.
            bit.is_none_or(|bit| bounding & (1 << bit) != 0)
        });
        changed |= set.len() != before;
    }
    changed
}

/// Lowers the limits of an OCI `process` to the hard ones that this process has; tells whether anything changed.
fn restrict_limits(process: &mut Value, hard: impl Fn(&str) -> Option<u64>) -> bool {
    let mut changed = false;
    let limits = process.get_mut("rlimits").and_then(Value::as_array_mut);
    for limit in limits.into_iter().flatten() {
        let Some(most) = limit["type"].as_str().and_then(&hard) else {
            continue;
        };
        for value in ["soft", "hard"] {
            if limit[value].as_u64().is_some_and(|asked| asked > most) {
                limit[value] = most.into();
                changed = true;
            }
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn finds_the_bundle_of_a_create_behind_global_options() {
        let line = args("--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p ID");
        assert_eq!(target(&line), Some(Target::Bundle("/b/config.json".into())));
        assert_eq!(
            target(&args("run -b /b ID")),
            Some(Target::Bundle("/b/config.json".into()))
        );
        assert_eq!(
            target(&args("create --bundle=/b ID")),
            Some(Target::Bundle("/b/config.json".into()))
        );
    }

    #[test]
    fn a_create_without_a_bundle_means_the_working_directory() {
        assert_eq!(target(&args("create ID")), Some(Target::Bundle("./config.json".into())));
    }

    #[test]
    fn finds_the_process_file_of_an_exec() {
        let line = args("--root /r exec --process /p.json --detach ID");
        assert_eq!(target(&line), Some(Target::Process("/p.json".into())));
    }

    #[test]
    fn leaves_other_commands_alone() {
        assert_eq!(target(&args("--root /r kill ID 9")), None);
        assert_eq!(target(&args("--root create state ID")), None);
        assert_eq!(target(&[]), None);
    }

    #[test]
    fn deletes_only_what_the_bounding_set_lacks() {
        let bounding = bounding_set("Name:\tx\nCapBnd:\t000001fffeffffff\n");
        let mut process = json!({"capabilities": {
            "bounding": ["CAP_KILL", "CAP_SYS_RESOURCE", "CAP_FROM_THE_FUTURE"],
            "ambient": [],
        }});
        assert!(restrict(&mut process, bounding));
        assert_eq!(
            process["capabilities"]["bounding"],
            json!(["CAP_KILL", "CAP_FROM_THE_FUTURE"])
        );
        assert!(!restrict(&mut process, bounding));
    }

    #[test]
    fn limits_are_lowered_to_what_can_be_had_and_no_further() {
        let mut process = json!({"rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1048576},
            {"type": "RLIMIT_NPROC", "soft": 10, "hard": 10},
            {"type": "RLIMIT_CORE", "soft": 7, "hard": 7},
        ]});
        let hard = |name: &str| match name {
            "RLIMIT_NOFILE" => Some(20000),
            "RLIMIT_NPROC" => Some(4096),
            _ => None,
        };
        assert!(restrict_limits(&mut process, hard));
        assert_eq!(
            process["rlimits"][0],
            json!({"type": "RLIMIT_NOFILE", "soft": 512, "hard": 20000})
        );
        assert_eq!(process["rlimits"][1]["hard"], 10);
        assert!(!restrict_limits(&mut process, hard), "nothing is left to lower");
    }
}
