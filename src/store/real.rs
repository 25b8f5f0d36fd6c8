//! A directory of a real disk.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::Wait;
use super::disk::{Access, Disk, DiskFile, Folder, Listed, Name, Stat};
use crate::block::Digest;

/// The longest name: `p/xx/`, 64 digits, `.part`, NUL.
const NAME_BYTES: usize = 80;

/// One read of a directory.
const LIST_BYTES: usize = 64 << 10;

/// What `open` without waiting asks of a path: that the kernel has all of it in memory (Linux 5.12).
const CACHED: ResolveFlags = ResolveFlags::CACHED.union(ResolveFlags::BENEATH);

/// A directory of a real disk.
pub struct RealDisk {
    root: OwnedFd,
    granule: u64,
}

impl RealDisk {
    /// Takes a directory, which is made when it is missing.
    ///
    /// # Errors
    /// The system's.
    pub fn new(root: &Path) -> io::Result<RealDisk> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)?;
        let root = OwnedFd::from(File::open(root)?);
        for name in [c"r", c"p", c"tmp"] {
            make_dir(&root, name)?;
        }
        let granule = rustix::fs::fstatvfs(&root)?.f_frsize.clamp(4096, 1 << 20);
        let disk = RealDisk { root, granule };
        disk.sweep()?;
        Ok(disk)
    }

    /// Removes temporary files that a crash has left. The store has one owner, so none of them is in use.
    fn sweep(&self) -> io::Result<()> {
        let folder = self.open_dir(c"tmp")?;
        let mut names = Vec::new();
        list(&folder, &mut |name, _| names.push(name.to_owned()))?;
        for name in names {
            rustix::fs::unlinkat(&folder, &name, AtFlags::empty())?;
        }
        Ok(())
    }

    fn open_dir(&self, name: &CStr) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.root, name, flags, Mode::empty())?)
    }

    fn open_fd(&self, name: Name, flags: OFlags, wait: Wait) -> io::Result<OwnedFd> {
        let mut buffer = [0; NAME_BYTES];
        let path = path(name, &mut buffer)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOATIME;
        if wait == Wait::No {
            return match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), CACHED) {
                // Too old a kernel, or not in memory: whoever may wait has to do it.
                Err(Errno::AGAIN | Errno::NOSYS | Errno::INVAL) => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                opened => Ok(opened?),
            };
        }
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(&self.root, path, flags, mode) {
            Err(Errno::NOENT) if flags.contains(OFlags::CREATE) => {
                self.make_folder(name)?;
                Ok(rustix::fs::openat(&self.root, path, flags, mode)?)
            }
            // Only the owner may leave the access time alone.
            Err(Errno::PERM) => Ok(rustix::fs::openat(
                &self.root,
                path,
                flags.difference(OFlags::NOATIME),
                mode,
            )?),
            opened => Ok(opened?),
        }
    }

    fn make_folder(&self, name: Name) -> io::Result<()> {
        let (above, folder) = match name.folder() {
            Some(folder @ Folder::Small(_)) => (c"r", folder),
            Some(folder @ Folder::Large(_)) => (c"p", folder),
            None => return make_dir(&self.root, c"tmp"),
        };
        make_dir(&self.root, above)?;
        let mut buffer = [0; NAME_BYTES];
        make_dir(&self.root, folder_path(folder, &mut buffer)?)
    }
}

impl Disk for RealDisk {
    fn open(&self, name: Name, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let fd = match access {
            Access::Existing(wait) => self.open_fd(name, OFlags::RDWR, wait)?,
            Access::New => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
                self.open_fd(name, flags, Wait::Yes)?
            }
        };
        Ok(Arc::new(File::from(fd)))
    }

    fn read(&self, name: Name, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        File::from(self.open_fd(name, OFlags::RDONLY, wait)?).read_at_with(offset, buffer, wait)
    }

    fn read_vec(&self, name: Name, len: usize) -> io::Result<Vec<u8>> {
        let file = File::from(self.open_fd(name, OFlags::RDONLY, Wait::Yes)?);
        DiskFile::read_vec(&file, 0, len)
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        let (mut first, mut second) = ([0; NAME_BYTES], [0; NAME_BYTES]);
        let (old, new) = (path(from, &mut first)?, path(to, &mut second)?);
        match rustix::fs::renameat(&self.root, old, &self.root, new) {
            Err(Errno::NOENT) => {
                self.make_folder(to)?;
                Ok(rustix::fs::renameat(&self.root, old, &self.root, new)?)
            }
            renamed => Ok(renamed?),
        }
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        let mut buffer = [0; NAME_BYTES];
        match rustix::fs::unlinkat(&self.root, path(name, &mut buffer)?, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    fn stat(&self, name: Name) -> io::Result<Stat> {
        let mut buffer = [0; NAME_BYTES];
        let path = path(name, &mut buffer)?;
        let found = rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(stat_of(&found))
    }

    fn list(&self, folder: Folder, visit: &mut dyn FnMut(Name)) -> io::Result<Listed> {
        let mut buffer = [0; NAME_BYTES];
        let fd = match self.open_dir(folder_path(folder, &mut buffer)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listed::default()),
            opened => opened?,
        };
        let mut strangers = 0;
        list(&fd, &mut |name, regular| match parse(folder, name) {
            Some(ours) if regular => visit(ours),
            _ => {
                let found = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW);
                strangers += found.map_or(0, |found| stat_of(&found).allocated);
            }
        })?;
        Ok(Listed {
            folder: stat_of(&rustix::fs::fstat(&fd)?).allocated,
            strangers,
        })
    }

    fn other_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for folder in [c".", c"r", c"p", c"tmp"] {
            let fd = match self.open_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            bytes += stat_of(&rustix::fs::fstat(&fd)?).allocated;
            // Temporary files are counted by whoever writes them.
            if folder == c"." {
                list(&fd, &mut |name, regular| {
                    let found = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW);
                    bytes += match found {
                        Ok(found) if regular => stat_of(&found).allocated,
                        _ => 0,
                    };
                })?;
            }
        }
        Ok(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn granule(&self) -> u64 {
        self.granule
    }
}

/// Reading as both kinds of callers want it.
trait ReadAtWith {
    fn read_at_with(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize>;
}

impl ReadAtWith for File {
    fn read_at_with(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        if wait == Wait::No {
            let wanted = buffer.len();
            let mut slices = [IoSliceMut::new(buffer)];
            return match rustix::io::preadv2(self, &mut slices, offset, ReadWriteFlags::NOWAIT) {
                Ok(count) if count == wanted => Ok(count),
                // Short: the rest is not in memory, or the file ends; who may wait finds out. Some file systems do not
                // know the flag: then nothing is at hand.
                Ok(_) | Err(Errno::OPNOTSUPP | Errno::AGAIN | Errno::INTR) => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                Err(error) => Err(error.into()),
            };
        }
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl DiskFile for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> io::Result<usize> {
        self.read_at_with(offset, buffer, wait)
    }

    fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(self, spare_capacity(&mut bytes), at) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given more room than was asked for.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn punch(&self, span: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(
            self,
            flags,
            span.start,
            span.end - span.start,
        )?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(stat_of(&rustix::fs::fstat(self)?))
    }

    fn data_after(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        // Moves the file's position, which nothing here reads by.
        let start = match rustix::fs::seek(self, SeekFrom::Data(offset)) {
            Err(Errno::NXIO) => return Ok(None),
            start => start?,
        };
        Ok(Some(start..rustix::fs::seek(self, SeekFrom::Hole(start))?))
    }
}

fn stat_of(found: &rustix::fs::Stat) -> Stat {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Stat {
        len: positive(found.st_size),
        allocated: positive(found.st_blocks) * 512,
    }
}

fn make_dir(above: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::mkdirat(above, name, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        made => Ok(made?),
    }
}

/// Visits each entry of a directory but `.` and `..`, and says whether it is a regular file.
fn list(folder: impl AsFd, visit: &mut dyn FnMut(&CStr, bool)) -> io::Result<()> {
    let mut buffer = vec![MaybeUninit::uninit(); LIST_BYTES];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |found| {
                    FileType::from_raw_mode(found.st_mode)
                }),
            kind => kind,
        };
        visit(name, kind == FileType::RegularFile);
    }
    Ok(())
}

fn parse(folder: Folder, name: &CStr) -> Option<Name> {
    let text = name.to_str().ok()?;
    let digest = |text: &str, byte: u8| {
        let digest: Digest = text.parse().ok()?;
        (digest.as_bytes()[0] == byte).then_some(digest)
    };
    match folder {
        Folder::Small(byte) => digest(text, byte).map(Name::Small),
        Folder::Large(byte) => match text.split_once('.') {
            None => digest(text, byte).map(Name::Whole),
            Some((stem, "part")) => digest(stem, byte).map(Name::Part),
            Some((stem, "map")) => digest(stem, byte).map(Name::Map),
            Some(_) => None,
        },
    }
}

fn path(name: Name, buffer: &mut [u8; NAME_BYTES]) -> io::Result<&CStr> {
    let mut rest = &mut buffer[..];
    match name {
        Name::Small(id) => data_path(&mut rest, "r", &id, "")?,
        Name::Whole(id) => data_path(&mut rest, "p", &id, "")?,
        Name::Part(id) => data_path(&mut rest, "p", &id, ".part")?,
        Name::Map(id) => data_path(&mut rest, "p", &id, ".map")?,
        Name::Temporary(number) => write!(rest, "tmp/{number}")?,
        Name::Recency => write!(rest, "recency")?,
        Name::RecencyNew => write!(rest, "recency.new")?,
    }
    terminated(buffer)
}

fn data_path(rest: &mut &mut [u8], above: &str, id: &Digest, extension: &str) -> io::Result<()> {
    let mut hex = [0; 64];
    hex::encode_to_slice(id.as_bytes(), &mut hex).map_err(io::Error::other)?;
    for part in [above.as_bytes(), b"/", &hex[..2], b"/", &hex] {
        rest.write_all(part)?;
    }
    rest.write_all(extension.as_bytes())
}

fn folder_path(folder: Folder, buffer: &mut [u8; NAME_BYTES]) -> io::Result<&CStr> {
    let (above, byte) = match folder {
        Folder::Small(byte) => ("r", byte),
        Folder::Large(byte) => ("p", byte),
    };
    write!(&mut buffer[..], "{above}/{byte:02x}")?;
    terminated(buffer)
}

/// The buffer was zeroed, and no name fills it.
fn terminated(buffer: &[u8; NAME_BYTES]) -> io::Result<&CStr> {
    CStr::from_bytes_until_nul(buffer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_and_back() {
        let id = Digest::of(b"x");
        let byte = id.as_bytes()[0];
        let mut buffer = [0; NAME_BYTES];
        let text = path(Name::Part(id), &mut buffer).unwrap().to_str().unwrap();
        assert_eq!(text, format!("p/{byte:02x}/{id}.part"));
        for (folder, name) in [
            (Folder::Small(byte), Name::Small(id)),
            (Folder::Large(byte), Name::Whole(id)),
            (Folder::Large(byte), Name::Part(id)),
            (Folder::Large(byte), Name::Map(id)),
        ] {
            let mut buffer = [0; NAME_BYTES];
            let text = path(name, &mut buffer).unwrap().to_str().unwrap();
            let last = std::ffi::CString::new(&text[5..]).unwrap();
            assert_eq!(parse(folder, &last), Some(name));
            assert_eq!(parse(Folder::Small(byte ^ 1), &last), None);
            assert_eq!(parse(Folder::Large(byte ^ 1), &last), None);
        }
    }

    #[test]
    fn strangers_are_counted_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let id = Digest::of(b"x");
        let byte = id.as_bytes()[0];
        let file = disk.open(Name::Small(id), Access::New).unwrap();
        file.write_at(0, b"x").unwrap();
        let stranger = dir.path().join(format!("r/{byte:02x}/notes"));
        std::fs::write(&stranger, [1; 9000]).unwrap();
        let mut names = Vec::new();
        let listed = disk
            .list(Folder::Small(byte), &mut |name| names.push(name))
            .unwrap();
        assert_eq!(names, [Name::Small(id)]);
        assert_eq!(listed.strangers, 12288);
        assert!(stranger.exists());
        std::fs::write(dir.path().join("tmp/5"), b"left").unwrap();
        drop(RealDisk::new(dir.path()).unwrap());
        assert!(!dir.path().join("tmp/5").exists());
    }

    #[test]
    fn holes_and_short_files_read_as_promised() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path()).unwrap();
        let file = disk.open(Name::Temporary(1), Access::New).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_at(1 << 20, &[7; 1 << 20]).unwrap();
        assert_eq!(file.data_after(0).unwrap(), Some(1 << 20..2 << 20));
        assert_eq!(file.data_after(2 << 20).unwrap(), None);
        assert_eq!(file.read_vec(2 << 20, 2 << 20).unwrap().len(), 1 << 20);
        let mut bytes = [1; 10];
        let end = (3 << 20) - 4;
        assert_eq!(file.read_at(end, &mut bytes, Wait::Yes).unwrap(), 4);
        assert_eq!(
            file.read_at(end, &mut bytes, Wait::No).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        file.punch(1 << 20..2 << 20).unwrap();
        let stat = file.stat().unwrap();
        // Where the blocks lay may still be written down in one of its own.
        assert!(stat.len == 3 << 20 && stat.allocated <= 8192, "{stat:?}");
        assert_eq!(
            disk.open(Name::Recency, Access::Existing(Wait::Yes))
                .err()
                .map(|error| error.kind()),
            Some(io::ErrorKind::NotFound)
        );
    }
}
