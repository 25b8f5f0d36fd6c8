//! What must not be forgotten: what was seen, slots, pins, own publications, the publish journal.
//!
//! `store/` is disposable, this directory is not. Everything is a small JSON file, written so that a crash leaves the
//! old content or the new (`durable`). One process owns the directory: [`State::open`] takes a lock that lasts as
//! long as the value. A directory of an unknown version is refused and never wiped.

mod numbers;
mod pins;
mod published;
mod seeding;
mod seen;
mod slots;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use crate::durable;
use crate::manifest::{PackageName, TrustedIndex, TrustedManifest};
pub use numbers::Numbers;
pub use pins::{Pin, Pins};
pub use published::Published;
pub use seeding::Seeding;
pub use seen::{Seen, SeenError};
pub use slots::{Slots, SlotsError};

/// The content of `VERSION`. Changing the layout of the directory in a way that older code misreads needs another.
const VERSION: &str = "manifs-state 1\n";

/// Names that may be in a directory without `VERSION`: the lock is made first, and a log may have been begun.
const BEFORE_VERSION: [&str; 2] = ["lock", "daemon.log"];

/// Why the state of a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error("{dir} is in use by {}", holder(.pid))]
    Locked {
        /// The state directory.
        dir: PathBuf,
        /// The process, if it wrote its number.
        pid: Option<u32>,
    },
    /// It was written by another version of manifs.
    #[error("{dir} has the unknown version {found:?}")]
    UnknownVersion {
        /// The state directory.
        dir: PathBuf,
        /// What `VERSION` says.
        found: String,
    },
    /// It has files but no version.
    #[error("{0} has files but no VERSION")]
    NoVersion(PathBuf),
    /// A file is damaged.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In which way.
        reason: String,
    },
    /// The file system refuses.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}

impl StateError {
    /// Returns what a person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            StateError::Locked { .. } => {
                "one daemon or command at a time uses a home; ask the running one, or wait until it ends"
            }
            StateError::UnknownVersion { .. } => {
                "use the version of manifs that wrote it; nothing was changed"
            }
            StateError::NoVersion(_) => {
                "this is not a state directory of manifs; choose another home, or restore it from a backup"
            }
            StateError::Damaged { .. } => {
                "restore the file from a backup; it keeps what must not be forgotten, so it is never replaced by itself"
            }
            StateError::Io { .. } => return None,
        })
    }

    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidData {
            return StateError::Damaged {
                path: path.to_owned(),
                reason: error.to_string(),
            };
        }
        StateError::Io {
            path: path.to_owned(),
            error,
        }
    }
}

/// The state of a home, owned by this process.
pub struct State {
    dir: PathBuf,
    created: bool,
    seen: Seen,
    slots: Slots,
    pins: Pins,
    numbers: Numbers,
    published: Published,
    listed: Published,
    seeding: Seeding,
    journal: PathBuf,
    ingested: PathBuf,
    // Last, so that it is let go last.
    _lock: Lock,
}

impl State {
    /// Takes the state directory of a home, which is made when it is missing (see [`State::was_created`]).
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed then, unless the file system failed half-way in a new directory.
    pub fn open(dir: &Path) -> Result<State, StateError> {
        durable::create_dir(dir).map_err(|error| StateError::io(dir, error))?;
        let lock = Lock::take(dir)?;
        let created = check_version(dir)?;
        durable::sweep(dir).map_err(|error| StateError::io(dir, error))?;
        let journal = dir.join("journal");
        durable::create_dir(&journal)
            .and_then(|()| durable::sweep(&journal))
            .map_err(|error| StateError::io(&journal, error))?;
        let ingested = dir.join("ingested");
        durable::create_dir(&ingested)
            .and_then(|()| durable::sweep(&ingested))
            .map_err(|error| StateError::io(&ingested, error))?;
        Ok(State {
            created,
            seen: Seen::open(dir.join("seen"))?,
            slots: Slots::open(dir.join("slots"))?,
            pins: Pins::open(dir.join("pins.json"))?,
            numbers: Numbers::open(dir.join("numbers.json"))?,
            published: Published::open(dir.join("published"))?,
            listed: Published::open(dir.join("listed"))?,
            seeding: Seeding::open(dir.join("seeding.json"), dir.join("torrents"))?,
            journal,
            ingested,
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Returns whether this call of [`State::open`] made the directory anew. Beside an existing `store/` that means
    /// that the state was lost: what was seen, the inode numbers, the pins; the caller says so.
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns what was seen of packages: the base of every judgement on rollback.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Makes what this home has published its own: admitted to what was seen, and kept. The files appear in that order, and
    /// all are durable when this returns.
    ///
    /// # Errors
    /// [`SeenError`], when it contradicts what was seen, or cannot be written.
    pub fn admit_published(
        &self,
        name: &PackageName,
        manifest: Option<&TrustedManifest>,
        index: Option<&TrustedIndex>,
    ) -> Result<(), SeenError> {
        let published = &self.published;
        self.seen.admit_published(name, manifest, index, |batch| {
            manifest.map_or(Ok(()), |manifest| published.stage_manifest(manifest, batch))?;
            index.map_or(Ok(()), |index| published.stage_index(index, batch))
        })
    }

    /// Returns the slots: the upper halves of inode numbers.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Returns the pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Returns the envelopes of what this home published.
    pub fn published(&self) -> &Published {
        &self.published
    }

    /// Returns the numbers of scopes and package names: the lower halves of their inodes.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Returns the envelopes of what is listed, as received: a registry that forgets changes nothing.
    pub fn listed(&self) -> &Published {
        &self.listed
    }

    /// Returns what is to be seeded.
    pub fn seeding(&self) -> &Seeding {
        &self.seeding
    }

    /// Returns the directory of what is known of files that were published: derived, one file for each package.
    pub fn ingested(&self) -> &Path {
        &self.ingested
    }

    /// Returns the directory of the publish journal.
    pub fn journal(&self) -> &Path {
        &self.journal
    }
}

/// Checks `VERSION`, or writes it in a new directory; returns whether it was new.
fn check_version(dir: &Path) -> Result<bool, StateError> {
    let path = dir.join("VERSION");
    let found = durable::read(&path, 4096).map_err(|error| StateError::io(&path, error))?;
    if let Some(found) = found {
        if found == VERSION.as_bytes() {
            return Ok(false);
        }
        return Err(StateError::UnknownVersion {
            dir: dir.to_owned(),
            found: String::from_utf8_lossy(&found).trim().to_owned(),
        });
    }
    let entries = fs::read_dir(dir).map_err(|error| StateError::io(dir, error))?;
    for entry in entries {
        let name = entry
            .map_err(|error| StateError::io(dir, error))?
            .file_name();
        let expected = BEFORE_VERSION.iter().any(|expected| name == *expected);
        // A VERSION that was being written when the process died.
        let half_written = name.to_string_lossy().starts_with(".VERSION.");
        if !expected && !half_written {
            return Err(StateError::NoVersion(dir.to_owned()));
        }
    }
    durable::write(&path, VERSION.as_bytes(), 0o600)
        .map_err(|error| StateError::io(&path, error))?;
    Ok(true)
}

/// The lock on a state directory, let go when dropped (or when the process ends in whatever way).
struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    fn take(dir: &Path) -> Result<Lock, StateError> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| StateError::io(&path, error))?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StateError::Locked {
                    dir: dir.to_owned(),
                    pid: read_pid(&file),
                });
            }
            Err(error) => return Err(StateError::io(&path, error.into())),
        }
        // Only for messages; the lock itself is what counts.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| StateError::io(&path, error))?;
        Ok(Lock(file))
    }
}

fn read_pid(mut file: &File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
