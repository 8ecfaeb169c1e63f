//! The tar that a cache is: checked on its way into the store and on its way out, because neither end is trusted.

use bytes::{Bytes, BytesMut};
use orchestra::tar::{self, Member, TarReader};
use orchestra::{ByteStream, Error, ErrorKind, Result};

/// Pieces that a tar is passed on in: its headers alone would be a million of small ones.
const PIECE: usize = 256 << 10;

/// What becomes of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// They are passed on.
    Keep,
    /// They are left out, and counted.
    LeaveOut,
    /// They are an error.
    Refuse,
}

/// A tar that is passed on member by member.
pub(crate) struct Checked {
    tar: TarReader,
    devices: Devices,
    /// How many members were left out.
    pub(crate) left_out: u64,
    state: State,
    piece: BytesMut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    Within,
    Skipping,
    Ended,
}

impl Checked {
    pub(crate) fn new(source: ByteStream, devices: Devices) -> Self {
        Self {
            tar: TarReader::new(source, ErrorKind::Interrupted),
            devices,
            left_out: 0,
            state: State::Between,
            piece: BytesMut::with_capacity(PIECE + (64 << 10)),
        }
    }

    /// The next piece; `None` at the end. The archive's end marker is left out, so that more members can follow.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        while self.piece.len() < PIECE && self.state != State::Ended {
            match self.state {
                State::Between => self.begin().await?,
                State::Within => match self.tar.content().await? {
                    Some(content) => self.piece.extend_from_slice(&content),
                    None => self.state = State::Between,
                },
                State::Skipping => {
                    if self.tar.content().await?.is_none() {
                        self.state = State::Between;
                    }
                }
                State::Ended => {}
            }
        }
        if self.piece.is_empty() {
            return Ok(None);
        }
        let next = BytesMut::with_capacity(PIECE + (64 << 10));
        Ok(Some(std::mem::replace(&mut self.piece, next).freeze()))
    }

    async fn begin(&mut self) -> Result<()> {
        let Some(member) = self.tar.next().await? else {
            if !self.tar.ended() {
                return Err(Error::new(ErrorKind::Interrupted, "the tar broke off"));
            }
            self.state = State::Ended;
            return Ok(());
        };
        check_names(&member)?;
        self.state = State::Within;
        if member.is_device() && self.devices != Devices::Keep {
            if self.devices == Devices::Refuse {
                let name = String::from_utf8_lossy(&member.name).into_owned();
                return Err(Error::invalid(format!(
                    "the cache holds the device {name:?}, and devices were not asked for"
                ))
                .with_hint("set `devices: true` on the cache if they are meant to be in it"));
            }
            self.left_out += 1;
            self.state = State::Skipping;
            return Ok(());
        }
        for block in &member.head {
            self.piece.extend_from_slice(block);
        }
        Ok(())
    }
}

/// No name may lead upwards. A leading slash means the volume's root, as it does to all who unpack.
fn check_names(member: &Member) -> Result<()> {
    let target = member.link.as_deref().filter(|_| member.is_hard_link());
    for name in [Some(member.name.as_slice()), target].into_iter().flatten() {
        if tar::parts(name).any(|part| part == b"..") {
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(Error::invalid(format!(
                "the cache holds the name {name:?}, which leads out of the volume"
            )));
        }
    }
    Ok(())
}

/// A tar as it may go into a volume.
pub(crate) fn checked(source: ByteStream, devices: bool) -> ByteStream {
    let devices = if devices { Devices::Keep } else { Devices::Refuse };
    let mut checked = Checked::new(source, devices);
    tar::pipe(move |sink| async move {
        while let Some(piece) = checked.next().await? {
            sink.send(piece).await?;
        }
        sink.send(tar::END).await
    })
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use orchestra::stream::once;
    use orchestra::tar::Head;

    fn tar_of(members: &[Vec<Bytes>]) -> ByteStream {
        let mut bytes = members.concat().concat();
        bytes.extend_from_slice(&tar::END);
        once(bytes)
    }

    fn device(name: &str) -> Vec<Bytes> {
        let mut blocks = Head::file(0).blocks(name);
        let mut block = blocks[0].to_vec();
        block[156] = b'3';
        // The checksum counts the kind: '3' instead of '0'.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        blocks[0] = block.into();
        blocks
    }

    #[tokio::test]
    async fn a_name_that_leads_out_of_the_volume_is_refused() {
        for name in ["../x", "a/../../x", "/../x"] {
            let bad = tar_of(&[Head::file(0).blocks("fine"), Head::file(0).blocks(name)]);
            let error = checked(bad, true).try_collect::<Vec<_>>().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn a_device_comes_only_where_it_was_asked_for() {
        let members = || tar_of(&[device("dev"), Head::file(3).blocks("file"), vec![tar::padded(b"abc")]]);
        let refused = checked(members(), false).try_collect::<Vec<_>>().await.unwrap_err();
        assert!(refused.to_string().contains("\"dev\""), "{refused}");
        assert_eq!(
            checked(members(), true)
                .try_collect::<Vec<_>>()
                .await
                .unwrap()
                .concat()
                .len(),
            512 * 5
        );
        let mut leaving_out = Checked::new(members(), Devices::LeaveOut);
        assert_eq!(leaving_out.next().await.unwrap().unwrap().len(), 1024);
        assert_eq!((leaving_out.next().await.unwrap(), leaving_out.left_out), (None, 1));
    }

    #[tokio::test]
    async fn an_archive_without_its_end_is_an_error() {
        let cut = once(Head::file(0).blocks("a").concat());
        assert!(checked(cut, true).try_collect::<Vec<_>>().await.is_err());
    }
}
