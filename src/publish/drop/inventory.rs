//! What lies in a dropped directory, without reading a file: enough to see later whether anything has changed.
//!
//! A record is a path with inode, owner, size and times. Records come in one order: a directory before what is in it,
//! names sorted. Their digest, the [`Fingerprint`], says that a tree is quiet; the list of them, the [`Inventory`], is
//! what a tree is compared with before it is cleared away, and lies in a temporary file, whatever its length.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::lease;
use super::place::COMMIT;
use crate::block::Digest;
use crate::publish::disk::{self, Disk, FileKind, Found, Stat};
use crate::publish::walk::join;

/// How deep a tree is looked at; a catalog goes less deep, so what lies below is refused by publishing.
const DEPTH_MAX: usize = 300;

/// Says that nothing was written in a tree between two looks. The `.publish` in its root is no part of it: touching that
/// says something about the tree, and does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Digest);

/// Everything that lies in a tree at one moment.
pub struct Inventory {
    list: BufReader<File>,
    fingerprint: Fingerprint,
}

/// One path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Below the root; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) facts: Vec<u8>,
}

/// Bytes of a record besides its path.
const FACTS_BYTES: usize = 1 + 4 + 2 + 8 + 8 + 12 + 12;

impl Record {
    fn new(path: &[u8], stat: &Stat) -> Record {
        let mut facts = Vec::with_capacity(FACTS_BYTES);
        facts.push(match stat.kind {
            FileKind::Directory => 1,
            FileKind::File => 2,
            FileKind::Symlink => 3,
            FileKind::Fifo | FileKind::Socket | FileKind::Device => 4,
        });
        facts.extend(stat.uid.to_le_bytes());
        facts.extend(stat.mode.to_le_bytes());
        facts.extend(stat.inode.to_le_bytes());
        // Renaming the root touches its times, and what is put into it shows up by itself.
        let (size, mtime, ctime) = if path.is_empty() {
            (0, (0, 0), (0, 0))
        } else {
            (stat.size, stat.mtime, stat.ctime)
        };
        facts.extend(size.to_le_bytes());
        for (seconds, ns) in [mtime, ctime] {
            facts.extend(seconds.to_le_bytes());
            facts.extend(ns.to_le_bytes());
        }
        Record {
            path: path.to_vec(),
            facts,
        }
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let len = u32::try_from(self.path.len()).map_err(io::Error::other)?;
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.path);
        bytes.extend_from_slice(&self.facts);
        Ok(bytes)
    }
}

/// Compares two paths as a walk comes to them.
pub(super) fn order(one: &[u8], other: &[u8]) -> Ordering {
    let parts = |path: &[u8]| -> Vec<Vec<u8>> {
        let parts = path.split(|byte| *byte == b'/');
        parts
            .filter(|part| !part.is_empty())
            .map(<[u8]>::to_vec)
            .collect()
    };
    parts(one).cmp(&parts(other))
}

/// A directory whose entries are being visited.
struct Level {
    path: Vec<u8>,
    opened: OwnedFd,
    left: std::vec::IntoIter<Found>,
}

/// What a walk comes to.
pub(super) enum Step<'a> {
    /// An entry, in the directory that is open.
    Entry {
        directory: BorrowedFd<'a>,
        path: Vec<u8>,
        found: Found,
        /// The entry itself, where it is a directory that can be opened.
        inside: Option<BorrowedFd<'a>>,
    },
    /// Everything below a directory was visited; it lies, under this name, in the directory that is open.
    Left {
        above: BorrowedFd<'a>,
        path: Vec<u8>,
    },
}

/// Walks everything below a root. Nothing is followed: neither links nor other mounts.
pub(super) fn walk(
    disk: &Disk,
    visit: &mut dyn FnMut(Step<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let open = |opened: OwnedFd, path: Vec<u8>| -> io::Result<Level> {
        let left = disk::list(opened.as_fd(), &mut |_| false)?.into_iter();
        Ok(Level { path, opened, left })
    };
    let mut levels = vec![open(disk.directory(b"")?, Vec::new())?];
    while let Some(level) = levels.last_mut() {
        let Some(found) = level.left.next() else {
            let path = std::mem::take(&mut level.path);
            levels.pop();
            if let Some(above) = levels.last() {
                let above = above.opened.as_fd();
                visit(Step::Left { above, path })?;
            }
            continue;
        };
        let path = join(&level.path, &found.name);
        let stat = found.stat;
        let mut inside = None;
        if stat.kind == FileKind::Directory && stat.mount == disk.stat().mount {
            match disk::open_directory(level.opened.as_fd(), &found.name) {
                Ok(opened) => inside = Some(opened),
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(opened) = &inside {
            let now = disk::stat(opened)?;
            if (now.inode, now.device, now.mount) != (stat.inode, stat.device, stat.mount) {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        visit(Step::Entry {
            directory: level.opened.as_fd(),
            path: path.clone(),
            found,
            inside: inside.as_ref().map(AsFd::as_fd),
        })?;
        if let Some(inside) = inside
            && levels.len() < DEPTH_MAX
        {
            match open(inside, path) {
                Ok(level) => levels.push(level),
                Err(error) if is_closed(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Returns whether a directory cannot be opened, or not entered. It is passed over, since publishing refuses it, and says
/// where it is; as an error it would be waited for, and never end.
fn is_closed(error: &io::Error) -> bool {
    // The second is what a mount says whose server is dead.
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotConnected
    )
}

/// Returns what a tree looks like now.
///
/// # Errors
/// Whatever the file system says; also when the tree changes meanwhile.
pub(super) fn fingerprint(disk: &Disk) -> io::Result<Fingerprint> {
    let mut hash = Sha256::new();
    hash.update(Record::new(b"", disk.stat()).encode()?);
    walk(disk, &mut |step| {
        if let Step::Entry { path, found, .. } = step
            && path != COMMIT.as_bytes()
        {
            hash.update(Record::new(&path, &found.stat).encode()?);
        }
        Ok(())
    })?;
    Ok(Fingerprint(Digest::from_bytes(hash.finalize().into())))
}

/// Returns a file that somebody has open for writing.
///
/// # Errors
/// As [`fingerprint`].
pub(super) fn writer(disk: &Disk) -> io::Result<Option<Vec<u8>>> {
    let mut written = None;
    let walked = walk(disk, &mut |step| {
        if let Step::Entry {
            directory,
            path,
            found,
            ..
        } = step
            && found.stat.kind == FileKind::File
            && let Ok(file) = disk::open_file(directory, &found.name)
            && disk::stat(&file)?.kind == FileKind::File
            && lease::has_writer(file.as_fd())
        {
            written = Some(path);
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    });
    match (walked, written) {
        (_, Some(path)) => Ok(Some(path)),
        (walked, None) => walked.map(|()| None),
    }
}

impl Inventory {
    /// Writes down what lies in a tree; the list goes to an unnamed file in `temporary`.
    ///
    /// # Errors
    /// As for a fingerprint.
    pub(super) fn take(disk: &Disk, temporary: &Path) -> io::Result<Inventory> {
        let mut list = BufWriter::new(tempfile::tempfile_in(temporary)?);
        let mut hash = Sha256::new();
        hash.update(Record::new(b"", disk.stat()).encode()?);
        walk(disk, &mut |step| {
            if let Step::Entry { path, found, .. } = step {
                let bytes = Record::new(&path, &found.stat).encode()?;
                if path != COMMIT.as_bytes() {
                    hash.update(&bytes);
                }
                list.write_all(&bytes)?;
            }
            Ok(())
        })?;
        let list = list.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Inventory {
            list: BufReader::new(list),
            fingerprint: Fingerprint(Digest::from_bytes(hash.finalize().into())),
        })
    }

    /// Returns the fingerprint of the tree as it was.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn rewind(&mut self) -> io::Result<()> {
        self.list.rewind()
    }

    /// Reads the next record, in the order of a walk.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let mut len = [0; 4];
        match self.list.read_exact(&mut len) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        // Written by us, of a path that the kernel gave us.
        let mut path = vec![0; u32::from_le_bytes(len) as usize];
        self.list.read_exact(&mut path)?;
        let mut facts = vec![0; FACTS_BYTES];
        self.list.read_exact(&mut facts)?;
        Ok(Some(Record { path, facts }))
    }

    /// Returns whether an entry is what it was; skips what is gone before it.
    pub(super) fn has(
        &mut self,
        next: &mut Option<Record>,
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<bool> {
        while let Some(record) = next
            && order(&record.path, path) == Ordering::Less
        {
            *next = self.next()?;
        }
        let record = Record::new(path, stat);
        Ok(next.as_ref() == Some(&record))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::publish::disk::testing::{give_away, without_privileges};

    fn look(path: &Path) -> Fingerprint {
        let disk = Disk::new(File::open(path).unwrap()).unwrap();
        fingerprint(&disk).unwrap()
    }

    #[test]
    fn a_fingerprint_changes_with_everything_but_the_name_of_the_root() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), b"1").unwrap();
        let mut last = look(&root);
        assert_eq!(last, look(&root));
        let renamed = around.path().join("renamed");
        fs::rename(&root, &renamed).unwrap();
        assert_eq!(last, look(&renamed));
        let changes: [&dyn Fn(&Path); 6] = [
            &|root| fs::write(root.join("a/b/file"), b"2").unwrap(),
            &|root| fs::write(root.join("new"), b"").unwrap(),
            &|root| fs::remove_file(root.join("new")).unwrap(),
            &|root| symlink("x", root.join("a/link")).unwrap(),
            &|root| fs::rename(root.join("a/b"), root.join("a/c")).unwrap(),
            &|root| {
                let file = File::options()
                    .write(true)
                    .open(root.join("a/c/file"))
                    .unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            },
        ];
        fs::write(renamed.join(".publish"), b"").unwrap();
        assert_eq!(last, look(&renamed));
        for (nth, change) in changes.iter().enumerate() {
            change(&renamed);
            let now = look(&renamed);
            assert_ne!(now, last, "change {nth}");
            last = now;
        }
    }

    #[test]
    fn an_inventory_has_what_was_there_and_nothing_else() {
        let around = tempfile::tempdir().unwrap();
        let root = around.path().join("root");
        fs::create_dir_all(root.join("a")).unwrap();
        for name in ["a/1", "a.x", "b"] {
            fs::write(root.join(name), name).unwrap();
        }
        let disk = Disk::new(File::open(&root).unwrap()).unwrap();
        let mut inventory = Inventory::take(&disk, around.path()).unwrap();
        assert_eq!(inventory.fingerprint(), look(&root));
        fs::write(root.join("a/0"), b"new").unwrap();
        fs::remove_file(root.join("a.x")).unwrap();
        fs::write(root.join("b"), b"other").unwrap();
        inventory.rewind().unwrap();
        let mut next = inventory.next().unwrap();
        let mut had = Vec::new();
        walk(&disk, &mut |step| {
            if let Step::Entry { path, found, .. } = step
                && inventory.has(&mut next, &path, &found.stat)?
            {
                had.push(String::from_utf8(path).unwrap());
            }
            Ok(())
        })
        .unwrap();
        // The directory itself has changed with the file in it.
        assert_eq!(had, ["a/1"]);
    }

    #[test]
    fn directories_that_cannot_be_entered_are_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let closed = root.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::write(closed.join("file"), b"").unwrap();
        give_away(root.path());
        let mode = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
        // May be listed but not entered; may be neither.
        for closed in [0o644, 0o000] {
            mode(closed);
            let seen = without_privileges(|| {
                let disk = Disk::new(File::open(root.path()).unwrap()).unwrap();
                let mut seen = Vec::new();
                walk(&disk, &mut |step| {
                    if let Step::Entry { path, .. } = step {
                        seen.push(String::from_utf8(path).unwrap());
                    }
                    Ok(())
                })
                .unwrap();
                seen
            });
            assert_eq!(seen, ["closed"]);
        }
        mode(0o755);
    }

    #[test]
    fn an_open_file_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        let open = File::create(root.path().join("d/open")).unwrap();
        fs::write(root.path().join("closed"), b"").unwrap();
        let disk = Disk::new(File::open(root.path()).unwrap()).unwrap();
        let found = || writer(&disk).unwrap();
        assert_eq!(found().as_deref(), Some(&b"d/open"[..]));
        drop(open);
        assert_eq!(found(), None);
    }
}
