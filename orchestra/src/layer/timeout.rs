//! Deadlines: nobody waits for ever for an engine that died or hangs.
//!
//! A call has a deadline. A transfer has none in all, but one for silence: it goes on as long as it moves. Where silence
//! is normal (a container that computes for hours), the engine is asked now and then whether it is there at all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Future, StreamExt};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Hook, Method, Operation};
use crate::{ByteStream, Driver, Error, ErrorKind, Result, SharedDriver};

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// For a call that changes or asks something small; 60 s.
    pub call: Duration,
    /// For a call in which an engine may have much to do: making, starting and removing a container, removing a volume
    /// with all its files, ending a job; 5 min.
    pub work: Duration,
    /// For silence in a transfer: a pull, an import, a volume's content; 5 min.
    pub silence: Duration,
    /// After how much silence of a container the engine is asked whether it is alive; 30 s. It has [`ping`](Self::ping) to answer.
    pub heartbeat: Duration,
    /// For the answer to a ping; 20 s.
    pub ping: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(60),
            work: Duration::from_secs(300),
            silence: Duration::from_secs(300),
            heartbeat: Duration::from_secs(30),
            ping: Duration::from_secs(20),
        }
    }
}

/// Ends calls and streams that go over their [`Deadlines`] with [`ErrorKind::DeadlineExceeded`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeouts(pub Deadlines);

fn late(what: &str, limit: Duration) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, format!("{what} within {limit:?}"))
}

impl Timeouts {
    fn deadline(&self, method: Method) -> Duration {
        match method {
            Method::Ping => self.0.ping,
            Method::CreateContainer
            | Method::StartContainer
            | Method::RemoveContainer
            | Method::RemoveVolume
            | Method::EndJob => self.0.work,
            // The engine may answer only when it knows the image's manifest, or has packed the first file.
            Method::PullImage | Method::ReadVolume => self.0.silence,
            _ => self.0.call,
        }
    }
}

/// Whether the engine answers within the ping's time.
async fn heartbeat(driver: &dyn Driver, deadlines: Deadlines) -> Result<()> {
    match timeout(deadlines.ping, driver.ping()).await {
        Ok(alive) => alive,
        Err(_) => Err(late("the engine did not answer a ping", deadlines.ping)),
    }
}

/// Waits for `call` as long as the engine lives.
async fn while_alive<T>(driver: &dyn Driver, deadlines: Deadlines, call: impl Future<Output = T>) -> Result<T> {
    let mut call = std::pin::pin!(call);
    loop {
        match timeout(deadlines.heartbeat, &mut call).await {
            Ok(done) => return Ok(done),
            Err(_) => heartbeat(driver, deadlines).await?,
        }
    }
}

#[async_trait]
impl Hook for Timeouts {
    fn name(&self) -> &'static str {
        "timeout"
    }

    async fn call<'a, T: Send + 'a>(
        &'a self,
        driver: &'a SharedDriver,
        operation: &'a Operation,
        call: BoxFuture<'a, Result<T>>,
    ) -> Result<T> {
        if operation.method == Method::WaitContainer {
            return while_alive(driver.as_ref(), self.0, call).await?;
        }
        let deadline = self.deadline(operation.method);
        match timeout(deadline, call).await {
            Ok(result) => result,
            Err(_) => Err(late("the engine did not answer", deadline)),
        }
    }

    async fn call_with_input<'a, T: Send + 'a>(
        &'a self,
        _driver: &'a SharedDriver,
        _operation: &'a Operation,
        input: ByteStream,
        call: Box<dyn FnOnce(ByteStream) -> BoxFuture<'a, Result<T>> + Send + 'a>,
    ) -> Result<T> {
        let silence = self.0.silence;
        let moved = Arc::new(Mutex::new(Instant::now()));
        let last = |moved: &Mutex<Instant>| *moved.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = moved.clone();
        let input = input
            .inspect(move |_| *seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now())
            .boxed();
        let mut call = call(input);
        loop {
            let limit = last(&moved) + silence;
            tokio::select! {
                result = &mut call => return result,
                () = sleep_until(limit), if limit > Instant::now() => {}
                () = std::future::ready(()), if limit <= Instant::now() => return Err(late("the transfer did not move", silence)),
            }
        }
    }

    fn stream<T: Send + 'static>(
        &self,
        driver: &SharedDriver,
        operation: &Operation,
        stream: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let (driver, deadlines) = (driver.clone(), self.0);
        let quiet = matches!(operation.method, Method::Logs | Method::Exec);
        let step = move |state: Option<BoxStream<'static, Result<T>>>| {
            let driver = driver.clone();
            async move {
                let mut stream = state?;
                let next = if quiet {
                    while_alive(driver.as_ref(), deadlines, stream.next()).await
                } else {
                    timeout(deadlines.silence, stream.next())
                        .await
                        .map_err(|_| late("the transfer did not move", deadlines.silence))
                };
                match next {
                    Ok(item) => Some((item?, Some(stream))),
                    Err(error) => Some((Err(error), None)),
                }
            }
        };
        stream::unfold(Some(stream), step).boxed()
    }
}
