//! The build container: its script, its arguments and all else of its task.

use bytes::Bytes;
use orchestra::tar::{self, EntryType, Head};
use orchestra::{
    ContainerPath, ExposeSecret, ImageRef, InjectedFile, Mount, Profile, Result, Task, VolumeId, VolumePath, labels,
};

use crate::{BuildCache, BuildOutput, CacheTo, ImageBuild, OutputFormat, RegistryAuth, registry};

/// What runs in the container. Its exit codes are those below, else `buildctl`'s.
const SCRIPT: &str = include_str!("build.sh");
/// The context is no directory.
pub(crate) const CONTEXT_MISSING: u8 = 91;
/// The Dockerfile is neither in the context nor in the working directory.
pub(crate) const DOCKERFILE_MISSING: u8 = 92;
/// The context or the Dockerfile's directory is a symbolic link that leads out of the working directory.
pub(crate) const OUTSIDE: u8 = 93;

/// Where the output volume stands, if there is one: outside of the working directory, so that no context contains it.
const OUT: &str = "/orchestra";
/// In the output volume: the image, if it is not pushed.
const IMAGE: &str = "image.tar";
/// What an unprivileged builder can write to in a volume: an engine makes its root root's.
const OWN: &str = "rootless";

/// Where a privileged daemon keeps its state.
const STATE: &str = "/var/lib/buildkit";
/// The user of the rootless image, and the group.
const USER: u32 = 1000;
/// Without it the daemon would have to mount `/proc` in a process namespace of each step, which engines let only privileged
/// containers do (moby/buildkit, docs/rootless.md).
const NO_SANDBOX: &str = "--oci-worker-no-process-sandbox";
const FLAGS: &str = "BUILDKITD_FLAGS";

/// Where the build's secrets stand, for `buildctl` alone: it hands each to the steps that mount it.
const SECRETS: &str = "/.orchestra-secrets";

/// `buildctl-daemonless.sh` tries 10 times, about 2 seconds, to reach the daemon it started, which a slow host needs more
/// than (moby/buildkit issues 1423 and 3002). Its pauses grow: 60 are about 40 seconds.
const RETRIES: (&str, &str) = ("BUILDCTL_CONNECT_RETRIES_MAX", "60");

/// The build's task; with its image on the volume `out`, if it is not pushed.
pub(crate) fn task(build: &ImageBuild, out: Option<&VolumeId>) -> Result<Task> {
    let registries: Vec<_> = build.registry.iter().chain(&build.base_registries).collect();
    let mut task = Task::with_image(build.name.clone(), build.image.clone())
        .command(argv(build, &configuration(build, &registries))?)
        .working_dir(Task::WORKING_DIR)?
        .privileged(!build.rootless)
        .network(build.network)
        .pull(build.pull)
        .attempts(build.attempts);
    if let Some(out) = out {
        task = task.mount(out, OUT)?;
    }
    task.spec.stdin = build.streamed;
    let inputs = build.inputs.iter().map(|input| (&input.volume, &input.path, true));
    let caches = build.caches.iter().map(|cache| (&cache.volume, &cache.path, false));
    let outputs = build.outputs.iter();
    let outputs = outputs.map(|output| (&output.volume, &output.path, false));
    task.spec.mounts.extend(
        inputs
            .chain(caches)
            .chain(outputs)
            .map(|(volume, target, read_only)| Mount {
                volume: volume.clone(),
                target: target.clone(),
                read_only,
            }),
    );
    task.spec.env = build.env.clone();
    task.spec
        .env
        .0
        .entry(RETRIES.0.to_owned())
        .or_insert_with(|| RETRIES.1.to_owned());
    let rawjson = labels::OUTPUT_RAWJSON.to_owned();
    task.spec.labels.insert(labels::OUTPUT.to_owned(), rawjson);
    for (id, value) in &build.secrets {
        let path = ContainerPath::new(format!("{SECRETS}/{id}"))?;
        let mut file = InjectedFile::new(path, value.expose_secret().to_owned());
        if build.rootless {
            (file.uid, file.gid) = (USER, USER);
        }
        task = task.file(file);
    }
    if build.rootless {
        // The daemon makes a user namespace, and mounts in there; both engines' profiles forbid that.
        task.spec.security.seccomp = Profile::Unconfined;
        task.spec.security.apparmor = Profile::Unconfined;
        let state = build.caches.iter().any(|cache| cache.path.as_str() == STATE);
        let root = if state {
            format!(" --root={STATE}/{OWN}")
        } else {
            String::new()
        };
        let flags = task.spec.env.0.entry(FLAGS.to_owned()).or_default();
        *flags = format!("{NO_SANDBOX}{root} {flags}").trim_end().to_owned();
    }
    if let Some(mut file) = registry::credentials(&registries, &build.tag, build.rootless)? {
        if build.rootless {
            (file.uid, file.gid) = (USER, USER);
        }
        task = task.file(file);
    }
    let of_image = registries
        .iter()
        .find(|registry| registry.host(&build.tag) == build.image.registry());
    if let Some(credentials) = of_image.and_then(|registry| registry.credentials.clone()) {
        task = task.credentials(credentials);
    }
    if let Some(timeout) = build.timeout {
        task = task.timeout(timeout);
    }
    Ok(task)
}

/// The daemon's `buildkitd.toml`; empty if it has nothing to be told.
fn configuration(build: &ImageBuild, registries: &[&RegistryAuth]) -> String {
    let mut configuration = registry::configuration(registries, &build.tag, &build.options);
    let keeps_state = ContainerPath::new(STATE).is_ok_and(|state| in_cache(build, &state).is_some());
    if keeps_state && !configuration.contains("[history]") {
        // The record of a build has all that its steps have written, with every secret among it. It would stay in the
        // cache, as it was written.
        configuration.push_str("[history]\n  maxEntries = 0\n");
    }
    configuration
}

/// Where the image comes out, from the output volume's root.
pub(crate) fn image(build: &ImageBuild) -> Result<VolumePath> {
    VolumePath::new(if build.rootless {
        format!("{OWN}/{IMAGE}")
    } else {
        IMAGE.to_owned()
    })
}

/// The volumes that an unprivileged builder writes to, each with the tar that gives it a directory there.
pub(crate) fn prepared<'a>(build: &'a ImageBuild, out: Option<&'a VolumeId>) -> Vec<(&'a VolumeId, Bytes)> {
    if !build.rootless {
        return Vec::new();
    }
    let state = build.caches.iter().filter(|cache| cache.path.as_str() == STATE);
    let own = out.into_iter().chain(state.map(|cache| &cache.volume));
    let own = own.map(|volume| (volume, directory(OWN)));
    let local = build.options.cache_to.iter().filter_map(|to| match to {
        CacheTo::Local { path, .. } => in_cache(build, path),
        _ => None,
    });
    let local = local.map(|(cache, inner)| (&cache.volume, directory(&inner)));
    // It can't make a file in a root that is root's, and can write to one that is there.
    let outputs = build.outputs.iter().filter_map(|output| {
        let archive = output.format.archive()?;
        Some((&output.volume, owned(EntryType::Regular, 0o644, archive.as_str())))
    });
    own.chain(local).chain(outputs).collect()
}

/// The cache that holds a path, and the path in there.
pub(crate) fn in_cache<'a>(build: &'a ImageBuild, path: &ContainerPath) -> Option<(&'a BuildCache, String)> {
    let path = path.resolve(Task::WORKING_DIR);
    build.caches.iter().find_map(|cache| {
        let inner = path.strip_prefix(&cache.path.resolve(Task::WORKING_DIR))?;
        (inner.is_empty() || inner.starts_with('/')).then(|| (cache, inner.trim_matches('/').to_owned()))
    })
}

/// A tar of one directory, which is the unprivileged builder's.
fn directory(path: &str) -> Bytes {
    owned(EntryType::Directory, 0o700, &format!("{path}/"))
}

fn owned(kind: EntryType, mode: u32, name: &str) -> Bytes {
    let head = Head {
        kind,
        mode,
        uid: USER,
        gid: USER,
        ..Head::file(0)
    };
    let mut tar = head.blocks(name);
    tar.push(tar::END);
    tar.concat().into()
}

/// The Dockerfile's path as it was given.
pub(crate) fn dockerfile(build: &ImageBuild) -> Result<ContainerPath> {
    ContainerPath::new(build.dockerfile.as_deref().unwrap_or("Dockerfile"))
}

fn argv(build: &ImageBuild, configuration: &str) -> Result<Vec<String>> {
    let dockerfile = build.dockerfile.as_deref().unwrap_or("Dockerfile");
    let mut argv: Vec<String> = [
        "sh",
        "-c",
        SCRIPT,
        "orchestra-build",
        build.context.as_str(),
        dockerfile,
        if build.streamed { "streamed" } else { "" },
        configuration,
        build.options.dockerfile_inline.as_deref().unwrap_or_default(),
    ]
    .map(str::to_owned)
    .into();
    // An option's value is an argument of its own: `buildctl` takes trailing blanks from `--opt=VALUE`.
    let mut opt = |value: String| argv.extend(["--opt".to_owned(), value]);
    build
        .build_args
        .iter()
        .for_each(|(key, value)| opt(format!("build-arg:{key}={value}")));
    build.target.iter().for_each(|target| opt(format!("target={target}")));
    if !build.platforms.is_empty() {
        let platforms: Vec<_> = build.platforms.iter().map(ToString::to_string).collect();
        opt(format!("platform={}", platforms.join(",")));
    }
    let secrets = build.secrets.keys();
    argv.extend(secrets.map(|id| format!("--secret=id={id},src={SECRETS}/{id}")));
    argv.push(format!(
        "--frontend={}",
        if build.options.frontend.is_some() {
            "gateway.v0"
        } else {
            "dockerfile.v0"
        }
    ));
    argv.extend(build.options.arguments());
    for from in &build.options.cache_from {
        argv.push(format!("--import-cache={}", record(&from.fields(Task::WORKING_DIR))));
    }
    for to in &build.options.cache_to {
        argv.push(format!("--export-cache={}", record(&to.fields(Task::WORKING_DIR))));
    }
    // The last one's digest is the build's.
    argv.extend(
        build
            .outputs
            .iter()
            .map(|output| format!("--output={}", written(build, output))),
    );
    argv.push(format!("--output={}", output(build)?));
    Ok(argv)
}

/// The record of what is written to a volume.
fn written(build: &ImageBuild, output: &BuildOutput) -> String {
    let mut fields = output.format.fields(&output.path.resolve(Task::WORKING_DIR));
    if output.format.is_image() {
        let names: Vec<_> = build.tags().map(ImageRef::canonical).collect();
        fields.push(format!("name={}", names.join(",")));
        // `docker load` knows none.
        let has_annotations = output.format != OutputFormat::Loadable;
        fields.extend(build.options.output(has_annotations));
    }
    record(&fields)
}

/// A record of comma separated values, as `--output` is read.
fn output(build: &ImageBuild) -> Result<String> {
    let names: Vec<_> = build.tags().map(ImageRef::canonical).collect();
    let name = format!("name={}", names.join(","));
    let mut registries = build.registry.iter().chain(&build.base_registries);
    let insecure = registries.any(|registry| registry.insecure && registry.host(&build.tag) == build.tag.registry());
    let mut fields = if build.push {
        vec!["type=image".to_owned(), name, "push=true".to_owned()]
    } else {
        vec!["type=docker".to_owned(), name, format!("dest={OUT}/{}", image(build)?)]
    };
    if build.push && insecure {
        fields.push("registry.insecure=true".to_owned());
    }
    fields.extend(build.options.output(build.push));
    Ok(record(&fields))
}

fn record(fields: &[String]) -> String {
    fields.iter().map(|field| csv(field)).collect::<Vec<_>>().join(",")
}

/// One field (RFC 4180).
fn csv(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orchestra::{Credentials, ExposeSecret};

    fn build() -> ImageBuild {
        ImageBuild::new(
            "app".parse().unwrap(),
            "r.example.com/app:1".parse().unwrap(),
            "source".parse().unwrap(),
        )
    }

    fn arguments(build: &ImageBuild) -> Vec<String> {
        argv(build, "").unwrap().split_off(4)
    }

    #[test]
    fn a_build_that_says_nothing_is_loaded_from_the_output_volume() {
        assert_eq!(
            arguments(&build()),
            [
                "source",
                "Dockerfile",
                "",
                "",
                "",
                "--frontend=dockerfile.v0",
                "--output=type=docker,name=r.example.com/app:1,dest=/orchestra/image.tar",
            ]
        );
    }

    #[test]
    fn everything_that_is_said_becomes_one_argument() {
        let mut build = build();
        build.push = true;
        build.dockerfile = Some("source/Docker file".into());
        build.build_args = [("A", "x, y\n$(id) \"'"), ("B", "")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        build.target = Some("production".into());
        build.platforms = vec!["linux/amd64".parse().unwrap(), "linux/arm/v7".parse().unwrap()];
        build.registry = Some(RegistryAuth {
            insecure: true,
            ..RegistryAuth::default()
        });
        assert_eq!(
            arguments(&build),
            [
                "source",
                "source/Docker file",
                "",
                "",
                "",
                "--opt",
                "build-arg:A=x, y\n$(id) \"'",
                "--opt",
                "build-arg:B=",
                "--opt",
                "target=production",
                "--opt",
                "platform=linux/amd64,linux/arm/v7",
                "--frontend=dockerfile.v0",
                "--output=type=image,name=r.example.com/app:1,push=true,registry.insecure=true",
            ]
        );
    }

    #[test]
    fn a_field_stays_one_field() {
        assert_eq!(csv("name=a,push=false"), "\"name=a,push=false\"");
        assert_eq!(csv("a\"b"), "\"a\"\"b\"");
        assert_eq!(csv("name=a"), "name=a");
    }

    #[test]
    fn the_script_is_the_same_whatever_is_built() {
        let mut other = build();
        other.context = "$(reboot)".parse().unwrap();
        other.dockerfile = Some("`reboot`".into());
        assert_eq!(
            argv(&build(), "").unwrap()[..4],
            argv(&other, "$(reboot)").unwrap()[..4]
        );
    }

    #[test]
    fn a_password_is_in_no_part_of_the_container_that_an_engine_shows() {
        let mut build = build();
        build.registry = Some(RegistryAuth::new(Credentials::new("robot", "hunter2")));
        let task = task(&build, Some(&"out".parse().unwrap())).unwrap();
        let password = build.registry.as_ref().unwrap().credentials.as_ref().unwrap();
        assert_eq!(password.password.expose_secret(), "hunter2");
        let encoded = "cm9ib3Q6aHVudGVyMg";
        let shown = format!("{task:?} {:?} {:?} {build:?}", task.spec.env.0, task.spec.entrypoint);
        assert!(!shown.contains("hunter2") && !shown.contains(encoded), "{shown}");
    }

    #[test]
    fn state_that_is_kept_holds_no_record_of_what_steps_have_written() {
        let mut build = build();
        assert_eq!(configuration(&build, &[]), "");
        build.caches.push(BuildCache {
            volume: "state".parse().unwrap(),
            path: STATE.parse().unwrap(),
        });
        assert_eq!(configuration(&build, &[]), "[history]\n  maxEntries = 0\n");
        build.options.buildkitd_config = Some("[history]\n  maxEntries = 7".to_owned());
        assert_eq!(configuration(&build, &[]), "[history]\n  maxEntries = 7\n");
    }

    #[test]
    fn a_build_secret_is_a_file_for_the_builder_and_its_path_an_argument() {
        let mut build = build();
        build.secrets.insert("npm-token".into(), "hunter2".into());
        assert!(arguments(&build).contains(&"--secret=id=npm-token,src=/.orchestra-secrets/npm-token".to_owned()));
        let task = task(&build, None).unwrap();
        let shown = format!("{task:?} {:?} {build:?}", task.spec.entrypoint);
        assert!(shown.contains("/.orchestra-secrets/npm-token: 7 bytes, mode 600") && !shown.contains("hunter2"));
    }

    #[test]
    fn a_rootless_build_asks_for_no_privilege_and_owns_what_it_writes_to() {
        let (out, state) = ("out".parse().unwrap(), "state".parse().unwrap());
        let mut build = build().rootless();
        build.caches.push(BuildCache {
            volume: state,
            path: STATE.parse().unwrap(),
        });
        build.env.0.insert(FLAGS.into(), "--debug".into());
        build.registry = Some(RegistryAuth::new(Credentials::new("robot", "hunter2")));
        let task = task(&build, Some(&out)).unwrap();
        assert_eq!(build.image.as_str(), crate::DEFAULT_ROOTLESS_IMAGE);
        assert!(!task.spec.privileged && task.spec.cap_add.is_empty());
        assert_eq!(
            task.spec.env.0[FLAGS],
            "--oci-worker-no-process-sandbox --root=/var/lib/buildkit/rootless --debug"
        );
        let prepared = prepared(&build, Some(&out));
        assert_eq!(prepared.len(), 2);
        assert!(prepared.iter().all(|(_, tar)| tar.len() == 3 * 512));
        assert!(
            arguments(&build)
                .iter()
                .any(|argument| argument.ends_with("dest=/orchestra/rootless/image.tar"))
        );
    }

    #[test]
    fn what_the_user_says_of_the_connection_wins() {
        let mut build = build();
        let tries = |build: &ImageBuild| task(build, None).unwrap().spec.env.0[RETRIES.0].clone();
        assert_eq!(tries(&build), "60");
        build.env.0.insert(RETRIES.0.into(), "3".into());
        assert_eq!(tries(&build), "3");
    }
}
