//! Daemons that outlive a build: what one build has fetched and made is there for the next of the job.
//!
//! A daemon is a task of its own, which listens on a socket in a volume. The container of a build mounts that volume and
//! runs `buildctl` alone. All else of a build is the same, and where the daemon does not answer, or ends during the build, it
//! starts one of its own and builds again.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use orchestra::{ContainerPath, ExitStatus, Job, Mount, Name, OutputStream, Result, Task, VolumeId, VolumePath, sink};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{ImageBuild, command};

const SCRIPT: &str = include_str!("builder.sh");
/// Where the socket's volume stands, in the daemon's container and in those of builds.
const FOLDER: &str = "/orchestra-builder";
/// How long a daemon is waited for; builds do without it then.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How many lines of its log are told.
const LOG_LINES: usize = 20;

/// The daemons of one job's builds ([`ImageBuild::shared`]). They end with [`stop`](Self::stop), or when this is dropped.
///
/// Builds share one if they agree in the BuildKit image, privileges, network, environment, the daemon's configuration and
/// the volume of its state. A build whose registries have certificates of their own, or whose layers are in a bucket, has a
/// daemon to itself: it is given their keys.
#[derive(Clone)]
pub struct SharedBuilders {
    job: Job,
    builders: Arc<Mutex<HashMap<String, Builder>>>,
}

/// Whether a daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Ready,
    /// Why, with its log's end, unless it was asked to.
    Ended(Option<String>),
}

struct Builder {
    volume: VolumeId,
    state: watch::Receiver<State>,
    running: JoinHandle<()>,
    stop: DropGuard,
}

/// A daemon that a build may use.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) mount: Mount,
    pub(crate) socket: String,
    state: watch::Receiver<State>,
}

impl Shared {
    /// Why it has ended, with its log's end, if it has. Ask when the build has ended: a daemon that ends during it ends first,
    /// since the build goes on with one of its own.
    pub(crate) fn ended(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Ended(why) => why.clone(),
            State::Starting | State::Ready => None,
        }
    }
}

/// What a build that is to share a daemon is told.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Ready(Shared),
    /// There is none for it, by its options or its timeout, or it was asked to end.
    None,
    /// There was one, and it has ended: why, with its log's end.
    Ended(String),
}

impl SharedBuilders {
    /// For builds of this job. No daemon is started yet.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        Self {
            job: job.clone(),
            builders: Arc::default(),
        }
    }

    /// Ends the daemons, and waits until they have. Call it before [`Job::end`], so that their state is whole.
    pub async fn stop(&self) {
        let mut builders = self.builders.lock().await;
        let running: Vec<_> = builders
            .drain()
            .map(|(_, builder)| (builder.stop, builder.running))
            .collect();
        let running = running.into_iter().map(|(stop, running)| {
            drop(stop);
            running
        });
        join_all(running.collect::<Vec<_>>()).await;
    }

    /// The daemon for this build, when it answers.
    pub(crate) async fn ready(&self, build: &ImageBuild) -> Result<Found> {
        let registries: Vec<_> = build.registry.iter().chain(&build.base_registries).collect();
        let keys = registries.iter().any(|of| of.ca.is_some() || of.client.is_some());
        if keys || build.cache_credentials.is_some() {
            return Ok(Found::None);
        }
        let configuration = command::configuration(build, &registries);
        let state = command::state(build).map(|cache| cache.volume.clone());
        let key = format!(
            "{} {} {:?} {:?} {} {configuration}\n{}",
            build.image,
            build.rootless,
            build.network,
            state,
            command::flags(build),
            build
                .env
                .0
                .iter()
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect::<String>(),
        );
        let (volume, mut told) = {
            let mut builders = self.builders.lock().await;
            let number = builders.len();
            match builders.get(&key) {
                Some(builder) => (builder.volume.clone(), builder.state.clone()),
                None => {
                    let builder = self.start(build, &configuration, number).await?;
                    let found = (builder.volume.clone(), builder.state.clone());
                    builders.insert(key, builder);
                    found
                }
            }
        };
        match timeout(READY_WITHIN, told.wait_for(|state| *state != State::Starting)).await {
            Ok(Ok(state)) => {
                if let State::Ended(why) = &*state {
                    return Ok(why.clone().map_or(Found::None, Found::Ended));
                }
            }
            Ok(Err(_)) => return Ok(Found::None),
            Err(_) => return Ok(Found::Ended(format!("it did not answer within {READY_WITHIN:?}"))),
        }
        Ok(Found::Ready(Shared {
            state: told,
            socket: format!("{}/buildkitd.sock", folder(build.rootless)),
            mount: Mount {
                volume,
                target: ContainerPath::new(FOLDER)?,
                read_only: false,
            },
        }))
    }

    async fn start(&self, build: &ImageBuild, configuration: &str, number: usize) -> Result<Builder> {
        let name = Name::new(format!("builder._{number}"))?;
        let volume = self.job.create_volume(&name).await?;
        for (volume, tar) in command::prepared_daemon(build, &volume) {
            let tar = stream::iter([Ok(tar)]).boxed();
            self.job.driver().write_volume(volume, &VolumePath::root(), tar).await?;
        }
        let (tell, state) = watch::channel(State::Starting);
        let told = tell.clone();
        let output = sink::from_fn(move |chunk| {
            if chunk.stream == OutputStream::Stdout {
                told.send_replace(State::Ready);
            }
        });
        let argv = [
            "sh",
            "-c",
            SCRIPT,
            "orchestra-builder",
            folder(build.rootless),
            configuration,
        ];
        let mut task = Task::with_image(name, build.image.clone()).command(argv);
        task = command::confined(task, build).mount(&volume, FOLDER)?.output(output);
        if let Some(cache) = command::state(build) {
            task = task.mount(&cache.volume, cache.path.as_str())?;
        }
        let mut running = self.job.start(task);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let running = tokio::spawn(async move {
            let ended = tokio::select! {
                ended = running.wait() => ended,
                () = stopped.cancelled() => {
                    running.cancel();
                    running.wait().await
                }
            };
            let was_asked = stopped.is_cancelled();
            tell.send_replace(State::Ended(match ended {
                Ok(ended) if was_asked || ended.exit == ExitStatus::Cancelled => None,
                Ok(ended) => Some(why(ended.exit, &ended.stderr.to_string())),
                Err(error) => Some(format!("{error:#}")),
            }));
        });
        Ok(Builder {
            volume,
            state,
            running,
            stop: stop.drop_guard(),
        })
    }
}

/// How a daemon ended, with its log's end.
fn why(exit: ExitStatus, log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
    let log: String = shown.iter().flat_map(|line| ["\n  ", line]).collect();
    format!("{exit}; the end of its log:{log}")
}

/// Where the socket is: a builder without privileges can't write to the volume's root.
fn folder(rootless: bool) -> &'static str {
    match rootless {
        true => "/orchestra-builder/rootless",
        false => FOLDER,
    }
}

impl fmt::Debug for SharedBuilders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuilders of {:?}", self.job)
    }
}
