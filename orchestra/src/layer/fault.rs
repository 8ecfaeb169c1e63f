//! Faults on demand, for what a real engine will not do when a test wants it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, pending};
use futures_util::stream::{self, BoxStream};

use super::{Hook, Method, Operation};
use crate::{Error, ErrorKind, Result, SharedDriver};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails before the engine sees it.
    Before(ErrorKind),
    /// The engine does it, and its answer is lost.
    After(ErrorKind),
    /// The call never returns.
    Hang,
    /// The call takes so much longer.
    Delay(Duration),
    /// The stream the call returns breaks off with an error after so many items.
    CutStream(usize, ErrorKind),
    /// The stream the call returns goes silent after so many items.
    HangStream(usize),
}

#[derive(Debug)]
struct Planned {
    method: Method,
    skip: u32,
    times: u32,
    fault: Fault,
}

/// Faults to come, each met by the calls of one method.
///
/// ```
/// use orchestra::ErrorKind;
/// use orchestra::layer::{Fault, Faults, Method};
/// // The first removal fails, the second one works.
/// let faults = Faults::new().on(Method::RemoveContainer, Fault::Before(ErrorKind::Interrupted));
/// ```
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Planned>>);

impl Faults {
    /// No faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next call of `method` meets `fault`.
    #[must_use]
    pub fn on(self, method: Method, fault: Fault) -> Self {
        self.on_calls(method, 0, 1, fault)
    }

    /// After `skip` calls of `method` that go well, `times` calls meet `fault`.
    #[must_use]
    pub fn on_calls(self, method: Method, skip: u32, times: u32, fault: Fault) -> Self {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Planned {
            method,
            skip,
            times,
            fault,
        });
        self
    }

    fn next(&self, method: Method, streams: bool) -> Option<Fault> {
        let mut planned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_stream = |fault| matches!(fault, Fault::CutStream(..) | Fault::HangStream(_));
        let found = planned
            .iter_mut()
            .find(|p| p.method == method && p.times > 0 && of_stream(p.fault) == streams)?;
        if found.skip > 0 {
            found.skip -= 1;
            return None;
        }
        found.times -= 1;
        Some(found.fault)
    }
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "injected fault")
}

#[async_trait]
impl Hook for Faults {
    fn name(&self) -> &'static str {
        "faults"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        match self.next(operation.method, false) {
            Some(Fault::Before(kind)) => Err(injected(kind)),
            Some(Fault::After(kind)) => {
                call.await?;
                Err(injected(kind))
            }
            Some(Fault::Hang) => pending().await,
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                call.await
            }
            _ => call.await,
        }
    }

    fn stream<T: Send + 'static>(
        &self,
        _driver: &SharedDriver,
        operation: &Operation,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        match self.next(operation.method, true) {
            Some(Fault::CutStream(items, kind)) => stream
                .take(items)
                .chain(stream::once(async move { Err(injected(kind)) }))
                .boxed(),
            Some(Fault::HangStream(items)) => stream.take(items).chain(stream::pending()).boxed(),
            _ => stream,
        }
    }
}
