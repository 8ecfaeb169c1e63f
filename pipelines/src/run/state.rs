//! What a run has done, in a small SQLite file: with it, another process carries on where this one was killed.
//!
//! The engine's labels alone let a run be carried on with, as long as its containers are there. The file knows more: that it
//! is the same pipeline, which versions of resources were taken, and how a step ended whose container someone has removed
//! meanwhile. All that is in it is redacted, as far as the run knew its secrets when it was written, and is its user's alone.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orchestra::{Error, ErrorKind, ExitStatus, JobId, Name, Result};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{BuiltImage, Metadata, Status, StepReport};
use crate::{StepKind, Version};

/// The layout of the file; one that is older or newer is refused.
const LAYOUT: i64 = 3;

const TABLES: &str = "
CREATE TABLE run (id TEXT NOT NULL, pipeline TEXT NOT NULL);
CREATE TABLE step (job TEXT NOT NULL, container TEXT NOT NULL, finished TEXT NOT NULL, PRIMARY KEY (job, container));
CREATE TABLE version (resource TEXT PRIMARY KEY, version TEXT NOT NULL);
CREATE TABLE deed (subject TEXT NOT NULL, what TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (subject, what));
";

/// A run's file. A clone is the same one.
#[derive(Clone)]
pub struct RunState(Arc<Mutex<Connection>>);

impl fmt::Debug for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunState")
    }
}

/// How a step ended.
#[derive(Serialize, Deserialize)]
struct Finished {
    exit: Option<u8>,
    attempt: Option<u32>,
    millis: u64,
    image: Option<BuiltImage>,
    version: Option<Version>,
    metadata: Vec<Metadata>,
}

fn failed(doing: &str, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => ErrorKind::DiskFull,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{doing} the state of the run: {error}")).with_source(error)
}

impl RunState {
    /// Begins the file of a new run; one that is there is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it can't be written.
    pub fn create(path: &Path, run: &JobId, digest: &str) -> Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("replace {}", path.display()), error));
            }
            _ => {}
        }
        // What a run has done is its user's alone.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
        let created = options.open(path);
        created.map_err(|error| Error::io(format!("create {}", path.display()), error))?;
        let connection = Connection::open(path).map_err(|error| failed("create", error))?;
        let begin = || {
            connection.pragma_update(None, "user_version", LAYOUT)?;
            connection.execute_batch(TABLES)?;
            let values = params![run.as_str(), digest];
            connection.execute("INSERT INTO run VALUES (?1, ?2)", values)
        };
        begin().map_err(|error| failed("create", error))?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Opens the file of a run that was broken off.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is none, if it is another run's, or if the pipeline has changed since.
    pub fn open(path: &Path, run: &JobId, digest: &str) -> Result<Self> {
        if !path.exists() {
            let message = format!(
                "there is no run {run} to carry on with: {} does not exist",
                path.display()
            );
            return Err(Error::invalid(message)
                .with_hint("it has ended, or was begun elsewhere; leave out `--resume` to begin it"));
        }
        let connection = Connection::open(path).map_err(|error| failed("open", error))?;
        let layout: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|error| failed("open", error))?;
        if layout != LAYOUT {
            let message = format!("{} was written by another version of this program", path.display());
            return Err(Error::invalid(message).with_hint("carry on with the version that began the run"));
        }
        let found: Option<(String, String)> = connection
            .query_row("SELECT id, pipeline FROM run", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(|error| failed("read", error))?;
        match found {
            Some((id, found)) if id == run.as_str() && found == digest => Ok(Self(Arc::new(Mutex::new(connection)))),
            Some((id, _)) if id == run.as_str() => Err(Error::invalid(format!(
                "the pipeline has changed since the run {run} was begun"
            ))
            .with_hint("carry on with the file as it was, or begin a new run")),
            _ => Err(Error::invalid(format!("{} is not of the run {run}", path.display()))),
        }
    }

    /// Works with the file on a thread that may wait.
    async fn with<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.0.clone();
        let work = move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| Error::new(ErrorKind::Io, format!("{doing} the state of the run: {error}")))?
            .map_err(|error| failed(doing, error))
    }

    /// Notes how a step ended that has succeeded. `container` is what it is called in this try.
    pub(super) async fn finish(&self, job: &Name, container: &Name, report: &StepReport) -> Result<()> {
        let finished = Finished {
            exit: match report.exit {
                Some(ExitStatus::Code(code)) => Some(code),
                _ => None,
            },
            attempt: report.attempt,
            millis: u64::try_from(report.duration.as_millis()).unwrap_or(u64::MAX),
            image: report.image.clone(),
            version: report.version.clone(),
            metadata: report.metadata.clone(),
        };
        let text = serde_json::to_string(&finished)
            .map_err(|error| Error::new(ErrorKind::Io, format!("write the state of the run: {error}")))?;
        let (job, container) = (job.to_string(), container.to_string());
        self.with("write", move |connection| {
            connection.execute(
                "INSERT OR REPLACE INTO step VALUES (?1, ?2, ?3)",
                params![job, container, text],
            )
        })
        .await
        .map(|_| ())
    }

    /// Notes which version of a resource the run has, or that it is not known here.
    pub(super) async fn take(&self, resource: &Name, version: Option<&Version>) -> Result<()> {
        let resource = resource.to_string();
        let version = version.map(|version| serde_json::json!(version).to_string());
        self.with("write", move |connection| match version {
            Some(version) => connection.execute(
                "INSERT OR REPLACE INTO version VALUES (?1, ?2)",
                params![resource, version],
            ),
            None => connection.execute("DELETE FROM version WHERE resource = ?1", params![resource]),
        })
        .await
        .map(|_| ())
    }

    /// The versions that the run has.
    pub(super) async fn versions(&self) -> Result<HashMap<Name, Version>> {
        let rows = self
            .with("read", |connection| {
                let mut select = connection.prepare("SELECT resource, version FROM version")?;
                let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        let row = |(resource, version): (String, String)| {
            Some((Name::new(resource).ok()?, serde_json::from_str(&version).ok()?))
        };
        Ok(rows.into_iter().filter_map(row).collect())
    }

    /// Notes what came of something that a program has done to a container or volume.
    pub(super) async fn did(&self, subject: String, what: String, answer: String) -> Result<()> {
        self.with("write", move |connection| {
            let values = params![subject, what, answer];
            connection.execute("INSERT OR REPLACE INTO deed VALUES (?1, ?2, ?3)", values)
        })
        .await
        .map(|_| ())
    }

    /// What a program has done, by what it was done to and what it was.
    pub(super) async fn deeds(&self) -> Result<Vec<((String, String), String)>> {
        self.with("read", |connection| {
            let mut select = connection.prepare("SELECT subject, what, answer FROM deed")?;
            let rows = select.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
            rows.collect()
        })
        .await
    }

    /// Forgets all that was done to something.
    pub(super) async fn undo(&self, subject: String) -> Result<()> {
        self.with("write", move |connection| {
            connection.execute("DELETE FROM deed WHERE subject = ?1", params![subject])
        })
        .await
        .map(|_| ())
    }

    /// The steps of a job that have succeeded, by what their containers were called.
    pub(super) async fn steps(&self, job: &Name) -> Result<Recorded> {
        let name = job.to_string();
        let rows = self
            .with("read", move |connection| {
                let mut select = connection.prepare("SELECT container, finished FROM step WHERE job = ?1")?;
                let rows = select.query_map([name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        let row =
            |(container, text): (String, String)| Some((Name::new(container).ok()?, serde_json::from_str(&text).ok()?));
        Ok(Recorded {
            job: job.clone(),
            steps: rows.into_iter().filter_map(row).collect(),
            left: HashSet::new(),
        })
    }
}

/// What an earlier process has done of a job.
pub(super) struct Recorded {
    job: Name,
    steps: HashMap<Name, Finished>,
    /// Ids of all that the engine still has of the job. Containers know more, and are attached to.
    pub(super) left: HashSet<String>,
}

impl Recorded {
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// How a step ended whose containers are gone: `is_its` says which ones are.
    pub(super) fn ended(
        &self,
        step: &Name,
        container: &Name,
        kind: StepKind,
        is_its: impl Fn(&str) -> bool,
    ) -> Option<StepReport> {
        let finished = self.steps.get(container)?;
        if self.left.iter().any(|id| is_its(id)) {
            return None;
        }
        let mut report = StepReport::new(&self.job, step, kind, Status::Succeeded);
        report.exit = finished.exit.map(ExitStatus::Code);
        report.attempt = finished.attempt;
        report.duration = Duration::from_millis(finished.millis);
        report.image.clone_from(&finished.image);
        report.version.clone_from(&finished.version);
        report.metadata.clone_from(&finished.metadata);
        Some(report)
    }
}
