//! Leases: what is made under one is left alone by containerd's garbage collector until the lease is deleted, so that
//! it never takes half of an image.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use orchestra::{JobId, Labels, Result, labels};

use crate::client::Client;
use crate::error::{Subject, about};

/// After this containerd drops a lease whose maker was killed, as its own client has it.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease, deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    /// A client whose requests are under the lease.
    pub(crate) client: Client,
    id: String,
    ended: bool,
}

impl Lease {
    /// A new lease, with the ownership labels of what it is for.
    pub(crate) async fn new(client: &Client, ownership: &Labels) -> Result<Self> {
        let id = format!("orchestra-{}", JobId::unique());
        let mut own: HashMap<String, String> = ownership
            .iter()
            .filter(|(key, _)| [labels::JOB, labels::RUNNER].contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        // As RFC 3339 has it, which containerd reads.
        let expiry = (jiff::Timestamp::now() + EXPIRY).to_string();
        own.insert("containerd.io/gc.expire".to_owned(), expiry);
        let request = CreateRequest {
            id: id.clone(),
            labels: own,
        };
        let leased = client.with_lease(&id)?;
        client
            .leases()
            .create(client.request(request))
            .await
            .map_err(about(Subject::Engine))?;
        Ok(Self {
            client: leased,
            id,
            ended: false,
        })
    }

    /// Its name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Deletes the lease. What was made under it and is used by nothing goes at containerd's leisure.
    pub(crate) async fn end(mut self) {
        self.ended = true;
        delete(&self.client, self.id.clone(), false).await;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (client, id) = (self.client.clone(), std::mem::take(&mut self.id));
        // Without a runtime there is nothing to be done: the lease expires.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { delete(&client, id, true).await });
        }
    }
}

/// Deletes a lease; one that can't be deleted expires.
async fn delete(client: &Client, id: String, sync: bool) {
    let request = DeleteRequest { id, sync };
    if let Err(error) = client.leases().delete(client.request(request)).await {
        tracing::debug!(%error, "a lease is left to expire");
    }
}

/// Deletes the leases that a dead process has left of a job.
pub(crate) async fn delete_of(client: &Client, job: &JobId) -> Result<()> {
    let filters = vec![format!("labels.{:?}=={:?}", labels::JOB, job.as_str())];
    let request = containerd_client::services::v1::ListRequest { filters };
    let found = client.leases().list(client.request(request)).await;
    for lease in found.map_err(about(Subject::Engine))?.into_inner().leases {
        delete(client, lease.id, true).await;
    }
    Ok(())
}
