//! What the prelude's `native` is: the functions that lead out of the script, and what they wait for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use orchestra::OutputStream;
use rquickjs::function::Opt;
use rquickjs::{Ctx, Exception, Function, Object, Persistent, Promise, Runtime, Value};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::clock::Clock;
use super::modules::Modules;
use super::{Ask, Told};

/// More is a loop that has run away.
const MAX_ASKS: usize = 10_000;
/// Bytes of what is asked for and is not done yet: beyond the script's own memory they are kept more than once.
const MAX_ASKED: usize = 64 << 20;
const MAX_TIMERS: usize = 10_000;
/// A timer that is set for longer never fires anyhow.
const MAX_DELAY: f64 = 366.0 * 24.0 * 3600.0 * 1000.0;

type Saved<T> = Persistent<T>;
pub(super) type Threw = Saved<Value<'static>>;

struct Waiting {
    resolve: Saved<Function<'static>>,
    reject: Saved<Function<'static>>,
    output: Option<Saved<Function<'static>>>,
}

pub(super) struct Bridge {
    asks: mpsc::UnboundedSender<Ask>,
    /// Bytes that may be asked for.
    room: Arc<Semaphore>,
    says: mpsc::Sender<(OutputStream, Bytes)>,
    clock: Rc<Clock>,
    modules: Rc<Modules>,
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    timers: RefCell<BTreeMap<(Instant, u64), Saved<Function<'static>>>>,
    /// Promises that were rejected and that nobody looks at so far, with why.
    rejected: RefCell<Vec<(Threw, Threw)>>,
}

impl Bridge {
    pub(super) fn new(
        asks: mpsc::UnboundedSender<Ask>,
        says: mpsc::Sender<(OutputStream, Bytes)>,
        clock: Rc<Clock>,
        modules: Rc<Modules>,
    ) -> Self {
        Self {
            asks,
            room: Arc::new(Semaphore::new(MAX_ASKED)),
            says,
            clock,
            modules,
            next: Cell::new(1),
            waiting: RefCell::default(),
            timers: RefCell::default(),
            rejected: RefCell::default(),
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Notes rejections.
    pub(super) fn track(self: &Rc<Self>, runtime: &Runtime) {
        let bridge = Rc::downgrade(self);
        runtime.set_host_promise_rejection_tracker(Some(Box::new(move |ctx, promise, reason, handled| {
            let Some(bridge) = bridge.upgrade() else { return };
            let mut rejected = bridge.rejected.borrow_mut();
            if handled {
                rejected.retain(|(known, _)| known.clone().restore(&ctx).is_ok_and(|known| known != promise));
            } else if rejected.len() < MAX_ASKS {
                rejected.push((Persistent::save(&ctx, promise), Persistent::save(&ctx, reason)));
            }
        })));
    }

    /// Why the first promise was rejected that nobody looked at.
    pub(super) fn unhandled(&self) -> Option<Threw> {
        self.rejected.borrow().first().map(|(_, reason)| reason.clone())
    }

    fn id(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// The object that the prelude gets.
    pub(super) fn native<'js>(self: &Rc<Self>, ctx: &Ctx<'js>) -> rquickjs::Result<Object<'js>> {
        let native = Object::new(ctx.clone())?;
        let bridge = Rc::clone(self);
        let call = move |ctx: Ctx<'js>, op: String, args: String, output: Opt<Option<Function<'js>>>| {
            bridge.call(&ctx, op, args, output.0.flatten())
        };
        native.set("call", Function::new(ctx.clone(), call)?)?;
        let bridge = Rc::clone(self);
        let say = move |stream: i32, text: String| bridge.say(stream, text);
        native.set("say", Function::new(ctx.clone(), say)?)?;
        let modules = Rc::clone(&self.modules);
        let map = move |file: String, line: f64, column: f64| modules.place(&file, number(line), number(column));
        native.set("map", Function::new(ctx.clone(), map)?)?;
        let bridge = Rc::clone(self);
        let timer = move |ctx: Ctx<'js>, action: Function<'js>, delay: f64| bridge.timer(&ctx, action, delay);
        native.set("timer", Function::new(ctx.clone(), timer)?)?;
        let bridge = Rc::clone(self);
        let untimer = move |id: f64| {
            let id = u64::from(number(id));
            bridge.timers.borrow_mut().retain(|(_, known), _| *known != id);
        };
        native.set("untimer", Function::new(ctx.clone(), untimer)?)?;
        native.set("parseYaml", Function::new(ctx.clone(), parse_yaml)?)?;
        native.set("showYaml", Function::new(ctx.clone(), show_yaml)?)?;
        Ok(native)
    }

    fn call<'js>(
        &self,
        ctx: &Ctx<'js>,
        op: String,
        args: String,
        output: Option<Function<'js>>,
    ) -> rquickjs::Result<Promise<'js>> {
        if self.waiting.borrow().len() >= MAX_ASKS {
            return Err(Exception::throw_range(ctx, "there is too much to be done at once"));
        }
        let bytes = u32::try_from(args.len()).unwrap_or(u32::MAX);
        let Ok(share) = Arc::clone(&self.room).try_acquire_many_owned(bytes) else {
            let message = format!(
                "more than {} MiB is asked for at once: await some of it first",
                MAX_ASKED >> 20
            );
            return Err(Exception::throw_range(ctx, &message));
        };
        let (promise, resolve, reject) = Promise::new(ctx)?;
        let id = self.id();
        let wants_output = output.is_some();
        let waiting = Waiting {
            resolve: Persistent::save(ctx, resolve),
            reject: Persistent::save(ctx, reject),
            output: output.map(|output| Persistent::save(ctx, output)),
        };
        self.waiting.borrow_mut().insert(id, waiting);
        let ask = Ask {
            id,
            op,
            args,
            wants_output,
            share,
        };
        self.asks
            .send(ask)
            .map_err(|_| Exception::throw_internal(ctx, "the run has ended"))?;
        Ok(promise)
    }

    fn say(&self, stream: i32, text: String) {
        let stream = if stream == 2 {
            OutputStream::Stderr
        } else {
            OutputStream::Stdout
        };
        // Nobody reads it any more where this fails.
        self.clock
            .paused(|| self.says.blocking_send((stream, Bytes::from(text))).ok());
    }

    fn timer<'js>(&self, ctx: &Ctx<'js>, action: Function<'js>, delay: f64) -> rquickjs::Result<f64> {
        if self.timers.borrow().len() >= MAX_TIMERS {
            return Err(Exception::throw_range(ctx, "there are too many timers"));
        }
        let delay = Duration::from_secs_f64(delay.clamp(0.0, MAX_DELAY) / 1000.0);
        let id = self.id();
        let action = Persistent::save(ctx, action);
        self.timers.borrow_mut().insert((Instant::now() + delay, id), action);
        #[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
        Ok(id as f64)
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.borrow().keys().next().map(|(when, _)| *when)
    }

    pub(super) fn drop_timers(&self) {
        self.timers.borrow_mut().clear();
    }

    /// Whether the script waits for an answer.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    /// Lets go of all values.
    pub(super) fn clear(&self) {
        self.drop_timers();
        self.waiting.borrow_mut().clear();
        self.rejected.borrow_mut().clear();
    }

    /// Calls what waits for this.
    ///
    /// # Errors
    /// What a function of the script's threw.
    pub(super) fn take(&self, ctx: &Ctx<'_>, told: Told) -> Result<(), Threw> {
        let called = match told {
            Told::Cancelled => Ok(()),
            Told::Answer { id, result } => {
                let Some(waiting) = self.waiting.borrow_mut().remove(&id) else {
                    return Ok(());
                };
                let (settle, text) = match result {
                    Ok(text) => (waiting.resolve, text),
                    Err(text) => (waiting.reject, text),
                };
                settle.restore(ctx).and_then(|settle| settle.call::<_, ()>((text,)))
            }
            Told::Output { id, stream, text } => {
                let waiting = self.waiting.borrow();
                let Some(output) = waiting.get(&id).and_then(|waiting| waiting.output.clone()) else {
                    return Ok(());
                };
                drop(waiting);
                let stream = match stream {
                    OutputStream::Stdout => "stdout",
                    OutputStream::Stderr => "stderr",
                };
                output
                    .restore(ctx)
                    .and_then(|output| output.call::<_, ()>((stream, text)))
            }
        };
        called.map_err(|_| Persistent::save(ctx, ctx.catch()))
    }

    /// Calls the timers that are due.
    ///
    /// # Errors
    /// What one threw.
    pub(super) fn fire(&self, ctx: &Ctx<'_>) -> Result<(), Threw> {
        let now = Instant::now();
        let due = {
            let mut timers = self.timers.borrow_mut();
            let first = timers.keys().next().copied();
            first
                .filter(|(when, _)| *when <= now)
                .and_then(|key| timers.remove(&key))
        };
        let Some(action) = due else { return Ok(()) };
        let called = action.restore(ctx).and_then(|action| action.call::<_, ()>(()));
        called.map_err(|_| Persistent::save(ctx, ctx.catch()))
    }
}

/// A number of the script's as one of a line, a column or a timer.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what is out of range names nothing"
)]
fn number(value: f64) -> u32 {
    value as u32
}

fn parse_yaml(ctx: Ctx<'_>, text: String) -> rquickjs::Result<String> {
    let value: Result<serde_json::Value, _> = serde_saphyr::from_str(&text);
    match value {
        Ok(value) => Ok(value.to_string()),
        Err(error) => Err(Exception::throw_syntax(&ctx, &format!("yaml.parse: {error}"))),
    }
}

fn show_yaml(ctx: Ctx<'_>, json: String) -> rquickjs::Result<String> {
    let shown = serde_json::from_str::<serde_json::Value>(&json)
        .map_err(|error| error.to_string())
        .and_then(|value| serde_saphyr::to_string(&value).map_err(|error| error.to_string()));
    shown.map_err(|error| Exception::throw_type(&ctx, &format!("yaml.stringify: {error}")))
}
