//! What is to be built, from the command's flags.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use orchestra::{ContainerPath, Credentials, ImageRef, Name, SecretString};
use orchestra_image_build::{
    BuildContext, BuildError, BuildOptions, CacheFrom, CacheTo, ImageBuild, RegistryAuth, is_url, parse_pairs,
};

use super::CONTEXT;
use crate::args::BuildArgs;
use crate::config::{Config, Rootless};
use crate::context;
use crate::exit::Failure;

/// A password that is longer is a mistake.
const LONGEST_PASSWORD: u64 = 64 * 1024;

/// Checks everything that can be checked before the engine is asked for anything.
///
/// Its context is yet to come.
pub(super) fn describe(args: &BuildArgs, config: &Config) -> Result<ImageBuild, Failure> {
    let url = args.dir.to_str().filter(|dir| is_url(dir));
    let [tag, further @ ..] = args.tags.as_slice() else {
        return Err(Failure::bad_input("the image has no name".to_owned()).with_hint("give one with --tag"));
    };
    let mut build = ImageBuild::new(name(tag)?, tag.clone(), ContainerPath::new(CONTEXT)?);
    build.options = options(args)?;
    build.options.tags = further.to_vec();
    if let Some(url) = url {
        build.options.context_url = Some(url.to_owned());
        build.dockerfile.clone_from(&args.file);
    } else {
        context::check(&args.dir)?;
        build = build.context_from(stream::empty().boxed());
        build.dockerfile = Some(dockerfile(&args.dir, args.file.as_deref())?);
    }
    build.push = args.push;
    // An engine takes one platform: who writes several to a file wants them there.
    let is_written = args.platforms.len() > 1 && !args.push && !args.outputs.is_empty();
    build.load = args.load.then_some(true).or(is_written.then_some(false));
    build.build_args = of_files(&args.build_arg_files)?;
    build.build_args.extend(pairs("build argument", &args.build_args)?);
    for key in &args.ssh {
        let (id, file) = key.split_once('=').unwrap_or(("default", key));
        build
            .ssh
            .insert(id.to_owned(), text("ssh key", Path::new(file))?.into());
    }
    build.cache_credentials = cache_credentials(&build.options);
    build.env = pairs("variable", &args.env)?.into_iter().collect();
    let reference = |key: &str| (key.to_owned(), format!("secret:{key}").into());
    build.secrets = args.secrets.keys().map(reference).collect();
    build.target = args.target.clone();
    build.platforms = args.platforms.clone();
    if let Some(image) = args.image.as_ref().or(config.image_build.image.as_ref()) {
        build.image = image.clone();
    }
    if args.rootless || config.image_build.rootless == Rootless::Yes {
        build = build.rootless();
    }
    build.network = args.network.or(config.image_build.network).unwrap_or_default();
    build.timeout = args.timeout;
    build.attempts = args.attempts;
    let credentials = args
        .username
        .clone()
        .map(|username| Ok::<_, Failure>(Credentials::new(username, password(io::stdin())?)))
        .transpose()?;
    let read = |file: &Option<PathBuf>| file.as_deref().map(|file| text("certificate", file)).transpose();
    let ca = read(&args.registry_ca)?;
    let client = read(&args.registry_cert)?.zip(read(&args.registry_key)?);
    // By the user's own client it is logged in to later.
    let by_client = args.registry.is_some() && (args.secrets.use_docker_config || config.secrets.use_docker_config);
    if credentials.is_some() || args.insecure || ca.is_some() || client.is_some() || by_client {
        let mut registry = RegistryAuth::default();
        registry.hostname = args.registry.clone();
        registry.credentials = credentials;
        registry.insecure = args.insecure;
        registry.ca = ca;
        registry.client = client.map(|(certificate, key)| (certificate, key.into()));
        build.registry = Some(registry);
    } else if let Some(host) = &args.registry {
        return Err(
            Failure::bad_input(format!("nothing is said of how the registry {host} is spoken to")).with_hint(
                "give --username with --password-stdin, --use-docker-config, --registry-ca or --registry-cert",
            ),
        );
    }
    build
        .validate()
        .map_err(|error| broken(&error).unwrap_or_else(|| Failure::bad_input(error.to_string())))?;
    Ok(build)
}

fn options(args: &BuildArgs) -> Result<BuildOptions, Failure> {
    let mut options = BuildOptions::default();
    options.labels = of_files(&args.label_files)?;
    options.labels.extend(pairs("label", &args.labels)?);
    options.run_network = args.run_network.unwrap_or_default();
    options.sbom.clone_from(&args.sbom);
    for (name, path) in pairs("image argument", &args.image_args)? {
        options.image_args.insert(name, within(&path)?);
    }
    options.annotations = pairs("annotation", &args.annotations)?;
    options.extra_hosts.clone_from(&args.extra_hosts);
    options.ulimits.clone_from(&args.ulimits);
    options.shm_size = args.shm_size;
    options.frontend.clone_from(&args.frontend);
    options.no_cache = args.no_cache;
    options.no_cache_filter.clone_from(&args.no_cache_filter);
    for (name, context) in pairs("build context", &args.build_contexts)? {
        let mut context: BuildContext = context.parse()?;
        if let BuildContext::OciLayout(path) = &mut context {
            *path = within(path.as_str())?;
        }
        if matches!(context, BuildContext::Directory(_)) {
            let message = format!("the build context {name} is a directory, and this command sends one alone");
            return Err(Failure::bad_input(message)
                .with_hint("let the main context hold it, or build in a pipeline, whose builds have inputs"));
        }
        options.build_contexts.insert(name, context);
    }
    options.source_date_epoch = args.source_date_epoch;
    options.provenance = args.provenance;
    options.cache_from.clone_from(&args.cache_from);
    options.cache_to.clone_from(&args.cache_to);
    for mirror in &args.mirrors {
        let (host, mirror) = mirror.split_once('=').ok_or_else(|| {
            Failure::bad_input(format!("the mirror {mirror:?} has no registry")).with_hint("write it as REGISTRY=HOST")
        })?;
        options
            .mirrors
            .entry(host.to_owned())
            .or_default()
            .push(mirror.to_owned());
    }
    if let Some(file) = &args.buildkitd_config {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Failure::bad_input(format!("read BuildKit's configuration {}: {error}", file.display()))
        })?;
        options.buildkitd_config = Some(text);
    }
    Ok(options)
}

/// Whether something reads the context that does not know its ignore file: another frontend, or what takes images out of it.
pub(super) fn is_read_by_others(build: &ImageBuild) -> bool {
    let options = &build.options;
    let is_layout = |context: &BuildContext| matches!(context, BuildContext::OciLayout(_));
    options.context_url.is_some()
        || options.frontend.is_some()
        || build.build_args.contains_key("BUILDKIT_SYNTAX")
        || !options.image_args.is_empty()
        || options.build_contexts.values().any(is_layout)
}

/// What is at a path of the context.
fn within(path: &str) -> Result<ContainerPath, Failure> {
    let path = ContainerPath::new(path)?;
    if path.is_absolute() {
        return Err(Failure::bad_input(format!("{path} is absolute")).with_hint("write it relative to the context"));
    }
    Ok(ContainerPath::new(format!("{CONTEXT}/{path}"))?)
}

/// The text of a small file.
fn text(what: &str, file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::bad_input(format!("read the {what} {}: {error}", file.display())))
}

/// Pairs of these files; the last wins.
fn of_files(files: &[PathBuf]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for file in files {
        let read = parse_pairs(&text("file", file)?);
        pairs.extend(read.map_err(|error| Failure::bad_input(format!("{}: {}", file.display(), error.message())))?);
    }
    Ok(pairs)
}

/// What opens a bucket, from where all of its clients take it.
fn cache_credentials(options: &BuildOptions) -> Option<Credentials> {
    let in_bucket = options.cache_from.iter().any(|from| matches!(from, CacheFrom::S3(_)))
        || options.cache_to.iter().any(|to| matches!(to, CacheTo::S3 { .. }));
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let credentials = set("AWS_ACCESS_KEY_ID").zip(set("AWS_SECRET_ACCESS_KEY"));
    credentials
        .filter(|_| in_bucket)
        .map(|(id, key)| Credentials::new(id, key))
}

/// Pairs of the form `NAME=VALUE`. As docker's client has it, `NAME` alone takes the environment's value, and one that the
/// environment does not have is not set.
fn pairs(what: &str, given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut pairs = BTreeMap::new();
    for pair in given {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (pair.as_str(), std::env::var(pair).ok()),
        };
        if name.is_empty() {
            return Err(
                Failure::bad_input(format!("the {what} {pair:?} has no name")).with_hint("write it as NAME=VALUE")
            );
        }
        pairs.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(pairs)
}

/// The build is called as its image is, without registry and tag.
fn name(tag: &ImageRef) -> Result<Name, orchestra::Error> {
    let last = tag.repository().rsplit('/').next().unwrap_or_default();
    Name::new(last.get(..last.len().min(50)).unwrap_or_default()).or_else(|_| Name::new("image"))
}

/// The core's error in a build's, with its hint.
fn broken(error: &BuildError) -> Option<Failure> {
    let hint = error.hint();
    error
        .engine_error()
        .map(|inner| Failure::text(inner.kind().into(), error.to_string(), hint))
}

/// The Dockerfile's path in the context. It is looked for there, and then, as docker's client does it, from here.
fn dockerfile(context: &Path, given: Option<&str>) -> Result<String, Failure> {
    let name = given.unwrap_or("Dockerfile");
    if context.join(name).is_file() && !Path::new(name).is_absolute() {
        return Ok(name.to_owned());
    }
    if let Some(given) = given
        && let (Ok(file), Ok(context)) = (Path::new(given).canonicalize(), context.canonicalize())
        && file.is_file()
    {
        let inside = file.strip_prefix(&context).ok().and_then(Path::to_str);
        return inside.map(ToOwned::to_owned).ok_or_else(|| {
            Failure::bad_input(format!(
                "the Dockerfile {given} is outside of the context {}",
                context.display()
            ))
            .with_hint("move it into the context, or give a directory that has both")
        });
    }
    let missing = format!("there is no Dockerfile {name:?} in {}", context.display());
    Err(Failure::bad_input(missing).with_hint("name it by --file, relative to the context"))
}

/// One line of standard input.
fn password(input: impl Read) -> Result<SecretString, Failure> {
    let mut text = String::new();
    let read = input.take(LONGEST_PASSWORD).read_to_string(&mut text);
    read.map_err(|error| Failure::bad_input(format!("read the password from standard input: {error}")))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Failure::bad_input("standard input has no password")
            .with_hint("write it there: `orchestra build … --password-stdin < FILE`")),
        password => Ok(password.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use std::fs;

    #[test]
    fn pairs_take_what_the_environment_has_and_need_a_name() {
        let given = ["A=1=2", "B=", "ORCHESTRA_NOT_SET_ANYWHERE"].map(str::to_owned);
        let expected = [("A", "1=2"), ("B", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pairs("variable", &given).unwrap(), expected.into());
        assert!(pairs("variable", &["=x".to_owned()]).is_err());
    }

    #[test]
    fn a_frontend_is_an_image_and_a_build_is_tried_once_at_least() {
        let parsed = |more: &[&str]| {
            let command = [&["orchestra", "build", "-t", "app"], more].concat();
            match Cli::try_parse_from(command).map(|cli| cli.command) {
                Ok(Command::Build(args)) => Ok(args),
                Ok(_) => panic!("another command"),
                Err(error) => Err(error.to_string()),
            }
        };
        let args = parsed(&["--frontend", "r.test/docker/dockerfile:1", "--attempts", "3"]).unwrap();
        let frontend = options(&args).unwrap().frontend.unwrap();
        assert_eq!((frontend.registry(), args.attempts), ("r.test", 3));
        assert_eq!(parsed(&[]).unwrap().attempts, 1);
        for wrong in [["--frontend", "NO IMAGE"], ["--attempts", "0"]] {
            assert!(parsed(&wrong).unwrap_err().contains(wrong[0]));
        }
    }

    #[test]
    fn a_dockerfile_is_found_in_the_context_and_from_here_but_not_outside() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().join("context");
        fs::create_dir_all(context.join("docker")).unwrap();
        let said = |given: Option<&str>| dockerfile(&context, given).map_err(|failure| format!("{failure:?}"));
        assert!(said(None).unwrap_err().contains("there is no Dockerfile"));
        for file in [
            context.join("Dockerfile"),
            context.join("docker/Prod"),
            dir.path().join("Outside"),
        ] {
            fs::write(file, "FROM scratch").unwrap();
        }
        let path = |name: &str| context.join(name).display().to_string();
        assert_eq!(said(None).unwrap(), "Dockerfile");
        assert_eq!(said(Some("docker/Prod")).unwrap(), "docker/Prod");
        assert_eq!(said(Some(&path("docker/Prod"))).unwrap(), "docker/Prod");
        assert!(
            said(Some(&path("../Outside")))
                .unwrap_err()
                .contains("outside of the context")
        );
        assert!(
            said(Some("docker")).unwrap_err().contains("there is no Dockerfile"),
            "a directory"
        );
    }

    #[test]
    fn a_password_is_one_line_and_is_never_shown() {
        use orchestra::ExposeSecret;
        assert_eq!(password(&b"hunter2\r\n"[..]).unwrap().expose_secret(), "hunter2");
        assert!(password(&b"\n"[..]).is_err());
        assert!(!format!("{:?}", password(&b"hunter2\n"[..]).unwrap()).contains("hunter2"));
    }
}
