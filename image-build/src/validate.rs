//! Refusal of what can't be built, before anything is made.

use std::collections::BTreeSet;

use orchestra::{ContainerPath, Error, ExposeSecret, Name, Result, Task, VolumeId};

use crate::arguments::Place;
use crate::{CacheFrom, CacheTo, ImageBuild, OutputFormat, command};

/// What the output volume's name has more than the build's: odd, so that no artifact is called so.
const OUT_SUFFIX: &str = "._build";

pub(crate) fn check(build: &ImageBuild) -> Result<()> {
    let out = out_name(&build.name)?;
    if let Some(digest) = build.tag.digest() {
        return Err(Error::invalid(format!("tag {} is pinned to {digest}", build.tag))
            .with_hint("leave out the digest: it follows from what is built"));
    }
    check_context(build)?;
    check_dockerfile(build)?;
    if let Some(key) = build.build_args.keys().find(|key| !is_word(key)) {
        return Err(
            Error::invalid(format!("build argument {key:?} is not a name that ARG can have"))
                .with_hint("use letters, digits and `_`"),
        );
    }
    if let Some((key, _)) = build.build_args.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Error::invalid(format!(
            "the value of build argument {key} holds a NUL byte"
        )));
    }
    let is_id = |id: &str| is_word(id) && !id.starts_with('.') && id.len() <= 128;
    let of_files = build.options.secret_files.keys();
    if let Some(id) = of_files.clone().find(|id| build.secrets.contains_key(*id)) {
        return Err(Error::invalid(format!("build secret {id:?} is given twice"))
            .with_hint("give it as a value, or as a file of an input"));
    }
    let ids = build.secrets.keys().chain(build.ssh.keys()).chain(of_files);
    if let Some(id) = ids.into_iter().find(|id| !is_id(id)) {
        return Err(
            Error::invalid(format!("{id:?} can't be the id of a build secret or an ssh key"))
                .with_hint("use letters, digits, `_`, `.` and `-`"),
        );
    }
    if let Some(target) = build.target.as_deref().filter(|target| !is_word(target)) {
        return Err(
            Error::invalid(format!("target {target:?} is not a name that a stage can have"))
                .with_hint("write what stands after AS in the Dockerfile, or leave target out for the last stage"),
        );
    }
    check_platforms(build)?;
    build
        .registry
        .iter()
        .chain(&build.base_registries)
        .try_for_each(crate::RegistryAuth::check)?;
    if build.base_registries.iter().any(|registry| registry.hostname.is_none()) {
        return Err(Error::invalid("a registry of base images has no hostname"));
    }
    build.options.check()?;
    check_references(build)?;
    check_records(build)?;
    check_layers(build)?;
    check_outputs(build)?;
    if build.timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Error::invalid("the timeout is zero").with_hint("leave it out for a build without one"));
    }
    // What all tasks have to fulfil: two mounts at one place, names of environment variables.
    command::task(build, Some(&VolumeId::new(out.as_str())?), Place::default())?
        .spec
        .validate()
}

/// Refuses a secret where others would see it, or where a reference to one would stand as it is written.
fn check_references(build: &ImageBuild) -> Result<()> {
    let is_secret = |value: &str| value.starts_with(crate::registry::REFERENCE);
    if let Some((name, _)) = build.env.0.iter().find(|(_, value)| is_secret(value)) {
        return Err(Error::invalid(format!(
            "the value of the variable {name} is a secret, and would stand in what the engine shows of the build container"
        ))
        .with_hint("a step of the Dockerfile gets a secret by `secrets` and RUN --mount=type=secret; a proxy's address is to have none"));
    }
    let args = build.build_args.iter().map(|of| ("build argument", of));
    let labels = build.options.labels.iter().map(|of| ("label", of));
    let annotations = build.options.annotations.iter().map(|of| ("annotation", of));
    match args
        .chain(labels)
        .chain(annotations)
        .find(|(_, (_, value))| is_secret(value))
    {
        None => Ok(()),
        Some((what, (name, _))) => Err(Error::invalid(format!(
            "the value of the {what} {name} is a reference to a secret, and stands in the image for all to see"
        ))
        .with_hint("a step of the Dockerfile gets a secret by `secrets` and RUN --mount=type=secret")),
    }
}

/// Refuses records of what steps have written, with every secret among it, in state that is kept.
pub(crate) fn check_records(build: &ImageBuild) -> Result<()> {
    let config = build.options.daemon_config()?.unwrap_or_default();
    let Some(history) = field(&config, HISTORY) else {
        return Ok(());
    };
    // BuildKit drops a record that is over both limits.
    let of = |name: &str| {
        history
            .as_table()
            .and_then(|history| field(history, name))
            .map(toml::Value::as_integer)
    };
    let keeps_none = of("maxEntries") == Some(Some(0)) && matches!(of("maxAge"), None | Some(Some(0)));
    let has_secrets = !build.secrets.is_empty() || !build.options.secret_files.is_empty();
    if command::keeps_state(build) && has_secrets && !keeps_none {
        return Err(Error::invalid(
            "buildkitd_config keeps a history of builds, which holds what their steps have written, in a cache, and this build has secrets",
        )
        .with_hint("write maxEntries = 0 and no maxAge under [history], or leave [history] out"));
    }
    Ok(())
}

/// What the daemon's configuration says of the records of builds.
pub(crate) const HISTORY: &str = "history";

/// A field of the daemon's configuration, which takes names in any case.
pub(crate) fn field<'t>(table: &'t toml::Table, name: &str) -> Option<&'t toml::Value> {
    let mut fields = table.iter();
    fields.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
}

fn check_outputs(build: &ImageBuild) -> Result<()> {
    let additional = &build.additional_targets;
    if let Some(target) = additional.iter().map(|of| &of.target).find(|target| !is_word(target)) {
        return Err(Error::invalid(format!(
            "additional target {target:?} is not a name that a stage can have"
        ))
        .with_hint("write what stands after AS in the Dockerfile"));
    }
    if let Some(of) = additional.iter().find(|of| of.output.format == OutputFormat::RootFs) {
        return Err(
            Error::invalid(format!("additional target {} has an output of type rootfs", of.target))
                .with_hint("write local, or oci for an image with its configuration"),
        );
    }
    let is_attested = build.options.provenance.is_some() || build.options.sbom.is_some();
    if is_attested && build.unpacks() {
        return Err(
            Error::invalid("an output of type rootfs is asked for with an attestation")
                .with_hint("write oci, which carries attestations, or leave out provenance and sbom"),
        );
    }
    let of_one = |output: &&crate::BuildOutput| matches!(output.format, OutputFormat::Loadable | OutputFormat::RootFs);
    if let Some(output) = build.all_outputs().find(of_one).filter(|_| build.platforms.len() > 1) {
        return Err(Error::invalid(format!(
            "an output of type={} holds one platform, and several are asked for",
            output.format
        ))
        .with_hint("write oci, which holds all of them"));
    }
    if build.load == Some(false) && !build.push && build.outputs.is_empty() {
        return Err(
            Error::invalid("the image is neither pushed nor loaded, and has no output")
                .with_hint("give it an output, or leave out `load`"),
        );
    }
    Ok(())
}

/// The name of the build's output volume.
pub(crate) fn out_name(name: &Name) -> Result<Name> {
    Name::new(format!("{name}{OUT_SUFFIX}")).map_err(|_| {
        let most = 63 - OUT_SUFFIX.len();
        Error::invalid(format!(
            "build name {name:?} is too long: its volume's name is made of it, so at most {most} bytes are allowed"
        ))
    })
}

fn check_context(build: &ImageBuild) -> Result<()> {
    if build.options.context_url.is_some() {
        return match build.streamed {
            true => Err(Error::invalid("the context is both a URL and a tar").with_hint("keep one of the two")),
            false => Ok(()),
        };
    }
    let context = &build.context;
    if context.is_absolute() {
        return Err(Error::invalid(format!("context {context} is absolute"))
            .with_hint("write it relative to the working directory: the name of an input, or a directory of it"));
    }
    let context = context.resolve(Task::WORKING_DIR);
    let holds = |outer: &str, inner: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mounted = |path: &ContainerPath| {
        let path = path.resolve(Task::WORKING_DIR);
        holds(&path, &context) || holds(&context, &path)
    };
    if build.streamed {
        // It would be unpacked over an input, which is read-only, or an input would hide a part of it.
        return match build.inputs.iter().find(|input| mounted(&input.path)) {
            Some(input) => Err(Error::invalid(format!(
                "the context comes as a tar to {}, where the input {} stands",
                build.context, input.path
            ))
            .with_hint("choose another path for the one or the other")),
            None => Ok(()),
        };
    }
    if build.inputs.iter().any(|input| mounted(&input.path)) {
        return Ok(());
    }
    let inputs: Vec<&str> = build.inputs.iter().map(|input| input.path.as_str()).collect();
    let (first, hint) = (
        build.context.as_str().split('/').next().unwrap_or_default(),
        match inputs.as_slice() {
            [] => "give the volume that holds it as an input".to_owned(),
            inputs => format!("the inputs are: {}", inputs.join(", ")),
        },
    );
    Err(Error::invalid(format!(
        "context {} is in no input: none is mounted at {first}",
        build.context
    ))
    .with_hint(hint))
}

fn check_dockerfile(build: &ImageBuild) -> Result<()> {
    if build.dockerfile.is_some() && build.options.dockerfile_inline.is_some() {
        return Err(
            Error::invalid("both a Dockerfile's path and an inline Dockerfile are given")
                .with_hint("keep one of the two"),
        );
    }
    let path =
        command::dockerfile(build).map_err(|error| Error::invalid(format!("dockerfile: {}", error.message())))?;
    if path.is_absolute() || path.as_str() == "." {
        return Err(Error::invalid(format!(
            "dockerfile {path} is not a file's path relative to the context or the working directory"
        )));
    }
    Ok(())
}

fn check_platforms(build: &ImageBuild) -> Result<()> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = build
        .platforms
        .iter()
        .map(ToString::to_string)
        .find(|platform| !seen.insert(platform.clone()))
    {
        return Err(Error::invalid(format!("platform {twice} is given twice")));
    }
    if build.platforms.len() > 1 && build.loads() {
        let how = if build.push { "with load" } else { "without push" };
        return Err(
            Error::invalid(format!("{} platforms are asked for {how}", build.platforms.len())).with_hint(
                "an engine's image store holds one platform of an image: push to a registry, name one platform, or set \
             `load: false` and an output of type oci",
            ),
        );
    }
    let attestation = build.options.provenance.map(|_| "provenance");
    let attestation = attestation.or(build.options.sbom.as_ref().map(|_| "sbom"));
    if let Some(attestation) = attestation.filter(|_| build.loads()) {
        let how = if build.push { "with load" } else { "without push" };
        return Err(Error::invalid(format!("{attestation} is asked for {how}"))
            .with_hint("an archive that an engine loads has no attestations: push to a registry"));
    }
    // They are public fields: what parsing refuses may still be in there.
    build
        .platforms
        .iter()
        .try_for_each(|platform| platform.to_string().parse::<orchestra::Platform>().map(|_| ()))
}

/// Where layers come from and go to has to be somewhere that is still there after the build.
fn check_layers(build: &ImageBuild) -> Result<()> {
    for from in &build.options.cache_from {
        let CacheFrom::Local(path) = from else { continue };
        let resolved = path.resolve(Task::WORKING_DIR);
        let of_input = build.inputs.iter().any(|input| {
            let rest = resolved.strip_prefix(&input.path.resolve(Task::WORKING_DIR));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if !of_input && command::in_cache(build, path).is_none() {
            return Err(Error::invalid(format!("cache_from {path} is in no input and no cache"))
                .with_hint("let its path begin with that of one of them"));
        }
    }
    for to in &build.options.cache_to {
        match to {
            CacheTo::Inline if !build.push => {
                return Err(Error::invalid("an inline cache is asked for without push")
                    .with_hint("an archive that an engine loads has none: push to a registry"));
            }
            CacheTo::Local { path, .. } => match command::in_cache(build, path) {
                None => {
                    return Err(Error::invalid(format!("cache_to {path} is in no cache"))
                        .with_hint("let its path begin with that of a cache: nothing else is kept"));
                }
                // Its root is root's.
                Some((_, inner)) if inner.is_empty() && build.rootless => {
                    return Err(Error::invalid(format!("cache_to {path} is a cache itself"))
                        .with_hint("a rootless build can write to a directory in it: add one to the path"));
                }
                Some(_) => {}
            },
            CacheTo::Registry { reference, .. } if build.tags().any(|tag| tag.canonical() == reference.canonical()) => {
                return Err(Error::invalid(format!("cache_to {reference} is the image's own name"))
                    .with_hint("choose another tag, or type=inline, which puts it into the image"));
            }
            _ => {}
        }
    }
    let in_bucket = build
        .options
        .cache_from
        .iter()
        .any(|from| matches!(from, CacheFrom::S3(_)))
        || build.options.cache_to.iter().any(|to| matches!(to, CacheTo::S3 { .. }));
    if let Some(credentials) = &build.cache_credentials {
        let one_line = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
        if !in_bucket
            || ![&credentials.username, &credentials.password]
                .into_iter()
                .all(|part| one_line(part.expose_secret()))
        {
            return Err(
                Error::invalid("cache_credentials are given without a cache of type=s3, or are empty")
                    .with_hint("give them an access key id and a secret access key, beside a cache of type=s3"),
            );
        }
    }
    Ok(())
}

pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) && !text.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BuildCache, BuildError, BuildInput};

    fn build() -> ImageBuild {
        let mut build = ImageBuild::new(
            "app".parse().unwrap(),
            "r.example.com/app:1".parse().unwrap(),
            "source/app".parse().unwrap(),
        );
        build.inputs.push(input("source"));
        build
    }

    fn input(path: &str) -> BuildInput {
        BuildInput {
            volume: "v".parse().unwrap(),
            path: path.parse().unwrap(),
        }
    }

    /// What is said when `change` is made to a valid build.
    fn refused(change: impl FnOnce(&mut ImageBuild)) -> String {
        let mut build = build();
        change(&mut build);
        match build.validate() {
            Err(BuildError::Job(error)) if error.kind() == orchestra::ErrorKind::InvalidInput => format!("{error:?}"),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn contains(text: &str, parts: &[&str]) {
        parts
            .iter()
            .for_each(|part| assert!(text.contains(part), "{part:?} is not in {text:?}"));
    }

    #[test]
    fn a_build_with_all_that_can_be_said_is_accepted() {
        let mut build = build();
        build.dockerfile = Some("source/docker/Dockerfile.prod".into());
        build.build_args.insert("GO_VERSION".into(), "1.26".into());
        build.target = Some("production".into());
        build.platforms = vec!["linux/amd64".parse().unwrap()];
        build.caches.push(BuildCache {
            volume: "c".parse().unwrap(),
            path: "/var/lib/buildkit".parse().unwrap(),
        });
        build.validate().unwrap();
        build.context = ".".parse().unwrap();
        build.validate().unwrap();
    }

    #[test]
    fn a_context_that_no_input_holds_is_refused_with_the_inputs() {
        contains(
            &refused(|build| build.context = "sources".parse().unwrap()),
            &["context sources", "none is mounted at sources", "are: source"],
        );
        contains(&refused(|build| build.inputs.clear()), &["source/app", "as an input"]);
        contains(
            &refused(|build| build.context = "/etc".parse().unwrap()),
            &["context /etc is absolute"],
        );
    }

    #[test]
    fn a_dockerfile_outside_is_refused() {
        for bad in ["/etc/passwd", "../Dockerfile", "a/../../b", "", ".", "a\nb"] {
            contains(&refused(|build| build.dockerfile = Some(bad.into())), &["dockerfile"]);
        }
    }

    #[test]
    fn two_volumes_at_one_place_are_refused() {
        contains(
            &refused(|build| build.inputs.push(input("./source"))),
            &["two mounts stand at /workspace/source"],
        );
        contains(
            &refused(|build| build.inputs.push(input("/orchestra"))),
            &["two mounts stand at /orchestra"],
        );
    }

    #[test]
    fn words_that_are_none_are_refused() {
        for bad in ["", "a b", "a=b", "a,b", "-a", "a\n"] {
            contains(
                &refused(|build| build.target = Some(bad.into())),
                &["target", "leave target out"],
            );
            contains(
                &refused(|build| drop(build.build_args.insert(bad.into(), String::new()))),
                &["build argument"],
            );
        }
        contains(
            &refused(|build| drop(build.env.0.insert("A=B".into(), String::new()))),
            &["environment variable"],
        );
    }

    #[test]
    fn a_secret_where_others_see_it_is_refused() {
        let secret = || "secret:TOKEN".to_owned();
        type Put = fn(&mut ImageBuild, String);
        let places: [(&str, Put); 4] = [
            ("variable A", |build, text| drop(build.env.0.insert("A".into(), text))),
            ("build argument A", |build, text| {
                drop(build.build_args.insert("A".into(), text))
            }),
            ("label a", |build, text| {
                drop(build.options.labels.insert("a".into(), text))
            }),
            ("annotation a", |build, text| {
                drop(build.options.annotations.insert("a".into(), text))
            }),
        ];
        for (what, put) in places {
            contains(
                &refused(|build| put(build, secret())),
                &[what, "secret, and", "type=secret"],
            );
            let mut open = build();
            open.push = true;
            put(&mut open, "no secret:TOKEN".to_owned());
            open.validate().unwrap();
        }
    }

    #[test]
    fn several_platforms_need_a_registry() {
        let two = || vec!["linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap()];
        contains(
            &refused(|build| build.platforms = two()),
            &["without push", "one platform"],
        );
        contains(
            &refused(|build| {
                (build.platforms, build.push) = (two(), true);
                build.outputs.push(crate::BuildOutput {
                    volume: "o".parse().unwrap(),
                    path: "out".parse().unwrap(),
                    format: OutputFormat::Loadable,
                });
            }),
            &["type=docker holds one platform", "write oci"],
        );
        let mut build = build();
        (build.platforms, build.push) = (two(), true);
        build.validate().unwrap();
        contains(
            &refused(|build| build.platforms = vec!["a/b".parse().unwrap(), "a/b".parse().unwrap()]),
            &["twice"],
        );
        contains(
            &refused(|build| {
                build.platforms = vec!["a/b".parse().unwrap()];
                build.platforms[0].os = "linux,push=false".into();
            }),
            &["platform"],
        );
    }

    #[test]
    fn an_image_goes_somewhere_and_what_goes_to_an_engine_is_what_it_takes() {
        contains(
            &refused(|build| build.load = Some(false)),
            &["neither pushed nor loaded"],
        );
        contains(
            &refused(|build| {
                (build.push, build.load, build.options.provenance) = (true, Some(true), Some(crate::Provenance::Min))
            }),
            &["provenance is asked for with load"],
        );
        contains(
            &refused(|build| build.options.context_url = Some("https://u:hunter2@git.test/a.git".into())),
            &["holds a password", "GIT_AUTH_TOKEN"],
        );
        contains(
            &refused(|build| build.options.context_url = Some("https://ghp_hunter2@git.test/a.git".into())),
            &["or a token", "GIT_AUTH_TOKEN"],
        );
        for key in ["Team.Note", "a note"] {
            let note = |build: &mut ImageBuild| _ = build.options.annotations.insert(key.into(), "x".into());
            contains(&refused(note), &[key, "lower case"]);
        }
        contains(
            &refused(|build| build.options.context_url = Some("/etc".into())),
            &["no URL"],
        );
        let mut build = build();
        build.inputs.clear();
        build.options.context_url = Some("git@git.test:team/app.git#main".into());
        build.validate().unwrap();
    }

    #[test]
    fn layers_go_where_they_stay() {
        let local = |path: &str| CacheTo::Local {
            path: path.parse().unwrap(),
            mode: crate::CacheMode::Min,
        };
        let cached = |build: &mut ImageBuild| {
            build.caches.push(BuildCache {
                volume: "c".parse().unwrap(),
                path: "layers".parse().unwrap(),
            });
        };
        contains(
            &refused(|build| build.options.cache_to = vec![local("layers")]),
            &["in no cache"],
        );
        contains(
            &refused(|build| {
                cached(build);
                build.options.cache_to = vec![local("layers2")];
            }),
            &["layers2 is in no cache"],
        );
        contains(
            &refused(|build| {
                cached(build);
                build.rootless = true;
                build.options.cache_to = vec![local("layers")];
            }),
            &["is a cache itself", "add one to the path"],
        );
        contains(
            &refused(|build| build.options.cache_from = vec![CacheFrom::Local("/etc".parse().unwrap())]),
            &["cache_from /etc"],
        );
        contains(
            &refused(|build| build.options.cache_to = vec![CacheTo::Inline]),
            &["without push"],
        );
        contains(
            &refused(|build| build.options.cache_to = vec!["r.example.com/app:1".parse().unwrap()]),
            &["own name"],
        );
        let mut build = build();
        cached(&mut build);
        build.options.cache_from = vec![CacheFrom::Local("source/layers".parse().unwrap())];
        build.options.cache_to = vec![local("layers")];
        build.validate().unwrap();
    }

    #[test]
    fn a_digest_can_not_be_chosen() {
        let tag = format!("app@sha256:{}", "0".repeat(64));
        contains(
            &refused(|build| build.tag = tag.parse().unwrap()),
            &["is pinned", "leave out the digest"],
        );
    }

    #[test]
    fn a_name_too_long_for_its_volume_is_refused() {
        contains(
            &refused(|build| build.name = "x".repeat(57).parse().unwrap()),
            &["at most 56"],
        );
        let mut build = build();
        build.name = "x".repeat(56).parse().unwrap();
        build.validate().unwrap();
    }

    #[test]
    fn a_timeout_of_nothing_is_refused() {
        contains(
            &refused(|build| build.timeout = Some(std::time::Duration::ZERO)),
            &["timeout is zero"],
        );
    }
}
