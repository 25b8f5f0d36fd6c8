//! The status files beside the entries: written, removed, and read again by the next process.
//!
//! Where a group may write to the directory, the owner of an entry may write to its status: what is read is something to
//! show, and at most a reason to look at the entry again.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::Uid;

use super::name::{Key, STATUS};
use super::place::{DropDirectory, OWN};
use super::report::Report;
use crate::manifest::Timestamp;
use crate::publish::disk::{self, FileKind};

/// The most bytes of a status that are read: more than the reasons of a refusal take.
const STATUS_BYTES_MAX: u64 = 256 << 10;

/// A status as an earlier process wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// What it says.
    pub report: Report,
    /// When that was so.
    pub at: Timestamp,
    /// Whether the entry was changed since.
    pub changed: bool,
}

impl Written {
    /// Returns whether it says that the entry was committed and had come to no end: a process died over it.
    pub fn is_under_way(&self) -> bool {
        self.report.word.is_under_way()
    }
}

impl DropDirectory {
    /// Reads the status of an entry; `None` without one that makes sense, and that belongs to the entry's owner or to the
    /// daemon.
    pub fn status(&self, key: &Key) -> Option<Written> {
        let parent = self.parent(key).ok()?;
        let file = disk::open_file(parent.as_fd(), &place(key)).ok()?;
        let stat = disk::stat(&file).ok()?;
        if stat.kind != FileKind::File {
            return None;
        }
        let entry = disk::stat_in(parent.as_fd(), key.name()).ok();
        // Nobody says of another one's directory that it is complete.
        let own = rustix::process::geteuid().as_raw();
        if entry.is_some_and(|entry| stat.uid != entry.uid && stat.uid != own) {
            return None;
        }
        let mut text = String::new();
        let mut limited = std::fs::File::from(file).take(STATUS_BYTES_MAX);
        limited.read_to_string(&mut text).ok()?;
        let (report, at) = Report::parse(&text)?;
        Some(Written {
            report,
            at,
            changed: entry.is_none_or(|entry| entry.ctime > stat.mtime),
        })
    }

    /// Replaces the status of an entry; a `durable` one is there after a power cut, too.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_status(&self, key: &Key, text: &str, durable: bool) -> io::Result<()> {
        let parent = self.parent(key).map_err(io::Error::other)?;
        let place = place(key);
        let temporary = format!("{OWN}status-{:016x}", rand::random::<u64>());
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(&parent, &*temporary, flags, mode)?;
        let written = (|| {
            let mut file = std::fs::File::from(file);
            file.write_all(text.as_bytes())?;
            rustix::fs::fchmod(&file, mode)?;
            if self.group.is_some() {
                // So that whoever dropped the directory may remove its status, in spite of the sticky bit.
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                let owner = rustix::fs::statat(&parent, key.name(), flags);
                if let Ok(owner) = owner {
                    rustix::fs::fchown(&file, Some(Uid::from_raw(owner.st_uid)), None)?;
                }
            }
            if durable {
                file.sync_all()?;
            }
            rustix::fs::renameat(&parent, &*temporary, &parent, &*place)?;
            if durable {
                rustix::fs::fsync(&parent)?;
            }
            Ok(())
        })();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&parent, &*temporary, AtFlags::empty());
        }
        written
    }

    /// Removes the status of an entry that is gone.
    pub fn remove_status(&self, key: &Key) {
        if let Ok(parent) = self.parent(key) {
            let _ = rustix::fs::unlinkat(&parent, &*place(key), AtFlags::empty());
        }
    }
}

/// Returns the name of an entry's status.
fn place(key: &Key) -> Vec<u8> {
    [key.name(), STATUS.as_bytes()].concat()
}
