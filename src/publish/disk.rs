//! The tree on disk, by directory descriptors: lists directories, opens directories and files below the root.
//!
//! Every path is resolved below the root's descriptor without following a symlink (`openat2`), so nobody who moves
//! directories about meanwhile leads the walk out of the tree. Nothing here knows what may be published.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;

/// Bytes of directory entries that are read at once.
const LISTING_BYTES: usize = 64 << 10;

/// The longest path that one system call takes, in bytes, without its NUL; longer ones are opened in steps.
const STEP_BYTES: usize = 4095;

/// What `statx` is asked for: everything `stat` knows, and the mount.
const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::MNT_ID);

/// File systems whose change times come from this kernel's clock, in nanoseconds: `f_type` of `statfs(2)`.
const FINE_TIMES: [u32; 6] = [
    0xEF53,      // ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0x0102_1994, // tmpfs
    0xF2F5_2010, // F2FS
    0xCA45_1A4E, // bcachefs
];

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    Device,
}

/// What `statx` says of a path: enough to publish it, and to see later whether it is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: FileKind,
    /// Permission bits, setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// Bytes on disk: less than `size` when the file has holes.
    pub(crate) allocated: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) mount: u64,
    /// Whose it is.
    pub(crate) uid: u32,
}

impl Stat {
    fn new(found: &Statx) -> Stat {
        let kind = match rustix::fs::FileType::from_raw_mode(found.stx_mode.into()) {
            rustix::fs::FileType::RegularFile => FileKind::File,
            rustix::fs::FileType::Directory => FileKind::Directory,
            rustix::fs::FileType::Symlink => FileKind::Symlink,
            rustix::fs::FileType::Fifo => FileKind::Fifo,
            rustix::fs::FileType::Socket => FileKind::Socket,
            _ => FileKind::Device,
        };
        Stat {
            kind,
            mode: found.stx_mode & 0o7777,
            size: found.stx_size,
            allocated: found.stx_blocks.saturating_mul(512),
            mtime: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            ctime: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
            device: u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor),
            inode: found.stx_ino,
            mount: found.stx_mnt_id,
            uid: found.stx_uid,
        }
    }

    /// Makes one of a file that is not on disk, of which only the size is known.
    pub(crate) fn of_size(size: u64) -> Stat {
        Stat {
            kind: FileKind::File,
            mode: 0,
            size,
            allocated: 0,
            mtime: (0, 0),
            ctime: (0, 0),
            device: 0,
            inode: 0,
            mount: 0,
            uid: 0,
        }
    }

    /// Returns the modification time in nanoseconds since 1970, if 64 bits hold it.
    pub(crate) fn mtime_ns(&self) -> Option<i64> {
        let ns = i128::from(self.mtime.0) * 1_000_000_000 + i128::from(self.mtime.1);
        i64::try_from(ns).ok()
    }

    /// Returns the change time in nanoseconds since 1970, if 64 bits hold it.
    pub(crate) fn ctime_ns(&self) -> Option<i64> {
        let ns = i128::from(self.ctime.0) * 1_000_000_000 + i128::from(self.ctime.1);
        i64::try_from(ns).ok()
    }

    /// Returns whether nothing was written between the two: same inode, owner, size, modification and change time.
    pub(crate) fn unchanged(&self, other: &Stat) -> bool {
        let seen = |stat: &Stat| {
            (
                stat.kind,
                stat.device,
                stat.inode,
                stat.uid,
                stat.size,
                stat.mtime,
                stat.ctime,
            )
        };
        seen(self) == seen(other)
    }

    /// Returns the bytes that have to be stored at least: what is on disk, but no more than there is.
    pub(crate) fn dense(&self) -> u64 {
        self.size.min(self.allocated)
    }
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) name: Vec<u8>,
    pub(crate) stat: Stat,
}

/// A tree below an open directory.
pub(crate) struct Disk {
    root: OwnedFd,
    stat: Stat,
}

impl Disk {
    /// Takes the root; any descriptor of a directory will do, also one of `O_PATH`.
    pub(crate) fn new(root: impl AsFd) -> io::Result<Disk> {
        let root = open_at(root.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = stat(&root)?;
        Ok(Disk { root, stat })
    }

    /// Returns what the root is.
    pub(crate) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// Returns whether the root's file system is local and takes the times of files from the kernel's clock, tick by tick.
    pub(crate) fn has_fine_times(&self) -> io::Result<bool> {
        let kind = rustix::fs::fstatfs(&self.root)?.f_type;
        Ok(FINE_TIMES
            .iter()
            .any(|fine| i128::from(*fine) == i128::from(kind)))
    }

    /// Opens a directory by its path below the root; empty for the root.
    pub(crate) fn directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        if path.is_empty() {
            return open_at(self.root.as_fd(), b".", flags);
        }
        let mut rest = path;
        let mut step: Option<OwnedFd> = None;
        loop {
            let from = step.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            if rest.len() <= STEP_BYTES {
                return open_at(from, rest, flags);
            }
            // A part is at most 255 bytes, so there is a slash.
            let split = rest[..STEP_BYTES]
                .iter()
                .rposition(|byte| *byte == b'/')
                .ok_or(Errno::NAMETOOLONG)?;
            step = Some(open_at(
                from,
                &rest[..split],
                OFlags::PATH | OFlags::DIRECTORY,
            )?);
            rest = &rest[split + 1..];
        }
    }
}

/// Opens `path` below `from`, following no symlink anywhere in it.
fn open_at(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(from, path, flags, Mode::empty(), resolve) {
        // A sandbox may not know the call; the same part by part.
        Err(Errno::NOSYS | Errno::PERM) => {
            let mut at: Option<OwnedFd> = None;
            let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
            for (index, part) in parts.iter().enumerate() {
                if *part == b".." {
                    return Err(Errno::XDEV.into());
                }
                let flags = if index + 1 == parts.len() {
                    flags
                } else {
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
                };
                let from = at.as_ref().map_or(from, AsFd::as_fd);
                at = Some(rustix::fs::openat(from, *part, flags, Mode::empty())?);
            }
            at.ok_or_else(|| Errno::NOENT.into())
        }
        other => Ok(other?),
    }
}

/// Opens a regular file of an open directory for reading; never waits, whatever was put in its place.
pub(crate) fn open_file(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// Opens a directory of an open directory.
pub(crate) fn open_directory(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// Returns what an open file is now.
pub(crate) fn stat(file: impl AsFd) -> io::Result<Stat> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, MASK)?;
    Ok(Stat::new(&found))
}

/// Returns what an entry of an open directory is now; a symlink is not followed.
pub(crate) fn stat_in(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(directory, name, flags, MASK)?;
    Ok(Stat::new(&found))
}

/// Lists a directory, sorted by the unsigned bytes of the names.
///
/// An entry that vanishes between the listing and its `stat` is an error: the tree is changing.
pub(crate) fn list(
    directory: BorrowedFd<'_>,
    skip: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<Vec<Found>> {
    list_all(directory, skip, false)
}

/// As [`list`], of a directory of many, in which others come and go: what vanishes meanwhile is passed over, and so is
/// what cannot be looked at, as a mount whose server is dead or lets nobody else in. Nor is any server waited for.
pub(crate) fn list_living(
    directory: BorrowedFd<'_>,
    skip: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<Vec<Found>> {
    list_all(directory, skip, true)
}

fn list_all(
    directory: BorrowedFd<'_>,
    skip: &mut dyn FnMut(&[u8]) -> bool,
    living: bool,
) -> io::Result<Vec<Found>> {
    let mut buffer = vec![MaybeUninit::uninit(); LISTING_BYTES];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || skip(name.to_bytes()) {
            continue;
        }
        let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        flags.set(AtFlags::STATX_DONT_SYNC, living);
        let stat = match rustix::fs::statx(directory, name, flags, MASK) {
            Err(_) if living => continue,
            stat => stat?,
        };
        found.push(Found {
            name: name.to_bytes().to_vec(),
            stat: Stat::new(&stat),
        });
    }
    found.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(found)
}

/// Reads a symlink.
pub(crate) fn target(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes())
}

/// Returns where data begins at or after `offset`, and where it ends; `None` when only a hole follows.
///
/// File systems that know no holes say that everything is data.
pub(crate) fn data_after(
    file: BorrowedFd<'_>,
    offset: u64,
    size: u64,
) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL) => return Ok(Some((offset, size))),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end,
        Err(Errno::INVAL | Errno::NXIO) => size,
        Err(error) => return Err(error.into()),
    };
    Ok(Some((start, end)))
}

/// Returns the mount ids that belong to mounts of manifs.
///
/// A machine without `/proc` has none that could be told, and no FUSE mount either.
pub(crate) fn own_mounts() -> HashSet<u64> {
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    parse_own_mounts(&text)
}

/// Reads `mountinfo` (see proc(5)): the id is the first field, the type follows the lone dash.
fn parse_own_mounts(text: &[u8]) -> HashSet<u64> {
    let mut mounts = HashSet::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields
            .next()
            .and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        if let (Some(id), Some(b"fuse.manifs")) = (id, kind) {
            mounts.insert(id);
        }
    }
    mounts
}

/// Returns the last name of a path.
pub(crate) fn last_name(path: &[u8]) -> &[u8] {
    std::path::Path::new(OsStr::from_bytes(path))
        .file_name()
        .map_or(b"", OsStrExt::as_bytes)
}

#[cfg(test)]
pub(crate) mod testing {
    use std::path::Path;

    use nix::unistd::{Uid, setfsuid};

    /// The user without rights.
    const NOBODY: u32 = 65534;

    /// Does `work` as an ordinary user would, also when root runs the test.
    pub(crate) fn without_privileges<T>(work: impl FnOnce() -> T) -> T {
        if !rustix::process::geteuid().is_root() {
            return work();
        }
        // Of this thread alone, and so are the capabilities that go with it.
        setfsuid(Uid::from_raw(NOBODY));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        setfsuid(Uid::from_raw(0));
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Gives a tree to the user of [`without_privileges`].
    pub(crate) fn give_away(path: &Path) {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            for entry in std::fs::read_dir(path).unwrap() {
                give_away(&entry.unwrap().path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

    use super::testing::{give_away, without_privileges};
    use super::*;

    #[test]
    fn own_mounts_are_found_by_type() {
        let text = b"22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n\
            97 1 0:50 / /mnt/a\\040b ro,nosuid - fuse.manifs manifs ro,user_id=0\n\
            98 1 0:51 / /mnt/c ro - fuse.sshfs fuse.manifs ro\n";
        assert_eq!(parse_own_mounts(text), HashSet::from([97]));
        assert!(parse_own_mounts(b"").is_empty());
    }

    #[test]
    fn nothing_leads_out_of_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", dir.path().join("tree/out")).unwrap();
        symlink("a", dir.path().join("tree/in")).unwrap();
        let disk = Disk::new(File::open(dir.path().join("tree")).unwrap()).unwrap();
        disk.directory(b"").unwrap();
        disk.directory(b"a/b").unwrap();
        for path in [
            &b"out"[..],
            b"in",
            b"in/b",
            b"..",
            b"a/../..",
            b"/",
            b"none",
        ] {
            assert!(disk.directory(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn paths_beyond_one_system_call_are_opened_in_steps() {
        let dir = tempfile::tempdir().unwrap();
        let name = [b'd'; 250];
        let mut at: OwnedFd = File::open(dir.path()).unwrap().into();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            at = open_at(at.as_fd(), &name, OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        let path = vec![&name[..]; 40].join(&b'/');
        let disk = Disk::new(File::open(dir.path()).unwrap()).unwrap();
        let found = stat(disk.directory(&path).unwrap()).unwrap();
        assert!(found.unchanged(&stat(&at).unwrap()));
    }

    #[test]
    fn lists_sorted_with_what_each_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("B")).unwrap();
        fs::write(dir.path().join("a.b"), b"12345").unwrap();
        symlink("a.b", dir.path().join("a")).unwrap();
        fs::write(dir.path().join("skipped"), b"").unwrap();
        let opened = File::open(dir.path()).unwrap();
        let found = list(opened.as_fd(), &mut |name| name == b"skipped").unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|entry| (&entry.name[..], entry.stat.kind))
            .collect();
        assert_eq!(
            names,
            [
                (&b"B"[..], FileKind::Directory),
                (b"a", FileKind::Symlink),
                (b"a.b", FileKind::File)
            ]
        );
        assert_eq!(found[2].stat.size, 5);
        assert_eq!(target(opened.as_fd(), b"a").unwrap(), b"a.b");
        assert!(open_file(opened.as_fd(), b"a").is_err());
        // What vanishes between listing and looking, as somebody else's temporary file does.
        let mut vanish = |name: &[u8]| {
            if name == b"a.b" {
                fs::remove_file(dir.path().join("a.b")).unwrap();
            }
            false
        };
        let opened = File::open(dir.path()).unwrap();
        assert!(list(opened.as_fd(), &mut vanish).is_err());
        fs::write(dir.path().join("a.b"), b"").unwrap();
        let opened = File::open(dir.path()).unwrap();
        let found = list_living(opened.as_fd(), &mut vanish).unwrap();
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn what_cannot_be_looked_at_hides_nothing_else_in_a_living_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), b"").unwrap();
        // The names may be read, and nothing behind them.
        let mode = |mode| {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o444);
        give_away(dir.path());
        let (strict, living) = without_privileges(|| {
            let list = |living| {
                let opened = File::open(dir.path()).unwrap();
                list_all(opened.as_fd(), &mut |_| false, living)
            };
            (list(false), list(true))
        });
        mode(0o755);
        assert_eq!(strict.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(living.unwrap().is_empty());
    }

    #[test]
    fn holes_are_seen_or_all_is_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", 32 << 20).unwrap();
        let file = File::open(&path).unwrap();
        let (start, end) = data_after(file.as_fd(), 0, size).unwrap().unwrap();
        assert!(start <= 32 << 20 && end > 32 << 20);
        if end < size {
            assert_eq!(data_after(file.as_fd(), end, size).unwrap(), None);
            assert!(stat(&file).unwrap().dense() < size);
        }
    }
}
