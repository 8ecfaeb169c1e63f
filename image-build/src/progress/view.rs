//! The vertexes of one attempt, and how they are shown.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use orchestra::OutputStream;

use super::status::{Log, SolveStatus, Status, Time, Vertex, Warning};
use super::tail::Tail;
use crate::{BuildEvent, Steps};

/// How many vertexes are known by name; what further ones do is not shown.
pub(super) const MAX_VERTEXES: usize = 10_000;
/// How many unfinished parts of vertexes are known; of further ones only the end is shown.
const MAX_PARTS: usize = 10_000;
/// How many warnings are kept for the result.
const MAX_WARNINGS: usize = 100;
/// A part's progress is shown when it has grown by this share or so much time has passed, as BuildKit's plain output has it.
const MIN_SHARE: f64 = 0.05;
const MIN_TIME: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct View {
    steps: Vec<Step>,
    by_digest: HashMap<String, usize>,
    by_group: HashMap<String, usize>,
    parts: HashMap<(usize, String), Shown>,
    /// How many steps have a number.
    numbered: u32,
    /// The step whose output's last line has no end yet.
    open: Option<usize>,
    /// A step that has ended well. Its end is shown when something else is: BuildKit may take it up again at once.
    ended: Option<usize>,
    failed: Option<usize>,
    /// What was written that is no progress.
    said: Tail,
    /// What BuildKit's checks found, as far as it is kept.
    warnings: Vec<String>,
    text: Vec<u8>,
    events: Vec<BuildEvent>,
}

#[derive(Debug, Default)]
struct Step {
    /// From 1; 0 until it is shown.
    number: u32,
    name: String,
    /// The beginning of the last of its intervals.
    started: Option<Time>,
    completed: Option<Time>,
    /// Whether it ever ended: a daemon that knows its result already may say that it begins again, and no more.
    has_ended: bool,
    /// All of its intervals that are complete.
    spent: Duration,
    cached: bool,
    error: Option<String>,
    log: Tail,
}

/// What was last shown of a part.
#[derive(Debug)]
struct Shown {
    current: i64,
    at: Option<Time>,
}

/// How an attempt went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The step that failed, else one that was under way.
    pub(crate) step: Option<String>,
    /// BuildKit's words for the failure.
    pub(crate) error: Option<String>,
    /// The last output of `step`.
    pub(crate) log: String,
    /// What was written last that is no progress.
    pub(crate) said: String,
}

impl Outcome {
    /// The exit code of the step's process, which BuildKit's words for the failure end with.
    pub(crate) fn step_code(&self) -> Option<u32> {
        let (_, code) = self.error.as_deref()?.rsplit_once("exit code: ")?;
        code.trim().parse().ok()
    }

    /// The Dockerfile's lines around the one that failed, as `buildctl` shows them between two rules behind the file's name
    /// and the line's number (`solver/errdefs/source.go`).
    pub(crate) fn excerpt(&self) -> Option<String> {
        const RULE: &str = "--------------------";
        let lines: Vec<&str> = self.said.lines().collect();
        let begin = lines.iter().rposition(|line| line.contains(" >>> "))?;
        let start = lines[..begin].iter().rposition(|line| *line == RULE)?;
        let end = begin + lines[begin..].iter().position(|line| *line == RULE)?;
        let head = start.checked_sub(1).and_then(|head| lines.get(head))?;
        Some([&[*head], &lines[start + 1..end]].concat().join("\n"))
    }
}

impl View {
    /// Whether a vertex has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.numbered > 0
    }

    pub(super) fn take(&mut self) -> (Vec<u8>, Vec<BuildEvent>) {
        (std::mem::take(&mut self.text), std::mem::take(&mut self.events))
    }

    /// Text that is no progress passes through.
    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.show_ended(None);
        self.close_line();
        self.said.push(bytes);
        self.text.extend_from_slice(bytes);
    }

    /// Beginnings first, ends last: an update that holds both is about what lies between them.
    pub(super) fn status(&mut self, status: SolveStatus) {
        let mut ends: Vec<(usize, Vertex)> = Vec::new();
        for vertex in status.vertexes {
            let Some(step) = self.step(&vertex) else { continue };
            if vertex.completed.is_some() {
                ends.push((step, vertex));
            } else if vertex.started.is_some() {
                if let Some(at) = ends.iter().position(|(other, _)| *other == step) {
                    let (_, vertex) = ends.remove(at);
                    self.steps[step].count(&vertex);
                }
                self.start(step, &vertex);
            }
        }
        status.statuses.iter().for_each(|part| self.part(part));
        status.logs.into_iter().for_each(|log| self.log(log));
        status.warnings.iter().for_each(|warning| self.warning(warning));
        ends.iter().for_each(|(step, vertex)| self.end(*step, vertex));
    }

    pub(super) fn finish(&mut self) {
        self.show_ended(None);
        self.close_line();
    }

    pub(super) fn steps(&self) -> Steps {
        let ended = || self.steps.iter().filter(|step| step.has_ended);
        let count = |cached| u32::try_from(ended().filter(|step| step.cached == cached).count()).unwrap_or(u32::MAX);
        Steps {
            run: count(false),
            cached: count(true),
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    pub(super) fn outcome(&self) -> Outcome {
        let said = self.said.text();
        let under_way = || self.steps.iter().rposition(Step::is_under_way);
        let Some(step) = self.failed.or_else(under_way) else {
            return plain_outcome(said);
        };
        let step = &self.steps[step];
        Outcome {
            step: Some(step.name.clone()),
            error: step.error.clone().or_else(|| last_error(&said)),
            log: step.log.text(),
            said,
        }
    }

    /// Finds the vertex's step, or makes one; `None` if there are too many.
    fn step(&mut self, vertex: &Vertex) -> Option<usize> {
        if let Some(step) = self.by_digest.get(&vertex.digest) {
            return Some(*step);
        }
        if self.by_digest.len() >= MAX_VERTEXES {
            return None;
        }
        let group = vertex.group.as_ref().filter(|group| !group.id.is_empty());
        let known = group.and_then(|group| self.by_group.get(&group.id).copied());
        let step = known.unwrap_or_else(|| {
            let name = group.map_or(&vertex.name, |group| &group.name);
            self.steps.push(Step {
                // A name is one line, whatever the Dockerfile holds.
                name: name.replace(['\n', '\r'], " "),
                ..Step::default()
            });
            self.steps.len() - 1
        });
        if let Some(group) = group {
            self.by_group.insert(group.id.clone(), step);
        }
        self.by_digest.insert(vertex.digest.clone(), step);
        Some(step)
    }

    fn start(&mut self, step: usize, vertex: &Vertex) {
        let again = self.steps[step].number > 0;
        if self.ended == Some(step) {
            self.ended = None;
        }
        self.steps[step].started = vertex.started;
        self.steps[step].completed = None;
        if !again {
            self.head(step);
        }
    }

    /// Shows what the step is, the first time that something of it is shown.
    fn head(&mut self, step: usize) {
        self.show_ended(Some(step));
        if self.steps[step].number > 0 {
            return;
        }
        self.close_line();
        if self.numbered > 0 {
            self.text.push(b'\n');
        }
        self.numbered += 1;
        let at = &mut self.steps[step];
        at.number = self.numbered;
        let event = BuildEvent::Started {
            vertex: at.number,
            name: at.name.clone(),
            time: at.started.and_then(Time::system),
        };
        self.events.push(event);
        let line = at.name.clone();
        self.line(step, format_args!("{line}"));
    }

    fn end(&mut self, step: usize, vertex: &Vertex) {
        if !self.steps[step].count(vertex) {
            return;
        }
        self.head(step);
        if vertex.error.is_empty() {
            self.show_ended(Some(step));
            self.ended = Some(step);
            return;
        }
        let canceled = is_canceled(&vertex.error);
        if canceled {
            self.line(step, format_args!("CANCELED"));
        } else {
            self.line(step, format_args!("ERROR: {}", vertex.error));
            self.failed.get_or_insert(step);
        }
        let at = &mut self.steps[step];
        at.error = Some(vertex.error.clone());
        self.events.push(BuildEvent::Failed {
            vertex: at.number,
            name: at.name.clone(),
            error: vertex.error.clone(),
            canceled,
        });
    }

    /// Shows the end that was held back, unless it is that of `but`.
    fn show_ended(&mut self, but: Option<usize>) {
        let Some(step) = self.ended.take_if(|step| Some(*step) != but) else {
            return;
        };
        let at = &mut self.steps[step];
        at.log = Tail::default();
        let (cached, duration) = (at.cached, at.spent);
        self.events.push(BuildEvent::Completed {
            vertex: at.number,
            name: at.name.clone(),
            cached,
            duration,
        });
        if cached {
            self.line(step, format_args!("CACHED"));
        } else {
            self.line(step, format_args!("DONE {:.1}s", duration.as_secs_f64()));
        }
    }

    fn part(&mut self, part: &Status) {
        let Some(step) = self.by_digest.get(&part.vertex).copied() else {
            return;
        };
        self.head(step);
        let amount = |amount: i64| u64::try_from(amount).unwrap_or(0);
        let total = Some(amount(part.total)).filter(|total| *total > 0);
        self.events.push(BuildEvent::Progress {
            vertex: self.steps[step].number,
            id: part.id.clone(),
            current: amount(part.current),
            total,
            completed: part.completed.is_some(),
        });
        if !self.worth_showing(step, part) {
            return;
        }
        let mut line = part.id.replace(['\n', '\r'], " ");
        match (amount(part.current), total) {
            (current, Some(total)) => line += &format!(" {} / {}", size(current), size(total)),
            (0, None) => {}
            (current, None) => line += &format!(" {}", size(current)),
        }
        let spent = part.completed.or(part.timestamp).zip(part.started);
        if let Some(spent) = spent.map(|(end, start)| end.since(start).as_secs_f64())
            && spent > 0.01
        {
            line += &format!(" {spent:.1}s");
        }
        line += if part.completed.is_some() { " done" } else { "" };
        self.line(step, format_args!("{line}"));
    }

    fn worth_showing(&mut self, step: usize, part: &Status) -> bool {
        let key = (step, part.id.clone());
        if part.completed.is_some() {
            self.parts.remove(&key);
            return true;
        }
        let now = Shown {
            current: part.current,
            at: part.timestamp,
        };
        if let Some(last) = self.parts.get_mut(&key) {
            #[expect(clippy::cast_precision_loss, reason = "a share is compared with a few percent")]
            let share = (part.current - last.current) as f64 / part.total.max(1) as f64;
            let waited = now.at.zip(last.at).map(|(now, last)| now.since(last));
            let worth = (part.total > 0 && share >= MIN_SHARE) || waited.is_some_and(|waited| waited >= MIN_TIME);
            if worth {
                *last = now;
            }
            return worth;
        }
        let room = self.parts.len() < MAX_PARTS;
        if room {
            self.parts.insert(key, now);
        }
        room
    }

    fn log(&mut self, log: Log) {
        let Some(step) = self.by_digest.get(&log.vertex).copied() else {
            return;
        };
        self.head(step);
        let data = Bytes::from(log.data.0);
        let at = &mut self.steps[step];
        at.log.push(&data);
        let number = at.number;
        let since = log.timestamp.zip(at.started).map(|(now, start)| now.since(start));
        let seconds = since.unwrap_or_default().as_secs_f64();
        let digits = if seconds < 10.0 {
            3
        } else if seconds < 100.0 {
            2
        } else {
            1
        };
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            if self.open != Some(step) {
                self.close_line();
                write(&mut self.text, format_args!("#{number} {seconds:.digits$} "));
            }
            self.text.extend_from_slice(line);
            self.open = (!line.ends_with(b"\n")).then_some(step);
        }
        let stream = match log.stream {
            2 => OutputStream::Stderr,
            _ => OutputStream::Stdout,
        };
        self.events.push(BuildEvent::Log {
            vertex: number,
            stream,
            data,
        });
    }

    /// BuildKit tells one for each of the builds that a Dockerfile is read for.
    fn warning(&mut self, warning: &Warning) {
        let message = warning.short.text();
        if !self.is_new(&message) {
            return;
        }
        let step = self.by_digest.get(&warning.vertex).copied();
        if let Some(step) = step {
            self.head(step);
            self.line(step, format_args!("WARN: {message}"));
        }
        self.events.push(BuildEvent::Warning {
            vertex: step.map(|step| self.steps[step].number),
            message,
            detail: warning.detail.iter().map(super::status::Base64::text).collect(),
            url: Some(warning.url.clone()).filter(|url| !url.is_empty()),
        });
    }

    /// What our own programs have to say.
    pub(super) fn notice(&mut self, message: &str) {
        if !self.is_new(message) {
            return;
        }
        self.close_line();
        write(&mut self.text, format_args!("WARN: {message}\n"));
        self.events.push(BuildEvent::Warning {
            vertex: None,
            message: message.to_owned(),
            detail: Vec::new(),
            url: None,
        });
    }

    /// Notes a warning. None is told twice, and no more than the most that are kept.
    fn is_new(&mut self, message: &str) -> bool {
        let is_new = self.warnings.len() < MAX_WARNINGS && !self.warnings.iter().any(|known| known == message);
        if is_new {
            self.warnings.push(message.to_owned());
        }
        is_new
    }

    fn line(&mut self, step: usize, line: std::fmt::Arguments<'_>) {
        self.close_line();
        write(&mut self.text, format_args!("#{} {line}\n", self.steps[step].number));
    }

    fn close_line(&mut self) {
        if self.open.take().is_some() {
            self.text.push(b'\n');
        }
    }
}

impl Step {
    /// Takes note of an interval's end; `false` if it is known.
    fn count(&mut self, vertex: &Vertex) -> bool {
        if self.completed.is_some() && self.completed == vertex.completed && vertex.error.is_empty() {
            return false;
        }
        let spent = vertex
            .completed
            .zip(vertex.started)
            .map(|(end, start)| end.since(start));
        self.spent += spent.unwrap_or_default();
        self.started = self.started.or(vertex.started);
        self.completed = vertex.completed;
        self.has_ended = true;
        // What the cache had may be fetched later on, which takes time of its own.
        self.cached |= vertex.cached;
        true
    }

    /// Whether it was at work when the build came to its end.
    fn is_under_way(&self) -> bool {
        let canceled = self.error.as_deref().is_some_and(is_canceled);
        canceled || (self.started.is_some() && self.completed.is_none())
    }
}

/// Go's words for what was ended only because the build was (`context.Canceled`); BuildKit's own displays look for them too.
fn is_canceled(error: &str) -> bool {
    error.ends_with("context canceled")
}

fn write(text: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    // Writing to a vector does not fail.
    text.write_fmt(what).ok();
}

/// A number of bytes as BuildKit shows it: `1.98MB`.
fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if amount < 1000.0 {
            return if unit == "B" {
                format!("{bytes}B")
            } else {
                format!("{amount:.2}{unit}")
            };
        }
        amount /= 1000.0;
    }
    format!("{amount:.2}TB")
}

/// `buildctl`'s last error, without what it always puts before.
fn last_error(said: &str) -> Option<String> {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("error: "))?;
    Some(line.strip_prefix("failed to solve: ").unwrap_or(line).to_owned())
}

/// The outcome as `--progress=plain` tells it at its end, between lines of dashes: ` > STEP:` and the step's output.
fn plain_outcome(said: String) -> Outcome {
    const RULE: &str = "------\n";
    let block = said
        .rsplit_once("------\n > ")
        .and_then(|(_, block)| block.split_once(":\n"));
    let (step, log) = match block {
        Some((step, rest)) => (
            Some(step.to_owned()),
            rest.split_once(RULE).map_or(rest, |(log, _)| log).to_owned(),
        ),
        None => (None, String::new()),
    };
    Outcome {
        step,
        error: last_error(&said),
        log,
        said,
    }
}
