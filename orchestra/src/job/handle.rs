//! A job's handle.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::life::Life;
use super::{Event, EventKind, Task, TaskResult};
use crate::archive::read_bounded;
use crate::stream::once;
use crate::{
    Created, EndReport, Error, ErrorKind, ImageRef, JobId, Labels, Name, PullImage, Result, Runner, SharedDriver,
    VolumeId, VolumePath, VolumeSpec, file_from_tar, labels,
};

/// What the tar of one file has besides its content: headers with long names and attributes, filling, end.
const TAR_OVERHEAD: u64 = 256 << 10;
/// How long tasks that were cancelled may take beyond their grace period before the job ends without them.
const END_LIMIT: Duration = Duration::from_secs(120);

/// How a [`Job`] is made.
#[derive(Debug)]
pub struct JobBuilder {
    driver: SharedDriver,
    id: Option<JobId>,
    resumable: bool,
    grace: Duration,
    capture: usize,
    events: Option<mpsc::Sender<Event>>,
    cancel: CancellationToken,
}

impl JobBuilder {
    /// The job's id; one that no other has where not given. A job with the id of one that an earlier process left
    /// attaches to that one's volumes and containers.
    #[must_use]
    pub fn id(mut self, id: JobId) -> Self {
        self.id = Some(id);
        self
    }

    /// Keeps the containers of finished tasks until [`Job::end`], so that a process that takes over after this one died
    /// finds their results and does not run them again. Costs their disk space meanwhile.
    #[must_use]
    pub fn resumable(mut self, resumable: bool) -> Self {
        self.resumable = resumable;
        self
    }

    /// How long a task that is asked to end has until it is killed; 5 seconds where not given.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// How many bytes of a task's output are kept from its start and from its end, each stream; 1 MiB where not given.
    #[must_use]
    pub fn capture(mut self, bytes: usize) -> Self {
        self.capture = bytes;
        self
    }

    /// Tells what happens. The channel is waited for, so that no event is lost: receive from it while the job runs, or drop the receiver.
    #[must_use]
    pub fn events(mut self, events: mpsc::Sender<Event>) -> Self {
        self.events = Some(events);
        self
    }

    /// Cancels all tasks when `token` is cancelled.
    #[must_use]
    pub fn cancel_with(mut self, token: &CancellationToken) -> Self {
        self.cancel = token.child_token();
        self
    }

    /// The job. Nothing is made in the engine yet.
    #[must_use]
    pub fn build(self) -> Job {
        let scope = self.cancel.clone();
        let inner = Inner {
            driver: self.driver,
            id: self.id.unwrap_or_else(JobId::unique),
            runner: Runner::current(),
            resumable: self.resumable,
            grace: self.grace,
            capture: self.capture,
            events: self.events,
            cancel: self.cancel,
            pulled: Mutex::default(),
            claimed: OnceCell::new(),
            running: TaskTracker::new(),
            ended: AtomicBool::new(false),
        };
        Job(Arc::new(inner), scope)
    }
}

/// Tasks that share volumes, and everything an engine holds for them.
///
/// A clone is the same job. End it with [`end`](Self::end). When the last clone is dropped without that, the job is ended
/// in the background, as far as the tokio runtime lives on; what is left then is for [`collect_garbage`](crate::collect_garbage).
#[derive(Clone)]
pub struct Job(Arc<Inner>, CancellationToken);

pub(super) struct Inner {
    pub(super) driver: SharedDriver,
    pub(super) id: JobId,
    runner: Runner,
    pub(super) resumable: bool,
    pub(super) grace: Duration,
    pub(super) capture: usize,
    events: Option<mpsc::Sender<Event>>,
    cancel: CancellationToken,
    /// One lock an image: fifty tasks that miss it wait for one pull.
    /// When each image was pulled last.
    pulled: Mutex<HashMap<String, Arc<Mutex<Option<Instant>>>>>,
    claimed: OnceCell<()>,
    /// Tasks that run: what they make is removed by them, and must not appear after the job has ended.
    running: TaskTracker,
    ended: AtomicBool,
}

impl Job {
    /// Starts to describe a job on this driver.
    pub fn builder(driver: SharedDriver) -> JobBuilder {
        JobBuilder {
            driver,
            id: None,
            resumable: false,
            grace: Duration::from_secs(5),
            capture: 1 << 20,
            events: None,
            cancel: CancellationToken::new(),
        }
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.0.id
    }

    /// Whether it keeps containers of finished tasks until its end: see [`JobBuilder::resumable`].
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        self.0.resumable
    }

    /// The driver it runs on.
    #[must_use]
    pub fn driver(&self) -> &SharedDriver {
        &self.0.driver
    }

    /// Makes the job's volume `name`, or finds it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the name is not valid; whatever [`Driver::create_volume`](crate::Driver::create_volume) fails with.
    pub async fn create_volume(&self, name: impl AsRef<str>) -> Result<VolumeId> {
        self.create_volume_with(name, Labels::new()).await
    }

    /// The same with labels of the caller's, by which [layers](crate::layer) know what to do with it.
    ///
    /// # Errors
    /// As [`create_volume`](Self::create_volume).
    pub async fn create_volume_with(&self, name: impl AsRef<str>, mut labels: Labels) -> Result<VolumeId> {
        let name = Name::new(name.as_ref())?;
        let id = self.0.id.volume(&name);
        labels.extend(self.0.labels(&name));
        let created = self.0.driver.create_volume(&id, &VolumeSpec::new(labels)).await?;
        if created == Created::Existing {
            self.0.claim().await?;
        }
        let kind = EventKind::VolumeReady {
            volume: id.clone(),
            existed: created == Created::Existing,
        };
        self.0.tell(None, kind).await;
        Ok(id)
    }

    /// A small file of a volume, whole.
    ///
    /// # Errors
    /// [`ErrorKind::PathNotFound`]; [`ErrorKind::Io`] if it is larger than `limit` bytes; whatever [`Driver::read_volume`](crate::Driver::read_volume) fails with.
    pub async fn read_file(&self, volume: &VolumeId, path: &VolumePath, limit: u64) -> Result<Vec<u8>> {
        let tar = self.0.driver.read_volume(volume, std::slice::from_ref(path)).await?;
        // To the tar's end: behind one that is dropped before, a driver may still hold the volume for a moment.
        let whole = read_bounded(tar, limit.saturating_add(TAR_OVERHEAD)).await?;
        read_bounded(file_from_tar(once(whole), path).await?, limit).await
    }

    /// Runs a task to its end. Dropping the future cancels the task; its container is stopped and removed all the same.
    ///
    /// A task that ends with a code other than 0, by a signal, or is cancelled or timed out is a result, not an error.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] and [`ErrorKind::Unsupported`] before anything is made;
    /// [`ErrorKind::Conflict`] if an earlier process ran another task under this name; whatever the driver fails with.
    pub async fn run(&self, task: Task) -> Result<TaskResult> {
        self.start(task).wait().await
    }

    /// Starts a task without waiting for it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(&self, task: Task) -> TaskHandle {
        let cancel = self.1.child_token();
        let life = Life::run(self.0.clone(), task, cancel.clone());
        let (whole, own) = (self.0.cancel.clone(), cancel.clone());
        let running = async move {
            let mut life = std::pin::pin!(life);
            tokio::select! {
                result = &mut life => return result,
                () = whole.cancelled() => own.cancel(),
            }
            life.await
        };
        TaskHandle {
            cancel,
            running: self.0.running.spawn(running),
        }
    }

    /// The same job, whose tasks started from this handle are cancelled with `token`, and with the job as a whole.
    #[must_use]
    pub fn scope(&self, token: &CancellationToken) -> Self {
        Self(self.0.clone(), token.clone())
    }

    /// Fetches an image now, whether or not the engine has it.
    ///
    /// # Errors
    /// Whatever [`Driver::pull_image`](crate::Driver::pull_image) fails with.
    pub async fn pull(&self, pull: &PullImage) -> Result<()> {
        self.0.pull(None, pull, Instant::now()).await.map(|_| ())
    }

    /// Waits until tasks started from this handle are cancelled, with its own token or with the job: for work of a caller's own
    /// between them.
    pub async fn cancelled(&self) {
        tokio::select! {
            () = self.0.cancel.cancelled() => {}
            () = self.1.cancelled() => {}
        }
    }

    /// Cancels all tasks. Those that are being waited for end with [`ExitStatus::Cancelled`](crate::ExitStatus::Cancelled).
    pub fn cancel(&self) {
        self.0.cancel.cancel();
    }

    /// Cancels what still runs, politely, and removes everything the engine holds of this job.
    ///
    /// # Errors
    /// Whatever [`Driver::end_job`](crate::Driver::end_job) fails with. What it could not remove is in its report, and told as warnings.
    pub async fn end(&self) -> Result<EndReport> {
        self.0.cancel.cancel();
        self.0.running.close();
        // Each task ends itself in bounded time; one that does not is not waited for for ever.
        tokio::time::timeout(self.0.grace + END_LIMIT, self.0.running.wait())
            .await
            .ok();
        let report = self.0.driver.end_job(&self.0.id).await?;
        self.0.ended.store(true, Ordering::Relaxed);
        for (resource, error) in &report.remaining {
            self.0
                .tell(
                    None,
                    EventKind::Warning {
                        message: format!("{} was not removed: {error}", resource.id),
                    },
                )
                .await;
        }
        self.0
            .tell(
                None,
                EventKind::JobEnded {
                    removed: report.removed.len(),
                },
            )
            .await;
        Ok(report)
    }

    /// Leaves everything as it is, for someone to look at or another process to carry on.
    pub fn keep(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} on {})", self.0.id, self.0.driver)
    }
}

impl Inner {
    /// The labels of a resource of this job.
    pub(super) fn labels(&self, name: &Name) -> Labels {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| age.as_secs());
        [
            (labels::JOB, self.id.to_string()),
            (labels::NAME, name.to_string()),
            (labels::RUNNER, self.runner.to_string()),
            (labels::CREATED, now.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// Says that this process runs the job now. Labels can't be changed, and those of what an earlier process left name that
    /// one, which may be dead: a volume of our own keeps garbage collection away.
    pub(super) async fn claim(&self) -> Result<()> {
        let claim = || async {
            let name = Name::new(format!("runner-{}", JobId::unique()))?;
            self.driver
                .create_volume(&self.id.volume(&name), &VolumeSpec::new(self.labels(&name)))
                .await
                .map(|_| ())
        };
        self.claimed.get_or_try_init(claim).await.copied()
    }

    pub(super) async fn tell(&self, task: Option<&Name>, kind: EventKind) {
        if let Some(events) = &self.events {
            let event = Event {
                time: SystemTime::now(),
                job: self.id.clone(),
                task: task.cloned(),
                kind,
            };
            // A receiver that was dropped does not want to know.
            events.send(event).await.ok();
        }
    }

    /// Pulls, unless it did since `asked`: of many tasks that lack an image one fetches it. Returns how long it took.
    pub(super) async fn pull(&self, task: Option<&Name>, pull: &PullImage, asked: Instant) -> Result<Duration> {
        self.driver.info().capabilities.check_pull(pull)?;
        let began = Instant::now();
        let lock = self.pulled.lock().await.entry(pull_key(pull)).or_default().clone();
        let mut pulled = lock.lock().await;
        if pulled.is_some_and(|pulled| pulled > asked) {
            return Ok(began.elapsed());
        }
        let image = || pull.image.clone();
        self.tell(task, EventKind::PullStarted { image: image() }).await;
        let mut pull = pull.clone();
        pull.job = Some(self.id.clone());
        let mut progress = self.driver.pull_image(&pull).await?;
        while let Some(step) = progress.next().await {
            self.tell(
                task,
                EventKind::PullProgress {
                    image: image(),
                    progress: step?,
                },
            )
            .await;
        }
        *pulled = Some(Instant::now());
        self.tell(
            task,
            EventKind::PullFinished {
                image: image(),
                duration: began.elapsed(),
            },
        )
        .await;
        Ok(began.elapsed())
    }
}

fn pull_key(pull: &PullImage) -> String {
    let platform = pull.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{} {platform}", ImageRef::canonical(&pull.image))
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.ended.get_mut() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (driver, id) = (self.driver.clone(), self.id.clone());
            runtime.spawn(async move {
                if let Err(error) = driver.end_job(&id).await {
                    tracing::warn!(job = %id, %error, "a job that was dropped could not be removed");
                }
            });
        }
    }
}

/// A task that runs. Dropping it cancels the task.
#[derive(Debug)]
pub struct TaskHandle {
    cancel: CancellationToken,
    running: JoinHandle<Result<TaskResult>>,
}

impl TaskHandle {
    /// Asks the task to end: SIGTERM, after the grace period SIGKILL.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Waits until the task has ended and its container is removed. May be called again after its future was dropped,
    /// but not after it returned.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub async fn wait(&mut self) -> Result<TaskResult> {
        match (&mut self.running).await {
            Ok(result) => result,
            Err(error) => Err(Error::new(
                ErrorKind::Cancelled,
                format!("the task's runtime ended it: {error}"),
            )),
        }
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
