//! Reports of a run: one self-contained page (`--report`), and JUnit's XML for CI products (`--junit`).
//!
//! Events pass by on their way to the [display](crate::progress). What steps wrote goes to a file that has no name and is
//! read back when the page is written: memory does not grow with the logs. All that comes by is redacted already.

mod html;
mod junit;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use orchestra::OutputStream;
use orchestra_caches::CacheEventKind;
use orchestra_image_build::BuildEvent;
use orchestra_pipelines::{PlannedJob, Ran, RunEvent, RunEventKind, Status, StepKind, StepReport};
use serde::Serialize;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::exit::Failure;
use crate::progress::{StepId, WAITING};

/// What a page keeps of one step's output.
const MAX_LOG: u64 = 32 << 20;
/// How many parts of a step its timeline shows.
const MAX_PARTS: usize = 500;

/// A file that is put in its place as a whole.
struct Target {
    path: PathBuf,
    file: NamedTempFile,
}

impl Target {
    /// Refused before anything is run, where it can't be written.
    fn new(path: &Path) -> Result<Self, Failure> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(|error| {
            Failure::bad_input(format!("the report {} can't be written: {error}", path.display()))
                .with_hint("name a file in a folder that exists and that you may write to")
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    fn write(mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut out = BufWriter::new(self.file.as_file_mut());
        write(&mut out)?;
        out.flush()?;
        drop(out);
        // A temporary file is its owner's alone; a report is a file like any other.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        self.file.as_file().set_permissions(mode)?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Which reports are wanted.
#[derive(Default)]
pub(crate) struct Reports {
    html: Option<Target>,
    junit: Option<Target>,
    /// The plan, drawn.
    plan: String,
}

impl Reports {
    /// Checks that they can be written. `plan` is drawn only if it is shown.
    ///
    /// # Errors
    /// If one can't be written where it is wanted.
    pub(crate) fn new(
        html: Option<&Path>,
        junit: Option<&Path>,
        plan: impl FnOnce() -> String,
    ) -> Result<Self, Failure> {
        let html = html.map(Target::new).transpose()?;
        Ok(Self {
            plan: html.as_ref().map(|_| plan()).unwrap_or_default(),
            html,
            junit: junit.map(Target::new).transpose()?,
        })
    }

    fn is_empty(&self) -> bool {
        self.html.is_none() && self.junit.is_none()
    }

    /// Notes what passes by on its way to `next`. Without reports, that is where events go at once.
    ///
    /// # Errors
    /// If there is no place for what steps write.
    pub(crate) fn record(self, name: &str, next: mpsc::Sender<RunEvent>) -> Result<Recording, Failure> {
        if self.is_empty() {
            return Ok(Recording {
                events: next,
                noted: None,
            });
        }
        let log = tempfile::tempfile()
            .map_err(|error| Failure::bad_input(format!("no temporary file for the report: {error}")))?;
        let mut record = Record::new(name, log);
        let (events, mut received) = mpsc::channel::<RunEvent>(WAITING);
        let noted = tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                record.note(&event);
                // That nobody looks does not end the record.
                next.send(event).await.ok();
            }
            record
        });
        Ok(Recording {
            events,
            noted: Some((self, noted)),
        })
    }
}

/// A run that is being noted.
pub(crate) struct Recording {
    events: mpsc::Sender<RunEvent>,
    noted: Option<(Reports, JoinHandle<Record>)>,
}

impl Recording {
    /// Where events go.
    pub(crate) fn events(&self) -> mpsc::Sender<RunEvent> {
        self.events.clone()
    }

    /// Writes the reports, once all events have come. All other senders must be gone.
    pub(crate) async fn finish(self) -> Vec<String> {
        drop(self.events);
        let Some((reports, noted)) = self.noted else {
            return Vec::new();
        };
        let Ok(mut record) = noted.await else {
            return vec!["the report was lost".to_owned()];
        };
        let plan = reports.plan;
        let failed =
            |target: &Path, error: io::Error| format!("the report {} was not written: {error}", target.display());
        let mut errors = Vec::new();
        if let Some(target) = reports.html {
            let path = target.path.clone();
            // A script has none before it has run.
            let plan = if plan.is_empty() { record.ran() } else { plan };
            let written = target.write(|out| html::write(out, &mut record, &plan));
            errors.extend(written.err().map(|error| failed(&path, error)));
        }
        if let Some(target) = reports.junit {
            let path = target.path.clone();
            let written = target.write(|out| junit::write(out, &record));
            errors.extend(written.err().map(|error| failed(&path, error)));
        }
        errors
    }
}

/// Milliseconds since the run began.
type Millis = u64;

/// A part of a step's time.
#[derive(Debug, Serialize)]
struct Part {
    /// `pull`, `run`, `cache` or `build`.
    kind: &'static str,
    name: String,
    start: Millis,
    end: Option<Millis>,
    #[serde(skip)]
    vertex: Option<u32>,
}

/// What is known of a step.
#[derive(Debug)]
struct StepRecord {
    kind: StepKind,
    start: Option<Millis>,
    end: Option<Millis>,
    parts: Vec<Part>,
    report: Option<StepReport>,
    /// Bytes that it wrote, and those of them that are kept.
    written: u64,
    kept: u64,
}

/// What happened in a run.
struct Record {
    name: String,
    run_id: String,
    began: SystemTime,
    steps: BTreeMap<StepId, StepRecord>,
    /// In the order of the plan, then of their beginning.
    order: Vec<StepId>,
    warnings: Vec<String>,
    status: Option<Status>,
    duration: Duration,
    /// Lines of JSON: a step's number, milliseconds, stream and text.
    log: BufWriter<File>,
    broken: bool,
}

impl Record {
    fn new(name: &str, log: File) -> Self {
        Self {
            name: name.to_owned(),
            run_id: String::new(),
            began: SystemTime::now(),
            steps: BTreeMap::new(),
            order: Vec::new(),
            warnings: Vec::new(),
            status: None,
            duration: Duration::ZERO,
            log: BufWriter::new(log),
            broken: false,
        }
    }

    fn since(&self, time: SystemTime) -> Millis {
        let passed = time.duration_since(self.began).unwrap_or_default();
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    fn planned(&mut self, jobs: &[PlannedJob]) {
        for (job, step) in jobs
            .iter()
            .flat_map(|job| job.steps.iter().map(move |step| (job, step)))
        {
            let id = StepId {
                job: job.name.to_string(),
                step: step.name.to_string(),
            };
            self.step(&id, step.kind);
        }
    }

    fn step(&mut self, id: &StepId, kind: StepKind) -> &mut StepRecord {
        if !self.steps.contains_key(id) {
            self.order.push(id.clone());
        }
        self.steps.entry(id.clone()).or_insert(StepRecord {
            kind,
            start: None,
            end: None,
            parts: Vec::new(),
            report: None,
            written: 0,
            kept: 0,
        })
    }

    fn note(&mut self, event: &RunEvent) {
        let id = |job: &orchestra::Name, step: &orchestra::Name| StepId {
            job: job.to_string(),
            step: step.to_string(),
        };
        if let RunEventKind::RunStarted { run_id, jobs } = &event.kind {
            self.began = event.time;
            self.run_id = run_id.to_string();
            return self.planned(jobs);
        }
        let now = self.since(event.time);
        match &event.kind {
            RunEventKind::StepStarted { job, step, kind } => {
                let step = self.step(&id(job, step), *kind);
                step.start.get_or_insert(now);
                step.end = None;
            }
            RunEventKind::Output {
                job,
                step,
                stream,
                data,
            } => self.output(&id(job, step), now, *stream, &data.0),
            RunEventKind::Engine {
                job,
                step: Some(step),
                detail,
            } => self.engine(&id(job, step), now, &detail.kind),
            RunEventKind::Build { job, step, detail } => self.build(&id(job, step), now, detail),
            RunEventKind::Cache {
                job,
                step,
                path,
                detail,
            } => {
                let (what, took) = match &detail.kind {
                    CacheEventKind::Restored { duration, .. } => ("restored", *duration),
                    CacheEventKind::Missed { duration } => ("missed", *duration),
                    CacheEventKind::Persisted(persisted) => ("persisted", persisted.duration),
                    _ => return,
                };
                let took = u64::try_from(took.as_millis()).unwrap_or(0);
                self.part(
                    &id(job, step),
                    "cache",
                    format!("{path} {what}"),
                    now.saturating_sub(took),
                    Some(now),
                );
            }
            RunEventKind::StepFinished { report } => {
                let step = self.step(&id(&report.job, &report.name), report.kind);
                step.end = step.start.map(|_| now);
                for part in &mut step.parts {
                    part.end.get_or_insert(now);
                }
                // How long it took is known now, when it ended was told.
                let created = step.parts.iter_mut().rfind(|part| part.kind == "create");
                if let (Some(part), Some(timings)) = (created, report.timings) {
                    part.start = part
                        .start
                        .saturating_sub(u64::try_from(timings.create.as_millis()).unwrap_or(0));
                }
                step.report = Some((**report).clone());
            }
            RunEventKind::Warning { message, .. } => self.warnings.push(message.clone()),
            RunEventKind::RunFinished { status, duration } => {
                self.status = Some(*status);
                self.duration = *duration;
            }
            _ => {}
        }
    }

    fn part(
        &mut self,
        id: &StepId,
        kind: &'static str,
        name: String,
        start: Millis,
        end: Option<Millis>,
    ) -> Option<&mut Part> {
        let parts = &mut self.steps.get_mut(id)?.parts;
        if parts.len() >= MAX_PARTS {
            return None;
        }
        parts.push(Part {
            kind,
            name,
            start,
            end,
            vertex: None,
        });
        parts.last_mut()
    }

    fn close(&mut self, id: &StepId, now: Millis, is: impl Fn(&Part) -> bool) {
        let parts = self.steps.get_mut(id).map(|step| &mut step.parts);
        if let Some(part) = parts.and_then(|parts| parts.iter_mut().rfind(|part| is(part))) {
            part.end = Some(now);
        }
    }

    fn engine(&mut self, id: &StepId, now: Millis, kind: &orchestra::EventKind) {
        use orchestra::EventKind;
        match kind {
            EventKind::PullStarted { image } => _ = self.part(id, "pull", image.to_string(), now, None),
            EventKind::PullFinished { .. } => self.close(id, now, |part| part.kind == "pull"),
            EventKind::ContainerReady { .. } => _ = self.part(id, "create", "create".to_owned(), now, Some(now)),
            EventKind::TaskStarted => _ = self.part(id, "run", "run".to_owned(), now, None),
            EventKind::TaskFinished { .. } | EventKind::TaskErrored { .. } => {
                self.close(id, now, |part| part.kind == "run" && part.end.is_none());
            }
            _ => {}
        }
    }

    fn build(&mut self, id: &StepId, now: Millis, event: &BuildEvent) {
        match event {
            BuildEvent::Started {
                vertex,
                name,
                time: Some(_),
            } => {
                if let Some(part) = self.part(id, "build", name.clone(), now, None) {
                    part.vertex = Some(*vertex);
                }
            }
            BuildEvent::Completed { vertex, .. } | BuildEvent::Failed { vertex, .. } => {
                self.close(id, now, |part| part.vertex == Some(*vertex));
            }
            BuildEvent::Restarted => self.close(id, now, |part| part.vertex.is_some() && part.end.is_none()),
            _ => {}
        }
    }

    fn output(&mut self, id: &StepId, now: Millis, stream: OutputStream, bytes: &[u8]) {
        let Some(number) = self.order.iter().position(|known| known == id) else {
            return;
        };
        let Some(step) = self.steps.get_mut(id) else { return };
        step.written += bytes.len() as u64;
        if step.kept + bytes.len() as u64 > MAX_LOG || self.broken {
            return;
        }
        step.kept += bytes.len() as u64;
        let stream = u8::from(stream == OutputStream::Stderr);
        let line = (number, now, stream, String::from_utf8_lossy(bytes));
        let written = serde_json::to_writer(&mut self.log, &line).map_err(io::Error::from);
        if let Err(error) = written.and_then(|()| self.log.write_all(b"\n")) {
            self.broken = true;
            self.warnings.push(format!("the report lacks output: {error}"));
        }
    }

    /// What was run, drawn.
    fn ran(&self) -> String {
        let mut job = "";
        let end = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let steps: Vec<Ran> = self
            .order
            .iter()
            .filter_map(|id| Some((id, self.steps.get(id)?)))
            .inspect(|(id, _)| job = &id.job)
            .filter(|(_, step)| step.kind != StepKind::Script)
            .filter_map(|(id, step)| Some(Ran::new(&id.step, step.kind, (step.start?, step.end.unwrap_or(end)))))
            .collect();
        match steps.is_empty() {
            true => String::new(),
            false => Ran::svg(job, &steps),
        }
    }

    /// What was written, from its start.
    fn log(&mut self) -> io::Result<&mut File> {
        self.log.flush()?;
        let file = self.log.get_mut();
        file.rewind()?;
        Ok(file)
    }
}

/// As people and machines read it.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    jiff::Timestamp::from_second(i64::try_from(since.as_secs()).unwrap_or(0))
        .map(|time| time.to_string())
        .unwrap_or_default()
}
