//! What the machine has, and what the runtime may use of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orchestra::{Error, ErrorKind, Result};
use rustix::fs::statfs;

/// How cgroups are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy for each controller, with or without a unified one beside them (hybrid).
    V1,
    /// One unified hierarchy.
    V2,
}

/// Facts about the machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its root directory, as this process reaches it.
    pub root: PathBuf,
    /// Its cgroups.
    pub cgroups: CgroupVersion,
    /// Whether the kernel limits swap.
    pub swap_limit: bool,
    /// The capabilities that a process of the runtime can have: bits of capabilities(7).
    pub bounding: u64,
    /// Hard resource limits of the runtime's processes, by their names in lower case without `RLIMIT_`; unlimited is `u64::MAX`.
    pub hard_limits: BTreeMap<String, u64>,
    /// Whether the kernel enforces AppArmor profiles.
    pub apparmor: bool,
}

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u32 = 0x6367_7270;
/// The number of `CAP_SYS_RESOURCE` in capabilities(7).
pub(crate) const SYS_RESOURCE: u32 = 24;

/// How `/proc/PID/limits` names what setrlimit(2) knows.
const LIMITS: [(&str, &str); 16] = [
    ("Max cpu time", "cpu"),
    ("Max file size", "fsize"),
    ("Max data size", "data"),
    ("Max stack size", "stack"),
    ("Max core file size", "core"),
    ("Max resident set", "rss"),
    ("Max processes", "nproc"),
    ("Max open files", "nofile"),
    ("Max locked memory", "memlock"),
    ("Max address space", "as"),
    ("Max file locks", "locks"),
    ("Max pending signals", "sigpending"),
    ("Max msgqueue size", "msgqueue"),
    ("Max nice priority", "nice"),
    ("Max realtime priority", "rtprio"),
    ("Max realtime timeout", "rttime"),
];

impl Host {
    /// The facts as process `pid` has them: the engine's, whose children the containers are; this process itself where `None`.
    /// Blocking.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io) if `/proc` or `/sys/fs/cgroup` can't be read.
    pub fn of_process(pid: Option<u32>) -> Result<Self> {
        let process = match pid {
            Some(pid) => PathBuf::from(format!("/proc/{pid}")),
            None => PathBuf::from("/proc/self"),
        };
        // Another process may have a root and mounts of its own.
        let root = pid.map_or_else(|| PathBuf::from("/"), |_| process.join("root"));
        let status = read(&process.join("status"))?;
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok());
        let cgroups = cgroup_version(&root.join("sys/fs/cgroup"))?;
        Ok(Self {
            cgroups,
            swap_limit: limits_swap(cgroups, &root, &process),
            bounding: bounding.ok_or_else(|| Error::new(ErrorKind::Io, format!("{process:?}/status has no CapBnd")))?,
            hard_limits: hard_limits(&read(&process.join("limits"))?),
            apparmor: root.join("sys/kernel/security/apparmor").is_dir()
                && fs::read(root.join("sys/module/apparmor/parameters/enabled"))
                    .is_ok_and(|enabled| enabled.starts_with(b"Y")),
            root,
        })
    }

    /// Whether a process of the runtime can have the capability of this number.
    pub(crate) fn can_have(&self, capability: u32) -> bool {
        self.bounding & (1 << capability) != 0
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Error::io(format!("read {}", path.display()), error))
}

fn cgroup_version(path: &Path) -> Result<CgroupVersion> {
    let found = statfs(path).map_err(|error| Error::io(format!("look at {}", path.display()), error.into()))?;
    // The field's type differs between architectures; the number has 32 bits everywhere.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "file system types are numbers of 32 bits"
    )]
    let magic = found.f_type as u32;
    Ok(match magic {
        CGROUP2 => CgroupVersion::V2,
        _ => CgroupVersion::V1,
    })
}

/// Whether there is a file to write a limit of swap to: kernels are built, and booted, without.
fn limits_swap(version: CgroupVersion, root: &Path, process: &Path) -> bool {
    let cgroups = root.join("sys/fs/cgroup");
    match version {
        CgroupVersion::V1 => cgroups.join("memory/memory.memsw.limit_in_bytes").exists(),
        CgroupVersion::V2 => {
            // The root has no limits: the process's own group has, unless it is the root.
            let own = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
            own.is_empty() || cgroups.join(own).join("memory.swap.max").exists()
        }
    }
}

fn hard_limits(text: &str) -> BTreeMap<String, u64> {
    let hard = |line: &str| {
        let (name, key) = LIMITS.iter().find(|(name, _)| line.starts_with(name))?;
        let value = line[name.len()..].split_whitespace().nth(1)?;
        let value = match value {
            "unlimited" => u64::MAX,
            value => value.parse().ok()?,
        };
        Some(((*key).to_owned(), value))
    };
    text.lines().filter_map(hard).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_this_process_are_found() {
        let host = Host::of_process(None).unwrap();
        assert_eq!(host.hard_limits.len(), 16, "{host:?}");
        assert_eq!(
            host.bounding,
            Host::of_process(Some(std::process::id())).unwrap().bounding
        );
    }

    #[test]
    fn a_limit_of_swap_is_where_the_generation_of_cgroups_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let (root, process) = (folder.path(), folder.path().join("proc"));
        let make = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("proc/cgroup", "0::/system.slice/containerd.service\n");
        let limits = |version| limits_swap(version, root, &process);
        assert_eq!((limits(CgroupVersion::V1), limits(CgroupVersion::V2)), (false, false));
        make("sys/fs/cgroup/system.slice/containerd.service/memory.swap.max", "max\n");
        assert_eq!((limits(CgroupVersion::V1), limits(CgroupVersion::V2)), (false, true));
        make("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "1\n");
        assert!(limits(CgroupVersion::V1));
        // In a cgroup namespace of its own it is the root, which has no limits whatever the kernel can do.
        make("proc/cgroup", "12:memory:/x\n0::/\n");
        assert!(limits(CgroupVersion::V2));
    }

    #[test]
    fn cgroups_are_of_the_second_generation_where_one_file_system_has_all() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_version(folder.path()).unwrap(), CgroupVersion::V1);
        // Also where it stands beside the first generation's.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        for unified in mounts.filter(|mount| mount.get(2) == Some(&"cgroup2")) {
            assert_eq!(cgroup_version(Path::new(unified[1])).unwrap(), CgroupVersion::V2);
        }
        assert!(cgroup_version(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn hard_limits_are_the_second_column() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max stack size            8388608              unlimited            bytes     \n\
                    Max open files            1024                 20000                files     \n";
        let limits = hard_limits(text);
        assert_eq!((limits["stack"], limits["nofile"]), (u64::MAX, 20_000));
    }
}
