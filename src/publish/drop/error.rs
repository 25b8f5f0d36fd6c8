//! Why there is no drop directory, or an entry of it cannot be used.

use std::io;
use std::path::PathBuf;

use super::members::GroupError;

/// Why there is no drop directory, or an entry of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// It cannot be made, opened or listed.
    #[error("the drop directory {path}: {error}", path = path.display())]
    Directory {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is a link, or no directory.
    #[error("the drop directory {path} is not a directory of its own", path = path.display())]
    NotADirectory {
        /// Where it should be.
        path: PathBuf,
    },
    /// Others than those it is for may put something into it.
    #[error("the drop directory {path} {what}", path = path.display())]
    Rights {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// Only root can tell members of a group apart.
    #[error("[publish] group needs a daemon that runs as root")]
    NotRoot,
    /// The group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The entry went away, or is going.
    #[error("it went away")]
    Gone,
    /// The entry lies on another mount, or is a link.
    #[error("it is a mount of its own, or a link")]
    Foreign,
    /// Its owner does not belong to the group that may publish.
    #[error("its owner (user {uid}) is not in the group {group}")]
    NotAMember {
        /// Whose it is.
        uid: u32,
        /// The group.
        group: String,
    },
    /// The entry cannot be opened.
    #[error("it cannot be opened: {0}")]
    Entry(io::Error),
}

impl DropError {
    /// Returns what to do about it.
    pub fn hint(&self) -> String {
        match self {
            DropError::Rights { hint, .. } => hint.clone(),
            DropError::Directory { .. } | DropError::NotADirectory { .. } => {
                "let [publish] directory name a directory of a local disk".to_owned()
            }
            DropError::NotRoot | DropError::Group(_) => {
                "take [publish] group out, or name a group of this machine in the daemon of root"
                    .to_owned()
            }
            DropError::Foreign => "copy it into the drop directory".to_owned(),
            DropError::NotAMember { group, .. } => {
                format!("drop a directory that belongs to a member of {group}")
            }
            DropError::Gone => "drop it again".to_owned(),
            DropError::Entry(_) => "make it readable for the daemon".to_owned(),
        }
    }
}

/// Says what an error of opening an entry means.
pub(super) fn entry_error(error: io::Error) -> DropError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => DropError::Gone,
        Some(libc::EXDEV | libc::ELOOP | libc::ENOTDIR) => DropError::Foreign,
        _ => DropError::Entry(error),
    }
}
