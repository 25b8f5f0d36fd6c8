//! The one table of errnos.

use fuser::Errno;

use crate::fs::FsError;

/// Returns what the kernel is told; `why PATH` tells the rest.
pub(super) fn of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound { .. } => Errno::ENOENT,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotALink => Errno::EINVAL,
        // ENODATA on Linux.
        FsError::NoAttribute | FsError::NotInstalled => Errno::NO_XATTR,
        FsError::Stale => Errno::ESTALE,
        FsError::LinkLeaves | FsError::Refused => Errno::EACCES,
        FsError::Wait(_) | FsError::StillInstalling => Errno::EAGAIN,
        FsError::NoSourceInTime => Errno::ETIMEDOUT,
        FsError::NoHonestSource | FsError::BadCatalog | FsError::Disk => Errno::EIO,
    }
}
