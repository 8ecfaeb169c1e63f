//! Containers, from creation to removal.

use std::time::Duration;

use bollard::container::AttachContainerResults;
use bollard::errors::Error as Bollard;
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder,
    KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, UploadToContainerOptionsBuilder,
    WaitContainerOptionsBuilder,
};
use bollard::{Docker, body_stream};
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use orchestra::{
    ByteStream, ContainerId, ContainerSpec, ContainerState, Created, Error, ErrorKind, ExitStatus, InjectedFile,
    Result, Signal, tar_of_files,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::driver::DockerDriver;
use crate::error::{Subject, about, status_of};
use crate::spec;
use orchestra::tar::{self, EntryType};

/// First and longest pause between two looks at a name that is taken by what is not there; about 10 seconds in all.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(5));

/// Longest that a removal which somebody else began is waited for.
const REMOVAL: Duration = Duration::from_secs(60);

impl DockerDriver {
    pub(crate) async fn make_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        spec.validate()?;
        self.info.check_container(spec)?;
        let mut body = spec::body(spec, self.log_limit)?;
        if spec.entrypoint.is_none() && spec.command.as_ref().is_some_and(Vec::is_empty) {
            // No arguments at all. docker takes an empty list for the image's, unless the entry point is a new one.
            let image = self
                .docker
                .inspect_image(&spec.image.canonical())
                .await
                .map_err(about(Subject::Image))?;
            let entrypoint = image.config.and_then(|config| config.entrypoint);
            body.entrypoint = entrypoint.filter(|argv| !argv.is_empty());
            if body.entrypoint.is_none() {
                let message = format!(
                    "{} has no entry point and no command is given: there is nothing to run",
                    spec.image
                );
                return Err(Error::invalid(message));
            }
        }
        // docker would make what is missing.
        let volumes = spec
            .mounts
            .iter()
            .map(|mount| self.docker.inspect_volume(mount.volume.as_str()));
        future::try_join_all(volumes).await.map_err(about(Subject::Volume))?;

        let mut options = CreateContainerOptionsBuilder::new().name(id.as_str());
        if let Some(platform) = &spec.platform {
            options = options.platform(&platform.to_string());
        }
        let options = options.build();
        let mut pause = LOOK.0;
        loop {
            let error = match self.docker.create_container(Some(options.clone()), body.clone()).await {
                Ok(_) => return Ok(Created::New),
                Err(error) => error,
            };
            let code = status_of(&error);
            // docker looks for the image first: a container that is there may have outlived its image's name.
            if matches!(code, Some(404 | 409))
                && let Ok(found) = self.inspect(id).await
                && !is_going(&found)
            {
                return Ok(Created::Existing);
            }
            if code != Some(409) || pause > LOOK.1 {
                return Err(about(Subject::Image)(error));
            }
            // The name is taken by a call that has not finished, or by a container that is about to be gone.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// The container of exactly this name.
    pub(crate) async fn inspect(&self, id: &ContainerId) -> Result<ContainerInspectResponse> {
        let found = self
            .docker
            .inspect_container(id.as_str(), None)
            .await
            .map_err(about(Subject::Container))?;
        if found.name.as_deref().map(|name| name.trim_start_matches('/')) == Some(id.as_str()) {
            Ok(found)
        } else {
            Err(Error::new(
                ErrorKind::ContainerNotFound,
                format!("no such container: {id}"),
            ))
        }
    }

    /// Makes sure that docker means the container of this name and not one whose hexadecimal id starts with it, which it
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
        if state(&self.inspect(id).await?) != ContainerState::Created {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was started; files go in before that",
            ));
        }
        // A body that streams: bollard writes one that is whole to the log, and files may hold secrets.
        let body = [self.missing_directories(id, files).await?, tar_of_files(files).await?];
        let options = UploadToContainerOptionsBuilder::new().path("/").build();
        let upload = self
            .docker
            .upload_to_container(id.as_str(), Some(options), body_stream(stream::iter(body)));
        upload.await.map_err(about(Subject::Container))
    }

    /// Members for the directories that the container lacks, with mode 0755 and the owner of the file that needs them.
    /// docker would make them itself, but as root's.
    async fn missing_directories(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<Bytes> {
        let mut missing: Vec<(&str, &InjectedFile)> = Vec::new();
        for file in files {
            let mut new = Vec::new();
            let mut path = file.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) {
                if missing.iter().any(|(known, _)| *known == parent) || self.has_path(id, parent).await? {
                    break;
                }
                new.push((parent, file));
                path = parent;
            }
            missing.extend(new.into_iter().rev());
        }
        let heads = missing.iter().flat_map(|(path, file)| {
            let name = format!("{}/", path.trim_start_matches('/'));
            tar::Head {
                kind: EntryType::Directory,
                mode: 0o755,
                uid: file.uid,
                gid: file.gid,
                size: 0,
            }
            .blocks(&name)
        });
        Ok(heads.collect::<Vec<Bytes>>().concat().into())
    }

    async fn has_path(&self, id: &ContainerId, path: &str) -> Result<bool> {
        let options = ContainerArchiveInfoOptionsBuilder::new().path(path).build();
        match self.docker.get_container_archive_info(id.as_str(), Some(options)).await {
            Ok(_) => Ok(true),
            Err(error) if status_of(&error) == Some(404) => Ok(false),
            Err(error) => Err(about(Subject::Container)(error)),
        }
    }

    pub(crate) async fn start(&self, id: &ContainerId, stdin: Option<ByteStream>) -> Result<()> {
        // docker would run a container that has ended once more.
        let found = self.inspect(id).await?;
        let open = found
            .config
            .as_ref()
            .and_then(|config| config.open_stdin)
            .unwrap_or(false);
        if stdin.is_some() && !open {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was created without standard input",
            ));
        }
        match state(&found) {
            ContainerState::Created => {}
            ContainerState::Running => return Ok(()),
            _ => return Err(Error::new(ErrorKind::Conflict, "the container has ended; it runs once")),
        }
        let attached = if open {
            let options = AttachContainerOptionsBuilder::new().stream(true).stdin(true).build();
            let attached = self.docker.attach_container(id.as_str(), Some(options)).await;
            Some(attached.map_err(about(Subject::Container))?)
        } else {
            None
        };
        match self.docker.start_container(id.as_str(), None).await {
            Ok(()) => {}
            // The runtime could not run the program: 400, or 404 where there is no such file.
            Err(error) if status_of(&error) == Some(404) => {
                self.inspect(id).await?;
                return Err(unrunnable(error));
            }
            Err(error) if status_of(&error) == Some(400) => return Err(unrunnable(error)),
            Err(error) => return Err(about(Subject::Container)(error)),
        }
        if let Some(attached) = attached {
            let docker = self.docker.clone();
            let id = id.as_str().to_owned();
            tokio::spawn(async move { feed(docker, id, attached, stdin).await });
        }
        Ok(())
    }

    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        let mut found = self.inspect(id).await?;
        let code = match state(&found) {
            // docker answers 0 at once.
            ContainerState::Created => {
                return Err(Error::new(ErrorKind::Conflict, "the container was never started"));
            }
            ContainerState::Running => {
                let code = ended(&self.docker, id.as_str()).await?;
                if code == 0 {
                    return Ok(ExitStatus::Code(0));
                }
                found = self.inspect(id).await?;
                code
            }
            _ => found.state.as_ref().and_then(|state| state.exit_code).unwrap_or(-1),
        };
        let state = found.state.unwrap_or_default();
        // A removal kills first: whoever waits is told 137, of a container that is about to be gone.
        if state.status == Some(ContainerStateStatusEnum::REMOVING) {
            return Err(Error::new(
                ErrorKind::ContainerNotFound,
                "the container is being removed",
            ));
        }
        Ok(ExitStatus::from_engine(code, state.oom_killed.unwrap_or(false)))
    }

    pub(crate) async fn signal(&self, id: &ContainerId, signal: Signal) -> Result<()> {
        self.named(id).await?;
        let options = KillContainerOptionsBuilder::new()
            .signal(&signal.number().to_string())
            .build();
        match self.docker.kill_container(id.as_str(), Some(options)).await {
            // It does not run.
            Err(error) if status_of(&error) == Some(409) => Ok(()),
            result => result.map_err(about(Subject::Container)),
        }
    }

    pub(crate) async fn remove_named_container(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(name, Some(options)).await {
            Err(error) => match status_of(&error) {
                Some(404) => Ok(()),
                // Somebody else removes it: done when they are.
                Some(409) => match tokio::time::timeout(REMOVAL, wait(&self.docker, name, "removed")).await {
                    Ok(Err(late)) if status_of(&late) != Some(404) => Err(about(Subject::Container)(late)),
                    Ok(_) => Ok(()),
                    Err(_) => Err(about(Subject::Container)(error)),
                },
                _ => Err(about(Subject::Container)(error)),
            },
            Ok(()) => Ok(()),
        }
    }
}

/// Where a container is in its life.
pub(crate) fn state(found: &ContainerInspectResponse) -> ContainerState {
    use ContainerStateStatusEnum as Status;
    match found.state.as_ref().and_then(|state| state.status) {
        Some(Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING) => ContainerState::Running,
        Some(Status::EXITED | Status::DEAD | Status::REMOVING) => ContainerState::Exited,
        Some(Status::CREATED | Status::EMPTY) | None => ContainerState::Created,
    }
}

fn is_going(found: &ContainerInspectResponse) -> bool {
    found.state.as_ref().and_then(|state| state.status) == Some(ContainerStateStatusEnum::REMOVING)
}

/// Waits until a container that was started has ended; its exit code.
pub(crate) async fn ended(docker: &Docker, name: &str) -> Result<i64> {
    wait(docker, name, "not-running")
        .await
        .map_err(about(Subject::Container))
}

pub(crate) async fn wait(docker: &Docker, name: &str, condition: &str) -> Result<i64, Bollard> {
    let options = WaitContainerOptionsBuilder::new().condition(condition).build();
    match docker.wait_container(name, Some(options)).next().await {
        Some(Ok(answer)) => Ok(answer.status_code),
        // bollard makes an error of every code but 0; one with a text is the engine's own.
        Some(Err(Bollard::DockerContainerWaitError { error, code })) if error.is_empty() => Ok(code),
        Some(Err(Bollard::DockerContainerWaitError { error, .. })) => Err(Bollard::DockerStreamError { error }),
        Some(Err(error)) => Err(error),
        None => Err(Bollard::IOError {
            err: std::io::ErrorKind::UnexpectedEof.into(),
        }),
    }
}

fn unrunnable(error: Bollard) -> Error {
    let Bollard::DockerResponseServerError { message, .. } = &error else {
        return about(Subject::Container)(error);
    };
    Error::invalid(message.trim().to_owned())
        .with_hint("check that the image has the program, and that it may be executed")
        .with_source(error)
}

/// Feeds a container's standard input until it or the stream ends.
async fn feed(docker: Docker, name: String, attached: AttachContainerResults, stdin: Option<ByteStream>) {
    let AttachContainerResults { mut output, input } = attached;
    let fed = async {
        pump(stdin, input).await?;
        // docker closes its side when it has passed everything on.
        while output.next().await.is_some() {}
        Ok(())
    };
    // A process that ends leaves the connection open until somebody writes to it.
    let fed: Result<()> = tokio::select! {
        fed = fed => fed,
        _ = ended(&docker, &name) => Ok(()),
    };
    if let Err(error) = fed {
        // The process would take what it got for all there is.
        tracing::warn!(container = name, %error, "standard input failed; the container is killed");
        let kill = KillContainerOptionsBuilder::new().signal("KILL").build();
        if let Err(error) = docker.kill_container(&name, Some(kill)).await {
            tracing::warn!(container = name, %error, "the container could not be killed");
        }
    }
}

/// Writes all of `stdin` and closes `input`. Fails with `stdin`'s own error, and leaves `input` open then; a process that
/// reads no further is no error.
pub(crate) async fn pump(
    stdin: Option<ByteStream>,
    mut input: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
) -> Result<()> {
    let mut stdin = stdin.unwrap_or_else(|| stream::empty().boxed());
    while let Some(piece) = stdin.next().await {
        if input.write_all(&piece?).await.is_err() {
            return Ok(());
        }
    }
    // Fails only where the process is gone already.
    let _ = input.shutdown().await;
    Ok(())
}
