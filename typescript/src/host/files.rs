//! Volumes of a script: making them, files in and out, caches.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use orchestra::{ContainerPath, ErrorKind, InjectedFile, Name, VolumeId, VolumePath, stream, tar_of_files};
use orchestra_pipelines::SingleStep;
use serde_json::{Map, Value, json};

use super::options::Refused;
use super::{Answer, Failure, Host, Kind, Object, Reason, locked};

/// Most bytes of one file, and of all files of one call: a script is no place for more.
const FILE_LIMIT: u64 = 16 << 20;
const TOTAL_LIMIT: u64 = 32 << 20;

impl Host<'_, '_> {
    pub(super) async fn volume(&self, name: &Name) -> Answer {
        // Names that Orchestra keeps for itself are refused as in a file.
        let step = json!({ "task": "check", "image": "none", "config": {
            "inputs": [{ "name": name }], "run": { "path": "true" } } });
        SingleStep::read(&step, None).await?;
        self.session.volume(name).await?;
        locked(&self.volumes).insert(name.to_string());
        Ok(json!({ "volume": name }))
    }

    async fn volume_of(&self, args: &Object) -> Result<VolumeId, Failure> {
        let name = args.get("volume").and_then(Value::as_str).unwrap_or_default();
        self.check_volume(name)?;
        Ok(self.session.volume(&Name::new(name)?).await?)
    }

    pub(super) async fn read_files(&self, args: &Object) -> Answer {
        let volume = self.volume_of(args).await?;
        let work = self.files_of(&volume, args);
        self.once(volume.as_str(), "read", &Value::Object(args.clone()), work)
            .await
            .0
    }

    async fn files_of(&self, volume: &VolumeId, args: &Object) -> Answer {
        let bytes = args.get("bytes") == Some(&Value::Bool(true));
        let mut files = Map::new();
        let mut total = 0;
        for path in args.get("paths").and_then(Value::as_array).into_iter().flatten() {
            let Some(path) = path.as_str() else {
                return Err(Refused::new("a path is a string").into());
            };
            let wanted = VolumePath::new(path.trim_start_matches("./"))?;
            let read = self.session.job().read_file(volume, &wanted, FILE_LIMIT).await;
            let content = read.map_err(|error| match error.kind() {
                ErrorKind::PathNotFound => Failure::from(Reason {
                    kind: Kind::Task,
                    message: format!("there is no file {path:?} in the volume"),
                    status: Some(orchestra_pipelines::Status::Failed),
                    ..Reason::default()
                }),
                _ => error.into(),
            })?;
            total += content.len() as u64;
            if total > TOTAL_LIMIT {
                let message = format!("the files are larger than {TOTAL_LIMIT} bytes together");
                return Err(Refused::new(message).hint("read fewer files at once").into());
            }
            let content = if bytes {
                BASE64_STANDARD.encode(&content)
            } else {
                String::from_utf8(content).map_err(|_| {
                    Refused::new(format!("{path:?} is no UTF-8 text")).hint("read it with `{ encoding: \"bytes\" }`")
                })?
            };
            files.insert(path.to_owned(), Value::String(content));
        }
        Ok(Value::Object(files))
    }

    pub(super) async fn write_files(&self, args: &Object) -> Answer {
        let volume = self.volume_of(args).await?;
        let mode = match args.get("mode") {
            None | Some(Value::Null) => None,
            Some(mode) => {
                let mode = mode
                    .as_u64()
                    .and_then(|mode| u32::try_from(mode).ok())
                    .filter(|mode| *mode <= 0o7777);
                Some(mode.ok_or_else(|| Refused::new("`mode` is a number, for example 0o755"))?)
            }
        };
        let mut files = Vec::new();
        for file in args.get("files").and_then(Value::as_array).into_iter().flatten() {
            let path = file.get("path").and_then(Value::as_str).unwrap_or_default();
            let path = VolumePath::new(path.trim_start_matches("./"))?;
            let mut written = InjectedFile::new(ContainerPath::new(format!("/{path}"))?, content(file)?);
            written.mode = mode.unwrap_or(0o644);
            files.push(written);
        }
        let total: u64 = files.iter().map(|file| file.content.len() as u64).sum();
        if total > TOTAL_LIMIT {
            let message = format!("the files are larger than {TOTAL_LIMIT} bytes together");
            return Err(Refused::new(message)
                .hint("write fewer files at once, or have a task make them")
                .into());
        }
        let tar = tar_of_files(&files).await?;
        let write = async {
            let driver = self.session.job().driver();
            driver
                .write_volume(&volume, &VolumePath::root(), stream::once(tar))
                .await?;
            Ok(Value::Null)
        };
        self.once(volume.as_str(), "write", &Value::Object(args.clone()), write)
            .await
            .0
    }

    pub(super) async fn restore(&self, step: Value) -> Answer {
        let single = SingleStep::read(&step, self.session.secrets()).await?;
        let mut devices = false;
        if let orchestra_pipelines::Action::Task(plan) = &single.step.action {
            for input in &plan.inputs {
                self.check_volume(input.name.as_str())?;
            }
            devices = plan.caches.iter().all(|cache| cache.devices);
        }
        let name = self.session.cache(&single).await?;
        if !devices {
            locked(&self.without_devices).insert(name.to_string());
        }
        locked(&self.volumes).insert(name.to_string());
        Ok(json!({ "volume": name }))
    }

    pub(super) async fn persist(&self, args: &Object) -> Answer {
        let name = args.get("volume").and_then(Value::as_str).unwrap_or_default();
        self.check_volume(name)?;
        locked(&self.volumes).remove(name);
        self.session.release(&Name::new(name)?).await?;
        Ok(Value::Null)
    }
}

/// Text, or bytes in base64.
pub(super) fn content(value: &Value) -> Result<Vec<u8>, Failure> {
    if let Some(text) = value.get("text").and_then(Value::as_str) {
        return Ok(text.as_bytes().to_vec());
    }
    let encoded = value.get("base64").and_then(Value::as_str).unwrap_or_default();
    Ok(BASE64_STANDARD
        .decode(encoded)
        .map_err(|_| Refused::new("that is no base64"))?)
}
