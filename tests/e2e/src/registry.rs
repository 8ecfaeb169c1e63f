//! What a registry serves ([OCI distribution](https://github.com/opencontainers/distribution-spec/blob/main/spec.md)).

use crate::{Credentials, Endpoint, Result};

/// A tag may stand for a single image or an index of several, in docker's words or OCI's.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// The digest that a registry at `HOST:PORT`, spoken to by plain HTTP, serves for a tag.
///
/// # Errors
/// If it does not serve the tag.
pub fn digest(address: &str, repository: &str, tag: &str, credentials: Option<&Credentials>) -> Result<String> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let authorization = credentials.map(Credentials::basic);
    let mut headers = vec![("Accept", MANIFESTS)];
    headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
    let response = Endpoint::Tcp(address.to_owned()).send("GET", &path, &headers, &[])?;
    match (response.status, response.header("docker-content-digest")) {
        (200, Some(digest)) => Ok(digest.to_owned()),
        (status, _) => Err(format!("{address}/{repository}:{tag}: status {status}: {}", response.text()).into()),
    }
}

/// A manifest (`manifests/TAG`) or a blob (`blobs/DIGEST`) that is JSON, of a registry at `HOST:PORT` that asks for no password.
///
/// # Errors
/// If it does not serve it.
pub fn json(address: &str, repository: &str, path: &str) -> Result<serde_json::Value> {
    let path = format!("/v2/{repository}/{path}");
    let response = Endpoint::Tcp(address.to_owned()).send("GET", &path, &[("Accept", MANIFESTS)], &[])?;
    match response.status {
        200 => Ok(serde_json::from_str(&response.text())?),
        status => Err(format!("{address}{path}: status {status}: {}", response.text()).into()),
    }
}

/// Whether a registry answers at `HOST:PORT`; one that asks for a password does.
#[must_use]
pub fn answers(address: &str) -> bool {
    Endpoint::Tcp(address.to_owned())
        .get("/v2/")
        .is_ok_and(|response| matches!(response.status, 200 | 401))
}
