//! The interpreter: one thread that holds all of the script's values, and computes while nothing is waited for.
//!
//! It asks for what it wants done over a channel and goes on; answers, output and the end of the run come back over
//! another one, and become promises' values and calls of functions. So there is no lock, and no value is ever seen from
//! two threads.

mod bridge;
mod clock;
mod modules;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use orchestra::OutputStream;
use rquickjs::{CaughtError, Context, Ctx, Function, Persistent, Promise, Runtime, Value};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::bridge::Bridge;
use self::clock::Clock;
use self::modules::{Known, Modules};
use crate::graph::Graph;

const PRELUDE: &str = "orchestra:prelude";
const PRELUDE_TEXT: &str = include_str!("prelude.js");
/// What a script that was cancelled has left for its own cleaning up.
const GRACE: Duration = Duration::from_secs(5);
/// The interpreter's own measure of it; the thread has more, as native frames count for more.
const SCRIPT_STACK: usize = 1 << 20;
const THREAD_STACK: usize = 16 << 20;

/// What a script wants done.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) op: String,
    /// JSON.
    pub(crate) args: String,
    pub(crate) wants_output: bool,
    /// Its part of what all may have that is under way.
    pub(crate) share: OwnedSemaphorePermit,
}

/// What a script is told.
#[derive(Debug)]
pub(crate) enum Told {
    /// What came of something it wanted: JSON, either way.
    Answer { id: u64, result: Result<String, String> },
    /// What was written meanwhile.
    Output {
        id: u64,
        stream: OutputStream,
        text: String,
    },
    /// The run has to end.
    Cancelled,
}

/// How a script ended.
#[derive(Debug)]
pub(crate) enum Finish {
    Well,
    /// With an error that nobody caught.
    Threw(Thrown),
    TooLong,
    /// It waits for something that can't happen any more.
    Stuck,
    Cancelled,
    /// The interpreter itself failed.
    Broken(String),
}

#[derive(Debug, Deserialize)]
pub(crate) struct Thrown {
    pub(crate) text: String,
    /// Where a task failed, how.
    pub(crate) status: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Thrown {
    fn memory() -> Self {
        Self {
            text: "InternalError: out of memory".to_owned(),
            status: None,
            hint: None,
        }
    }
}

/// How much a script may use, and what it is told of its run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) memory: usize,
    pub(crate) time: Duration,
    /// JSON.
    pub(crate) context: String,
    /// The only job that is run.
    pub(crate) only: Option<String>,
}

/// The script's ends of all channels.
pub(crate) struct Channels {
    pub(crate) asks: mpsc::UnboundedSender<Ask>,
    pub(crate) says: mpsc::Sender<(OutputStream, Bytes)>,
    pub(crate) told: mpsc::Receiver<Told>,
    /// Until when it may compute, while it does.
    pub(crate) until: watch::Sender<Option<Instant>>,
}

/// Starts the thread. When `stop` is cancelled, it ends at once.
pub(crate) fn start(
    graph: Graph,
    settings: Settings,
    channels: Channels,
    stop: CancellationToken,
) -> std::io::Result<tokio::sync::oneshot::Receiver<Finish>> {
    let (done, finished) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("script".to_owned())
        .stack_size(THREAD_STACK);
    thread.spawn(move || {
        let finish = run(&graph, settings, channels, stop).unwrap_or_else(Finish::Broken);
        done.send(finish).ok();
    })?;
    Ok(finished)
}

fn run(graph: &Graph, settings: Settings, channels: Channels, stop: CancellationToken) -> Result<Finish, String> {
    let broken = |error: rquickjs::Error| format!("the script's interpreter: {error}");
    let waiting = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let waiting = waiting.map_err(|error| error.to_string())?;
    let runtime = Runtime::new().map_err(broken)?;
    runtime.set_memory_limit(settings.memory);
    runtime.set_max_stack_size(SCRIPT_STACK);
    let modules = Modules::new(graph);
    runtime.set_loader(Known(Rc::clone(&modules)), Known(Rc::clone(&modules)));
    let Channels {
        asks,
        says,
        told,
        until,
    } = channels;
    let clock = Rc::new(Clock::new(settings.time, until, stop.clone()));
    let watched = Rc::clone(&clock);
    runtime.set_interrupt_handler(Some(Box::new(move || watched.must_end())));
    let context = Context::full(&runtime).map_err(broken)?;
    let entry = graph.modules.get(&graph.entry).map(|module| module.name.clone());
    let bridge = Rc::new(Bridge::new(asks, says, Rc::clone(&clock), modules));
    bridge.track(&runtime);
    let begun = context.with(|ctx| begin(&ctx, &bridge, &settings, &entry.unwrap_or_default()));
    let outcome = match begun {
        Ok((main, tell)) => {
            let script = Script {
                runtime: &runtime,
                context: &context,
                bridge: &bridge,
                clock: &clock,
                main,
                tell,
                lost: Cell::new(false),
            };
            let finish = script.whole(&waiting, told, &stop);
            drop(script);
            Ok(finish)
        }
        Err(error) => Err(error),
    };
    // Values go before what they are of.
    bridge.clear();
    outcome
}

type Begun = (Persistent<Promise<'static>>, Persistent<Function<'static>>);

fn begin(ctx: &Ctx<'_>, bridge: &Rc<Bridge>, settings: &Settings, entry: &str) -> Result<Begun, String> {
    let begin = || -> rquickjs::Result<Begun> {
        let mut options = rquickjs::context::EvalOptions::default();
        options.filename = Some(PRELUDE.to_owned());
        let prelude: Function = ctx.eval_with_options(PRELUDE_TEXT, options)?;
        let native = bridge.native(ctx)?;
        native.set("context", settings.context.as_str())?;
        native.set("only", settings.only.as_deref())?;
        let made: rquickjs::Object = prelude.call((native,))?;
        let (start, tell): (Function, Function) = (made.get("start")?, made.get("told")?);
        bridge.clock().start();
        let main: rquickjs::Result<Promise> = start.call((entry,));
        bridge.clock().stop();
        Ok((Persistent::save(ctx, main?), Persistent::save(ctx, tell)))
    };
    begin().map_err(|error| format!("the script's globals: {}", CaughtError::from_error(ctx, error)))
}

/// A script that runs.
struct Script<'r> {
    runtime: &'r Runtime,
    context: &'r Context,
    bridge: &'r Rc<Bridge>,
    clock: &'r Rc<Clock>,
    main: Persistent<Promise<'static>>,
    tell: Persistent<Function<'static>>,
    /// Whether something that was to follow a promise did not.
    lost: Cell<bool>,
}

impl Script<'_> {
    /// Computes and waits by turns. No code of the script's runs within `waiting`, where nothing may block.
    fn whole(
        &self,
        waiting: &tokio::runtime::Runtime,
        mut told: mpsc::Receiver<Told>,
        stop: &CancellationToken,
    ) -> Finish {
        let mut patience = None;
        loop {
            self.compute();
            if let Some(finish) = self.finish(patience.is_some()) {
                return finish;
            }
            let timer = self.bridge.next_timer();
            let next = waiting.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    () = until(patience) => None,
                    event = told.recv() => event.map(Some),
                    () = until(timer) => Some(None),
                }
            });
            let Some(event) = next else { return Finish::Cancelled };
            if matches!(event, Some(Told::Cancelled)) {
                patience = Some(tokio::time::Instant::now() + GRACE);
                self.bridge.drop_timers();
            }
            self.clock.start();
            let called = self.context.with(|ctx| match event {
                Some(event) => self.bridge.take(&ctx, event),
                None => self.bridge.fire(&ctx),
            });
            self.clock.stop();
            if let Err(thrown) = called {
                return self.ended(thrown);
            }
        }
    }

    /// Runs all that can run now.
    fn compute(&self) {
        self.clock.start();
        while !self.clock.is_over() {
            match self.runtime.execute_pending_job() {
                Ok(true) => {}
                Ok(false) => break,
                // What no promise catches is an interruption, which the clock knows of, or that there is no memory left
                // for what follows a promise, which is then lost.
                Err(failed) => {
                    self.lost.set(true);
                    failed.0.with(|ctx| drop(ctx.catch()));
                }
            }
        }
        self.clock.stop();
    }

    fn finish(&self, cancelled: bool) -> Option<Finish> {
        if self.clock.is_over() {
            return Some(Finish::TooLong);
        }
        let asked = self.bridge.is_waited_for();
        if cancelled && !asked {
            return Some(Finish::Cancelled);
        }
        let thrown = self.context.with(|ctx| {
            let main = self.main.clone().restore(&ctx).ok()?;
            match main.result::<Value>() {
                None => None,
                Some(Ok(_)) => Some(None),
                Some(Err(_)) => Some(Some(Persistent::save(&ctx, ctx.catch()))),
            }
        });
        match thrown {
            Some(Some(thrown)) => Some(self.ended(thrown)),
            // What it began and did not wait for is waited for here.
            Some(None) if asked => None,
            Some(None) => Some(match self.bridge.unhandled() {
                Some(thrown) => self.ended(thrown),
                None => Finish::Well,
            }),
            None if asked || self.bridge.next_timer().is_some() => None,
            None => Some(match self.bridge.unhandled() {
                Some(thrown) => self.ended(thrown),
                None if self.lost.get() => Finish::Threw(Thrown::memory()),
                None => Finish::Stuck,
            }),
        }
    }

    /// The end by an error that nobody caught.
    fn ended(&self, thrown: Persistent<Value<'static>>) -> Finish {
        if self.clock.is_over() {
            return Finish::TooLong;
        }
        let told = self.context.with(|ctx| {
            let (thrown, tell) = (thrown.restore(&ctx).ok()?, self.tell.clone().restore(&ctx).ok()?);
            let text: Option<String> = tell.call((thrown,)).ok();
            serde_json::from_str::<Thrown>(&text?).ok()
        });
        // There may be no memory to say more.
        Finish::Threw(told.unwrap_or_else(Thrown::memory))
    }
}

async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
