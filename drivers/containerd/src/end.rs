//! How tasks end, and who waits for that.
//!
//! How a task ended is recorded beside containerd by whoever sees it first, who then deletes the task: only that ends the
//! container's log (the shim keeps its pipes open until then), and a restarted containerd would forget the task anyway.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_client::services::v1::{DeleteTaskRequest, WaitRequest};
use containerd_client::tonic::Code;
use containerd_client::types::v1::Status as TaskStatus;
use orchestra::{ContainerId, Error, ErrorKind, ExitStatus, Result, Signal};
use orchestra_helper::shim::out_of_memory;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::driver::{ContainerdDriver, blocking};
use crate::error::{Subject, about, is_away, meanwhile};
use crate::state::{Ended, Folder};

/// How long containerd may be away while something is waited for: it is restarted within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between tries to reach it again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Longest that a process which was killed is waited for.
const DEATH: Duration = Duration::from_secs(60);

/// Tries to reach an engine that went away while something was waited for, as often as it does.
#[derive(Debug)]
pub(crate) struct Patience {
    /// When it was first found away this time.
    since: Option<Instant>,
    /// When it was asked last.
    asked: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            since: None,
            asked: Instant::now(),
            pause: PAUSE.0,
        }
    }

    /// It answered.
    pub(crate) fn restore(&mut self) {
        *self = Self::new();
    }

    /// Waits a little, or gives up with the error if it was away for too long. An error of the engine's own ends it at once.
    pub(crate) async fn bear(&mut self, error: Error) -> Result<()> {
        // A wait that went on for so long was answered to: it is another time that the engine goes away.
        if self.asked.elapsed() > PATIENCE {
            self.restore();
        }
        if !is_away(&error) || self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(meanwhile(error));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.asked = Instant::now();
        Ok(())
    }
}

/// Whose turn it is to wait for a container's end, by its id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<String, Arc<AsyncMutex<Turn>>>>>);

/// What those who wait for one container hand on.
#[derive(Debug)]
struct Turn {
    /// Whether its task was deleted after its end; told by whoever does it, which goes on without who has the turn.
    cleared: Arc<AtomicBool>,
    patience: Patience,
}

impl Turns {
    fn turns(&self) -> MutexGuard<'_, HashMap<String, Arc<AsyncMutex<Turn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, engine_id: &str) -> Arc<AsyncMutex<Turn>> {
        let new = || {
            Arc::new(AsyncMutex::new(Turn {
                cleared: Arc::default(),
                patience: Patience::new(),
            }))
        };
        self.turns().entry(engine_id.to_owned()).or_insert_with(new).clone()
    }

    /// Whether it was waited for, and its task deleted, in this process. Another one may have made it anew since.
    fn is_cleared(&self, engine_id: &str) -> bool {
        let turn = self.turns().get(engine_id).cloned();
        turn.is_some_and(|turn| turn.try_lock().is_ok_and(|turn| turn.cleared.load(Ordering::Acquire)))
    }

    /// The container is gone.
    pub(crate) fn forget(&self, engine_id: &str) {
        self.turns().remove(engine_id);
    }
}

impl ContainerdDriver {
    /// Waits until a task has ended, and records how. `None` if it was not started.
    ///
    /// One at a time in this process: what one has waited for, the next finds recorded. By a task of its own, as whoever has
    /// the turn has to go on though nobody polls what waits for it, such as a log that nobody reads.
    pub(crate) async fn reap(&self, engine_id: &str) -> Result<Option<Ended>> {
        let (driver, engine_id) = (self.clone(), engine_id.to_owned());
        let reaping = tokio::spawn(async move { driver.reap_in_turn(&engine_id).await });
        AbortOnDropHandle::new(reaping).await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was waited for: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn reap_in_turn(&self, engine_id: &str) -> Result<Option<Ended>> {
        let folder = self.state.container(engine_id);
        let turn = self.turns.of(engine_id);
        let mut turn = turn.lock().await;
        loop {
            match self.try_reap(engine_id, &folder, &turn.cleared).await {
                Ok(Some(reaped)) => return Ok(reaped),
                Ok(None) => turn.patience.restore(),
                Err(error) => {
                    turn.patience.bear(error).await?;
                    // What goes away after an answer goes away another time.
                    if self.task(engine_id).await.is_ok() {
                        turn.patience.restore();
                    }
                }
            }
        }
    }

    /// One try; `None` if the task has changed meanwhile.
    async fn try_reap(
        &self,
        engine_id: &str,
        folder: &Folder,
        cleared: &Arc<AtomicBool>,
    ) -> Result<Option<Option<Ended>>> {
        if let Some(ended) = folder.ended() {
            self.clear(engine_id, folder, cleared).await?;
            return Ok(Some(Some(ended)));
        }
        cleared.store(false, Ordering::Release);
        // One that was started: its task is there until its end was recorded.
        if folder.is_started()
            && let Some(code) = self.exit_of(engine_id, folder).await?
        {
            let ended = self.record(engine_id, folder, code).await?;
            self.clear(engine_id, folder, cleared).await?;
            return Ok(Some(Some(ended)));
        }
        if folder.ended().is_some() {
            return Ok(None);
        }
        let Some(task) = self.task(engine_id).await? else {
            // Between the two looks somebody else may have seen its end.
            if let Some(ended) = folder.ended() {
                return Ok(Some(Some(ended)));
            }
            if !folder.was_started() {
                return Ok(Some(None));
            }
            // A start that is under way has a mark and no task, too.
            let starting = folder.clone();
            drop(blocking(move || starting.lock_if_there()).await?);
            let gone = self.task(engine_id).await?.is_none() && folder.was_started() && folder.ended().is_none();
            if !gone {
                return Ok(None);
            }
            // It ended while containerd was away. Whoever kept its log was there.
            let (logs, recorded, id) = (self.logs.clone(), folder.clone(), engine_id.to_owned());
            let ended = blocking(move || recorded.record(logs.exit(&id).ok_or_else(forgotten)?.into()));
            return Ok(Some(Some(ended.await?)));
        };
        match task.status() {
            TaskStatus::Created => Ok(Some(None)),
            status => {
                let code = match status {
                    TaskStatus::Stopped => Some(task.exit_status),
                    _ => self.exit_of(engine_id, folder).await?,
                };
                let Some(code) = code else { return Ok(None) };
                let ended = self.record(engine_id, folder, code).await?;
                self.clear(engine_id, folder, cleared).await?;
                Ok(Some(Some(ended)))
            }
        }
    }

    /// Waits for a task; `None` if there is none any more. While somebody else deletes it, containerd says that in many ways
    /// (1.6: `ttrpc: closed`); that one has recorded its end before.
    async fn exit_of(&self, engine_id: &str, folder: &Folder) -> Result<Option<u32>> {
        match self.wait_for(engine_id, "").await {
            Err(error) if error.kind() == ErrorKind::ContainerNotFound || folder.ended().is_some() => Ok(None),
            waited => waited.map(Some),
        }
    }

    /// One wait for a process, without tries to reach a containerd that went away.
    pub(crate) async fn wait_for(&self, engine_id: &str, exec_id: &str) -> Result<u32> {
        let request = WaitRequest {
            container_id: engine_id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let answer = self.client.tasks().wait(self.client.request(request)).await;
        Ok(answer.map_err(about(Subject::Container))?.into_inner().exit_status)
    }

    async fn record(&self, engine_id: &str, folder: &Folder, code: u32) -> Result<Ended> {
        let cgroup = format!("{}/{engine_id}", self.namespace);
        let recorded = folder.clone();
        let ended = blocking(move || {
            recorded.record(Ended {
                code,
                out_of_memory: out_of_memory(&cgroup),
            })
        });
        ended.await
    }

    /// Deletes a task whose end was recorded. Of many who see an end one does it: containerd answers those who come second
    /// while it is at it with errors of any kind (1.7: `ttrpc: closed`).
    async fn clear(&self, engine_id: &str, folder: &Folder, cleared: &Arc<AtomicBool>) -> Result<()> {
        if cleared.load(Ordering::Acquire) {
            return Ok(());
        }
        let (driver, engine_id, folder, cleared) =
            (self.clone(), engine_id.to_owned(), folder.clone(), cleared.clone());
        // Not dropped half-way with its caller, such as a log that has been read to its end: from when its shim has gone until
        // it is deleted, containerd says that there is no such task, and refuses another one of that name.
        let clearing = tokio::spawn(async move {
            let _lock = blocking(move || folder.lock_if_there()).await?;
            // Whoever was at it may have gone away meanwhile, and it gone on.
            if !cleared.load(Ordering::Acquire) {
                driver.delete_task(&engine_id).await?;
                cleared.store(true, Ordering::Release);
            }
            Ok(())
        });
        clearing.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a task was deleted: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    /// Deletes a task that has ended; one that is not there is success.
    async fn delete_task(&self, engine_id: &str) -> Result<()> {
        let request = DeleteTaskRequest {
            container_id: engine_id.to_owned(),
        };
        match self.client.tasks().delete(self.client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Container)(status)),
            _ => Ok(()),
        }
    }

    /// Kills a task if it runs, and deletes it.
    pub(crate) async fn end_task(&self, engine_id: &str) -> Result<()> {
        let is_over = self.turns.is_cleared(engine_id) && self.state.container(engine_id).ended().is_some();
        if is_over || self.task(engine_id).await?.is_none() {
            return Ok(());
        }
        self.kill(engine_id, "", Signal::KILL).await?;
        let waited = tokio::time::timeout(DEATH, self.wait_for(engine_id, "")).await;
        match waited {
            Ok(Err(error)) if error.kind() == ErrorKind::ContainerNotFound => Ok(()),
            Ok(Err(error)) => Err(error),
            Ok(Ok(_)) => self.delete_task(engine_id).await,
            Err(_) => {
                let message = format!("the container's process lives {} s after SIGKILL", DEATH.as_secs());
                Err(Error::new(ErrorKind::Engine, message)
                    .with_hint("it hangs in the kernel, as in a network file system that does not answer"))
            }
        }
    }

    pub(crate) async fn wait(&self, id: &ContainerId) -> Result<ExitStatus> {
        let engine_id = self.named(id).await?.container.id;
        let folder = self.state.container(&engine_id);
        let reaped = self.reap(&engine_id).await;
        if let Ok(Some(Ended { code: 0, .. })) = &reaped {
            return Ok(ExitStatus::Code(0));
        }
        // A removal kills first: that is no end to be told.
        if folder.is_going() || self.find(id).await?.is_none() {
            return Err(Error::new(
                ErrorKind::ContainerNotFound,
                "the container is being removed",
            ));
        }
        match reaped? {
            Some(ended) => Ok(ExitStatus::from_engine(i64::from(ended.code), ended.out_of_memory)),
            None => Err(Error::new(ErrorKind::Conflict, "the container was never started")),
        }
    }
}

fn forgotten() -> Error {
    let message = "containerd has forgotten how the container ended: it was restarted after that, and nobody had asked";
    Error::new(ErrorKind::Engine, message).with_hint("run the task again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Error {
        Error::new(ErrorKind::Interrupted, "the connection broke")
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_may_go_away_more_than_once_while_one_wait_lasts_but_not_for_long() {
        let mut patience = Patience::new();
        for _ in 0..3 {
            patience.bear(lost()).await.unwrap();
            patience.bear(lost()).await.unwrap();
            // It was back, and answered when the next one came.
            tokio::time::advance(Duration::from_secs(3600)).await;
        }
        let began = Instant::now();
        let error = loop {
            if let Err(error) = patience.bear(lost()).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert!(
            (PATIENCE..PATIENCE * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        assert!(patience.bear(Error::new(ErrorKind::Engine, "no")).await.is_err());
    }
}
