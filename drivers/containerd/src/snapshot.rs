//! Snapshots: an image's layers unpacked one over the other, and the writable layer of each container on top.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use containerd_client::services::v1::{AddResourceRequest, ApplyRequest, Info, Resource, UpdateRequest};
use containerd_client::tonic::Code;
use containerd_client::types::{Descriptor, Mount};
use oci_spec::image::Digest;
use orchestra::{Error, ErrorKind, JobId, Labels, Result, labels};
use orchestra_oci::image::Image;
use prost_types::FieldMask;

use crate::client::Client;
use crate::error::{Subject, about};

/// One snapshotter's snapshots, through a client whose lease holds what is made.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    pub(crate) client: Client,
    pub(crate) snapshotter: String,
}

impl Snapshots {
    /// A writable layer over the image's, or `None` if the image is not unpacked (whole).
    pub(crate) async fn prepare(&self, key: &str, image: &Image, ownership: &Labels) -> Result<Option<Vec<Mount>>> {
        let parent = image.chain_ids().last().map(ToString::to_string).unwrap_or_default();
        let own = |(label, value): (&String, &String)| (label == labels::JOB).then(|| (label.clone(), value.clone()));
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent,
            labels: ownership.iter().filter_map(own).collect(),
        };
        match self.client.snapshots().prepare(self.client.request(request)).await {
            Ok(answer) => Ok(Some(answer.into_inner().mounts)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(about(Subject::Snapshot)(status)),
        }
    }

    /// What is to be mounted to see a writable layer.
    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let request = MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        let answer = self.client.snapshots().mounts(self.client.request(request)).await;
        Ok(answer.map_err(about(Subject::Snapshot))?.into_inner().mounts)
    }

    /// Removes a writable layer; one that is not there is success.
    pub(crate) async fn remove(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        match self.client.snapshots().remove(self.client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Snapshot)(status)),
            _ => Ok(()),
        }
    }

    /// Holds what the image is unpacked to by the lease, and tells whether it is there.
    async fn hold(&self, lease: &str, chain: &str) -> Result<bool> {
        let resource = Resource {
            id: chain.to_owned(),
            r#type: format!("snapshots/{}", self.snapshotter),
        };
        let request = AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(resource),
        };
        let held = self.client.leases().add_resource(self.client.request(request)).await;
        held.map_err(about(Subject::Snapshot))?;
        self.has(chain).await
    }

    async fn has(&self, chain: &str) -> Result<bool> {
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: chain.to_owned(),
        };
        match self.client.snapshots().stat(self.client.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(about(Subject::Snapshot)(status)),
        }
    }

    /// Whether the whole image is unpacked; if so, it stays as long as the lease does.
    pub(crate) async fn is_unpacked(&self, lease: &str, image: &Image) -> Result<bool> {
        match image.chain_ids().last() {
            Some(top) => self.hold(lease, top.as_ref()).await,
            None => Ok(true),
        }
    }

    /// Unpacks the layer at `place`, whose content and whose lower layers are there.
    pub(crate) async fn unpack(&self, lease: &str, image: &Image, chain_ids: &[Digest], place: usize) -> Result<()> {
        let (Some(chain), Some(layer)) = (chain_ids.get(place), image.layers.get(place)) else {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("the image has no layer {place}"),
            ));
        };
        let chain = chain.to_string();
        // Held by the lease: the image that it was unpacked for may be removed before the layers above are here.
        if self.has(&chain).await? && self.hold(lease, &chain).await? {
            return Ok(());
        }
        let key = format!("orchestra-unpack-{}", JobId::unique());
        let below = place.checked_sub(1).and_then(|below| chain_ids.get(below));
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: below.map(ToString::to_string).unwrap_or_default(),
            labels: HashMap::new(),
        };
        let prepared = self.client.snapshots().prepare(self.client.request(request)).await;
        let mounts = prepared.map_err(about(Subject::Snapshot))?.into_inner().mounts;
        let applied = self.apply(image, layer, place, mounts).await;
        if let Err(error) = applied {
            // What the lease would take too, but at its end only.
            self.remove(&key).await.ok();
            return Err(error);
        }
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: chain,
            key: key.clone(),
            labels: HashMap::new(),
        };
        match self.client.snapshots().commit(self.client.request(request)).await {
            // Somebody else unpacked the same layer meanwhile.
            Err(status) if status.code() == Code::AlreadyExists => self.remove(&key).await,
            committed => committed.map(drop).map_err(about(Subject::Snapshot)),
        }
    }

    async fn apply(
        &self,
        image: &Image,
        layer: &oci_spec::image::Descriptor,
        place: usize,
        mounts: Vec<Mount>,
    ) -> Result<()> {
        let request = ApplyRequest {
            diff: Some(descriptor(layer)),
            mounts,
            payloads: HashMap::new(),
            sync_fs: false,
        };
        let applied = self.client.diff().apply(self.client.request(request)).await;
        let applied = applied.map_err(|status| {
            let error = about(Subject::Content)(status);
            error.with("layer", layer.digest())
        })?;
        let unpacked = applied.into_inner().applied.unwrap_or_default().digest;
        match image.diff_ids.get(place) {
            Some(diff_id) if diff_id.as_ref() != unpacked => Err(Error::invalid(format!(
                "a layer of the image is {unpacked} unpacked, and {diff_id} by the image's configuration"
            ))
            .with("layer", layer.digest())),
            _ => Ok(()),
        }
    }

    /// Makes the image's configuration, and so whatever holds it, hold what the image is unpacked to.
    pub(crate) async fn keep(&self, image: &Image) -> Result<()> {
        let Some(top) = image.chain_ids().last().map(ToString::to_string) else {
            return Ok(());
        };
        let label = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
        let request = UpdateRequest {
            info: Some(Info {
                digest: image.config_descriptor.digest().to_string(),
                labels: HashMap::from([(label.clone(), top)]),
                ..Info::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec![format!("labels.{label}")],
            }),
        };
        let updated = self.client.content().update(self.client.request(request)).await;
        updated.map(drop).map_err(about(Subject::Content))
    }
}

/// A descriptor as containerd's API has it.
pub(crate) fn descriptor(descriptor: &oci_spec::image::Descriptor) -> Descriptor {
    Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string(),
        size: i64::try_from(descriptor.size()).unwrap_or(i64::MAX),
        annotations: HashMap::new(),
    }
}
