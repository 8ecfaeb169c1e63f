//! A containerd as its other clients see it, and the folder in which its driver keeps what containerd has no place for.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::snapshots::{Kind, ListSnapshotsRequest};
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetContainerRequest, GetImageRequest, GetRequest, Image,
    ListContainersRequest, ListImagesRequest, ListRequest, ListTasksRequest, ReadContentRequest,
};
use containerd_client::tonic::{Code, Request};
use containerd_client::types::v1::Status;
use containerd_client::{Client, with_namespace};
use serde_json::Value;

use crate::engine::JOB_LABEL;
use crate::{Contents, Endpoint, Inspected, Result};

/// What manifests may be.
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// One namespace of a containerd.
#[derive(Clone, Debug)]
pub(crate) struct Containerd {
    pub(crate) socket: PathBuf,
    pub(crate) namespace: String,
    /// The driver's folder.
    pub(crate) state: PathBuf,
}

impl Containerd {
    /// Asks containerd, on a thread of its own: who calls may be in an asynchronous runtime.
    fn ask<T: Send>(&self, question: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async { question(Client::from_path(&self.socket).await?).await })
            });
            asked
                .join()
                .unwrap_or_else(|_| Err("asking containerd panicked".into()))
        })
    }

    fn own(&self) -> PathBuf {
        self.state.join(&self.namespace)
    }

    pub(crate) fn version(&self) -> Result<String> {
        self.ask(async |client| Ok(client.version().version(()).await?.into_inner().version))
    }

    /// Everything: containers, images, layers that are written to, leases, and what lies in the driver's folder.
    pub(crate) fn contents(&self) -> Result<Contents> {
        let mut contents = self.ask(async |client| {
            let namespace = &self.namespace;
            let mut found = BTreeSet::new();
            let request = with_namespace!(ListContainersRequest::default(), namespace);
            for container in client.containers().list(request).await?.into_inner().containers {
                found.insert(format!("container {}", container.id));
            }
            let request = with_namespace!(ListImagesRequest::default(), namespace);
            for image in client.images().list(request).await?.into_inner().images {
                found.insert(format!("image {}", image.name));
                found.insert(format!("image {}", image.target.unwrap_or_default().digest));
            }
            let request = with_namespace!(ListRequest::default(), namespace);
            for lease in client.leases().list(request).await?.into_inner().leases {
                found.insert(format!("lease {}", lease.id));
            }
            let list = ListSnapshotsRequest {
                snapshotter: "overlayfs".to_owned(),
                filters: Vec::new(),
            };
            let request = with_namespace!(list, namespace);
            let mut snapshots = client.snapshots().list(request).await?.into_inner();
            while let Some(answer) = snapshots.message().await? {
                let active = answer.info.into_iter().filter(|info| info.kind() == Kind::Active);
                found.extend(active.map(|info| format!("snapshot {}", info.name)));
            }
            Ok(Contents(found))
        })?;
        for (folder, kind) in [
            ("volumes", "volume"),
            ("containers", "folder of container"),
            ("logs", "log"),
        ] {
            let names = names_in(&self.own().join(folder));
            contents.0.extend(names.map(|name| format!("{kind} {name}")));
        }
        // CNI plugins keep a file for each address that is in use, named like it, and one for each that is connected.
        let network = self.state.join("network");
        let addresses = names_in(&network.join("addresses/orchestra"));
        let addresses = addresses.filter(|name| name.parse::<std::net::IpAddr>().is_ok());
        contents.0.extend(addresses.map(|name| format!("address {name}")));
        contents
            .0
            .extend(names_in(&network.join("results")).map(|name| format!("connection {name}")));
        Ok(contents)
    }

    /// Containers and volumes of a job, or of any.
    pub(crate) fn leftovers(&self, job: Option<&str>) -> Result<Contents> {
        let filter = match job {
            Some(job) => format!("labels.{JOB_LABEL:?}=={job:?}"),
            None => format!("labels.{JOB_LABEL:?}"),
        };
        let mut contents = self.ask(async |client| {
            let list = ListContainersRequest { filters: vec![filter] };
            let request = with_namespace!(list, self.namespace);
            let found = client.containers().list(request).await?.into_inner().containers;
            Ok(Contents(
                found
                    .into_iter()
                    .map(|container| format!("container {}", container.id))
                    .collect(),
            ))
        })?;
        for name in names_in(&self.own().join("volumes")) {
            let metadata = fs::read(self.own().join("volumes").join(&name).join("volume.json")).unwrap_or_default();
            let labels: Value = serde_json::from_slice(&metadata).unwrap_or_default();
            let of = labels["labels"][JOB_LABEL].as_str();
            if of.is_some() && (job.is_none() || of == job) {
                contents.0.insert(format!("volume {name}"));
            }
        }
        Ok(contents)
    }

    /// How many containers of a job run.
    pub(crate) fn running(&self, job: &str) -> Result<usize> {
        let of_job = self.leftovers(Some(job))?;
        self.ask(async |client| {
            let request = with_namespace!(ListTasksRequest::default(), self.namespace);
            let tasks = client.tasks().list(request).await?.into_inner().tasks;
            let running = tasks.iter().filter(|task| task.status() == Status::Running);
            Ok(running
                .filter(|task| of_job.0.contains(&format!("container {}", task.id)))
                .count())
        })
    }

    pub(crate) fn tag(&self, image: &str, name: &str) -> Result<()> {
        self.ask(async |client| {
            let get = GetImageRequest {
                name: canonical(image)?,
            };
            let request = with_namespace!(get, self.namespace);
            let found = client
                .images()
                .get(request)
                .await?
                .into_inner()
                .image
                .unwrap_or_default();
            let image = Image {
                name: canonical(name)?,
                target: found.target,
                ..Image::default()
            };
            let create = CreateImageRequest {
                image: Some(image),
                source_date_epoch: None,
            };
            client.images().create(with_namespace!(create, self.namespace)).await?;
            Ok(())
        })
    }

    /// Pushes an image of one platform.
    pub(crate) fn push(&self, image: &str) -> Result<()> {
        let (address, rest) = image.split_once('/').ok_or("the image names no registry")?;
        let (repository, tag) = rest.rsplit_once(':').ok_or("the image has no tag")?;
        let registry = Endpoint::Tcp(address.to_owned());
        let (manifest, media_type, blobs) = self.ask(async |client| {
            let get = GetImageRequest {
                name: canonical(image)?,
            };
            let request = with_namespace!(get, self.namespace);
            let found = client
                .images()
                .get(request)
                .await?
                .into_inner()
                .image
                .unwrap_or_default();
            let target = found.target.unwrap_or_default();
            let manifest = self.blob(&client, &target.digest).await?;
            let parsed: Value = serde_json::from_slice(&manifest)?;
            let mut blobs = HashMap::new();
            let layers = parsed["layers"].as_array().into_iter().flatten();
            for blob in layers.chain([&parsed["config"]]) {
                let digest = blob["digest"].as_str().unwrap_or_default();
                blobs.insert(digest.to_owned(), self.blob(&client, digest).await?);
            }
            Ok((manifest, target.media_type, blobs))
        })?;
        if !MANIFESTS.contains(&media_type.as_str()) {
            return Err(format!("{image} is a {media_type}").into());
        }
        let send = |method: &str, path: &str, media_type: &str, body: &[u8], expected: u16| {
            let answer = registry.send(method, path, &[("Content-Type", media_type)], body)?;
            match answer.status {
                status if status == expected => Ok(answer),
                status => Err(format!("{method} {path}: status {status}: {}", answer.text()).into()),
            }
        };
        let binary = "application/octet-stream";
        for (digest, blob) in blobs {
            let begun = send("POST", &format!("/v2/{repository}/blobs/uploads/"), binary, &[], 202)?;
            let location = begun.header("location").ok_or("an upload without a location")?;
            // The registry tells it with or without its own address.
            let path = location.split_once(address).map_or(location, |(_, path)| path);
            let mark = if path.contains('?') { '&' } else { '?' };
            send("PUT", &format!("{path}{mark}digest={digest}"), binary, &blob, 201)?;
        }
        let path = format!("/v2/{repository}/manifests/{tag}");
        send("PUT", &path, &media_type, &manifest, 201).map(drop)
    }

    async fn blob(&self, client: &Client, digest: &str) -> Result<Vec<u8>> {
        let read = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        let mut pieces = client
            .content()
            .read(with_namespace!(read, self.namespace))
            .await?
            .into_inner();
        let mut blob = Vec::new();
        while let Some(piece) = pieces.message().await? {
            blob.extend(piece.data);
        }
        Ok(blob)
    }

    pub(crate) fn remove_image(&self, image: &str) -> Result<()> {
        self.ask(async |client| {
            let delete = DeleteImageRequest {
                name: canonical(image)?,
                sync: true,
                target: None,
            };
            match client.images().delete(with_namespace!(delete, self.namespace)).await {
                Err(status) if status.code() != Code::NotFound => Err(status.into()),
                _ => Ok(()),
            }
        })
    }

    /// What containerd, and the log's files, tell of a container.
    pub(crate) fn inspect(&self, id: &str) -> Result<Inspected> {
        let (mut texts, pid) = self.ask(async |client| {
            let get = GetContainerRequest { id: id.to_owned() };
            let request = with_namespace!(get, self.namespace);
            let container = client
                .containers()
                .get(request)
                .await?
                .into_inner()
                .container
                .unwrap_or_default();
            let values = container.extensions.values().chain(container.spec.as_ref());
            let mut texts: Vec<String> = values
                .map(|any| String::from_utf8_lossy(&any.value).into_owned())
                .collect();
            texts.push(format!("{:?} {:?}", container.labels, container.image));
            let get = GetRequest {
                container_id: id.to_owned(),
                exec_id: String::new(),
            };
            let task = client
                .tasks()
                .get(with_namespace!(get, self.namespace))
                .await?
                .into_inner()
                .process;
            Ok((texts, task.unwrap_or_default().pid))
        })?;
        for folder in ["logs", "containers"] {
            let folder = self.own().join(folder).join(id);
            for name in names_in(&folder).filter(|name| folder.join(name).is_file()) {
                texts.push(String::from_utf8_lossy(&fs::read(folder.join(name)).unwrap_or_default()).into_owned());
            }
        }
        Ok(Inspected { texts, pid: pid.into() })
    }
}

/// The names in a folder, but for those that begin with a dot.
fn names_in(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
}

fn canonical(image: &str) -> Result<String> {
    Ok(image.parse::<orchestra::ImageRef>()?.canonical())
}
