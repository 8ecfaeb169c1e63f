//! The page: data as JSON in the page itself, and a script that shows it. It loads nothing.

use std::io::{self, BufRead, BufReader, Write};

use serde_json::json;

use super::{Record, StepId, StepRecord, rfc3339};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Writes the page. `plan` is an SVG picture.
pub(super) fn write(out: &mut dyn Write, record: &mut Record, plan: &str) -> io::Result<()> {
    let status = record
        .status
        .map_or_else(|| "unfinished".to_owned(), |status| status.to_string());
    let title = text(&record.name);
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}: {status}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <style>{STYLE}</style></head><body>\n\
         <header><h1>{title}</h1><p id=\"summary\"></p></header>\n\
         <section id=\"warnings\"></section>\n\
         <section id=\"graph\">{plan}</section>\n\
         <section><h2>Timeline</h2><div id=\"timeline\"></div></section>\n\
         <section><h2>Steps</h2><p><input id=\"search\" type=\"search\" placeholder=\"search the logs\" aria-label=\"search the logs\"> <span id=\"found\"></span></p><div id=\"steps\"></div></section>\n"
    )?;
    let steps: Vec<_> = record
        .order
        .iter()
        .filter_map(|id| Some(step(id, record.steps.get(id)?)))
        .collect();
    let data = json!({
        "name": record.name,
        "run": record.run_id,
        "status": status,
        "began": rfc3339(record.began),
        "duration": u64::try_from(record.duration.as_millis()).unwrap_or(0),
        "warnings": record.warnings,
        "steps": steps,
    });
    writeln!(
        out,
        "<script type=\"application/json\" id=\"data\">{}</script>",
        script(&data.to_string())
    )?;
    write!(out, "<script type=\"application/json\" id=\"log\">[")?;
    let mut line = String::new();
    let mut log = BufReader::new(record.log()?);
    let mut first = true;
    loop {
        line.clear();
        if log.read_line(&mut line)? == 0 {
            break;
        }
        let comma = if std::mem::take(&mut first) { "" } else { "," };
        write!(out, "{comma}{}", script(line.trim_end_matches('\n')))?;
    }
    writeln!(out, "]</script>\n<script>{SCRIPT}</script></body></html>")
}

fn step(id: &StepId, step: &StepRecord) -> serde_json::Value {
    let report = step.report.as_ref();
    json!({
        "job": id.job,
        "step": id.step,
        "kind": step.kind,
        "status": report.map_or_else(|| "unfinished".to_owned(), |report| report.status.to_string()),
        "start": step.start,
        "end": step.end,
        "parts": step.parts,
        "exit": report.and_then(|report| report.exit).map(|exit| exit.to_string()),
        "error": report.and_then(|report| report.error.as_ref()),
        "hint": report.and_then(|report| report.hint.as_ref()),
        "image": report.and_then(|report| report.image.as_ref()).map(|image| format!("{}@{}", image.reference, image.digest)),
        "version": report.and_then(|report| report.version.as_ref()),
        "left_out": step.written - step.kept,
    })
}

/// As text of a page.
fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// JSON that can't end the element that it stands in.
fn script(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}
