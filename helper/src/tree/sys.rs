//! The system calls that the standard library lacks, each behind a safe function. 64-bit Linux.
//!
//! Everything is done relative to an open directory or to an open file, so that a task that changes the tree at the same
//! time can't lead a call out of it. What can't be opened for reading (symlinks, fifos, devices) is held by an `O_PATH`
//! descriptor and reached as `/proc/self/fd/N`, which names just that file, whatever it is.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const fn by_architecture(common: c_int, arm_and_power: c_int) -> c_int {
    if cfg!(any(
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "powerpc64"
    )) {
        arm_and_power
    } else {
        common
    }
}

pub(super) const READ: c_int = 0;
pub(super) const DIRECTORY: c_int = by_architecture(0o200_000, 0o40_000);
pub(super) const NOFOLLOW: c_int = by_architecture(0o400_000, 0o100_000);
/// A descriptor that only says where.
pub(super) const PATH: c_int = 0o10_000_000;
/// Nothing is waited for, such as a fifo's other end.
pub(super) const NONBLOCK: c_int = 0o4_000;
/// A new file, for writing.
pub(super) const NEW: c_int = 0o1 | 0o100 | 0o200;
const CLOEXEC: c_int = 0o2_000_000;

const ENOENT: i32 = 2;
const EAGAIN: i32 = 11;
const ENODATA: i32 = 61;
const EOPNOTSUPP: i32 = 95;
pub(super) const ELOOP: i32 = 40;
const ENXIO: i32 = 6;

/// How `open` may resolve a name.
#[derive(Clone, Copy)]
pub(super) enum Resolve {
    /// Symlinks are followed as if the directory were `/`.
    InRoot,
    /// No symlink is followed.
    NoSymlinks,
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

const _: () = assert!(size_of::<Statx>() == 256);

const SYS_OPENAT2: c_long = 437;
const SYS_OPEN_TREE: c_long = 428;
const SYS_MOUNT_SETATTR: c_long = 442;
const OPEN_TREE_CLONE: c_int = 1;
const MOUNT_ATTR_NODEV: u64 = 0x04;
const MS_PRIVATE: u64 = 1 << 18;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const AT_NO_AUTOMOUNT: c_int = 0x800;
const STATX_BASIC_STATS: c_uint = 0x7ff;
const AT_REMOVEDIR: c_int = 0x200;
const AT_EMPTY_PATH: c_int = 0x1000;
const AT_RECURSIVE: c_int = 0x8000;
const AT_FDCWD: c_int = -100;
const UTIME_OMIT: c_long = 0x3fff_fffe;
const F_SETPIPE_SZ: c_int = 1031;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;

/// `struct statx` of statx(2), as far as anybody here asks; the kernel writes 256 bytes.
#[repr(C)]
#[derive(Default)]
struct Statx {
    mask: u32,
    block_size: u32,
    attributes: u64,
    links: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    _pad: u16,
    inode: u64,
    size: u64,
    blocks: u64,
    attributes_mask: u64,
    access: StatxTime,
    birth: StatxTime,
    change: StatxTime,
    modification: StatxTime,
    _rest: [u64; 16],
}

#[repr(C)]
#[derive(Default)]
struct StatxTime {
    seconds: i64,
    nanoseconds: u32,
    _pad: i32,
}

/// What one look at a file's name tells.
pub(super) struct Seen {
    pub(super) inode: u64,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) links: u32,
    /// When anything of it changed last: seconds and nanoseconds since 1970.
    pub(super) changed: (i64, u32),
}

impl Seen {
    pub(super) fn is_directory(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

/// Looks at `name` in `dir`, a symlink itself. It is one call, where opening a file to look at it takes three.
pub(super) fn look(dir: &File, name: &[u8]) -> io::Result<Seen> {
    let name = c(name)?;
    let mut found = Statx::default();
    #[expect(
        unsafe_code,
        reason = "the pointers outlive the call, which writes no more than the struct has"
    )]
    let result = unsafe {
        statx(
            dir.as_raw_fd(),
            name.as_ptr(),
            AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
            STATX_BASIC_STATS,
            &raw mut found,
        )
    };
    done(result)?;
    Ok(Seen {
        inode: found.inode,
        mode: u32::from(found.mode),
        size: found.size,
        links: found.links,
        changed: (found.change.seconds, found.change.nanoseconds),
    })
}

#[expect(unsafe_code, reason = "the C library's functions, as its manual declares them")]
unsafe extern "C" {
    fn statx(dir: c_int, name: *const c_char, flags: c_int, mask: c_uint, found: *mut Statx) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn mkdirat(dir: c_int, name: *const c_char, mode: c_uint) -> c_int;
    fn unlinkat(dir: c_int, name: *const c_char, flags: c_int) -> c_int;
    fn symlinkat(target: *const c_char, dir: c_int, name: *const c_char) -> c_int;
    fn linkat(from: c_int, name: *const c_char, to: c_int, as_name: *const c_char, flags: c_int) -> c_int;
    fn mknodat(dir: c_int, name: *const c_char, mode: c_uint, device: u64) -> c_int;
    fn readlinkat(dir: c_int, name: *const c_char, buffer: *mut c_char, size: usize) -> isize;
    fn futimens(fd: c_int, times: *const Timespec) -> c_int;
    fn utimensat(dir: c_int, name: *const c_char, times: *const Timespec, flags: c_int) -> c_int;
    fn listxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn flistxattr(fd: c_int, list: *mut c_char, size: usize) -> isize;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn fgetxattr(fd: c_int, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn fsetxattr(fd: c_int, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
}

fn c(text: &[u8]) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The same directory through a mount that nobody else sees, and on which devices can't be opened: what takes a file's place
/// can do nothing when it is opened. `None` where that can't be had: it takes Linux 5.12 and `CAP_SYS_ADMIN`. What is mounted
/// below comes along, unless it is unbindable.
pub(super) fn without_devices(directory: &File) -> Option<File> {
    let flags = OPEN_TREE_CLONE | CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE;
    let attributes = MountAttributes {
        set: MOUNT_ATTR_NODEV,
        clear: 0,
        propagation: MS_PRIVATE,
        user_namespace: 0,
    };
    #[expect(
        unsafe_code,
        reason = "the pointers outlive the calls; what the first one returns is a descriptor of ours"
    )]
    unsafe {
        let fd = syscall(SYS_OPEN_TREE, directory.as_raw_fd(), c"".as_ptr(), flags);
        let fd = c_int::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        let fd = OwnedFd::from_raw_fd(fd);
        let set = syscall(
            SYS_MOUNT_SETATTR,
            fd.as_raw_fd(),
            c"".as_ptr(),
            AT_EMPTY_PATH | AT_RECURSIVE,
            &raw const attributes,
            size_of::<MountAttributes>(),
        );
        (set == 0).then(|| File::from(fd))
    }
}

/// Opens `name` below `dir`; `mode` is for a [`NEW`] file.
pub(super) fn open(dir: &File, name: &[u8], flags: c_int, mode: u32, resolve: Resolve) -> io::Result<File> {
    let name = c(name)?;
    // RESOLVE_NO_MAGICLINKS with RESOLVE_IN_ROOT, or with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS.
    let resolve = match resolve {
        Resolve::InRoot => 0x02 | 0x10,
        Resolve::NoSymlinks => 0x02 | 0x08 | 0x04,
    };
    let how = OpenHow {
        flags: u64::from((flags | CLOEXEC).unsigned_abs()),
        mode: u64::from(mode),
        resolve,
    };
    // A rename elsewhere in the file system makes the kernel give up on a `..` of a symlink: then the call is made again.
    for _ in 0..128 {
        #[expect(
            unsafe_code,
            reason = "the pointers outlive the call; what it returns is a descriptor of ours"
        )]
        let fd = unsafe {
            let fd = syscall(
                SYS_OPENAT2,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw const how,
                size_of::<OpenHow>(),
            );
            c_int::try_from(fd)
                .ok()
                .filter(|fd| *fd >= 0)
                .map(|fd| OwnedFd::from_raw_fd(fd))
        };
        match fd {
            Some(fd) => return Ok(File::from(fd)),
            None => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(EAGAIN) {
                    return Err(error);
                }
            }
        }
    }
    Err(io::Error::from_raw_os_error(EAGAIN))
}

/// Holds the directory `name` of `dir`.
pub(super) fn open_below(dir: &File, name: &[u8]) -> io::Result<File> {
    open(dir, name, PATH | DIRECTORY | NOFOLLOW, 0, Resolve::NoSymlinks)
}

pub(super) fn make_directory(dir: &File, name: &[u8], mode: u32) -> io::Result<()> {
    let name = c(name)?;
    #[expect(unsafe_code, reason = "the pointer outlives the call")]
    done(unsafe { mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) })
}

/// Removes a file, or an empty directory.
pub(super) fn remove(dir: &File, name: &[u8], directory: bool) -> io::Result<()> {
    let name = c(name)?;
    let flags = if directory { AT_REMOVEDIR } else { 0 };
    #[expect(unsafe_code, reason = "the pointer outlives the call")]
    done(unsafe { unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) })
}

pub(super) fn make_symlink(target: &[u8], dir: &File, name: &[u8]) -> io::Result<()> {
    let (target, name) = (c(target)?, c(name)?);
    #[expect(unsafe_code, reason = "the pointers outlive the call")]
    done(unsafe { symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) })
}

pub(super) fn make_link(from: &File, target: &[u8], dir: &File, name: &[u8]) -> io::Result<()> {
    let (target, name) = (c(target)?, c(name)?);
    #[expect(unsafe_code, reason = "the pointers outlive the call")]
    done(unsafe { linkat(from.as_raw_fd(), target.as_ptr(), dir.as_raw_fd(), name.as_ptr(), 0) })
}

/// A fifo or a device: `mode` has the type's bits.
pub(super) fn make_node(dir: &File, name: &[u8], mode: u32, major: u32, minor: u32) -> io::Result<()> {
    let name = c(name)?;
    #[expect(unsafe_code, reason = "the pointer outlives the call")]
    done(unsafe { mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device(major, minor)) })
}

/// As `makedev(3)` of both C libraries.
fn device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    ((major & 0xffff_f000) << 32) | ((major & 0xfff) << 8) | ((minor & 0xffff_ff00) << 12) | (minor & 0xff)
}

/// As `major(3)` and `minor(3)`.
pub(super) fn device_numbers(device: u64) -> (u32, u32) {
    let major = ((device >> 32) & 0xffff_f000) | ((device >> 8) & 0xfff);
    let minor = ((device >> 12) & 0xffff_ff00) | (device & 0xff);
    (major as u32, minor as u32)
}

/// The target of the symlink that an `O_PATH` descriptor holds.
pub(super) fn read_link(link: &File) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; 4096];
    #[expect(unsafe_code, reason = "the buffer is as long as is said")]
    let read = unsafe { readlinkat(link.as_raw_fd(), c"".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(length(read)?);
    Ok(buffer)
}

/// Where `file` holds data from `offset` on, up to `end`: `None` where all that follows is a hole.
pub(super) fn data_from(file: &File, offset: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        #[expect(unsafe_code, reason = "a call on a descriptor that is open")]
        let at = unsafe { lseek(file.as_raw_fd(), from, whence) };
        u64::try_from(at).map_err(|_| io::Error::last_os_error())
    };
    let start = match seek(offset, SEEK_DATA) {
        Ok(start) if start < end => start,
        Ok(_) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some((start, seek(start, SEEK_HOLE)?.min(end))))
}

/// Makes the pipe behind `file` hold 1 MiB; on anything else, and where the user's quota of pipes is spent, nothing.
pub fn widen_pipe(file: &File) {
    #[expect(unsafe_code, reason = "a call on a descriptor that is open")]
    let _ = unsafe { fcntl(file.as_raw_fd(), F_SETPIPE_SZ, 1 << 20) };
}

/// Where an `O_PATH` descriptor's file is found.
pub(super) fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// What attributes and times are asked of.
#[derive(Clone, Copy)]
pub(super) enum Node<'a> {
    /// Open for reading or writing.
    Open(&'a File),
    /// An `O_PATH` descriptor.
    Held(&'a File),
}

impl Node<'_> {
    /// Sets the modification time and leaves the access time.
    pub(super) fn set_mtime(self, seconds: i64, nanoseconds: u32) -> io::Result<()> {
        let times = [
            Timespec {
                seconds: 0,
                nanoseconds: UTIME_OMIT,
            },
            Timespec {
                seconds,
                nanoseconds: c_long::from(nanoseconds),
            },
        ];
        #[expect(unsafe_code, reason = "the pointers outlive the call")]
        done(match self {
            Self::Open(file) => unsafe { futimens(file.as_raw_fd(), times.as_ptr()) },
            Self::Held(file) => {
                let path = c(proc_path(file).as_bytes())?;
                unsafe { utimensat(AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }
            }
        })
    }

    /// The names of all extended attributes, each with a nul after it; `buffer` takes the kernel's most, 64 KiB.
    pub(super) fn attributes(self, buffer: &mut [u8]) -> io::Result<usize> {
        #[expect(unsafe_code, reason = "the buffer is as long as is said")]
        let read = match self {
            Self::Open(file) => unsafe { flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) },
            Self::Held(file) => {
                let path = c(proc_path(file).as_bytes())?;
                unsafe { listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
            }
        };
        match length(read) {
            Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => Ok(0),
            other => other,
        }
    }

    /// An attribute's value; `None` if it is gone. `buffer` takes the kernel's most, 64 KiB.
    pub(super) fn attribute<'b>(self, name: &CStr, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        let value = buffer.as_mut_ptr().cast();
        #[expect(unsafe_code, reason = "the buffer is as long as is said")]
        let read = match self {
            Self::Open(file) => unsafe { fgetxattr(file.as_raw_fd(), name.as_ptr(), value, buffer.len()) },
            Self::Held(file) => {
                let path = c(proc_path(file).as_bytes())?;
                unsafe { getxattr(path.as_ptr(), name.as_ptr(), value, buffer.len()) }
            }
        };
        match length(read) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(error) if matches!(error.raw_os_error(), Some(ENODATA | ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn set_attribute(self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let name = c(name)?;
        let data = value.as_ptr().cast();
        #[expect(unsafe_code, reason = "the value is as long as is said")]
        done(match self {
            Self::Open(file) => unsafe { fsetxattr(file.as_raw_fd(), name.as_ptr(), data, value.len(), 0) },
            Self::Held(file) => {
                let path = c(proc_path(file).as_bytes())?;
                unsafe { setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), 0) }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_not_opened_where_none_can_be_and_a_file_is() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "content").unwrap();
        let directory = File::open(root.path()).unwrap();
        // Only root may have such a mount, and make a device.
        let Some(harmless) = without_devices(&directory) else {
            return;
        };
        // `/dev/null`, which anyone may open.
        let opened = |directory: &File, name: &[u8], flags| open(directory, name, flags, 0, Resolve::NoSymlinks);
        let made = make_node(&directory, b"device", 0o020_666, 1, 3);
        if made.is_err() || opened(&directory, b"device", READ | NONBLOCK).is_err() {
            // In a user namespace none is made, and the folder of temporary files may have none either.
            return;
        }
        make_node(&directory, b"fifo", 0o010_600, 0, 0).unwrap();
        let error = opened(&harmless, b"device", READ | NONBLOCK).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(opened(&harmless, b"device", PATH).is_ok(), "it can be looked at");
        assert!(opened(&harmless, b"file", READ | NONBLOCK).is_ok());
        assert!(
            opened(&harmless, b"fifo", READ | NONBLOCK).is_ok(),
            "its other end is not waited for"
        );
    }

    #[test]
    fn device_numbers_go_both_ways() {
        for (major, minor) in [(0, 0), (1, 3), (259, 1_048_575), (0xfff_fff, 0xffff_ffff)] {
            assert_eq!(device_numbers(device(major, minor)), (major, minor));
        }
    }
}
