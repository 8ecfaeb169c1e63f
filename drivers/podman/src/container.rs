//! Containers, from creation to removal.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, ContainerState, Created, Error, ErrorKind, ExitStatus, InjectedFile,
    Result, Signal, tar_of_files,
};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::client::Client;
use crate::driver::PodmanDriver;
use crate::error::{Cause, Failure, Subject, about, cause_of, is_missing, unrunnable};
use crate::image::names;
use crate::spec;
use orchestra::tar::{self, EntryType};

/// First and longest pause between two looks at a name that is taken by what is not there; about 10 seconds in all.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(5));

/// Between two of the engine's own looks at a container that is waited for; by itself it looks four times a second. Most
/// tasks that end soon end within the first wait; for the others a look costs the engine less than it adds.
const INTERVAL: (&str, &str) = ("10ms", "50ms");
/// How long the first of these goes on.
const SOON: Duration = Duration::from_secs(5);
/// The same where the end of a container's output is seen before.
const SELDOM: &str = "250ms";
/// How long that is waited for alone.
const MOMENT: Duration = Duration::from_millis(250);

/// What `GET /libpod/containers/ID/json` says, as far as it is asked here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Found {
    name: String,
    /// The program.
    path: String,
    state: State,
    config: Config,
    mounts: Vec<Mounted>,
    host_config: HostConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    status: String,
    exit_code: i64,
    #[serde(rename = "OOMKilled")]
    out_of_memory: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    open_stdin: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Mounted {
    destination: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct HostConfig {
    tmpfs: Option<std::collections::BTreeMap<String, String>>,
}

impl Found {
    /// Where it is in its life.
    pub(crate) fn state(&self) -> ContainerState {
        state_of(&self.state.status)
    }

    /// Whether its process runs; one that is paused, or being stopped, has not ended either.
    pub(crate) fn is_running(&self) -> bool {
        self.state.status == "running"
    }

    fn is_going(&self) -> bool {
        self.state.status == "removing"
    }
}

/// A state by libpod's name of it (`libpod/define/containerstate.go`). One whose runtime has prepared it and not run it
/// yet, `initialized`, has not been started.
pub(crate) fn state_of(status: &str) -> ContainerState {
    match status {
        "running" | "paused" | "stopping" => ContainerState::Running,
        "exited" | "stopped" | "removing" => ContainerState::Exited,
        _ => ContainerState::Created,
    }
}

impl PodmanDriver {
    pub(crate) async fn make_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        spec.validate()?;
        self.info.check_container(spec)?;
        // libpod would make what is missing.
        let volumes = spec.mounts.iter().map(|mount| self.volume(mount.volume.as_str()));
        future::try_join_all(volumes).await?;
        let mut pause = LOOK.0;
        loop {
            let failure = match self.create_of_image(id, spec).await? {
                Ok(()) => {
                    self.own.made(id, spec.stdin);
                    return Ok(Created::New);
                }
                Err(failure) => failure,
            };
            let cause = cause_of(&failure);
            // libpod looks for the image first: a container that is there may have outlived its image's name.
            if matches!(cause, Some(Cause::NoImage | Cause::Exists))
                && let Ok(found) = self.inspect(id).await
                && !found.is_going()
            {
                self.own.forget(id.as_str());
                return Ok(Created::Existing);
            }
            if cause != Some(Cause::Exists) || pause > LOOK.1 {
                return Err(about(Subject::Image)(failure));
            }
            // The name is taken by a call that has not finished, or by a container that is about to be gone.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// One try: the engine's refusal is the inner result.
    async fn create_of_image(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Result<(), Failure>> {
        let mut missing = None;
        for name in names(&spec.image) {
            match self.create_of(&name, id, spec).await? {
                Err(failure) if cause_of(&failure) == Some(Cause::NoImage) => missing.get_or_insert(failure),
                created => return Ok(created),
            };
        }
        Ok(Err(missing.unwrap_or_else(|| {
            Failure::Protocol(format!("{} has no name", spec.image))
        })))
    }

    /// The same with the image of this name. What the image is, is asked only if it makes a difference.
    async fn create_of(&self, image: &str, id: &ContainerId, spec: &ContainerSpec) -> Result<Result<(), Failure>> {
        let mut body = spec::body(id.as_str(), spec, image.to_owned(), self.log_limit)?;
        let no_arguments = spec.entrypoint.is_none() && spec.command.as_ref().is_some_and(Vec::is_empty);
        if spec.platform.is_some() || no_arguments {
            let found = match self.image_by(image).await {
                Ok(found) => found,
                Err(failure) => return Ok(Err(failure)),
            };
            if let Some(platform) = &spec.platform {
                found.check_platform(&spec.image, platform)?;
            }
            if no_arguments {
                // libpod takes an empty list for the image's, unless the entry point is a new one.
                let message = || {
                    let image = &spec.image;
                    format!("{image} has no entry point and no command is given: there is nothing to run")
                };
                let entrypoint = found.config.entrypoint.filter(|argv| !argv.is_empty());
                body.entrypoint = Some(entrypoint.ok_or_else(|| Error::invalid(message()))?);
            }
        }
        let create = self.client.post(&["containers", "create"]).json(&body);
        let create = create.map_err(about(Subject::Container))?;
        Ok(create.done().await)
    }

    /// The container of exactly this name.
    pub(crate) async fn inspect(&self, id: &ContainerId) -> Result<Found> {
        inspect(&self.client, id.as_str()).await
    }

    /// Makes sure that libpod means the container of this name and not one whose hexadecimal id starts with it, which it
    /// would take where no name matches. No other names can be mistaken, and they cost no call.
    pub(crate) async fn named(&self, id: &ContainerId) -> Result<()> {
        if id
            .as_str()
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            self.inspect(id).await?;
        }
        Ok(())
    }

    pub(crate) async fn inject(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        if let Some(file) = files
            .iter()
            .find(|file| !file.path.is_absolute() || file.path.as_str() == "/")
        {
            return Err(Error::invalid(format!(
                "{} is not an absolute path of a file",
                file.path
            )));
        }
        let found = self.inspect(id).await?;
        if found.state() != ContainerState::Created {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was started; files go in before that",
            ));
        }
        let mut groups: Vec<(&str, Vec<InjectedFile>)> = Vec::new();
        for file in files {
            let place = place_of(file.path.as_str(), &found)?;
            match groups.iter_mut().find(|(known, _)| *known == place) {
                Some((_, group)) => group.push(file.clone()),
                None => groups.push((place, vec![file.clone()])),
            }
        }
        for (place, files) in groups {
            self.inject_at(id, place, files).await?;
        }
        Ok(())
    }

    /// Puts files below `place`, the root or where a volume stands: libpod unpacks into the one file system that it finds
    /// there, and what it would put where another one is to stand would be hidden.
    async fn inject_at(&self, id: &ContainerId, place: &str, mut files: Vec<InjectedFile>) -> Result<()> {
        let missing = self.missing_directories(id, place, &files).await?;
        for file in &mut files {
            file.path = below(place, file.path.as_str()).parse()?;
        }
        let pieces = [Ok(missing), Ok(tar_of_files(&files).await?)];
        let upload = self
            .client
            .put(&["containers", id.as_str(), "archive"])
            .query("path", place)
            .query("copyUIDGID", false)
            .tar(stream::iter(pieces));
        upload.done().await.map_err(about(Subject::Container))
    }

    /// Members for the directories that the container lacks, with mode 0755 and the owner of the file that needs them.
    /// libpod would make them itself, but as root's.
    async fn missing_directories(&self, id: &ContainerId, place: &str, files: &[InjectedFile]) -> Result<Bytes> {
        let mut missing: Vec<(&str, &InjectedFile)> = Vec::new();
        for file in files {
            let mut new = Vec::new();
            let mut path = file.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
                let known = parent == place || missing.iter().any(|(known, _)| *known == parent);
                if known || self.stat(id.as_str(), parent).await?.is_some() {
                    break;
                }
                new.push((parent, file));
                path = parent;
            }
            missing.extend(new.into_iter().rev());
        }
        let heads = missing.iter().flat_map(|(path, file)| {
            tar::Head {
                kind: EntryType::Directory,
                mode: 0o755,
                uid: file.uid,
                gid: file.gid,
                size: 0,
            }
            .blocks(&format!("{}/", below(place, path)))
        });
        Ok(heads.collect::<Vec<Bytes>>().concat().into())
    }

    /// What a path of a container is, if there is such a path.
    async fn stat(&self, name: &str, path: &str) -> Result<Option<PathStat>> {
        stat(&self.client, name, path).await.map_err(about(Subject::Container))
    }

    pub(crate) async fn start(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        let known = self.own.starting(id);
        let (open_stdin, state) = match known {
            Some(open_stdin) => (open_stdin, ContainerState::Created),
            None => {
                let found = self.inspect(id).await?;
                (found.config.open_stdin, found.state())
            }
        };
        if stdin.is_some() && !open_stdin {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was created without standard input",
            ));
        }
        match state {
            ContainerState::Created => {}
            ContainerState::Running => return Ok(()),
            // libpod would run it once more.
            _ => {
                return Err(Error::new(ErrorKind::Conflict, "the container has ended; it runs once"));
            }
        }
        let attached = if open_stdin {
            let attach = self.client.post(&["containers", id.as_str(), "attach"]);
            let attach = attach.query("stream", true).query("stdin", true);
            let attach = attach.query("stdout", false).query("stderr", false);
            match attach.hijack().await {
                Ok(attached) => Some(attached),
                Err(failure) => return Err(self.unstarted(id, failure).await),
            }
        } else {
            None
        };
        let start = || self.client.post(&["containers", id.as_str(), "start"]).done();
        if let Err(failure) = start().await {
            let of_runtime = cause_of(&failure) == Some(Cause::Runtime);
            let error = self.unstarted(id, failure).await;
            // runc's process for the container may die before it has done anything (`read init-p: connection reset by peer`,
            // seen once on podman 5.4.2 with runc 1.1.15). What nobody is attached to is then started once more.
            let again = of_runtime && attached.is_none() && error.kind() == ErrorKind::Engine;
            let untouched = async || Ok::<_, Error>(self.inspect(id).await?.state() == ContainerState::Created);
            if !again || !untouched().await? || start().await.is_err() {
                return Err(error);
            }
            tracing::warn!(%error, "the OCI runtime started a container at the second try only");
        }
        self.own.started(id);
        if let Some(attached) = attached {
            let (driver, id) = (self.clone(), id.clone());
            tokio::spawn(async move { driver.feed(id.as_str(), attached, stdin).await });
        }
        Ok(())
    }

    /// Why a container can't be started, or prepared. runc has a code for a program that is not there, but none for one
    /// that can't be executed: that is looked at here.
    pub(crate) async fn unstarted(&self, id: &ContainerId, failure: Failure) -> Error {
        let cause = cause_of(&failure);
        let error = about(Subject::Container)(failure);
        if cause != Some(Cause::Runtime) {
            return error;
        }
        let Ok(found) = self.inspect(id).await else {
            return error;
        };
        match self.stat(id.as_str(), &found.path).await {
            Ok(Some(stat)) if !stat.is_executable() => unrunnable(error.message()).with_source(error),
            _ => error,
        }
    }

    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        let (waited, mut found) = match self.own.over(id) {
            Some(over) => (self.ended_here(id, over).await, None),
            None => {
                let found = self.inspect(id).await?;
                match found.state() {
                    // libpod answers 0 at once, or never if it was prepared.
                    ContainerState::Created => {
                        return Err(Error::new(ErrorKind::Conflict, "the container was never started"));
                    }
                    ContainerState::Running => (ended(&self.client, id.as_str()).await, None),
                    _ => (Ok(()), Some(found)),
                }
            }
        };
        if found.is_none() {
            // Only this is sure: from 4.9 on libpod answers a wait that failed with 0, and 4.3 fails one for a container that
            // has ended five minutes ago.
            found = match (self.inspect(id).await, waited) {
                (Ok(found), Ok(())) => Some(found),
                (Ok(found), Err(_)) if found.state() == ContainerState::Exited => Some(found),
                (_, Err(error)) | (Err(error), _) => return Err(error),
            };
        }
        let Some(found) = found else {
            return Err(Error::new(
                ErrorKind::Protocol,
                "the engine says nothing of the container",
            ));
        };
        if self.own.is_deprived(id) {
            let message = "the engine went away while the container read its input, which broke off";
            return Err(Error::new(ErrorKind::Interrupted, message).with_hint("run it again"));
        }
        self.own.ended(id);
        // A removal kills first: whoever waits is told 137, of a container that is about to be gone.
        if found.is_going() {
            return Err(Error::new(
                ErrorKind::ContainerNotFound,
                "the container is being removed",
            ));
        }
        if found.state() == ContainerState::Running {
            return Err(Error::new(
                ErrorKind::Engine,
                "the engine ended the wait for a container that runs on",
            ));
        }
        Ok(ExitStatus::from_engine(
            found.state.exit_code,
            found.state.out_of_memory,
        ))
    }

    /// Waits for a container that was started here, and whose output is read here: the end of that comes first, and libpod tells
    /// the exit of a container that has ended at once. One that is still waited for then it tells when it looks next, and
    /// each of its looks holds up all else that is done with the container.
    async fn ended_here(&self, id: &ContainerId, mut over: watch::Receiver<bool>) -> Result<()> {
        let told = async {
            if over.wait_for(|over| *over).await.is_err() {
                future::pending::<()>().await;
            }
        };
        // Who reads the output may be slow, or have stopped.
        let asked = async {
            tokio::time::sleep(MOMENT).await;
            exited(&self.client, id.as_str(), SELDOM).await
        };
        tokio::select! {
            biased;
            () = told => Ok(()),
            asked = asked => asked.map_err(about(Subject::Container)),
        }
    }

    /// Feeds a container's standard input until it or the stream ends.
    async fn feed(&self, name: &str, attached: TokioIo<Upgraded>, stdin: Option<ByteStream>) {
        let (mut output, input) = tokio::io::split(attached);
        // libpod closes its side when the process has ended, and so does the kernel when libpod has.
        let closed = async move {
            let mut rest = [0; 1024];
            while matches!(output.read(&mut rest).await, Ok(1..)) {}
        };
        let mut closed = std::pin::pin!(closed);
        // One wait from the beginning: another one, after a service that comes back by itself, would find that it has ended.
        let mut ended = std::pin::pin!(ended(&self.client, name));
        let failed = tokio::select! {
            pumped = pump(stdin, input) => match pumped {
                Ok(Pumped::All) => return closed.await,
                Ok(Pumped::Part) => ended.await.err(),
                Err(error) => {
                    tracing::warn!(container = name, %error, "standard input failed");
                    self.kill_deprived(name).await;
                    return;
                }
            },
            () = &mut closed => ended.await.err(),
            ended = &mut ended => ended.err(),
        };
        // Whoever removes it knows.
        let failed = failed.filter(|error| error.kind() != ErrorKind::ContainerNotFound);
        // It has ended, unless its end could not be asked for.
        if let Some(error) = failed {
            tracing::warn!(container = name, %error, "standard input broke off");
            self.own.deprive(name);
            self.kill_deprived(name).await;
        }
    }

    /// The process would take what it got for all there is.
    async fn kill_deprived(&self, name: &str) {
        if let Err(failure) = kill(&self.client, name, Signal::KILL).await {
            let error = about(Subject::Container)(failure);
            tracing::warn!(container = name, %error, "the container could not be killed");
        }
    }

    pub(crate) async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.named(id).await?;
        match kill(&self.client, id.as_str(), signal).await {
            // It does not run.
            Err(failure) if cause_of(&failure) == Some(Cause::State) => Ok(()),
            result => result.map_err(about(Subject::Container)),
        }
    }

    pub(crate) async fn remove_named_container(&self, name: &str) -> Result<()> {
        self.own.forget(name);
        let mut pause = LOOK.0;
        loop {
            // Without a timeout libpod asks politely and waits ten seconds, which is not the caller's wish here. For volumes of
            // the image its documentation has `v`, its code, from 4.3 to 5.8, `volumes`.
            let remove = self.client.delete(&["containers", name]).query("force", true);
            let removed = remove.query("volumes", true).query("timeout", 0);
            let failure = match removed.value::<Vec<Removed>>().await {
                Err(failure) if is_missing(&failure) => return Ok(()),
                Err(failure) => Some(failure),
                Ok(removed) if !removed.is_empty() && removed.iter().all(|of| of.error.is_null()) => return Ok(()),
                Ok(_) => None,
            };
            // Success may be told with an error in it, and somebody else's removal is an error of several kinds: what
            // counts is whether it is gone.
            match inspect(&self.client, name).await {
                Err(error) if error.kind() == ErrorKind::ContainerNotFound => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) if pause <= LOOK.1 => {}
                Ok(_) => {
                    let stays = || Error::new(ErrorKind::Engine, "the container is still there after its removal");
                    return Err(failure.map_or_else(stays, about(Subject::Container)));
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

/// What a removal tells of each container that it was meant for (`reports.RmReport`).
#[derive(Deserialize)]
struct Removed {
    /// Nothing, a text, or from before 5.0 an error of Go's as it is.
    #[serde(rename = "Err", default)]
    error: serde_json::Value,
}

/// What the archive calls tell of a path.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathStat {
    pub(crate) is_dir: bool,
    /// Permission bits, and others that Go's `fs.FileMode` has.
    mode: u32,
}

impl PathStat {
    fn is_executable(&self) -> bool {
        !self.is_dir && self.mode & 0o111 != 0
    }
}

/// What a path of a container is, if there is such a path.
pub(crate) async fn stat(client: &Client, name: &str, path: &str) -> Result<Option<PathStat>, Failure> {
    let look = client.head(&["containers", name, "archive"]).query("path", path);
    let found = match look.send().await {
        Err(failure) if is_missing(&failure) => return Ok(None),
        found => found?,
    };
    let stat = found.headers().get("x-docker-container-path-stat");
    let stat = stat.and_then(|stat| STANDARD.decode(stat).ok());
    let stat = stat.and_then(|stat| serde_json::from_slice(&stat).ok());
    stat.map(Some)
        .ok_or_else(|| Failure::Protocol("the engine does not tell what the path is".to_owned()))
}

/// The container of exactly this name.
async fn inspect(client: &Client, name: &str) -> Result<Found> {
    let found: Found = client
        .get(&["containers", name, "json"])
        .value()
        .await
        .map_err(about(Subject::Container))?;
    if found.name == name {
        Ok(found)
    } else {
        Err(Error::new(
            ErrorKind::ContainerNotFound,
            format!("no such container: {name}"),
        ))
    }
}

/// Where the file system begins that the path is on: a mount's target, or the root.
fn place_of<'a>(path: &str, found: &'a Found) -> Result<&'a str> {
    let within = |place: &&str| path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'));
    let tmpfs = found.host_config.tmpfs.iter().flat_map(|tmpfs| tmpfs.keys());
    if let Some(place) = tmpfs.map(String::as_str).find(within) {
        return Err(Error::invalid(format!(
            "{path} is on the memory-backed file system at {place}, which begins empty"
        )));
    }
    let places = found.mounts.iter().map(|mount| mount.destination.as_str());
    Ok(places.filter(within).max_by_key(|place| place.len()).unwrap_or("/"))
}

fn below<'a>(place: &str, path: &'a str) -> &'a str {
    path.strip_prefix(place).unwrap_or(path).trim_start_matches('/')
}

/// Waits until a container that was started has ended, as far as libpod knows.
pub(crate) async fn ended(client: &Client, name: &str) -> Result<()> {
    let ended = match tokio::time::timeout(SOON, exited(client, name, INTERVAL.0)).await {
        Ok(ended) => ended,
        Err(_) => exited(client, name, INTERVAL.1).await,
    };
    ended.map_err(about(Subject::Container))
}

async fn exited(client: &Client, name: &str, interval: &str) -> Result<(), Failure> {
    let wait = client.post(&["containers", name, "wait"]);
    let wait = wait.query("condition", "exited").query("interval", interval);
    wait.done().await
}

async fn kill(client: &Client, name: &str, signal: Signal) -> Result<(), Failure> {
    let kill = client.post(&["containers", name, "kill"]);
    kill.query("signal", signal.number()).done().await
}

/// How much of an input was written.
pub(crate) enum Pumped {
    All,
    /// Nobody reads any further.
    Part,
}

/// Writes all of `stdin` and closes `input`. Fails with `stdin`'s own error, and leaves `input` open then; a process that
/// reads no further is no error.
pub(crate) async fn pump(stdin: Option<ByteStream>, mut input: impl AsyncWrite + Send + Unpin) -> Result<Pumped> {
    let mut stdin = stdin.unwrap_or_else(|| stream::empty().boxed());
    while let Some(piece) = stdin.next().await {
        if input.write_all(&piece?).await.is_err() {
            return Ok(Pumped::Part);
        }
    }
    // Fails only where the process is gone already.
    let _ = input.shutdown().await;
    Ok(Pumped::All)
}
