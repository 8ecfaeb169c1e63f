//! The first thing to see: an image is built, pushed and run by one command, and its digest is true.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{cargo, engine::Driver, environment::Environment, fixtures, http, process, registry, term};

const EXAMPLE: &str = "examples/image-build.yml";

/// What a registry may serve under a tag: a single image or an index of several, in docker's words or OCI's.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Builds the binary that the demo shows, outside of the environment, whose network has no package registry.
pub(crate) fn build() -> Result<PathBuf> {
    term::step("build orchestra", || cargo::executable("build --package=orchestra-cli"))
}

/// Runs the example, then asks the registry for the digest of the tag that it pushed.
pub(crate) fn run(environment: &Environment, driver: Driver, orchestra: &Path) -> Result<()> {
    let example = fs::read_to_string(fixtures::repository().join(EXAMPLE)).context(EXAMPLE)?;
    let (repository, tag) =
        pushed(&example).with_context(|| format!("{EXAMPLE} pushes nothing to {}", registry::OPEN))?;

    let mut command = environment.command(&orchestra.display().to_string());
    command
        .args(["run", EXAMPLE, "--driver", driver.name()])
        .current_dir(fixtures::repository());
    let (status, output) = process::tee(&mut command)?;
    process::succeeded(&command, status)?;

    let digest = environment.on_network(|| served_digest(&repository, &tag))?;
    let reference = format!("{}/{repository}:{tag}", registry::OPEN);
    if !output.contains(&digest) {
        bail!("the registry serves {reference} with digest {digest}, which is not what was printed");
    }
    term::note(&format!(
        "checked: the registry serves {reference} with the digest that was printed, {digest}"
    ));
    Ok(())
}

/// The repository and the tag of the first reference into the open registry.
fn pushed(example: &str) -> Option<(String, String)> {
    let (_, rest) = example.split_once(&format!("{}/", registry::OPEN))?;
    let reference = rest.split(|c: char| c.is_whitespace() || "\"',}".contains(c)).next()?;
    let (repository, tag) = reference.rsplit_once(':')?;
    Some((repository.to_owned(), tag.to_owned()))
}

fn served_digest(repository: &str, tag: &str) -> Result<String> {
    let stream = TcpStream::connect(registry::OPEN)?;
    let response = http::get_as(stream, &format!("/v2/{repository}/manifests/{tag}"), MANIFESTS)?;
    if response.status != 200 {
        bail!(
            "the registry does not serve {repository}:{tag}: {} {}",
            response.status,
            response.text()
        );
    }
    let digest = response
        .header("docker-content-digest")
        .context("the registry tells no digest")?;
    Ok(digest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pushed_reference_is_found_in_yaml() {
        let found = Some(("demo/hello".to_owned(), "1.0".to_owned()));
        assert_eq!(pushed("tag: 127.0.0.1:5055/demo/hello:1.0\npush: true"), found);
        assert_eq!(pushed("{tag: \"127.0.0.1:5055/demo/hello:1.0\", push: true}"), found);
        assert_eq!(pushed("tag: other/hello:1.0"), None);
    }
}
