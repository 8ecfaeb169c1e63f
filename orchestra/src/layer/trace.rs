//! Tells `tracing` what is called.

use std::time::Instant;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tracing::Instrument;

use super::{Hook, Operation};
use crate::{Result, SharedDriver};

/// A debug span for each call, with its subject, and an event with how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Tracing;

#[async_trait]
impl Hook for Tracing {
    fn name(&self) -> &'static str {
        "tracing"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return call.await;
        }
        let subject = operation.subject.as_ref().map(|(_, subject)| subject.as_str());
        let span = tracing::debug_span!("driver", method = operation.method.as_str(), subject);
        let began = Instant::now();
        let result = call.instrument(span.clone()).await;
        let elapsed = began.elapsed();
        match &result {
            Ok(_) => tracing::debug!(parent: &span, ?elapsed, "done"),
            Err(error) => tracing::debug!(parent: &span, ?elapsed, %error, "failed"),
        }
        result
    }
}
