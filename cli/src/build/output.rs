//! `--output`: an image as a file of this machine.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures_util::StreamExt;
use orchestra::{ContainerPath, Error, ErrorKind, Job, Result, VolumeId, file_from_tar};
use orchestra_image_build::{AdditionalTarget, BuildOutput, ImageBuild, OutputFormat};
use std::io::Write;

/// An archive, and the file that it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    format: OutputFormat,
    file: PathBuf,
}

impl FromStr for Destination {
    type Err = Error;

    /// From `type=oci,dest=FILE` or `type=docker,dest=FILE`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::invalid(format!("{text:?} is no output"))
                .with_hint("write type=oci,dest=FILE or type=docker,dest=FILE")
        };
        let (mut format, mut file) = (None, None);
        for field in text.split(',') {
            let (key, value) = field.split_once('=').ok_or_else(wrong)?;
            match key {
                "type" if format.is_none() => format = Some(value.parse::<OutputFormat>()?),
                "dest" if file.is_none() && !value.is_empty() => file = Some(PathBuf::from(value)),
                _ => return Err(wrong()),
            }
        }
        let (Some(format), Some(file)) = (format, file) else {
            return Err(wrong());
        };
        if format.archive().is_none() {
            return Err(Error::invalid(format!("an output of type {format} is no file"))
                .with_hint("write type=oci or type=docker, or build in a pipeline, whose builds have output volumes"));
        }
        Ok(Self { format, file })
    }
}

/// A stage that is built too, and the archive that it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AlsoTarget {
    target: String,
    destination: Destination,
}

impl FromStr for AlsoTarget {
    type Err = Error;

    /// From `STAGE=type=oci,dest=FILE`.
    fn from_str(text: &str) -> Result<Self> {
        let (target, destination) = text.split_once('=').ok_or_else(|| {
            Error::invalid(format!("{text:?} is no stage with an output")).with_hint("write STAGE=type=oci,dest=FILE")
        })?;
        Ok(Self {
            target: target.to_owned(),
            destination: destination.parse()?,
        })
    }
}

impl AlsoTarget {
    /// Where it goes.
    pub(super) fn destination(&self) -> Destination {
        self.destination.clone()
    }
}

/// A volume for each, which the job removes.
pub(super) async fn add_targets(job: &Job, build: &mut ImageBuild, targets: &[AlsoTarget]) -> Result<()> {
    for (number, of) in targets.iter().enumerate() {
        let name = format!("target-{number}");
        let output = BuildOutput {
            volume: job.create_volume(&name).await?,
            path: ContainerPath::new(name)?,
            format: of.destination.format,
        };
        let target = AdditionalTarget::new(of.target.as_str(), output);
        build.additional_targets.push(target);
    }
    Ok(())
}

/// A volume for each, which the job removes.
pub(super) async fn add(job: &Job, build: &mut ImageBuild, destinations: &[Destination]) -> Result<()> {
    for (number, destination) in destinations.iter().enumerate() {
        let name = format!("output-{number}");
        build.outputs.push(BuildOutput {
            volume: job.create_volume(&name).await?,
            path: ContainerPath::new(name)?,
            format: destination.format,
        });
    }
    Ok(())
}

/// Writes the files. Each gets its name when it is whole.
pub(super) async fn save(job: &Job, volumes: &[VolumeId], destinations: &[Destination]) -> Result<()> {
    for (volume, destination) in volumes.iter().zip(destinations) {
        let Some(path) = destination.format.archive() else {
            continue;
        };
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorKind::Io,
                format!("write the image to {}: {error}", destination.file.display()),
            )
        };
        let tar = job.driver().read_volume(volume, std::slice::from_ref(&path)).await?;
        let mut content = file_from_tar(tar, &path).await?;
        let folder = destination
            .file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        while let Some(piece) = content.next().await {
            file.write_all(&piece?).map_err(failed)?;
        }
        file.persist(&destination.file).map_err(|error| failed(error.error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_an_archive_and_its_file() {
        let parsed: Destination = "type=oci,dest=a/b.tar".parse().unwrap();
        assert_eq!(
            (parsed.format, parsed.file),
            (OutputFormat::Oci, PathBuf::from("a/b.tar"))
        );
        for bad in [
            "",
            "oci",
            "type=oci",
            "dest=x",
            "type=zip,dest=x",
            "type=oci,dest=",
            "type=oci,dest=x,push=true",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        let refused = "type=local,dest=x".parse::<Destination>().unwrap_err();
        assert!(refused.to_string().contains("is no file"), "{refused}");
    }
}
