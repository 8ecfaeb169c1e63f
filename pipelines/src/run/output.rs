//! Where a step's output goes: to the events as it comes, and its end into the report.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use orchestra::{Captured, LogChunk, Name, OutputSink, OutputStream, Result};

use super::event::{Data, RunEventKind, Teller};

/// Bytes and lines of the end that a report shows: enough for a test's summary or a stack trace.
const TAIL_BYTES: usize = 16 << 10;
const TAIL_LINES: usize = 30;

/// The end of both streams together, as they came.
#[derive(Clone)]
pub(super) struct Tail(Arc<Mutex<Captured>>);

impl Tail {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Captured::new(TAIL_BYTES))))
    }

    pub(super) fn lines(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .last_lines(TAIL_LINES)
    }

    fn push(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// A step's output sink.
pub(super) struct Output {
    pub(super) job: Name,
    pub(super) step: Name,
    pub(super) teller: Teller,
    pub(super) tail: Tail,
    /// Whether standard output is not for people.
    pub(super) errors_only: bool,
    /// Where it goes besides.
    pub(super) also: Option<Box<dyn OutputSink>>,
}

#[async_trait]
impl OutputSink for Output {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        if self.errors_only && chunk.stream == OutputStream::Stdout {
            return Ok(());
        }
        self.tail.push(&chunk.bytes);
        if let Some(also) = &mut self.also {
            also.write(chunk.clone()).await?;
        }
        let (job, step) = (self.job.clone(), self.step.clone());
        self.teller
            .tell(RunEventKind::Output {
                job,
                step,
                stream: chunk.stream,
                data: Data(chunk.bytes),
            })
            .await;
        Ok(())
    }
}
