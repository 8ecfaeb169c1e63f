//! Says in every error which method, driver and resource it was.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};

use super::{Hook, Operation};
use crate::{Error, Result, SharedDriver};

/// Adds operation, driver and resource to errors of calls and of the streams they return.
#[derive(Clone, Copy, Debug)]
pub struct ErrorContext;

fn add(error: Error, driver: &str, operation: &Operation) -> Error {
    let error = error.during(operation.method.as_str()).on_driver(driver);
    match &operation.subject {
        Some((kind, subject)) => error.with(kind, subject),
        None => error,
    }
}

#[async_trait]
impl Hook for ErrorContext {
    fn name(&self) -> &'static str {
        "context"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        call.await.map_err(|error| add(error, &driver.info().driver, operation))
    }

    fn stream<T: Send + 'static>(
        &self,
        driver: &SharedDriver,
        operation: &Operation,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let (name, operation) = (driver.info().driver.clone(), operation.clone());
        stream.map_err(move |error| add(error, &name, &operation)).boxed()
    }
}
