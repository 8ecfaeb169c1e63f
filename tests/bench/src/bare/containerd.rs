//! containerd's calls, on a connection that is kept; the output by two fifos, as `ctr` has it, or by a logging URI, which is how
//! containerd has it outlive who asked for it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest, DeleteTaskRequest,
    GetContainerRequest, GetImageRequest, ReadContentRequest, StartRequest, WaitRequest,
};
use containerd_client::tonic::Request;
use containerd_client::types::Mount;
use containerd_client::{Client, with_namespace};
use futures_util::StreamExt;
use orchestra::{ContainerId, ContainerSpec, Driver, LogStream, NetworkMode};
use orchestra_oci::logs::{LogStore, install_program};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::unix::pipe;

use super::Task;
use crate::Outcome;

const SNAPSHOTTER: &str = "overlayfs";
/// Bytes of a log that is kept.
const LOG_LIMIT: u64 = 16 << 20;

/// One namespace of a containerd.
#[derive(Clone)]
pub(crate) struct Containerd {
    client: Arc<Client>,
    namespace: String,
    /// The runtime spec that the driver makes: what a container may do costs time, above all its filter of system calls.
    spec: Value,
    /// Of tasks whose output is kept.
    logs: LogStore,
    /// Where they are, and the files of `/etc`.
    _folder: Arc<TempDir>,
}

/// A task's output on its way.
enum Output {
    Pipes(pipe::Receiver, pipe::Receiver),
    Log(LogStream),
}

impl Containerd {
    pub(super) async fn connect(driver: &dyn Driver, image: &str) -> Outcome<Self> {
        let socket = driver.info().endpoint.trim_start_matches("unix://").to_owned();
        let client = Client::from_path(socket).await?;
        let namespace = std::env::var("CONTAINERD_NAMESPACE").unwrap_or_else(|_| "orchestra".to_owned());
        let model = ContainerId::new(format!("orchestra-bench-model-{}", std::process::id()))?;
        let mut asked = ContainerSpec::new(image.parse()?);
        asked.network = NetworkMode::None;
        driver.create_container(&model, &asked).await?;
        let get = GetContainerRequest { id: model.to_string() };
        let found = client.containers().get(with_namespace!(get, namespace)).await;
        driver.remove_container(&model).await?;
        let record = found?.into_inner().container.and_then(|container| container.spec);
        let mut spec: Value = serde_json::from_slice(&record.ok_or("the container has no spec")?.value)?;
        let etc = tempfile::tempdir()?;
        let mounts = spec["mounts"].as_array_mut().ok_or("the container has no mounts")?;
        for mount in mounts.iter_mut().filter(|mount| mount["type"] == "bind") {
            let name = Path::new(mount["source"].as_str().unwrap_or_default()).file_name();
            let file = etc.path().join(name.ok_or("a mount has no source")?);
            std::fs::write(&file, "")?;
            mount["source"] = json!(file);
        }
        let program = etc.path().join("helper");
        install_program(&program)?;
        let logs = LogStore::open(etc.path().join("logs"), program, LOG_LIMIT).await?;
        Ok(Self {
            client: Arc::new(client),
            namespace,
            spec,
            logs,
            _folder: Arc::new(etc),
        })
    }

    pub(super) async fn task(&self, task: &Task<'_>) -> Outcome<()> {
        let namespace = self.namespace.as_str();
        let id = task.name.to_owned();
        let parent = self.unpacked(task.image).await?;
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: id.clone(),
            parent,
            // Nothing holds it until its container is there: containerd's collector would take it.
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), "true".to_owned())]),
        };
        let prepare = with_namespace!(prepare, namespace);
        let rootfs = self.client.snapshots().prepare(prepare).await?.into_inner().mounts;
        let container = Container {
            id: id.clone(),
            image: task.image.to_owned(),
            runtime: Some(Runtime {
                name: "io.containerd.runc.v2".to_owned(),
                options: None,
            }),
            spec: Some(prost_types::Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: self.spec_of(task)?,
            }),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.clone(),
            ..Container::default()
        };
        let create = CreateContainerRequest {
            container: Some(container),
        };
        let create = with_namespace!(create, namespace);
        self.client.containers().create(create).await?;
        self.run(&id, rootfs, task.kept).await?;
        let delete = DeleteContainerRequest { id: id.clone() };
        self.client
            .containers()
            .delete(with_namespace!(delete, namespace))
            .await?;
        let remove = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: id,
        };
        self.client
            .snapshots()
            .remove(with_namespace!(remove, namespace))
            .await?;
        Ok(())
    }

    fn spec_of(&self, task: &Task<'_>) -> Outcome<Vec<u8>> {
        let mut spec = self.spec.clone();
        spec["process"]["args"] = json!(task.command);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}/{}", self.namespace, task.name));
        Ok(serde_json::to_vec(&spec)?)
    }

    async fn run(&self, id: &str, rootfs: Vec<Mount>, kept: bool) -> Outcome<()> {
        let namespace = self.namespace.as_str();
        let folder = tempfile::tempdir()?;
        let (paths, output) = if kept {
            self.logs.create(id).await?;
            let uri = self.logs.uri(id)?;
            ([uri.clone(), uri], Output::Log(self.logs.read(id, 0, true).await?))
        } else {
            let paths = ["stdout", "stderr"].map(|name| folder.path().join(name));
            let output = Output::Pipes(open_fifo(&paths[0])?, open_fifo(&paths[1])?);
            (paths.map(|path| path.display().to_string()), output)
        };
        let [stdout, stderr] = paths;
        let create = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        };
        self.client.tasks().create(with_namespace!(create, namespace)).await?;
        let wait = WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let mut tasks = self.client.tasks();
        let waiting = with_namespace!(wait, namespace);
        let waiting = tokio::spawn(async move { tasks.wait(waiting).await });
        let start = StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        self.client.tasks().start(with_namespace!(start, namespace)).await?;
        let output = tokio::spawn(read(output));
        let status = waiting.await??.into_inner().exit_status;
        let delete = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        self.client.tasks().delete(with_namespace!(delete, namespace)).await?;
        output.await??;
        if kept {
            self.logs.remove(id).await?;
        }
        if status == 0 {
            Ok(())
        } else {
            Err(format!("{id} ended with {status}").into())
        }
    }

    /// What the image is unpacked to: the chain of its layers' digests.
    async fn unpacked(&self, image: &str) -> Outcome<String> {
        let get = GetImageRequest { name: image.to_owned() };
        let found = self.client.images().get(with_namespace!(get, self.namespace)).await?;
        let target = found.into_inner().image.and_then(|image| image.target);
        let mut manifest = self.blob(&target.ok_or("the image has no target")?.digest).await?;
        if let Some(digest) = manifest["manifests"][0]["digest"].as_str() {
            manifest = self.blob(digest).await?;
        }
        let config = manifest["config"]["digest"].as_str().ok_or("the image has no config")?;
        let config = self.blob(config).await?;
        let layers = config["rootfs"]["diff_ids"]
            .as_array()
            .ok_or("the image has no layers")?;
        let mut chain = String::new();
        for layer in layers.iter().filter_map(Value::as_str) {
            chain = if chain.is_empty() {
                layer.to_owned()
            } else {
                let digest = Sha256::digest(format!("{chain} {layer}"));
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sha256:{hex}")
            };
        }
        Ok(chain)
    }

    async fn blob(&self, digest: &str) -> Outcome<Value> {
        let read = ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        };
        let read = self
            .client
            .content()
            .read(with_namespace!(read, self.namespace))
            .await?;
        let mut pieces = read.into_inner();
        let mut blob = Vec::new();
        while let Some(piece) = pieces.message().await? {
            blob.extend(piece.data);
        }
        Ok(serde_json::from_slice(&blob)?)
    }
}

/// Reads all of it.
async fn read(output: Output) -> std::io::Result<()> {
    match output {
        Output::Pipes(mut stdout, mut stderr) => {
            let (mut first, mut second) = (tokio::io::sink(), tokio::io::sink());
            tokio::try_join!(
                tokio::io::copy(&mut stdout, &mut first),
                tokio::io::copy(&mut stderr, &mut second)
            )?;
        }
        Output::Log(mut log) => {
            while let Some(chunk) = log.next().await {
                chunk.map_err(std::io::Error::other)?;
            }
        }
    }
    Ok(())
}

/// Makes a fifo and opens it, before the shim does: later it may have come and gone.
fn open_fifo(path: &Path) -> Outcome<pipe::Receiver> {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )?;
    Ok(pipe::OpenOptions::new().open_receiver(path)?)
}
