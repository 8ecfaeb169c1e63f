//! One task from pull to removal.
//!
//! 1. The spec is completed and compared with the stack's capabilities; nothing is made if it does not fit.
//! 2. The container is made. Only if the engine says that it lacks the image, the image is pulled and the container made
//!    then: the usual case costs no question.
//! 3. Its output is followed from before the start, so that nothing is lost; it is started; its end is waited for.
//! 4. Cancellation and timeout are one thing with two names: SIGTERM, grace, SIGKILL.
//! 5. The container is removed, however all this went.
//!
//! The life runs in a tokio task of its own, and no call to the driver is dropped half-way once a container may exist.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::handle::Inner;
use super::task::{How, Io, Stdin};
use super::{Captured, EventKind, OutputSink, Task, TaskResult, Timings};
use crate::{
    ContainerId, ContainerPath, ContainerSpec, ContainerState, Created, Error, ErrorKind, ExitStatus, LogStream, Name,
    OutputStream, PullImage, PullPolicy, Result, Signal, labels,
};

/// How long a container that was sent SIGKILL may take to end; a process in uninterruptible sleep can hang for ever.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long the engine may be silent about a container's output after the container has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How long output may still be delivered of a task that was told to end.
const STOPPED_DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long a removal may take; what is left after that, the job's end and garbage collection try again.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);
/// How often a removal that failed for a passing reason is tried.
const REMOVALS: u32 = 3;

pub(super) struct Life {
    job: Arc<Inner>,
    name: Name,
    spec: ContainerSpec,
    how: How,
    cancel: CancellationToken,
    deadline: Option<Instant>,
}

impl Life {
    pub(super) async fn run(job: Arc<Inner>, task: Task, cancel: CancellationToken) -> Result<TaskResult> {
        let Task { name, spec, how, io } = task;
        Self {
            job,
            name,
            spec,
            how,
            cancel,
            deadline: None,
        }
        .attempts(io)
        .await
    }

    async fn attempts(mut self, mut io: Io) -> Result<TaskResult> {
        if let Err(error) = self.complete(&io) {
            return Err(error.with("job", &self.job.id).with("task", &self.name));
        }
        let mut attempt = 1;
        loop {
            self.deadline = self.how.timeout.map(|timeout| Instant::now() + timeout);
            let result = self.attempt(attempt, &mut io).await;
            let again = match &result {
                Ok(result) => {
                    self.tell(EventKind::TaskFinished {
                        exit: result.exit,
                        duration: result.timings.total,
                    })
                    .await;
                    !result.exit.success()
                }
                Err(error) => {
                    self.tell(EventKind::TaskErrored {
                        error: error.to_string(),
                    })
                    .await;
                    error.is_retryable()
                }
            };
            if !again || attempt >= self.how.attempts || self.cancel.is_cancelled() {
                return result.map_err(|error| error.with("job", &self.job.id).with("task", &self.name));
            }
            attempt += 1;
        }
    }

    /// What every attempt has in common, and the refusal of what can't work.
    fn complete(&mut self, io: &Io) -> Result<()> {
        let spec = &mut self.spec;
        let mounted = spec.mounts.iter().map(|mount| &mount.target);
        let relative = mounted
            .chain(spec.tmpfs.iter().map(|tmpfs| &tmpfs.target))
            .any(|target| !target.is_absolute());
        if relative && spec.working_dir.is_none() {
            spec.working_dir = Some(ContainerPath::new(Task::WORKING_DIR)?);
        }
        if self.how.attempts > 1 && matches!(io.stdin, Some(Stdin::Once(_))) {
            return Err(Error::invalid(
                "a task that reads standard input has one attempt: its input can't be read again",
            ));
        }
        if let Some(file) = self.how.files.iter().find(|file| !file.path.is_absolute()) {
            return Err(Error::invalid(format!("the file {} needs an absolute path", file.path)));
        }
        spec.validate()?;
        self.job.driver.info().check_container(spec)?;
        let own = self.job.labels(&self.name);
        let fingerprint = spec.fingerprint();
        spec.labels.extend(own);
        spec.labels.insert(labels::SPEC.to_owned(), fingerprint);
        Ok(())
    }

    async fn attempt(&self, attempt: u32, io: &mut Io) -> Result<TaskResult> {
        let (began, id) = (Instant::now(), self.job.id.container(&self.name, attempt));
        let mut result = TaskResult {
            name: self.name.clone(),
            container: id.clone(),
            attempt,
            exit: ExitStatus::Cancelled,
            stdout: Captured::new(self.job.capture),
            stderr: Captured::new(self.job.capture),
            started: SystemTime::now(),
            timings: Timings::default(),
        };
        let mut ours = false;
        let ran = tokio::select! {
            biased;
            ran = self.work(&id, io, &mut result, &mut ours) => ran,
            error = self.overdue() => Err(error),
        };
        // A container of a task that has ended by itself is the only record that it did.
        let ended_itself = ran.is_ok() && !matches!(result.exit, ExitStatus::Cancelled | ExitStatus::TimedOut);
        if ours && !(self.job.resumable && ended_itself) {
            self.remove(&id).await;
        }
        result.timings.total = began.elapsed();
        ran.map(|()| result)
    }

    /// From pull to end. `ours` is set as soon as a container may exist that is to be removed.
    async fn work(&self, id: &ContainerId, io: &mut Io, result: &mut TaskResult, ours: &mut bool) -> Result<()> {
        let Some(created) = self.create(id, result, ours).await? else {
            return Ok(());
        };
        let (existed, attempt) = (created == Created::Existing, result.attempt);
        let state = match existed {
            true => self.take_over(id).await.inspect_err(|_| *ours = false)?,
            false => ContainerState::Created,
        };
        self.tell(EventKind::ContainerReady {
            container: id.clone(),
            attempt,
            existed,
        })
        .await;
        self.in_container(id, state, io, result).await
    }

    /// Resolves when a task was told to end and the engine has not got it there for too long.
    async fn overdue(&self) -> Error {
        let why = self.stop().await;
        let limit = self.job.grace + KILL_LIMIT + STOPPED_DRAIN_LIMIT;
        sleep(limit).await;
        Error::new(
            ErrorKind::DeadlineExceeded,
            format!("{why}, but the engine did not end it within {limit:?}"),
        )
    }

    /// Makes the container, pulling its image if need be; `None` if the task was stopped before.
    async fn create(&self, id: &ContainerId, result: &mut TaskResult, ours: &mut bool) -> Result<Option<Created>> {
        let spec = &self.spec;
        let mut pull = PullImage::new(spec.image.clone());
        pull.platform = spec.platform.clone();
        pull.credentials = self.how.credentials.clone();
        pull.insecure = self.how.insecure;
        let began = Instant::now();
        if self.how.pull == PullPolicy::Always && !self.pull(&pull, began, result).await? {
            return Ok(None);
        }
        if let Some(why) = self.stopped() {
            result.exit = why;
            return Ok(None);
        }
        *ours = true;
        let tried = Instant::now();
        let created = match self.job.driver.create_container(id, spec).await {
            Err(error) if error.kind() == ErrorKind::ImageNotFound && self.how.pull == PullPolicy::IfNotPresent => {
                if !self.pull(&pull, tried, result).await? {
                    return Ok(None);
                }
                self.job.driver.create_container(id, spec).await?
            }
            created => created?,
        };
        result.timings.create = began.elapsed().saturating_sub(result.timings.pull);
        Ok(Some(created))
    }

    /// Whether the pull came to its end; it is abandoned when the task is stopped.
    async fn pull(&self, pull: &PullImage, asked: Instant, result: &mut TaskResult) -> Result<bool> {
        tokio::select! {
            pulled = self.job.pull(Some(&self.name), pull, asked) => {
                result.timings.pull = pulled?;
                Ok(true)
            }
            why = self.stop() => {
                result.exit = why;
                Ok(false)
            }
        }
    }

    async fn in_container(
        &self,
        id: &ContainerId,
        state: ContainerState,
        io: &mut Io,
        result: &mut TaskResult,
    ) -> Result<()> {
        let driver = self.job.driver.clone();
        if state == ContainerState::Created && !self.how.files.is_empty() {
            driver.write_files(id, &self.how.files).await?;
        }
        if let (ContainerState::Created, Some(why)) = (state, self.stopped()) {
            result.exit = why;
            return Ok(());
        }
        let logs = driver.logs(id, true).await?;
        let began = Instant::now();
        if state == ContainerState::Created {
            driver
                .start_container(id, io.stdin.as_mut().and_then(Stdin::take))
                .await?;
        }
        if state != ContainerState::Exited {
            self.tell(EventKind::TaskStarted).await;
        }
        let followed = self.follow(id, logs, &mut io.output, result).await;
        result.timings.run = began.elapsed();
        followed
    }

    /// What an earlier process of this run left of this task, if it is the same task.
    async fn take_over(&self, id: &ContainerId) -> Result<ContainerState> {
        self.job.claim().await?;
        let left = self.job.driver.list(Some(&self.job.id)).await?;
        let found = left.into_iter().find(|resource| resource.id == id.as_str());
        let found = found
            .ok_or_else(|| Error::new(ErrorKind::Interrupted, "the container vanished while it was taken over"))?;
        if found.labels.get(labels::SPEC) != self.spec.labels.get(labels::SPEC) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "this run id was used with another definition of this task",
            )
            .with("container", id)
            .with_hint("use a new run id, or remove what the earlier run left with `orchestra gc`"));
        }
        found
            .state
            .ok_or_else(|| Error::new(ErrorKind::Protocol, "the engine lists the container without a state"))
    }

    /// Delivers output until the container has ended, ending it when the task is cancelled or too late.
    async fn follow(
        &self,
        id: &ContainerId,
        logs: LogStream,
        output: &mut Option<Box<dyn OutputSink>>,
        result: &mut TaskResult,
    ) -> Result<()> {
        let (driver, cancel) = (&self.job.driver, &self.cancel);
        let signal = self.spec.stop_signal.unwrap_or(Signal::TERM);
        let ended = CancellationToken::new();
        let (stdout, stderr) = (&mut result.stdout, &mut result.stderr);
        let mut pump = std::pin::pin!(deliver(logs, output, stdout, stderr, ended.clone()));
        let mut wait = driver.wait_container(id);
        let mut stop = std::pin::pin!(self.stop());
        // docker 20.10 answers a SIGKILL when the container's output has been read: it must be read meanwhile.
        let mut signalling: BoxFuture<'_, Result<()>> = Box::pin(pending());
        let (mut exit, mut stopped, mut delivered, mut killed) = (None, None, false, false);
        // What is waited for next once the task was told to end: grace period, then the kill, then the rest of its output.
        let mut limit: Option<Instant> = None;
        let mut failure: Option<Error> = None;
        while exit.is_none() || !delivered {
            tokio::select! {
                status = &mut wait, if exit.is_none() => {
                    exit = Some(status?);
                    ended.cancel();
                    limit = stopped.map(|_| Instant::now() + STOPPED_DRAIN_LIMIT);
                }
                outcome = &mut pump, if !delivered => {
                    delivered = true;
                    if let Err(error) = outcome {
                        if exit.is_some() || error.kind() != ErrorKind::Io {
                            return Err(error);
                        }
                        // Nobody takes the output: the task must not go on unseen.
                        failure = Some(error);
                        cancel.cancel();
                    }
                }
                sent = &mut signalling => {
                    sent?;
                    signalling = Box::pin(pending());
                }
                why = &mut stop, if stopped.is_none() && exit.is_none() => {
                    stopped = Some(why);
                    self.tell(EventKind::TaskStopping { why }).await;
                    signalling = driver.signal_container(id, signal);
                    limit = Some(Instant::now() + self.job.grace);
                }
                () = at(limit) => {
                    if exit.is_some() {
                        break;
                    }
                    if killed {
                        let message = format!("the container did not end within {KILL_LIMIT:?} of SIGKILL");
                        return Err(Error::new(ErrorKind::DeadlineExceeded, message));
                    }
                    signalling = driver.signal_container(id, Signal::KILL);
                    killed = true;
                    limit = Some(Instant::now() + KILL_LIMIT);
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        result.exit = stopped.or(exit).unwrap_or(ExitStatus::Cancelled);
        Ok(())
    }

    async fn remove(&self, id: &ContainerId) {
        for attempt in 1..=REMOVALS {
            let removed = timeout(REMOVAL_LIMIT, self.job.driver.remove_container(id)).await;
            let error = match removed {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!("no answer within {REMOVAL_LIMIT:?}"),
                )
                .retryable(false),
            };
            if attempt == REMOVALS || !error.is_retryable() {
                let message = format!("the container {id} was not removed: {error}");
                return self.tell(EventKind::Warning { message }).await;
            }
            sleep(Duration::from_millis(200) * attempt).await;
        }
    }

    fn stopped(&self) -> Option<ExitStatus> {
        if self.cancel.is_cancelled() {
            return Some(ExitStatus::Cancelled);
        }
        self.deadline
            .filter(|deadline| *deadline <= Instant::now())
            .map(|_| ExitStatus::TimedOut)
    }

    fn stop(&self) -> impl Future<Output = ExitStatus> {
        stop(&self.cancel, self.deadline)
    }

    async fn tell(&self, kind: EventKind) {
        self.job.tell(Some(&self.name), kind).await;
    }
}

/// Resolves when a task is to end, with the reason.
async fn stop(cancel: &CancellationToken, deadline: Option<Instant>) -> ExitStatus {
    tokio::select! {
        () = cancel.cancelled() => ExitStatus::Cancelled,
        () = at(deadline) => ExitStatus::TimedOut,
    }
}

async fn at(limit: Option<Instant>) {
    match limit {
        Some(limit) => sleep_until(limit).await,
        None => pending().await,
    }
}

/// Passes output on until it ends. Once the container has ended, an engine that does not close the stream is not waited for.
async fn deliver(
    mut logs: LogStream,
    sink: &mut Option<Box<dyn OutputSink>>,
    stdout: &mut Captured,
    stderr: &mut Captured,
    ended: CancellationToken,
) -> Result<()> {
    loop {
        let silent = async {
            ended.cancelled().await;
            sleep(DRAIN_LIMIT).await;
        };
        let chunk = tokio::select! {
            biased;
            chunk = logs.next() => chunk,
            () = silent => {
                let message = format!("the engine did not close the container's output within {DRAIN_LIMIT:?} of its end");
                return Err(Error::new(ErrorKind::DeadlineExceeded, message));
            }
        };
        let Some(chunk) = chunk else { return Ok(()) };
        let chunk = chunk?;
        // What a log that is read anew passes over.
        if chunk.bytes.is_empty() {
            continue;
        }
        match chunk.stream {
            OutputStream::Stdout => stdout.push(&chunk.bytes),
            OutputStream::Stderr => stderr.push(&chunk.bytes),
        }
        if let Some(sink) = sink {
            sink.write(chunk).await?;
        }
    }
}
