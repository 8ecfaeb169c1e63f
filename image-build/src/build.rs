//! What is to be built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use orchestra::{
    ByteStream, ContainerPath, Credentials, Env, ImageRef, Job, Labels, Name, NetworkMode, OutputSink, Platform,
    PullPolicy, SecretString, VolumeId,
};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{
    AdditionalTarget, BuildContext, BuildError, BuildEvent, BuildOptions, BuildOutput, BuildResult, CacheFrom, CacheTo,
    OutputFormat, RegistryAuth, SharedBuilders, run, validate,
};

/// The BuildKit image that builds run in where nothing else is said.
pub const DEFAULT_BUILDKIT_IMAGE: &str = "moby/buildkit:v0.34.2";

/// The one of [rootless](ImageBuild::rootless) builds where nothing else is said.
pub const DEFAULT_ROOTLESS_IMAGE: &str = "moby/buildkit:v0.34.2-rootless";

/// An image build: a Dockerfile and its context become an image, in a registry or in the engine.
///
/// Fields are set directly; [`validate`](Self::validate) tells whether they fit together, and [`run`](Self::run) begins with it.
///
/// ```
/// use orchestra::{ContainerPath, Job, VolumeId};
/// use orchestra_image_build::{BuildError, BuildInput, BuildResult, ImageBuild};
///
/// async fn build(job: &Job, source: VolumeId) -> Result<BuildResult, BuildError> {
///     let tag = "registry.example.com/team/app:1.2".parse()?;
///     let mut build = ImageBuild::new("app".parse()?, tag, "source".parse()?);
///     build.inputs.push(BuildInput { volume: source, path: "source".parse()? });
///     build.build_args.insert("GO_VERSION".into(), "1.26".into());
///     build.push = true;
///     build.run(job).await
/// }
/// ```
#[non_exhaustive]
pub struct ImageBuild {
    /// The build's name within its job: its container's, and its output volume's, if it has one, with `._build` added (so
    /// at most 56 bytes).
    pub name: Name,
    /// What the image is called, registry included. A tag, never a digest.
    pub tag: ImageRef,
    /// The directory whose files the Dockerfile can copy, relative to the working directory: an input's
    /// [`path`](BuildInput::path), or a directory in or above some.
    pub context: ContainerPath,
    /// The Dockerfile's path, looked for in the context first, then in the working directory; `Dockerfile` where `None`.
    pub dockerfile: Option<String>,
    /// Whether the image is pushed to the registry in its tag. If not, it is loaded into the engine under its tag.
    pub push: bool,
    /// Whether it is loaded into the engine under its tag; where `None`, if it is not pushed. One that is neither pushed nor
    /// loaded is in the [outputs](Self::outputs) alone.
    pub load: Option<bool>,
    /// Values of the Dockerfile's `ARG`s. They are no place for secrets: they stand in the image's history.
    pub build_args: BTreeMap<String, String>,
    /// What `RUN --mount=type=secret,id=ID` gives a step: in no layer, no argument and no history. A value may be
    /// `secret:KEY`, where the job's driver has a layer that resolves it. Such a layer redacts what the steps print of it, and
    /// refuses what is too long for that.
    pub secrets: BTreeMap<String, SecretString>,
    /// Keys that `RUN --mount=type=ssh,id=ID` lets a step use, in PEM and without a passphrase: an agent of the builder has
    /// them, and no step sees them. `default` is the one of a mount without an id. A key may be `secret:KEY`.
    pub ssh: BTreeMap<String, SecretString>,
    /// The Dockerfile's stage to build; the last where `None`.
    pub target: Option<String>,
    /// What the image is built for; the builder's own platform where empty. More than one is one index, which no engine takes:
    /// it needs [`push`](Self::push), or `load: false` and an output of `oci`. `RUN` steps of others than the host's own need an
    /// emulator there.
    pub platforms: Vec<Platform>,
    /// What else BuildKit is told.
    pub options: BuildOptions,
    /// The BuildKit image. It has to hold `sh`, `buildctl`, `buildctl-daemonless.sh` and `buildkitd`.
    pub image: ImageRef,
    /// Whether the builder runs without privileges; see [`rootless`](Self::rootless).
    pub rootless: bool,
    /// Volumes that hold the context and the Dockerfile. The build can't write to them.
    pub inputs: Vec<BuildInput>,
    /// Volumes that the builder writes to: one at `/var/lib/buildkit` keeps its layer cache.
    pub caches: Vec<BuildCache>,
    /// Volumes that the result is written to too.
    pub outputs: Vec<BuildOutput>,
    /// Access key id and secret access key of caches in a bucket. Each may be `secret:KEY`.
    pub cache_credentials: Option<Credentials>,
    /// Stages that are built before the image, each written to an output of its own.
    pub additional_targets: Vec<AdditionalTarget>,
    /// The build container's environment: variables of a proxy, `BUILDKITD_FLAGS`. Steps of the Dockerfile don't see it.
    pub env: Env,
    /// How the tag's registry is spoken to.
    pub registry: Option<RegistryAuth>,
    /// How further registries are spoken to: of base images, of layers' caches, of further tags.
    pub base_registries: Vec<RegistryAuth>,
    /// The build container's network. A registry on the engine host's loopback is reached with [`NetworkMode::Host`].
    pub network: NetworkMode,
    /// Labels of the build container, for layers that tell containers apart by them.
    pub labels: Labels,
    /// When [`image`](Self::image) is fetched.
    pub pull: PullPolicy,
    /// How long an attempt may take; also how long what follows it may: the loading of the image into the engine, the unpacking
    /// of its root file system.
    pub timeout: Option<Duration>,
    /// How often the build is tried until it succeeds; at least once.
    pub attempts: u32,
    /// How many bytes of the output are kept for [`BuildResult::stderr`] from its start, and how many from its end.
    pub capture: usize,
    /// The job's daemons, if it may use them.
    pub(crate) shared: Option<SharedBuilders>,
    /// Whether the context comes with [`Live::context`].
    pub(crate) streamed: bool,
    /// A sink need not be `Sync`; a build is all the same.
    pub(crate) live: Mutex<Live>,
}

/// A volume with files for a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildInput {
    /// The volume.
    pub volume: VolumeId,
    /// Where it stands, relative to the working directory.
    pub path: ContainerPath,
}

/// A volume that a builder keeps files in from one build to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildCache {
    /// The volume.
    pub volume: VolumeId,
    /// Where it stands: absolute, or relative to the working directory.
    pub path: ContainerPath,
}

/// What passes while the build runs: the context in, what it says out.
#[derive(Default)]
pub(crate) struct Live {
    pub(crate) context: Option<Context>,
    pub(crate) output: Option<Box<dyn OutputSink>>,
    pub(crate) events: Option<mpsc::Sender<BuildEvent>>,
}

/// A context that comes as a tar.
pub(crate) enum Context {
    Once(ByteStream),
    Anew(Box<dyn FnMut() -> ByteStream + Send>),
}

impl ImageBuild {
    /// A build of the default BuildKit image that loads its result into the engine.
    ///
    /// # Panics
    /// Never: the default image's reference is valid.
    #[must_use]
    pub fn new(name: Name, tag: ImageRef, context: ContainerPath) -> Self {
        let image = constant(DEFAULT_BUILDKIT_IMAGE);
        Self {
            name,
            tag,
            context,
            dockerfile: None,
            push: false,
            load: None,
            build_args: BTreeMap::new(),
            secrets: BTreeMap::new(),
            ssh: BTreeMap::new(),
            target: None,
            platforms: Vec::new(),
            options: BuildOptions::default(),
            image,
            rootless: false,
            inputs: Vec::new(),
            caches: Vec::new(),
            outputs: Vec::new(),
            cache_credentials: None,
            additional_targets: Vec::new(),
            env: Env::default(),
            registry: None,
            base_registries: Vec::new(),
            network: NetworkMode::Default,
            labels: Labels::new(),
            pull: PullPolicy::IfNotPresent,
            timeout: None,
            attempts: 1,
            capture: 1 << 20,
            shared: None,
            streamed: false,
            live: Mutex::default(),
        }
    }

    /// All names of the image: [`tag`](Self::tag), then those of the [options](BuildOptions::tags).
    pub fn tags(&self) -> impl Iterator<Item = &ImageRef> {
        std::iter::once(&self.tag).chain(&self.options.tags)
    }

    /// The registries that the build is said to speak to and has no credentials for: each host, and the repositories
    /// there that are known. Those of all [`tags`](Self::tags), of layers' caches, of contexts that are images,
    /// and of [`base_registries`](Self::base_registries); not one that the Dockerfile alone names, which nobody has read yet.
    /// What is known of them is given to [`log_in`](Self::log_in).
    #[must_use]
    pub fn without_credentials(&self) -> BTreeMap<String, BTreeSet<String>> {
        let from = self.options.cache_from.iter().filter_map(|from| match from {
            CacheFrom::Registry(reference) => Some(reference),
            _ => None,
        });
        let to = self.options.cache_to.iter().filter_map(|to| match to {
            CacheTo::Registry { reference, .. } => Some(reference),
            _ => None,
        });
        let contexts = self
            .options
            .build_contexts
            .values()
            .filter_map(|context| match context {
                BuildContext::Image(reference) => Some(reference),
                _ => None,
            });
        let mut hosts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for image in self.tags().chain(from).chain(to).chain(contexts) {
            let repositories = hosts.entry(image.registry().to_owned()).or_default();
            repositories.insert(image.repository().to_owned());
        }
        for registry in self.registry.iter().chain(&self.base_registries) {
            hosts.entry(registry.host(&self.tag).to_owned()).or_default();
        }
        for registry in self.registry.iter().chain(&self.base_registries) {
            if registry.credentials.is_some() {
                hosts.remove(registry.host(&self.tag));
            }
        }
        hosts
    }

    /// Gives the build credentials for a registry's host. They go to no other.
    pub fn log_in(&mut self, host: &str, credentials: Credentials) {
        let mut known = self.registry.iter_mut().chain(&mut self.base_registries);
        if let Some(registry) = known.find(|registry| registry.host(&self.tag) == host) {
            registry.credentials = Some(credentials);
            return;
        }
        let registry = RegistryAuth {
            hostname: Some(host.to_owned()),
            credentials: Some(credentials),
            ..RegistryAuth::default()
        };
        if self.registry.is_none() && host == self.tag.registry() {
            self.registry = Some(registry);
        } else {
            self.base_registries.push(registry);
        }
    }

    /// Whether the image is loaded into the engine.
    #[must_use]
    pub fn loads(&self) -> bool {
        self.load.unwrap_or(!self.push)
    }

    /// Whether a volume is given the image's root file system.
    pub(crate) fn unpacks(&self) -> bool {
        self.outputs.iter().any(|output| output.format == OutputFormat::RootFs)
    }

    /// All outputs, those of additional targets too.
    pub(crate) fn all_outputs(&self) -> impl Iterator<Item = &BuildOutput> {
        let additional = self.additional_targets.iter().map(|additional| &additional.output);
        self.outputs.iter().chain(additional)
    }

    /// Builds without privileges, in a user namespace: with BuildKit's rootless image if no other was chosen, and nothing
    /// but the engine's seccomp and AppArmor profiles out of the way. The engine's host has to let users make namespaces,
    /// which some distributions forbid. Processes of `RUN` steps see those of the builder, which is a user's too.
    ///
    /// A layer cache has to be one of a rootless build: on one volume the two keep theirs apart.
    ///
    /// # Panics
    /// Never: the default image's reference is valid.
    #[must_use]
    pub fn rootless(mut self) -> Self {
        self.rootless = true;
        if self.image.as_str() == DEFAULT_BUILDKIT_IMAGE {
            self.image = constant(DEFAULT_ROOTLESS_IMAGE);
        }
        self
    }

    /// Uses a daemon of these, which the next builds of the job that use it find as this one leaves it. If it does not
    /// start, or has died, the build has one to itself.
    #[must_use]
    pub fn shared(mut self, builders: &SharedBuilders) -> Self {
        self.shared = Some(builders.clone());
        self
    }

    /// Takes the context from a tar, which goes to the builder as it is read: no input needs to hold it, and no volume. Its
    /// names are relative to [`context`](Self::context). Such a build has one attempt, as its input can't be read again
    /// ([`context_of`](Self::context_of) can), and can't be taken up by another process.
    #[must_use]
    pub fn context_from(mut self, tar: ByteStream) -> Self {
        self.streamed = true;
        self.live.get_mut().context = Some(Context::Once(tar));
        self
    }

    /// The same with a tar that each [attempt](Self::attempts) opens for itself.
    #[must_use]
    pub fn context_of(mut self, open: impl FnMut() -> ByteStream + Send + 'static) -> Self {
        self.streamed = true;
        self.live.get_mut().context = Some(Context::Anew(Box::new(open)));
        self
    }

    /// Sends live output there: the builder's standard output as it is, and its progress rendered as text, as standard error.
    #[must_use]
    pub fn output(mut self, sink: impl OutputSink + 'static) -> Self {
        self.live.get_mut().output = Some(Box::new(sink));
        self
    }

    /// Sends what happens there. The channel is waited for, so that nothing is lost: receive from it while the build runs, or drop the receiver.
    #[must_use]
    pub fn events(mut self, events: mpsc::Sender<BuildEvent>) -> Self {
        self.live.get_mut().events = Some(events);
        self
    }

    /// Whether the fields are valid and fit together. Nothing is made or asked.
    ///
    /// # Errors
    /// [`BuildError::Job`] of [`InvalidInput`](orchestra::ErrorKind::InvalidInput) naming the field and what to write instead.
    pub fn validate(&self) -> Result<(), BuildError> {
        validate::check(self).map_err(|error| BuildError::Job(error.with("build", &self.name)))
    }

    /// Builds. Dropping the future cancels the build; what it made is removed all the same.
    ///
    /// # Errors
    /// All of [`BuildError`]. What [`validate`](Self::validate) refuses and what the engine can't do is an error before anything is made.
    pub async fn run(self, job: &Job) -> Result<BuildResult, BuildError> {
        self.validate()?;
        let cancel = CancellationToken::new();
        let dropped = cancel.clone().drop_guard();
        let work = tokio::spawn(run::build(self, job.clone(), cancel));
        let result = work.await.unwrap_or_else(|error| Err(run::ended_with_runtime(&error)));
        drop(dropped);
        result
    }
}

#[expect(clippy::expect_used, reason = "constants that tests parse")]
fn constant(image: &str) -> ImageRef {
    ImageRef::new(image).expect("a valid reference")
}

impl fmt::Debug for ImageBuild {
    /// Values of build arguments and of the environment are not shown, as one may hold a secret by mistake.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageBuild")
            .field("name", &self.name)
            .field("tag", &self.tag)
            .field("context", &self.context)
            .field("dockerfile", &self.dockerfile)
            .field("push", &self.push)
            .field("load", &self.load)
            .field("build_args", &self.build_args.keys())
            .field("secrets", &self.secrets.keys())
            .field("ssh", &self.ssh.keys())
            .field("target", &self.target)
            .field("platforms", &self.platforms)
            .field("options", &self.options)
            .field("image", &self.image)
            .field("rootless", &self.rootless)
            .field("inputs", &self.inputs)
            .field("caches", &self.caches)
            .field("outputs", &self.outputs)
            .field("additional_targets", &self.additional_targets)
            .field("env", &self.env)
            .field("registry", &self.registry)
            .field("base_registries", &self.base_registries)
            .field("network", &self.network)
            .field("pull", &self.pull)
            .field("timeout", &self.timeout)
            .field("attempts", &self.attempts)
            .field("capture", &self.capture)
            .field("streamed", &self.streamed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::ExposeSecret;

    #[test]
    fn a_registry_is_logged_in_to_once_and_gets_the_credentials_of_no_other() {
        let tag: ImageRef = "r.test/team/app:1".parse().unwrap();
        let mut build = ImageBuild::new("b".parse().unwrap(), tag, "c".parse().unwrap());
        build.options.tags = vec!["further.test/app:1".parse().unwrap(), "r.test/other:1".parse().unwrap()];
        build.options.cache_from = vec!["cache.test/c:1".parse().unwrap()];
        let context = "docker-image://alpine".parse().unwrap();
        build.options.build_contexts = [("base".to_owned(), context)].into();
        let given = RegistryAuth {
            hostname: Some("given.test".into()),
            credentials: Some(Credentials::new("u", "p")),
            ..RegistryAuth::default()
        };
        let named = |host: &str| RegistryAuth {
            hostname: Some(host.into()),
            ..RegistryAuth::default()
        };
        // Not the tag's: what is found for the tag's must not go there.
        build.registry = Some(named("base.test"));
        build.base_registries = vec![given, named("index.docker.io")];
        let wanted: Vec<_> = build.without_credentials().into_iter().collect();
        let known = |host: &str, of: &[&str]| (host.to_owned(), of.iter().map(|of| (*of).to_owned()).collect());
        assert_eq!(
            wanted,
            [
                known("base.test", &[]),
                known("cache.test", &["c"]),
                known("docker.io", &["library/alpine"]),
                known("further.test", &["app"]),
                known("r.test", &["other", "team/app"]),
            ]
        );
        for (host, _) in &wanted {
            build.log_in(host, Credentials::new(host.as_str(), "p"));
        }
        assert!(build.without_credentials().is_empty());
        let registries = build.registry.iter().chain(&build.base_registries);
        for registry in registries
            .clone()
            .filter(|of| of.hostname.as_deref() != Some("given.test"))
        {
            let user = &registry.credentials.as_ref().unwrap().username;
            assert_eq!(user.expose_secret(), registry.host(&build.tag));
        }
        assert_eq!(registries.count(), 6);
    }

    #[test]
    fn the_tags_registry_is_spoken_to_as_was_said_when_it_is_logged_in_to() {
        let tag: ImageRef = "r.test/app".parse().unwrap();
        let mut build = ImageBuild::new("b".parse().unwrap(), tag, "c".parse().unwrap());
        build.log_in("r.test", Credentials::new("u", "p"));
        assert!(build.base_registries.is_empty() && build.registry.is_some());
        let said = RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        };
        build.registry = Some(said);
        build.log_in("r.test", Credentials::new("u", "p"));
        let registry = build.registry.unwrap();
        assert!(registry.insecure && registry.credentials.is_some());
    }
}
