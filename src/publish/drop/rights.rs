//! Whose a drop directory is, and who may write to it: made so, and judged each time it is opened.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, geteuid};

use super::error::DropError;
use super::members::Group;
use super::place::below;
use crate::publish::disk;

/// The mode of a directory of one user.
pub(super) const PRIVATE: u16 = 0o700;

/// The mode of a directory of a group: who puts something into it keeps it, and it stays the group's.
pub(super) const SHARED: u16 = 0o3770;

/// Makes a drop directory.
pub(super) fn make(path: &Path, group: Option<&Group>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mode = group.map_or(PRIVATE, |_| SHARED);
    rustix::fs::mkdir(path, Mode::from_raw_mode(PRIVATE.into()))?;
    if let Some(group) = group {
        rustix::fs::chown(path, None, Some(Gid::from_raw(group.gid())))?;
    }
    // Past the umask.
    rustix::fs::chmod(path, Mode::from_raw_mode(mode.into()))?;
    Ok(())
}

/// Makes a directory in a drop directory, with the same rights, and opens it. One that is there is left as it is, unless
/// it is ours alone: made before there was a group, or by a process that died over it.
pub(super) fn make_in(
    root: BorrowedFd<'_>,
    name: &[u8],
    group: Option<&Group>,
) -> io::Result<OwnedFd> {
    let made = match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(PRIVATE.into())) {
        Err(Errno::EXIST) => false,
        made => made.map(|()| true)?,
    };
    let opened = below(root, name)?;
    let stat = disk::stat(&opened)?;
    let ours = stat.uid == geteuid().as_raw() && stat.mode & 0o777 & !PRIVATE == 0;
    match group {
        Some(group) if ours => {
            rustix::fs::fchown(&opened, None, Some(Gid::from_raw(group.gid())))?;
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(SHARED.into()))?;
        }
        // Past the umask.
        None if made => rustix::fs::fchmod(&opened, Mode::from_raw_mode(PRIVATE.into()))?,
        _ => {}
    }
    Ok(opened)
}

/// Opens the directory and judges whose it is and who may write to it.
pub(super) fn open(path: &Path, group: Option<&Group>) -> Result<OwnedFd, DropError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => DropError::NotADirectory {
                path: path.to_owned(),
            },
            error => DropError::Directory {
                path: path.to_owned(),
                error: error.into(),
            },
        })?;
    let stat = disk::stat(&opened).map_err(|error| DropError::Directory {
        path: path.to_owned(),
        error,
    })?;
    let wrong = |what: String, hint: String| DropError::Rights {
        path: path.to_owned(),
        what,
        hint,
    };
    let own = geteuid().as_raw();
    if stat.uid != own {
        return Err(wrong(
            format!(
                "belongs to user {}, and the daemon runs as user {own}",
                stat.uid
            ),
            format!("chown {own} {}", path.display()),
        ));
    }
    match group {
        None if stat.mode & 0o077 != 0 => Err(wrong(
            format!("has mode {:04o}: others than its owner get in", stat.mode),
            format!("chmod 700 {}", path.display()),
        )),
        Some(group) => {
            let gid = rustix::fs::fstat(&opened).map(|stat| stat.st_gid).ok();
            if gid != Some(group.gid()) || stat.mode != SHARED {
                return Err(wrong(
                    format!("is not for the group {} alone", group.name()),
                    format!(
                        "chgrp {} {path} && chmod {SHARED:o} {path}",
                        group.name(),
                        path = path.display()
                    ),
                ));
            }
            Ok(opened)
        }
        None => Ok(opened),
    }
}
