//! A store of secrets of a product's own, and a task that is given a secret from it:
//! `cargo run -p orchestra-examples --bin store -- podman`.
//!
//! `vault` stands for the client that the product has already. What is shown is `TeamVault`: the four methods, how scopes
//! become paths, and which answer is an error and which is none.

use std::sync::Arc;

use async_trait::async_trait;
use orchestra::{Error, ErrorKind, Job, Result, SharedDriver, Task, layer, sink};
use orchestra_containerd::{ContainerdConfig, ContainerdDriver};
use orchestra_docker::{DockerConfig, DockerDriver};
use orchestra_podman::{PodmanConfig, PodmanDriver};
use orchestra_secrets::{
    Listed, Scope, SecretKey, SecretStore, SecretValue, Secrets, SecretsLayer, TaskSecrets, read_only,
};

/// The secrets of one team in the product's vault. Pipelines may read them; people change them elsewhere.
#[derive(Debug)]
struct TeamVault {
    team: String,
    vault: vault::Client,
}

impl TeamVault {
    fn path(&self, scope: &Scope, key: &SecretKey) -> String {
        match scope {
            Scope::Pipeline(name) => format!("{}/pipelines/{name}/{key}", self.team),
            Scope::Global => format!("{}/{key}", self.team),
        }
    }
}

#[async_trait]
impl SecretStore for TeamVault {
    async fn get(&self, scope: &Scope, key: &SecretKey) -> Result<Option<SecretValue>> {
        let path = self.path(scope, key);
        match self.vault.read(&path).await {
            Ok(value) => Ok(Some(SecretValue::new(value))),
            // That there is none is no error: the next scope, and the next store, are asked.
            Err(vault::Failure::NoSuchPath) => Ok(None),
            // What keeps the vault from answering is one, or a secret of that name from another store would be taken.
            Err(vault::Failure::Denied) => Err(Error::new(
                ErrorKind::PermissionDenied,
                format!("the vault does not let us read {path}"),
            )
            .with_hint("ask the owner of the team's secrets")),
        }
    }

    async fn set(&self, _: &Scope, _: &SecretKey, _: &SecretValue) -> Result<()> {
        Err(read_only("the team's vault"))
    }

    async fn list(&self) -> Result<Vec<Listed>> {
        Err(Error::new(ErrorKind::Unsupported, "the vault can only be asked"))
    }

    async fn remove(&self, _: &Scope, _: &SecretKey) -> Result<bool> {
        Err(read_only("the team's vault"))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let driver: SharedDriver = match std::env::args().nth(1).as_deref() {
        Some("podman") => Arc::new(PodmanDriver::connect(PodmanConfig::default()).await?),
        Some("containerd") => Arc::new(ContainerdDriver::connect(ContainerdConfig::default()).await?),
        _ => Arc::new(DockerDriver::connect(DockerConfig::default()).await?),
    };
    let store = TeamVault {
        team: "payments".to_owned(),
        vault: vault::Client,
    };
    // A pipeline's own secrets go before those of the whole team; the layer stands next to the driver.
    let secrets = Secrets::new([Scope::pipeline("deploy")?, Scope::Global]).store("vault", store);
    let driver = layer::standard(SecretsLayer::wrap(driver, secrets));
    let job = Job::builder(driver).build();
    let outcome = run(&job).await;
    job.end().await?;
    outcome
}

async fn run(job: &Job) -> Result<()> {
    let task = Task::new("deploy", "busybox:stable")?
        .shell("echo \"as $DEPLOY_USER with ${#TOKEN} bytes: $TOKEN\"; wc -c < /run/secrets/token")
        .env("DEPLOY_USER", "secret:DEPLOY_USER")
        // As a variable that the engine does not show, and as a file in memory.
        .env("TOKEN", "secret:TOKEN")
        .hide_secret_env()
        .secret_file("/run/secrets/token", &SecretKey::new("TOKEN")?)?
        .output(sink::to_writers(tokio::io::stdout(), tokio::io::stderr()));
    job.run(task).await?.success()?;
    Ok(())
}

/// Stands for the client that the product has.
mod vault {
    #[derive(Debug)]
    pub(super) struct Client;

    pub(super) enum Failure {
        NoSuchPath,
        Denied,
    }

    impl Client {
        pub(super) async fn read(&self, path: &str) -> Result<Vec<u8>, Failure> {
            match path {
                "payments/DEPLOY_USER" => Ok(b"robot".to_vec()),
                "payments/pipelines/deploy/TOKEN" => Ok(b"hunter2-of-the-pipeline".to_vec()),
                path if path.starts_with("payments/") => Err(Failure::NoSuchPath),
                _ => Err(Failure::Denied),
            }
        }
    }
}
