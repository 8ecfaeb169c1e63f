//! containerd's content store: blobs by digest, written through its content service.
//!
//! An ingest is one stream: containerd locks its reference as long as the stream lives, and frees it when the stream
//! ends, however that comes about. What is made or found goes under the client's lease, so that containerd's garbage
//! collector leaves it alone until an image names it.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Status, Streaming};
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, Digest, MediaType};
use orchestra::{ByteStream, Error, ErrorKind, Result};
use orchestra_oci::content::{ContentStore, Ingest, Labels};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::error::{Subject, about, is_lost};

/// Bytes of one message: large enough that a call for each is cheap, well below what containerd takes.
const MESSAGE: usize = 1 << 20;
/// Messages that containerd has not answered yet. Its answer comes when it has written the bytes.
const UNANSWERED: usize = 3;
/// Shortest and longest wait for a reference that another writer has locked. containerd has no call that waits for it:
/// its own client asks again and again too.
const LOCKED: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The blobs of a client's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    client: Client,
}

impl Content {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn open(&self, reference: &str, expected: Option<(&Digest, u64)>) -> Result<Writer, Status> {
        let head = WriteContentRequest {
            r#ref: reference.to_owned(),
            total: expected.map_or(0, |(_, size)| signed(size)),
            ..WriteContentRequest::default()
        };
        let (requests, mut receiver) = mpsc::channel(1);
        // containerd answers nothing, not even that the call has begun, before the first message.
        let first = WriteContentRequest {
            expected: expected.map(|(digest, _)| digest.to_string()).unwrap_or_default(),
            ..message(&head, WriteAction::Stat, 0)
        };
        let first = stream::iter([first]);
        let stream = first.chain(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
        let mut answers = self
            .client
            .content()
            .write(self.client.request(stream))
            .await?
            .into_inner();
        let state = answers.message().await?.ok_or_else(ended)?;
        let offset = u64::try_from(state.offset).unwrap_or(0);
        Ok(Writer {
            content: self.clone(),
            head,
            expected: expected.map(|(digest, _)| digest.clone()),
            requests,
            answers,
            offset,
            written: state.offset,
            batch: Vec::new(),
            unanswered: 0,
        })
    }
}

fn message(head: &WriteContentRequest, action: WriteAction, offset: i64) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        offset,
        ..head.clone()
    }
}

fn signed(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A stream that ends without a status.
fn ended() -> Status {
    Status::internal("containerd ended the stream of a write")
}

#[async_trait]
impl ContentStore for Content {
    async fn read(&self, digest: &Digest, _size: u64) -> Result<ByteStream> {
        let request = ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        let answer = self.client.content().read(self.client.request(request)).await;
        let pieces = answer.map_err(about(Subject::Content))?.into_inner();
        Ok(pieces
            .map_ok(|piece| Bytes::from(piece.data))
            .map_err(about(Subject::Content))
            .boxed())
    }

    async fn ingest(&self, reference: &str, expected: Option<(&Digest, u64)>) -> Result<Option<Box<dyn Ingest>>> {
        let (mut wait, longest) = LOCKED;
        loop {
            match self.open(reference, expected).await {
                Ok(writer) => return Ok(Some(Box::new(writer))),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status) if status.code() == Code::Unavailable && !is_lost(&status) => {
                    tokio::time::sleep(wait).await;
                    wait = longest.min(wait * 2);
                }
                Err(status) => return Err(about(Subject::Content)(status)),
            }
        }
    }

    /// [Labels](https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md) that containerd's garbage
    /// collector follows, named as its own client names them.
    fn links(&self, children: &[Descriptor]) -> Labels {
        let (mut manifests, mut layers) = (0.., 0..);
        let name = |child: &Descriptor| match child.media_type() {
            MediaType::ImageConfig => "config".to_owned(),
            MediaType::ImageManifest | MediaType::ImageIndex => format!("m.{}", manifests.next().unwrap_or(0)),
            MediaType::Other(name) if name.ends_with(".container.image.v1+json") => "config".to_owned(),
            _ => format!("l.{}", layers.next().unwrap_or(0)),
        };
        let names: Vec<String> = children.iter().map(name).collect();
        let labels = names.into_iter().zip(children);
        labels
            .map(|(name, child)| {
                (
                    format!("containerd.io/gc.ref.content.{name}"),
                    child.digest().to_string(),
                )
            })
            .collect()
    }
}

struct Writer {
    content: Content,
    /// What each message says again. The digest is not among it: containerd remembers the first message's, and ends the
    /// stream at any other that says it when another writer has made the blob meanwhile.
    head: WriteContentRequest,
    expected: Option<Digest>,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// Where it began.
    offset: u64,
    /// Where the next message begins.
    written: i64,
    batch: Vec<u8>,
    unanswered: usize,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("reference", &self.head.r#ref)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl Writer {
    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let answer = self.answers.message().await?.ok_or_else(ended)?;
        self.unanswered = self.unanswered.saturating_sub(1);
        Ok(answer)
    }

    async fn send(&mut self, request: WriteContentRequest) -> Result<(), Status> {
        if self.requests.send(request).await.is_err() {
            // The stream has ended: why, its answers say.
            while self.answers.message().await?.is_some() {}
            return Err(ended());
        }
        self.unanswered += 1;
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Status> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.batch);
        let length = signed(data.len() as u64);
        let request = WriteContentRequest {
            data,
            ..message(&self.head, WriteAction::Write, self.written)
        };
        self.send(request).await?;
        self.written += length;
        while self.unanswered > UNANSWERED {
            self.answer().await?;
        }
        Ok(())
    }

    /// Sends what is to be done at the end, and waits until all is done.
    async fn last(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        self.send(request).await?;
        loop {
            let answer = self.answer().await?;
            if self.unanswered == 0 {
                return Ok(answer);
            }
        }
    }

    async fn finish(&mut self, labels: Labels) -> Result<String, Status> {
        self.flush().await?;
        // Asked for first: where the blob is there already, the answer to the commit does not tell.
        let digest = self
            .last(message(&self.head, WriteAction::Stat, self.written))
            .await?
            .digest;
        let total = if self.expected.is_none() {
            self.written
        } else {
            self.head.total
        };
        let commit = WriteContentRequest {
            total,
            labels,
            ..message(&self.head, WriteAction::Commit, self.written)
        };
        match self.last(commit).await {
            Err(status) if status.code() != Code::AlreadyExists => Err(status),
            _ => Ok(digest),
        }
    }

    /// Frees the reference and drops its bytes.
    async fn forget(self) -> Result<()> {
        let Self {
            content: Content { client },
            head,
            requests,
            mut answers,
            ..
        } = self;
        drop(requests);
        // containerd 2.1 fails to remove the files of a write that is just ending: its answers end when it has.
        while let Ok(Some(_)) = answers.message().await {}
        let request = AbortRequest { r#ref: head.r#ref };
        match client.content().abort(client.request(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(about(Subject::Content)(status)),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Ingest for Writer {
    fn offset(&self) -> u64 {
        self.offset
    }

    async fn write(&mut self, piece: Bytes) -> Result<()> {
        if self.batch.capacity() == 0 {
            self.batch.reserve(MESSAGE);
        }
        self.batch.extend_from_slice(&piece);
        if self.batch.len() < MESSAGE {
            return Ok(());
        }
        self.flush().await.map_err(about(Subject::Content))
    }

    async fn commit(mut self: Box<Self>, labels: Labels) -> Result<(Digest, u64)> {
        let size = |writer: &Self| u64::try_from(writer.written).unwrap_or(0);
        match self.finish(labels).await {
            Ok(digest) => {
                let told =
                    || Digest::try_from(digest).map_err(|error| Error::new(ErrorKind::Protocol, error.to_string()));
                let digest = self.expected.clone().map_or_else(told, Ok)?;
                Ok((digest, size(&self)))
            }
            // Neither the digest's nor the size that was told.
            Err(status) if status.code() == Code::FailedPrecondition => {
                let message = status.message().to_owned();
                self.forget().await?;
                Err(Error::invalid(message).with_source(status))
            }
            Err(status) => Err(about(Subject::Content)(status)),
        }
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.forget().await
    }
}

#[cfg(test)]
mod tests {
    use orchestra_oci::content::{reference, sha256};

    use super::*;
    use crate::lease::Lease;
    use crate::testing;

    /// A store of the engine that is provided, if one is. What is put there is under the lease: containerd collects the rest
    /// whenever another test deletes something.
    async fn store() -> Option<(Lease, Content)> {
        let driver = testing::driver().await?;
        let lease = Lease::new(&driver.client, &orchestra::Labels::new()).await.unwrap();
        let store = Content::new(lease.client.clone());
        Some((lease, store))
    }

    /// Bytes that no other call makes.
    fn unique(size: usize) -> Bytes {
        let seed = sha256(format!("{:?}", std::time::Instant::now()).as_bytes());
        seed.digest().bytes().cycle().take(size).collect::<Vec<u8>>().into()
    }

    async fn begin(store: &Content, bytes: &Bytes) -> Option<Box<dyn Ingest>> {
        let digest = sha256(bytes);
        store
            .ingest(&reference(&digest), Some((&digest, bytes.len() as u64)))
            .await
            .unwrap()
    }

    async fn read(store: &Content, bytes: &Bytes) -> Vec<u8> {
        let pieces = store.read(&sha256(bytes), bytes.len() as u64).await.unwrap();
        pieces.try_collect::<Vec<Bytes>>().await.unwrap().concat()
    }

    #[tokio::test]
    async fn a_blob_is_there_when_it_is_committed_and_not_before() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        for size in [64, MESSAGE, 5 * MESSAGE + 7] {
            let bytes = unique(size);
            let mut ingest = begin(&store, &bytes).await.unwrap();
            assert_eq!(ingest.offset(), 0);
            for piece in bytes.chunks(300_000) {
                ingest.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            let missing = match store.read(&sha256(&bytes), 1).await {
                Ok(mut pieces) => pieces.try_next().await.map(drop),
                Err(error) => Err(error),
            };
            assert_eq!(missing.unwrap_err().kind(), ErrorKind::ImageNotFound);
            let committed = ingest.commit(Labels::new()).await.unwrap();
            assert_eq!(committed, (sha256(&bytes), size as u64));
            assert!(read(&store, &bytes).await == bytes);
            assert!(begin(&store, &bytes).await.is_none(), "it is there");
        }
        // There is but one without a byte: an earlier run may have left it.
        if let Some(empty) = begin(&store, &Bytes::new()).await {
            assert_eq!(empty.commit(Labels::new()).await.unwrap().1, 0);
        }
        assert!(read(&store, &Bytes::new()).await.is_empty());
    }

    #[tokio::test]
    async fn an_ingest_that_was_left_goes_on() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        let bytes = unique(4 * MESSAGE);
        let mut ingest = begin(&store, &bytes).await.unwrap();
        ingest.write(bytes.slice(..3 * MESSAGE)).await.unwrap();
        ingest.write(bytes.slice(3 * MESSAGE..3 * MESSAGE + 5)).await.unwrap();
        drop(ingest);
        let mut ingest = begin(&store, &bytes).await.unwrap();
        let offset = usize::try_from(ingest.offset()).unwrap();
        assert_eq!(offset % MESSAGE, 0);
        ingest.write(bytes.slice(offset..)).await.unwrap();
        ingest.commit(Labels::new()).await.unwrap();
        assert!(read(&store, &bytes).await == bytes);
    }

    #[tokio::test]
    async fn bytes_of_another_digest_are_refused_and_forgotten() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        let bytes = unique(2 * MESSAGE);
        for wrong in [unique(2 * MESSAGE + 1).slice(1..), bytes.slice(1..)] {
            let mut ingest = begin(&store, &bytes).await.unwrap();
            assert_eq!(ingest.offset(), 0, "what was refused is not there any more");
            ingest.write(wrong).await.unwrap();
            let error = ingest.commit(Labels::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        let mut ingest = begin(&store, &bytes).await.unwrap();
        ingest.write(bytes.slice(..9)).await.unwrap();
        ingest.abort().await.unwrap();
        assert_eq!(begin(&store, &bytes).await.unwrap().offset(), 0);
    }

    #[tokio::test]
    async fn a_digest_that_nobody_knew_is_told_at_the_end() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        let bytes = unique(MESSAGE + 1);
        for name in ["first", "again"] {
            let name = format!("{name}-{}", sha256(&bytes));
            let mut ingest = store.ingest(&name, None).await.unwrap().unwrap();
            ingest.write(bytes.clone()).await.unwrap();
            let committed = ingest.commit(Labels::new()).await.unwrap();
            assert_eq!(committed, (sha256(&bytes), bytes.len() as u64));
        }
    }

    #[tokio::test]
    async fn who_wants_what_another_one_writes_waits_for_it() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        let bytes = unique(MESSAGE);
        let mut ingest = begin(&store, &bytes).await.unwrap();
        let other = tokio::spawn({
            let (store, bytes) = (store.clone(), bytes.clone());
            async move { begin(&store, &bytes).await.is_none() }
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!other.is_finished());
        ingest.write(bytes).await.unwrap();
        ingest.commit(Labels::new()).await.unwrap();
        assert!(other.await.unwrap(), "it is there");
    }

    #[tokio::test]
    async fn a_blob_that_another_one_makes_meanwhile_is_no_error() {
        let Some((_lease, store)) = store().await else {
            return;
        };
        for size in [100, 3 * MESSAGE] {
            let bytes = unique(size);
            let mut ingest = begin(&store, &bytes).await.unwrap();
            // By another reference, as one who does not know the digest before.
            let mut other = store
                .ingest(&format!("other-{}", sha256(&bytes)), None)
                .await
                .unwrap()
                .unwrap();
            other.write(bytes.clone()).await.unwrap();
            other.commit(Labels::new()).await.unwrap();
            ingest.write(bytes.clone()).await.unwrap();
            let committed = ingest.commit(Labels::new()).await.unwrap();
            assert_eq!(committed, (sha256(&bytes), bytes.len() as u64));
            assert!(read(&store, &bytes).await == bytes);
        }
    }

    #[tokio::test]
    async fn labels_keep_what_a_manifest_names() {
        let client = Client::new("/nonexistent".as_ref(), "test").unwrap();
        let child = |kind: &str, name: &[u8]| Descriptor::new(kind.into(), 1, sha256(name));
        let docker = "application/vnd.docker.container.image.v1+json";
        let children = [
            child(docker, b"config"),
            child("application/vnd.oci.image.layer.v1.tar", b"a"),
            child("application/vnd.docker.image.rootfs.diff.tar.gzip", b"b"),
        ];
        let labels = Content::new(client).links(&children);
        let key = |name: &str| format!("containerd.io/gc.ref.content.{name}");
        for (name, content) in [("config", "config"), ("l.0", "a"), ("l.1", "b")] {
            assert_eq!(labels[&key(name)], sha256(content.as_bytes()).to_string());
        }
    }
}
