//! What containers write.
//!
//! A container that has not been started is attached to: exact to the byte, and the engine does no more work for it than
//! for its own log. One that was started is read from that log, from the beginning.
//!
//! docker cuts lines of 16 KiB and more into entries of its log. 20.10's `local` driver gives back the last one of a line
//! without its line feed, and nothing at all if there was nothing else in it (26.1 does not). With `details` each entry is
//! given back with a prefix, here an empty one: so it is seen, and [`mended`] puts the line feed where it was.

use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error as Bollard;
use bollard::query_parameters::{AttachContainerOptionsBuilder, LogsOptionsBuilder};
use bytes::Buf;
use futures_util::stream::{self, StreamExt};
use orchestra::stream::{and_rest, gathered};
use orchestra::{ContainerId, ContainerState, Error, ErrorKind, LogChunk, LogStream, OutputStream, Result};

use crate::container::{ended, state, wait};
use crate::driver::DockerDriver;
use crate::error::{Subject, about, meanwhile};

/// Bytes of an entry of the log that the next one goes on from (`defaultBufSize` of docker's `daemon/logger/copier.go`).
const PIECE: usize = 16 * 1024;

/// How long whoever follows a container from before its start is not asked whether it is there: most write or end before.
const SILENCE: Duration = Duration::from_secs(1);

impl DockerDriver {
    pub(crate) async fn output(&self, id: &ContainerId, follow: bool) -> Result<LogStream> {
        let found = self.inspect(id).await?;
        let state = state(&found);
        if follow && state == ContainerState::Created {
            let options = AttachContainerOptionsBuilder::new()
                .stream(true)
                .stdout(true)
                .stderr(true)
                .build();
            let attached = self.docker.attach_container(id.as_str(), Some(options)).await;
            let output = attached.map_err(about(Subject::Container))?.output.map(chunk).boxed();
            let output = until_removed(self.docker.clone(), id.clone(), output);
            let (docker, id) = (self.docker.clone(), id.clone());
            // A connection that was taken over from HTTP ends in the same way when the container does and when the engine
            // dies: only the answer to a wait tells that nothing is missing. A container may also close its output and run
            // on; following it ends when it does.
            return Ok(and_rest(output, async move || {
                match ended(&docker, id.as_str()).await {
                    Ok(_) => Ok(None),
                    // It ended and was removed since.
                    Err(error) if error.kind() == ErrorKind::ContainerNotFound => Ok(None),
                    Err(error) => Err(meanwhile(error)),
                }
            }));
        }
        if !follow || state != ContainerState::Running {
            return Ok(self.log(id, false));
        }
        if self.api() >= 45 {
            return Ok(self.log(id, true));
        }
        // docker 20.10 may end it when the container has, however much of the log is left (26.1 does not): what is missing
        // is read then.
        let (driver, id) = (self.clone(), id.clone());
        Ok(and_rest(driver.log(&id, true), async move || {
            ended(&driver.docker, id.as_str()).await.map_err(meanwhile)?;
            Ok(Some(driver.log(&id, false)))
        }))
    }

    /// The engine's own log of a container.
    fn log(&self, id: &ContainerId, follow: bool) -> LogStream {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(follow)
            .tail("all")
            .build();
        let output = self.docker.logs(id.as_str(), Some(options)).boxed();
        let loses_line_feeds = self.api() < 45;
        // Chunked HTTP tells an end from a connection that broke.
        let entries = stream::try_unfold(output, move |mut output| async move {
            match output.next().await {
                Some(item) => Ok(Some((mended(chunk(item)?, loses_line_feeds), output))),
                None => Ok(None),
            }
        });
        // docker sends each entry for itself.
        gathered(entries.boxed())
    }
}

/// The output of a container that it was attached to before its start. docker keeps such a connection open when the container
/// is removed and was never started (20.10 to 26.1), and whoever follows it would wait for ever.
fn until_removed(docker: Docker, id: ContainerId, mut output: LogStream) -> LogStream {
    let begun = async move {
        let first = {
            let removed = async {
                tokio::time::sleep(SILENCE).await;
                match wait(&docker, id.as_str(), "removed")
                    .await
                    .map_err(about(Subject::Container))
                {
                    Err(error) if error.kind() != ErrorKind::ContainerNotFound => std::future::pending().await,
                    _ => {}
                }
            };
            tokio::select! {
                first = output.next() => first,
                // A killed one may have written before.
                () = removed => match tokio::time::timeout(SILENCE, output.next()).await {
                    Ok(first) => first,
                    Err(_) => return stream::empty().boxed(),
                },
            }
        };
        match first {
            Some(first) => stream::iter([first]).chain(output).boxed(),
            None => stream::empty().boxed(),
        }
    };
    stream::once(begun).flatten().boxed()
}

/// An entry of the log as the process wrote it. One that is neither a whole line nor as long as one that goes on is the end
/// of a line; that the process may have ended before its last line feed is as it is where lines are kept.
fn mended(entry: LogChunk, loses_line_feeds: bool) -> LogChunk {
    let LogChunk { stream, mut bytes } = entry;
    let details = bytes.iter().position(|byte| *byte == b' ').map_or(0, |space| space + 1);
    bytes.advance(details);
    if loses_line_feeds && bytes.len() < PIECE && !bytes.ends_with(b"\n") {
        bytes = [bytes.as_ref(), b"\n"].concat().into();
    }
    LogChunk { stream, bytes }
}

/// A piece of output as bollard has it.
pub(crate) fn chunk(item: Result<LogOutput, Bollard>) -> Result<LogChunk> {
    match item.map_err(about(Subject::Container))? {
        LogOutput::StdOut { message } => Ok(LogChunk {
            stream: OutputStream::Stdout,
            bytes: message,
        }),
        LogOutput::StdErr { message } => Ok(LogChunk {
            stream: OutputStream::Stderr,
            bytes: message,
        }),
        // Without a terminal all output comes in frames. docker marks its own trouble with reading a log by a fourth kind
        // of frame, which bollard does not know, and bollard passes on what is left of a frame that was cut off.
        LogOutput::Console { message } | LogOutput::StdIn { message } => {
            let text = String::from_utf8_lossy(&message);
            if message.first() == Some(&3) {
                let text = text.chars().skip(8).collect::<String>();
                Err(Error::new(ErrorKind::Engine, text.trim().to_owned()))
            } else {
                Err(Error::new(
                    ErrorKind::Interrupted,
                    "the output broke off in the middle of a piece",
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn an_entry_of_the_log_loses_its_details_and_gets_back_the_line_feed_that_docker_dropped() {
        let piece = |end: &str| format!(" {}{end}", "x".repeat(PIECE - end.len()));
        for (entry, faulty, sound) in [
            (" a line\n".to_owned(), "a line\n".to_owned(), "a line\n".to_owned()),
            (
                "k=v,l=w  two spaces\n".to_owned(),
                " two spaces\n".to_owned(),
                " two spaces\n".to_owned(),
            ),
            (" the end".to_owned(), "the end\n".to_owned(), "the end".to_owned()),
            (" ".to_owned(), "\n".to_owned(), String::new()),
            (piece(""), piece("")[1..].to_owned(), piece("")[1..].to_owned()),
            (piece("\n"), piece("\n")[1..].to_owned(), piece("\n")[1..].to_owned()),
        ] {
            for (loses, wanted) in [(true, faulty), (false, sound)] {
                let chunk = LogChunk {
                    stream: OutputStream::Stdout,
                    bytes: entry.clone().into(),
                };
                assert_eq!(mended(chunk, loses).bytes, wanted.as_bytes(), "{entry:?}");
            }
        }
    }

    #[test]
    fn the_engines_own_trouble_with_a_log_is_an_error_and_not_output() {
        let frame = b"\x03\0\0\0\0\0\0\x16Error grabbing logs: x".as_slice();
        let error = chunk(Ok(LogOutput::Console { message: frame.into() })).unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Engine, "Error grabbing logs: x")
        );
        let cut = Bytes::from_static(b"\x01\0\0");
        let error = chunk(Ok(LogOutput::Console { message: cut })).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}
