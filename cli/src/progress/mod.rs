//! Progress: events come in over a channel and go out as a redrawn screen, plain lines or JSON.
//!
//! Writing can block, on a terminal that was paused as on a reader that is slow, so it has a thread of its own. Events wait
//! for it in a bounded channel, and the run for them: what can't be shown is not run ahead of. Two things end that:
//! a reader that has gone away cancels the run, and a run that was cancelled waits only so long for its reader.

mod names;
mod plain;
#[cfg(test)]
mod recorded;
mod summary;
mod terminal;
mod text;
mod update;

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use indicatif::MultiProgress;
use orchestra::JobId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub(crate) use update::{Activity, Shown, StepEnd, StepId, Update, building, engine};

use crate::args::ShowArgs;
use crate::console::Console;

/// How many events may wait in a queue on their way to the display. One of output holds up to 64 KiB, so that a reader
/// who is slow costs a mebibyte a queue.
pub(crate) const WAITING: usize = 16;
/// How long a run that was cancelled waits for a reader that does not read.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 3000 });

/// Shows updates to people.
pub(crate) trait Renderer: Send {
    /// Shows one.
    fn show(&mut self, update: Update) -> io::Result<()>;
    /// Brings out what is not out yet; called when nothing else waits.
    fn flush(&mut self) -> io::Result<()>;
}

/// Where plain lines go: where the command's result goes, or beside it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Log {
    Stdout,
    Stderr,
}

/// What goes to the writing thread.
enum Item<E> {
    Event(E),
    /// Something the program itself has to say.
    Note(String),
}

/// How events are written.
enum Writing {
    Json(BufWriter<io::Stdout>),
    People(Box<dyn Renderer>),
}

impl Writing {
    fn choose(args: ShowArgs, log: Log) -> Self {
        let console = Console::detect();
        if args.json {
            return Self::Json(BufWriter::new(io::stdout()));
        }
        // The program's own log goes to standard error, through any screen that is drawn there.
        if console.interactive && !args.plain && !crate::log::is_on() {
            return Self::People(Box::new(terminal::Terminal::new(MultiProgress::new(), console.stderr)));
        }
        let (out, theme, terminal): (Box<dyn Write + Send>, _, _) = match log {
            Log::Stdout => (Box::new(io::stdout()), console.stdout, console.stdout_is_terminal),
            Log::Stderr => (Box::new(io::stderr()), console.stderr, console.stderr_is_terminal),
        };
        Self::People(Box::new(plain::Plain::new(
            BufWriter::new(out),
            io::stderr(),
            theme,
            terminal,
        )))
    }

    fn write<E: Shown>(&mut self, item: Item<E>) -> io::Result<()> {
        match (self, item) {
            (Self::Json(out), Item::Event(event)) => {
                serde_json::to_writer(&mut *out, &event)?;
                out.write_all(b"\n")
            }
            // Standard output has events alone.
            (Self::Json(_), Item::Note(note)) => {
                writeln!(io::stderr(), "{note}").ok();
                Ok(())
            }
            (Self::People(renderer), Item::Event(event)) => {
                event.update().map_or(Ok(()), |update| renderer.show(update))
            }
            (Self::People(renderer), Item::Note(message)) => renderer.show(Update::Warning { message }),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Json(out) => out.flush(),
            Self::People(renderer) => renderer.flush(),
        }
    }
}

/// Progress that is being shown.
pub(crate) struct Display<E> {
    events: mpsc::Sender<E>,
    notes: mpsc::Sender<String>,
    jobs: watch::Receiver<Vec<JobId>>,
    shown: JoinHandle<()>,
}

impl<E: Shown> Display<E> {
    /// Shows what is sent to [`events`](Self::events). When nobody reads it any more, `cancel` is cancelled.
    pub(crate) fn start(args: ShowArgs, log: Log, cancel: CancellationToken) -> Self {
        let (events, incoming) = mpsc::channel(WAITING);
        let (notes, noted) = mpsc::channel(4);
        let (began, jobs) = watch::channel(Vec::new());
        let shown = tokio::spawn(forward(
            incoming,
            noted,
            move || Writing::choose(args, log),
            began,
            cancel,
        ));
        Self {
            events,
            notes,
            jobs,
            shown,
        }
    }

    /// Where events are sent to.
    pub(crate) fn events(&self) -> mpsc::Sender<E> {
        self.events.clone()
    }

    /// Where the program itself says something.
    pub(crate) fn notes(&self) -> mpsc::Sender<String> {
        self.notes.clone()
    }

    /// The jobs that were begun, of which several may run.
    pub(crate) fn jobs(&self) -> watch::Receiver<Vec<JobId>> {
        self.jobs.clone()
    }

    /// Waits until everything is written. All other senders must be gone.
    pub(crate) async fn finish(self) {
        drop((self.events, self.notes));
        self.shown.await.ok();
    }
}

/// Hands events to the writing thread and looks after it.
async fn forward<E: Shown>(
    mut events: mpsc::Receiver<E>,
    mut notes: mpsc::Receiver<String>,
    writing: impl FnOnce() -> Writing + Send + 'static,
    jobs: watch::Sender<Vec<JobId>>,
    cancel: CancellationToken,
) {
    let (items, received) = mpsc::channel(WAITING);
    let (ended, mut end) = oneshot::channel();
    std::thread::spawn(move || {
        let outcome = write_all(writing(), received);
        ended.send(outcome).ok();
    });
    let mut lost = false;
    loop {
        let item = tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(event) => Item::Event(event),
                None => break,
            },
            Some(note) = notes.recv() => Item::Note(note),
        };
        if let Item::Event(event) = &item
            && let Some(began) = event.job()
        {
            jobs.send_modify(|jobs| jobs.push(began.clone()));
        }
        if lost {
            continue;
        }
        tokio::select! {
            biased;
            sent = items.send(item) => if sent.is_err() {
                lost = true;
                cancel.cancel();
            },
            () = out_of_patience(&cancel) => lost = true,
        }
    }
    drop(items);
    let outcome = tokio::select! {
        outcome = &mut end => outcome,
        () = out_of_patience(&cancel) => return,
    };
    if let Ok(Err(error)) = outcome
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        writeln!(io::stderr(), "error: write the progress: {error}").ok();
    }
}

async fn out_of_patience(cancel: &CancellationToken) {
    cancel.cancelled().await;
    sleep(PATIENCE).await;
}

/// Writes until there is nothing more to come, or nobody takes it.
fn write_all<E: Shown>(mut writing: Writing, mut items: mpsc::Receiver<Item<E>>) -> io::Result<()> {
    while let Some(item) = items.blocking_recv() {
        writing.write(item)?;
        while let Ok(item) = items.try_recv() {
            writing.write(item)?;
        }
        writing.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, sync_channel};

    #[derive(serde::Serialize)]
    struct Said(&'static str);

    impl Shown for Said {
        fn update(self) -> Option<Update> {
            Some(Update::Warning {
                message: self.0.to_owned(),
            })
        }
    }

    /// A reader that takes one message for each that it is allowed, and goes away when told so.
    struct Reader(Receiver<io::Result<()>>);

    impl Renderer for Reader {
        fn show(&mut self, _: Update) -> io::Result<()> {
            self.0.recv().unwrap_or_else(|_| {
                loop {
                    std::thread::park()
                }
            })
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn send_until_cancelled(answers: Vec<io::Result<()>>) -> (CancellationToken, bool) {
        let cancel = CancellationToken::new();
        let (events, incoming) = mpsc::channel(WAITING);
        let (_notes, noted) = mpsc::channel(1);
        let (allow, allowed) = sync_channel(answers.len());
        answers.into_iter().for_each(|answer| allow.send(answer).unwrap());
        drop(allow);
        let shown = tokio::spawn(forward(
            incoming,
            noted,
            || Writing::People(Box::new(Reader(allowed))),
            watch::channel(Vec::new()).0,
            cancel.clone(),
        ));
        let sending = async {
            for _ in 0..WAITING * 4 {
                events.send(Said("x")).await.unwrap();
            }
        };
        let all_sent = tokio::time::timeout(Duration::from_secs(1), sending).await.is_ok();
        drop(events);
        if all_sent {
            shown.await.unwrap();
        }
        (cancel, all_sent)
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_cancels_the_run_which_can_still_end() {
        let (cancel, all_sent) = send_until_cancelled(vec![Ok(()), Err(io::ErrorKind::BrokenPipe.into())]).await;
        assert!(cancel.is_cancelled() && all_sent);
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_slows_the_run_and_loses_nothing() {
        let (cancel, all_sent) = send_until_cancelled(vec![Ok(())]).await;
        assert!(!cancel.is_cancelled() && !all_sent, "events went ahead of their reader");
    }

    #[tokio::test]
    async fn a_run_that_was_cancelled_does_not_wait_for_a_reader_for_ever() {
        let cancel = CancellationToken::new();
        let (events, incoming) = mpsc::channel(1);
        let (_notes, noted) = mpsc::channel(1);
        let (_allow, allowed) = sync_channel(0);
        let shown = tokio::spawn(forward(
            incoming,
            noted,
            || Writing::People(Box::new(Reader(allowed))),
            watch::channel(Vec::new()).0,
            cancel.clone(),
        ));
        cancel.cancel();
        for _ in 0..WAITING * 4 {
            events.send(Said("x")).await.unwrap();
        }
        drop(events);
        shown.await.unwrap();
    }
}
