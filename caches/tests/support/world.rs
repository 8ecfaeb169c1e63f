//! Runs of jobs with caches, on the in-memory engine.

use std::sync::Arc;

use orchestra::layer::{Faults, Layered};
use orchestra::{Job, JobId, Labels, SharedDriver, Task, VolumeId};
use orchestra_caches::{CacheEvent, CacheEventKind, CacheSpec, CachesLayer, CachesOptions, Store};
use orchestra_conformance::memory::{MemoryEngine, MemoryImage};
use tokio::sync::mpsc;

use super::{Flaky, key};

pub struct World {
    pub folder: tempfile::TempDir,
    pub objects: Arc<Flaky>,
    pub engine: MemoryEngine,
}

/// A run of one job, by a process of its own.
pub struct Run {
    pub job: Job,
    pub events: mpsc::Receiver<CacheEvent>,
}

pub fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.add_image("busybox", MemoryImage::busybox()).unwrap();
    engine
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = Arc::new(Flaky::new(folder.path()));
        Self {
            folder,
            objects,
            engine: engine(),
        }
    }

    pub fn store(&self) -> Store {
        Store::in_objects(self.objects.clone(), "test")
    }

    pub fn layer(&self, driver: SharedDriver, options: CachesOptions) -> (CachesLayer, mpsc::Receiver<CacheEvent>) {
        let (send, events) = mpsc::channel(64);
        (CachesLayer::new(driver, self.store(), options).events(send), events)
    }

    pub fn run_with(&self, id: Option<&str>, options: CachesOptions) -> Run {
        let (layer, events) = self.layer(self.engine.driver(), options);
        let mut job = Job::builder(Arc::new(layer));
        if let Some(id) = id {
            job = job.id(JobId::new(id).unwrap());
        }
        Run {
            job: job.build(),
            events,
        }
    }

    /// A run whose engine meets these faults.
    pub fn run_among(&self, faults: Faults, options: CachesOptions) -> Run {
        let (layer, events) = self.layer(Layered::wrap(self.engine.driver(), faults), options);
        Run {
            job: Job::builder(Arc::new(layer)).build(),
            events,
        }
    }

    pub fn run(&self) -> Run {
        self.run_with(None, CachesOptions::default())
    }
}

pub fn spec(name: &str) -> CacheSpec {
    CacheSpec::new(key(name))
}

impl Run {
    pub async fn volume(&self, spec: &CacheSpec) -> VolumeId {
        self.job
            .create_volume_with("cache.a", Labels::from([spec.label()]))
            .await
            .unwrap()
    }

    /// What a task with the cache at `c` prints.
    pub async fn task(&self, name: &str, volume: &VolumeId, script: &str) -> String {
        let task = Task::new(name, "busybox")
            .unwrap()
            .shell(script)
            .mount(volume, "c")
            .unwrap();
        self.job.run(task).await.unwrap().stdout.to_string()
    }

    pub async fn end(mut self) -> Vec<CacheEventKind> {
        self.job.end().await.unwrap();
        let mut told = Vec::new();
        drop(self.job);
        while let Some(event) = self.events.recv().await {
            told.push(event.kind);
        }
        told
    }
}

/// A run that writes `text` into the cache.
pub async fn write(world: &World, name: &str, text: &str) -> Vec<CacheEventKind> {
    let run = world.run();
    let volume = run.volume(&spec(name)).await;
    run.task("write", &volume, &format!("echo {text} > c/file")).await;
    run.end().await
}

/// What a run with this spec finds in the cache.
pub async fn read(world: &World, spec: &CacheSpec) -> (String, Vec<CacheEventKind>) {
    let run = world.run();
    let volume = run.volume(spec).await;
    let found = run
        .task(
            "read",
            &volume,
            "if test -e c/file; then cat c/file; else echo nothing; fi",
        )
        .await;
    (found.trim().to_owned(), run.end().await)
}
