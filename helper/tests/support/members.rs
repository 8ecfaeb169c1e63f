//! Tars, made member by member.

/// A member of a tar of the old kind, owned by whoever runs this.
pub(crate) fn member(path: &str, kind: u8, link: &str, mtime: u64, content: &[u8]) -> Vec<u8> {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    put(0, path);
    put(100, "0000755");
    put(108, &format!("{uid:07o}"));
    put(116, &format!("{gid:07o}"));
    put(124, &format!("{:011o}", content.len()));
    put(136, &format!("{mtime:011o}"));
    put(148, "        ");
    put(157, link);
    put(257, "ustar");
    put(263, "00");
    block[156] = kind;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut member = [&block, content].concat();
    member.resize(member.len().next_multiple_of(512), 0);
    member
}
