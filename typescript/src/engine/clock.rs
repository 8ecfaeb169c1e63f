//! How long a script computes. Waiting, for containers or for its own output to be read, does not count.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the time is looked at: the interpreter asks some hundred thousand times a second.
const EVERY: u32 = 64;

#[derive(Debug)]
pub(super) struct Clock {
    limit: Duration,
    used: Cell<Duration>,
    since: Cell<Option<Instant>>,
    asked: Cell<u32>,
    over: Cell<bool>,
    /// Until when it may compute, while it does: the interpreter asks for nothing within a function of its own.
    until: watch::Sender<Option<Instant>>,
    /// Ends a script that computes on although it was told to end.
    stop: CancellationToken,
}

impl Clock {
    pub(super) fn new(limit: Duration, until: watch::Sender<Option<Instant>>, stop: CancellationToken) -> Self {
        Self {
            limit,
            used: Cell::default(),
            since: Cell::default(),
            asked: Cell::default(),
            over: Cell::default(),
            until,
            stop,
        }
    }

    pub(super) fn start(&self) {
        let now = Instant::now();
        self.since.set(Some(now));
        self.until
            .send_replace(now.checked_add(self.limit.saturating_sub(self.used.get())));
    }

    pub(super) fn stop(&self) {
        if let Some(since) = self.since.take() {
            self.used.set(self.used.get() + since.elapsed());
            self.until.send_replace(None);
        }
    }

    /// Runs something that waits.
    pub(super) fn paused<T>(&self, wait: impl FnOnce() -> T) -> T {
        let computed = self.since.get().is_some();
        self.stop();
        let value = wait();
        if computed {
            self.start();
        }
        value
    }

    /// Whether the script has to end now. Asked by the interpreter all the time.
    pub(super) fn must_end(&self) -> bool {
        self.asked.set(self.asked.get().wrapping_add(1));
        if !self.over.get() && self.asked.get().is_multiple_of(EVERY) {
            let now = self.since.get().map_or(Duration::ZERO, |since| since.elapsed());
            self.over.set(self.used.get() + now > self.limit);
        }
        self.over.get() || self.stop.is_cancelled()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }
}
