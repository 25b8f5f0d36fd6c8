//! Attributes: exact for rows, made up with care for the directories above them.

use std::time::Duration;

use crate::catalog::{Kind, Row};
use crate::install::{Child, Directory, Listed, Names};

use super::Ino;

/// How long the kernel may keep what never changes.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long the kernel may keep what can change; changes are told besides.
const FOR_NOW: Duration = Duration::from_secs(1);

/// The mode of every directory that no catalog gives.
const DIRECTORY_MODE: u16 = 0o755;

/// What `stat` shows of an inode, and for how long it may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The inode number.
    pub ino: Ino,
    /// File, directory or symlink.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Bytes of a file or of a link's target; children of a directory.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: i64,
    /// How long these attributes hold.
    pub ttl: Duration,
    /// How long the name leads to this inode.
    pub entry_ttl: Duration,
}

impl Attributes {
    /// The attributes of a name that does not exist, where a reply needs some.
    pub(crate) fn nothing() -> Self {
        Attributes {
            ino: Ino::from_kernel(0),
            kind: Kind::File,
            mode: 0,
            size: 0,
            mtime_ns: 0,
            ttl: Duration::ZERO,
            entry_ttl: Duration::ZERO,
        }
    }
}

/// Attributes of a row: they hold for ever.
pub(super) fn of_row(slot: u32, number: u32, row: &Row) -> Attributes {
    Attributes {
        ino: Ino::row(slot, number),
        kind: row.kind(),
        mode: row.mode(),
        size: row.size(),
        mtime_ns: row.mtime_ns(),
        ttl: FOREVER,
        entry_ttl: FOREVER,
    }
}

/// Attributes of a version's directory: row 0's once installed, the manifest's before; never a reason to install.
pub(super) fn of_version(version: &Listed) -> Attributes {
    if let Some(row) = version.tree().and_then(|tree| tree.row(0).ok()) {
        return Attributes {
            entry_ttl: FOR_NOW,
            ..of_row(version.slot(), 0, &row)
        };
    }
    Attributes {
        ino: Ino::row(version.slot(), 0),
        kind: Kind::Directory,
        mode: DIRECTORY_MODE,
        size: 0,
        mtime_ns: version.created_ns(),
        ttl: FOR_NOW,
        entry_ttl: FOR_NOW,
    }
}

/// Attributes of `latest`: another target is another inode, so only the name is for now.
pub(super) fn of_latest(target: &Listed) -> Attributes {
    Attributes {
        ino: Ino::latest(target.slot()),
        kind: Kind::Symlink,
        mode: 0o777,
        size: target.package().version.to_string().len() as u64,
        mtime_ns: target.created_ns(),
        ttl: FOREVER,
        entry_ttl: FOR_NOW,
    }
}

/// Attributes of the root, a scope or a package name.
pub(super) fn of_directory(directory: &Directory) -> Attributes {
    Attributes {
        ino: Ino::name(directory.id()),
        kind: Kind::Directory,
        mode: DIRECTORY_MODE,
        size: directory.children().len() as u64,
        mtime_ns: directory.changed_ns(),
        ttl: FOR_NOW,
        entry_ttl: FOR_NOW,
    }
}

/// Attributes of an entry of such a directory.
pub(super) fn of_child(names: &Names, child: &Child) -> Attributes {
    match child {
        Child::Directory(id) => names
            .directory(*id)
            .map_or_else(Attributes::nothing, of_directory),
        Child::Version(version) => of_version(version),
        Child::Latest(target) => of_latest(target),
    }
}
