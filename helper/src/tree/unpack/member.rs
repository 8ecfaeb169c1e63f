//! A tar's members, with all that their headers say.

use std::io::{self, Read};

use super::super::format::{self, BLOCK, Header, MAX_EXTENSION, decimal};
use super::super::{PIECE, Result, TreeError};

/// Most pieces that a sparse file may be said to have.
const MAX_PIECES: u64 = 4 << 20;

/// The stream, in pieces.
pub(super) struct Input<'a> {
    stream: &'a mut dyn Read,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes of the stream that were read, those in the buffer included.
    read: u64,
}

impl<'a> Input<'a> {
    pub(super) fn new(stream: &'a mut dyn Read) -> Self {
        Self {
            stream,
            buffer: vec![0; PIECE].into(),
            start: 0,
            end: 0,
            read: 0,
        }
    }

    /// Bytes of the stream that were taken.
    pub(super) fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// Whether there is anything more.
    fn fill(&mut self) -> Result<bool> {
        while self.start == self.end {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    (self.start, self.end) = (0, read);
                    self.read += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::io("read", b"the tar")(error)),
            }
        }
        Ok(true)
    }

    /// The next piece of at most `most` bytes.
    pub(super) fn piece(&mut self, most: u64) -> Result<&[u8]> {
        if !self.fill()? {
            return Err(TreeError::invalid("it ends in the middle of a member"));
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += length;
        Ok(&self.buffer[self.start - length..self.start])
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            let piece = self.piece((into.len() - filled) as u64)?;
            into[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        }
        Ok(())
    }

    pub(super) fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.exactly(&mut block)?;
        Ok(block)
    }

    pub(super) fn skip(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            left -= self.piece(left)?.len() as u64;
        }
        Ok(())
    }

    /// Takes all that is left.
    pub(super) fn drain(&mut self) -> Result<()> {
        while self.fill()? {
            self.start = self.end;
        }
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(TreeError::invalid("an extended header is larger than 16 MiB"));
        }
        self.content(size)
    }

    /// A small member's content.
    pub(super) fn content(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size as usize];
        self.exactly(&mut bytes)?;
        self.skip(padding(size))?;
        Ok(bytes)
    }
}

/// What fills the last block of so many bytes.
pub(super) fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// Start and length of each piece of data.
pub(super) type Map = Vec<(u64, u64)>;

/// A member with all that its headers say.
pub(super) struct Member {
    pub(super) header: Header,
    pub(super) nanoseconds: u32,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A sparse file's own size and, unless it comes with the data, where that belongs.
    pub(super) sparse: Option<(u64, Option<Map>)>,
}

impl Member {
    /// The next member, its content not read yet.
    pub(super) fn read(input: &mut Input<'_>, global: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<Option<Self>> {
        let (mut records, mut long_name, mut long_link) = (Vec::new(), None, None);
        let text = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
            bytes
        };
        loop {
            if !input.fill()? {
                return Ok(None);
            }
            let block = input.block()?;
            let Some(mut header) = Header::parse(&block)? else {
                return Ok(None);
            };
            match header.kind {
                b'x' => records = format::parse_records(&input.extension(header.size)?)?,
                b'g' => {
                    global.extend(format::parse_records(&input.extension(header.size)?)?);
                    let bytes: usize = global.iter().map(|(key, value)| key.len() + value.len()).sum();
                    if bytes as u64 > MAX_EXTENSION {
                        return Err(TreeError::invalid("its global headers are larger than 16 MiB"));
                    }
                }
                b'L' => long_name = Some(text(input.extension(header.size)?)),
                b'K' => long_link = Some(text(input.extension(header.size)?)),
                // The volume's label. What was said of it ends with it.
                b'V' => {
                    let mut label = Self::of(header);
                    label.apply(std::mem::take(&mut records).into_iter())?;
                    input.skip(label.header.size.next_multiple_of(BLOCK as u64))?;
                    (long_name, long_link) = (None, None);
                }
                b'M' => return Err(TreeError::invalid("it goes on in another volume")),
                _ => {
                    header.name = long_name.unwrap_or(header.name);
                    header.link = long_link.unwrap_or(header.link);
                    let mut member = Self::of(header);
                    member.apply(global.iter().cloned().chain(records))?;
                    if member.header.kind == b'S' {
                        member.old_sparse(&block, input)?;
                    }
                    return member.settled().map(Some);
                }
            }
        }
    }

    /// One of which its header says all.
    fn of(header: Header) -> Self {
        Self {
            header,
            nanoseconds: 0,
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    fn apply(&mut self, records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<()> {
        let broken = |key: &[u8]| {
            let key = String::from_utf8_lossy(key).into_owned();
            move || TreeError::invalid(format!("the record {key} makes no sense"))
        };
        let (mut real_name, mut real_size, mut map) = (None, None, Vec::new());
        let (mut is_sparse, mut in_data) = (false, false);
        for (key, value) in records {
            let number = || decimal::<u64>(&value).ok_or_else(broken(&key));
            let header = &mut self.header;
            match key.as_slice() {
                b"path" => header.name = value,
                b"linkpath" => header.link = value,
                b"size" => header.size = number()?,
                b"uid" => header.uid = decimal(&value).ok_or_else(broken(&key))?,
                b"gid" => header.gid = decimal(&value).ok_or_else(broken(&key))?,
                b"mtime" => (header.mtime, self.nanoseconds) = format::parse_time(&value).ok_or_else(broken(&key))?,
                b"GNU.sparse.major" => (is_sparse, in_data) = (true, value == b"1"),
                b"GNU.sparse.name" => real_name = Some(value),
                b"GNU.sparse.realsize" => real_size = Some(number()?),
                // Formats 0.0 and 0.1.
                b"GNU.sparse.size" => (is_sparse, real_size) = (true, Some(number()?)),
                b"GNU.sparse.offset" => map.push((number()?, 0)),
                b"GNU.sparse.numbytes" => map.last_mut().ok_or_else(broken(&key))?.1 = number()?,
                b"GNU.sparse.map" => {
                    let numbers: Option<Vec<u64>> = value.split(|byte| *byte == b',').map(decimal).collect();
                    let numbers = numbers.ok_or_else(broken(&key))?;
                    map = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                }
                key => {
                    if let Some(name) = format::xattr_name(key) {
                        self.xattrs.push((name, value));
                    }
                }
            }
        }
        if i64::try_from(self.header.size).is_err() {
            return Err(TreeError::invalid("a member's size is none that a file can have"));
        }
        self.header.name = real_name.unwrap_or_else(|| std::mem::take(&mut self.header.name));
        if is_sparse {
            let size = real_size.ok_or_else(broken(b"GNU.sparse.realsize"))?;
            self.sparse = Some((size, (!in_data).then_some(map)));
        }
        Ok(())
    }

    /// GNU's own type: four pieces in the header, 21 in each block after it.
    fn old_sparse(&mut self, header: &[u8; BLOCK], input: &mut Input<'_>) -> Result<()> {
        let number = |field: &[u8]| {
            let number = format::number(field).and_then(|number| u64::try_from(number).ok());
            number.ok_or_else(|| TreeError::invalid("a sparse file's map makes no sense"))
        };
        let mut map = Vec::new();
        let mut pieces = |bytes: &[u8]| {
            for piece in bytes.chunks_exact(24).take_while(|piece| piece[12] != 0) {
                map.push((number(&piece[..12])?, number(&piece[12..])?));
            }
            Ok::<_, TreeError>(map.len() as u64)
        };
        pieces(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let block = input.block()?;
            if pieces(&block[..504])? > MAX_PIECES {
                return Err(TreeError::invalid("a sparse file has too many pieces"));
            }
            more = block[504] != 0;
        }
        self.sparse = Some((number(&header[483..495])?, Some(map)));
        self.header.kind = b'0';
        Ok(())
    }

    /// What old archivers mean by a kind or a name.
    fn settled(mut self) -> Result<Self> {
        let header = &mut self.header;
        header.kind = match header.kind {
            0 | b'0' | b'7' if header.name.ends_with(b"/") => b'5',
            0 | b'7' => b'0',
            // GNU's incremental archives list a directory's names as its content.
            b'D' => b'5',
            kind => kind,
        };
        Ok(self)
    }
}

/// Format 1.0's map: before the data, numbers in lines, to the end of a block.
pub(super) fn map_in_data(left: &mut u64, input: &mut Input<'_>) -> Result<Map> {
    let broken = || TreeError::invalid("a sparse file's map makes no sense");
    let (mut block, mut at) = ([0; BLOCK], BLOCK);
    let mut number = || {
        let mut number = 0_u64;
        loop {
            if at == BLOCK {
                *left = left.checked_sub(BLOCK as u64).ok_or_else(broken)?;
                (block, at) = (input.block()?, 0);
            }
            at += 1;
            match block[at - 1] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    let more = number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(u64::from(digit - b'0')));
                    number = more.ok_or_else(broken)?;
                }
                _ => return Err(broken()),
            }
        }
    };
    let count = number()?;
    if count > MAX_PIECES {
        return Err(TreeError::invalid("a sparse file has too many pieces"));
    }
    (0..count).map(|_| Ok((number()?, number()?))).collect()
}
