//! The calls of one task made bare: what the engine itself costs, with nothing of ours in between.

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    WaitContainerOptions,
};
use futures_util::StreamExt;

use crate::Outcome;

/// Asks for the image, makes, attaches, starts, waits for, reads and removes a container, as a careful caller would.
pub(crate) async fn task(docker: &Docker, image: &str, name: &str, command: &[&str]) -> Outcome<()> {
    docker.inspect_image(image).await?;
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(command.iter().map(ToString::to_string).collect()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        ..ContainerCreateBody::default()
    };
    let options = CreateContainerOptionsBuilder::new().name(name).build();
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
