//! What a container is to be: image, process, mounts, limits and security, in no engine's terms.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{ContainerPath, Error, ImageRef, Labels, Platform, Result, Signal, VolumeId};

/// Everything an engine is told about a container. Two specs that are equal but for labels and the values of the
/// environment have one [`fingerprint`](Self::fingerprint).
///
/// ```
/// use orchestra::{ContainerSpec, Cpus};
/// let mut spec = ContainerSpec::new("busybox".parse()?);
/// spec.entrypoint = Some(vec!["sh".into(), "-c".into(), "exit 3".into()]);
/// spec.limits.cpus = Some("1.5".parse::<Cpus>()?);
/// spec.validate()?;
/// # Ok::<(), orchestra::Error>(())
/// ```
///
/// `Debug` shows how many arguments there are and not what they say: a front end may have put a secret into one.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct ContainerSpec {
    /// The image; it must be in the engine.
    pub image: ImageRef,
    /// Which platform of the image; the engine's own where `None`.
    pub platform: Option<Platform>,
    /// Replaces the image's entry point, and drops the image's command, where `Some`.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments to the entry point; the image's where `None` (and the entry point is the image's too).
    pub command: Option<Vec<String>>,
    /// Added to the image's environment.
    pub env: Env,
    /// Absolute; the image's where `None`.
    pub working_dir: Option<ContainerPath>,
    /// `USER[:GROUP]`, names of the image's own files or numbers; the image's where `None`.
    pub user: Option<User>,
    /// Volumes and where they stand.
    pub mounts: Vec<Mount>,
    /// Memory-backed file systems.
    pub tmpfs: Vec<Tmpfs>,
    /// Keeps standard input open for the stream given to [`start_container`](crate::Driver::start_container).
    pub stdin: bool,
    /// All capabilities and devices, no seccomp and apparmor.
    pub privileged: bool,
    /// Kernel capabilities added to the engine's default set.
    pub cap_add: Vec<KernelCapability>,
    /// Kernel capabilities taken from the engine's default set; `ALL` takes all.
    pub cap_drop: Vec<KernelCapability>,
    /// Confinement.
    pub security: Security,
    /// What it may use.
    pub limits: Limits,
    /// How it is connected.
    pub network: NetworkMode,
    /// Lines of `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// Labels; [`Job`](crate::Job) puts the ownership ones here.
    pub labels: Labels,
    /// The polite request to end, `SIGTERM` where `None`; what the image says (`STOPSIGNAL`) is not asked.
    pub stop_signal: Option<Signal>,
}

impl ContainerSpec {
    /// A container of `image` with all else as image and engine have it.
    #[must_use]
    pub fn new(image: ImageRef) -> Self {
        Self {
            image,
            platform: None,
            entrypoint: None,
            command: None,
            env: Env::default(),
            working_dir: None,
            user: None,
            mounts: Vec::new(),
            tmpfs: Vec::new(),
            stdin: false,
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            security: Security::default(),
            limits: Limits::default(),
            network: NetworkMode::default(),
            extra_hosts: Vec::new(),
            labels: Labels::new(),
            stop_signal: None,
        }
    }

    /// Where `path` stands in this container, as an absolute path.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if it is relative and the spec has no working directory.
    pub fn resolve(&self, path: &ContainerPath) -> Result<String> {
        match &self.working_dir {
            _ if path.is_absolute() => Ok(path.as_str().to_owned()),
            Some(dir) => Ok(path.resolve(dir.as_str())),
            None => Err(Error::invalid(format!(
                "{path} is relative, but no working directory is set that it could be relative to"
            ))),
        }
    }

    /// Whether all parts fit together.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) naming the first part that does not.
    pub fn validate(&self) -> Result<()> {
        if self.working_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            return Err(Error::invalid("the working directory must be an absolute path"));
        }
        if self
            .entrypoint
            .as_ref()
            .is_some_and(|argv| argv.first().is_none_or(String::is_empty))
        {
            return Err(Error::invalid("the entry point is empty"));
        }
        let texts = self.entrypoint.iter().chain(&self.command).flatten();
        if texts.chain(self.env.0.values()).any(|text| text.contains('\0')) {
            return Err(Error::invalid(
                "a NUL byte can't be in a command or an environment variable",
            ));
        }
        if let Some(key) = self
            .env
            .0
            .keys()
            .find(|key| key.is_empty() || key.contains(['=', '\0', '\n']))
        {
            return Err(Error::invalid(format!(
                "{key:?} is not a name of an environment variable"
            )));
        }
        let limits = &self.limits;
        let tmpfs = self.tmpfs.iter().map(|tmpfs| ("tmpfs size", tmpfs.size));
        for (name, limit) in [
            ("memory", limits.memory),
            ("pids", limits.pids),
            ("shm_size", limits.shm_size),
        ]
        .into_iter()
        .chain(tmpfs)
        {
            // Engines take 0, and what is over their signed numbers, for "unlimited".
            match limit {
                Some(0) => {
                    let message = format!("a {name} limit of 0 leaves nothing; leave it out for no limit");
                    return Err(Error::invalid(message));
                }
                Some(limit) if i64::try_from(limit).is_err() => {
                    return Err(Error::invalid(format!("a {name} limit of {limit} is too large")));
                }
                _ => {}
            }
        }
        // Engines take them in lines and options of their own, where a further word would be one of ours.
        if let Some(host) = self.extra_hosts.iter().find(|host| !ExtraHost::is_name(&host.name)) {
            return Err(Error::invalid(format!("{:?} is not a name of a host", host.name)));
        }
        if let Some(limit) = limits.ulimits.iter().find(|limit| !Ulimit::is_name(&limit.name)) {
            return Err(Error::invalid(format!("{:?} is not a name of a ulimit", limit.name))
                .with_hint("write it in lower case without RLIMIT_, for example nofile"));
        }
        let mut targets = BTreeMap::new();
        let mounted = self.mounts.iter().map(|mount| &mount.target);
        for path in mounted.chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.target)) {
            let target = self.resolve(path)?;
            if target == "/" {
                return Err(Error::invalid("nothing can be mounted at `/`"));
            }
            if targets.insert(target.clone(), ()).is_some() {
                return Err(Error::invalid(format!("two mounts stand at {target}")));
            }
        }
        Ok(())
    }

    /// A short text that is the same for the same spec, whichever process computes it. Labels are not in it, and of the
    /// environment only the names: a value may be a secret, and a label made of one would tell it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut bare = self.clone();
        bare.labels.clear();
        let argv = (bare.entrypoint.as_ref(), bare.command.as_ref());
        let digest = Sha256::digest(format!("{argv:?} {bare:?}"));
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every field by its name: one that is added can't be forgotten, and so not be missing in the fingerprint.
        let Self {
            image,
            platform,
            entrypoint,
            command,
            env,
            working_dir,
            user,
            mounts,
            tmpfs,
            stdin,
            privileged,
            cap_add,
            cap_drop,
            security,
            limits,
            network,
            extra_hosts,
            labels,
            stop_signal,
        } = self;
        f.debug_struct("ContainerSpec")
            .field("image", image)
            .field("platform", platform)
            .field("entrypoint", &entrypoint.as_deref().map(Words))
            .field("command", &command.as_deref().map(Words))
            .field("env", env)
            .field("working_dir", working_dir)
            .field("user", user)
            .field("mounts", mounts)
            .field("tmpfs", tmpfs)
            .field("stdin", stdin)
            .field("privileged", privileged)
            .field("cap_add", cap_add)
            .field("cap_drop", cap_drop)
            .field("security", security)
            .field("limits", limits)
            .field("network", network)
            .field("extra_hosts", extra_hosts)
            .field("labels", labels)
            .field("stop_signal", stop_signal)
            .finish()
    }
}

/// What `Debug` shows of a command.
struct Words<'a>(&'a [String]);

impl fmt::Debug for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} words", self.0.len())
    }
}

/// Environment variables. `Debug` shows names only, since a value may be a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Env(pub BTreeMap<String, String>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

/// A volume in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The volume.
    pub volume: VolumeId,
    /// Where it stands: absolute, or relative to the working directory.
    pub target: ContainerPath,
    /// Whether the container can't write to it.
    pub read_only: bool,
}

/// A memory-backed file system in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where it stands: absolute, or relative to the working directory.
    pub target: ContainerPath,
    /// Its size in bytes; half of the machine's memory where `None` (tmpfs(5)).
    pub size: Option<u64>,
}

/// Who a process runs as: `USER[:GROUP]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User(String);

impl User {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for User {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        let part =
            |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_.-$".contains(c));
        let (user, group) = value.split_once(':').unwrap_or((value, "0"));
        if part(user) && part(group) {
            Ok(Self(value.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "user {value:?} is not valid; write USER[:GROUP], names or numbers"
            )))
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A kernel capability ([capabilities(7)](https://man7.org/linux/man-pages/man7/capabilities.7.html)) by its name without `CAP_`, or `ALL`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelCapability(String);

impl KernelCapability {
    /// The name in capitals, without `CAP_`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KernelCapability {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        let upper = value.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::invalid(format!(
                "{value:?} is not a kernel capability's name; write for example NET_ADMIN"
            )))
        }
    }
}

impl fmt::Display for KernelCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A container's confinement; the default is the engine's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Security {
    /// System call filter.
    pub seccomp: Profile,
    /// AppArmor profile. On a host without AppArmor there is none to leave, and `Unconfined` changes nothing.
    pub apparmor: Profile,
    /// Whether the process and its children can't gain privileges by setuid programs.
    pub no_new_privileges: bool,
}

/// A confinement profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// The engine's.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// For seccomp, the profile's JSON itself; for AppArmor, the name of a profile that is loaded on the engine's host.
    Custom(String),
}

/// What a container may use; unlimited where `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Processor time: a quota that is enforced, not a share among busy containers.
    pub cpus: Option<Cpus>,
    /// Memory in bytes, swap included: what is over it is killed.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Size of `/dev/shm` in bytes; the engine's default, mostly 64 MiB, where `None`.
    pub shm_size: Option<u64>,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
}

/// Processors' worth of time, in thousandths: `"0.5"` is half of one processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(u32);

impl Cpus {
    /// From thousandths of a processor.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) under 10, which the kernel can't enforce (1 ms of each 100 ms).
    pub fn from_millis(millis: u32) -> Result<Self> {
        if millis < 10 {
            Err(Error::invalid("a processor limit is at least 0.01"))
        } else {
            Ok(Self(millis))
        }
    }

    /// Thousandths of a processor.
    #[must_use]
    pub fn millis(self) -> u32 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        match value.parse::<f64>() {
            // The range was checked: neither sign nor size is lost.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be between 0 and 1,000,000"
            )]
            Ok(cpus) if (0.0..=1000.0).contains(&cpus) => Self::from_millis((cpus * 1000.0).round() as u32),
            _ => Err(Error::invalid(format!(
                "{value:?} is not a number of processors; write for example 1.5"
            ))),
        }
    }
}

impl fmt::Debug for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// A resource limit of a process ([getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// In lower case without `RLIMIT_`: `nofile`, `nproc`.
    pub name: String,
    /// What the process has.
    pub soft: u64,
    /// What the process can raise it to.
    pub hard: u64,
}

impl Ulimit {
    fn is_name(name: &str) -> bool {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase())
    }
}

impl FromStr for Ulimit {
    type Err = Error;
    /// From `NAME=SOFT[:HARD]`, as `docker run --ulimit` has it; the hard limit is the soft one where it is not given.
    fn from_str(value: &str) -> Result<Self> {
        let parsed = value.split_once('=').and_then(|(name, limits)| {
            let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
            Some(Self {
                name: Some(name).filter(|name| Self::is_name(name))?.to_owned(),
                soft: soft.parse().ok()?,
                hard: hard.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| {
            Error::invalid(format!(
                "ulimit {value:?} is not valid; write NAME=SOFT:HARD, for example nofile=1024:2048"
            ))
        })
    }
}

/// How a container is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NetworkMode {
    /// The engine's default network: its own address, the outside reachable.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The engine host's own network.
    Host,
}

impl FromStr for NetworkMode {
    type Err = Error;
    fn from_str(value: &str) -> Result<Self> {
        match value {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            _ => Err(Error::invalid(format!(
                "network mode {value:?} is not known; there are default, none and host"
            ))),
        }
    }
}

/// A line of a container's `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraHost {
    /// The host's name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

impl ExtraHost {
    fn is_name(name: &str) -> bool {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
    }
}

impl FromStr for ExtraHost {
    type Err = Error;
    /// From `NAME:ADDRESS`.
    fn from_str(value: &str) -> Result<Self> {
        value
            .split_once(':')
            .filter(|(name, _)| Self::is_name(name))
            .and_then(|(name, address)| {
                Some(Self {
                    name: name.to_owned(),
                    address: address.parse().ok()?,
                })
            })
            .ok_or_else(|| {
                Error::invalid(format!(
                    "extra host {value:?} is not valid; write NAME:ADDRESS, for example db:10.0.0.7"
                ))
            })
    }
}

/// A small file that is put into a container before it starts.
///
/// Directories that are missing are made with mode 0755 and the file's owner. `Debug` shows the content's length only,
/// since it may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct InjectedFile {
    /// Where: absolute.
    pub path: ContainerPath,
    /// What.
    pub content: Bytes,
    /// Permission bits.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Whether the content is a secret: a layer that redacts has it on the job's list from then on.
    pub secret: bool,
}

impl InjectedFile {
    /// A file of root's with mode 0600.
    pub fn new(path: ContainerPath, content: impl Into<Bytes>) -> Self {
        Self {
            path,
            content: content.into(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            secret: false,
        }
    }

    /// The same, whose content is a secret.
    pub fn secret(path: ContainerPath, content: impl Into<Bytes>) -> Self {
        Self {
            secret: true,
            ..Self::new(path, content)
        }
    }
}

impl fmt::Debug for InjectedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} bytes, mode {:o}, {}:{}",
            self.path,
            self.content.len(),
            self.mode,
            self.uid,
            self.gid
        )
    }
}

/// A further process in a running container. `Debug` shows how many words its command has, as that of [`ContainerSpec`].
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecSpec {
    /// Program and arguments; no shell is involved.
    pub command: Vec<String>,
    /// Added to the container's environment.
    pub env: Env,
    /// Absolute; the container's where `None`.
    pub working_dir: Option<ContainerPath>,
    /// The container's where `None`.
    pub user: Option<User>,
}

impl ExecSpec {
    /// A process with the container's own user, environment and working directory.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            env: Env::default(),
            working_dir: None,
            user: None,
        }
    }
}

impl fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSpec")
            .field("command", &Words(&self.command))
            .field("env", &self.env)
            .field("working_dir", &self.working_dir)
            .field("user", &self.user)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec::new("busybox".parse().unwrap())
    }

    fn mount(target: &str) -> Mount {
        Mount {
            volume: VolumeId::new("v").unwrap(),
            target: target.parse().unwrap(),
            read_only: false,
        }
    }

    #[test]
    fn mounts_that_would_hide_each_other_are_refused() {
        let mut spec = spec();
        spec.working_dir = Some("/work".parse().unwrap());
        spec.mounts = vec![mount("a"), mount("/work/a")];
        assert!(
            spec.validate()
                .unwrap_err()
                .message()
                .contains("two mounts stand at /work/a")
        );
        spec.mounts = vec![mount("/")];
        assert!(spec.validate().is_err());
    }

    #[test]
    fn a_limit_of_nothing_is_refused_since_engines_take_it_for_no_limit() {
        let limited = |set: fn(&mut ContainerSpec)| {
            let mut spec = spec();
            set(&mut spec);
            spec.validate().map_err(|error| error.message().to_owned())
        };
        assert!(
            limited(|spec| spec.limits.memory = Some(0))
                .unwrap_err()
                .contains("memory limit of 0")
        );
        assert!(
            limited(|spec| spec.limits.pids = Some(u64::MAX))
                .unwrap_err()
                .contains("too large")
        );
        let tmpfs = |size| Tmpfs {
            target: "/t".parse().unwrap(),
            size,
        };
        assert!(spec().tmpfs.is_empty() && limited(|spec| spec.limits.shm_size = Some(1)).is_ok());
        let mut none = spec();
        none.tmpfs = vec![tmpfs(Some(0))];
        assert!(none.validate().is_err());
        none.tmpfs = vec![tmpfs(None)];
        assert!(none.validate().is_ok());
    }

    #[test]
    fn names_that_would_be_more_than_a_name_are_refused_however_the_spec_is_made() {
        let mut host = spec();
        host.extra_hosts = vec![ExtraHost {
            name: "db\n10.0.0.8 registry".into(),
            address: "10.0.0.7".parse().unwrap(),
        }];
        assert!(host.validate().unwrap_err().message().contains("name of a host"));
        let mut limit = spec();
        limit.limits.ulimits = vec![Ulimit {
            name: "nofile=1 --privileged".into(),
            soft: 1,
            hard: 1,
        }];
        assert!(limit.validate().unwrap_err().message().contains("name of a ulimit"));
    }

    #[test]
    fn a_relative_mount_needs_a_working_directory() {
        let mut spec = spec();
        spec.mounts = vec![mount("a")];
        assert!(spec.validate().unwrap_err().message().contains("no working directory"));
    }

    #[test]
    fn a_fingerprint_tells_specs_apart_but_not_secrets() {
        let mut a = spec();
        a.env = [("TOKEN", "hunter2")].into_iter().collect();
        let mut b = a.clone();
        b.env = [("TOKEN", "other")].into_iter().collect();
        assert_eq!(a.fingerprint(), b.fingerprint());
        b.privileged = true;
        assert_ne!(a.fingerprint(), b.fingerprint());
        let argument = |text: &str| {
            let mut spec = a.clone();
            spec.command = Some(vec!["login".into(), text.into()]);
            spec
        };
        assert_ne!(argument("hunter3").fingerprint(), argument("hunter4").fingerprint());
        let exec = ExecSpec::new(["login", "hunter3"]);
        let shown = format!("{a:?} {:?} {exec:?}", argument("hunter3"));
        assert!(!shown.contains("hunter") && shown.contains("2 words"), "{shown}");
    }

    #[test]
    fn small_types_refuse_what_could_be_an_option_or_a_line() {
        assert!("root\n".parse::<User>().is_err());
        assert!("1000:".parse::<User>().is_err());
        assert!("1000:1000".parse::<User>().is_ok());
        assert!("--privileged".parse::<KernelCapability>().is_err());
        assert_eq!(
            "cap_net_admin".parse::<KernelCapability>().unwrap().as_str(),
            "NET_ADMIN"
        );
        assert!("db:10.0.0.7".parse::<ExtraHost>().is_ok());
        assert!("db:nowhere".parse::<ExtraHost>().is_err());
        for bad in ["0", "-1", "NaN", "1e9", ""] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
        assert_eq!("0.25".parse::<Cpus>().unwrap().millis(), 250);
    }
}
