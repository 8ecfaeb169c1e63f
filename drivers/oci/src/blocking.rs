//! Work on files, off the threads that drive futures.

use orchestra::{Error, Result};

/// What `work` answers.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(error) => Err(Error::io("work on files", std::io::Error::other(error))),
    }
}
