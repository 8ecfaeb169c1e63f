//! Output of containers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{ContainerId, LogOffset, LogStream, OutputStream, VolumePath, stream};

use super::case;
use crate::check::{Failure, Outcome, holds, same, within};
use crate::context::{Context, Written, collect};
use crate::suite::Case;
use crate::tarball::{Entry, pack};

pub(super) const CASES: &[Case] = &[
    case!(
        both_streams_are_told_apart,
        "`logs` tells standard output and standard error apart."
    ),
    case!(
        a_log_read_from_before_the_start_is_exact_to_the_byte,
        "`follow` on a container that has not been started waits for the start and loses nothing."
    ),
    case!(
        following_ends_when_the_container_has_ended,
        "`follow` ends when the container has ended, not before."
    ),
    case!(
        without_follow_a_log_ends_with_what_was_written,
        "Without `follow` it ends with what was written up to now."
    ),
    case!(
        a_log_is_read_late_and_more_than_once,
        "A log may be read late, more than once, and by another driver."
    ),
    case!(
        a_log_is_followed_from_its_first_byte_by_whoever_comes_late,
        "Following a container that runs starts at its first byte."
    ),
    case!(
        what_a_container_writes_last_is_followed_by_who_came_late,
        "Following a container that runs ends with the last byte it wrote, however fast it wrote."
    ),
    case!(
        a_log_is_read_on_from_where_it_was_left,
        "What was read of a log comes again as it was: who carries on from an offset misses nothing and gets nothing twice."
    ),
    case!(many_follow_one_log, "Many may follow one log, and each gets all of it."),
    case!(
        a_container_that_writes_nothing_has_an_empty_log,
        "A log without a byte is empty."
    ),
    case!(long_lines_are_kept, "A line of 300,000 bytes is kept, early and late."),
    case!(a_slow_reader_loses_nothing, "A reader that is slow is never cut off.", deadlines 2),
    case!(a_large_log_is_byte_exact_and_in_order, "A log of `Settings::log_bytes` arrives byte-exact, each stream in order.", deadlines 6),
];

async fn both_streams_are_told_apart(cx: Arc<Context>) -> Outcome {
    let ran = cx
        .run(
            "both",
            &cx.shell("for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"),
        )
        .await?;
    same("standard output", ran.stdout, "out 1\nout 2\nout 3\nout 4\nout 5\n")?;
    same("standard error", ran.stderr, "err 1\nerr 2\nerr 3\nerr 4\nerr 5\n")
}

async fn a_log_read_from_before_the_start_is_exact_to_the_byte(cx: Arc<Context>) -> Outcome {
    let id = cx
        .create(
            "exact",
            &cx.shell("printf 'first\\n\\nlast without a line feed'; printf error >&2"),
        )
        .await?;
    let logs = cx.driver.logs(&id, true).await?;
    // Somebody who waits before the start has to wait for it.
    let reading = tokio::spawn(collect(logs));
    tokio::time::sleep(Duration::from_millis(500)).await;
    holds(!reading.is_finished(), "following waits for the start")?;
    cx.driver.start_container(&id, None).await?;
    let written = within(Duration::from_secs(60), "the log", reading).await?;
    let written = written.map_err(|error| Failure::new(error.to_string()))??;
    same(
        "standard output",
        written.stdout,
        b"first\n\nlast without a line feed".to_vec(),
    )?;
    same("standard error", written.stderr, b"error".to_vec())
}

async fn following_ends_when_the_container_has_ended(cx: Arc<Context>) -> Outcome {
    let id = cx
        .create("slow", &cx.shell("echo one; sleep 1; echo two; sleep 1; echo three"))
        .await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    let written = within(Duration::from_secs(60), "the log", collect(logs)).await??;
    same("standard output", written.stdout, b"one\ntwo\nthree\n".to_vec())
}

async fn a_log_is_read_on_from_where_it_was_left(cx: Arc<Context>) -> Outcome {
    let script = "for i in 1 2 3 4 5 6; do echo out $i; echo err $i >&2; sleep 0.3; done";
    let id = cx.create("left", &cx.shell(script)).await?;
    let mut logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    let (mut offset, mut written) = (LogOffset::default(), Written::default());
    // Left in the middle of a line, while the container runs.
    while offset.stdout < 8 {
        let Some(mut chunk) = logs.try_next().await? else {
            return Err(Failure::new("the log ended early"));
        };
        chunk.bytes.truncate(3);
        offset.advance(&chunk);
        written.add(chunk.stream, &chunk.bytes)?;
        drop(logs);
        logs = offset.rest_of(cx.driver.logs(&id, true).await?);
    }
    drop(logs);
    cx.driver.wait_container(&id).await?;
    let late = cx.driver.logs(&id, false).await?;
    let mut late = within(Duration::from_secs(20), "the log's rest", collect(offset.rest_of(late))).await??;
    written.stdout.append(&mut late.stdout);
    written.stderr.append(&mut late.stderr);
    let expected = |name: &str| (1..=6).map(|number| format!("{name} {number}\n")).collect::<String>();
    same("standard output", written.stdout, expected("out").into_bytes())?;
    same("standard error", written.stderr, expected("err").into_bytes())
}

async fn without_follow_a_log_ends_with_what_was_written(cx: Arc<Context>) -> Outcome {
    let id = cx.create("now", &cx.sleeper()).await?;
    let read = || async {
        let logs = cx.driver.logs(&id, false).await?;
        within(Duration::from_secs(20), "a log without follow", collect(logs)).await?
    };
    same("the log before the start", read().await?, Written::default())?;
    cx.driver.start_container(&id, None).await?;
    // An engine may keep what was written a moment after it was written.
    for _ in 0..50 {
        if read().await?.stdout == b"up\n" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Failure::new("what a running container wrote 5 s ago is not in its log"))
}

/// Late, the last line may have got a line feed.
fn is(written: &[u8], wanted: &str) -> bool {
    written == wanted.as_bytes() || written.strip_suffix(b"\n") == Some(wanted.as_bytes())
}

async fn a_log_is_read_late_and_more_than_once(cx: Arc<Context>) -> Outcome {
    let id = cx
        .start("late", &cx.shell("echo one; echo two; echo err >&2; printf end"))
        .await?;
    cx.driver.wait_container(&id).await?;
    let other = (cx.connect)().await?;
    for (driver, follow) in [(&cx.driver, true), (&cx.driver, false), (&other, true), (&other, false)] {
        let logs = driver.logs(&id, follow).await?;
        let written = within(Duration::from_secs(20), "a late log", collect(logs)).await??;
        holds(
            is(&written.stdout, "one\ntwo\nend"),
            format!("standard output is all there: {written:?}"),
        )?;
        holds(
            is(&written.stderr, "err\n"),
            format!("standard error is all there: {written:?}"),
        )?;
    }
    Ok(())
}

async fn a_log_is_followed_from_its_first_byte_by_whoever_comes_late(cx: Arc<Context>) -> Outcome {
    let id = cx
        .start_and_see("joined", &cx.shell("echo one; sleep 1; echo two; sleep 1; echo three"))
        .await?;
    let other = (cx.connect)().await?;
    let written = collect(other.logs(&id, true).await?).await?;
    same("standard output", written.stdout, b"one\ntwo\nthree\n".to_vec())
}

async fn what_a_container_writes_last_is_followed_by_who_came_late(cx: Arc<Context>) -> Outcome {
    const LINES: u64 = 60_000;
    let wanted: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    for round in 0..3 {
        let script = format!("seq {LINES}; seq {LINES} >&2");
        let id = cx.start(&format!("fast{round}"), &cx.shell(&script)).await?;
        let logs = cx.driver.logs(&id, true).await?;
        let written = within(Duration::from_secs(60), "the log", collect(logs)).await??;
        for (stream, written) in [("standard output", written.stdout), ("standard error", written.stderr)] {
            let same = std::iter::zip(&written, wanted.as_bytes()).take_while(|(written, wanted)| written == wanted);
            let (same, lengths) = (same.count(), format!("{} bytes of {}", written.len(), wanted.len()));
            let around = String::from_utf8_lossy(&written[same.saturating_sub(20)..written.len().min(same + 20)]);
            let what = format!("{stream} is whole: {lengths}, {same} of them the same, then {around:?}");
            holds(written == wanted.as_bytes(), what)?;
        }
    }
    Ok(())
}

async fn many_follow_one_log(cx: Arc<Context>) -> Outcome {
    let id = cx
        .create("popular", &cx.shell("echo one; sleep 0.5; echo two; echo err >&2"))
        .await?;
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..5 {
        readers.spawn(collect(cx.driver.logs(&id, true).await?));
    }
    cx.driver.start_container(&id, None).await?;
    while let Some(written) = readers.join_next().await {
        let written = written.map_err(|error| Failure::new(error.to_string()))??;
        same("standard output", written.stdout, b"one\ntwo\n".to_vec())?;
        same("standard error", written.stderr, b"err\n".to_vec())?;
    }
    Ok(())
}

async fn a_container_that_writes_nothing_has_an_empty_log(cx: Arc<Context>) -> Outcome {
    let id = cx.create("silent", &cx.shell("true")).await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    same(
        "the log",
        within(Duration::from_secs(60), "the log", collect(logs)).await??,
        Written::default(),
    )?;
    same(
        "the log, read late",
        collect(cx.driver.logs(&id, true).await?).await?,
        Written::default(),
    )
}

async fn long_lines_are_kept(cx: Arc<Context>) -> Outcome {
    let line: String = (0..60_000).map(|n| format!("{n:05}")).collect();
    let id = generator(
        &cx,
        "long",
        &line,
        "cat /data/block; echo; cat /data/block >&2; echo >&2",
    )
    .await?;
    let early = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    let wanted = format!("{line}\n");
    let written = [collect(early).await?, collect(cx.driver.logs(&id, true).await?).await?];
    for (when, written) in ["early", "late"].iter().zip(written) {
        let sizes = format!("{} and {} bytes", written.stdout.len(), written.stderr.len());
        let all = written.stdout == wanted.as_bytes() && written.stderr == wanted.as_bytes();
        holds(all, format!("the line is on both streams, read {when}: {sizes}"))?;
    }
    Ok(())
}

/// A container that runs `script` with a file of `content` at `/data/block`: what is written often is made once.
async fn generator(cx: &Context, name: &str, content: &str, script: &str) -> Outcome<ContainerId> {
    let volume = cx.volume(name).await?;
    let tar = pack(&[Entry::file("block", content.to_owned())]);
    cx.driver
        .write_volume(&volume, &VolumePath::root(), stream::once(tar))
        .await?;
    let mut spec = cx.shell(script);
    spec.mounts.push(cx.mount(&volume, "/data")?);
    cx.create(name, &spec).await
}

/// A block of lines of 4 KiB, each of which says where it stands; about 1 MiB.
fn block() -> String {
    (0..256)
        .map(|line| format!("{line:03} {}\n", format!("{line:08}").repeat(511)))
        .collect()
}

/// Writes `rounds` times: a numbered line and the block to standard output, a numbered line to standard error.
fn rounds_script(rounds: u64) -> String {
    format!("i=0; while [ $i -lt {rounds} ]; do echo out $i; cat /data/block; echo err $i >&2; i=$((i+1)); done")
}

/// What [`rounds_script`] writes, compared piece by piece: a whole log is never held.
struct Expected {
    block: Bytes,
    round: [u64; 2],
    left: [Bytes; 2],
    position: [u64; 2],
}

impl Expected {
    fn new(block: String) -> Self {
        Self {
            block: block.into(),
            round: [0; 2],
            left: [Bytes::new(), Bytes::new()],
            position: [0; 2],
        }
    }

    fn check(&mut self, stream: OutputStream, mut bytes: Bytes) -> Outcome {
        let (index, name) = match stream {
            OutputStream::Stdout => (0, "out"),
            OutputStream::Stderr => (1, "err"),
        };
        while !bytes.is_empty() {
            if self.left[index].is_empty() {
                let line = format!("{name} {}\n", self.round[index]);
                self.left[index] = match stream {
                    OutputStream::Stdout => [line.as_bytes(), &self.block].concat().into(),
                    OutputStream::Stderr => line.into(),
                };
                self.round[index] += 1;
            }
            let length = bytes.len().min(self.left[index].len());
            let (got, wanted) = (bytes.split_to(length), self.left[index].split_to(length));
            if got != wanted {
                let at = got.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
                return Err(Failure::new(format!(
                    "std{name} differs at byte {} (round {}): got {:?}, wanted {:?}",
                    self.position[index] + at as u64,
                    self.round[index] - 1,
                    String::from_utf8_lossy(&got[at..got.len().min(at + 60)]),
                    String::from_utf8_lossy(&wanted[at..wanted.len().min(at + 60)]),
                )));
            }
            self.position[index] += length as u64;
        }
        Ok(())
    }

    fn ends_after(&self, rounds: u64) -> Outcome {
        same("the rounds on both streams", self.round, [rounds; 2])?;
        holds(
            self.left.iter().all(Bytes::is_empty),
            format!(
                "the log is cut off: {} and {} bytes",
                self.position[0], self.position[1]
            ),
        )
    }
}

async fn compare(mut logs: LogStream, rounds: u64, pause: Option<Duration>) -> Outcome {
    let mut expected = Expected::new(block());
    let mut pauses = 0;
    while let Some(chunk) = logs.next().await {
        let chunk = chunk?;
        expected.check(chunk.stream, chunk.bytes)?;
        if let Some(pause) = pause.filter(|_| pauses < 20) {
            tokio::time::sleep(pause).await;
            pauses += 1;
        }
    }
    expected.ends_after(rounds)
}

async fn a_slow_reader_loses_nothing(cx: Arc<Context>) -> Outcome {
    let id = generator(&cx, "slow", &block(), &rounds_script(32)).await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    compare(logs, 32, Some(Duration::from_millis(250))).await?;
    same("its exit", cx.driver.wait_container(&id).await?.code(), 0)
}

async fn a_large_log_is_byte_exact_and_in_order(cx: Arc<Context>) -> Outcome {
    let rounds = cx.settings.log_bytes.div_ceil(1 << 20);
    let id = generator(&cx, "large", &block(), &rounds_script(rounds)).await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver.start_container(&id, None).await?;
    compare(logs, rounds, None).await?;
    same("its exit", cx.driver.wait_container(&id).await?.code(), 0)
}
