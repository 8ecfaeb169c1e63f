//! Where containerd is, in the terms that its own clients have (`CONTAINERD_ADDRESS`, `CONTAINERD_NAMESPACE`), and what
//! is this driver's own beside it.

use std::path::{Path, PathBuf};

use orchestra::{Error, Result};
use serde::{Deserialize, Serialize};

const DEFAULT_SOCKET: &str = "/run/containerd/containerd.sock";
const DEFAULT_NAMESPACE: &str = "orchestra";
const DEFAULT_STATE: &str = "/var/lib/orchestra/containerd";
/// Where the command's configuration says the same.
const STATE_VARIABLE: &str = "ORCHESTRA_CONTAINERD__STATE";

/// Where containerd is, and where and how this driver does what containerd leaves to its clients.
///
/// ```
/// let config = orchestra_containerd::ContainerdConfig { namespace: Some("ci".into()), ..Default::default() };
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerdConfig {
    /// Its socket, a path or `unix:///PATH`. Where `None`, the environment's `CONTAINERD_ADDRESS`, and without that
    /// `/run/containerd/containerd.sock`.
    pub address: Option<String>,
    /// The [namespace](https://github.com/containerd/containerd/blob/main/docs/namespaces.md) of containerd's that all is
    /// made in, and the name of the cgroup that containers are in. Where `None`, the environment's `CONTAINERD_NAMESPACE`,
    /// and without that `orchestra`.
    pub namespace: Option<String>,
    /// The folder with volumes, logs, and what is known of containers that ended. It belongs to one containerd, which has to
    /// see it at the same path. Where `None`, the environment's `ORCHESTRA_CONTAINERD__STATE`, as the `orchestra` command
    /// takes it, and without that `/var/lib/orchestra/containerd`.
    pub state: Option<PathBuf>,
    /// The snapshotter that images are unpacked with.
    pub snapshotter: String,
    /// The OCI runtime that containerd's runc shim runs: a path, or a name in its `PATH`. Where `None`, its default, `runc`.
    pub runtime: Option<String>,
    /// Folders in which CNI plugins are looked for, in this order.
    pub cni: Vec<PathBuf>,
    /// The default network's addresses, as `ADDRESS/BITS`; nothing else on this machine may use them.
    pub subnet: String,
    /// How many bytes of a container's output are kept; from then on the oldest is dropped. Output that is followed from
    /// the start is never cut.
    pub log_limit: u64,
}

impl Default for ContainerdConfig {
    fn default() -> Self {
        Self {
            address: None,
            namespace: None,
            state: None,
            snapshotter: "overlayfs".to_owned(),
            runtime: None,
            // Debian's, the projects' own, and Fedora's.
            cni: ["/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"]
                .map(PathBuf::from)
                .into(),
            subnet: "10.87.0.0/16".to_owned(),
            log_limit: 8 << 30,
        }
    }
}

impl ContainerdConfig {
    /// The socket; `variable` looks a variable of the environment up.
    pub(crate) fn socket(&self, variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf> {
        let address = self
            .address
            .clone()
            .or_else(|| variable("CONTAINERD_ADDRESS").filter(|value| !value.is_empty()))
            .unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "containerd's address {address:?} is not one that this driver can reach"
            ))
            .with_hint("write the absolute path of its socket, as /PATH or unix:///PATH"));
        }
        Ok(path.into())
    }

    /// The namespace.
    pub(crate) fn namespace(&self, variable: impl Fn(&str) -> Option<String>) -> Result<String> {
        let namespace = self
            .namespace
            .clone()
            .or_else(|| variable("CONTAINERD_NAMESPACE").filter(|value| !value.is_empty()))
            .unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
        if !is_identifier(&namespace) {
            return Err(Error::invalid(format!(
                "{namespace:?} can't be a namespace of containerd's; write up to {MAX_IDENTIFIER} letters and digits, with single `-`, `_` and `.` between them"
            )));
        }
        Ok(namespace)
    }

    /// The state folder.
    pub(crate) fn state(&self, variable: impl Fn(&str) -> Option<String>) -> PathBuf {
        let told = || variable(STATE_VARIABLE).filter(|value| !value.is_empty());
        let state = self.state.clone().or_else(|| told().map(PathBuf::from));
        state.unwrap_or_else(|| DEFAULT_STATE.into())
    }

    /// Refuses folders that can't be.
    pub(crate) fn validate(&self, state: &Path) -> Result<()> {
        let mut folders = self.cni.iter().map(PathBuf::as_path).chain([state]);
        match folders.find(|folder| !is_plain(folder)) {
            Some(folder) => Err(Error::invalid(format!(
                "{folder:?} is not an absolute path that can be told to containerd"
            ))),
            None => Ok(()),
        }
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(|path| !path.contains(['\n', '\0']))
}

/// Longest id that containerd takes.
pub(crate) const MAX_IDENTIFIER: usize = 76;

/// Whether containerd takes it as an id (its package `identifiers`).
pub(crate) fn is_identifier(text: &str) -> bool {
    text.len() <= MAX_IDENTIFIER
        && text
            .split(['.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use orchestra::ErrorKind;

    use super::*;

    #[test]
    fn addresses_are_read_as_containerds_own_clients_read_them() {
        let socket = |address: Option<&str>, variable: Option<&str>| {
            let config = ContainerdConfig {
                address: address.map(str::to_owned),
                ..ContainerdConfig::default()
            };
            config.socket(|name| variable.filter(|_| name == "CONTAINERD_ADDRESS").map(str::to_owned))
        };
        for (address, variable, expected) in [
            (None, None, "/run/containerd/containerd.sock"),
            (None, Some(""), "/run/containerd/containerd.sock"),
            (None, Some("/a"), "/a"),
            (Some("unix:///b"), Some("/a"), "/b"),
        ] {
            assert_eq!(
                socket(address, variable).unwrap(),
                Path::new(expected),
                "{address:?} {variable:?}"
            );
        }
        for bad in ["tcp://127.0.0.1:1", "relative", "unix://relative", ""] {
            let error = socket(Some(bad), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
            assert!(error.hint().unwrap().contains("unix:///PATH"), "{error:?}");
        }
    }

    #[test]
    fn the_state_folder_is_an_absolute_path_told_by_config_or_environment() {
        let state = |own: Option<&str>, variable: Option<&str>| {
            let config = ContainerdConfig {
                state: own.map(PathBuf::from),
                ..ContainerdConfig::default()
            };
            config.state(|name| variable.filter(|_| name == STATE_VARIABLE).map(str::to_owned))
        };
        for (own, variable, expected) in [
            (None, None, "/var/lib/orchestra/containerd"),
            (None, Some(""), "/var/lib/orchestra/containerd"),
            (None, Some("/a"), "/a"),
            (Some("/b"), Some("/a"), "/b"),
        ] {
            assert_eq!(state(own, variable), Path::new(expected), "{own:?} {variable:?}");
        }
        let refused = ContainerdConfig::default().validate(Path::new("relative"));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn ids_that_containerd_would_refuse_are_known() {
        for good in ["orchestra", "a.b-c_d", "0"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "-a", "a--b", "a-", "a/b", &"x".repeat(77)] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        assert!(serde_json::from_str::<ContainerdConfig>(r#"{"adress":"/a"}"#).is_err());
        let config: ContainerdConfig = serde_json::from_str(r#"{"address":"/a"}"#).unwrap();
        assert_eq!((config.log_limit, config.snapshotter.as_str()), (8 << 30, "overlayfs"));
    }
}
