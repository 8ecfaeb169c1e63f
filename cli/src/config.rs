//! The configuration: defaults, then the file, then `ORCHESTRA_*` variables, then flags.
//!
//! ```toml
//! driver = "docker"                   # or "podman" or "containerd", or "auto" for the first of them that answers
//! grace = "10s"                       # what a task that is asked to end has until it is killed
//!
//! allow_privileged = false            # refuses privileged containers before anything is made,
//! privileged_images = ["moby/buildkit"]  # but those of these images, of all tags where none is written
//!
//! [docker]
//! host = "unix:///var/run/docker.sock"
//! log_limit = 8_589_934_592           # bytes of a container's log that are kept; [podman] and [containerd] have it, too
//!
//! [podman]
//! host = "unix:///run/podman/podman.sock"
//!
//! [containerd]
//! address = "/run/containerd/containerd.sock"
//! namespace = "orchestra"
//! state = "/var/lib/orchestra/containerd" # volumes, logs, and how containers ended
//! snapshotter = "overlayfs"
//! subnet = "10.87.0.0/16"             # of the default network
//! cni = ["/usr/lib/cni", "/opt/cni/bin"] # where its plugins are looked for
//! runtime = "crun"                    # what its shim runs instead of runc: a name in its PATH, or a path
//!
//! [image_build]
//! image = "moby/buildkit:v0.34.2-rootless"
//! rootless = true                     # or "auto": without privileges where the engine's host can do that
//! network = "host"                    # where a build says nothing: for a registry on the engine host's loopback
//!
//! [caches]
//! store = "s3://ci-caches/team/app"   # or file:///var/cache/orchestra; without one, caches live as long as their job
//! endpoint = "https://s3.example.com" # where it is not Amazon's own
//! region = "eu-central-1"
//! access_key_id = "secret:CACHES_ID"  # of the stores of secrets; or the AWS_* variables, as other programs take them
//! secret_access_key = "secret:CACHES_KEY"
//! policy = "pull"                     # for runs that are not trusted
//! level = 3                           # of compression, 1 to 19
//! size_limit = "5GB"                  # of a cache that has no limit of its own
//! time_to_live = "30d"                # of a cache that no run persists any more
//! timeout = "15m"                     # of one restore or persist
//!
//! [script]                            # pipelines in TypeScript
//! memory = "256MB"                    # for all of a script's values
//! time = "60s"                        # how long it may compute; waiting does not count
//! fetch_allow = ["api.example.com"]   # hosts that `fetch` reaches; also "127.0.0.1:8080" and "*.example.com"
//! fetch_timeout = "30s"
//! fetch_limit = "10MB"                # of an answer
//!
//! [secrets]
//! environment = ["DEPLOY_TOKEN"]      # variables that are secrets
//! directory = "/run/secrets"          # a file for each secret
//! file = "secrets.db"                 # encrypted; see `orchestra secrets`
//! key_file = "secrets.key"            # what opens it; a passphrase is asked for without
//! order = ["environment", "vault"]    # the stores that are asked, in this order
//! use_docker_config = false           # log in to registries as the user's own clients do
//!
//! [secrets.command.vault]             # a program that is asked
//! argv = ["vault", "kv", "get", "-field=value", "ci/{key}"]
//! timeout = "10s"
//! missing = [2]                       # exit codes that mean that there is no such secret
//! ```
//!
//! Two underscores stand for a dot in a variable's name: `ORCHESTRA_DOCKER__HOST`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::error::Kind;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::{Figment, Source};
use orchestra::layer::PrivilegePolicy;
use orchestra::{ExposeSecret, ImageRef, NetworkMode, PullPolicy, SecretString, SharedDriver};
use orchestra_caches::{Policy, StoreOptions};
use orchestra_image_build::{DEFAULT_BUILDKIT_IMAGE, DEFAULT_ROOTLESS_IMAGE, probe};
use orchestra_pipelines::{Pipeline, parse_size};
use orchestra_secrets::{Reference, SecretKey, Secrets};
use orchestra_typescript::ScriptOptions;
use serde::{Deserialize, Deserializer};

use crate::args::EngineArgs;
use crate::drivers::{self, ContainerdConfig, DockerConfig, PodmanConfig};
use crate::exit::Failure;
use crate::secrets::SecretsConfig;
use crate::{duration, interrupt};

/// The file that is read where there is one and `--config` is not given.
const FILE: &str = "orchestra.toml";
/// What the names of variables start with.
const PREFIX: &str = "ORCHESTRA_";
/// The keys at the top, which a variable's name is compared with.
const KEYS: [&str; 11] = [
    "driver",
    "grace",
    "allow_privileged",
    "privileged_images",
    "docker",
    "podman",
    "image_build",
    "caches",
    "containerd",
    "secrets",
    "script",
];

/// How the program is set up.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Which driver.
    #[serde(default = "default_driver")]
    pub(crate) driver: String,
    /// How long a task that is asked to end has until it is killed.
    #[serde(default = "default_grace", deserialize_with = "read_duration")]
    pub(crate) grace: Duration,
    /// Whether all containers may be privileged, or those of the images below alone.
    #[serde(default = "yes")]
    allow_privileged: bool,
    #[serde(default)]
    privileged_images: Vec<ImageRef>,
    #[serde(default)]
    pub(crate) docker: DockerConfig,
    #[serde(default)]
    pub(crate) podman: PodmanConfig,
    #[serde(default)]
    pub(crate) containerd: ContainerdConfig,
    #[serde(default)]
    pub(crate) image_build: ImageBuildConfig,
    #[serde(default)]
    pub(crate) caches: CachesConfig,
    #[serde(default)]
    pub(crate) secrets: SecretsConfig,
    #[serde(default)]
    pub(crate) script: ScriptConfig,
}

/// What scripts may use.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScriptConfig {
    #[serde(default, deserialize_with = "read_size")]
    memory: Option<u64>,
    #[serde(default, deserialize_with = "read_some_duration")]
    time: Option<Duration>,
    #[serde(default)]
    fetch_allow: Vec<String>,
    #[serde(default, deserialize_with = "read_some_duration")]
    fetch_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "read_size")]
    fetch_limit: Option<u64>,
}

impl ScriptConfig {
    /// As the front end takes it.
    pub(crate) fn options(&self) -> ScriptOptions {
        let mut options = ScriptOptions::default();
        if let Some(memory) = self.memory {
            options.memory = usize::try_from(memory).unwrap_or(usize::MAX);
        }
        options.time = self.time.unwrap_or(options.time);
        options.fetch.allow.clone_from(&self.fetch_allow);
        options.fetch.timeout = self.fetch_timeout.unwrap_or(options.fetch.timeout);
        options.fetch.limit = self.fetch_limit.unwrap_or(options.fetch.limit);
        options
    }
}

/// Where caches are kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CachesConfig {
    pub(crate) store: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<SecretString>,
    #[serde(default)]
    pub(crate) policy: Policy,
    level: Option<i32>,
    #[serde(default, deserialize_with = "read_size")]
    pub(crate) size_limit: Option<u64>,
    #[serde(default, deserialize_with = "read_some_duration")]
    pub(crate) time_to_live: Option<Duration>,
    #[serde(default, deserialize_with = "read_some_duration")]
    pub(crate) timeout: Option<Duration>,
}

impl CachesConfig {
    /// The secrets that its credentials refer to as `secret:KEY`.
    ///
    /// # Errors
    /// Bad input for what follows `secret:` and is no key.
    pub(crate) fn references(&self) -> orchestra::Result<Vec<SecretKey>> {
        let secret = self.secret_access_key.as_ref().map(ExposeSecret::expose_secret);
        let values = [self.access_key_id.as_deref(), secret].into_iter().flatten();
        values
            .filter_map(|value| SecretKey::of_reference(value).transpose())
            .collect()
    }

    /// The store, where one is configured, with the secrets that it needs.
    ///
    /// # Errors
    /// As [`references`](Self::references), and for a secret that there is not; those of the stores of secrets.
    pub(crate) async fn store_options(&self, secrets: &Secrets) -> Result<Option<StoreOptions>, Failure> {
        let Some(store) = &self.store else { return Ok(None) };
        let resolved = async |name: &str, value: &str| -> orchestra::Result<String> {
            let Some(key) = SecretKey::of_reference(value)? else {
                return Ok(value.to_owned());
            };
            // Redacted from now on, wherever it may show.
            let secret = secrets.job("caches").resolve(&Reference::of(key)).await;
            secret
                .and_then(|secret| secret.text(name).map(str::to_owned))
                .map_err(|error| error.with("setting", format!("caches.{name}")))
        };
        let mut options = StoreOptions::default();
        if let Some(id) = &self.access_key_id {
            options.s3.access_key_id = Some(resolved("access_key_id", id).await?);
        }
        if let Some(key) = &self.secret_access_key {
            let key = resolved("secret_access_key", key.expose_secret()).await?;
            options.s3.secret_access_key = Some(key.into());
        }
        options.url.clone_from(store);
        options.level = self.level;
        options.s3.endpoint.clone_from(&self.endpoint);
        options.s3.region.clone_from(&self.region);
        Ok(Some(options))
    }
}

/// How images are built.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageBuildConfig {
    /// The BuildKit image of builds that name none.
    pub(crate) image: Option<ImageRef>,
    /// Whether builds that say nothing of it run without privileges.
    #[serde(default)]
    pub(crate) rootless: Rootless,
    /// The network of builds that name none.
    #[serde(default, deserialize_with = "read_network")]
    pub(crate) network: Option<NetworkMode>,
}

/// Whether builds run without privileges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rootless {
    #[default]
    No,
    Yes,
    /// Where the engine's host can do that.
    Auto,
}

impl<'de> Deserialize<'de> for Rootless {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Read {
            Flag(bool),
            Text(String),
        }
        match Read::deserialize(deserializer)? {
            Read::Flag(true) => Ok(Self::Yes),
            Read::Flag(false) => Ok(Self::No),
            Read::Text(text) if text == "auto" => Ok(Self::Auto),
            Read::Text(text) => Err(serde::de::Error::custom(format!(
                "{text:?} is neither true, false nor \"auto\""
            ))),
        }
    }
}

impl ImageBuildConfig {
    /// The BuildKit image of builds with or without privileges, where they name none.
    pub(crate) fn buildkit(&self, rootless: bool) -> orchestra::Result<ImageRef> {
        match &self.image {
            Some(image) => Ok(image.clone()),
            None if rootless => ImageRef::new(DEFAULT_ROOTLESS_IMAGE),
            None => ImageRef::new(DEFAULT_BUILDKIT_IMAGE),
        }
    }

    /// Whether they may, as far as can be told without an engine.
    pub(crate) fn may_be_rootless(&self) -> bool {
        self.rootless != Rootless::No
    }

    /// Whether builds that say nothing of it run without privileges, by a try on this engine where that is to be found out.
    pub(crate) async fn is_rootless(&self, driver: &SharedDriver) -> Result<bool, Failure> {
        match self.rootless {
            Rootless::No => Ok(false),
            Rootless::Yes => Ok(true),
            Rootless::Auto => {
                let image = self.buildkit(true)?;
                let probing = async |cancel: &_| probe(driver, &image, true, PullPolicy::IfNotPresent, cancel).await;
                let why_not = interrupt::hearing(probing).await??;
                if let Some(why) = &why_not {
                    tracing::info!(%why, "builds run with privileges");
                }
                Ok(why_not.is_none())
            }
        }
    }
}

fn yes() -> bool {
    true
}

fn default_driver() -> String {
    drivers::DEFAULT.to_owned()
}

fn default_grace() -> Duration {
    Duration::from_secs(10)
}

fn read_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    duration::parse(&text).map_err(serde::de::Error::custom)
}

/// A number of bytes may stand without quotes.
fn read_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => parse_size(&text)
            .map(Some)
            .map_err(|why| serde::de::Error::custom(format!("{text:?} is not a size: {why}"))),
    }
}

fn read_network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NetworkMode>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A duration that may be left out.
pub(crate) fn read_some_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    read_duration(deserializer).map(Some)
}

impl Config {
    /// What may be privileged.
    pub(crate) fn privileges(&self) -> PrivilegePolicy {
        match self.allow_privileged {
            true => PrivilegePolicy::default(),
            false => PrivilegePolicy::only(self.privileged_images.iter().cloned()),
        }
    }

    /// Compares a pipeline with it; `rootless` is for builds that say nothing of it.
    ///
    /// # Errors
    /// Bad input, naming the first step that is not permitted.
    pub(crate) fn check_privileges(&self, pipeline: &Pipeline, rootless: bool) -> orchestra::Result<()> {
        pipeline.check_privileges(&self.privileges(), rootless, self.image_build.image.as_ref())
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// Bad input, naming file or variable, key and what would be right.
    pub(crate) fn load(args: &EngineArgs) -> Result<Self, Failure> {
        let file = match &args.config {
            Some(file) => Some(file.clone()),
            None => Some(PathBuf::from(FILE)).filter(|file| file.exists()),
        };
        let mut figment = Figment::new();
        if let Some(file) = &file {
            check_readable(file)?;
            figment = figment.merge(Toml::file_exact(file));
        }
        check_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))?;
        figment = figment.merge(Env::prefixed(PREFIX).filter(|key| known(key.as_str())).split("__"));
        if let Some(driver) = &args.driver {
            figment = figment.merge(Serialized::default("driver", driver));
        }
        figment.extract().map_err(|error| refuse(&error))
    }
}

/// Figment takes a file that is not there for an empty one.
fn check_readable(file: &Path) -> Result<(), Failure> {
    match fs::read_to_string(file) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::bad_input(format!(
            "read the configuration {}: {error}",
            file.display()
        ))),
    }
}

fn top(key: &str) -> String {
    key.split("__").next().unwrap_or(key).to_ascii_lowercase()
}

fn known(key: &str) -> bool {
    KEYS.contains(&top(key).as_str())
}

/// A variable that is none of ours may be anybody's, but one that is nearly ours is a mistake.
fn check_variables(names: impl Iterator<Item = String>) -> Result<(), Failure> {
    for name in names {
        let Some(key) = name.strip_prefix(PREFIX).map(top).filter(|key| !known(key)) else {
            continue;
        };
        if let Some(meant) = KEYS.iter().find(|known| strsim::osa_distance(known, &key) <= 2) {
            let meant = meant.to_ascii_uppercase();
            return Err(
                Failure::bad_input(format!("the environment variable {name} is not a setting"))
                    .with_hint(format!("{PREFIX}{meant} is; set that or unset {name}")),
            );
        }
    }
    Ok(())
}

fn refuse(error: &figment::Error) -> Failure {
    let path = &error.path;
    let place = match error
        .metadata
        .as_ref()
        .map(|metadata| (metadata.source.as_ref(), metadata))
    {
        Some((Some(Source::File(file)), _)) => {
            let name = shorten(file).display().to_string();
            match path
                .last()
                .and_then(|key| line_of(&fs::read_to_string(file).ok()?, key))
            {
                Some(line) => format!("{name}:{line}: "),
                None => format!("{name}: "),
            }
        }
        Some((_, metadata)) if metadata.name.contains("environment") => {
            format!(
                "environment variable {PREFIX}{}: ",
                path.join("__").to_ascii_uppercase()
            )
        }
        _ => String::new(),
    };
    let key = path.join(".");
    match &error.kind {
        Kind::UnknownField(_, expected) => {
            Failure::bad_input(format!("{place}unknown setting `{key}`")).with_hint(match expected {
                [] => "there are no settings here".to_owned(),
                expected => format!("there are {}", expected.join(", ")),
            })
        }
        // Of a value that may be a secret nothing is shown.
        _ if path.last().is_some_and(|key| key == "secret_access_key") => {
            Failure::bad_input(format!("{place}setting `{key}`: it is no text"))
                .with_hint("put it in quotes, within those of a shell too, or write secret:KEY")
        }
        // As little of the line that TOML's parser shows.
        kind if key.is_empty() => {
            let text = kind.to_string();
            let told: Vec<&str> = text.lines().filter(|line| !line.contains('|')).collect();
            Failure::bad_input(format!("{place}{}", told.join(": ")))
        }
        kind => Failure::bad_input(format!("{place}setting `{key}`: {kind}")),
    }
}

/// Figment makes paths absolute; a person wrote a relative one.
fn shorten(file: &Path) -> &Path {
    let here = std::env::current_dir().unwrap_or_default();
    file.strip_prefix(here).unwrap_or(file)
}

/// The line that gives `key` a value or starts its table.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let starts = |line: &str| {
        let line = line.trim_start().trim_start_matches(['[', '"', '\'']);
        let after = line.strip_prefix(key)?.trim_start_matches(['"', '\'']).trim_start();
        after.starts_with(['=', '.', ']']).then_some(())
    };
    text.lines().position(|line| starts(line).is_some()).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        fs::write(&file, text).unwrap();
        let args = EngineArgs {
            driver: None,
            config: Some(file),
        };
        Config::load(&args).map_err(|failure| {
            assert_eq!(failure.exit, Exit::BadInput);
            format!("{failure:?}")
        })
    }

    #[test]
    fn what_is_not_said_has_defaults() {
        let config = load("").unwrap();
        assert_eq!(
            (config.driver.as_str(), config.grace),
            ("docker", Duration::from_secs(10))
        );
    }

    #[test]
    fn a_value_that_is_refused_and_may_be_a_secret_is_not_shown() {
        for (text, why) in [
            ("[caches]\nsecret_access_key = 4711042", "it is no text"),
            ("[caches]\nsecret_access_key = hunter4711042", "line 2"),
        ] {
            let refused = load(text).unwrap_err();
            assert!(refused.contains(why) && !refused.contains("4711042"), "{refused}");
        }
    }

    #[test]
    fn a_file_is_read() {
        let config = load("grace = '1m'\n[image_build]\nimage = 'localhost/buildkit:1'").unwrap();
        assert_eq!(config.grace, Duration::from_secs(60));
        assert_eq!(config.image_build.image.unwrap().as_str(), "localhost/buildkit:1");
    }

    #[test]
    fn privileges_are_for_all_or_for_those_that_are_named() {
        let permits = |text: &str, image: &str| load(text).unwrap().privileges().permits(&image.parse().unwrap());
        assert!(permits("", "busybox"));
        let some = "allow_privileged = false\nprivileged_images = ['moby/buildkit']";
        assert!(permits(some, "moby/buildkit:v1") && !permits(some, "busybox"));
        let rootless = |text: &str| load(text).map(|config| config.image_build.rootless);
        assert_eq!(rootless("[image_build]\nrootless = 'auto'"), Ok(Rootless::Auto));
        assert!(
            rootless("[image_build]\nrootless = 'maybe'")
                .unwrap_err()
                .contains("neither true")
        );
    }

    #[test]
    fn mistakes_are_refused_with_their_place() {
        for (text, told) in [
            ("drivr = 'docker'", "orchestra.toml:1: unknown setting `drivr`"),
            (
                "\n[docker]\nhots = 'x'",
                "orchestra.toml:3: unknown setting `docker.hots`",
            ),
            (
                "grace = '10'",
                "orchestra.toml:1: setting `grace`: \\\"10\\\" has no unit",
            ),
            ("grace = 10", "orchestra.toml:1: setting `grace`: invalid type"),
            (
                "[image_build]\nimage = 'UPPER'",
                "orchestra.toml:2: setting `image_build.image`",
            ),
            (
                "[caches]\nstor = 'x'",
                "orchestra.toml:2: unknown setting `caches.stor`",
            ),
            (
                "[caches]\nsize_limit = 'big'",
                "orchestra.toml:2: setting `caches.size_limit`: \\\"big\\\" is not a size",
            ),
            (
                "[caches]\npolicy = 'never'",
                "orchestra.toml:2: setting `caches.policy`",
            ),
            ("= 1", "line 1"),
        ] {
            let failure = load(text).unwrap_err();
            assert!(failure.contains(told), "{text}: {failure}");
        }
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let args = EngineArgs {
            driver: None,
            config: Some("/nowhere/orchestra.toml".into()),
        };
        assert!(format!("{:?}", Config::load(&args).unwrap_err()).contains("/nowhere/orchestra.toml"));
    }

    #[test]
    fn a_misspelt_variable_is_refused_and_a_strangers_is_not() {
        let check = |name: &str| check_variables(std::iter::once(name.to_owned()));
        assert!(check("ORCHESTRA_DIRVER").is_err());
        assert!(check("ORCHESTRA_IMAGE_BULD__IMAGE").is_err());
        for fine in [
            "ORCHESTRA_LOG",
            "ORCHESTRA_TEST_DRIVER",
            "ORCHESTRA_DOCKER__HOST",
            "DRIVR",
            "ORCHESTRA_RUN_URL",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
    }
}
