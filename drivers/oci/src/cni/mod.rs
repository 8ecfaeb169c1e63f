//! Networks by [CNI](https://www.cni.dev/docs/spec/) plugins: a bridge of our own, its addresses, and loopback.
//!
//! CNI is defined as programs that are run with a JSON document on their standard input, so this is the one place where a driver runs
//! some. The network's definition is made here, of [`CniConfig`]; no file of the machine's `/etc/cni` is read. What was given to a container is remembered in a file
//! beside the addresses: taking it back needs it, and may be asked for by another process.

mod plugin;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use orchestra::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::blocking::blocking;
use plugin::{Call, Plugins};

/// Versions of the specification, the best first: Debian's plugins know 1.0.0 since bookworm.
const VERSIONS: [&str; 2] = ["1.0.0", "0.4.0"];
/// The interface in a container.
const INTERFACE: &str = "eth0";
/// What a network is made of, in the order in which they are called; the addresses' own plugin is called by the first.
const CHAIN: [&str; 2] = ["bridge", "firewall"];

/// Held by who makes what all containers of the network share.
const LOCK: &str = ".lock";

/// A network of our own: a bridge, with addresses of a subnet, behind the machine's own address.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Where plugins are looked for, in this order.
    pub plugin_dirs: Vec<PathBuf>,
    /// The network's name.
    pub name: String,
    /// The bridge's, at most 15 bytes.
    pub bridge: String,
    /// Where addresses come from: `10.89.0.0/16`.
    pub subnet: String,
    /// Where is kept which addresses are in use, and by whom.
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

/// The plugins of one network.
#[derive(Clone, Debug)]
pub struct Cni(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: CniConfig,
    plugins: Plugins,
    version: &'static str,
    /// Whether what all containers share is there: the bridge, and the firewall's chains.
    begun: OnceCell<()>,
}

impl Cni {
    /// Finds the plugins, and asks them which versions they know.
    ///
    /// # Errors
    /// [`Unsupported`](ErrorKind::Unsupported) naming each plugin that is missing, with its package; [`InvalidInput`](ErrorKind::InvalidInput)
    /// for a config that can't be.
    pub async fn open(config: CniConfig) -> Result<Self> {
        config.check()?;
        let plugins = Plugins::find(&config.plugin_dirs, config.deadline)?;
        let known = try_join_all(["loopback"].iter().chain(&CHAIN).map(|name| plugins.versions(name))).await?;
        let common = VERSIONS
            .into_iter()
            .find(|version| known.iter().all(|known| known.iter().any(|known| known == version)));
        let version = common.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the CNI plugins know neither of the versions {}",
                    VERSIONS.join(" and ")
                ),
            )
            .with_hint("install a newer containernetworking-plugins")
        })?;
        let made = [config.results(), config.addresses()];
        blocking(move || {
            for dir in made {
                let done = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
                done.map_err(|error| Error::io(format!("make the folder {}", dir.display()), error))?;
            }
            Ok(())
        })
        .await?;
        Ok(Self(Arc::new(Inner {
            config,
            plugins,
            version,
            begun: OnceCell::new(),
        })))
    }

    /// Connects the network namespace at `netns` (`/proc/PID/ns/net`); `id` is the container's. A future that is dropped
    /// leaves what [`detach`](Self::detach) takes back.
    ///
    /// # Errors
    /// [`Engine`](ErrorKind::Engine) in the plugin's words, [`DeadlineExceeded`](ErrorKind::DeadlineExceeded); nothing stays connected.
    pub async fn attach(&self, id: &str, netns: &Path) -> Result<Attachment> {
        // Before anything is given out: what is not remembered is not taken back.
        self.remember(id, &Value::Null).await?;
        let connected = async {
            let (loopback, result) = tokio::join!(self.loopback(id, netns), self.add(id, netns));
            loopback?;
            let result = result?;
            self.remember(id, &result).await?;
            addresses(&result)
        };
        match connected.await {
            Ok(addresses) => Ok(Attachment { addresses }),
            Err(error) => {
                if let Err(left) = self.detach(id, Some(netns)).await {
                    tracing::warn!(container = id, error = %left, "a network could not be taken back");
                }
                Err(error)
            }
        }
    }

    /// Whether what [`attach`](Self::attach) made is still as it was.
    ///
    /// # Errors
    /// [`ContainerNotFound`](ErrorKind::ContainerNotFound) if it was never attached; [`Engine`](ErrorKind::Engine) in the plugin's words.
    pub async fn check(&self, id: &str, netns: &Path) -> Result<()> {
        let result = self.remembered(id).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::ContainerNotFound,
                format!("{id} was not connected to a network"),
            )
        })?;
        for plugin in CHAIN {
            self.call("CHECK", plugin, id, Some(netns), Some(&result)).await?;
        }
        Ok(())
    }

    /// Takes addresses and interfaces of `id` back, also where its namespace is gone (`None`). What was never attached is
    /// success.
    ///
    /// # Errors
    /// [`Engine`](ErrorKind::Engine) in the plugin's words; then it can be tried again.
    pub async fn detach(&self, id: &str, netns: Option<&Path>) -> Result<()> {
        let Some(result) = self.remembered(id).await? else {
            return Ok(());
        };
        let result = Some(&result).filter(|result| !result.is_null());
        let mut failed = None;
        for plugin in CHAIN.iter().rev() {
            // All of them, whatever one says.
            if let Err(error) = self.call("DEL", plugin, id, netns, result).await {
                failed.get_or_insert(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => self.forget(id).await,
        }
    }

    async fn loopback(&self, id: &str, netns: &Path) -> Result<()> {
        let definition = json!({"cniVersion": self.0.version, "name": "loopback", "type": "loopback"});
        let call = Call {
            command: "ADD",
            id,
            netns: Some(netns),
            interface: "lo",
        };
        self.0.plugins.run("loopback", &call, &definition).await.map(drop)
    }

    /// The first container that a process connects is alone, among all processes with this state. Plugins look for what all
    /// share, and make what is missing: where two do so at once, one fails (firewall 1.1.1: "CHAIN_USER_ADD failed (File exists)").
    async fn add(&self, id: &str, netns: &Path) -> Result<Value> {
        let mut first = None;
        let begin = async || {
            let lock = self.0.config.state_dir.join(LOCK);
            let alone = move || {
                let file = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&lock)?;
                flock(&file, FlockOperation::LockExclusive)?;
                Ok(file)
            };
            let _alone =
                blocking(move || alone().map_err(|error: io::Error| Error::io("lock the network", error))).await?;
            first = Some(self.add_now(id, netns).await?);
            Ok::<_, Error>(())
        };
        self.0.begun.get_or_try_init(begin).await?;
        match first {
            Some(result) => Ok(result),
            None => self.add_now(id, netns).await,
        }
    }

    /// Each plugin is given what the one before it answered.
    async fn add_now(&self, id: &str, netns: &Path) -> Result<Value> {
        let mut result = None;
        for plugin in CHAIN {
            result = Some(self.call("ADD", plugin, id, Some(netns), result.as_ref()).await?);
        }
        Ok(result.unwrap_or_default())
    }

    async fn call(
        &self,
        command: &'static str,
        plugin: &'static str,
        id: &str,
        netns: Option<&Path>,
        previous: Option<&Value>,
    ) -> Result<Value> {
        let mut definition = self.definition(plugin);
        if let Some(previous) = previous {
            definition["prevResult"] = previous.clone();
        }
        let call = Call {
            command,
            id,
            netns,
            interface: INTERFACE,
        };
        self.0.plugins.run(plugin, &call, &definition).await
    }

    fn definition(&self, plugin: &str) -> Value {
        let Inner { config, version, .. } = &*self.0;
        let mut definition = json!({"cniVersion": version, "name": config.name, "type": plugin});
        if plugin == "bridge" {
            definition["bridge"] = json!(config.bridge);
            definition["isGateway"] = json!(true);
            definition["ipMasq"] = json!(true);
            definition["hairpinMode"] = json!(true);
            definition["ipam"] = json!({
                "type": "host-local",
                "dataDir": config.addresses(),
                "ranges": [[{"subnet": config.subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            });
        }
        definition
    }

    fn result_of(&self, id: &str) -> Result<PathBuf> {
        // What the specification allows.
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if !id.starts_with(|c: char| c.is_ascii_alphanumeric()) || !id.chars().all(allowed) {
            return Err(Error::invalid(format!(
                "{id:?} can't be the id of a container on a network"
            )));
        }
        Ok(self.0.config.results().join(id))
    }

    async fn remember(&self, id: &str, result: &Value) -> Result<()> {
        let (path, content) = (self.result_of(id)?, result.to_string());
        blocking(move || {
            // A name that no id has, as ids don't start with a dot.
            let new = path.with_file_name(format!(".{}", path.file_name().unwrap_or_default().to_string_lossy()));
            let done = fs::write(&new, content).and_then(|()| fs::rename(&new, &path));
            done.map_err(|error| Error::io(format!("remember a network in {}", path.display()), error))
        })
        .await
    }

    /// `None` if it was never attached, null if nobody lived to tell what it got.
    async fn remembered(&self, id: &str) -> Result<Option<Value>> {
        let path = self.result_of(id)?;
        blocking(move || match fs::read(&path) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).unwrap_or_default())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
        })
        .await
    }

    async fn forget(&self, id: &str) -> Result<()> {
        let path = self.result_of(id)?;
        blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        })
        .await
    }
}

impl CniConfig {
    fn results(&self) -> PathBuf {
        self.state_dir.join("results")
    }

    fn addresses(&self) -> PathBuf {
        self.state_dir.join("addresses")
    }

    fn check(&self) -> Result<()> {
        let name = |what: &str, name: &str, most: usize| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let right = (1..=most).contains(&name.len())
                && name.starts_with(|c: char| c.is_ascii_alphanumeric())
                && name.chars().all(allowed);
            right.then_some(()).ok_or_else(|| {
                Error::invalid(format!(
                    "{what} can't be named {name:?}; take at most {most} letters, digits, `-`, `_` and `.`"
                ))
            })
        };
        name("a network", &self.name, 63)?;
        // As long as the kernel lets an interface's name be.
        name("a bridge", &self.bridge, 15)?;
        let subnet = self.subnet.split_once('/').and_then(|(address, bits)| {
            let address = address.parse::<std::net::Ipv4Addr>().ok()?;
            let bits = bits.parse::<u32>().ok().filter(|bits| (8..=30).contains(bits))?;
            Some((u32::from(address), u32::MAX << (32 - bits)))
        });
        match subnet {
            Some((address, mask)) if address & !mask == 0 => Ok(()),
            _ => Err(Error::invalid(format!(
                "{:?} is no subnet for containers; write for example 10.89.0.0/16",
                self.subnet
            ))),
        }
    }
}

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    let found: Option<Vec<IpAddr>> = ips.iter().map(address).collect();
    found.filter(|found| !found.is_empty()).ok_or_else(|| {
        Error::new(
            ErrorKind::Protocol,
            format!("the CNI plugin bridge answered without an address: {result}"),
        )
    })
}
