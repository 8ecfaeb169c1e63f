//! What containers write.
//!
//! A container that has not been started is attached to: exact to the byte, and the engine does no more work for it than
//! for its own log. One that was started is read from that log, from the beginning.

use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use orchestra::stream::{and_rest, gathered};
use orchestra::{ContainerId, ContainerState, Error, ErrorKind, LogChunk, LogStream, OutputStream, Result};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::ReaderStream;

use crate::container::{Found, ended};
use crate::driver::PodmanDriver;
use crate::error::{Cause, Subject, about, cause_of, meanwhile};
use crate::frames::demultiplexed;

/// Bytes that are read at once.
pub(crate) const BUFFER: usize = 64 * 1024;

/// Bytes of a followed log that are looked at together, at most.
const LOOKED_AT: usize = 4 << 20;
/// How often it is looked whether a container still runs whose log is followed, at most: it costs the engine something.
const LOOKS: Duration = Duration::from_millis(50);

/// How long libpod may take to listen for what it tells of.
const MOMENT: Duration = Duration::from_secs(1);

impl PodmanDriver {
    pub(crate) async fn output(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let found = match follow && self.own.is_new(id) {
            true => None,
            false => Some(self.inspect(id).await?),
        };
        let state = found.as_ref().map_or(ContainerState::Created, Found::state);
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
            let output = self.clone().unless_refused(id.clone(), demultiplexed(output).boxed());
            let (driver, over, id) = (self.clone(), self.own.attached(id), id.clone());
            // A connection that was taken over from HTTP ends in the same way when the container does and when the engine
            // dies: only the answer to a wait tells that nothing is missing. A container may also close its output and run
            // on; following it ends when it does.
            return Ok(and_rest(output, async move || {
                match ended(&driver.client, id.as_str()).await {
                    Ok(()) => {
                        if let Some(over) = over {
                            over.send_replace(true);
                        }
                        Ok(None)
                    }
                    // It ended and was removed since.
                    Err(error) if error.kind() == ErrorKind::ContainerNotFound => Ok(None),
                    Err(error) => Err(meanwhile(error)),
                }
            }));
        }
        match found {
            Some(found) if follow && state == ContainerState::Running => self.followed(id, found.is_running()).await,
            _ => self.read_log(id, false).await,
        }
    }

    /// The output of a container that was attached to, or its log where conmon ended without having accepted the connection:
    /// it does if it had no turn from before the attaching until after the container's end (2.1.6 and 2.1.12, on machines
    /// that are busy). The log has all of it then, and in the output stands a complaint of libpod's, alone.
    fn unless_refused(self, id: ContainerId, mut output: LogStream) -> LogStream {
        let output = async move {
            let mut begin: Vec<_> = output.next().await.into_iter().collect();
            let refused = begin.iter().any(is_refusal);
            if refused {
                begin.extend(output.next().await);
            }
            // What comes after such words shows that they are the container's own.
            if !refused || begin.len() > 1 {
                return Ok(stream::iter(begin).chain(output).boxed());
            }
            tracing::debug!("a container is read from its log, as conmon ended without having been attached to");
            self.read_log(&id, false).await
        };
        stream::once(output).try_flatten().boxed()
    }

    /// The engine's own log of a container that was started, until it has ended. Of one that is not quite `running`, paused
    /// for example, libpod follows no log, though it is asked to: what there is comes now, and the rest at the end.
    async fn followed(&self, id: &ContainerId, running: bool) -> Result<LogStream> {
        let known = match running {
            true => {
                // libpod 4.3 begins its answer with the first line, and a container may write none for long.
                let (driver, read) = (self.clone(), id.clone());
                let log = stream::once(async move { driver.read_log(&read, true).await }).try_flatten();
                self.clone().known_whole(id.clone(), log.boxed())
            }
            false => self.read_log(id, false).await?,
        };
        let (driver, id) = (self.clone(), id.clone());
        Ok(and_rest(known, async move || {
            ended(&driver.client, id.as_str()).await.map_err(meanwhile)?;
            driver.read_log(&id, false).await.map(Some)
        }))
    }

    /// As much of a followed log as is known to lack nothing. A quarter of a second after the container has ended libpod
    /// tells its reader of the log to stop, which drops lines from then on, any of them (4.3.1 to 5.8; `sendLine` of
    /// nxadm/tail). What had come before the container was seen to run is whole.
    fn known_whole(self, id: ContainerId, log: LogStream) -> LogStream {
        let state = (self, id, log, Instant::now());
        let known = stream::try_unfold(state, async |(driver, id, mut log, look)| {
            let (mut pieces, mut bytes) = (Vec::new(), 0);
            // Pieces that take turns are small; all that has come until the next look is looked at together.
            while bytes < LOOKED_AT {
                let piece = tokio::select! {
                    biased;
                    piece = log.next() => piece,
                    () = sleep_until(look), if !pieces.is_empty() => break,
                };
                let Some(piece) = piece else { break };
                bytes += piece.as_ref().map_or(LOOKED_AT, |piece| piece.bytes.len().max(1));
                pieces.push(piece);
            }
            if pieces.is_empty() {
                return Ok(None);
            }
            let found = driver.inspect(&id).await.map_err(meanwhile)?;
            let look = Instant::now() + LOOKS;
            Ok(found
                .is_running()
                .then(|| (stream::iter(pieces), (driver, id, log, look))))
        });
        known.try_flatten().boxed()
    }

    async fn read_log(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
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
            let mut found = self.inspect(&id).await?;
            // libpod may begin to listen a moment after its answer has begun: one more look is due then.
            let mut moment = Some(MOMENT);
            while found.state() == ContainerState::Created {
                let over = || Err(Error::new(ErrorKind::Interrupted, "the engine tells of no more events"));
                let event = async {
                    let event = events.next().await;
                    event.map_or_else(over, |event| event.map_err(about(Subject::Engine)).map(drop))
                };
                match moment.take() {
                    Some(moment) => tokio::time::timeout(moment, event).await.unwrap_or(Ok(()))?,
                    None => event.await?,
                }
                found = self.inspect(&id).await?;
            }
            match found.state() {
                ContainerState::Exited => self.read_log(&id, false).await,
                _ => self.followed(&id, found.is_running()).await,
            }
        };
        stream::once(log).try_flatten().boxed()
    }
}

/// Whether this is what libpod writes into the output of a container whose conmon never accepted the connection.
fn is_refusal(item: &Result<LogChunk>) -> bool {
    item.as_ref().is_ok_and(|chunk| {
        chunk.stream == OutputStream::Stderr
            && chunk.bytes.starts_with(b"Error: read unixpacket ")
            && chunk.bytes.ends_with(b": connection reset by peer\n")
    })
}

/// An error of a connection that was taken over from HTTP.
pub(crate) fn lost(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Interrupted, format!("the connection broke: {error}")).with_source(error)
}
