//! Output on its way from the build container to those who watch, progress rendered.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use orchestra::{Captured, LogChunk, OutputSink, OutputStream, Result};
use tokio::sync::Mutex;

use crate::BuildEvent;
use crate::Steps;
use crate::build::Live;
use crate::progress::{Outcome, Progress, Rendered};

/// The task's output sink, and what it has gathered when the task is over.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Mutex<State>>);

struct State {
    live: Live,
    progress: Progress,
    stderr: Captured,
    capture: usize,
}

impl Watched {
    /// Keeps `capture` bytes of the rendered text from its start and as many from its end.
    pub(crate) fn new(live: Live, capture: usize) -> Self {
        let (progress, stderr) = (Progress::default(), Captured::new(capture));
        Self(Arc::new(Mutex::new(State {
            live,
            progress,
            stderr,
            capture,
        })))
    }

    /// Delivers what was held back for the end of its line.
    pub(crate) async fn finish(&self) -> Result<()> {
        let mut state = self.0.lock().await;
        let rest = state.progress.finish();
        state.deliver(rest).await
    }

    pub(crate) async fn warn(&self, message: &str) -> Result<()> {
        let text = format!("\nwarning: {message}\n").into_bytes();
        let message = message.to_owned();
        let event = BuildEvent::Warning {
            vertex: None,
            message,
            detail: Vec::new(),
            url: None,
        };
        let warning = Rendered {
            text,
            events: vec![event],
            restarted: false,
        };
        self.0.lock().await.deliver(warning).await
    }

    pub(crate) async fn outcome(&self) -> Outcome {
        self.0.lock().await.progress.outcome()
    }

    pub(crate) async fn steps(&self) -> Steps {
        self.0.lock().await.progress.steps()
    }

    pub(crate) async fn metadata(&self) -> Option<serde_json::Value> {
        self.0.lock().await.progress.metadata().cloned()
    }

    /// What the builder's store told of the image.
    pub(crate) async fn manifests(&self) -> Vec<(String, serde_json::Value)> {
        self.0.lock().await.progress.manifests().to_vec()
    }

    /// The digests of additional targets.
    pub(crate) async fn targets(&self) -> Vec<String> {
        self.0.lock().await.progress.targets().to_vec()
    }

    /// What BuildKit's checks of the Dockerfile found.
    pub(crate) async fn warnings(&self) -> Vec<String> {
        self.0.lock().await.progress.warnings()
    }

    pub(crate) async fn stderr(&self) -> Captured {
        self.0.lock().await.stderr.clone()
    }
}

impl State {
    async fn deliver(&mut self, rendered: Rendered) -> Result<()> {
        if rendered.restarted {
            self.stderr = Captured::new(self.capture);
        }
        if let Some(events) = &self.live.events {
            for event in rendered.events {
                // A receiver that was dropped does not want to know.
                events.send(event).await.ok();
            }
        }
        if rendered.text.is_empty() {
            return Ok(());
        }
        self.stderr.push(&rendered.text);
        match &mut self.live.output {
            Some(sink) => {
                sink.write(LogChunk {
                    stream: OutputStream::Stderr,
                    bytes: Bytes::from(rendered.text),
                })
                .await
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl OutputSink for Watched {
    async fn write(&mut self, chunk: LogChunk) -> Result<()> {
        let mut state = self.0.lock().await;
        match (chunk.stream, &mut state.live.output) {
            (OutputStream::Stderr, _) => {
                let rendered = state.progress.push(&chunk.bytes);
                state.deliver(rendered).await
            }
            (OutputStream::Stdout, Some(sink)) => sink.write(chunk).await,
            (OutputStream::Stdout, None) => Ok(()),
        }
    }
}
