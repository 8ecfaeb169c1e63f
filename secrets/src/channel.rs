//! One output stream of a process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orchestra::Result;

use crate::JobSecrets;
use crate::progress::{Piece, Progress};
use crate::redact::{Announcements, Redactor};

/// One stream: what it announces, then what is secret in it.
pub(crate) struct Channel {
    announcements: Announcements,
    redactor: Redactor,
    version: u64,
    progress: Option<Progress>,
}

impl Channel {
    /// `progress` says that it is BuildKit's progress.
    pub(crate) fn new(progress: bool) -> Self {
        Self {
            announcements: Announcements::default(),
            redactor: Redactor::new(Arc::default()),
            version: 0,
            progress: progress.then(Progress::default),
        }
    }

    pub(crate) fn push(&mut self, job: &JobSecrets, bytes: Bytes) -> Result<Bytes> {
        if let Some(progress) = &mut self.progress {
            let pieces = progress.push(job, &bytes)?;
            return self.pieces(job, pieces);
        }
        let (passed, announced) = self.announcements.push(bytes);
        announced.iter().try_for_each(|value| job.mask_made(value))?;
        self.plain(job, passed)
    }

    fn plain(&mut self, job: &JobSecrets, bytes: Bytes) -> Result<Bytes> {
        self.refresh(job)?;
        Ok(self.redactor.push(bytes))
    }

    /// What is clean does not go through the redactor, which gives up what it holds of the line before.
    fn pieces(&mut self, job: &JobSecrets, pieces: Vec<Piece>) -> Result<Bytes> {
        let mut out = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(&self.plain(job, text.into())?),
                Piece::Clean(lines) => {
                    self.refresh(job)?;
                    out.extend_from_slice(&self.redactor.finish());
                    out.extend_from_slice(&lines);
                }
            }
        }
        Ok(out.into())
    }

    /// What another stream or task of the job announced holds here too.
    fn refresh(&mut self, job: &JobSecrets) -> Result<()> {
        if self.version != job.version() {
            let (version, patterns) = job.patterns()?;
            self.redactor.set(patterns);
            self.version = version;
        }
        Ok(())
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.announcements.is_holding()
            || self.redactor.is_holding()
            || self.progress.as_ref().is_some_and(Progress::is_holding)
    }

    pub(crate) fn flush(&mut self, job: &JobSecrets, held: Duration) -> Result<Bytes> {
        let late = self.announcements.flush(held);
        let mut out = match &mut self.progress {
            Some(progress) => {
                let pieces = progress.flush(job, held)?;
                self.pieces(job, pieces)?
            }
            None => self.plain(job, late)?,
        }
        .to_vec();
        out.extend_from_slice(&self.redactor.flush(held));
        Ok(out.into())
    }

    pub(crate) fn finish(&mut self, job: &JobSecrets) -> Result<Bytes> {
        let (rest, announced) = self.announcements.finish();
        announced.iter().try_for_each(|value| job.mask_made(value))?;
        let mut out = match &mut self.progress {
            Some(progress) => {
                let pieces = progress.finish(job)?;
                self.pieces(job, pieces)?
            }
            None => self.plain(job, rest)?,
        }
        .to_vec();
        out.extend_from_slice(&self.redactor.finish());
        Ok(out.into())
    }
}
