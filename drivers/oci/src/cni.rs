//! Networks by [CNI](https://www.cni.dev/docs/spec/) plugins.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchestra::Result;

/// A network of our own: a bridge with addresses of a subnet.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Where plugins are looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// The network's name.
    pub name: String,
    /// The bridge's.
    pub bridge: String,
    /// Addresses: `10.89.0.0/16`.
    pub subnet: String,
    /// Where addresses that are in use are kept.
    pub state_dir: PathBuf,
    /// How long one plugin may take.
    pub deadline: Duration,
}

/// What a container got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Runs plugins.
#[derive(Clone, Debug)]
pub struct Cni {}

impl Cni {
    /// Finds the plugins and asks them for their versions.
    ///
    /// # Errors
    /// [`Unsupported`](orchestra::ErrorKind::Unsupported) naming each plugin that is missing, with its package.
    pub async fn open(config: CniConfig) -> Result<Self> {
        let _ = config;
        todo!()
    }

    /// Connects the network namespace at `netns` (`/proc/PID/ns/net`); `id` is the container's.
    ///
    /// # Errors
    /// [`Engine`](orchestra::ErrorKind::Engine) in the plugin's words; nothing stays connected.
    pub async fn attach(&self, id: &str, netns: &Path) -> Result<Attachment> {
        let _ = (id, netns);
        todo!()
    }

    /// Whether what [`attach`](Self::attach) made is still as it was.
    ///
    /// # Errors
    /// [`Engine`](orchestra::ErrorKind::Engine) in the plugin's words.
    pub async fn check(&self, id: &str, netns: &Path) -> Result<()> {
        let _ = (id, netns);
        todo!()
    }

    /// Gives addresses and interfaces of `id` back; also where its namespace is gone (`None`). What was never attached
    /// is success.
    ///
    /// # Errors
    /// [`Engine`](orchestra::ErrorKind::Engine) in the plugin's words.
    pub async fn detach(&self, id: &str, netns: Option<&Path>) -> Result<()> {
        let _ = (id, netns);
        todo!()
    }
}
