//! One output stream of a process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orchestra::Result;

use crate::JobSecrets;
use crate::progress::Progress;
use crate::redact::{Announcements, Patterns, Redactor};

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
            redactor: Redactor::new(Arc::new(Patterns::none())),
            version: 0,
            progress: progress.then(Progress::default),
        }
    }

    pub(crate) fn push(&mut self, job: &JobSecrets, bytes: Bytes) -> Result<Bytes> {
        if let Some(progress) = &mut self.progress {
            let bytes = progress.push(job, bytes)?;
            return self.plain(job, bytes);
        }
        let (passed, announced) = self.announcements.push(bytes);
        announced.iter().try_for_each(|value| job.mask(value))?;
        self.plain(job, passed)
    }

    fn plain(&mut self, job: &JobSecrets, bytes: Bytes) -> Result<Bytes> {
        self.refresh(job)?;
        Ok(self.redactor.push(bytes))
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
        let mut late = self.announcements.flush(held);
        if let Some(progress) = &mut self.progress {
            late = progress.flush(job, held)?;
        }
        let mut out = self.plain(job, late)?.to_vec();
        out.extend_from_slice(&self.redactor.flush(held));
        Ok(out.into())
    }

    pub(crate) fn finish(&mut self, job: &JobSecrets) -> Result<Bytes> {
        let (mut rest, announced) = self.announcements.finish();
        announced.iter().try_for_each(|value| job.mask(value))?;
        if let Some(progress) = &mut self.progress {
            rest = progress.finish(job)?;
        }
        let mut out = self.plain(job, rest)?.to_vec();
        out.extend_from_slice(&self.redactor.finish());
        Ok(out.into())
    }
}
