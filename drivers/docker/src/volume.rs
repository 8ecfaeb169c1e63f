//! Volumes. docker has no calls for what is in them, but for what is in a container, running or not. So a volume is
//! read and written through a *helper*: a container that mounts it and is never started, of an image that is empty.
//!
//! The empty image is made by the engine itself (45 ms), once a job, and has the job's labels; the helper is made for
//! each call (10 ms with its removal; the transfer itself takes docker at least 40 ms). Both are found by
//! [`list`](orchestra::Driver::list) and go with the job. Who finds the image gone makes it again.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::errors::Error as Bollard;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    DownloadFromContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveImageOptions, RemoveVolumeOptions, UploadToContainerOptionsBuilder,
};
use bollard::{Docker, body_full, body_try_stream};
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{
    ByteStream, Created, Error, ErrorKind, JobId, Labels, Result, VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
    labels,
};

use crate::container::wait;
use crate::driver::{DockerDriver, name_of};
use crate::error::{Subject, about, status_of};
use crate::spec::{ownership, volume_options};
use orchestra::tar::{self, Sink, TarReader};

/// A label of volumes: unlike for every call that makes one, it tells whose call it was. It never leaves this crate.
pub(crate) const CREATION: &str = "dev.orchestra.docker.creation";

/// Where a helper mounts the volume.
const ROOT: &str = "/v";

/// The empty image's name, which no registry can have; the tag is the job.
const HELPER: &str = "orchestra.invalid/volume-helper";
/// The tag for volumes of no job; the image is removed after each use.
const NO_JOB: &str = "none";

/// What a helper's name begins with.
const HELPER_NAME: &str = "orchestra.volume-helper.";

/// Longest that helpers which are about to be removed are waited for.
const SOON: Duration = Duration::from_secs(5);

/// How often an empty image that others remove is made again.
const ATTEMPTS: usize = 5;

/// File type bits and the directory's, as Go has them in what docker tells of a path (`fs.ModeDir`).
const MODE_DIR: u32 = 1 << 31;

impl DockerDriver {
    pub(crate) async fn make_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        // docker answers for a volume that exists as for a new one, but with the labels that it has.
        let ours = JobId::unique().to_string();
        let mut labels: HashMap<_, _> = spec.labels.clone().into_iter().collect();
        labels.insert(CREATION.to_owned(), ours.clone());
        let request = VolumeCreateRequest {
            name: Some(id.to_string()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        let volume = self
            .docker
            .create_volume(request)
            .await
            .map_err(about(Subject::Volume))?;
        Ok(if volume.labels.get(CREATION) == Some(&ours) {
            Created::New
        } else {
            Created::Existing
        })
    }

    /// The volume's directory, if it is seen to be this volume's: a socket may lead to an engine with folders of the same
    /// names elsewhere. What docker tells of its making is the directory's `ctime` (docker 20.10) or that of the folder
    /// around it (since 23.0), which no one can set; where that changes just now, the answer is that it is not known.
    pub(crate) async fn directory_of(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        let found = self
            .docker
            .inspect_volume(id.as_str())
            .await
            .map_err(about(Subject::Volume))?;
        let directory = PathBuf::from(found.mountpoint);
        let folder = directory.parent().filter(|folder| folder.ends_with(id.as_str()));
        // Others are mounted when a container needs them.
        let plain = found.driver == "local" && found.options.is_empty();
        let (Some(folder), Some(made)) = (folder.filter(|_| plain), found.created_at) else {
            return Ok(None);
        };
        if !self.info.capabilities.volume_directories {
            return Ok(None);
        }
        let held = self.held.hold(id, directory.clone());
        let is_directory = tokio::fs::symlink_metadata(&directory)
            .await
            .is_ok_and(|found| found.is_dir());
        let shown =
            is_directory && (was_made(folder, made.timestamp()).await || was_made(&directory, made.timestamp()).await);
        Ok(shown.then_some(held))
    }

    pub(crate) async fn discard_volume(&self, id: &VolumeId) -> Result<()> {
        let found = match self.docker.inspect_volume(id.as_str()).await {
            Err(error) if status_of(&error) == Some(404) => return Ok(()),
            found => found.map_err(about(Subject::Volume))?,
        };
        self.remove_named_volume(id.as_str()).await?;
        // Nothing is to be left of a volume, and who uses another one of the job makes the image again.
        if let Some(job) = found.labels.get(labels::JOB) {
            let filters = HashMap::from([("label", vec![format!("{}={job}", labels::JOB)])]);
            let options = ListImagesOptionsBuilder::new().filters(&filters).build();
            for image in self.docker.list_images(Some(options)).await.unwrap_or_default() {
                // Refused while a helper uses it.
                let _ = self
                    .docker
                    .remove_image(&image.id, None::<RemoveImageOptions>, None)
                    .await;
            }
        }
        Ok(())
    }

    pub(crate) async fn remove_named_volume(&self, name: &str) -> Result<()> {
        self.held.released(&VolumeId::new(name)?).await?;
        let remove = async || match self.docker.remove_volume(name, None::<RemoveVolumeOptions>).await {
            Err(error) if status_of(&error) != Some(404) => Err(about(Subject::Volume)(error)),
            _ => Ok(()),
        };
        match remove().await {
            Err(error) if error.kind() == ErrorKind::Conflict && self.helpers_go(name).await => remove().await,
            removed => removed,
        }
    }

    /// Whether nothing but helpers uses the volume, and these are gone soon: who stops reading one does not wait for the
    /// removal of its helper.
    async fn helpers_go(&self, volume: &str) -> bool {
        let filters = HashMap::from([("volume", vec![volume])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let users = self.docker.list_containers(Some(options)).await.unwrap_or_default();
        let helpers: Option<Vec<String>> = users.iter().map(name_of).collect();
        let helpers = helpers.unwrap_or_default();
        if !helpers.iter().all(|name| name.starts_with(HELPER_NAME)) {
            return false;
        }
        let gone = helpers.iter().map(|name| wait(&self.docker, name, "removed"));
        tokio::time::timeout(SOON, futures_util::future::join_all(gone))
            .await
            .is_ok()
    }

    pub(crate) async fn unpack_into_volume(&self, id: &VolumeId, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let helper = self.helper(id).await?;
        let unpacked = helper.unpack(path, tar).await;
        helper.remove().await;
        unpacked
    }

    pub(crate) async fn pack_volume(&self, id: &VolumeId, paths: &[VolumePath]) -> Result<ByteStream> {
        let helper = self.helper(id).await?;
        let paths = VolumePath::outermost(paths);
        Ok(tar::pipe(move |sink| async move {
            let packed = helper.pack(&paths, &sink).await;
            helper.remove().await;
            packed?;
            // Last, because who has read this need not read on to the stream's end.
            sink.send(tar::END).await
        }))
    }

    /// A container that mounts the volume.
    async fn helper(&self, volume: &VolumeId) -> Result<Helper> {
        let found = self
            .docker
            .inspect_volume(volume.as_str())
            .await
            .map_err(about(Subject::Volume))?;
        let labels: Labels = found.labels.into_iter().collect();
        let job = labels.get(labels::JOB).and_then(|job| JobId::new(job.as_str()).ok());
        let image = format!("{HELPER}:{}", job.as_ref().map_or(NO_JOB, JobId::as_str));
        let name = format!("{HELPER_NAME}{}", JobId::unique());
        let (docker, volume) = (self.docker.clone(), volume.clone());
        // Not dropped half-way with its caller: what the engine makes after that, nobody would know of.
        let making = self.making.spawn(async move {
            let image = make_helper(&docker, &name, image, &volume, &labels).await?;
            Ok(Helper {
                docker,
                name,
                image: job.is_none().then_some(image),
                removed: false,
            })
        });
        making.await.unwrap_or_else(|error| {
            let message = format!("the runtime ended while a volume helper was made: {error}");
            Err(Error::new(ErrorKind::Cancelled, message))
        })
    }
}

/// Whether this is when the directory was made, or changed last: its `ctime`.
async fn was_made(directory: &Path, seconds: i64) -> bool {
    let found = tokio::fs::symlink_metadata(directory).await;
    found.is_ok_and(|found| found.is_dir() && found.ctime() == seconds)
}

/// Makes the container, and its image if the engine lacks it; returns the image.
async fn make_helper(docker: &Docker, name: &str, image: String, volume: &VolumeId, labels: &Labels) -> Result<String> {
    let mut attempt = 1;
    loop {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        match docker
            .create_container(Some(options), helper_body(&image, volume, labels))
            .await
        {
            Ok(_) => return Ok(image),
            Err(error) if status_of(&error) == Some(404) && attempt < ATTEMPTS => {
                attempt += 1;
                make_empty_image(docker, &image, labels)
                    .await
                    .map_err(about(Subject::Image))?;
            }
            Err(error) => return Err(about(Subject::Volume)(error)),
        }
    }
}

async fn make_empty_image(docker: &Docker, image: &str, labels: &Labels) -> Result<(), Bollard> {
    // Dockerfile syntax. A label that would have to be quoted is none of ours.
    let plain = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._/:-".contains(&byte))
    };
    let labels = ownership(labels).into_iter().filter(|(_, value)| plain(value));
    let labels = labels.map(|(key, value)| format!("LABEL {key}={value}")).collect();
    let (repository, tag) = image.rsplit_once(':').unwrap_or((image, NO_JOB));
    let options = CreateImageOptionsBuilder::new()
        .from_src("-")
        .repo(repository)
        .tag(tag)
        .changes(labels)
        .build();
    let made = docker.create_image(Some(options), Some(body_full(tar::END)), None);
    made.try_for_each(async |_| Ok(())).await
}

fn helper_body(image: &str, volume: &VolumeId, labels: &Labels) -> ContainerCreateBody {
    let mount = Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.to_string()),
        target: Some(ROOT.to_owned()),
        volume_options: Some(volume_options(labels)),
        ..Mount::default()
    };
    ContainerCreateBody {
        image: Some(image.to_owned()),
        // docker wants a command, even for a container that never starts.
        cmd: Some(vec!["none".to_owned()]),
        labels: Some(ownership(labels)),
        network_disabled: Some(true),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The path of a volume's path in its helper.
fn in_helper(path: &VolumePath) -> String {
    if path.is_root() {
        ROOT.to_owned()
    } else {
        format!("{ROOT}/{path}")
    }
}

/// A container that is never started. It is removed when this is dropped, at the latest.
struct Helper {
    docker: Docker,
    name: String,
    /// The image, if it is to go too.
    image: Option<String>,
    removed: bool,
}

impl Helper {
    async fn unpack(&self, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let path = in_helper(path);
        // Asked first, because an answer that comes while a body is being sent may get lost with the connection.
        let options = ContainerArchiveInfoOptionsBuilder::new().path(&path).build();
        let found = match self.docker.get_container_archive_info(&self.name, Some(options)).await {
            Err(error) if status_of(&error) == Some(404) => {
                return Err(Error::new(ErrorKind::PathNotFound, "the volume has no such directory"));
            }
            found => found.map_err(about(Subject::Path))?,
        };
        if found.file_mode & MODE_DIR == 0 {
            return Err(Error::invalid(
                "the path is not a directory: nothing can be unpacked in it",
            ));
        }
        let (body, failure) = tar::tracked(tar::pipe(
            move |sink| async move { tar::pass_contained(tar, &sink).await },
        ));
        let options = UploadToContainerOptionsBuilder::new().path(&path).build();
        let sent = self
            .docker
            .upload_to_container(&self.name, Some(options), body_try_stream(body))
            .await;
        failure.or(sent.map_err(about(Subject::Path)))
    }

    async fn pack(&self, paths: &[VolumePath], sink: &Sink) -> Result<()> {
        for path in paths {
            let options = DownloadFromContainerOptionsBuilder::new()
                .path(&in_helper(path))
                .build();
            let tar = self.docker.download_from_container(&self.name, Some(options));
            let path = path.clone();
            rebase(tar.map_err(about(Subject::Path)).boxed(), &path, sink)
                .await
                .map_err(|error| error.with("path", &path))?;
        }
        Ok(())
    }

    async fn remove(mut self) {
        remove(&self.docker, &self.name, self.image.as_deref()).await;
        // Not before: who drops this call in the middle leaves the rest to `drop`.
        self.removed = true;
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // Without a runtime the program is at its end, and the label is left to tell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (docker, name, image) = (self.docker.clone(), self.name.clone(), self.image.take());
            runtime.spawn(async move { remove(&docker, &name, image.as_deref()).await });
        }
    }
}

/// What it fails to remove carries the job's label: the job's end removes it.
async fn remove(docker: &Docker, name: &str, image: Option<&str>) {
    let options = RemoveContainerOptionsBuilder::new().force(true).build();
    if let Err(error) = docker.remove_container(name, Some(options)).await
        && status_of(&error) != Some(404)
    {
        tracing::warn!(container = name, %error, "a volume helper could not be removed");
    }
    if let Some(image) = image {
        // Refused while another helper uses it, which will remove it then.
        let _ = docker.remove_image(image, None::<RemoveImageOptions>, None).await;
    }
}

/// Passes on docker's tar of `path`, whose names begin with the path's last part, with names from the volume's root.
async fn rebase(tar: ByteStream, path: &VolumePath, sink: &Sink) -> Result<()> {
    let prefix = if path.is_root() { "" } else { path.as_str() };
    let moved = |name: &[u8]| {
        let parts = tar::parts(name).skip(1);
        let parts: Vec<&[u8]> = Some(prefix.as_bytes())
            .filter(|prefix| !prefix.is_empty())
            .into_iter()
            .chain(parts)
            .collect();
        parts.join(&b'/')
    };
    let mut tar = TarReader::new(tar, ErrorKind::Interrupted);
    while let Some(member) = tar.next().await? {
        let mut name = moved(&member.name);
        if name.is_empty() {
            continue;
        }
        if member.name.ends_with(b"/") {
            name.push(b'/');
        }
        let link = member.link.as_deref().filter(|_| member.is_hard_link()).map(moved);
        let link = link.as_deref().or(member.link.as_deref());
        sink.send_all(member.renamed(&name, link)).await?;
        sink.send_content(&mut tar).await?;
    }
    if tar.ended() {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Interrupted, "the engine's tar broke off"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_known_by_when_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let made = std::fs::metadata(folder.path()).unwrap().ctime();
        assert!(was_made(folder.path(), made).await);
        assert!(!was_made(folder.path(), made - 1).await && !was_made(folder.path(), made + 1).await);
        let elsewhere = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &elsewhere).unwrap();
        let changed = std::fs::symlink_metadata(&elsewhere).unwrap().ctime();
        assert!(!was_made(&elsewhere, changed).await && !was_made(&folder.path().join("none"), made).await);
    }
}
