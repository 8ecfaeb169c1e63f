//! Output on its way from the engine to everyone.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use orchestra::{ExecEvent, ExecStream, LogChunk, LogStream, OutputStream, Result};
use tokio::time::{Instant, sleep_until};

use crate::JobSecrets;
use crate::channel::Channel;
use crate::redact::{LONG_MOMENT, MOMENT};

/// A container's output, redacted. `progress` says that its standard error is BuildKit's progress.
pub(crate) fn logs(logs: LogStream, job: JobSecrets, progress: bool) -> LogStream {
    let items = logs.map(|chunk| chunk.map(ExecEvent::Output)).boxed();
    let redacted = redacted(items, job, progress, false).filter_map(|item| async move {
        match item {
            Ok(ExecEvent::Output(chunk)) => Some(Ok(chunk)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    });
    redacted.boxed()
}

/// An exec's output, redacted; its exit comes behind all of it. `content` says that its standard output is a volume's
/// content, which stays as it is: changed, it would be damaged.
pub(crate) fn exec(events: ExecStream, job: JobSecrets, content: bool) -> ExecStream {
    redacted(events, job, false, content)
}

fn redacted(inner: ExecStream, job: JobSecrets, progress: bool, content: bool) -> ExecStream {
    let state = State {
        inner,
        stdout: Channel::new(false),
        stderr: Channel::new(progress),
        content,
        job,
        queue: VecDeque::new(),
        since: None,
        ended: false,
    };
    stream::unfold(state, |mut state| async move {
        state.next().await.map(|item| (item, state))
    })
    .boxed()
}

struct State {
    inner: BoxStream<'static, Result<ExecEvent>>,
    stdout: Channel,
    stderr: Channel,
    content: bool,
    job: JobSecrets,
    queue: VecDeque<Result<ExecEvent>>,
    /// Since when nothing has come, while something is held.
    since: Option<Instant>,
    ended: bool,
}

impl State {
    async fn next(&mut self) -> Option<Result<ExecEvent>> {
        loop {
            if let Some(item) = self.queue.pop_front() {
                return Some(item);
            }
            if self.ended {
                return None;
            }
            let waited = self.since.map(|since| (since, self.next_look(since)));
            let item = match waited {
                None => self.inner.next().await,
                Some((since, look)) => tokio::select! {
                    biased;
                    item = self.inner.next() => item,
                    () = sleep_until(look) => {
                        let held = since.elapsed();
                        self.both(|channel, job| channel.flush(job, held));
                        let holding = self.stdout.is_holding() || self.stderr.is_holding();
                        if !holding || held >= LONG_MOMENT {
                            self.since = None;
                        }
                        continue;
                    }
                },
            };
            match item {
                Some(Ok(ExecEvent::Output(chunk))) if self.content && chunk.stream == OutputStream::Stdout => {
                    return Some(Ok(ExecEvent::Output(chunk)));
                }
                Some(Ok(ExecEvent::Output(LogChunk { stream, bytes }))) => {
                    let channel = match stream {
                        OutputStream::Stdout => &mut self.stdout,
                        OutputStream::Stderr => &mut self.stderr,
                    };
                    let passed = channel.push(&self.job, bytes);
                    self.put(stream, passed);
                    let holding = self.stdout.is_holding() || self.stderr.is_holding();
                    self.since = holding.then(Instant::now);
                }
                Some(Ok(last)) => {
                    self.both(Channel::finish);
                    self.queue.push_back(Ok(last));
                }
                Some(Err(error)) => {
                    self.both(Channel::finish);
                    self.queue.push_back(Err(self.job.redact_error(error)));
                    self.ended = true;
                }
                None => {
                    self.both(Channel::finish);
                    self.ended = true;
                }
            }
        }
    }

    /// When what is held is looked at next.
    fn next_look(&self, since: Instant) -> Instant {
        let first = since + MOMENT;
        if Instant::now() < first {
            first
        } else {
            since + LONG_MOMENT
        }
    }

    fn both(&mut self, what: impl Fn(&mut Channel, &JobSecrets) -> Result<Bytes>) {
        let out = what(&mut self.stdout, &self.job);
        self.put(OutputStream::Stdout, out);
        let out = what(&mut self.stderr, &self.job);
        self.put(OutputStream::Stderr, out);
    }

    /// An error ends the stream: what follows could not be redacted.
    fn put(&mut self, stream: OutputStream, out: Result<Bytes>) {
        match out {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => self.queue.push_back(Ok(ExecEvent::Output(LogChunk { stream, bytes }))),
            Err(error) => {
                self.queue.push_back(Err(error));
                self.ended = true;
            }
        }
    }
}
