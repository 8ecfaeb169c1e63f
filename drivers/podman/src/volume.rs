//! Volumes. podman before 5.6 has no calls for what is in them, but for what is in a container. So a volume is read and
//! written through a *helper*: a container that mounts it and never runs. It needs no image: its root is the folder of
//! the engine's host that the volume's own directory is in.
//!
//! Writing is `PUT …/archive` of a helper that was only made. Reading is not `GET …/archive`, which gives everything to
//! root (containers' `copyToArchive`, podman 4.3 to 5.8), but `GET …/export`, which keeps owners. That shows the root only
//! when the runtime has prepared the container, and shows all of it: what was not asked for is left out here, and where
//! the engine has come past what was asked for, reading ends.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use orchestra::{
    ByteStream, Created, Error, ErrorKind, JobId, Labels, Result, VolumeDirectory, VolumeId, VolumePath, VolumeSpec,
};
use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::container::stat;
use crate::driver::{PodmanDriver, Summary, filters};
use crate::error::{Cause, Subject, about, cause_of, is_missing};
use crate::spec::{self, ownership};
use orchestra::tar::{self, Member, Sink, TarReader};

/// What a helper's name begins with.
const HELPER_NAME: &str = "orchestra.volume-helper.";

/// Longest that helpers which are about to be removed are waited for, and between two looks at them.
const SOON: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(20));

/// Most hard links to files that are not to be read, which wait for these files in memory.
const MAX_ORPHANS: usize = 65_536;

/// Hard links, by their names and blocks, to the file of the key's name.
type Orphans = HashMap<Vec<u8>, Vec<(Vec<u8>, Member)>>;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    name: &'a str,
    label: &'a Labels,
    options: HashMap<&'static str, &'static str>,
}

/// What `GET /libpod/volumes/NAME/json` says, as far as it is asked here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Found {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) labels: Option<Labels>,
    #[serde(default)]
    mountpoint: String,
    #[serde(default)]
    driver: String,
    #[serde(default)]
    options: HashMap<String, String>,
    #[serde(default)]
    created_at: Option<Timestamp>,
}

/// The owner that a volume has from the beginning. With one of its own libpod leaves it at that; else it gives the volume to
/// the user of the first container that mounts it, and to nobody later.
const OWNER: &str = "uid=0,gid=0";

/// The most between the time that libpod tells of a volume's making and the time of its folder's.
const MADE_WITHIN: SignedDuration = SignedDuration::from_secs(10);

impl PodmanDriver {
    pub(crate) async fn make_volume(&self, id: &VolumeId, spec: &VolumeSpec) -> Result<Created> {
        let create = Create {
            name: id.as_str(),
            label: &spec.labels,
            options: HashMap::from([("o", OWNER)]),
        };
        let failed = about(Subject::Volume);
        let create = self.client.post(&["volumes", "create"]).json(&create).map_err(failed)?;
        match create.done().await {
            Ok(()) => Ok(Created::New),
            Err(failure) if cause_of(&failure) == Some(Cause::Exists) => Ok(Created::Existing),
            Err(failure) => Err(failed(failure)),
        }
    }

    /// The volume of exactly this name: libpod is content with the beginning of one.
    pub(crate) async fn volume(&self, name: &str) -> Result<Found> {
        let found: Found = self
            .client
            .get(&["volumes", name, "json"])
            .value()
            .await
            .map_err(about(Subject::Volume))?;
        if found.name == name {
            Ok(found)
        } else {
            Err(Error::new(ErrorKind::VolumeNotFound, format!("no such volume: {name}")))
        }
    }

    /// The volume's directory, if it is seen to be this volume's: a socket may lead to an engine with folders of the same
    /// names elsewhere. The folder around it is made when libpod says that the volume was, and no one can set that time.
    pub(crate) async fn directory_of(&self, id: &VolumeId) -> Result<Option<VolumeDirectory>> {
        let found = self.volume(id.as_str()).await?;
        // Others are mounted when a container needs them. libpod adds the owner's numbers as options.
        let own = |(key, value): (&String, &String)| match key.as_str() {
            "o" => value == OWNER,
            "UID" | "GID" => value == "0",
            _ => false,
        };
        let plain = found.driver == "local" && found.options.iter().all(own);
        let (Some((folder, _)), Some(made)) = (own_folder(&found).filter(|_| plain), found.created_at) else {
            return Ok(None);
        };
        if !self.info.capabilities.volume_directories {
            return Ok(None);
        }
        let held = self.held.hold(id, PathBuf::from(&found.mountpoint));
        let is_directory = tokio::fs::symlink_metadata(&held)
            .await
            .is_ok_and(|found| found.is_dir());
        Ok((is_directory && was_made(Path::new(folder), made).await).then_some(held))
    }

    pub(crate) async fn remove_named_volume(&self, name: &str) -> Result<()> {
        match self.volume(name).await {
            Err(error) if error.kind() == ErrorKind::VolumeNotFound => return Ok(()),
            found => found?,
        };
        self.held.released(&VolumeId::new(name)?).await?;
        let remove = async || match self.client.delete(&["volumes", name]).done().await {
            Err(failure) if !is_missing(&failure) => Err(about(Subject::Volume)(failure)),
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
        let gone = async {
            loop {
                let users = self.client.get(&["containers", "json"]).query("all", true);
                let users = users.query("filters", filters("volume", volume)).value().await;
                let users: Vec<Summary> = users.unwrap_or_default();
                if users.is_empty() {
                    return true;
                }
                if !users.iter().all(|user| user.name().starts_with(HELPER_NAME)) {
                    return false;
                }
                tokio::time::sleep(SOON.1).await;
            }
        };
        tokio::time::timeout(SOON.0, gone).await.unwrap_or(false)
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
        let found = self.volume(volume.as_str()).await?;
        let Some((root, directory)) = own_folder(&found) else {
            let message = format!(
                "the volume stands at {:?}, not in a folder of its own",
                found.mountpoint
            );
            return Err(
                Error::new(ErrorKind::Unsupported, message).with_hint("use a volume of podman's driver `local`")
            );
        };
        let labels = ownership(&found.labels.clone().unwrap_or_default());
        let name = format!("{HELPER_NAME}{}", JobId::unique());
        let body = spec::helper(&name, root, &found.name, &format!("/{directory}"), labels);
        let failed = about(Subject::Volume);
        let create = self
            .client
            .post(&["containers", "create"])
            .json(&body)
            .map_err(failed)?;
        create.done().await.map_err(failed)?;
        Ok(Helper {
            client: self.client.clone(),
            name,
            directory: directory.to_owned(),
            removed: false,
        })
    }
}

/// Whether this is about when the directory was made.
async fn was_made(directory: &Path, time: Timestamp) -> bool {
    let found = tokio::fs::symlink_metadata(directory).await;
    let birth = found
        .ok()
        .filter(Metadata::is_dir)
        .and_then(|found| found.created().ok());
    let birth = birth.and_then(|birth| Timestamp::try_from(birth).ok());
    birth.is_some_and(|birth| birth.duration_since(time).abs() <= MADE_WITHIN)
}

/// The folder that holds nothing but this volume's directory, and that directory's name.
fn own_folder(volume: &Found) -> Option<(&str, &str)> {
    let (folder, directory) = volume.mountpoint.rsplit_once('/')?;
    let own = folder.rsplit('/').next() == Some(&volume.name);
    (own && !directory.is_empty()).then_some((folder, directory))
}

/// A container that never runs. It is removed when this is dropped, at the latest.
struct Helper {
    client: Client,
    name: String,
    /// Where in its root the volume stands.
    directory: String,
    removed: bool,
}

impl Helper {
    async fn unpack(&self, path: &VolumePath, tar: ByteStream) -> Result<()> {
        let path = if path.is_root() {
            format!("/{}", self.directory)
        } else {
            format!("/{}/{path}", self.directory)
        };
        // Asked first, because an answer that comes while a body is being sent may get lost with the connection.
        match stat(&self.client, &self.name, &path)
            .await
            .map_err(about(Subject::Path))?
        {
            Some(stat) if stat.is_dir => {}
            Some(_) => {
                return Err(Error::invalid(
                    "the path is not a directory: nothing can be unpacked in it",
                ));
            }
            None => return Err(Error::new(ErrorKind::PathNotFound, "the volume has no such directory")),
        }
        let (body, failure) = tar::tracked(tar::pipe(
            move |sink| async move { tar::pass_contained(tar, &sink).await },
        ));
        // What libpod gives to the container's user by itself stays with its owners.
        let put = self.client.put(&["containers", &self.name, "archive"]);
        let put = put.query("path", &path).query("copyUIDGID", false);
        let sent = put.tar(body).done().await;
        failure.or(sent.map_err(about(Subject::Path)))
    }

    async fn pack(&self, paths: &[VolumePath], sink: &Sink) -> Result<()> {
        let prepare = self.client.post(&["containers", &self.name, "init"]);
        prepare.done().await.map_err(about(Subject::Volume))?;
        let orphans = self.select(paths, sink).await?;
        if orphans.is_empty() {
            return Ok(());
        }
        self.adopt(orphans, sink).await
    }

    /// Passes on what is below these paths, but for hard links to what is not.
    async fn select(&self, paths: &[VolumePath], sink: &Sink) -> Result<Orphans> {
        let mut orphans = Orphans::new();
        let mut count = 0;
        let mut missing: Vec<&VolumePath> = paths.iter().collect();
        let selected = |name: &[u8]| paths.iter().find(|path| path.contains(name));
        let mut tar = self.export().await?;
        while let Some(member) = tar.next().await? {
            let name = self.in_volume(&member.name);
            let path = name.as_deref().and_then(selected);
            let (Some(name), Some(path)) = (name, path) else {
                if missing.is_empty() {
                    // What is below a path comes in one go: nothing of any is left.
                    return Ok(orphans);
                }
                continue;
            };
            missing.retain(|missing| *missing != path);
            if name.is_empty() {
                continue;
            }
            let target = member.link.as_deref().filter(|_| member.is_hard_link());
            let target = target.and_then(|target| self.in_volume(target));
            match target {
                Some(target) if selected(&target).is_none() => {
                    count += 1;
                    if count > MAX_ORPHANS {
                        let message = format!("more than {MAX_ORPHANS} hard links lead out of what is to be read");
                        return Err(Error::new(ErrorKind::Unsupported, message));
                    }
                    orphans.entry(target).or_default().push((name, member));
                }
                target => {
                    sink.send_all(with_names(&member, name, target.as_deref())).await?;
                    sink.send_content(&mut tar).await?;
                }
            }
        }
        if !tar.ended() {
            return Err(broken());
        }
        match missing.first() {
            None => Ok(orphans),
            Some(path) => Err(Error::new(ErrorKind::PathNotFound, "the volume has no such path").with("path", path)),
        }
    }

    /// Reads the volume once more, for the files that hard links which were asked for lead to. Each file comes under the
    /// first of the links' names.
    async fn adopt(&self, mut orphans: Orphans, sink: &Sink) -> Result<()> {
        let mut tar = self.export().await?;
        while let Some(member) = tar.next().await? {
            let links = self.in_volume(&member.name).and_then(|name| orphans.remove(&name));
            let Some(((first, _), others)) = links.as_deref().and_then(|links| links.split_first()) else {
                continue;
            };
            sink.send_all(with_names(&member, first.clone(), None)).await?;
            sink.send_content(&mut tar).await?;
            for (name, link) in others {
                sink.send_all(with_names(link, name.clone(), Some(first))).await?;
            }
            if orphans.is_empty() {
                return Ok(());
            }
        }
        // Somebody removed them since.
        Err(broken())
    }

    async fn export(&self) -> Result<TarReader> {
        let failed = about(Subject::Volume);
        let export = self.client.get(&["containers", &self.name, "export"]);
        let tar = export.stream().await.map_err(failed)?;
        Ok(TarReader::new(tar.map_err(failed).boxed(), ErrorKind::Interrupted))
    }

    /// A name of the helper's root as one of the volume's, empty for the volume's own root; none for what is beside it.
    fn in_volume(&self, name: &[u8]) -> Option<Vec<u8>> {
        let mut parts = tar::parts(name);
        if parts.next() != Some(self.directory.as_bytes()) {
            return None;
        }
        Some(parts.collect::<Vec<&[u8]>>().join(&b'/'))
    }

    async fn remove(mut self) {
        remove(&self.client, &self.name).await;
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
            let (client, name) = (self.client.clone(), self.name.clone());
            runtime.spawn(async move { remove(&client, &name).await });
        }
    }
}

/// What it fails to remove carries the job's label: the job's end removes it.
async fn remove(client: &Client, name: &str) {
    let remove = client.delete(&["containers", name]).query("force", true);
    if let Err(failure) = remove.query("timeout", 0).done().await
        && !is_missing(&failure)
    {
        let error = about(Subject::Container)(failure);
        tracing::warn!(container = name, %error, "a volume helper could not be removed");
    }
}

/// A member's blocks with names from the volume's root.
fn with_names(member: &Member, mut name: Vec<u8>, hard_link: Option<&[u8]>) -> Vec<bytes::Bytes> {
    if member.name.ends_with(b"/") {
        name.push(b'/');
    }
    member.renamed(&name, hard_link.or(member.link.as_deref()))
}

fn broken() -> Error {
    Error::new(ErrorKind::Interrupted, "the engine's tar broke off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_known_by_when_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let made = Timestamp::now();
        assert!(was_made(folder.path(), made).await);
        let minute = SignedDuration::from_secs(60);
        assert!(!was_made(folder.path(), made - minute).await && !was_made(folder.path(), made + minute).await);
        let elsewhere = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &elsewhere).unwrap();
        assert!(!was_made(&elsewhere, made).await && !was_made(&folder.path().join("none"), made).await);
    }
}
