//! docker's calls, by `bollard` on a connection that is kept.

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptions,
};
use futures_util::StreamExt;

use super::Task;
use crate::Outcome;

/// Asks for the image, makes, attaches, starts, waits for, reads and removes a container, as a careful caller would.
pub(super) async fn task(docker: &Docker, task: &Task<'_>) -> Outcome<()> {
    docker.inspect_image(task.image).await?;
    let body = ContainerCreateBody {
        image: Some(task.image.to_owned()),
        entrypoint: Some(task.command.iter().map(ToString::to_string).collect()),
        host_config: Some(HostConfig {
            network_mode: (!task.network).then(|| "none".to_owned()),
            ..HostConfig::default()
        }),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(task.name).build();
    let id = docker.create_container(Some(options), body).await?.id;
    let attach = AttachContainerOptionsBuilder::new()
        .stream(true)
        .stdout(true)
        .stderr(true)
        .build();
    let mut attached = docker.attach_container(&id, Some(attach)).await?;
    docker.start_container(&id, None::<StartContainerOptions>).await?;
    while let Some(output) = attached.output.next().await {
        output?;
    }
    let mut wait = docker.wait_container(&id, None::<WaitContainerOptions>);
    while let Some(ended) = wait.next().await {
        ended?;
    }
    let remove = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    docker.remove_container(&id, Some(remove)).await?;
    Ok(())
}
