//! The build container: its script, its arguments and all else of its task.

use bytes::Bytes;
use orchestra::tar::{self, EntryType, Head};
use orchestra::{
    ContainerPath, Credentials, ExposeSecret, InjectedFile, Mount, Name, NetworkMode, Profile, Result, SecretString,
    Security, Task, VolumeId, VolumePath, labels,
};

use crate::arguments::{Place, argv};
use crate::validate::{HISTORY, field};
use crate::{BuildCache, CacheTo, ImageBuild, RegistryAuth, registry};

/// The context is no directory.
pub(crate) const CONTEXT_MISSING: u8 = 91;
/// The Dockerfile is neither in the context nor in the working directory.
pub(crate) const DOCKERFILE_MISSING: u8 = 92;
/// The context or the Dockerfile's directory is a symbolic link that leads out of the working directory.
pub(crate) const OUTSIDE: u8 = 93;
/// A platform has `RUN` steps, and its programs can't run on the engine's host.
pub(crate) const NO_EMULATOR: u8 = 94;

/// Where the output volume stands, if there is one: outside of the working directory, so that no context contains it.
pub(crate) const OUT: &str = "/orchestra";
/// In the output volume: the image, if it is loaded.
pub(crate) const IMAGE: &str = "image.tar";
/// In there too: the image's root file system, if a volume is to have it. A tar has the owners of files as they are, whoever
/// the builder is.
pub(crate) const ROOTFS: &str = "rootfs.tar";
/// And the image's configuration, which goes with that.
pub(crate) const CONFIG: &str = "config.json";
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
pub(crate) const SECRETS: &str = "/.orchestra-secrets";
/// In there: keys that the agent of the build has. No secret's id begins with a dot.
pub(crate) const SSH: &str = ".ssh";
/// In there: what the cache in a bucket is opened with, which `build.sh` makes the daemon's.
const S3: &str = ".s3";
/// What an image of an archive is called in the Dockerfile, with a number.
pub(crate) const IMAGE_ARG: &str = "orchestra-image-arg-";

/// The build's task; with its image on the volume `out`, if it is not pushed.
pub(crate) fn task(build: &ImageBuild, out: Option<&VolumeId>, place: Place<'_>) -> Result<Task> {
    let registries: Vec<_> = build.registry.iter().chain(&build.base_registries).collect();
    let configuration = configuration(build, &registries);
    let mut task = Task::with_image(build.name.clone(), build.image.clone())
        .command(argv(build, &configuration, place)?)
        .working_dir(Task::WORKING_DIR)?
        .attempts(build.attempts);
    task = confined(task, build);
    if let Some(out) = out {
        task = task.mount(out, OUT)?;
    }
    task.spec.stdin = build.streamed;
    let inputs = build.inputs.iter().map(|input| (&input.volume, &input.path, true));
    let caches = build.caches.iter().map(|cache| (&cache.volume, &cache.path, false));
    let outputs = build.all_outputs().map(|output| (&output.volume, &output.path, false));
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
    task.spec.mounts.extend(place.shared.map(|shared| shared.mount.clone()));
    task.spec.labels.clone_from(&build.labels);
    let rawjson = labels::OUTPUT_RAWJSON.to_owned();
    task.spec.labels.insert(labels::OUTPUT.to_owned(), rawjson);
    for file in files(build, &registries)? {
        task = task.file(file);
    }
    if let Some(timeout) = build.timeout {
        task = task.timeout(timeout);
    }
    Ok(task)
}

/// Whether BuildKit's state outlives the build.
pub(crate) fn keeps_state(build: &ImageBuild) -> bool {
    ContainerPath::new(STATE).is_ok_and(|state| in_cache(build, &state).is_some())
}

/// The daemon's `buildkitd.toml`; empty if it has nothing to be told.
pub(crate) fn configuration(build: &ImageBuild, registries: &[&RegistryAuth]) -> String {
    let mut configuration = registry::configuration(registries, &build.tag, &build.options);
    let own = build.options.daemon_config().ok().flatten();
    if keeps_state(build) && own.is_none_or(|own| field(&own, HISTORY).is_none()) {
        // The record of a build has all that its steps have written, with every secret among it. It would stay in the
        // cache, as it was written.
        configuration.push_str("[history]\n  maxEntries = 0\n");
    }
    configuration
}

/// The task with what a daemon of this build's needs, and no more.
pub(crate) fn confined(mut task: Task, build: &ImageBuild) -> Task {
    task = task.privileged(!build.rootless).network(build.network).pull(build.pull);
    task.spec.env = build.env.clone();
    if build.rootless {
        // The daemon makes a user namespace, and mounts in there; both engines' profiles forbid that.
        task.spec.security.seccomp = Profile::Unconfined;
        task.spec.security.apparmor = Profile::Unconfined;
    }
    let flags = flags(build);
    if !flags.is_empty() {
        let given = task.spec.env.0.entry(FLAGS.to_owned()).or_default();
        *given = format!("{flags} {given}").trim_end().to_owned();
    }
    let mut registries = build.registry.iter().chain(&build.base_registries);
    let of_image = registries.find(|registry| registry.host(&build.tag) == build.image.registry());
    if let Some(credentials) = of_image.and_then(|registry| registry.credentials.clone()) {
        task = task.credentials(credentials);
    }
    task
}

/// The cache that has the daemon's state.
pub(crate) fn state(build: &ImageBuild) -> Option<&BuildCache> {
    build.caches.iter().find(|cache| cache.path.as_str() == STATE)
}

/// What the daemon is told besides what the user tells it.
pub(crate) fn flags(build: &ImageBuild) -> String {
    let mut flags = Vec::new();
    if build.rootless {
        flags.push(NO_SANDBOX.to_owned());
        if state(build).is_some() {
            flags.push(format!("--root={STATE}/{OWN}"));
        }
    }
    if build.options.run_network == NetworkMode::Host {
        flags.push("--allow-insecure-entitlement=network.host".to_owned());
    }
    flags.join(" ")
}

/// Everything that only the builder may read.
fn files(build: &ImageBuild, registries: &[&RegistryAuth]) -> Result<Vec<InjectedFile>> {
    let secret = |path: &str, value: &SecretString| {
        let path = ContainerPath::new(format!("{SECRETS}/{path}"))?;
        Ok(InjectedFile::secret(path, value.expose_secret().to_owned()))
    };
    let mut files = Vec::new();
    for (id, value) in &build.secrets {
        files.push(secret(id, value)?);
    }
    for (id, key) in &build.ssh {
        files.push(secret(&format!("{SSH}/{id}"), key)?);
    }
    if let Some(Credentials { username, password }) = &build.cache_credentials {
        files.push(secret(&format!("{S3}/id"), username)?);
        files.push(secret(&format!("{S3}/key"), password)?);
    }
    for (number, registry) in registries.iter().enumerate() {
        files.extend(registry.files(number)?);
    }
    files.extend(registry::credentials(registries, &build.tag, build.rootless)?);
    if build.rootless {
        for file in &mut files {
            (file.uid, file.gid) = (USER, USER);
        }
    }
    Ok(files)
}

/// Where the builder writes `file`, from the output volume's root.
pub(crate) fn in_out(build: &ImageBuild, file: &str) -> Result<VolumePath> {
    VolumePath::new(if build.rootless {
        format!("{OWN}/{file}")
    } else {
        file.to_owned()
    })
}

/// The volumes that an unprivileged builder writes to, each with the tar that gives it a directory there.
pub(crate) fn prepared<'a>(build: &'a ImageBuild, out: Option<&'a VolumeId>) -> Vec<(&'a VolumeId, Bytes)> {
    if !build.rootless {
        return Vec::new();
    }
    let own = prepared_state(build, out);
    let local = build.options.cache_to.iter().filter_map(|to| match to {
        CacheTo::Local { path, .. } => in_cache(build, path),
        _ => None,
    });
    let local = local.map(|(cache, inner)| (&cache.volume, directory(&inner)));
    // It can't make a file in a root that is root's, and can write to one that is there.
    let outputs = build.all_outputs().filter_map(|output| {
        let archive = output.format.archive()?;
        Some((&output.volume, owned(EntryType::Regular, 0o644, archive.as_str())))
    });
    own.chain(local).chain(outputs).collect()
}

/// The task that makes the roots of volumes the unprivileged builder's, where it writes more than one file there; `None` if
/// there are none. An engine's own archive calls leave a root as it is.
pub(crate) fn roots(build: &ImageBuild) -> Result<Option<Task>> {
    let trees = build.all_outputs().filter(|output| output.format.is_tree());
    let volumes: Vec<&VolumeId> = trees.map(|output| &output.volume).collect();
    if !build.rootless || volumes.is_empty() {
        return Ok(None);
    }
    let paths: Vec<String> = (0..volumes.len()).map(|number| format!("/roots/{number}")).collect();
    let mut argv = vec!["chown".to_owned(), format!("{USER}:{USER}")];
    argv.extend(paths.iter().cloned());
    // No longer than the name of the build's output volume, which was refused if it was too long.
    let name = Name::new(format!("{}._roots", build.name))?;
    let mut task = Task::with_image(name, build.image.clone());
    task = confined(task, build)
        .command(argv)
        .user("0")?
        .network(NetworkMode::None);
    task.spec.security = Security::default();
    for (volume, path) in volumes.into_iter().zip(&paths) {
        task = task.mount(volume, path)?;
    }
    Ok(Some(task))
}

/// The same for a daemon that listens in the volume `socket`.
pub(crate) fn prepared_daemon<'a>(build: &'a ImageBuild, socket: &'a VolumeId) -> Vec<(&'a VolumeId, Bytes)> {
    prepared_state(build, Some(socket)).filter(|_| build.rootless).collect()
}

fn prepared_state<'a>(
    build: &'a ImageBuild,
    other: Option<&'a VolumeId>,
) -> impl Iterator<Item = (&'a VolumeId, Bytes)> {
    let own = other.into_iter().chain(state(build).map(|cache| &cache.volume));
    own.map(|volume| (volume, directory(OWN)))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn build() -> ImageBuild {
        ImageBuild::new(
            "app".parse().unwrap(),
            "r.example.com/app:1".parse().unwrap(),
            "source".parse().unwrap(),
        )
    }

    fn arguments(build: &ImageBuild) -> Vec<String> {
        argv(build, "", Place::default()).unwrap()
    }

    #[test]
    fn a_password_is_in_no_part_of_the_container_that_an_engine_shows() {
        let mut build = build();
        build.registry = Some(RegistryAuth::new(Credentials::new("robot", "hunter2")));
        let task = task(&build, Some(&"out".parse().unwrap()), Place::default()).unwrap();
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
        build.options.buildkitd_config = Some("# [history]".to_owned());
        assert_eq!(configuration(&build, &[]), "# [history]\n[history]\n  maxEntries = 0\n");
        // Who has no secrets may want the records.
        build.options.buildkitd_config = Some("[history]\n  maxEntries = 7".to_owned());
        assert_eq!(configuration(&build, &[]), "[history]\n  maxEntries = 7\n");
        crate::validate::check_records(&build).unwrap();
        build.secrets.insert("token".to_owned(), "hunter2".into());
        let mut refused = |config: &str| {
            build.options.buildkitd_config = Some(config.to_owned());
            crate::validate::check_records(&build).map_err(|error| error.message().to_owned())
        };
        for config in [
            "[history]\nmaxEntries = 7",
            "[history]\nmaxAge = 60",
            "[history]\nmaxEntries = 0\nmaxAge = 60",
            "[History]\nmaxage = '48h'",
            "history = { maxEntries = 1 }",
        ] {
            assert!(refused(config).unwrap_err().contains("history of builds"), "{config}");
        }
        assert_eq!(refused("[history]\nmaxEntries = 0"), Ok(()));
        assert!(refused("a = 1\n[history").unwrap_err().contains("no TOML, line 2"));
    }

    #[test]
    fn a_build_secret_is_a_file_for_the_builder_and_its_path_an_argument() {
        let mut build = build();
        build.secrets.insert("npm-token".into(), "hunter2".into());
        assert!(arguments(&build).contains(&"--secret=id=npm-token,src=/.orchestra-secrets/npm-token".to_owned()));
        let task = task(&build, None, Place::default()).unwrap();
        let shown = format!("{task:?} {:?} {build:?}", task.spec.entrypoint);
        assert!(shown.contains("/.orchestra-secrets/npm-token: 7 bytes, mode 600") && !shown.contains("hunter2"));
        assert!(files(&build, &[]).unwrap().iter().all(|file| file.secret));
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
        let task = task(&build, Some(&out), Place::default()).unwrap();
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
    fn keys_and_certificates_are_files_and_the_host_s_network_is_a_flag() {
        let mut build = build();
        build.ssh.insert("default".into(), "secret:DEPLOY_KEY".into());
        build.cache_credentials = Some(Credentials::new("id", "hunter2"));
        build.options.run_network = NetworkMode::Host;
        build.registry = Some(RegistryAuth {
            ca: Some("PEM".into()),
            client: Some(("PEM".into(), "hunter2".into())),
            ..RegistryAuth::default()
        });
        let task = task(&build, None, Place::default()).unwrap();
        let files = files(&build, &[build.registry.as_ref().unwrap()]).unwrap();
        let open = files.iter().filter(|file| !file.secret);
        let open: Vec<_> = open
            .map(|file| file.path.as_str().rsplit('/').next().unwrap())
            .collect();
        assert_eq!(open, ["ca.pem", "client.pem"]);
        let shown = format!("{task:?}");
        for file in [".ssh/default", ".s3/id", ".s3/key", ".registry/0/ca.pem"] {
            assert!(shown.contains(&format!("/.orchestra-secrets/{file}")), "{shown}");
        }
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(task.spec.env.0[FLAGS], "--allow-insecure-entitlement=network.host");
        let arguments = arguments(&build);
        for argument in ["--ssh=default=/.orchestra-secrets/.ssh/default", "--allow=network.host"] {
            assert!(arguments.iter().any(|given| given == argument), "{argument}");
        }
    }
}
