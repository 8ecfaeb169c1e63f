//! Keeps an engine from being asked too much at once.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::{Hook, Method, Operation};
use crate::{Error, ErrorKind, Result, SharedDriver};

/// Lets so many calls through at once; others wait their turn, in order. Waiting for a container takes no place, nor do
/// streams after the call that opened them.
#[derive(Debug)]
pub struct ConcurrencyLimit(Semaphore);

impl ConcurrencyLimit {
    /// At most `calls` at once, at least one.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        Self(Semaphore::new(calls.clamp(1, Semaphore::MAX_PERMITS)))
    }
}

#[async_trait]
impl Hook for ConcurrencyLimit {
    fn name(&self) -> &'static str {
        "limit"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        if operation.method == Method::WaitContainer {
            return call.await;
        }
        let _place = self
            .0
            .acquire()
            .await
            .map_err(|_| Error::new(ErrorKind::Cancelled, "the concurrency limit was closed"))?;
        call.await
    }
}
