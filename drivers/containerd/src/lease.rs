//! Leases: what is made under one is left alone by containerd's garbage collector until the lease is deleted, so that
//! it never takes half of an image.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use orchestra::{JobId, Labels, Liveness, Result, Runner, labels};

use crate::client::Client;
use crate::error::{Subject, about};

/// After this containerd drops a lease whose maker was killed, as its own client has it, if no job has ended since on its
/// maker's machine.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease, deleted when this is dropped, if it is not [left](Self::leave).
#[derive(Debug)]
pub(crate) struct Lease {
    /// A client whose requests are under the lease.
    pub(crate) client: Client,
    id: String,
    ended: bool,
}

impl Lease {
    /// A new lease of this process, and of the job that the labels name, if they name one.
    pub(crate) async fn new(client: &Client, ownership: &Labels) -> Result<Self> {
        let id = format!("orchestra-{}", JobId::unique());
        let mut own = HashMap::from([(labels::RUNNER.to_owned(), Runner::current().to_string())]);
        if let Some(job) = ownership.get(labels::JOB) {
            own.insert(labels::JOB.to_owned(), job.clone());
        }
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

    /// Leaves it to the end of its job, or of this process.
    pub(crate) fn leave(mut self) {
        self.ended = true;
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

/// Deletes the leases of a job that has ended, and those of processes that have died: a pull may belong to no job.
pub(crate) async fn delete_of(client: &Client, job: &JobId) -> Result<()> {
    let filters = vec![format!("labels.{:?}", labels::RUNNER)];
    let request = containerd_client::services::v1::ListRequest { filters };
    let found = client.leases().list(client.request(request)).await;
    let mut left = found.map_err(about(Subject::Engine))?.into_inner().leases;
    left.retain(|lease| is_left(&lease.labels, job));
    let last = left.len();
    for (number, lease) in (1..).zip(left) {
        // One wait for containerd's collector serves all.
        delete(client, lease.id, number == last).await;
    }
    Ok(())
}

fn is_left(own: &HashMap<String, String>, ended: &JobId) -> bool {
    let runner = || own.get(labels::RUNNER)?.parse::<Runner>().ok();
    own.get(labels::JOB).is_some_and(|job| job == ended.as_str())
        || runner().is_some_and(|runner| runner.liveness() == Liveness::Dead)
}

#[cfg(test)]
mod tests {
    use orchestra::{GcOptions, collect_garbage};

    use super::*;
    use crate::testing;

    #[test]
    fn what_a_dead_process_had_is_left_and_what_a_living_one_has_is_not() {
        let alive = Runner::current().to_string();
        let dead = alive.rsplit_once('/').unwrap().0.to_owned() + "/1";
        let (ended, other) = (JobId::unique(), JobId::unique());
        let of = |runner: &str, job: Option<&JobId>| {
            let runner = (labels::RUNNER.to_owned(), runner.to_owned());
            let job = job.map(|job| (labels::JOB.to_owned(), job.to_string()));
            [runner].into_iter().chain(job).collect::<HashMap<_, _>>()
        };
        for (own, left) in [
            (of(&alive, None), false),
            (of(&alive, Some(&other)), false),
            (of(&alive, Some(&ended)), true),
            (of(&dead, None), true),
            (of(&dead, Some(&other)), true),
            (of("elsewhere/boot/1/2/3", None), false),
            (of("nonsense", None), false),
        ] {
            assert_eq!(is_left(&own, &ended), left, "{own:?}");
        }
    }

    #[tokio::test]
    async fn a_lease_of_a_process_that_died_goes_with_the_garbage() {
        let Some(driver) = testing::driver().await else {
            return;
        };
        let client = &driver.client;
        let alive = Lease::new(client, &Labels::new()).await.unwrap();
        let dead = Runner::current().to_string().rsplit_once('/').unwrap().0.to_owned() + "/1";
        let left = format!("orchestra-{}", JobId::unique());
        let request = CreateRequest {
            id: left.clone(),
            labels: HashMap::from([(labels::RUNNER.to_owned(), dead)]),
        };
        client.leases().create(client.request(request)).await.unwrap();
        collect_garbage(&driver, GcOptions::default()).await.unwrap();
        let list = containerd_client::services::v1::ListRequest::default();
        let there = client.leases().list(client.request(list)).await.unwrap().into_inner();
        let there: Vec<String> = there.leases.into_iter().map(|lease| lease.id).collect();
        assert!(
            there.iter().any(|id| id == alive.id()) && !there.contains(&left),
            "{there:?}"
        );
        alive.end().await;
    }
}
