//! Images: pulled and unpacked by this side into containerd's content store and snapshots, named in its image store.

use std::sync::Arc;

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image as Record, ListContainersRequest, ListImagesRequest,
    UpdateImageRequest,
};
use containerd_client::tonic::Code;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, Digest, MediaType};
use orchestra::{
    ByteStream, Error, ErrorKind, ImageRef, Labels, Platform, PullEvent, PullImage, PullStream, Result, labels,
};
use orchestra_oci::content::ContentStore;
use orchestra_oci::image::Image;
use orchestra_oci::{archive, registry};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::content::Content;
use crate::driver::ContainerdDriver;
use crate::error::{Subject, about};
use crate::lease::Lease;
use crate::snapshot;

/// Events that are kept for one who reads a pull's progress slowly.
const EVENTS: usize = 64;

/// How often a name that others give and take is tried for.
const ATTEMPTS: usize = 5;

impl ContainerdDriver {
    pub(crate) async fn pull(&self, pull: &PullImage) -> Result<PullStream> {
        self.info.capabilities.check_pull(pull)?;
        let (progress, events) = mpsc::channel(EVENTS);
        let (driver, pull) = (self.clone(), pull.clone());
        let task = tokio::spawn(async move { driver.fetch(&pull, progress).await });
        let state = (events, Some(AbortOnDropHandle::new(task)));
        let stream = stream::try_unfold(state, async |(mut events, mut task)| {
            if let Some(event) = events.recv().await {
                return Ok(Some((event, (events, task))));
            }
            match task.take() {
                Some(task) => ended(task.await).map(|()| None),
                None => Ok(None),
            }
        });
        Ok(stream.boxed())
    }

    async fn fetch(&self, pull: &PullImage, progress: mpsc::Sender<PullEvent>) -> Result<()> {
        let job = pull.job.iter().map(|job| (labels::JOB.to_owned(), job.to_string()));
        let lease = Lease::new(&self.client, &job.collect()).await?;
        match self.fetch_under(&lease, pull, progress).await {
            Ok(()) => {
                lease.end().await;
                Ok(())
            }
            Err(error) => {
                // What has come so far is there for the next try.
                if pull.job.is_some() && error.is_retryable() {
                    lease.leave();
                }
                Err(error)
            }
        }
    }

    async fn fetch_under(&self, lease: &Lease, pull: &PullImage, progress: mpsc::Sender<PullEvent>) -> Result<()> {
        let store: Arc<dyn ContentStore> = Arc::new(Content::new(lease.client.clone()));
        let resolved = registry::resolve(store, pull, &self.info.platform, progress).await?;
        let image = &resolved.image;
        let snapshots = self.snapshots(&lease.client);
        let chain_ids = image.chain_ids();
        let mut layers = resolved.layers();
        // Each layer is unpacked while the next ones still come.
        while let Some(place) = layers.try_next().await? {
            snapshots.unpack(lease.id(), image, &chain_ids, place).await?;
        }
        snapshots.keep(image).await?;
        self.name(&pull.image, &image.manifest).await
    }

    pub(crate) async fn import(&self, name: &ImageRef, archive: ByteStream) -> Result<()> {
        let lease = Lease::new(&self.client, &Labels::new()).await?;
        let store = Content::new(lease.client.clone());
        let image = archive::import(&store, archive, &self.info.platform).await?;
        self.unpack(&lease, &image).await?;
        self.name(name, &image.manifest).await?;
        lease.end().await;
        Ok(())
    }

    /// Unpacks what is not unpacked of an image whose content is there.
    pub(crate) async fn unpack(&self, lease: &Lease, image: &Image) -> Result<()> {
        let snapshots = self.snapshots(&lease.client);
        if !snapshots.is_unpacked(lease.id(), image).await? {
            let chain_ids = image.chain_ids();
            for place in 0..chain_ids.len() {
                snapshots.unpack(lease.id(), image, &chain_ids, place).await?;
            }
        }
        snapshots.keep(image).await
    }

    /// Gives the name to the image of `manifest`.
    async fn name(&self, name: &ImageRef, manifest: &Descriptor) -> Result<()> {
        let record = Record {
            name: name.canonical(),
            target: Some(snapshot::descriptor(manifest)),
            ..Record::default()
        };
        for _ in 0..ATTEMPTS {
            let create = CreateImageRequest {
                image: Some(record.clone()),
                source_date_epoch: None,
            };
            match self.client.images().create(self.client.request(create)).await {
                Err(status) if status.code() == Code::AlreadyExists => {}
                created => return created.map(drop).map_err(about(Subject::Image)),
            }
            let update = UpdateImageRequest {
                image: Some(record.clone()),
                update_mask: Some(FieldMask {
                    paths: vec!["target".to_owned()],
                }),
                source_date_epoch: None,
            };
            match self.client.images().update(self.client.request(update)).await {
                // Somebody took the name away meanwhile.
                Err(status) if status.code() == Code::NotFound => {}
                updated => return updated.map(drop).map_err(about(Subject::Image)),
            }
        }
        let message = format!("others give and take the name {name} all the time");
        Err(Error::new(ErrorKind::Conflict, message))
    }

    /// What the name points at.
    async fn target(&self, name: &ImageRef) -> Result<Option<Descriptor>> {
        let request = GetImageRequest { name: name.canonical() };
        let record = match self.client.images().get(self.client.request(request)).await {
            Ok(answer) => answer.into_inner().image.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(about(Subject::Image)(status)),
        };
        let target = record.target.unwrap_or_default();
        let digest: Digest = target.digest.parse().map_err(|error| {
            let message = format!("containerd has {:?} for the digest of {name}: {error}", target.digest);
            Error::new(ErrorKind::Protocol, message)
        })?;
        let size = u64::try_from(target.size).unwrap_or(0);
        let media_type = MediaType::from(target.media_type.as_str());
        Ok(Some(Descriptor::new(media_type, size, digest)))
    }

    pub(crate) async fn has_image(&self, name: &ImageRef) -> Result<bool> {
        Ok(self.target(name).await?.is_some())
    }

    /// The image of this name for a platform.
    pub(crate) async fn image(&self, name: &ImageRef, platform: Option<&Platform>) -> Result<Image> {
        let absent = || Error::new(ErrorKind::ImageNotFound, format!("containerd has no image {name}"));
        let target = self.target(name).await?.ok_or_else(absent)?;
        let image = self.load(&target, platform.unwrap_or(&self.info.platform)).await?;
        match platform {
            Some(wanted) if !image.fits(wanted) => {
                let message = format!("containerd has {name} for {}, not for {wanted}", image.platform());
                Err(Error::new(ErrorKind::ImageNotFound, message))
            }
            _ => Ok(image),
        }
    }

    /// The image that a digest stands for, which never changes: it is read once.
    async fn load(&self, target: &Descriptor, platform: &Platform) -> Result<Image> {
        let key = (target.digest().to_string(), platform.to_string());
        if let Some(known) = self.images.get(&key) {
            return Ok(known);
        }
        let image = Image::load(&Content::new(self.client.clone()), target, platform).await?;
        self.images.add(key, image.clone());
        Ok(image)
    }

    pub(crate) async fn untag(&self, name: &ImageRef) -> Result<()> {
        let Some(target) = self.target(name).await? else {
            return Ok(());
        };
        let canonical = name.canonical();
        if !self.has_other_name(&canonical, target.digest().as_ref()).await? {
            let filters = vec![format!("image=={canonical:?}")];
            let users = ListContainersRequest { filters };
            let users = self.client.containers().list(self.client.request(users)).await;
            let users = users.map_err(about(Subject::Engine))?.into_inner().containers;
            if let Some(user) = users.first() {
                let message = format!("container {} uses the image", user.id);
                return Err(Error::new(ErrorKind::Conflict, message));
            }
        }
        let request = DeleteImageRequest {
            name: canonical,
            // Its layers are gone when the call returns.
            sync: true,
            target: None,
        };
        match self.client.images().delete(self.client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Image)(status)),
            _ => Ok(()),
        }
    }

    async fn has_other_name(&self, name: &str, digest: &str) -> Result<bool> {
        let filters = vec![format!("target.digest=={digest:?}")];
        let request = ListImagesRequest { filters };
        let found = self.client.images().list(self.client.request(request)).await;
        let found = found.map_err(about(Subject::Image))?.into_inner().images;
        Ok(found.iter().any(|image| image.name != name))
    }
}

fn ended(joined: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    joined.unwrap_or_else(|error| {
        let message = format!("the runtime ended during a pull: {error}");
        Err(Error::new(ErrorKind::Cancelled, message))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use containerd_client::services::v1::snapshots::StatSnapshotRequest;
    use orchestra::{Driver, InjectedFile, JobId, tar_of_files};
    use orchestra_oci::content::sha256;
    use serde_json::json;

    use super::*;
    use crate::lease::delete_of;
    use crate::testing;

    async fn archive(layer: &Bytes, name: &ImageRef) -> Bytes {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer)]},
        });
        let manifest = json!([{"Config": "config.json", "Layers": ["layer.tar"], "RepoTags": [name.canonical()]}]);
        let file = |path: &str, content: Bytes| InjectedFile::new(path.parse().unwrap(), content);
        let files = [
            file("/config.json", config.to_string().into()),
            file("/layer.tar", layer.clone()),
            file("/manifest.json", manifest.to_string().into()),
        ];
        tar_of_files(&files).await.unwrap()
    }

    /// An image of a layer that no other one has.
    async fn imported(driver: &ContainerdDriver) -> (ImageRef, Image) {
        let name: ImageRef = format!("localhost/unique:{}", JobId::unique()).parse().unwrap();
        let file = InjectedFile::new("/unique".parse().unwrap(), name.to_string().into_bytes());
        let layer = tar_of_files(&[file]).await.unwrap();
        let archive = archive(&layer, &name).await;
        let archive = stream::once(async { Ok(archive) }).boxed();
        driver.import_image(&name, archive).await.unwrap();
        let image = driver.image(&name, None).await.unwrap();
        (name, image)
    }

    /// Has containerd's collector run, and waits for it: the end of a job that has a lease does.
    async fn collect(driver: &ContainerdDriver) {
        let job = JobId::unique();
        let own = Labels::from([(labels::JOB.to_owned(), job.to_string())]);
        let _lease = Lease::new(&driver.client, &own).await.unwrap();
        delete_of(&driver.client, &job).await.unwrap();
    }

    /// Whether containerd has the image's blobs and its layer unpacked: all of it, or nothing.
    async fn has(driver: &ContainerdDriver, image: &Image) -> Vec<bool> {
        let store = Content::new(driver.client.clone());
        let mut has = Vec::new();
        for blob in [&image.manifest, &image.config_descriptor, &image.layers[0]] {
            let read = match store.read(blob.digest(), blob.size()).await {
                Ok(mut pieces) => pieces.try_next().await.map(drop),
                Err(error) => Err(error),
            };
            has.push(read.is_ok());
        }
        let stat = StatSnapshotRequest {
            snapshotter: "overlayfs".to_owned(),
            key: image.chain_ids()[0].to_string(),
        };
        let stat = driver.client.snapshots().stat(driver.client.request(stat)).await;
        has.push(stat.is_ok());
        has
    }

    #[tokio::test]
    async fn the_collector_takes_an_image_without_a_name_and_no_other() {
        let Some(driver) = testing::driver().await else {
            return;
        };
        let (name, image) = imported(&driver).await;
        collect(&driver).await;
        assert_eq!(has(&driver, &image).await, [true; 4], "no lease, but a name");
        driver.remove_image(&name).await.unwrap();
        collect(&driver).await;
        assert_eq!(has(&driver, &image).await, [false; 4], "no name");
    }

    #[tokio::test]
    async fn a_layer_that_a_pull_builds_on_stays_when_its_image_goes_meanwhile() {
        let Some(driver) = testing::driver().await else {
            return;
        };
        let (name, image) = imported(&driver).await;
        let lease = Lease::new(&driver.client, &Labels::new()).await.unwrap();
        let snapshots = driver.snapshots(&lease.client);
        // As the pull of an image does that has this layer below one that is still to come.
        snapshots
            .unpack(lease.id(), &image, &image.chain_ids(), 0)
            .await
            .unwrap();
        driver.remove_image(&name).await.unwrap();
        collect(&driver).await;
        let unpacked = async || *has(&driver, &image).await.last().unwrap();
        assert!(unpacked().await, "the pull holds it");
        lease.end().await;
        collect(&driver).await;
        assert!(!unpacked().await, "nobody does");
    }
}
