//! Containers of the memory engine: a main process, its log, its end.

use std::collections::BTreeMap;
use std::sync::Arc;

use orchestra::{
    ByteStream, ContainerSpec, ContainerState, Error, ErrorKind, ExecEvent, ExecSpec, ExecStream, ExitStatus,
    NetworkMode, OutputStream, Result, Signal, VolumeId, stream,
};
use tokio::sync::{mpsc, watch};

use super::files::{Files, MountPoint, NOT_FOUND, Tree};
use super::image::MemoryImage;
use super::process::{Input, Log, Output, Process, Signals, Sink};
use super::programs;

/// What every container is called.
const HOST_NAME: &str = "memory";

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    Created,
    Running,
    Exited(ExitStatus),
    Removed,
}

impl State {
    pub(super) fn shown(self) -> ContainerState {
        match self {
            Self::Created => ContainerState::Created,
            Self::Running => ContainerState::Running,
            Self::Exited(_) | Self::Removed => ContainerState::Exited,
        }
    }
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) image: Arc<MemoryImage>,
    pub(super) log: Arc<Log>,
    pub(super) state: watch::Sender<State>,
    pub(super) files: Files,
    signals: Arc<Signals>,
    /// The signal that ends it at once.
    killed: watch::Sender<Option<Signal>>,
}

impl Container {
    pub(super) fn new(
        spec: ContainerSpec,
        image: Arc<MemoryImage>,
        volumes: &BTreeMap<VolumeId, Arc<Tree>>,
    ) -> Result<Self> {
        let mut files = Files::of(Arc::new(image.tree.copy()));
        let failed = |why| Error::new(ErrorKind::Engine, format!("the file system can't be set up: {why}"));
        for mount in &spec.mounts {
            let volume = volumes.get(&mount.volume);
            let tree = volume
                .ok_or_else(|| Error::new(ErrorKind::VolumeNotFound, "no such volume").with("volume", &mount.volume))?;
            let at = spec.resolve(&mount.target)?;
            files
                .mount(MountPoint {
                    at,
                    tree: tree.clone(),
                    read_only: mount.read_only,
                })
                .map_err(failed)?;
        }
        let container = Self {
            spec,
            image,
            log: Arc::default(),
            state: watch::Sender::new(State::Created),
            files,
            signals: Arc::default(),
            killed: watch::Sender::new(None),
        };
        let files = &container.files;
        files
            .make_dirs("/", &container.working_dir(), 0o755, 0, 0)
            .map_err(failed)?;
        let mut hosts = format!("127.0.0.1\tlocalhost\n127.0.0.1\t{HOST_NAME}\n");
        for host in &container.spec.extra_hosts {
            hosts.push_str(&format!("{}\t{}\n", host.address, host.name));
        }
        let mut interfaces = "Inter-|   Receive\n face |bytes\n    lo: 0\n".to_owned();
        if container.spec.network == NetworkMode::Default {
            interfaces.push_str("  eth0: 0\n");
        }
        for (dir, name, content) in [
            ("/etc", "hosts", hosts),
            ("/etc", "hostname", format!("{HOST_NAME}\n")),
            ("/etc", "resolv.conf", "nameserver 127.0.0.1\n".to_owned()),
            ("/proc/sys/kernel", "hostname", format!("{HOST_NAME}\n")),
            ("/proc/net", "dev", interfaces),
        ] {
            files.make_dirs("/", dir, 0o755, 0, 0).map_err(failed)?;
            files.write(dir, name, content.into(), false, (0, 0)).map_err(failed)?;
        }
        Ok(container)
    }

    fn working_dir(&self) -> String {
        let dir = self.spec.working_dir.as_ref().map(|dir| dir.as_str().to_owned());
        dir.or_else(|| self.image.config.working_dir.clone())
            .unwrap_or_else(|| "/".to_owned())
    }

    fn args(&self) -> Vec<String> {
        let config = &self.image.config;
        let command = match (&self.spec.command, &self.spec.entrypoint) {
            (Some(command), _) => command.clone(),
            (None, Some(_)) => Vec::new(),
            (None, None) => config.command.clone(),
        };
        let mut args = self
            .spec
            .entrypoint
            .clone()
            .unwrap_or_else(|| config.entrypoint.clone());
        args.extend(command);
        args
    }

    fn process(&self, stdin: Option<ByteStream>, stdout: Output, stderr: Output) -> Result<Process> {
        let mut env = self.image.config.env.clone();
        env.extend(self.spec.env.0.clone());
        let user = self.spec.user.as_ref().map(|user| user.as_str().to_owned());
        let user = user
            .or_else(|| self.image.config.user.clone())
            .unwrap_or_else(|| "0".to_owned());
        let (uid, gid) = self.user(&user)?;
        Ok(Process {
            args: self.args(),
            env,
            cwd: self.working_dir(),
            uid,
            gid,
            stdin: stdin.map_or_else(Input::empty, |bytes| Input::new(stream::into_reader(bytes))),
            stdout,
            stderr,
            files: self.files.clone(),
            programs: Arc::new(self.image.programs.clone()),
            signals: self.signals.clone(),
        })
    }

    /// Looks names up in the container's own files, as an engine does.
    fn user(&self, user: &str) -> Result<(u32, u32)> {
        let look_up = |file: &str, name: &str| -> Option<(u32, u32)> {
            let content = self.files.read("/", file).unwrap_or_default();
            let text = String::from_utf8_lossy(&content).into_owned();
            let line = text
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|fields| fields.first() == Some(&name) || fields.get(2) == Some(&name));
            match line {
                Some(fields) => Some((
                    fields.get(2)?.parse().ok()?,
                    fields.get(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
                )),
                None => name.parse().ok().map(|number| (number, 0)),
            }
        };
        let unknown = || Error::invalid(format!("the image knows no user {user:?}"));
        let (name, group) = user
            .split_once(':')
            .map_or((user, None), |(name, group)| (name, Some(group)));
        let (uid, gid) = look_up("/etc/passwd", name).ok_or_else(unknown)?;
        match group {
            Some(group) => Ok((uid, look_up("/etc/group", group).ok_or_else(unknown)?.0)),
            None => Ok((uid, gid)),
        }
    }

    pub(super) fn start(self: &Arc<Self>, stdin: Option<ByteStream>) -> Result<()> {
        let stdout = Output(Sink::Log(self.log.clone(), OutputStream::Stdout));
        let mut process = self.process(stdin, stdout, Output(Sink::Log(self.log.clone(), OutputStream::Stderr)))?;
        let name = process.args.first().cloned().unwrap_or_default();
        let program = process
            .find()
            .map_err(|why| Error::invalid(format!("{name:?} can't be run: {why}")))?;
        let started = self.state.send_if_modified(|state| {
            let fresh = *state == State::Created;
            if fresh {
                *state = State::Running;
            }
            fresh
        });
        if !started {
            return Ok(());
        }
        let container = self.clone();
        tokio::spawn(async move {
            let mut killed = container.killed.subscribe();
            let status = tokio::select! {
                // A kill that came first counts.
                biased;
                signal = killed.wait_for(Option::is_some) => ExitStatus::Signal(signal.ok().and_then(|s| *s).unwrap_or(Signal::KILL)),
                code = program(process) => ExitStatus::from_engine(code.into(), false),
            };
            container.log.close();
            container.state.send_if_modified(|state| {
                let running = *state == State::Running;
                if running {
                    *state = State::Exited(status);
                }
                running
            });
        });
        Ok(())
    }

    pub(super) fn signal(&self, signal: Signal) {
        if programs::is_fatal(signal) {
            self.killed.send_replace(Some(signal));
        } else {
            self.signals.send(signal.number());
        }
    }

    pub(super) fn remove(&self) {
        self.killed.send_replace(Some(Signal::KILL));
        self.state.send_replace(State::Removed);
        self.log.close();
    }

    pub(super) fn exec(self: &Arc<Self>, spec: &ExecSpec, stdin: Option<ByteStream>) -> Result<ExecStream> {
        let (sender, receiver) = mpsc::channel(16);
        let stdout = Output(Sink::Exec(sender.clone(), OutputStream::Stdout));
        let mut process = self.process(stdin, stdout, Output(Sink::Exec(sender.clone(), OutputStream::Stderr)))?;
        process.args.clone_from(&spec.command);
        process.env.extend(spec.env.0.clone());
        if let Some(dir) = &spec.working_dir {
            process.cwd = dir.as_str().to_owned();
        }
        if let Some(user) = &spec.user {
            (process.uid, process.gid) = self.user(user.as_str())?;
        }
        process.signals = Arc::default();
        let mut state = self.state.subscribe();
        tokio::spawn(async move {
            let status = tokio::select! {
                code = process.exec() => ExitStatus::from_engine(code.into(), false),
                // The processes of a container end with its main process.
                _ = state.wait_for(|state| *state != State::Running) => ExitStatus::Signal(Signal::KILL),
            };
            // Whoever dropped the stream does not want to know.
            let _ = sender.send(Ok(ExecEvent::Exit(status))).await;
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }

    /// Puts a file into the container's own file system.
    pub(super) fn inject(&self, file: &orchestra::InjectedFile) -> Result<()> {
        let (uid, gid) = (file.uid.into(), file.gid.into());
        let path = file.path.as_str();
        let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let inode = super::files::Inode::new(super::files::Kind::File(file.content.clone()), file.mode, uid, gid);
        let made = self
            .files
            .make_dirs("/", parent, 0o755, uid, gid)
            .and_then(|()| self.files.put("/", path, inode));
        made.map_err(|why| {
            let kind = if why == NOT_FOUND {
                ErrorKind::PathNotFound
            } else {
                ErrorKind::InvalidInput
            };
            Error::new(kind, why).with("path", path)
        })
    }
}
