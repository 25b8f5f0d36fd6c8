//! What the disk below a store can do, found out at the start.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::ReadWriteFlags;

/// What works, and what a missing ability means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The ability.
    pub what: &'static str,
    /// Whether it works.
    pub works: bool,
    /// What follows when it does not.
    pub without: &'static str,
}

/// Tries out what the store relies on, in `directory`.
///
/// # Errors
/// The system's, when not even a file can be written.
pub fn probe(directory: &Path) -> io::Result<Vec<Probe>> {
    let mut file = tempfile::tempfile_in(directory)?;
    file.write_all(&[1; 8192])?;
    let flock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    let punch = rustix::fs::fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        4096,
    )
    .is_ok();
    let mut byte = [0];
    let nowait = rustix::io::preadv2(
        &file,
        &mut [io::IoSliceMut::new(&mut byte)],
        0,
        ReadWriteFlags::NOWAIT,
    );
    let unnamed = rustix::fs::openat(
        File::open(directory)?,
        ".",
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::RUSR,
    );
    Ok(vec![
        Probe {
            what: "flock",
            works: flock,
            without: "two daemons could use one store: put it on a local disk",
        },
        Probe {
            what: "punching holes",
            works: punch,
            without: "parts of large files cannot be evicted: use ext4, xfs or btrfs",
        },
        Probe {
            what: "RWF_NOWAIT",
            works: !matches!(nowait, Err(rustix::io::Errno::OPNOTSUPP)),
            without: "reads of stored blocks take a detour through a thread",
        },
        Probe {
            what: "O_TMPFILE",
            works: unnamed.is_ok(),
            without: "a crash may leave temporary files, removed at the next start",
        },
    ])
}
