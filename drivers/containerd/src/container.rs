//! Containers as containerd has them: records, which tasks are made of.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
};
use containerd_client::tonic::Code;
use containerd_client::types::Mount;
use oci_spec::runtime::Spec;
use orchestra::{
    ContainerId, ContainerPath, ContainerSpec, Created, Error, ErrorKind, ExtraHost, InjectedFile, JobId, Labels,
    NetworkMode, Result, VolumeId,
};
use orchestra_oci::etc;
use orchestra_oci::image::Image;
use orchestra_oci::spec::{SpecInput, image_volumes, runtime_spec, user_of};
use orchestra_oci::users::{ResolvedUser, resolve_user};
use prost::Message;
use prost_types::Any;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::{MAX_IDENTIFIER, is_identifier};
use crate::driver::{ContainerdDriver, blocking};
use crate::error::{Subject, about};
use crate::known::Record;
use crate::lease::Lease;
use crate::rootfs;

/// containerd's shim for runc and what is called like it.
const SHIM: &str = "io.containerd.runc.v2";
/// What containerd calls an OCI runtime spec.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// What a container's record holds for this driver, by containerd's "extensions".
const EXTENSION: &str = "dev.orchestra.container";
/// A container's writable layer is over an image that is unpacked again at most so often.
const ATTEMPTS: usize = 3;

/// What containerd has no place for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extension {
    /// The id that the caller chose; containerd's own may be another one.
    pub(crate) id: String,
    pub(crate) network: NetworkMode,
    pub(crate) extra_hosts: Vec<String>,
    pub(crate) stdin: bool,
    /// Volumes by where they are mounted.
    pub(crate) mounts: BTreeMap<String, VolumeId>,
    /// The volumes that its image declares, and where they lie on this host.
    #[serde(default)]
    pub(crate) own_volumes: BTreeMap<String, PathBuf>,
}

impl Extension {
    fn new(id: &ContainerId, spec: &ContainerSpec, own_volumes: &BTreeMap<ContainerPath, PathBuf>) -> Result<Self> {
        let mounts = spec
            .mounts
            .iter()
            .map(|mount| Ok((spec.resolve(&mount.target)?, mount.volume.clone())));
        Ok(Self {
            id: id.to_string(),
            network: spec.network,
            extra_hosts: spec
                .extra_hosts
                .iter()
                .map(|host| format!("{}:{}", host.name, host.address))
                .collect(),
            stdin: spec.stdin,
            mounts: mounts.collect::<Result<_>>()?,
            own_volumes: own_volumes
                .iter()
                .map(|(path, own)| (path.resolve("/"), own.clone()))
                .collect(),
        })
    }

    /// Lines of its `/etc/hosts`.
    pub(crate) fn hosts(&self) -> Vec<ExtraHost> {
        // They were valid when they were written.
        self.extra_hosts.iter().filter_map(|host| host.parse().ok()).collect()
    }

    /// That of a container of ours.
    pub(crate) fn of(container: &Container) -> Option<Self> {
        serde_json::from_slice(&container.extensions.get(EXTENSION)?.value).ok()
    }
}

/// What the runc shim is told (`containerd.runc.v1.Options` of containerd's `runtime/v2/runc/options/oci.proto`).
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

/// The id that containerd has for a container: the caller's, or what containerd takes of it with a digest of the whole.
pub(crate) fn engine_id(id: &str) -> String {
    if is_identifier(id) {
        return id.to_owned();
    }
    let digest = Sha256::digest(id);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut name = String::new();
    for part in id
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|part| !part.is_empty())
    {
        if name.len() + part.len() + 1 + hex.len() + 1 > MAX_IDENTIFIER {
            break;
        }
        name.push_str(part);
        name.push('-');
    }
    format!("{name}{hex}")
}

/// The id that the caller chose.
pub(crate) fn identity(container: &Container) -> String {
    Extension::of(container).map_or_else(|| container.id.clone(), |extension| extension.id)
}

/// The caller's labels: containerd's own clients add some.
pub(crate) fn public_labels(labels: HashMap<String, String>) -> Labels {
    let foreign = |key: &str| key.starts_with("containerd.io/");
    labels.into_iter().filter(|(key, _)| !foreign(key)).collect()
}

impl ContainerdDriver {
    /// The record of a container of ours.
    pub(crate) async fn find(&self, id: &ContainerId) -> Result<Option<Record>> {
        let engine_id = engine_id(id.as_str());
        let request = GetContainerRequest { id: engine_id.clone() };
        let found = match self.client.containers().get(self.client.request(request)).await {
            Ok(answer) => answer.into_inner().container.unwrap_or_default(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(about(Subject::Container)(status)),
        };
        match Extension::of(&found) {
            Some(extension) if extension.id == id.as_str() => Ok(Some(Record {
                container: found,
                extension,
                layer: None,
            })),
            _ => {
                let message = format!("{engine_id} is a container that orchestra has not made");
                Err(Error::new(ErrorKind::Conflict, message))
            }
        }
    }

    /// The record of a container that has to be there.
    pub(crate) async fn named(&self, id: &ContainerId) -> Result<Record> {
        self.find(id).await?.ok_or_else(|| absent(id))
    }

    /// The same, where a new one is not asked for: somebody else may have removed it, which has to be [seen](Self::or_gone)
    /// where what follows fails.
    pub(crate) async fn known(&self, id: &ContainerId) -> Result<Arc<Record>> {
        match self.made.get(id) {
            Some(new) => Ok(new),
            None => self.named(id).await.map(Arc::new),
        }
    }

    /// What failed with a container, or that it was removed meanwhile. Its folder may have been made again since.
    pub(crate) async fn or_gone(&self, record: &Record, error: Error) -> Error {
        let Ok(id) = ContainerId::new(record.extension.id.as_str()) else {
            return error;
        };
        self.made.forget(id.as_str());
        match self.find(&id).await {
            Ok(None) => {
                if let Err(left) = self.forget(&record.container.id).await {
                    tracing::debug!(error = %left, "what is kept of a container that is gone stays");
                }
                absent(&id).with_source(error)
            }
            _ => error,
        }
    }

    pub(crate) async fn make_container(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        spec.validate()?;
        self.info.check_container(spec)?;
        let (driver, id, spec) = (self.clone(), id.clone(), spec.clone());
        // Not dropped half-way with its caller.
        let making = self.making.spawn(async move { driver.create(&id, &spec).await });
        making.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was made: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<Created> {
        let (found, image, lease) = tokio::join!(
            self.find(id),
            self.image(&spec.image, spec.platform.as_ref()),
            Lease::new(&self.client, &spec.labels)
        );
        let lease = match lease {
            Ok(lease) => lease,
            Err(_) if matches!(found, Ok(Some(_))) => return Ok(Created::Existing),
            Err(error) => return Err(error),
        };
        let made = match (found, image) {
            (Ok(Some(_)), _) => Ok(Created::Existing),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(None), Ok(image)) => self.create_under(&lease, id, spec, &image).await,
        };
        // Nobody waits for its end but that of the job; without one, the next job's end or containerd's clock has it.
        self.making.spawn(lease.end());
        made
    }

    async fn create_under(
        &self,
        lease: &Lease,
        id: &ContainerId,
        spec: &ContainerSpec,
        image: &Image,
    ) -> Result<Created> {
        let state = self.state.clone();
        // Held until the record is there, which says that the volumes are in use.
        let _volumes = blocking(move || state.lock_volumes(true)).await?;
        let mut volumes = BTreeMap::new();
        for mount in &spec.mounts {
            volumes.insert(mount.volume.clone(), self.volumes.get(&mount.volume).await?.path);
        }
        let engine_id = engine_id(id.as_str());
        // Of two who make one container, each has a layer of its own until one is first.
        let key = format!("{engine_id}-{}", JobId::unique());
        let mounts = self.layer(lease, &key, image, &spec.labels).await?;
        let own = self.state.container(&engine_id).own_volumes(&key);
        let made = self.write_record(id, spec, image, key, mounts, volumes).await;
        if !matches!(made, Ok(Created::New)) {
            // With the lease goes the layer.
            blocking(move || {
                own.remove();
                Ok(())
            })
            .await?;
        }
        made
    }

    /// Makes the container's record over a writable layer.
    async fn write_record(
        &self,
        id: &ContainerId,
        spec: &ContainerSpec,
        image: &Image,
        key: String,
        mounts: Vec<Mount>,
        volumes: BTreeMap<VolumeId, PathBuf>,
    ) -> Result<Created> {
        let engine_id = engine_id(id.as_str());
        let user = user_of(spec, &image.config).to_owned();
        let declared = image_volumes(spec, &image.config);
        let own = self.state.container(&engine_id).own_volumes(&key);
        let known = (image.manifest.digest().to_string(), user.clone());
        let (user, own) = match self.users.get(&known) {
            Some(user) if declared.is_empty() => (user, BTreeMap::new()),
            _ => {
                let looked = rootfs::with(mounts.clone(), self.state.mount_point(), move |root| {
                    Ok((resolve_user(root, &user)?, own.fill(root, &declared)?))
                });
                let (user, own) = looked.await?;
                self.users.add(known, user.clone());
                (user, own)
            }
        };
        let extension = Extension::new(id, spec, &own)?;
        let runtime = self.runtime_spec(id, spec, image, user, volumes, own).await?;
        let container = Container {
            id: engine_id,
            labels: spec.labels.clone().into_iter().collect(),
            image: spec.image.canonical(),
            runtime: Some(self.runtime()),
            spec: Some(any(SPEC, &runtime)?),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: key,
            extensions: HashMap::from([(EXTENSION.to_owned(), any(EXTENSION, &extension)?)]),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container.clone()),
        };
        match self.client.containers().create(self.client.request(request)).await {
            Ok(_) => {
                let layer = Some(mounts);
                self.made.add(Record {
                    container,
                    extension,
                    layer,
                });
                Ok(Created::New)
            }
            Err(status) if status.code() == Code::AlreadyExists => Ok(Created::Existing),
            Err(status) => Err(about(Subject::Container)(status)),
        }
    }

    /// A writable layer over the image, which is unpacked if it is not.
    async fn layer(&self, lease: &Lease, key: &str, image: &Image, labels: &Labels) -> Result<Vec<Mount>> {
        let snapshots = self.snapshots(&lease.client);
        for _ in 0..ATTEMPTS {
            if let Some(mounts) = snapshots.prepare(key, image, labels).await? {
                return Ok(mounts);
            }
            self.unpack(lease, image).await?;
        }
        Err(
            Error::new(ErrorKind::Engine, "what the image was unpacked to goes away at once").with_hint(
                "another client of containerd's removes snapshots of this namespace; give orchestra its own",
            ),
        )
    }

    async fn runtime_spec(
        &self,
        id: &ContainerId,
        spec: &ContainerSpec,
        image: &Image,
        user: ResolvedUser,
        volumes: BTreeMap<VolumeId, PathBuf>,
        image_volumes: BTreeMap<ContainerPath, PathBuf>,
    ) -> Result<Spec> {
        let engine_id = engine_id(id.as_str());
        let cgroup = PathBuf::from(format!("/{}/{engine_id}", self.namespace));
        let etc = self.state.container(&engine_id).etc()?;
        let (spec, image, host) = (spec.clone(), image.config.clone(), self.host.clone());
        let hostname = etc::hostname(id.as_str());
        blocking(move || {
            runtime_spec(&SpecInput {
                container: &spec,
                image: &image,
                // Where the shim mounts it, in the bundle.
                rootfs: Path::new("rootfs"),
                user,
                volumes,
                image_volumes,
                hostname: &hostname,
                netns: None,
                cgroup: &cgroup,
                etc,
                host: &host,
            })
        })
        .await
    }

    fn runtime(&self) -> Runtime {
        let options = self.runtime.as_ref().map(|binary_name| Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: RuncOptions {
                binary_name: binary_name.clone(),
            }
            .encode_to_vec(),
        });
        Runtime {
            name: SHIM.to_owned(),
            options,
        }
    }

    pub(crate) async fn inject(&self, id: &ContainerId, files: &[InjectedFile]) -> Result<()> {
        if let Some(file) = files
            .iter()
            .find(|file| !file.path.is_absolute() || file.path.as_str() == "/")
        {
            return Err(Error::invalid(format!(
                "{} is not an absolute path of a file",
                file.path
            )));
        }
        let record = self.named(id).await?;
        let folder = self.state.container(&record.container.id);
        // Nobody starts it meanwhile.
        let lock = blocking({
            let folder = folder.clone();
            move || folder.lock()
        });
        let _lock = lock.await?;
        self.still_there(&record).await?;
        if folder.was_started() || self.task(&record.container.id).await?.is_some() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the container was started; files go in before that",
            ));
        }
        let mounts = self.layer_of(&record).await?;
        let volumes = self.places(&record.extension).await?;
        let files = files.to_vec();
        rootfs::with(mounts, self.state.mount_point(), move |root| {
            rootfs::write_files(&files, |path: &ContainerPath| {
                place(root, &volumes, Path::new(path.as_str()))
            })
        })
        .await
    }

    /// Fails if a container was removed while its lock was waited for, which has made its folder again.
    pub(crate) async fn still_there(&self, record: &Record) -> Result<()> {
        let id = ContainerId::new(record.extension.id.as_str())?;
        // One that is new was not asked for: where what follows fails, that is done.
        if record.layer.is_some() && self.made.get(&id).is_some() {
            return Ok(());
        }
        match self.find(&id).await? {
            Some(_) => Ok(()),
            None => {
                self.forget(&record.container.id).await?;
                Err(absent(&id))
            }
        }
    }

    /// What is to be mounted to see a container's writable layer.
    pub(crate) async fn layer_of(&self, record: &Record) -> Result<Vec<Mount>> {
        match &record.layer {
            Some(mounts) => Ok(mounts.clone()),
            None => {
                self.snapshots(&self.client)
                    .mounts(&record.container.snapshot_key)
                    .await
            }
        }
    }

    /// Where each volume of a container stands, and where it lies on this host.
    pub(crate) async fn places(&self, extension: &Extension) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut places = Vec::new();
        for (target, volume) in &extension.mounts {
            places.push((PathBuf::from(target), self.volumes.get(volume).await?.path));
        }
        let own = extension.own_volumes.iter();
        places.extend(own.map(|(target, path)| (PathBuf::from(target), path.clone())));
        Ok(places)
    }

    pub(crate) async fn discard_volume(&self, id: &VolumeId) -> Result<()> {
        self.volumes.released(id).await?;
        let state = self.state.clone();
        // No container that mounts it is made meanwhile.
        let _lock = blocking(move || state.lock_volumes(false)).await?;
        let request = ListContainersRequest::default();
        let containers = self.client.containers().list(self.client.request(request)).await;
        let containers = containers.map_err(about(Subject::Engine))?.into_inner().containers;
        let mut all = containers.iter().filter_map(Extension::of);
        if let Some(user) = all.find(|extension| extension.mounts.values().any(|volume| volume == id)) {
            let message = format!("container {} uses the volume", user.id);
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        self.volumes.remove(id).await
    }

    /// Removes a container with all that is its own; one that is not there is success.
    pub(crate) async fn discard(&self, id: &ContainerId) -> Result<()> {
        let (driver, id) = (self.clone(), id.clone());
        // Not dropped half-way with its caller.
        let removal = tokio::spawn(async move { driver.remove_whole(&id).await });
        removal.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a container was removed: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }

    async fn remove_whole(&self, id: &ContainerId) -> Result<()> {
        self.made.forget(id.as_str());
        let engine_id = engine_id(id.as_str());
        let folder = self.state.container(&engine_id);
        if !folder.path("").exists() && self.find(id).await?.is_none() {
            return self.forget(&engine_id).await;
        }
        let locked = folder.clone();
        // Whoever held the lock may have removed it meanwhile: then all that follows finds nothing.
        let (lock, found) = tokio::join!(blocking(move || locked.lock()), self.find(id));
        let (_lock, Some(record)) = (lock?, found?) else {
            return self.forget(&engine_id).await;
        };
        folder.mark_going();
        self.end_task(&engine_id).await?;
        self.disconnect(&engine_id).await?;
        let snapshots = self.snapshots(&self.client);
        let removing = snapshots.remove(&record.container.snapshot_key);
        tokio::try_join!(removing, self.logs.remove(&engine_id))?;
        // With its lock: not before its layer is gone, which nobody is to start it on.
        self.forget(&engine_id).await?;
        let request = DeleteContainerRequest { id: engine_id };
        match self.client.containers().delete(self.client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Container)(status)),
            _ => Ok(()),
        }
    }

    /// Removes what is kept of a container beside containerd.
    pub(crate) async fn forget(&self, engine_id: &str) -> Result<()> {
        self.turns.forget(engine_id);
        self.logs.remove(engine_id).await?;
        let folder = self.state.container(engine_id);
        blocking(move || folder.remove()).await
    }
}

/// A container that is not there.
pub(crate) fn absent(id: &ContainerId) -> Error {
    Error::new(ErrorKind::ContainerNotFound, format!("no such container: {id}"))
}

/// A path of a container as a root and a path in it: that of a volume, where it is in one.
pub(crate) fn place(root: &Path, volumes: &[(PathBuf, PathBuf)], path: &Path) -> (PathBuf, PathBuf) {
    let of = |(target, volume): &(PathBuf, PathBuf)| {
        Some((
            target.components().count(),
            volume.clone(),
            path.strip_prefix(target).ok()?.to_owned(),
        ))
    };
    // Volumes may be mounted in volumes: the innermost one has it.
    match volumes.iter().filter_map(of).max_by_key(|(depth, ..)| *depth) {
        Some((_, volume, inside)) => (volume, inside),
        None => (root.to_owned(), path.to_owned()),
    }
}

/// A value as containerd keeps what it need not understand.
pub(crate) fn any(type_url: &str, value: &impl Serialize) -> Result<Any> {
    let value = serde_json::to_vec(value).map_err(|error| {
        let message = format!("{type_url} can't be written as JSON: {error}");
        Error::new(ErrorKind::Protocol, message)
    })?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_containerd_refuses_get_others_that_stay_apart() {
        let long = format!("orchestra.{}.1.{}", "j".repeat(63), "t".repeat(63));
        let odd = ["orchestra.a--b.1.t_", "orchestra.a-b.1.t", &long, &format!("{long}x")];
        let ids: std::collections::BTreeSet<String> = odd.iter().map(|id| engine_id(id)).collect();
        assert_eq!(ids.len(), odd.len());
        for id in &ids {
            assert!(is_identifier(id), "{id}");
        }
        assert_eq!(engine_id("orchestra.a-b.1.t"), "orchestra.a-b.1.t");
    }

    #[test]
    fn a_path_of_a_volume_is_found_in_the_innermost_one() {
        let volumes = [("/v", "/host/v"), ("/v/in", "/host/in")].map(|(target, path)| (target.into(), path.into()));
        let at = |path: &str| place(Path::new("/root"), &volumes, Path::new(path));
        assert_eq!(at("/etc/a"), ("/root".into(), "/etc/a".into()));
        assert_eq!(at("/v/a"), ("/host/v".into(), "a".into()));
        assert_eq!(at("/v/in/a"), ("/host/in".into(), "a".into()));
        assert_eq!(at("/vv/a"), ("/root".into(), "/vv/a".into()));
    }
}
