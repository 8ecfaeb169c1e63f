//! BuildKit's progress as lines of JSON (`--progress=rawjson`): what a build's processes write stands in it in base64, cut
//! into pieces as they wrote it. It is taken out, redacted by vertex and stream, and put back.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orchestra::Result;
use serde_json::{Map, Value, json};

use crate::JobSecrets;
use crate::channel::Channel;

/// What the build's script itself warns of (`buildctl.sh`): sentences in which nothing of a user's stands.
const WARNINGS: [&str; 1] = ["the layers on the cache volume could not be pruned to their size limit"];
/// The longest line that is read as JSON; as the reader of the progress has it.
const MAX_LINE: usize = 8 << 20;
/// More processes than that do not write at the same time.
const MAX_CHANNELS: usize = 1_000;
/// The keys of BuildKit's `client.SolveStatus`.
const KEYS: [&str; 4] = ["vertexes", "statuses", "logs", "warnings"];
/// The key of the lines that the build container's own script writes between them.
const OWN: &str = "orchestra";
/// What stands for the content of something, computed by BuildKit: no secret, and of no use in parts.
const DIGESTS: [&str; 5] = [
    "digest",
    "inputs",
    "vertex",
    "containerimage.digest",
    "containerimage.config.digest",
];

/// Keys of its times.
const TIMES: [&str; 3] = ["started", "completed", "timestamp"];

/// A part of the output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Lines of JSON of which each text is redacted. To look through them again could only hit their keys and digests: a
    /// registry's user may have the name of one.
    Clean(Vec<u8>),
    /// Anything else, as it was.
    Text(Vec<u8>),
}

/// Parts of the output in order, as few as there can be.
#[derive(Debug, Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn clean(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Piece::Clean(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.0.push(Piece::Clean(bytes.to_vec())),
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        match self.0.last_mut() {
            Some(Piece::Text(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.0.push(Piece::Text(bytes.to_vec())),
        }
    }
}

/// Reads the progress of one build.
#[derive(Default)]
pub(crate) struct Progress {
    line: Vec<u8>,
    /// Whether the line that is being read is no JSON, and passes.
    text: bool,
    channels: BTreeMap<(String, i64), Process>,
}

/// What one process of the build writes on one stream.
struct Process {
    channel: Channel,
    /// When it wrote last, for what comes out later.
    timestamp: Value,
}

impl Progress {
    /// Reads on.
    pub(crate) fn push(&mut self, job: &JobSecrets, bytes: &[u8]) -> Result<Vec<Piece>> {
        let mut out = Pieces::default();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.last() == Some(&b'\n');
            if self.line.is_empty() && !self.text && piece.first() != Some(&b'{') {
                self.text = true;
            }
            if self.text {
                out.text(piece);
                self.text = !whole;
                continue;
            }
            self.line.extend_from_slice(piece);
            if whole {
                let line = std::mem::take(&mut self.line);
                self.json(job, &line, &mut out)?;
            } else if self.line.len() > MAX_LINE {
                out.text(&std::mem::take(&mut self.line));
                self.text = true;
            }
        }
        Ok(out.0)
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.channels.values().any(|process| process.channel.is_holding())
    }

    /// What was held for so long, as a line of its own.
    pub(crate) fn flush(&mut self, job: &JobSecrets, held: Duration) -> Result<Vec<Piece>> {
        let mut late = Vec::new();
        for (of, process) in &mut self.channels {
            let bytes = process.channel.flush(job, held)?;
            late.extend(entry(of, process, &bytes));
        }
        let mut out = Pieces::default();
        out.clean(&line(late));
        Ok(out.0)
    }

    /// The rest of a progress that has ended.
    pub(crate) fn finish(&mut self, job: &JobSecrets) -> Result<Vec<Piece>> {
        let mut out = Pieces::default();
        let rest = std::mem::take(&mut self.line);
        if !rest.is_empty() {
            self.json(job, &rest, &mut out)?;
        }
        self.text = false;
        let mut all = Pieces::default();
        all.clean(&line(self.end(job, |_| true)?));
        all.0.append(&mut out.0);
        Ok(all.0)
    }

    fn json(&mut self, job: &JobSecrets, text: &[u8], out: &mut Pieces) -> Result<()> {
        let status = match serde_json::from_slice(text) {
            Ok(Value::Object(own)) if own.contains_key(OWN) => {
                out.clean(&own_line(&own));
                return Ok(());
            }
            Ok(Value::Object(status)) if KEYS.iter().any(|key| status.contains_key(*key)) => status,
            _ => {
                out.text(text);
                return Ok(());
            }
        };
        let mut status = self.logs(job, status, out)?;
        let ended: Vec<String> = status
            .get("vertexes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|vertex| vertex.get("completed").is_some_and(|completed| !completed.is_null()))
            .filter_map(|vertex| vertex.get("digest")?.as_str().map(str::to_owned))
            .collect();
        for (key, value) in &mut status {
            if key != "logs" {
                clean(job, key, value);
            }
        }
        // What a process wrote comes before its end.
        let late = self.end(job, |vertex| ended.iter().any(|ended| ended == vertex))?;
        if !late.is_empty() {
            let own = match status.remove("logs") {
                Some(Value::Array(logs)) => logs,
                _ => Vec::new(),
            };
            out.clean(&line(own.into_iter().chain(late).collect()));
        }
        out.clean(format!("{}\n", Value::Object(status)).as_bytes());
        Ok(())
    }

    /// Redacts what the line says that processes wrote.
    fn logs(
        &mut self,
        job: &JobSecrets,
        mut status: Map<String, Value>,
        out: &mut Pieces,
    ) -> Result<Map<String, Value>> {
        let Some(Value::Array(logs)) = status.get_mut("logs") else {
            return Ok(status);
        };
        let mut kept = Vec::with_capacity(logs.len());
        for mut log in std::mem::take(logs) {
            let vertex = log.get("vertex").and_then(Value::as_str).unwrap_or_default().to_owned();
            let stream = log.get("stream").and_then(Value::as_i64).unwrap_or_default();
            let Some(data) = log.get("data").and_then(decode) else {
                clean(job, "", &mut log);
                kept.push(log);
                continue;
            };
            if self.channels.len() >= MAX_CHANNELS {
                out.clean(&line(self.end(job, |_| true)?));
            }
            let process = self.channels.entry((vertex, stream)).or_insert_with(|| Process {
                channel: Channel::new(false),
                timestamp: Value::Null,
            });
            process.timestamp = log.get("timestamp").cloned().unwrap_or_default();
            let passed = process.channel.push(job, data.into())?;
            if !passed.is_empty() {
                log["data"] = STANDARD.encode(&passed).into();
                kept.push(log);
            }
        }
        *logs = kept;
        Ok(status)
    }

    /// What is held of processes that have ended.
    fn end(&mut self, job: &JobSecrets, ended: impl Fn(&str) -> bool) -> Result<Vec<Value>> {
        let mut late = Vec::new();
        for (of, process) in self.channels.iter_mut().filter(|((vertex, _), _)| ended(vertex)) {
            let bytes = process.channel.finish(job)?;
            late.extend(entry(of, process, &bytes));
        }
        self.channels.retain(|(vertex, _), _| !ended(vertex));
        Ok(late)
    }
}

fn entry((vertex, stream): &(String, i64), process: &Process, bytes: &[u8]) -> Option<Value> {
    let data = STANDARD.encode(bytes);
    let log = || json!({"vertex": vertex, "stream": stream, "data": data, "timestamp": process.timestamp});
    (!bytes.is_empty()).then(log)
}

fn line(logs: Vec<Value>) -> Vec<u8> {
    if logs.is_empty() {
        return Vec::new();
    }
    format!("{}\n", json!({"logs": logs})).into_bytes()
}

/// A line of the script's own: what it is about, and of the metadata the digests alone. The rest of BuildKit's metadata
/// file repeats what the user gave, keys too; of a manifest, its annotations do.
fn own_line(own: &Map<String, Value>) -> Vec<u8> {
    let about = own.get(OWN).and_then(Value::as_str).unwrap_or_default();
    let metadata = own.get("metadata");
    let digest = own
        .get("digest")
        .and_then(Value::as_str)
        .filter(|text| is_hash(text))
        .unwrap_or_default();
    let line = match about {
        "metadata" => {
            let fields = metadata.and_then(Value::as_object).into_iter().flatten();
            let digests = fields.filter(|(key, value)| value.as_str().is_some_and(|text| is_digest(key, text)));
            let digests: Map<_, _> = digests.map(|(key, value)| (key.clone(), value.clone())).collect();
            json!({OWN: about, "metadata": digests})
        }
        "manifest" => json!({OWN: about, "digest": digest, "metadata": metadata.map(manifest)}),
        "target" => json!({OWN: about, "digest": digest}),
        // A sentence of the script's own, in which nothing of a user's stands.
        "warning" if metadata.is_some_and(|told| WARNINGS.iter().any(|known| told == known)) => {
            json!({OWN: about, "metadata": metadata})
        }
        "start" => json!({OWN: about}),
        _ => return Vec::new(),
    };
    format!("{line}\n").into_bytes()
}

/// Of a manifest or an index: which blobs there are, how large they are, and for which platform.
fn manifest(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(manifest).collect(),
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, value)| match key.as_str() {
                "manifests" | "layers" | "config" | "platform" => true,
                "size" => value.is_u64(),
                "digest" => is_text_of(value, is_hash),
                "os" | "architecture" | "variant" => is_text_of(value, |text| {
                    text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
                }),
                _ => false,
            });
            Value::Object(kept.map(|(key, value)| (key.clone(), manifest(value))).collect())
        }
        Value::String(_) | Value::Number(_) => value.clone(),
        Value::Null | Value::Bool(_) => Value::Null,
    }
}

fn is_text_of(value: &Value, is: impl Fn(&str) -> bool) -> bool {
    value.as_str().is_some_and(is)
}

fn is_hash(text: &str) -> bool {
    is_digest("digest", text)
}

fn is_digest(key: &str, text: &str) -> bool {
    let hex = |digits: &str| digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    DIGESTS.contains(&key) && text.strip_prefix("sha256:").is_some_and(hex)
}

/// A time as RFC 3339 has it, which BuildKit writes and no step does: a short number may stand in any of them.
fn is_time(key: &str, text: &str) -> bool {
    let mut shape = text.bytes().map(|byte| if byte.is_ascii_digit() { b'0' } else { byte });
    let begins = shape.by_ref().take(19).eq(*b"0000-00-00T00:00:00");
    TIMES.contains(&key) && begins && text.len() <= 40 && shape.all(|byte| b"0.:+-Z".contains(&byte))
}

fn decode(data: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(data.as_str()?).ok()
}

/// Redacts every text below; a warning's own are in base64.
fn clean(job: &JobSecrets, key: &str, value: &mut Value) {
    match value {
        Value::String(text) if ["short", "detail"].contains(&key) => match STANDARD.decode(text.as_str()) {
            Ok(bytes) => *text = STANDARD.encode(job.redact(&String::from_utf8_lossy(&bytes))),
            Err(_) => *text = job.redact(text),
        },
        Value::String(text) if is_digest(key, text) || is_time(key, text) => {}
        Value::String(text) => *text = job.redact(text),
        Value::Array(items) => items.iter_mut().for_each(|item| clean(job, key, item)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| clean(job, key, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::{LONG_MOMENT, MARKER};
    use crate::{Scope, Secrets};

    fn job() -> JobSecrets {
        let job = Secrets::new([Scope::Global]).job("j");
        job.mask(&"hunter2hunter3".into()).unwrap();
        job
    }

    #[test]
    fn of_the_scripts_own_lines_those_that_are_known_pass_and_no_other_begins_again() {
        let told = |line: &str| {
            let Ok(Value::Object(own)) = serde_json::from_str(line) else {
                panic!("{line}")
            };
            String::from_utf8(own_line(&own)).unwrap()
        };
        assert_eq!(told(r#"{"orchestra":"start"}"#), "{\"orchestra\":\"start\"}\n");
        let script = include_str!("../../image-build/src/buildctl.sh");
        for warning in WARNINGS {
            assert!(script.contains(warning), "the script says it");
            let line = json!({OWN: "warning", "digest": "", "metadata": warning}).to_string();
            assert!(told(&line).contains(warning));
        }
        assert_eq!(told(r#"{"orchestra":"warning","metadata":"hunter2"}"#), "");
        assert_eq!(told(r#"{"orchestra":"else","metadata":"hunter2"}"#), "");
    }

    fn log(vertex: &str, data: &str) -> String {
        let data = STANDARD.encode(data);
        format!(
            "{}\n",
            json!({"logs": [{"vertex": vertex, "stream": 1, "data": data, "timestamp": "2026-01-01T00:00:00Z"}]})
        )
    }

    fn joined(pieces: Vec<Piece>) -> Vec<u8> {
        let bytes = pieces.into_iter().flat_map(|piece| match piece {
            Piece::Clean(bytes) | Piece::Text(bytes) => bytes,
        });
        bytes.collect()
    }

    /// What each line says that processes wrote, and the lines without.
    fn read(bytes: &[u8]) -> (String, String) {
        let (mut wrote, mut rest) = (String::new(), String::new());
        for line in String::from_utf8(bytes.to_vec()).unwrap().lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            for log in value["logs"].as_array().into_iter().flatten() {
                wrote += &String::from_utf8(decode(&log["data"]).unwrap()).unwrap();
            }
            if value.get("logs").is_none() {
                rest += line;
            }
        }
        (wrote, rest)
    }

    #[test]
    fn a_secret_that_a_build_writes_byte_by_byte_is_found_within_the_base64() {
        let (job, mut progress) = (job(), Progress::default());
        let mut out = Vec::new();
        for byte in "a hunter2hunter3 b\n".chars() {
            // Another process writes at the same time.
            for line in [log("v1", &byte.to_string()), log("v2", "x")] {
                for piece in line.as_bytes().chunks(7) {
                    out.extend_from_slice(&joined(progress.push(&job, piece).unwrap()));
                }
            }
        }
        out.extend_from_slice(&joined(progress.finish(&job).unwrap()));
        let (wrote, _) = read(&out);
        assert_eq!(wrote.replace('x', ""), format!("a {MARKER} b\n"));
    }

    #[test]
    fn names_errors_and_warnings_are_clean_and_what_was_held_comes_before_the_end() {
        let (job, mut progress) = (job(), Progress::default());
        let held = joined(progress.push(&job, log("v1", "login: hunter2").as_bytes()).unwrap());
        assert_eq!(read(&held).0, "login: ");
        let ends = json!({
            "vertexes": [{"digest": "v1", "name": "RUN echo hunter2hunter3", "completed": "2026-01-01T00:00:00Z", "error": "exit 1: hunter2hunter3"}],
            "warnings": [{"vertex": "v1", "short": STANDARD.encode("hunter2hunter3!"), "detail": [STANDARD.encode("hunter2hunter3?")]}],
        });
        let out = joined(progress.push(&job, format!("{ends}\n").as_bytes()).unwrap());
        let (wrote, rest) = read(&out);
        assert_eq!(wrote, "hunter2");
        assert!(
            rest.contains(&format!("RUN echo {MARKER}")) && rest.contains(&format!("exit 1: {MARKER}")),
            "{rest}"
        );
        assert!(rest.contains(&STANDARD.encode(format!("{MARKER}!"))), "{rest}");
        assert!(out.starts_with(b"{\"logs\""), "the output stands before the end");
    }

    #[test]
    fn what_is_no_progress_passes_and_what_is_held_comes_out_in_time() {
        let (job, mut progress) = (job(), Progress::default());
        for text in ["#1 plain\n", "{\"other\":1}\n", "{ no json\n"] {
            assert_eq!(
                progress.push(&job, text.as_bytes()).unwrap(),
                [Piece::Text(text.into())]
            );
        }
        progress.push(&job, log("v1", "hun").as_bytes()).unwrap();
        assert!(progress.is_holding());
        assert_eq!(read(&joined(progress.flush(&job, LONG_MOMENT).unwrap())).0, "hun");
        assert!(!progress.is_holding());
    }

    #[test]
    fn a_secret_that_is_a_word_of_the_protocol_breaks_no_line() {
        let (job, mut progress) = (job(), Progress::default());
        let digest = format!("sha256:{}", "ab01".repeat(16));
        for word in [
            "orchestra",
            "metadata",
            "vertexes",
            "sha256",
            "ab01ab01",
            "digest",
            "2026",
            "1234",
        ] {
            job.mask(&word.into()).unwrap();
        }
        let lines = [
            json!({"orchestra": "start"}),
            json!({"vertexes": [{"digest": digest, "name": "push to orchestra/x", "started": "2026-01-01T00:00:00.12345Z", "completed": "2026-01-01T00:00:01+12:34"}]}),
            json!({"orchestra": "metadata", "metadata": {"containerimage.digest": digest, "image.name": "orchestra/x", "hunter2hunter3": 1}}),
            json!({"orchestra": "target", "digest": digest}),
            json!({"orchestra": "manifest", "digest": digest, "metadata": {
                "layers": [{"digest": digest, "size": 7, "annotations": {"hunter2hunter3": "hunter2hunter3"}}],
                "config": {"digest": "hunter2hunter3", "size": 1},
                "platform": {"os": "linux", "architecture": "hunter2hunter3; x"},
            }}),
        ];
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let out = progress.push(&job, text.as_bytes()).unwrap();
        let [Piece::Clean(out)] = &out[..] else {
            panic!("{out:?}")
        };
        let expected = [
            lines[0].clone(),
            json!({"vertexes": [{"digest": digest, "name": format!("push to {MARKER}/x"), "started": "2026-01-01T00:00:00.12345Z", "completed": "2026-01-01T00:00:01+12:34"}]}),
            json!({"orchestra": "metadata", "metadata": {"containerimage.digest": digest}}),
            lines[3].clone(),
            json!({"orchestra": "manifest", "digest": digest, "metadata": {
                "layers": [{"digest": digest, "size": 7}],
                "config": {"size": 1},
                "platform": {"os": "linux"},
            }}),
        ];
        let read: Vec<Value> = out
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(read, expected);
    }
}
