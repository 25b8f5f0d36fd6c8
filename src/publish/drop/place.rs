//! The drop directory on disk: made, checked, listed; entries opened.
//!
//! Everything is reached from one descriptor, through no link and into no other mount. Names that begin with a dot are
//! other people's work under way, but for those that begin with [`OWN`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::board::{ENTRIES_MAX, Mark};
use super::error::{DropError, entry_error};
use super::instructions::{INSTRUCTIONS_BYTES_MAX, InstructionError, Instructions};
use super::inventory::{self, Fingerprint, Inventory};
use super::members::Group;
use super::name::{Key, STATUS, Wanted};
use super::rights::{make, make_in, open};
use crate::manifest::check_part;
use crate::publish::Guard;
use crate::publish::disk::{self, Disk, FileKind, Stat};

/// What our own names begin with: statuses being written, directories being removed.
pub(super) const OWN: &str = ".manifs-";

/// The file that commits an entry.
pub(super) const COMMIT: &str = ".publish";

/// What a publisher may say.
const INSTRUCTIONS: &str = "manifs.toml";

/// What lies in the drop directory.
#[derive(Debug, Default)]
pub struct Listed {
    /// Each entry.
    pub entries: Vec<Found>,
    /// The scopes in it, with their inodes.
    pub scopes: Vec<(String, u64)>,
    /// Its own inode.
    pub inode: u64,
    /// Whether there are more than are looked at.
    pub more: bool,
}

/// One entry.
#[derive(Debug)]
pub struct Found {
    /// Where it lies.
    pub key: Key,
    /// Its inode.
    pub inode: u64,
    /// Whose it is, by number.
    pub owner: u32,
    /// Whether it is a directory.
    pub directory: bool,
    /// Its `.publish`.
    pub mark: Option<Mark>,
    /// Whether it is older than the directory it lies in, so that it was renamed into it.
    pub moved_in: bool,
}

/// The drop directory.
pub struct DropDirectory {
    path: PathBuf,
    pub(super) group: Option<Group>,
    /// Where temporary files go.
    temporary: PathBuf,
    opened: Mutex<Arc<OwnedFd>>,
}

/// An entry, open.
pub struct Entry {
    pub(super) key: Key,
    pub(super) parent: OwnedFd,
    pub(super) disk: Disk,
    guard: Guard,
}

/// Opens a directory below another one, on the same mount and through no link.
pub(super) fn below(from: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(from, path, flags, Mode::empty(), resolve) {
        // A sandbox may not know the call. A path here is one name.
        Err(Errno::NOSYS | Errno::PERM) => {
            let opened = disk::open_directory(from, path)?;
            if disk::stat(&opened)?.mount == disk::stat(from)?.mount {
                Ok(opened)
            } else {
                Err(Errno::XDEV.into())
            }
        }
        other => Ok(other?),
    }
}

impl DropDirectory {
    /// Opens the directory, which is made when it is missing. `group` may write to it, otherwise its owner only.
    /// Temporary files go to `temporary`, which must lie elsewhere.
    ///
    /// # Errors
    /// [`DropError`]
    pub fn open(
        path: &Path,
        group: Option<Group>,
        temporary: &Path,
    ) -> Result<DropDirectory, DropError> {
        if group.is_some() && !rustix::process::geteuid().is_root() {
            return Err(DropError::NotRoot);
        }
        let failed = |error: io::Error| DropError::Directory {
            path: path.to_owned(),
            error,
        };
        if path.symlink_metadata().is_err() {
            make(path, group.as_ref()).map_err(failed)?;
        }
        let opened = open(path, group.as_ref())?;
        let directory = DropDirectory {
            path: path.to_owned(),
            group,
            temporary: temporary.to_owned(),
            opened: Mutex::new(Arc::new(opened)),
        };
        directory.sweep();
        Ok(directory)
    }

    /// Judges a directory without touching it; one that is not there yet is fine.
    ///
    /// # Errors
    /// [`DropError`], as opening it would.
    pub fn check(path: &Path, group: Option<&Group>) -> Result<(), DropError> {
        if group.is_some() && !rustix::process::geteuid().is_root() {
            return Err(DropError::NotRoot);
        }
        match path.symlink_metadata() {
            Ok(_) => open(path, group).map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its descriptor: of the directory that the path names now, which may be another one than at the start.
    pub(super) fn root(&self) -> Result<Arc<OwnedFd>, DropError> {
        let known = Arc::clone(&self.opened.lock());
        let failed = |error: io::Error| DropError::Directory {
            path: self.path.clone(),
            error,
        };
        let now = rustix::fs::stat(&self.path).map_err(|error| failed(error.into()))?;
        let stat = rustix::fs::fstat(known.as_fd()).map_err(|error| failed(error.into()))?;
        if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(known);
        }
        let opened = Arc::new(open(&self.path, self.group.as_ref())?);
        *self.opened.lock() = Arc::clone(&opened);
        Ok(opened)
    }

    /// Opens the directory that an entry lies in.
    pub(super) fn parent(&self, key: &Key) -> Result<OwnedFd, DropError> {
        let root = self.root()?;
        let scope = key.scope().map_or(&b"."[..], str::as_bytes);
        below(root.as_fd(), scope).map_err(entry_error)
    }

    /// Makes the directory of a scope, with the rights of the drop directory itself. Whatever has its name already stays.
    ///
    /// # Errors
    /// [`DropError`] of the directory as a whole.
    pub fn make_scope(&self, scope: &str) -> Result<(), DropError> {
        let root = self.root()?;
        match make_in(root.as_fd(), scope.as_bytes(), self.group.as_ref()) {
            Ok(_) => Ok(()),
            // In the way is something that no scope can be: it is told of as an entry.
            Err(_) if disk::stat_in(root.as_fd(), scope.as_bytes()).is_ok() => Ok(()),
            Err(error) => Err(DropError::Directory {
                path: self.path.join(scope),
                error,
            }),
        }
    }

    /// Lists what lies in it.
    ///
    /// # Errors
    /// [`DropError`] of the directory as a whole.
    pub fn list(&self) -> Result<Listed, DropError> {
        let root = self.root()?;
        let failed = |error: io::Error| DropError::Directory {
            path: self.path.clone(),
            error,
        };
        let mut listed = Listed {
            inode: disk::stat(root.as_fd()).map_err(failed)?.inode,
            ..Listed::default()
        };
        for found in visible(root.as_fd()).map_err(failed)? {
            if listed.entries.len() >= ENTRIES_MAX {
                listed.more = true;
                break;
            }
            match self.scope(root.as_fd(), &found) {
                Some((scope, inside)) => {
                    let born = below(root.as_fd(), scope.as_bytes()).ok();
                    let born = born
                        .as_ref()
                        .and_then(|opened| Some((born_ns(opened)?, opened)));
                    for found in inside
                        .iter()
                        .filter(|found| found.stat.kind == FileKind::Directory)
                    {
                        if listed.entries.len() >= ENTRIES_MAX {
                            listed.more = true;
                            break;
                        }
                        let key = Key::new(Some(&scope), &found.name);
                        listed.entries.extend(self.found(
                            born.as_ref().map(|(ns, fd)| (*ns, fd.as_fd())),
                            root.as_fd(),
                            key,
                            &found.stat,
                        ));
                    }
                    listed.scopes.push((scope, found.stat.inode));
                }
                None => {
                    let key = Key::new(None, &found.name);
                    listed
                        .entries
                        .extend(self.found(None, root.as_fd(), key, &found.stat));
                }
            }
        }
        Ok(listed)
    }

    /// Returns a scope and what lies in it: a directory whose name can be a scope's, and that holds nothing, or an entry.
    pub(super) fn scope(
        &self,
        root: BorrowedFd<'_>,
        found: &disk::Found,
    ) -> Option<(String, Vec<disk::Found>)> {
        let name = std::str::from_utf8(&found.name).ok()?;
        if found.stat.kind != FileKind::Directory || check_part(name).is_err() {
            return None;
        }
        let inside = visible(below(root, &found.name).ok()?.as_fd()).ok()?;
        let entry = |found: &disk::Found| found.name.contains(&b'@');
        (inside.is_empty() || inside.iter().any(entry)).then(|| (name.to_owned(), inside))
    }

    fn found(
        &self,
        born: Option<(i128, BorrowedFd<'_>)>,
        root: BorrowedFd<'_>,
        key: Key,
        stat: &Stat,
    ) -> Option<Found> {
        let directory = stat.kind == FileKind::Directory;
        let opened = match (directory, born) {
            (false, _) => None,
            (true, Some((_, scope))) => below(scope, key.name()).ok(),
            (true, None) => {
                let path = match key.scope() {
                    Some(scope) => [scope.as_bytes(), b"/", key.name()].concat(),
                    None => key.name().to_vec(),
                };
                below(root, &path).ok()
            }
        };
        let mark = opened
            .as_ref()
            .and_then(|opened| self.mark(opened.as_fd(), stat));
        let older = opened.as_ref().and_then(born_ns).zip(born);
        Some(Found {
            key,
            inode: stat.inode,
            owner: stat.uid,
            directory,
            mark,
            moved_in: older.is_some_and(|(entry, (scope, _))| entry < scope),
        })
    }

    fn mark(&self, entry: BorrowedFd<'_>, owner: &Stat) -> Option<Mark> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let found = rustix::fs::statx(entry, COMMIT, flags, StatxFlags::BASIC_STATS).ok()?;
        if self.group.is_some() && found.stx_uid != owner.uid {
            return None;
        }
        Some(Mark {
            inode: found.stx_ino,
            mtime: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            ctime: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        })
    }

    /// Returns the inode of what lies where an entry was; `None` when nothing does.
    pub fn inode(&self, key: &Key) -> Option<u64> {
        let parent = self.parent(key).ok()?;
        let found = disk::stat_in(parent.as_fd(), key.name()).ok()?;
        Some(found.inode)
    }

    /// Opens an entry.
    ///
    /// # Errors
    /// [`DropError`]
    pub fn entry(&self, key: &Key) -> Result<Entry, DropError> {
        let parent = self.parent(key)?;
        let opened = below(parent.as_fd(), key.name()).map_err(entry_error)?;
        let disk = Disk::new(&opened).map_err(entry_error)?;
        let uid = disk.stat().uid;
        if let Some(group) = &self.group
            && uid != 0
            && !group.has(uid)?
        {
            return Err(DropError::NotAMember {
                uid,
                group: group.name().to_owned(),
            });
        }
        Ok(Entry {
            key: key.clone(),
            parent,
            disk,
            guard: Guard {
                owner: self.group.as_ref().map(|_| uid),
            },
        })
    }

    /// Writes down what lies in an entry.
    ///
    /// # Errors
    /// Whatever the file system says; also when the entry changes meanwhile.
    pub fn inventory(&self, entry: &Entry) -> io::Result<Inventory> {
        Inventory::take(&entry.disk, &self.temporary)
    }
}

impl Entry {
    /// Returns where it lies.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns its inode.
    pub fn inode(&self) -> u64 {
        self.disk.stat().inode
    }

    /// Returns its directory, to be published.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn directory(&self) -> io::Result<OwnedFd> {
        self.disk.directory(b"")
    }

    /// Returns what has to hold of everything in it.
    pub fn guard(&self) -> Guard {
        self.guard
    }

    /// Returns what it looks like now.
    ///
    /// # Errors
    /// Whatever the file system says; also when it changes meanwhile.
    pub fn fingerprint(&self) -> io::Result<Fingerprint> {
        inventory::fingerprint(&self.disk)
    }

    /// Returns a file in it that somebody has open for writing.
    ///
    /// # Errors
    /// As [`Entry::fingerprint`].
    pub fn writer(&self) -> io::Result<Option<String>> {
        let found = inventory::writer(&self.disk)?;
        Ok(found.map(|path| shown(&path)))
    }

    /// Reads its `manifs.toml`; without one, nothing is asked for.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn instructions(&self, wanted: &Wanted) -> Result<Instructions, Vec<InstructionError>> {
        let unreadable = |what: String| vec![InstructionError::Unreadable(what)];
        let text = self
            .read_instructions()
            .map_err(|error| unreadable(error.to_string()))?;
        match text {
            None => Ok(Instructions::default()),
            Some(text) => Instructions::parse(&text, wanted),
        }
    }

    fn read_instructions(&self) -> io::Result<Option<String>> {
        use std::io::Read as _;
        let root = self.disk.directory(b"")?;
        let file = match disk::open_file(root.as_fd(), INSTRUCTIONS.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(io::Error::other("it is a link"));
            }
            file => file?,
        };
        let stat = disk::stat(&file)?;
        if stat.kind != FileKind::File || stat.mount != self.disk.stat().mount {
            return Err(io::Error::other(
                "it is not a regular file of the directory",
            ));
        }
        if self.guard.owner.is_some_and(|owner| owner != stat.uid) {
            return Err(io::Error::other(
                "it does not belong to the owner of the directory",
            ));
        }
        let mut text = String::new();
        let mut limited = std::fs::File::from(file).take(INSTRUCTIONS_BYTES_MAX + 1);
        limited.read_to_string(&mut text)?;
        if text.len() as u64 > INSTRUCTIONS_BYTES_MAX {
            return Err(io::Error::other(format!(
                "it has more than {INSTRUCTIONS_BYTES_MAX} bytes"
            )));
        }
        Ok(Some(text))
    }

    /// Returns whether the name still leads to this directory.
    pub(super) fn is_in_place(&self, name: &[u8]) -> io::Result<bool> {
        let found = rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let own = rustix::fs::fstat(self.disk.directory(b"")?)?;
        Ok((found.st_dev, found.st_ino) == (own.st_dev, own.st_ino))
    }
}

/// Writes a path so that no terminal acts on it.
pub(super) fn shown(path: &[u8]) -> String {
    Key::new(None, path).to_string()
}

/// Lists a directory without what begins with a dot, and without statuses.
pub(super) fn visible(directory: BorrowedFd<'_>) -> io::Result<Vec<disk::Found>> {
    // A descriptor of its own: one that was listed is at its end.
    let directory = disk::open_directory(directory, b".")?;
    // Others put things there and take them away meanwhile.
    let mut found = disk::list_living(directory.as_fd(), &mut |name| name.starts_with(b"."))?;
    let status = STATUS.as_bytes();
    found.retain(|found| found.stat.kind != FileKind::File || !found.name.ends_with(status));
    Ok(found)
}

/// Returns when a directory was made, where the file system knows.
fn born_ns(opened: &OwnedFd) -> Option<i128> {
    let found = rustix::fs::statx(opened, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let known = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::BTIME);
    let ns =
        i128::from(found.stx_btime.tv_sec) * 1_000_000_000 + i128::from(found.stx_btime.tv_nsec);
    known.then_some(ns)
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
