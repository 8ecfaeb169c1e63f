//! Images: from registries and archives into the engine, and out of it.

use bollard::auth::DockerCredentials;
use bollard::body_try_stream;
use bollard::errors::Error as Bollard;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder, RemoveImageOptions};
use futures_util::{StreamExt, TryStreamExt, stream};
use orchestra::{
    ByteStream, Credentials, Error, ErrorKind, ExposeSecret, ImageRef, PullEvent, PullImage, PullStream, Result,
};

use crate::driver::DockerDriver;
use crate::error::{Subject, about, status_of};
use orchestra::tar;

impl DockerDriver {
    pub(crate) async fn pull(&self, pull: &PullImage) -> Result<PullStream> {
        self.info.capabilities.check_pull(pull)?;
        let image = &pull.image;
        // A digest wins over a tag, as in docker's own client.
        let version = image.digest().or(image.tag()).unwrap_or("latest").to_owned();
        let mut options = CreateImageOptionsBuilder::new()
            .from_image(&format!("{}/{}", image.registry(), image.repository()))
            .tag(&version);
        if let Some(platform) = &pull.platform {
            options = options.platform(&platform.to_string());
        }
        let credentials = pull
            .credentials
            .as_ref()
            .map(|credentials| for_registry(image, credentials));
        let mut steps = self
            .docker
            .create_image(Some(options.build()), None, credentials.clone())
            .boxed();
        // docker answers with a status only while it has nothing to report yet.
        let first = match steps.next().await {
            Some(Err(error)) => return Err(self.refine(image, credentials, error).await),
            first => stream::iter(first),
        };
        let steps = first.chain(steps).map_err(about(Subject::Registry));
        Ok(steps.map_ok(move |step| event(step, &version)).boxed())
    }

    /// docker 20.10 answers a pull with 500 for a registry that is down and for one that wants other credentials. Asked
    /// for the image's description it answers 401 for the latter, if it was given any.
    async fn refine(&self, image: &ImageRef, credentials: Option<DockerCredentials>, error: Bollard) -> Error {
        let told = about(Subject::Registry)(error);
        if told.kind() != ErrorKind::Registry {
            return told;
        }
        let nobody = || for_registry(image, &Credentials::new("anonymous", "anonymous"));
        let asked = credentials.unwrap_or_else(nobody);
        match self
            .docker
            .inspect_registry_image(&image.canonical(), Some(asked))
            .await
        {
            Err(error) if matches!(status_of(&error), Some(401 | 403)) => {
                Error::new(ErrorKind::Unauthorized, told.message().to_owned()).with_source(told)
            }
            _ => told,
        }
    }

    pub(crate) async fn import(&self, image: &ImageRef, archive: ByteStream) -> Result<()> {
        if image.digest().is_some() {
            return Err(
                Error::invalid(format!("an image can't be given the name {image}, which has a digest"))
                    .with_hint("give it a tag"),
            );
        }
        let zstd = self.api() > 41;
        let (body, failure) = tar::tracked(tar::docker_archive(archive, image, &self.info.platform, zstd));
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let loaded = self.docker.import_image(options, body_try_stream(body), None);
        let loaded = loaded.try_for_each(async |_| Ok(())).await;
        failure.or(loaded.map_err(about(Subject::Engine)))
    }

    pub(crate) async fn has_image(&self, image: &ImageRef) -> Result<bool> {
        match self.docker.inspect_image(&image.canonical()).await {
            Ok(_) => Ok(true),
            Err(error) if status_of(&error) == Some(404) => Ok(false),
            Err(error) => Err(about(Subject::Image)(error)),
        }
    }

    pub(crate) async fn untag(&self, image: &ImageRef) -> Result<()> {
        match self
            .docker
            .remove_image(&image.canonical(), None::<RemoveImageOptions>, None)
            .await
        {
            Err(error) if status_of(&error) != Some(404) => Err(about(Subject::Image)(error)),
            _ => Ok(()),
        }
    }
}

fn for_registry(image: &ImageRef, credentials: &Credentials) -> DockerCredentials {
    DockerCredentials {
        username: Some(credentials.username.expose_secret().to_owned()),
        password: Some(credentials.password.expose_secret().to_owned()),
        serveraddress: Some(image.registry().to_owned()),
        ..DockerCredentials::default()
    }
}

/// One line of a pull. The first has the tag, or the reference with the digest, for an id: it is about the whole image.
fn event(step: CreateImageInfo, version: &str) -> PullEvent {
    let status = step.status.unwrap_or_default();
    let bytes = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    match step.id.filter(|id| id.rsplit('@').next() != Some(version)) {
        Some(id) => {
            let detail = step.progress_detail.unwrap_or_default();
            PullEvent::Layer {
                id,
                status,
                current: bytes(detail.current),
                total: bytes(detail.total),
            }
        }
        None => PullEvent::Status { message: status },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    #[test]
    fn a_layers_progress_is_told_from_a_line_about_the_image() {
        let whole = CreateImageInfo {
            id: Some("v1".to_owned()),
            status: Some("Pulling from team/app".to_owned()),
            ..CreateImageInfo::default()
        };
        assert_eq!(
            event(whole, "v1"),
            PullEvent::Status {
                message: "Pulling from team/app".to_owned()
            }
        );
        let layer = CreateImageInfo {
            id: Some("38dbff77a157".to_owned()),
            status: Some("Downloading".to_owned()),
            progress_detail: Some(ProgressDetail {
                current: Some(5),
                total: Some(-1),
            }),
            ..CreateImageInfo::default()
        };
        let PullEvent::Layer { id, current, total, .. } = event(layer, "v1") else {
            panic!("a layer")
        };
        assert_eq!((id.as_str(), current, total), ("38dbff77a157", Some(5), None));
    }
}
