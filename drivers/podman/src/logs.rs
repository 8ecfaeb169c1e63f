//! What containers write.
//!
//! A container that has not been started is attached to: exact to the byte, and the engine does no more work for it than
//! for its own log. One that was started is read from that log, from the beginning.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use orchestra::stream::gathered;
use orchestra::{ContainerId, ContainerState, Error, ErrorKind, LogStream, Result};
use tokio_util::io::ReaderStream;

use crate::client::Client;
use crate::container::ended;
use crate::driver::PodmanDriver;
use crate::error::{Cause, Subject, about, cause_of, meanwhile};
use crate::frames::demultiplexed;

/// Bytes that are read at once.
pub(crate) const BUFFER: usize = 64 * 1024;

/// How long libpod may take to listen for what it tells of.
const MOMENT: Duration = Duration::from_secs(1);

impl PodmanDriver {
    pub(crate) async fn output(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let state = self.inspect(id).await?.state();
        if follow && state == ContainerState::Created {
            let attach = self.client.post(&["containers", id.as_str(), "attach"]);
            let attach = attach.query("stream", true).query("stdin", false);
            let attached = attach.query("stdout", true).query("stderr", true).hijack().await;
            let attached = match attached {
                Ok(attached) => attached,
                // libpod prepares the container to attach to it. What keeps it from that the start tells, if it is not over
                // by then. libpod 4.3 does not attach to such a container again.
                Err(failure) if matches!(cause_of(&failure), Some(Cause::Unrunnable | Cause::Runtime)) => {
                    tracing::debug!(?failure, "a container is read from its log, as it can't be attached to");
                    return Ok(self.clone().once_started(id.clone()));
                }
                Err(failure) => return Err(about(Subject::Container)(failure)),
            };
            let output = ReaderStream::with_capacity(attached, BUFFER).map_err(lost);
            return Ok(until_end(
                demultiplexed(output).boxed(),
                self.client.clone(),
                id.clone(),
            ));
        }
        self.log(id, follow && state == ContainerState::Running).await
    }

    /// The engine's own log of a container.
    async fn log(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let logs = self.client.get(&["containers", id.as_str(), "logs"]);
        let logs = logs.query("stdout", true).query("stderr", true).query("follow", follow);
        let output = logs.stream().await.map_err(about(Subject::Container))?;
        // Chunked HTTP tells an end from a connection that broke.
        let output = demultiplexed(output.map_err(about(Subject::Container)).boxed());
        // libpod sends each line for itself.
        Ok(gathered(output.boxed()))
    }

    /// The same of one that has not been started yet, followed.
    fn once_started(self, id: ContainerId) -> LogStream {
        let log = async move {
            let filters = serde_json::json!({"container": [id.as_str()]});
            let events = self
                .client
                .get(&["events"])
                .query("stream", true)
                .query("filters", filters);
            // Before the look: what changes from then on is told.
            let events = events.stream().await.map_err(about(Subject::Engine))?;
            let mut events = std::pin::pin!(events);
            let mut state = self.inspect(&id).await?.state();
            // libpod may begin to listen a moment after its answer has begun: one more look is due then.
            let mut moment = Some(MOMENT);
            while state == ContainerState::Created {
                let over = || Err(Error::new(ErrorKind::Interrupted, "the engine tells of no more events"));
                let event = async {
                    let event = events.next().await;
                    event.map_or_else(over, |event| event.map_err(about(Subject::Engine)).map(drop))
                };
                match moment.take() {
                    Some(moment) => tokio::time::timeout(moment, event).await.unwrap_or(Ok(()))?,
                    None => event.await?,
                }
                state = self.inspect(&id).await?.state();
            }
            self.log(&id, state == ContainerState::Running).await
        };
        stream::once(log).try_flatten().boxed()
    }
}

/// An error of a connection that was taken over from HTTP.
pub(crate) fn lost(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Interrupted, format!("the connection broke: {error}")).with_source(error)
}

/// An attached container's output. A connection that was taken over from HTTP ends in the same way when the container
/// does and when the engine dies: only the answer to a wait tells that nothing is missing. A container may also close its
/// output and run on; following it ends when it does.
fn until_end(output: LogStream, client: Client, id: ContainerId) -> LogStream {
    stream::try_unfold((output, client, id), async |(mut output, client, id)| {
        match output.next().await {
            Some(item) => Ok(Some((item?, (output, client, id)))),
            None => match ended(&client, id.as_str()).await {
                Ok(()) => Ok(None),
                // It ended and was removed since.
                Err(error) if error.kind() == ErrorKind::ContainerNotFound => Ok(None),
                Err(error) => Err(meanwhile(error)),
            },
        }
    })
    .boxed()
}
