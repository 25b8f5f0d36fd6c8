//! A directory that somebody else may write to, read and written by descriptor.
//!
//! Every path is resolved by the kernel below the root's descriptor; a symlink may point to another place in the
//! registry and never out of it. What is opened is opened without blocking and looked at before it is read, so that a
//! FIFO or a device in the place of a file is an error and not a hang.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::RegistryError;
use crate::durable;
#[cfg(test)]
use crate::durable::recorder::{Op, note, path_at};

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

    /// Writes a file beside its place, for [`place`]; directories on the way are made, and are no symlinks. The caller
    /// holds the lock.
    pub(super) fn stage(&self, path: &str, bytes: &[u8]) -> Result<Staged, RegistryError> {
        self.stage_at(path, bytes)
            .map_err(|source| failed(path, source))
    }

    fn stage_at(&self, path: &str, bytes: &[u8]) -> io::Result<Staged> {
        let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut directory = self.root.try_clone()?;
        let mut grown = Vec::new();
        for part in directories.split('/').filter(|part| !part.is_empty()) {
            directory = subdirectory(directory, part, &mut grown)?;
        }
        // One writer at a time, so that one name is enough, and what a killed one left is written over.
        let temporary = format!(".{name}.new");
        match rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(&directory, &temporary, flags, mode)?;
        let mut staged = Staged {
            file: file.into(),
            directory,
            temporary,
            path: path.to_owned(),
            grown,
        };
        staged.file.write_all(bytes)?;
        #[cfg(test)]
        note(&Op::Written(
            path_at(&staged.directory, &staged.temporary),
            bytes.to_vec(),
        ));
        Ok(staged)
    }
}

/// A file of a registry that is written, and not in its place yet. Dropped, it is removed.
pub(super) struct Staged {
    file: File,
    directory: OwnedFd,
    temporary: String,
    path: String,
    /// Directories in which another one was made for it.
    grown: Vec<OwnedFd>,
}

impl Staged {
    fn name(&self) -> &str {
        self.path
            .rsplit_once('/')
            .map_or(&self.path, |(_, name)| name)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already if it got its place; otherwise what went wrong is the error to tell.
        let _ = rustix::fs::unlinkat(&self.directory, &self.temporary, AtFlags::empty());
    }
}

/// Puts files into their places, turn by turn: what comes in one turn is durable before anything of the next is seen.
/// All of them are synced before, at the same time.
pub(super) fn place(turns: &[Vec<Staged>; 2]) -> Result<(), RegistryError> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |source| failed(&path, source)
    };
    let files: Vec<&File> = turns.iter().flatten().map(|staged| &staged.file).collect();
    let Some(first) = turns.iter().flatten().next() else {
        return Ok(());
    };
    durable::sync_together(&files).map_err(at(&first.path))?;
    #[cfg(test)]
    for staged in turns.iter().flatten() {
        note(&Op::Synced(path_at(&staged.directory, &staged.temporary)));
    }
    for turn in turns {
        let mut directories: Vec<&OwnedFd> = Vec::new();
        for staged in turn {
            let (directory, temporary) = (&staged.directory, &staged.temporary);
            rustix::fs::renameat(directory, temporary, directory, staged.name())
                .map_err(|errno| failed(&staged.path, errno.into()))?;
            #[cfg(test)]
            note(&Op::Renamed(
                path_at(directory, temporary),
                path_at(directory, staged.name()),
            ));
            // From above, so that nothing is on the disk before its way there.
            directories.extend(&staged.grown);
            directories.push(directory);
        }
        if let Some(first) = turn.first() {
            durable::sync_together(&directories).map_err(at(&first.path))?;
            #[cfg(test)]
            for directory in directories {
                note(&Op::Synced(path_at(directory, "")));
            }
        }
    }
    Ok(())
}

/// Opens a directory in `parent`, and makes it first if need be; then `grown` gets the parent.
fn subdirectory(parent: OwnedFd, name: &str, grown: &mut Vec<OwnedFd>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    #[cfg(test)]
                    note(&Op::Made(path_at(&parent, name)));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            grown.push(parent);
            Ok(made)
        }
        opened => Ok(opened?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let name = |entry: io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_staged_is_seen_when_it_is_placed_and_leaves_nothing_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap().unwrap();
        let stage = || {
            let manifest = tree.stage("a/1/manifest", b"m").unwrap();
            let index = tree.stage("a/index", b"i").unwrap();
            [
                vec![manifest],
                vec![index, tree.stage("list", b"l").unwrap()],
            ]
        };
        drop(stage());
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(names(&dir.path().join("a/1")), Vec::<String>::new());
        // What a writer that was killed has left is written over.
        std::fs::write(dir.path().join("a/.index.new"), "left").unwrap();
        let turns = stage();
        assert_eq!(tree.read("a/index", 9).unwrap(), None);
        place(&turns).unwrap();
        drop(turns);
        for (path, bytes) in [("a/1/manifest", b"m"), ("a/index", b"i"), ("list", b"l")] {
            assert_eq!(&tree.read(path, 9).unwrap().unwrap()[..], bytes);
        }
        assert_eq!(names(dir.path()), ["a", "list"]);
        assert_eq!(names(&dir.path().join("a")), ["1", "index"]);
        assert_eq!(names(&dir.path().join("a/1")), ["manifest"]);
        place(&[Vec::new(), Vec::new()]).unwrap();
    }

    #[test]
    fn nothing_of_the_second_turn_is_seen_when_the_first_fails() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/1/manifest/in the way")).unwrap();
        let tree = Tree::open(dir.path()).unwrap().unwrap();
        let first = tree.stage("a/1/manifest", b"m").unwrap();
        let second = tree.stage("a/index", b"i").unwrap();
        let error = place(&[vec![first], vec![second]]).unwrap_err();
        assert!(matches!(error, RegistryError::Io { path, .. } if path == "a/1/manifest"));
        assert_eq!(names(&dir.path().join("a")), ["1"]);
        assert_eq!(names(&dir.path().join("a/1")), ["manifest"]);
    }
}
