//! What `buildctl` writes to standard error: read, made into [events](crate::BuildEvent), and rendered as text.
//!
//! Bytes come in as the engine cuts them ([`Progress::push`]). A line that begins with `{` is kept until it is whole, read
//! as a [`SolveStatus`] and told to the [`View`], which numbers the vertexes and writes lines in the form of
//! `--progress=plain`. Everything else, be it an error of `buildctl` or all output of one that knows no `rawjson`, passes
//! through as it comes. Memory is bounded whatever the build does: one line of at most [`MAX_LINE`] bytes, the names of
//! [`view::MAX_VERTEXES`] vertexes, and the last bytes of output of those that run.

mod status;
mod tail;
mod view;

use status::SolveStatus;
pub(crate) use view::Outcome;
use view::View;

use crate::{BuildEvent, Steps};

/// The longest line that is read as JSON. BuildKit starts a new line for each MiB of output (`client/status.go`), and a
/// third is added by base64.
const MAX_LINE: usize = 8 << 20;

/// How many manifests of an image, and how many targets, are kept.
const MAX_MANIFESTS: usize = 256;

/// One attempt's progress after another.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    line: Line,
    view: View,
    metadata: Option<serde_json::Value>,
    manifests: Vec<(String, serde_json::Value)>,
    targets: Vec<String>,
    restarted: bool,
    /// Whether that is not the first one, and was not told yet.
    again: bool,
}

/// What the line that is being read is.
#[derive(Debug, Default)]
enum Line {
    /// Nothing of it was read.
    #[default]
    Start,
    Text,
    Json(Vec<u8>),
}

/// What came of some input.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) text: Vec<u8>,
    pub(crate) events: Vec<BuildEvent>,
    /// Whether a new attempt began, to which all of this belongs.
    pub(crate) restarted: bool,
}

impl Progress {
    /// Reads on.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Rendered {
        while let Some(first) = bytes.first() {
            if matches!(self.line, Line::Start) {
                self.line = if *first == b'{' {
                    Line::Json(Vec::new())
                } else {
                    Line::Text
                };
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (piece, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.piece(piece, end.is_some());
            bytes = rest;
        }
        self.rendered()
    }

    /// Reads what was left of an incomplete line, and closes what is open. The same attempt does not go on after that.
    pub(crate) fn finish(&mut self) -> Rendered {
        if let Line::Json(line) = std::mem::take(&mut self.line) {
            self.json(&line);
        }
        self.view.finish();
        self.rendered()
    }

    /// How the last attempt went.
    pub(crate) fn outcome(&self) -> Outcome {
        self.view.outcome()
    }

    /// How many steps the last attempt had.
    pub(crate) fn steps(&self) -> Steps {
        self.view.steps()
    }

    /// What BuildKit's metadata file says, of the last attempt. Written when `buildctl` has ended, it is the last that counts:
    /// a step that forged it would be corrected.
    pub(crate) fn metadata(&self) -> Option<&serde_json::Value> {
        self.metadata.as_ref()
    }

    /// What BuildKit's checks found, each once.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.view.warnings()
    }

    /// The image's own manifest, and those of its platforms.
    pub(crate) fn manifests(&self) -> &[(String, serde_json::Value)] {
        &self.manifests
    }

    /// The digests of additional targets, empty of what is no image.
    pub(crate) fn targets(&self) -> &[String] {
        &self.targets
    }

    fn piece(&mut self, piece: &[u8], whole: bool) {
        match &mut self.line {
            Line::Json(line) => {
                line.extend_from_slice(piece);
                if whole {
                    let line = std::mem::take(line);
                    self.json(&line);
                } else if line.len() > MAX_LINE {
                    let line = std::mem::take(line);
                    self.view.text(&line);
                    self.line = Line::Text;
                }
            }
            Line::Start | Line::Text => self.view.text(piece),
        }
        if whole {
            self.line = Line::Start;
        }
    }

    fn json(&mut self, line: &[u8]) {
        match SolveStatus::parse(line) {
            Some(SolveStatus {
                orchestra: Some(about),
                digest,
                metadata,
                ..
            }) => match about.as_str() {
                "metadata" => self.metadata = metadata,
                "manifest" if self.manifests.len() < MAX_MANIFESTS => {
                    self.manifests.push((digest, metadata.unwrap_or_default()));
                }
                "warning" => {
                    if let Some(message) = metadata.as_ref().and_then(serde_json::Value::as_str) {
                        self.view.notice(message);
                    }
                }
                "target" if self.targets.len() < MAX_MANIFESTS => self.targets.push(digest),
                "start" => {
                    let again = self.again || self.view.has_begun();
                    *self = Self {
                        restarted: true,
                        again,
                        ..Self::default()
                    };
                }
                _ => {}
            },
            Some(status) => self.view.status(status),
            None => self.view.text(line),
        }
    }

    fn rendered(&mut self) -> Rendered {
        let (text, mut events) = self.view.take();
        if std::mem::take(&mut self.again) {
            events.insert(0, BuildEvent::Restarted);
        }
        let restarted = std::mem::take(&mut self.restarted);
        Rendered {
            text,
            events,
            restarted,
        }
    }
}

#[cfg(test)]
mod tests;
