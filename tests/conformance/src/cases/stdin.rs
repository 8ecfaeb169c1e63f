//! Standard input of a container.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream as streams};
use orchestra::{ErrorKind, ExitStatus, stream};

use super::case;
use crate::check::{Outcome, fails, holds, same, within};
use crate::context::{Context, collect};
use crate::suite::Case;

pub(super) const CASES: &[Case] = &[
    case!(standard_input_is_fed_and_closed, "`stdin` is fed to the process as it reads, and closed at its end.", needs stdin),
    case!(much_standard_input_passes_byte_exact, "8 MiB of standard input arrive byte-exact and in order.", needs stdin),
    case!(without_a_stream_standard_input_is_at_its_end, "Without a stream, a container with `stdin` reads an end of file.", needs stdin),
    case!(
        a_container_without_stdin_takes_no_stream,
        "`start_container` fails with `Conflict` if `stdin` is given and the spec did not ask for it."
    ),
    case!(a_process_that_does_not_read_is_not_waited_for, "A process that ends without reading its input ends as any other.", needs stdin),
    case!(an_answer_can_be_read_before_the_next_question, "Input that comes piece by piece is passed on as it comes.", needs stdin),
];

async fn standard_input_is_fed_and_closed(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("cat; echo the end");
    spec.stdin = true;
    let ran = cx
        .run_with("fed", &spec, Some(stream::once("hello\nwithout a line feed")))
        .await?;
    same("what it prints", ran.stdout, "hello\nwithout a line feedthe end\n")?;
    same("its exit", ran.exit, ExitStatus::Code(0))
}

async fn much_standard_input_passes_byte_exact(cx: Arc<Context>) -> Outcome {
    let content: Vec<u8> = (0..8u64 << 17).flat_map(u64::to_le_bytes).collect();
    let pieces: Vec<_> = content.chunks(100_000).map(Bytes::copy_from_slice).map(Ok).collect();
    let mut spec = cx.shell("cat");
    spec.stdin = true;
    let id = cx.create("much", &spec).await?;
    let logs = cx.driver.logs(&id, true).await?;
    cx.driver
        .start_container(&id, Some(streams::iter(pieces).boxed()))
        .await?;
    let written = collect(logs).await?;
    same("how much came back", written.stdout.len(), content.len())?;
    holds(written.stdout == content, "what came back is what went in")
}

async fn without_a_stream_standard_input_is_at_its_end(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("cat; echo the end");
    spec.stdin = true;
    let ran = within(Duration::from_secs(60), "the container", cx.run("ended", &spec)).await??;
    same("what it prints", ran.stdout, "the end\n")?;
    let ran = within(
        Duration::from_secs(60),
        "a container without stdin",
        cx.run("none", &cx.shell("cat; echo the end")),
    )
    .await??;
    same("what one without stdin prints", ran.stdout, "the end\n")
}

async fn a_container_without_stdin_takes_no_stream(cx: Arc<Context>) -> Outcome {
    let id = cx.create("closed", &cx.shell("cat; echo the end")).await?;
    let answer = cx.driver.start_container(&id, Some(stream::once("hello"))).await;
    fails(
        "giving input to a container without stdin",
        answer,
        &[ErrorKind::Conflict],
    )?;
    same(
        "what it prints when it is started without",
        cx.finish(&id, None).await?.stdout,
        "the end\n",
    )
}

async fn a_process_that_does_not_read_is_not_waited_for(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("echo up; sleep 0.5; exit 4");
    spec.stdin = true;
    let endless = streams::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 65536]))).boxed();
    let ran = within(
        Duration::from_secs(60),
        "the container",
        cx.run_with("deaf", &spec, Some(endless)),
    )
    .await??;
    same("its exit", ran.exit, ExitStatus::Code(4))?;
    same("what it prints", ran.stdout, "up\n")
}

async fn an_answer_can_be_read_before_the_next_question(cx: Arc<Context>) -> Outcome {
    let mut spec = cx.shell("while read line; do echo \"got $line\"; done; echo the end");
    spec.stdin = true;
    let id = cx.create("talk", &spec).await?;
    let mut logs = cx.driver.logs(&id, true).await?;
    let (questions, asked) = tokio::sync::mpsc::channel(1);
    let stdin = tokio_stream::wrappers::ReceiverStream::new(asked).boxed();
    cx.driver.start_container(&id, Some(stdin)).await?;
    for question in ["one", "two", "three"] {
        // The driver reads its stream until the process has ended.
        let _ = questions.send(Ok(Bytes::from(format!("{question}\n")))).await;
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            let next = within(Duration::from_secs(20), "an answer", logs.next()).await?;
            let chunk = next.ok_or_else(|| crate::check::Failure::new("the log ended before the answer"))??;
            answer.push_str(&String::from_utf8_lossy(&chunk.bytes));
        }
        same("the answer", answer, format!("got {question}\n"))?;
    }
    drop(questions);
    same("what comes last", collect(logs).await?.stdout, b"the end\n".to_vec())?;
    same("its exit", cx.driver.wait_container(&id).await?, ExitStatus::Code(0))
}
