//! The link `publish` in a mount's root: where directories are dropped to become versions.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::attributes::{Attributes, FOREVER};
use super::{Attempt, Fs, FsError, Ino, Item, Place, Visit};
use crate::catalog::Kind;

/// Its name; a reserved word, so never a package.
pub(super) const NAME: &str = "publish";

/// A link to the drop directory.
#[derive(Debug, Clone)]
pub struct Door {
    target: Vec<u8>,
    mtime_ns: i64,
}

impl Door {
    /// Leads to a directory, by its absolute path.
    pub fn new(directory: &Path) -> Door {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Door {
            target: directory.as_os_str().as_bytes().to_vec(),
            mtime_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        }
    }

    pub(super) fn target(&self) -> &[u8] {
        &self.target
    }

    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            ino: Ino::DOOR,
            kind: Kind::Symlink,
            mode: 0o777,
            size: self.target.len() as u64,
            mtime_ns: self.mtime_ns,
            ttl: FOREVER,
            entry_ttl: FOREVER,
        }
    }
}

impl Fs {
    pub(super) fn door(&self) -> Attempt<&Door> {
        self.door.as_ref().ok_or(FsError::Stale)
    }

    /// Lists the link after the `count` entries of the root.
    pub(super) fn list_door(&self, ino: Ino, count: u64, from: u64, visit: Visit<'_>) {
        if let (Place::Root, Some(door)) = (ino.place(), &self.door)
            && from <= count
        {
            visit(Item {
                cookie: count + 3,
                name: NAME.as_bytes(),
                attributes: &door.attributes(),
            });
        }
    }
}
