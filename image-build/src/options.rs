//! What a build can be told besides what it needs, in the words of `docker buildx build`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use orchestra::{ContainerPath, Error, ExtraHost, ImageRef, NetworkMode, Result, Ulimit};

use crate::validate::is_word;
use crate::{CacheFrom, CacheTo, registry};

/// Options of a build that most builds leave alone. Each is named as `docker buildx build` or Compose's `build` has it.
///
/// ```
/// use orchestra_image_build::BuildOptions;
/// let mut options = BuildOptions::default();
/// options.labels.insert("org.opencontainers.image.source".into(), "https://example.com/app".into());
/// options.source_date_epoch = Some(0);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct BuildOptions {
    /// Further names of the image, which it is pushed or loaded under too.
    pub tags: Vec<ImageRef>,
    /// Labels of the image's config, which win over the Dockerfile's.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the image's manifest; of each platform's where there are several. An image that is loaded into the
    /// engine loses them: no archive that an engine loads has any.
    pub annotations: BTreeMap<String, String>,
    /// Lines of `/etc/hosts` in `RUN` steps.
    pub extra_hosts: Vec<ExtraHost>,
    /// How `RUN` steps are connected: [`None`](NetworkMode::None) not at all, [`Host`](NetworkMode::Host) as the build
    /// container is, whatever the Dockerfile says less. The latter is BuildKit's entitlement `network.host`.
    pub run_network: NetworkMode,
    /// Limits of the processes of `RUN` steps.
    pub ulimits: Vec<Ulimit>,
    /// Bytes of `/dev/shm` in `RUN` steps; BuildKit's 64 MiB where `None`.
    pub shm_size: Option<u64>,
    /// Runs every step, whatever a cache has.
    pub no_cache: bool,
    /// Stages whose steps are run, whatever a cache has.
    pub no_cache_filter: Vec<String>,
    /// What `FROM name` and `COPY --from=name` mean: a name of its own, that of a stage, or the reference of an image that is
    /// not to be fetched.
    pub build_contexts: BTreeMap<String, BuildContext>,
    /// A context that BuildKit fetches instead of one of an input: a git repository (`https://…/app.git#main:folder`,
    /// `git@…`), or with `https://` an archive or a Dockerfile alone. A private repository's token is the build secret
    /// `GIT_AUTH_TOKEN`, its key one of [`ssh`](crate::ImageBuild::ssh).
    pub context_url: Option<String>,
    /// Files of the inputs with further build arguments, relative to the working directory: lines of `KEY=VALUE`. What is
    /// among the [build arguments](crate::ImageBuild::build_args) wins, then the last file.
    pub build_args_files: Vec<ContainerPath>,
    /// Files of the inputs with further labels, in the same form.
    pub labels_files: Vec<ContainerPath>,
    /// Files of the inputs that are [build secrets](crate::ImageBuild::secrets), by id, relative to the working directory: text
    /// of at most 500 KiB, which is all that BuildKit takes. Who wrote the file knows it, so a step that prints it is not redacted.
    pub secret_files: BTreeMap<String, ContainerPath>,
    /// Images of the inputs for builds that reach no network: `FROM $NAME` with `ARG NAME` is the image of this archive or
    /// OCI layout, relative to the working directory.
    pub image_args: BTreeMap<String, ContainerPath>,
    /// The Dockerfile itself, instead of a file's.
    pub dockerfile_inline: Option<String>,
    /// An image that reads the Dockerfile, instead of BuildKit's own frontend. It is fetched by the builder.
    pub frontend: Option<ImageRef>,
    /// Seconds since 1970 that the image, its history and its files are dated to, at the latest: the same context then gives
    /// the same digest (<https://reproducible-builds.org/specs/source-date-epoch/>).
    pub source_date_epoch: Option<u64>,
    /// How much of a provenance attestation is attached to an image that is pushed; none where `None`.
    pub provenance: Option<Provenance>,
    /// A list of what is in the image, attached to one that is pushed.
    pub sbom: Option<Sbom>,
    /// Where layers that were built elsewhere are taken from.
    pub cache_from: Vec<CacheFrom>,
    /// Where the layers are put for other builds.
    pub cache_to: Vec<CacheTo>,
    /// Bytes that the builder's own layers may take at the build's end; what was used least lately goes first.
    pub cache_limit: Option<u64>,
    /// For the host of a registry, the hosts that are asked before it, each with a path where its images stand below one.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// The daemon's own configuration (`buildkitd.toml`). What [`mirrors`](Self::mirrors) and registries add to it comes
    /// after it: it must not speak of the same registries. It stands in the container's arguments, so is no place for secrets.
    pub buildkitd_config: Option<String>,
}

/// A further context, which a Dockerfile knows by name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildContext {
    /// A directory of the build's inputs, relative to the working directory.
    Directory(ContainerPath),
    /// An image, fetched by the builder: `docker-image://REFERENCE`.
    Image(ImageRef),
    /// An image that an input holds as an archive or an OCI layout: `oci-layout://PATH`, relative to the working directory.
    OciLayout(ContainerPath),
    /// A git repository or an archive, fetched by the builder: `https://…`, `http://…` or `git://…`.
    Url(String),
}

impl FromStr for BuildContext {
    type Err = Error;

    /// From `docker-image://REFERENCE`, `oci-layout://PATH`, a URL, or a path relative to the working directory.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(reference) = text.strip_prefix("docker-image://") {
            return Ok(Self::Image(reference.parse()?));
        }
        if let Some(path) = text.strip_prefix("oci-layout://") {
            return Ok(Self::OciLayout(relative(path)?));
        }
        if is_url(text) {
            check_url(text)?;
            return Ok(Self::Url(text.to_owned()));
        }
        if text.contains("://") {
            return Err(
                Error::invalid(format!("{text:?} is of no kind that a build context can be"))
                    .with_hint("write docker-image://REFERENCE, oci-layout://PATH, a URL with https, http or git, or a path of an input"),
            );
        }
        Ok(Self::Directory(relative(text)?))
    }
}

fn relative(text: &str) -> Result<ContainerPath> {
    let path: ContainerPath = text.parse()?;
    if path.is_absolute() {
        return Err(Error::invalid(format!("build context {text} is absolute"))
            .with_hint("write it relative to the working directory: the name of an input, or a directory of it"));
    }
    Ok(path)
}

/// Whether BuildKit fetches a context of this name, as its clients tell it from a path.
#[must_use]
pub fn is_url(text: &str) -> bool {
    let schemes = ["https://", "http://", "git://", "ssh://", "git@"];
    schemes.iter().any(|scheme| text.starts_with(scheme))
}

/// Whether it is a URL that may stand in arguments.
pub(crate) fn check_url(text: &str) -> Result<()> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid(
            "the URL of a context holds a blank or a control character",
        ));
    }
    let authority = text
        .split_once("://")
        .map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let by_http = text.starts_with("http");
    if authority
        .rsplit_once('@')
        .is_some_and(|(user, _)| by_http || user.contains(':'))
    {
        return Err(Error::invalid(
            "the URL of a context holds a password or a token, which arguments and logs would show",
        )
        .with_hint(
            "give a token as the build secret GIT_AUTH_TOKEN, or a key with `ssh`, and leave it out of the URL",
        ));
    }
    Ok(())
}

impl fmt::Display for BuildContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{path}"),
            Self::Image(image) => write!(f, "docker-image://{}", image.canonical()),
            Self::OciLayout(path) => write!(f, "oci-layout://{path}"),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// How much a provenance attestation tells (<https://docs.docker.com/build/metadata/attestations/slsa-provenance/>).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provenance {
    /// When and of what it was built, without arguments: these may hold what nobody is to see.
    Min,
    /// The Dockerfile and all arguments too.
    Max,
}

impl FromStr for Provenance {
    type Err = Error;

    /// From `min` or `max`.
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "min" => Ok(Self::Min),
            "max" => Ok(Self::Max),
            _ => Err(Error::invalid(format!("provenance {text:?} is neither min nor max"))),
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Min => "min",
            Self::Max => "max",
        })
    }
}

/// A software bill of materials (<https://docs.docker.com/build/metadata/attestations/sbom/>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sbom {
    /// The image that makes it, fetched by the builder; BuildKit's own choice, of the Docker Hub, where `None`.
    pub generator: Option<ImageRef>,
}

impl FromStr for Sbom {
    type Err = Error;

    /// From `true`, or the generator's image.
    fn from_str(text: &str) -> Result<Self> {
        let generator = match text {
            "true" => None,
            image => Some(image.parse()?),
        };
        Ok(Self { generator })
    }
}

impl BuildOptions {
    /// The daemon's own configuration, if there is one.
    pub(crate) fn daemon_config(&self) -> Result<Option<toml::Table>> {
        let text = self.buildkitd_config.as_deref();
        let config = text.map(str::parse::<toml::Table>).transpose();
        config.map_err(|error| {
            let place = error
                .span()
                .map(|span| text.unwrap_or_default()[..span.start].matches('\n').count() + 1);
            let place = place.map(|line| format!(", line {line}")).unwrap_or_default();
            let why = error.message().replace('\n', "; ");
            Error::invalid(format!("buildkitd_config is no TOML{place}: {why}"))
        })
    }

    /// Whether each fits the others, and into BuildKit's options.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(tag) = self.tags.iter().find(|tag| tag.digest().is_some()) {
            return Err(Error::invalid(format!("tag {tag} is pinned to a digest"))
                .with_hint("leave out the digest: it follows from what is built"));
        }
        for (what, pairs) in [("label", &self.labels), ("annotation", &self.annotations)] {
            for (key, value) in pairs {
                let bad = |text: &str| text.contains('\0');
                if key.is_empty() || key.contains('=') || key.chars().any(char::is_control) || bad(value) {
                    return Err(
                        Error::invalid(format!("{what} {key:?} is not a name and a value")).with_hint(
                            "a name is not empty and has no `=` and no control character, a value has no NUL byte",
                        ),
                    );
                }
            }
        }
        // They are keys of an output's options, which BuildKit 0.34 makes lower case and takes up to a blank.
        let lost = |key: &&String| key.chars().any(|c| c.is_uppercase() || c.is_whitespace());
        if let Some(key) = self.annotations.keys().find(lost) {
            return Err(Error::invalid(format!(
                "annotation {key:?} has a capital letter or a blank in its name"
            ))
            .with_hint("write it in lower case, as `org.opencontainers.image.source` is"));
        }
        if let Some(stage) = self.no_cache_filter.iter().find(|stage| !is_word(stage)) {
            return Err(
                Error::invalid(format!("no_cache_filter {stage:?} is not a stage's name"))
                    .with_hint("write what stands after AS in the Dockerfile"),
            );
        }
        // A named context that is called as a stage is would replace it, which Compose and buildx allow too.
        if let Some(name) = self.build_contexts.keys().find(|name| named(name).is_none()) {
            return Err(
                Error::invalid(format!("build context {name:?} is not a name that FROM can have")).with_hint(
                    "write a stage's name in lower case, or the reference of the image that it is to stand for",
                ),
            );
        }
        let mut asked = BTreeSet::new();
        if let Some((name, _)) = self.contexts().find(|(name, _)| !asked.insert(name.clone())) {
            return Err(Error::invalid(format!("the build context {name} is given twice"))
                .with_hint("keep one of them: an image's short name and its whole one are the same"));
        }
        if let Some(url) = &self.context_url {
            if !is_url(url) {
                return Err(
                    Error::invalid(format!("context {url:?} is no URL that BuildKit fetches"))
                        .with_hint("write a URL with https, http or git, or git@HOST:PATH"),
                );
            }
            check_url(url)?;
        }
        if let Some(name) = self.image_args.keys().find(|name| !is_word(name)) {
            return Err(
                Error::invalid(format!("image argument {name:?} is not a name that ARG can have"))
                    .with_hint("use letters, digits and `_`"),
            );
        }
        let files = self.build_args_files.iter().chain(&self.labels_files);
        let files = files.chain(self.secret_files.values()).chain(self.image_args.values());
        if let Some(path) = files.into_iter().find(|path| path.is_absolute()) {
            return Err(Error::invalid(format!("{path} is absolute"))
                .with_hint("write it relative to the working directory: it begins with an input's path"));
        }
        if self.cache_limit.is_some_and(|limit| limit < 10 << 20) {
            return Err(Error::invalid("cache_limit is less than 10 MiB")
                .with_hint("leave out the cache where no layers are to be kept"));
        }
        if let Some(ulimit) = self.ulimits.iter().find(|ulimit| ulimit.soft > ulimit.hard) {
            return Err(
                Error::invalid(format!("ulimit {} is softer than it is hard", ulimit.name))
                    .with_hint("write NAME=SOFT:HARD, with a soft limit that is not above the hard one"),
            );
        }
        if self.shm_size == Some(0) {
            return Err(Error::invalid("shm_size is zero").with_hint("leave it out for BuildKit's 64 MiB"));
        }
        for (host, mirrors) in &self.mirrors {
            let bad = |mirror: &&String| {
                let (host, path) = mirror.split_once('/').unwrap_or((mirror, "path"));
                !registry::is_host(host) || !path.split('/').all(is_word)
            };
            if !registry::is_host(host) || mirrors.is_empty() || mirrors.iter().any(|mirror| bad(&mirror)) {
                return Err(Error::invalid(format!(
                    "mirrors of {host:?} are not a registry's host and a list of hosts"
                ))
                .with_hint("write docker.io: [mirror.example.com:5000], without https://"));
            }
        }
        if self
            .buildkitd_config
            .as_deref()
            .is_some_and(|text| text.len() > 64 << 10 || text.contains('\0'))
        {
            return Err(Error::invalid(
                "buildkitd_config is longer than 64 KiB, or has a NUL byte",
            ));
        }
        if self
            .dockerfile_inline
            .as_deref()
            .is_some_and(|text| text.trim().is_empty())
        {
            return Err(Error::invalid("the inline Dockerfile is empty"));
        }
        // Linux takes 128 KiB an argument (execve(2), MAX_ARG_STRLEN).
        if self
            .dockerfile_inline
            .as_deref()
            .is_some_and(|text| text.len() > 100 << 10 || text.contains('\0'))
        {
            return Err(
                Error::invalid("the inline Dockerfile is longer than 100 KiB, or has a NUL byte")
                    .with_hint("put it into a file of an input"),
            );
        }
        Ok(())
    }

    /// Arguments of `buildctl` for all but the output.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        options.extend(self.labels.iter().map(|(key, value)| format!("label:{key}={value}")));
        if !self.extra_hosts.is_empty() {
            let hosts = self
                .extra_hosts
                .iter()
                .map(|host| format!("{}={}", host.name, host.address));
            options.push(format!("add-hosts={}", joined(hosts)));
        }
        if !self.ulimits.is_empty() {
            let ulimits = self
                .ulimits
                .iter()
                .map(|limit| format!("{}={}:{}", limit.name, limit.soft, limit.hard));
            options.push(format!("ulimit={}", joined(ulimits)));
        }
        let network = match self.run_network {
            NetworkMode::None => Some("none"),
            NetworkMode::Host => Some("host"),
            _ => None,
        };
        options.extend(network.map(|mode| format!("force-network-mode={mode}")));
        options.extend(self.shm_size.map(|bytes| format!("shm-size={bytes}")));
        // Empty means all.
        options.extend(self.no_cache.then(|| "no-cache=".to_owned()));
        if !self.no_cache && !self.no_cache_filter.is_empty() {
            options.push(format!("no-cache={}", self.no_cache_filter.join(",")));
        }
        options.extend(
            self.frontend
                .iter()
                .map(|frontend| format!("source={}", frontend.canonical())),
        );
        options.extend(
            self.source_date_epoch
                .map(|seconds| format!("build-arg:SOURCE_DATE_EPOCH={seconds}")),
        );
        options.extend(self.provenance.map(|mode| format!("attest:provenance=mode={mode}")));
        options.extend(self.sbom.iter().map(|sbom| match &sbom.generator {
            Some(image) => format!("attest:sbom=generator={}", image.canonical()),
            None => "attest:sbom=".to_owned(),
        }));
        let mut directories = Vec::new();
        if self.run_network == NetworkMode::Host {
            directories.push("--allow=network.host".to_owned());
        }
        for (number, (name, context)) in self.contexts().enumerate() {
            match context {
                BuildContext::Directory(path) => {
                    options.push(format!("context:{name}=local:named-{number}"));
                    directories.push(format!("--local=named-{number}=./{path}"));
                }
                // Its digest is found where it is.
                BuildContext::OciLayout(_) => {}
                other => options.push(format!("context:{name}={other}")),
            }
        }
        let options = options.into_iter().flat_map(|value| ["--opt".to_owned(), value]);
        options.chain(directories).collect()
    }

    /// Named contexts, by what the frontend asks for.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = (String, &BuildContext)> {
        let contexts = self.build_contexts.iter();
        contexts.filter_map(|(name, context)| Some((named(name)?, context)))
    }

    /// Fields of the exporter's record.
    pub(crate) fn output(&self, push: bool) -> Vec<String> {
        let mut fields = Vec::new();
        if push {
            fields.extend(
                self.annotations
                    .iter()
                    .map(|(key, value)| format!("annotation.{key}={value}")),
            );
        }
        if self.source_date_epoch.is_some() {
            fields.push("rewrite-timestamp=true".to_owned());
        }
        fields
    }
}

/// What the Dockerfile's frontend asks for a named context by: a reference as docker's client shortens it, a stage's name being
/// one too (frontend/dockerui/namedcontext.go). `None` if it is none.
fn named(name: &str) -> Option<String> {
    let image: ImageRef = name.parse().ok()?;
    let mut short = match (image.registry(), image.repository()) {
        ("docker.io", repository) => match repository.strip_prefix("library/") {
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => repository.to_owned(),
        },
        (registry, repository) => format!("{registry}/{repository}"),
    };
    let is_said = image.digest().is_some() || image.tag() != Some("latest");
    for (mark, part) in [(':', image.tag().filter(|_| is_said)), ('@', image.digest())] {
        short.extend(part.into_iter().flat_map(|part| [mark.to_string(), part.to_owned()]));
    }
    Some(short)
}

fn joined(fields: impl Iterator<Item = String>) -> String {
    fields.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_named_context_is_asked_for_as_docker_s_client_shortens_it() {
        for (name, asked) in [
            ("base", Some("base")),
            ("alpine", Some("alpine")),
            ("alpine:3.22", Some("alpine:3.22")),
            ("docker.io/library/alpine:latest", Some("alpine")),
            ("docker.io/team/app", Some("team/app")),
            ("docker.io/library/a/b:1", Some("library/a/b:1")),
            ("Base", None),
            ("r.example.com:5000/team/app:1", Some("r.example.com:5000/team/app:1")),
            ("two words", None),
            ("a=b", None),
            ("--output", None),
        ] {
            assert_eq!(named(name).as_deref(), asked, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_a_user_writes_is_one_value_behind_its_key_or_refused(key in "[^\\x00]{0,12}", value in "[^\\x00]{0,24}") {
            let mut options = BuildOptions::default();
            options.labels.insert(key.clone(), value.clone());
            options.annotations.insert(key.clone(), value.clone());
            if options.check().is_ok() {
                prop_assert_eq!(options.arguments(), ["--opt".to_owned(), format!("label:{key}={value}")]);
                prop_assert_eq!(options.output(true), [format!("annotation.{key}={value}")]);
            }
        }

        #[test]
        fn a_named_context_never_becomes_an_option(name in ".{1,12}", path in ".{1,24}") {
            let Ok(context) = path.parse::<BuildContext>() else { return Ok(()) };
            let mut options = BuildOptions::default();
            options.build_contexts.insert(name.clone(), context);
            if options.check().is_ok() {
                let arguments = options.arguments();
                if path.starts_with("oci-layout://") {
                    return Ok(());
                }
                prop_assert_eq!(&arguments[0], "--opt");
                let of_option = format!("context:{}=", named(&name).unwrap_or_default());
                prop_assert!(arguments[1].starts_with(&of_option));
                let directories = &arguments[2..];
                prop_assert!(
                    directories.len() < 2 && directories.iter().all(|argument| argument.starts_with("--local=named-0=./"))
                );
            }
        }
    }
}
