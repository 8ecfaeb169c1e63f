//! A container's output, from the log that its keeper writes.

use futures_util::StreamExt;
use futures_util::future::{self, Fuse, FutureExt};
use futures_util::stream;
use orchestra::{ContainerId, ContainerState, LogStream, Result};

use crate::container::absent;
use crate::driver::{ContainerdDriver, blocking};
use crate::error::is_away;
use crate::state::Folder;
use crate::task::state_of;

impl ContainerdDriver {
    pub(crate) async fn output(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        // A new one is asked for while its log is read; nothing will be written to that of one that is gone.
        let (engine_id, is_new) = match follow {
            true => {
                let record = self.known(id).await?;
                (record.container.id.clone(), record.layer.is_some())
            }
            false => (self.named(id).await?.container.id, false),
        };
        let folder = self.state.container(&engine_id);
        let making = folder.clone();
        tokio::try_join!(blocking(move || making.make()), self.logs.create(&engine_id))?;
        if !is_new && self.find(id).await?.is_none() {
            // Removed meanwhile: what was just made is all that is left of it.
            self.forget(&engine_id).await?;
            return Err(absent(id));
        }
        // Of a container that has ended all is on its way to the log, and the end is marked there when it has come.
        let to_the_end = follow || self.has_ended(&engine_id, &folder).await?;
        let log = self.logs.read(&engine_id, 0, to_the_end).await?;
        if !to_the_end {
            return Ok(log);
        }
        let (driver, id) = (self.clone(), id.clone());
        let watched: future::BoxFuture<'static, Result<()>> =
            async move { driver.see_through(is_new.then_some(&id), &engine_id).await }.boxed();
        let state = Some((log, watched.fuse()));
        Ok(stream::unfold(state, next).boxed())
    }

    async fn has_ended(&self, engine_id: &str, folder: &Folder) -> Result<bool> {
        let task = self.task(engine_id).await?;
        Ok(state_of(folder, task.as_ref()) == ContainerState::Exited)
    }

    /// Sees a task through to its end, once it is started: only that ends its log. An engine that stays away is an error.
    async fn see_through(&self, not_asked_for: Option<&ContainerId>, engine_id: &str) -> Result<()> {
        let folder = self.state.container(engine_id);
        if let Some(id) = not_asked_for
            && matches!(self.find(id).await, Ok(None))
        {
            return self.forget(engine_id).await;
        }
        loop {
            // Before the look: what changes from then on rings.
            let mut bell = match self.watcher.watch(&folder.path("")) {
                Ok(bell) => bell,
                // It was removed, and so is the log.
                Err(_) => return Ok(()),
            };
            match self.reap(engine_id).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                // The log says how far it came.
                Err(error) if !is_away(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            while !folder.is_started() {
                if !bell.rings().await {
                    return Ok(());
                }
            }
        }
    }
}

type State = (LogStream, Fuse<future::BoxFuture<'static, Result<()>>>);

/// The next of the log, or why there is none.
async fn next(state: Option<State>) -> Option<(Result<orchestra::LogChunk>, Option<State>)> {
    let (mut log, mut watched) = state?;
    loop {
        tokio::select! {
            biased;
            item = log.next() => return match item {
                Some(Ok(chunk)) => Some((Ok(chunk), Some((log, watched)))),
                Some(Err(error)) => Some((Err(error), None)),
                None => None,
            },
            Err(error) = &mut watched => return Some((Err(error), None)),
            else => {}
        }
    }
}
