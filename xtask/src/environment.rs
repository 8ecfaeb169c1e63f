//! What a command that needs an engine runs in: the engine, two registries, and variables that tell of them.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    containerd::{self, Containerd},
    daemon::Docker,
    engine::{Driver, Engine},
    folders::{self, Folders},
    images, mounts, packages,
    podman::Podman,
    process,
    registry::{self, HostRegistries},
    rootfs, runtime, s3,
    sandbox::Sandbox,
    term, throwaway, user,
};

/// An engine with its registries. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Environment {
    variables: Vec<(&'static str, String)>,
    provided: Provided,
}

/// Where the engine and the registries come from.
#[derive(Debug)]
enum Provided {
    Private(Sandbox),
    /// The user's own engine; only the registries are ours.
    Host {
        #[expect(dead_code, reason = "kept for its end")]
        registries: HostRegistries,
    },
}

impl Environment {
    /// Installs and makes what is missing, then starts the engine and its registries.
    pub(crate) fn start(driver: Driver, engine: Engine) -> Result<Self> {
        let password = folders::random_hex(12)?;
        let mut variables = vec![
            ("ORCHESTRA_TEST_DRIVER", driver.name().to_owned()),
            ("ORCHESTRA_TEST_ENGINE", engine.to_string()),
            ("ORCHESTRA_TEST_IMAGE", images::BUSYBOX.into()),
            ("ORCHESTRA_TEST_BUILDKIT_IMAGE", images::BUILDKIT.into()),
            (
                "ORCHESTRA_TEST_BUILDKIT_ROOTLESS_IMAGE",
                images::BUILDKIT_ROOTLESS.into(),
            ),
            ("ORCHESTRA_TEST_REGISTRY", registry::OPEN.into()),
            ("ORCHESTRA_TEST_REGISTRY_AUTH", registry::AUTH.into()),
            ("ORCHESTRA_TEST_REGISTRY_USER", registry::USER.into()),
            ("ORCHESTRA_TEST_REGISTRY_PASSWORD", password.clone()),
        ];
        let provided = match engine {
            Engine::Host => Provided::Host {
                registries: HostRegistries::start(driver, &password)?,
            },
            Engine::Bookworm | Engine::Trixie | Engine::Sid => {
                let private = PrivateEngine::start(driver, engine, Purpose::Environment { password: &password })?;
                let pid = fs::read_to_string(&private.pid_file)?;
                let throwaway = throwaway::told(&private.program, driver, engine, Purpose::Throwaway);
                // Whichever generation is tested, this one takes no more than the distribution's packages.
                let other = throwaway::told(&private.program, driver.other(), Engine::Bookworm, Purpose::Other);
                let socket = private.socket.display();
                let address = match driver {
                    Driver::Docker | Driver::Podman | Driver::PodmanRootless => format!("unix://{socket}"),
                    Driver::Containerd => socket.to_string(),
                };
                let mut client = private.client;
                if private.in_rootfs {
                    let enter = ["nsenter", "--target", pid.trim(), "--mount", "--"];
                    client.splice(0..0, enter.map(str::to_owned));
                }
                variables.extend(private.settings);
                variables.extend([
                    (driver.variable(), address),
                    (
                        "ORCHESTRA_TEST_FRONTEND",
                        images::buildkit::frontend()?.display().to_string(),
                    ),
                    ("ORCHESTRA_TEST_S3", format!("http://{}", s3::ADDRESS)),
                    ("ORCHESTRA_TEST_S3_BUCKET", s3::BUCKET.into()),
                    ("ORCHESTRA_TEST_S3_USER", s3::USER.into()),
                    ("ORCHESTRA_TEST_S3_PASSWORD", password.clone()),
                    ("ORCHESTRA_TEST_ENGINE_PID", pid.trim().to_owned()),
                    ("ORCHESTRA_TEST_CLIENT", serde_json::to_string(&client)?),
                    ("ORCHESTRA_TEST_THROWAWAY", throwaway),
                    ("ORCHESTRA_TEST_OTHER", other),
                ]);
                // A user's podman keeps its volumes in the user's home.
                if driver != Driver::PodmanRootless {
                    variables.push(("ORCHESTRA_TEST_SMALL_DISK", mounts::TOO_MUCH.to_string()));
                }
                Provided::Private(private.sandbox)
            }
        };
        Ok(Self { variables, provided })
    }

    /// A command that runs in the environment.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match &self.provided {
            Provided::Private(sandbox) => sandbox.command(program),
            Provided::Host { .. } => process::command(program),
        };
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Does `work` on the network that the registries listen on.
    pub(crate) fn on_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.provided {
            Provided::Private(sandbox) => sandbox.on_network(work),
            Provided::Host { .. } => work(),
        }
    }
}

/// What a private engine is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// The tests of an [`Environment`]: it has all images, and registries, one of which asks for this password.
    Environment { password: &'a str },
    /// A test that kills it or fills its disk, which is small. Containers have no network.
    Throwaway,
    /// The same for a test that takes something from one engine to another: it can build images.
    Other,
}

/// An engine of our own in a sandbox, with the images that tests use.
#[derive(Debug)]
pub(crate) struct PrivateEngine {
    sandbox: Sandbox,
    /// See [`Folders::program`].
    program: PathBuf,
    /// Where it listens.
    pub(crate) socket: PathBuf,
    /// The file with the number that its daemon has in the sandbox.
    pid_file: PathBuf,
    /// Variables that tell the driver what is to be its own besides the socket.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// The words that begin a command of the engine's own client.
    client: Vec<String>,
    /// Whether engine and client are those of a root file system of their own.
    in_rootfs: bool,
}

impl PrivateEngine {
    /// Kills it, and starts it again with all that it kept.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.sandbox.restart_engine()
    }

    /// Starts it, and what else its purpose asks for.
    pub(crate) fn start(driver: Driver, engine: Engine, purpose: Purpose<'_>) -> Result<Self> {
        if !process::is_root() {
            bail!(
                "a private engine is started only as root: run this as root, or start {driver} and choose it by --engine host"
            );
        }
        packages::ensure(&packages::of_engine(driver))?;
        let archives = match purpose {
            Purpose::Environment { .. } => images::all()?,
            Purpose::Throwaway => vec![images::busybox()?],
            Purpose::Other => vec![images::busybox()?, images::buildkit::archive()?],
        };
        let alone = !matches!(purpose, Purpose::Environment { .. });
        let rootfs = rootfs::of(driver, engine)?;
        // The guard takes over the lock.
        let (mut folders, _lock) = Folders::make()?;
        folders.small = matches!(purpose, Purpose::Throwaway) && driver != Driver::PodmanRootless;
        if folders.small && driver == Driver::Containerd {
            mounts::make_small(&Containerd::disk_outside(&folders))?;
        }
        let bounded = || runtime::provide(&folders.disk.join("runc-bounded"));
        let mut settings = Vec::new();
        let (mut daemons, socket, pid_file, client) = match driver {
            Driver::Docker => {
                let docker = Docker {
                    folders: &folders,
                    bounded: bounded()?,
                    bridge: !alone,
                };
                // It finds its engine by `DOCKER_HOST`. The distribution's own: another one may come first on the PATH.
                let client = vec!["/usr/bin/docker".to_owned()];
                (docker.daemons()?, docker.socket(), docker.pid_file(), client)
            }
            Driver::Podman | Driver::PodmanRootless => {
                let podman = Podman {
                    folders: &folders,
                    bounded: bounded()?,
                    rootless: driver == Driver::PodmanRootless,
                };
                (
                    vec![podman.daemon()?],
                    podman.socket(),
                    podman.pid_file(),
                    podman.client(),
                )
            }
            Driver::Containerd => {
                let containerd = Containerd {
                    folders: &folders,
                    seen_from_outside: alone,
                };
                settings = vec![
                    (containerd::NAMESPACE, containerd.namespace()),
                    (containerd::STATE, containerd.state().display().to_string()),
                ];
                (
                    vec![containerd.daemon()?],
                    containerd.socket(),
                    containerd.pid_file(),
                    containerd.client(),
                )
            }
        };
        let covers = match driver {
            Driver::PodmanRootless => user::provide(&folders, rootfs.as_deref())?,
            Driver::Docker | Driver::Podman | Driver::Containerd => Vec::new(),
        };
        if let Purpose::Environment { password } = purpose {
            daemons.extend(registry::daemons(&folders, password)?);
            daemons.push(s3::daemon(&folders, password)?);
        }
        let in_rootfs = rootfs.is_some();
        let sandbox = term::step(&format!("start {driver} of {engine}"), || {
            Sandbox::start(folders.clone(), rootfs, covers, daemons)
        })?;
        term::step("load images", || {
            archives.iter().try_for_each(|archive| match driver {
                Driver::Docker | Driver::Podman | Driver::PodmanRootless => images::load(&socket, archive),
                Driver::Containerd => {
                    let mut ctr = sandbox.command(&client[0]);
                    ctr.args(&client[1..]);
                    containerd::import(ctr, archive)
                }
            })
        })?;
        Ok(Self {
            sandbox,
            program: folders.program(),
            socket,
            pid_file,
            settings,
            client,
            in_rootfs,
        })
    }
}
