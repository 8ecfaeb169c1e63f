//! Small things in tars: the form in which files go into containers and volumes and come out.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio_tar::{Archive, Builder, EntryType, Header};

use crate::stream::{from_reader, into_reader};
use crate::{ByteStream, Driver, Error, ErrorKind, ImageRef, InjectedFile, Result, VolumePath};

/// A tar of these files, with names relative to the root. Directories get no entries, so those that exist stay as they are.
///
/// # Errors
/// [`ErrorKind::Io`] if a name does not fit into a tar.
pub async fn tar_of_files(files: &[InjectedFile]) -> Result<Bytes> {
    let mut builder = Builder::new_non_terminated(Vec::new());
    for file in files {
        let name = file.path.as_str().trim_start_matches('/');
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(file.content.len() as u64);
        header.set_mode(file.mode);
        header.set_uid(file.uid.into());
        header.set_gid(file.gid.into());
        header.set_mtime(0);
        let packed = builder.append_data(&mut header, name, file.content.as_ref()).await;
        packed.map_err(|error| Error::io(format!("pack {name}"), error))?;
    }
    let mut tar = builder
        .into_inner()
        .await
        .map_err(|error| Error::io("pack files", error))?;
    // POSIX: two blocks of zeros end an archive.
    tar.resize(tar.len() + 1024, 0);
    Ok(tar.into())
}

/// The content of one regular file of a tar that streams by, in pieces; the rest of the tar is not read.
///
/// # Errors
/// [`ErrorKind::PathNotFound`] if the tar has no such file; the tar's own error if it has one.
pub async fn file_from_tar(tar: ByteStream, path: &VolumePath) -> Result<ByteStream> {
    let mut archive = Archive::new(into_reader(tar));
    let mut entries = archive.entries().map_err(|error| Error::io("read tar", error))?;
    while let Some(entry) = entries.next().await {
        let entry = entry.map_err(|error| Error::io("read tar", error))?;
        let name = entry.path().map_err(|error| Error::io("read tar", error))?;
        if entry.header().entry_type().is_file()
            && VolumePath::new(name.to_string_lossy()).is_ok_and(|name| name == *path)
        {
            let size = entry
                .header()
                .raw_entry_size()
                .map_err(|error| Error::io("read tar", error))?;
            // An entry ends early without an error when its archive does.
            let content = from_reader(entry, "read tar");
            return Ok(exactly(content, size));
        }
    }
    Err(Error::new(ErrorKind::PathNotFound, "no such file").with("path", path))
}

/// How often an archive is imported whose layers others remove, and the pause after the first time; each time longer.
const IMPORTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

/// [Imports](Driver::import_image) an image from an archive that can be opened more than once: again where others removed
/// an image that shares its layers meanwhile.
///
/// # Errors
/// Those of [`Driver::import_image`], and those of opening the archive.
pub async fn import_archive<Opened>(
    driver: &dyn Driver,
    image: &ImageRef,
    mut open: impl FnMut() -> Opened,
) -> Result<()>
where
    Opened: Future<Output = Result<ByteStream>>,
{
    let mut attempt = 1;
    loop {
        match driver.import_image(image, open().await?).await {
            Err(error) if error.kind() == ErrorKind::Conflict && error.is_retryable() && attempt < IMPORTS => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            imported => return imported,
        }
    }
}

fn exactly(content: ByteStream, size: u64) -> ByteStream {
    let end = stream::once(async { None });
    let mut left = size;
    content
        .map(Some)
        .chain(end)
        .filter_map(move |piece| {
            let item = match piece {
                Some(Ok(bytes)) => {
                    left = left.saturating_sub(bytes.len() as u64);
                    Some(Ok(bytes))
                }
                Some(Err(error)) => Some(Err(error)),
                None if left > 0 => Some(Err(Error::new(
                    ErrorKind::Interrupted,
                    format!("the tar ended {left} bytes before its file did"),
                ))),
                None => None,
            };
            async move { item }
        })
        .boxed()
}

/// Reads at most `limit` bytes of a stream.
///
/// # Errors
/// The stream's own; [`ErrorKind::Io`] if it is longer.
pub(crate) async fn read_bounded(bytes: ByteStream, limit: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut reader = into_reader(bytes).take(limit + 1);
    reader
        .read_to_end(&mut content)
        .await
        .map_err(|error| Error::io("read file", error))?;
    if content.len() as u64 > limit {
        return Err(Error::new(
            ErrorKind::Io,
            format!("the file is larger than {limit} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::once;

    fn file(path: &str, content: &str) -> InjectedFile {
        InjectedFile::new(path.parse().unwrap(), content.to_owned())
    }

    #[tokio::test]
    async fn a_file_comes_out_as_it_went_in() {
        let long = format!("/{}/deep", "d".repeat(150));
        let tar = tar_of_files(&[file("/a", "1"), file(&long, "two")]).await.unwrap();
        for (path, content) in [("a", "1"), (&long[1..], "two")] {
            let found = file_from_tar(once(tar.clone()), &path.parse().unwrap()).await.unwrap();
            assert_eq!(read_bounded(found, 10).await.unwrap(), content.as_bytes());
        }
        let missing = file_from_tar(once(tar), &"b".parse().unwrap()).await.err().unwrap();
        assert_eq!(missing.kind(), ErrorKind::PathNotFound);
    }

    #[tokio::test]
    async fn a_tar_that_is_cut_off_is_an_error_and_not_a_short_file() {
        let tar = tar_of_files(&[file("/a", &"x".repeat(5000))]).await.unwrap();
        let found = file_from_tar(once(tar.slice(..3000)), &"a".parse().unwrap())
            .await
            .unwrap();
        assert!(read_bounded(found, 10_000).await.is_err());
    }

    #[tokio::test]
    async fn a_file_over_its_limit_is_refused() {
        assert!(read_bounded(once("12345"), 4).await.is_err());
        assert_eq!(read_bounded(once("1234"), 4).await.unwrap(), b"1234");
    }
}
