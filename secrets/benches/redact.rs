//! Redaction of 1 GiB of log with 1, 10, 100 and 1,000 secrets: `cargo xtask bench redact`.
//!
//! Against plain copying, against a bare scan for the same forms by `aho-corasick` (in its own best configuration, which
//! replaces nothing and knows no chunks), against one `replace` a secret, which finds the plain value alone, and against
//! one `replace` a form, which finds what the redactor does where no chunk cuts it. The two sides of a pair take turns. Arguments: `--rounds=N` pairs (5), `--mib=N` of log (1024).

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

#[path = "../../tests/bench/src/pairs.rs"]
mod pairs;

use std::error::Error;
use std::hint::black_box;

use aho_corasick::AhoCorasick;
use bytes::Bytes;
use orchestra_secrets::{JobSecrets, Secrets};
use pairs::Table;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// As much as an engine's connection gives at once.
const CHUNK: usize = 32 << 10;
/// The log is this, again and again.
const TEXT: usize = 64 << 20;
/// What `replace` has to do at most.
const REPLACED: usize = 64 << 20;

fn main() -> Outcome<()> {
    let number = |name: &str| std::env::args().find_map(|arg| arg.strip_prefix(name)?.parse::<usize>().ok());
    let rounds = number("--rounds=").unwrap_or(5);
    let mib = number("--mib=").unwrap_or(1024);
    let mut random = Random(1);
    let mut table = Table::new("none".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    for count in [1, 10, 100, 1_000] {
        let values: Vec<String> = (0..count).map(|_| random.secret()).collect();
        // A log has a secret in ten thousand lines.
        let text = Bytes::from(log(&mut random, &values));
        let chunks: Vec<Bytes> = (0..text.len().div_ceil(CHUNK))
            .map(|at| text.slice(at * CHUNK..text.len().min((at + 1) * CHUNK)))
            .collect();
        let times = (mib << 20).div_ceil(text.len());
        let job = Secrets::new([]).job("bench");
        values.iter().try_for_each(|value| job.mask(&value.as_str().into()))?;
        runtime.block_on(compare(&mut table, rounds, times, count, &job, &chunks))?;
        runtime.block_on(replace(&mut table, rounds, "a secret", &values, &job, &chunks))?;
        let forms: Vec<String> = job
            .forms()
            .into_iter()
            .map(String::from_utf8)
            .collect::<Result<_, _>>()?;
        runtime.block_on(replace(&mut table, rounds, "a form", &forms, &job, &chunks))?;
    }
    println!(
        "{} MiB of log in pieces of {} KiB, {rounds} pairs\n\n{table}",
        mib,
        CHUNK >> 10
    );
    Ok(())
}

async fn compare(
    table: &mut Table,
    rounds: usize,
    times: usize,
    count: usize,
    job: &JobSecrets,
    chunks: &[Bytes],
) -> Outcome<()> {
    let ours = || async { redact(job, chunks, times).map(drop) };
    let forms = job.forms();
    let bare = AhoCorasick::new(&forms)?;
    let scan = || async {
        for chunk in (0..times).flat_map(|_| chunks) {
            black_box(bare.find_iter(chunk).count());
        }
        Ok(())
    };
    let what = format!("{count} secrets, {} forms", forms.len());
    let name = format!("aho-corasick, {:?}", bare.kind());
    table.compare(&what, &name, "≤ 1.5", rounds, ours, scan).await?;

    let copied = || async {
        let mut copy = Vec::with_capacity(CHUNK);
        for chunk in (0..times).flat_map(|_| chunks) {
            copy.clear();
            copy.extend_from_slice(chunk);
            black_box(&copy);
        }
        Ok(())
    };
    table.compare(&what, "plain copying", "", rounds, ours, copied).await?;

    // Not on the first pass, in which buffers grow to their size.
    let before = resident()?;
    let replaced = redact(job, chunks, times)?;
    let grown = resident()?.saturating_sub(before);
    let figure = format!("{grown} KiB, {replaced} bytes out");
    table.figure(&format!("{what}: resident set grown by one more pass"), figure);
    Ok(())
}

/// One pass a value over the whole text, as a loop over secrets does it; the fewer chunks, the better for it. `each` says
/// what a value is: a secret, of which only the plain text is found so, or a form that a secret may take.
async fn replace(
    table: &mut Table,
    rounds: usize,
    each: &str,
    values: &[String],
    job: &JobSecrets,
    chunks: &[Bytes],
) -> Outcome<()> {
    let few = &chunks[..(REPLACED / CHUNK / values.len().max(10)).clamp(1, chunks.len())];
    let text = String::from_utf8(few.concat())?;
    let ours = || async { redact(job, few, 1).map(drop) };
    let theirs = || async {
        let mut text = text.clone();
        for value in values {
            text = text.replace(value.as_str(), orchestra_secrets::MARKER);
        }
        black_box(text);
        Ok(())
    };
    let what = format!("{} times {each}, {} KiB of it", values.len(), text.len() >> 10);
    table
        .compare(
            &what,
            &format!("one `replace` {each}"),
            "≤ 0.1 at 100 secrets",
            rounds.max(15),
            ours,
            theirs,
        )
        .await
}

/// How many bytes come out of it.
fn redact(job: &JobSecrets, chunks: &[Bytes], times: usize) -> Outcome<usize> {
    let mut redactor = job.stream();
    let mut length = 0;
    for chunk in (0..times).flat_map(|_| chunks) {
        length += black_box(redactor.push(chunk.clone())?).len();
    }
    Ok(length + redactor.finish()?.len())
}

/// The resident set's peak in KiB.
fn resident() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("the kernel does not tell")?.parse()?)
}

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap_or(0) % below
    }

    /// 24 to 40 letters and digits, as tokens have.
    fn secret(&mut self) -> String {
        let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
        let length = 24 + self.next(17);
        (0..length)
            .map(|_| char::from(letters[self.next(letters.len())]))
            .collect()
    }
}

/// Lines as build tools and servers write them.
fn log(random: &mut Random, secrets: &[String]) -> String {
    let words = [
        "Compiling",
        "Downloaded",
        "warning:",
        "error[E0308]:",
        "GET",
        "POST",
        "/api/v1/items",
        "200",
        "404",
        "INFO",
        "DEBUG",
        "request",
        "finished",
        "in",
        "ms",
        "cache",
        "hit",
        "miss",
        "test",
        "ok",
        "...",
        "-->",
        "src/main.rs",
        "sha256:9f86d081884c7d65",
        "node_modules/left-pad",
        "user=alice",
        "{\"level\":\"info\"}",
        "retry",
        "connection",
    ];
    let mut text = String::with_capacity(TEXT + 512);
    let mut line = 0;
    while text.len() < TEXT {
        line += 1;
        text.push_str(&format!(
            "2026-11-28T10:{:02}:{:02}.{:03}Z ",
            line / 60 % 60,
            line % 60,
            random.next(1000)
        ));
        for _ in 0..3 + random.next(12) {
            text.push_str(words[random.next(words.len())]);
            text.push(' ');
        }
        if random.next(10_000) == 0 {
            text.push_str(&secrets[random.next(secrets.len())]);
        }
        text.push('\n');
    }
    text.truncate(TEXT);
    text
}
