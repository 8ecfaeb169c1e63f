//! What is said when a step, or all of it, has ended.

use std::fmt::Write;
use std::time::Duration;

use orchestra::ExitStatus;
use orchestra_pipelines::Status;

use super::names::Names;
use super::update::StepEnd;
use crate::console::Theme;
use crate::duration;

/// Widest status: `succeeded`.
const STATUS_WIDTH: usize = 9;

pub(crate) fn status(status: Status, theme: Theme) -> String {
    painted(status, &status.to_string(), theme)
}

fn painted(status: Status, text: &str, theme: Theme) -> String {
    match status {
        Status::Succeeded => theme.good(text),
        Status::Failed | Status::Errored => theme.bad(text),
        Status::Aborted => theme.warn(text),
        Status::Skipped => theme.dim(text),
    }
}

/// The mark before a step that has ended.
pub(crate) fn mark(status: Status, theme: Theme) -> String {
    let mark = match status {
        Status::Succeeded => "✓",
        Status::Failed | Status::Errored => "✗",
        Status::Aborted => "■",
        Status::Skipped => "-",
    };
    painted(status, mark, theme)
}

/// What is known of a step's end beside its status and time.
pub(crate) fn details(end: &StepEnd, theme: Theme) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some((reference, digest)) = &end.image {
        lines.push(format!("{}: {reference}", theme.dim("ref")));
        lines.push(format!("{}: {digest}", theme.dim("digest")));
    }
    let failed = matches!(end.status, Status::Failed | Status::Errored);
    match &end.error {
        Some(error) => lines.extend(error.lines().map(ToOwned::to_owned)),
        None => lines.extend(end.exit.filter(|_| failed).map(|exit| exit.to_string())),
    }
    lines.extend(
        end.hint
            .iter()
            .flat_map(|hint| hint.lines())
            .map(|line| format!("{}: {line}", theme.note("hint"))),
    );
    lines
}

/// All steps with how they ended; `None` where there are none.
pub(crate) fn table(ended: &[StepEnd], names: &Names, theme: Theme) -> Option<String> {
    if ended.is_empty() {
        return None;
    }
    let name_width = names.width().max("step".len());
    let times: Vec<String> = ended.iter().map(time).collect();
    let time_width = times.iter().map(String::len).max().unwrap_or(0).max("time".len());
    let head = format!(
        "  {:name_width$}   {:STATUS_WIDTH$}   {:>time_width$}",
        "step", "status", "time"
    );
    let mut table = format!("{}\n", theme.dim(head));
    for (end, time) in ended.iter().zip(times) {
        let status = painted(end.status, &format!("{:STATUS_WIDTH$}", end.status), theme);
        let why = end
            .exit
            .filter(|exit| !exit.success() && *exit != ExitStatus::Cancelled)
            .map_or_else(String::new, |exit| format!("   {}", theme.dim(exit)));
        // Writing to a string can't fail.
        let _ = writeln!(
            table,
            "  {:name_width$}   {status}   {time:>time_width$}{why}",
            names.of(&end.step)
        );
    }
    Some(table)
}

fn time(end: &StepEnd) -> String {
    if end.status == Status::Skipped {
        "-".to_owned()
    } else {
        duration::show(end.duration)
    }
}

pub(crate) fn last_line(ended: Status, duration: Duration, theme: Theme) -> String {
    format!("{} in {}", status(ended, theme), duration::show(duration))
}
