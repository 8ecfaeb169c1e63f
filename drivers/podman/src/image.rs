//! Images: from registries and archives into the engine, and out of it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures_util::{StreamExt, TryStreamExt};
use orchestra::{
    ByteStream, Credentials, Error, ErrorKind, ExposeSecret, ImageRef, Platform, PullEvent, PullImage, PullStream,
    Result,
};
use serde::Deserialize;

use crate::client::lines;
use crate::driver::PodmanDriver;
use crate::error::{Cause, Failure, Subject, about, cause_of, is_missing};
use orchestra::tar;

/// How often an image that others remove is looked at, and the pause after the first time; each time longer.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

/// What `GET /libpod/images/NAME/json` says, as far as it is asked here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Found {
    os: String,
    architecture: String,
    pub(crate) config: Config,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Config {
    pub(crate) entrypoint: Option<Vec<String>>,
}

impl Found {
    /// libpod runs an image of any platform, whichever was asked for.
    pub(crate) fn check_platform(&self, image: &ImageRef, wanted: &Platform) -> Result<()> {
        if (&self.os, &self.architecture) == (&wanted.os, &wanted.architecture) {
            return Ok(());
        }
        let message = format!(
            "{image} is there for {}/{}, not for {wanted}",
            self.os, self.architecture
        );
        Err(Error::new(ErrorKind::ImageNotFound, message).with_hint("pull it for this platform"))
    }
}

impl PodmanDriver {
    /// The image of this name.
    pub(crate) async fn image_by(&self, name: &str) -> Result<Found, Failure> {
        let mut attempt = 1;
        loop {
            match self.client.get(&["images", name, "json"]).value().await {
                // 4.3.1 stumbles where the image's layer goes between its own two looks.
                Err(failure) if cause_of(&failure) == Some(Cause::Panic) && attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                found => return found,
            }
        }
    }

    /// The name of it that the engine has.
    async fn name_of(&self, image: &ImageRef) -> Result<Option<String>> {
        for name in names(image) {
            match self.image_by(&name).await {
                Ok(_) => return Ok(Some(name)),
                Err(failure) if is_missing(&failure) => {}
                Err(failure) => return Err(about(Subject::Image)(failure)),
            }
        }
        Ok(None)
    }

    pub(crate) async fn pull(&self, pull: &PullImage) -> Result<PullStream> {
        self.info.capabilities.check_pull(pull)?;
        let image = &pull.image;
        // `compatMode` is what tells of layers and begins with a status, from podman 5 on; 4.3 knows nothing of it.
        let mut call = self
            .client
            .post(&["images", "pull"])
            .query("reference", image.canonical())
            .query("policy", "always")
            .query("compatMode", true);
        // Every engine speaks plain HTTP to a registry on its own host, but for libpod.
        if pull.insecure || is_loopback(image.registry()) {
            call = call.query("tlsVerify", false);
        }
        if let Some(platform) = &pull.platform {
            call = call.query("OS", &platform.os).query("Arch", &platform.architecture);
            if let Some(variant) = &platform.variant {
                call = call.query("Variant", variant);
            }
        }
        let failed = about(Subject::Registry);
        if let Some(credentials) = &pull.credentials {
            call = call
                .secret("x-registry-auth", &for_registry(credentials))
                .map_err(failed)?;
        }
        let steps = call.stream().await.map_err(failed)?;
        let steps = lines::<Step>(steps).map(move |step| step.map_err(failed).and_then(event));
        Ok(steps.try_filter_map(async |event| Ok(event)).boxed())
    }

    pub(crate) async fn import(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        if image.digest().is_some() {
            return Err(
                Error::invalid(format!("an image can't be given the name {image}, which has a digest"))
                    .with_hint("give it a tag"),
            );
        }
        let (body, failure) = tar::tracked(tar::docker_archive(archive, image, &self.info.platform, true));
        let loaded = self.client.post(&["images", "load"]).tar(body).done().await;
        failure.or(loaded.map_err(|failure| interfered(about(Subject::Engine)(failure))))
    }

    pub(crate) async fn has_image(&self, image: &ImageRef) -> Result<bool> {
        Ok(self.name_of(image).await?.is_some())
    }

    pub(crate) async fn untag(&self, image: &ImageRef) -> Result<()> {
        match self.name_of(image).await? {
            Some(name) => self.remove_image_named(&name).await.map_err(about(Subject::Image)),
            None => Ok(()),
        }
    }

    /// Takes the name away, and the image with its last one. Refused while a container uses it.
    pub(crate) async fn remove_image_named(&self, name: &str) -> Result<(), Failure> {
        match self.client.delete(&["images", name]).done().await {
            Err(failure) if !is_missing(&failure) => Err(failure),
            _ => Ok(()),
        }
    }
}

/// What podman may call an image: one that was loaded or built under a name without a registry belongs to `localhost`.
pub(crate) fn names(image: &ImageRef) -> impl Iterator<Item = String> {
    let canonical = image.canonical();
    let first = image.as_str().split('/').next().unwrap_or_default();
    // As it is with all of an image's names: a registry has a dot, a port, or is this one.
    let registry = image.as_str().contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let local = (!registry).then(|| {
        let written = canonical.strip_prefix("docker.io/").unwrap_or(&canonical);
        let short = written
            .strip_prefix("library/")
            .filter(|_| !image.as_str().starts_with("library/"));
        format!("localhost/{}", short.unwrap_or(written))
    });
    std::iter::once(canonical).chain(local)
}

/// Whether a registry, by host and port, is on the engine's own host.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// An import finds a layer that is there already, and others remove the image that had it before the new one is made. It
/// is said when the layer is to be taken over or when the image is made of it (4.3.1 and 5.4.2).
fn interfered(error: Error) -> Error {
    if !["trying to reuse blob", "layer not known"]
        .iter()
        .any(|words| error.message().contains(words))
    {
        return error;
    }
    Error::new(
        ErrorKind::Conflict,
        "a layer of the image was removed with another image meanwhile",
    )
    .retryable(true)
    .with_source(error)
}

fn for_registry(credentials: &Credentials) -> String {
    let auth = serde_json::json!({
        "username": credentials.username.expose_secret(),
        "password": credentials.password.expose_secret(),
    });
    URL_SAFE.encode(auth.to_string())
}

/// One line of a pull: those of docker's API where `compatMode` is known, else libpod's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    stream: Option<String>,
    error: Option<String>,
    status: Option<String>,
    id: Option<String>,
    #[serde(rename = "progressDetail")]
    progress: Progress,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    current: Option<i64>,
    total: Option<i64>,
}

fn event(step: Step) -> Result<Option<PullEvent>> {
    if let Some(message) = step.error {
        return Err(Error::new(refusal(&message), message));
    }
    let bytes = |count: Option<i64>| {
        count
            .and_then(|count| u64::try_from(count).ok())
            .filter(|count| *count > 0)
    };
    Ok(match (step.id, step.status, step.stream) {
        (Some(id), Some(status), _) => Some(PullEvent::Layer {
            id,
            status,
            current: bytes(step.progress.current),
            total: bytes(step.progress.total),
        }),
        (_, Some(message), _) | (_, _, Some(message)) => Some(PullEvent::Status {
            message: message.trim().to_owned(),
        }),
        _ => None,
    })
}

/// What a registry refused. Where an answer has begun no status can follow, and libpod has no field for a code: but
/// the text ends with the registry's own (`MANIFEST_UNKNOWN`), as the Go library of the
/// [distribution specification](https://github.com/opencontainers/distribution-spec/blob/main/spec.md#error-codes) prints it, and maybe with the
/// registry's words after that.
fn refusal(message: &str) -> ErrorKind {
    let code = message.split(": ").find_map(|part| {
        Some(match part {
            "manifest unknown" | "name unknown" => ErrorKind::ImageNotFound,
            "unauthorized" | "denied" => ErrorKind::Unauthorized,
            "no space left on device" => ErrorKind::DiskFull,
            _ => return None,
        })
    });
    code.unwrap_or(ErrorKind::Registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_registry_may_be_one_that_was_built_here() {
        for (image, expected) in [
            (
                "busybox",
                vec!["docker.io/library/busybox:latest", "localhost/busybox:latest"],
            ),
            ("team/app:1", vec!["docker.io/team/app:1", "localhost/team/app:1"]),
            (
                "library/app:1",
                vec!["docker.io/library/app:1", "localhost/library/app:1"],
            ),
            ("quay.io/team/app:1", vec!["quay.io/team/app:1"]),
            ("localhost/app:1", vec!["localhost/app:1"]),
            ("docker.io/app:1", vec!["docker.io/library/app:1"]),
        ] {
            assert_eq!(names(&image.parse().unwrap()).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_registry_of_the_engines_own_host_is_spoken_to_plainly() {
        for (registry, loopback) in [
            ("127.0.0.1:5000", true),
            ("localhost:5000", true),
            ("localhost", true),
            ("127.9.9.9", true),
            ("10.0.0.1:5000", false),
            ("localhost.example.com", false),
            ("quay.io", false),
        ] {
            assert_eq!(is_loopback(registry), loopback, "{registry}");
        }
    }

    #[test]
    fn steps_of_both_forms_are_read() {
        let read = |text: &str| event(serde_json::from_str(text).unwrap());
        let status = read(r#"{"stream":"Copying blob sha256:1\n"}"#).unwrap();
        assert_eq!(
            status,
            Some(PullEvent::Status {
                message: "Copying blob sha256:1".to_owned()
            })
        );
        let layer = r#"{"status":"Downloading","progressDetail":{"current":5},"id":"be72460fd0bb"}"#;
        let Some(PullEvent::Layer { id, current, total, .. }) = read(layer).unwrap() else {
            panic!("a layer")
        };
        assert_eq!((id.as_str(), current, total), ("be72460fd0bb", Some(5), None));
        assert_eq!(read(r#"{"images":["68b6"],"id":"68b6"}"#).unwrap(), None);
    }

    #[test]
    fn an_import_whose_layers_went_can_be_tried_again() {
        for (message, again) in [
            (
                r#"docker-archive: committing the finished image: creating image "0184": layer not known"#,
                true,
            ),
            (
                r#"docker-archive: trying to reuse blob sha256:8a at destination: layer for blob "sha256:8a" not found"#,
                true,
            ),
            ("docker-archive: loading tar component manifest.json: EOF", false),
        ] {
            let error = interfered(Error::new(ErrorKind::Engine, message));
            assert_eq!(error.is_retryable(), again, "{message}");
            assert_eq!(error.kind() == ErrorKind::Conflict, again, "{message}");
        }
    }

    #[test]
    fn the_registrys_code_in_an_inline_error_decides_the_kind() {
        for (end, kind) in [
            ("manifest unknown", ErrorKind::ImageNotFound),
            ("manifest unknown: no such tag", ErrorKind::ImageNotFound),
            ("unauthorized", ErrorKind::Unauthorized),
            ("denied: denied", ErrorKind::Unauthorized),
            (
                "received unexpected HTTP status: 500 Internal Server Error",
                ErrorKind::Registry,
            ),
            ("dial tcp 127.0.0.1:1: connect: connection refused", ErrorKind::Registry),
        ] {
            let line = format!(r#"{{"error":"initializing source docker://r/a:1: reading manifest 1 in r/a: {end}"}}"#);
            let error = event(serde_json::from_str(&line).unwrap()).unwrap_err();
            assert_eq!(error.kind(), kind, "{end}");
            assert!(error.message().ends_with(end), "the engine's words are kept");
        }
    }
}
