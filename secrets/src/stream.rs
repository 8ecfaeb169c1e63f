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
        stdout: Held::new(Channel::new(false)),
        stderr: Held::new(Channel::new(progress)),
        content,
        job,
        queue: VecDeque::new(),
        ended: false,
    };
    stream::unfold(state, |mut state| async move {
        state.next().await.map(|item| (item, state))
    })
    .boxed()
}

/// A stream, and how long it holds something back: the other one's output must not make that longer.
struct Held {
    channel: Channel,
    /// Since when, and when it is to be looked at.
    since: Option<(Instant, Instant)>,
}

impl Held {
    fn new(channel: Channel) -> Self {
        Self { channel, since: None }
    }

    fn push(&mut self, job: &JobSecrets, bytes: Bytes) -> Result<Bytes> {
        let out = self.channel.push(job, bytes);
        let now = Instant::now();
        self.since = self.channel.is_holding().then(|| (now, now + MOMENT));
        out
    }

    fn due(&self) -> Option<Instant> {
        self.since.map(|(_, due)| due)
    }

    /// Lets out what was held long enough.
    fn look(&mut self, job: &JobSecrets) -> Result<Bytes> {
        let now = Instant::now();
        let Some((since, _)) = self.since.filter(|(_, due)| *due <= now) else {
            return Ok(Bytes::new());
        };
        let held = now - since;
        let out = self.channel.flush(job, held);
        let holds = self.channel.is_holding() && held < LONG_MOMENT;
        self.since = holds.then(|| (since, since + LONG_MOMENT));
        out
    }

    fn finish(&mut self, job: &JobSecrets) -> Result<Bytes> {
        self.since = None;
        self.channel.finish(job)
    }
}

struct State {
    inner: BoxStream<'static, Result<ExecEvent>>,
    stdout: Held,
    stderr: Held,
    content: bool,
    job: JobSecrets,
    queue: VecDeque<Result<ExecEvent>>,
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
            let item = match self.stdout.due().into_iter().chain(self.stderr.due()).min() {
                None => self.inner.next().await,
                Some(due) => tokio::select! {
                    biased;
                    // First, so that a stream that always has more does not keep back what the other one holds.
                    () = sleep_until(due) => {
                        self.both(Held::look);
                        continue;
                    }
                    item = self.inner.next() => item,
                },
            };
            match item {
                // A sign that something comes; what is held is held on.
                Some(Ok(ExecEvent::Output(chunk))) if chunk.bytes.is_empty() => {
                    return Some(Ok(ExecEvent::Output(chunk)));
                }
                Some(Ok(ExecEvent::Output(chunk))) if self.content && chunk.stream == OutputStream::Stdout => {
                    return Some(Ok(ExecEvent::Output(chunk)));
                }
                Some(Ok(ExecEvent::Output(LogChunk { stream, bytes }))) => {
                    let held = match stream {
                        OutputStream::Stdout => &mut self.stdout,
                        OutputStream::Stderr => &mut self.stderr,
                    };
                    let passed = held.push(&self.job, bytes);
                    self.put(stream, passed);
                }
                Some(Ok(last)) => {
                    self.both(Held::finish);
                    self.queue.push_back(Ok(last));
                }
                Some(Err(error)) => {
                    self.both(Held::finish);
                    self.queue.push_back(Err(self.job.redact_error(error)));
                    self.ended = true;
                }
                None => {
                    self.both(Held::finish);
                    self.ended = true;
                }
            }
        }
    }

    fn both(&mut self, what: impl Fn(&mut Held, &JobSecrets) -> Result<Bytes>) {
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
