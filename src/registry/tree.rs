//! A directory that somebody else may write to, read and written by descriptor.
//!
//! Every path is resolved by the kernel below the root's descriptor; a symlink may point to another place in the
//! registry and never out of it. What is opened is opened without blocking and looked at before it is read, so that a
//! FIFO or a device in the place of a file is an error and not a hang.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::RegistryError;

/// The root of a registry, open.
pub(super) struct Tree {
    root: OwnedFd,
}

/// What [`Tree::list`] tells of an entry.
pub(super) struct Entry {
    /// Its name; entries whose names are not UTF-8 are passed over.
    pub(super) name: String,
    /// Whether it is a directory; of a symlink and where the file system does not say, unknown.
    pub(super) directory: Option<bool>,
}

fn io(path: &str, errno: Errno) -> RegistryError {
    match errno {
        // Out of the registry, or round in circles; no such device, or a socket.
        Errno::XDEV | Errno::LOOP | Errno::NXIO => RegistryError::Foreign {
            path: path.to_owned(),
        },
        _ => RegistryError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    }
}

fn failed(path: &str, source: io::Error) -> RegistryError {
    RegistryError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Tree {
    /// Opens the root; `None` if there is none.
    pub(super) fn open(root: &Path) -> Result<Option<Tree>, RegistryError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(root, flags, Mode::empty()) {
            Ok(root) => Ok(Some(Tree { root })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io(&root.to_string_lossy(), errno)),
        }
    }

    /// Takes the writers' lock of the registry; `false` if somebody else holds it. It ends with this value.
    pub(super) fn lock(&self) -> Result<bool, RegistryError> {
        match rustix::fs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
            Err(errno) => Err(io(".", errno)),
        }
    }

    fn beneath(&self, path: &str, flags: OFlags) -> Result<Option<OwnedFd>, RegistryError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Ok(file) => return Ok(Some(file)),
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                // A rename somewhere above while the kernel looked.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(io(path, errno)),
            }
        }
    }

    /// Reads a file of at most `max` bytes; `None` if there is none.
    pub(super) fn read(&self, path: &str, max: u64) -> Result<Option<Bytes>, RegistryError> {
        let Some(file) = self.beneath(path, OFlags::empty())? else {
            return Ok(None);
        };
        let file = File::from(file);
        let meta = file.metadata().map_err(|error| failed(path, error))?;
        if !meta.is_file() {
            return Err(RegistryError::Foreign {
                path: path.to_owned(),
            });
        }
        let too_large = || RegistryError::TooLarge {
            path: path.to_owned(),
            max,
        };
        if meta.len() > max {
            return Err(too_large());
        }
        // The length is at most `max`, and only a hint: the file may grow meanwhile.
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1);
        file.take(max + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| failed(path, error))?;
        if bytes.len() as u64 > max {
            return Err(too_large());
        }
        Ok(Some(bytes.into()))
    }

    /// Returns whether there is a regular file.
    pub(super) fn has_file(&self, path: &str) -> bool {
        matches!(self.beneath(path, OFlags::empty()), Ok(Some(file))
            if rustix::fs::fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile))
    }

    /// Hands each entry of a directory to `visit`, in no order, until it returns `false`; an entry whose name begins
    /// with a dot is not one. Returns whether there is such a directory.
    pub(super) fn list(
        &self,
        path: &str,
        visit: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<bool, RegistryError> {
        let Some(directory) = self.beneath(path, OFlags::DIRECTORY)? else {
            return Ok(false);
        };
        for entry in Dir::new(directory).map_err(|errno| io(path, errno))? {
            let entry = entry.map_err(|errno| io(path, errno))?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let directory = match entry.file_type() {
                FileType::Directory => Some(true),
                FileType::Symlink | FileType::Unknown => None,
                _ => Some(false),
            };
            let entry = Entry {
                name: name.to_owned(),
                directory,
            };
            if !visit(entry) {
                break;
            }
        }
        Ok(true)
    }

    /// Puts a file there: written beside its place, synced, and renamed into it; directories on the way are made, and
    /// are no symlinks. The caller holds the lock.
    pub(super) fn write(&self, path: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        self.write_at(path, bytes)
            .map_err(|source| failed(path, source))
    }

    fn write_at(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut directory = self.root.try_clone()?;
        for part in directories.split('/').filter(|part| !part.is_empty()) {
            directory = subdirectory(directory, part)?;
        }
        // One writer at a time, so that one name is enough, and what a killed one left is written over.
        let temporary = format!(".{name}.new");
        match rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let written = rustix::fs::openat(&directory, &temporary, flags, mode)
            .map_err(io::Error::from)
            .and_then(|file| {
                let mut file = File::from(file);
                file.write_all(bytes)?;
                file.sync_all()?;
                rustix::fs::renameat(&directory, &temporary, &directory, name)?;
                rustix::fs::fsync(&directory)?;
                #[cfg(test)]
                note_write(&directory, &temporary, name, bytes);
                Ok(())
            });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
        }
        written
    }
}

/// Records, for tests of power cuts, what [`Tree::write`] did.
#[cfg(test)]
fn note_write(directory: &OwnedFd, temporary: &str, name: &str, bytes: &[u8]) {
    use crate::durable::recorder::{Op, note, path_at};
    let [temporary, name, directory] = [temporary, name, ""].map(|name| path_at(directory, name));
    note(&Op::Written(temporary.clone(), bytes.to_vec()));
    note(&Op::Synced(temporary.clone()));
    note(&Op::Renamed(temporary, name));
    note(&Op::Synced(directory));
}

/// Records that a directory was made.
#[cfg(test)]
fn note_directory(parent: impl AsFd, name: &str) {
    use crate::durable::recorder::{Op, note, path_at};
    note(&Op::Made(path_at(&parent, name)));
    note(&Op::Synced(path_at(parent, "")));
}

/// Opens a directory in `parent`, and makes it first if need be.
fn subdirectory(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    rustix::fs::fsync(&parent)?;
                    #[cfg(test)]
                    note_directory(&parent, name);
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(rustix::fs::openat(&parent, name, flags, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}
