//! Writes the tree that is sent over the control socket into a new directory; every file's hash is checked once more.
//!
//! Whatever comes, nothing is written outside the new directory: paths are opened from its descriptor, through no link,
//! and links are made when every file is there. It gets its name when it is complete.

use std::fs::{File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::control::{EntryItem, Event, Failure, FailureKind, Progress, Reply};

/// What the name of a directory begins with that is being written.
const TEMPORARY: &str = ".manifs-fetch-";

/// How many of them are made until one is not swept away at once.
const TRIES_MAX: u32 = 8;

/// A copy under way, in a temporary directory beside its place.
pub(crate) struct Copy {
    /// What it is going to be called.
    place: PathBuf,
    temporary: TempDir,
    root: OwnedFd,
    /// The directory that was last written in: neighbours come together.
    parent: Option<(PathBuf, OwnedFd)>,
    writing: Option<Writing>,
    directories: Vec<EntryItem>,
    links: Vec<EntryItem>,
    done: u64,
    total: u64,
    /// Whether it has to be on the disk before it gets its name, and its name when it is done.
    pub(super) durable: bool,
}

/// A file that is being written.
struct Writing {
    entry: EntryItem,
    file: File,
    hash: Sha256,
    /// Bytes that are still to come.
    left: u64,
}

impl Copy {
    /// Begins a copy that is going to be called `place`.
    ///
    /// # Errors
    /// [`Failure`] that names the directory in which nothing can be made.
    pub(crate) fn begin(place: &Path) -> Result<Copy, Failure> {
        let beside = place.parent().unwrap_or(Path::new("/"));
        // Its own text names the temporary directory, which is another one each time.
        let failed = |error: io::Error| {
            let error = io::Error::from(error.kind());
            Failure::failed(format!("{}: {error}", beside.display()))
        };
        let mut tries = 0;
        let (temporary, root) = loop {
            let temporary = tempfile::Builder::new()
                .prefix(TEMPORARY)
                .tempdir_in(beside)
                .map_err(failed)?;
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let root = rustix::fs::open(temporary.path(), flags, Mode::empty());
            tries += 1;
            match root {
                Ok(root) if tries == TRIES_MAX || is_ours(&root) => break (temporary, root),
                Err(error) if tries == TRIES_MAX => return Err(failed(error.into())),
                // Swept away by somebody before it was locked.
                Ok(_) | Err(_) => {}
            }
        };
        Ok(Copy {
            place: place.to_owned(),
            root,
            temporary,
            parent: None,
            writing: None,
            directories: Vec::new(),
            links: Vec::new(),
            done: 0,
            total: 0,
            durable: false,
        })
    }

    /// Removes what copies that were killed have left in a directory. Those that are being written are locked.
    pub(crate) fn sweep(directory: &Path) {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry
                .file_name()
                .as_bytes()
                .starts_with(TEMPORARY.as_bytes())
            {
                continue;
            }
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let Ok(left) = rustix::fs::open(entry.path(), flags, Mode::empty()) else {
                continue;
            };
            let own = rustix::fs::fstat(&left)
                .is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
            if own && rustix::fs::flock(&left, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let removed = std::fs::remove_dir_all(entry.path());
                tracing::debug!(path = %entry.path().display(), ?removed, "left by a copy that was killed");
            }
        }
    }

    /// Writes what came.
    ///
    /// # Errors
    /// [`Failure`]: it is not what was said to come, or cannot be written.
    pub(crate) fn take(&mut self, reply: Reply) -> Result<(), Failure> {
        match reply {
            Reply::Data(bytes) => self.data(&bytes),
            Reply::Event(Event::Item(item)) => {
                self.entry(serde_json::from_value(item).map_err(Failure::failed)?)
            }
            Reply::Event(Event::Progress(progress)) => {
                self.total = progress.total;
                Ok(())
            }
            Reply::Event(_) => Ok(()),
        }
    }

    /// Returns how far it is.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            step: "fetch".into(),
            done: self.done,
            total: self.total,
            bytes: true,
        }
    }

    fn entry(&mut self, entry: EntryItem) -> Result<(), Failure> {
        if self.writing.is_some() {
            return Err(broken(&entry, "its bytes did not all come"));
        }
        match entry.kind.as_str() {
            "directory" => {
                if !entry.path.is_empty() {
                    let name = name_of(&entry)?;
                    rustix::fs::mkdirat(self.parent_of(&entry)?, name, Mode::from_raw_mode(0o700))
                        .map_err(|error| at(&entry, error))?;
                }
                self.directories.push(entry);
            }
            "symlink" => self.links.push(entry),
            _ => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let name = name_of(&entry)?;
                let mode = Mode::from_raw_mode(0o600);
                let file = rustix::fs::openat(self.parent_of(&entry)?, name, flags, mode)
                    .map_err(|error| at(&entry, error))?;
                self.writing = Some(Writing {
                    file: File::from(file),
                    hash: Sha256::new(),
                    left: entry.size,
                    entry,
                });
                self.finish_file()?;
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(writing) = &mut self.writing else {
            return Err(Failure::failed("bytes came that belong to no file"));
        };
        let count = bytes.len() as u64;
        writing.left = writing
            .left
            .checked_sub(count)
            .ok_or_else(|| broken(&writing.entry, "too many bytes came"))?;
        writing.hash.update(bytes);
        writing
            .file
            .write_all(bytes)
            .map_err(|error| at(&writing.entry, error))?;
        self.done += count;
        self.finish_file()
    }

    /// Closes the file that is being written, if all its bytes have come.
    fn finish_file(&mut self) -> Result<(), Failure> {
        if let Some(writing) = self.writing.take_if(|writing| writing.left == 0) {
            let Writing {
                entry, file, hash, ..
            } = writing;
            if Some(hex::encode(hash.finalize())) != entry.digest {
                return Err(broken(&entry, "it is not what the catalog says"));
            }
            dress(&file, &entry).map_err(|error| at(&entry, error))?;
        }
        Ok(())
    }

    /// Makes the links, gives directories their modes and times, and the whole its name.
    ///
    /// # Errors
    /// As [`Copy::take`]; also when something has that name.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if let Some(writing) = &self.writing {
            return Err(broken(&writing.entry, "its bytes did not all come"));
        }
        for entry in std::mem::take(&mut self.links) {
            let points = raw(
                entry.target.as_deref().unwrap_or_default(),
                entry.target_hex.as_deref(),
            )?;
            let (name, parent) = (name_of(&entry)?, self.parent_of(&entry)?);
            let points = Path::new(std::ffi::OsStr::from_bytes(&points));
            rustix::fs::symlinkat(points, parent, &name).map_err(|error| at(&entry, error))?;
            let time = timespec(entry.mtime_ns);
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| at(&entry, error))?;
        }
        let place = self.place.clone();
        let failed = |error: io::Error| Failure::failed(format!("{}: {error}", place.display()));
        let root = File::from(self.root.try_clone().map_err(failed)?);
        // A single file has no directory of its own in the package.
        root.set_permissions(Permissions::from_mode(0o755))
            .map_err(failed)?;
        // Deepest first: a directory's time changes with its entries.
        for entry in self.directories.iter().rev() {
            let directory = if entry.path.is_empty() {
                root.try_clone().map_err(failed)?
            } else {
                let opened = open_below(&self.root, &path_of(entry)?);
                File::from(opened.map_err(|error| at(entry, error))?)
            };
            dress(&directory, entry).map_err(|error| at(entry, error))?;
        }
        if self.durable {
            rustix::fs::syncfs(&self.root).map_err(|error| failed(error.into()))?;
        }
        let from = self.temporary.path();
        rustix::fs::renameat_with(CWD, from, CWD, &place, RenameFlags::NOREPLACE)
            .map_err(|error| failed(error.into()))?;
        // It is gone from its place, so there is nothing to clean.
        let _ = self.temporary.keep();
        if self.durable {
            crate::durable::sync_dir(place.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        }
        Ok(())
    }

    /// Opens the directory that an entry lies in.
    fn parent_of(&mut self, entry: &EntryItem) -> Result<&OwnedFd, Failure> {
        let path = path_of(entry)?;
        let above = path.parent().unwrap_or(Path::new(""));
        if above.as_os_str().is_empty() {
            return Ok(&self.root);
        }
        if self.parent.as_ref().is_none_or(|(known, _)| known != above) {
            let opened = open_below(&self.root, above).map_err(|error| at(entry, error))?;
            self.parent = Some((above.to_path_buf(), opened));
        }
        match &self.parent {
            Some((_, directory)) => Ok(directory),
            None => Ok(&self.root),
        }
    }
}

/// Locks a new directory for as long as it is open; false when [`Copy::sweep`] was faster.
fn is_ours(root: &OwnedFd) -> bool {
    // A file system without locks is never swept.
    let locked = rustix::fs::flock(root, FlockOperation::NonBlockingLockExclusive);
    let there = rustix::fs::fstat(root).is_ok_and(|stat| stat.st_nlink > 0);
    locked != Err(Errno::WOULDBLOCK) && there
}

/// Says what is wrong with an entry that came.
fn broken(entry: &EntryItem, what: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("{:?}: {what}", entry.path))
}

/// Says which entry could not be written.
fn at(entry: &EntryItem, error: impl Into<io::Error>) -> Failure {
    Failure::failed(format!("{:?}: {}", entry.path, error.into()))
}

/// Gives a file or directory its mode and time.
fn dress(file: &File, entry: &EntryItem) -> io::Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(u32::from(entry.mode) & 0o777))?;
    let distance = Duration::from_nanos(entry.mtime_ns.unsigned_abs());
    let time: SystemTime = if entry.mtime_ns < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    };
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time))
}

fn timespec(nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: nanoseconds.div_euclid(1_000_000_000),
        tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
    }
}

/// Returns the very bytes of a name.
fn raw(text: &str, digits: Option<&str>) -> Result<Vec<u8>, Failure> {
    match digits {
        Some(digits) => hex::decode(digits).map_err(Failure::failed),
        None => Ok(text.as_bytes().to_vec()),
    }
}

fn path_of(entry: &EntryItem) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(std::ffi::OsString::from_vec(raw(
        &entry.path,
        entry.path_hex.as_deref(),
    )?)))
}

fn name_of(entry: &EntryItem) -> Result<PathBuf, Failure> {
    let path = path_of(entry)?;
    path.file_name()
        .map(PathBuf::from)
        .ok_or_else(|| Failure::failed(format!("{:?} has no name", entry.path)))
}

/// Opens a directory below the root, through no link.
fn open_below(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        root.as_fd(),
        path,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Digest;

    fn item(path: &str, kind: &str, bytes: &[u8]) -> Reply {
        let entry = EntryItem {
            path: path.into(),
            kind: kind.into(),
            mode: 0o644,
            size: bytes.len() as u64,
            target: (kind == "symlink").then(|| "/etc".into()),
            digest: (kind == "file").then(|| Digest::of(bytes).to_string()),
            ..EntryItem::default()
        };
        Reply::Event(Event::Item(serde_json::to_value(entry).unwrap()))
    }

    fn data(bytes: &[u8]) -> Reply {
        Reply::Data(bytes.to_vec())
    }

    /// Copies what `replies` say into a new directory, and says what went wrong.
    fn copy(replies: Vec<Reply>) -> (TempDir, PathBuf, Result<(), String>) {
        let around = tempfile::tempdir().unwrap();
        let place = around.path().join("copy");
        let mut copy = Copy::begin(&place).unwrap();
        let mut taken = Ok(());
        for reply in replies {
            taken = taken.and_then(|()| copy.take(reply));
        }
        let done = taken.and_then(|()| copy.finish());
        (around, place, done.map_err(|error| error.message))
    }

    #[test]
    fn a_tree_is_written_and_gets_its_name_last() {
        let (_around, place, done) = copy(vec![
            item("", "directory", b""),
            item("d", "directory", b""),
            item("d/link", "symlink", b"/etc"),
            item("empty", "file", b""),
            item("d/file", "file", b"one two"),
            data(b"one "),
            data(b"two"),
        ]);
        done.unwrap();
        assert_eq!(std::fs::read(place.join("d/file")).unwrap(), b"one two");
        assert_eq!(
            std::fs::read_link(place.join("d/link")).unwrap(),
            Path::new("/etc")
        );
        assert_eq!(std::fs::read(place.join("empty")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_left_of_what_goes_wrong() {
        let cases: Vec<(Vec<Reply>, &str)> = vec![
            (vec![item("f", "file", b"right"), data(b"wrong")], "catalog"),
            (vec![item("f", "file", b"right"), data(b"rig")], "not all"),
            (
                vec![item("f", "file", b"right"), item("g", "file", b"")],
                "not all",
            ),
            (
                vec![item("f", "file", b"right"), data(b"right and more")],
                "too many",
            ),
            (vec![data(b"x")], "no file"),
            (
                vec![item("f", "file", b""), item("f", "file", b"")],
                "exists",
            ),
            (vec![item("../f", "file", b"")], "../f"),
            (vec![item("/f/g", "file", b"")], "/f/g"),
            (vec![item("d/../../f", "file", b"")], "f"),
            (vec![item("..", "directory", b"")], "no name"),
            (vec![item("missing/f", "file", b"")], "missing"),
        ];
        for (replies, want) in cases {
            let (around, _, done) = copy(replies);
            let message = done.unwrap_err();
            assert!(message.contains(want), "{message} does not tell of {want}");
            assert_eq!(std::fs::read_dir(around.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_link_cannot_be_written_through() {
        let (_around, place, done) = copy(vec![
            item("l", "symlink", b"/etc"),
            item("l", "directory", b""),
        ]);
        assert!(done.unwrap_err().contains("exists"));
        assert!(!place.exists());
    }

    #[test]
    fn what_a_killed_copy_left_is_swept_and_what_is_under_way_is_not() {
        let around = tempfile::tempdir().unwrap();
        let left = around.path().join(format!("{TEMPORARY}left"));
        std::fs::create_dir_all(left.join("d")).unwrap();
        std::fs::create_dir(around.path().join("other")).unwrap();
        let place = around.path().join("copy");
        let mut copy = Copy::begin(&place).unwrap();
        Copy::sweep(around.path());
        assert!(!left.exists());
        assert!(around.path().join("other").exists());
        copy.take(item("", "directory", b"")).unwrap();
        copy.finish().unwrap();
        assert!(place.exists());
    }
}
