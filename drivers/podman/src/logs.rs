//! What containers write.
//!
//! A container that has not been started is attached to: exact to the byte, and the engine does no more work for it than
//! for its own log. One that was started is read from that log, from the beginning.

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

impl PodmanDriver {
    pub(crate) async fn output(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let state = self.inspect(id).await?.state();
        if follow && state == ContainerState::Created {
            let attach = self.client.post(&["containers", id.as_str(), "attach"]);
            let attach = attach.query("stream", true).query("stdin", false);
            let attached = attach.query("stdout", true).query("stderr", true).hijack().await;
            let attached = match attached {
                Ok(attached) => attached,
                // libpod prepares the container to attach to it, and so finds here what it else would at the start.
                Err(failure) if matches!(cause_of(&failure), Some(Cause::Unrunnable | Cause::Runtime)) => {
                    let error = self.unstarted(id, failure).await;
                    return Ok(stream::once(async { Err(error) }).boxed());
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
        let follow = follow && state == ContainerState::Running;
        let logs = self.client.get(&["containers", id.as_str(), "logs"]);
        let logs = logs.query("stdout", true).query("stderr", true).query("follow", follow);
        let output = logs.stream().await.map_err(about(Subject::Container))?;
        // Chunked HTTP tells an end from a connection that broke.
        let output = demultiplexed(output.map_err(about(Subject::Container)).boxed());
        // libpod sends each line for itself.
        Ok(gathered(output.boxed()))
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
