//! Headers and extended records: `ustar` and `pax` of [POSIX](https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html),
//! and what [GNU tar](https://www.gnu.org/software/tar/manual/html_node/Standard.html) adds.

use super::{Result, TreeError};

pub(super) const BLOCK: usize = 512;
/// Largest extended header that is read: many attributes of 64 KiB.
pub(super) const MAX_EXTENSION: u64 = 16 << 20;
/// Before an attribute's name, in a record's key.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// One member as its header says it, before its records.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Header {
    /// The header's block. What has no room is cut off or zero: a record says it then.
    pub(super) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut text = |at: usize, room: usize, text: &[u8]| {
            let length = text.len().min(room);
            block[at..at + length].copy_from_slice(&text[..length]);
        };
        text(0, NAME, &self.name);
        text(157, NAME, &self.link);
        text(257, 8, b"ustar\x0000");
        let mut number = |at: usize, digits: usize, value: u64| {
            let mut left = if value <= most(digits) { value } else { 0 };
            for digit in (at..at + digits).rev() {
                block[digit] = b'0' + (left & 7) as u8;
                left >>= 3;
            }
        };
        number(100, 7, u64::from(self.mode));
        number(108, 7, u64::from(self.uid));
        number(116, 7, u64::from(self.gid));
        number(124, 11, self.size);
        number(136, 11, u64::try_from(self.mtime).unwrap_or(0));
        // Linux has more bits than the field, which other archivers fill in base 256 as well.
        for (at, value) in [(329, self.major), (337, self.minor)] {
            if u64::from(value) <= most(7) {
                number(at, 7, u64::from(value));
            }
        }
        for (at, value) in [(329, self.major), (337, self.minor)] {
            if u64::from(value) > most(7) {
                block[at] = 0x80;
                block[at + 4..at + 8].copy_from_slice(&value.to_be_bytes());
            }
        }
        block[156] = self.kind;
        let sum = sum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    /// Reads a header's block; `None` for one of zeros, which is the end.
    pub(super) fn parse(block: &[u8]) -> Result<Option<Self>> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if number(&block[148..156]) != Some(i64::from(sum(block))) {
            return Err(TreeError::invalid("a header's checksum is wrong"));
        }
        let field = |at: usize, length: usize| {
            number(&block[at..at + length]).ok_or_else(|| TreeError::invalid("a header's number makes no sense"))
        };
        let small = |at, length| {
            u32::try_from(field(at, length)?).map_err(|_| TreeError::invalid("a header's number is too large"))
        };
        let kind = block[156];
        let mut name = until_nul(&block[..NAME]).to_vec();
        let ustar = &block[257..263] == b"ustar\0";
        let prefix = until_nul(&block[345..500]);
        if ustar && !prefix.is_empty() {
            name = [prefix, &name].join(&b'/');
        }
        let is_device = matches!(kind, b'3' | b'4');
        Ok(Some(Self {
            kind,
            name,
            link: until_nul(&block[157..257]).to_vec(),
            mode: small(100, 8)? & 0o7777,
            uid: small(108, 8)?,
            gid: small(116, 8)?,
            size: u64::try_from(field(124, 12)?).map_err(|_| TreeError::invalid("a member's size is negative"))?,
            mtime: field(136, 12)?,
            major: if is_device { small(329, 8)? } else { 0 },
            minor: if is_device { small(337, 8)? } else { 0 },
        }))
    }
}

/// Room for a name in a header.
pub(super) const NAME: usize = 100;

/// The largest number of so many octal digits.
pub(super) const fn most(digits: usize) -> u64 {
    (1 << (3 * digits)) - 1
}

/// A header's checksum, for which its own field counts as spaces.
fn sum(block: &[u8]) -> u32 {
    let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    all - own + 8 * u32::from(b' ')
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A header's number: octal digits, or base 256 in two's complement with the first bit set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field.first()? & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let start = if negative { -1_i64 } else { 0 };
        // What is above 64 bits may only repeat the sign.
        let (high, low) = field.split_at(field.len() - 8);
        let high_is_sign = high.is_empty()
            || high[1..]
                .iter()
                .chain([&first])
                .all(|byte| *byte == if negative { 0xff } else { 0 });
        if !high_is_sign {
            return None;
        }
        let low_first = if high.is_empty() { first } else { low[0] };
        return Some(low[1..].iter().fold((start << 8) | i64::from(low_first), |all, byte| {
            (all << 8) | i64::from(*byte)
        }));
    }
    let digits = until_nul(field).trim_ascii();
    digits.iter().try_fold(0_i64, |all, digit| match digit {
        b'0'..=b'7' => all.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Appends a record: `LENGTH KEY=VALUE\n`, the length's own digits included.
pub(super) fn put_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + digits(length) != length {
        length = rest + digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// The records of an extended header, in their order.
pub(super) fn parse_records(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let broken = || TreeError::invalid("an extended header makes no sense");
    let mut records = Vec::new();
    // GNU tar's own reader takes a nul for the end too.
    while !matches!(bytes.first(), None | Some(0)) {
        let space = bytes
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or_else(broken)?;
        let length: usize = decimal(&bytes[..space]).ok_or_else(broken)?;
        let record = bytes.get(space + 1..length).ok_or_else(broken)?;
        let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// A record's number.
pub(super) fn decimal<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A record's time, in seconds and nanoseconds: `-1.5` is half a second before the second before 1970.
pub(super) fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let point = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let whole: i64 = decimal(&text[..point])?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = *fraction.get(place).unwrap_or(&b'0');
        if !digit.is_ascii_digit() {
            return None;
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    if text.first() == Some(&b'-') && nanoseconds > 0 {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((whole, nanoseconds))
}

/// A time as a record has it.
pub(super) fn time(seconds: i64, nanoseconds: u32) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let text = match (seconds, nanoseconds) {
        (..0, _) => {
            let whole = (seconds + 1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
        }
        _ => format!("{seconds}.{nanoseconds:09}"),
    };
    text.trim_end_matches('0').to_owned()
}

/// An attribute's name as a key has it: GNU tar escapes what would end the key.
pub(super) fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = XATTR.to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            byte => key.push(*byte),
        }
    }
    key
}

/// The attribute's name that a key has, if it has one.
pub(super) fn xattr_name(key: &[u8]) -> Option<Vec<u8>> {
    let mut rest = key.strip_prefix(XATTR)?;
    let mut name = Vec::with_capacity(rest.len());
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (*first, after),
        };
        name.push(byte);
        rest = after;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header {
            kind: b'3',
            name: b"dev/\xff".to_vec(),
            link: b"x".to_vec(),
            mode: 0o4755,
            uid: 70_000,
            gid: 5,
            size: 3,
            mtime: 1_700_000_000,
            major: 259,
            minor: 0xffff_ffff,
        };
        assert_eq!(Header::parse(&header.block()).unwrap(), Some(header));
        assert_eq!(Header::parse(&[0; BLOCK]).unwrap(), None);
        assert!(Header::parse(&[7; BLOCK]).is_err());
    }

    #[test]
    fn numbers_in_base_256_are_read() {
        assert_eq!(number(b"0000017\0"), Some(15));
        assert_eq!(number(b"     17 "), Some(15));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), Some(8 << 30));
        assert_eq!(number(&[0x80, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]), None);
        assert_eq!(number(b"89"), None);
    }

    #[test]
    fn times_go_both_ways() {
        for (at, text) in [
            ((5, 0), "5"),
            ((5, 500_000_000), "5.5"),
            ((0, 1), "0.000000001"),
            ((-1, 500_000_000), "-0.5"),
            ((-2, 750_000_000), "-1.25"),
            ((-3, 0), "-3"),
        ] {
            assert_eq!(time(at.0, at.1), text);
            assert_eq!(parse_time(text.as_bytes()), Some(at));
        }
        assert_eq!(parse_time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(parse_time(b"x"), None);
    }

    #[test]
    fn records_go_both_ways() {
        for size in [0, 1, 80, 88, 89, 90, 91, 980, 990] {
            let mut records = Vec::new();
            put_record(&mut records, &xattr_key(b"user.a=b%"), &vec![b'\n'; size]);
            let (key, value) = parse_records(&records).unwrap().remove(0);
            assert_eq!((xattr_name(&key), value.len()), (Some(b"user.a=b%".to_vec()), size));
        }
        for bad in ["9", "x y=z\n", "99 a=b\n", "4 =\nx", "0 a=b\n", "1 a=b\n"] {
            assert!(parse_records(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
