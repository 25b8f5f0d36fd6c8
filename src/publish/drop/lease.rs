//! Whether somebody has a file open for writing: the kernel gives a read lease (`F_SETLEASE`, see fcntl(2)) only when
//! nobody has.
//!
//! A lease needs the file's owner or `CAP_LEASE`, and a file system that knows leases. Where it is not to be had for
//! such a reason, nothing is known, and a writer is not assumed.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `F_SETSIG` of the generic `fcntl.h`, which libc does not name.
const F_SETSIG: libc::c_int = 10;

/// Returns whether somebody else has the open file open for writing, as far as the kernel tells.
#[expect(
    unsafe_code,
    reason = "neither rustix nor nix has this call; the descriptor outlives it and no memory is passed"
)]
pub(super) fn has_writer(file: BorrowedFd<'_>) -> bool {
    let fd = file.as_raw_fd();
    // Who opens the file for writing meanwhile makes the kernel signal us. SIGURG is ignored by default; without this it
    // would be SIGIO, which kills.
    // SAFETY: `fd` is open for as long as `file` is borrowed, and the argument is a plain number.
    let signal = unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) };
    if signal != 0 {
        return false;
    }
    // SAFETY: as above.
    let taken = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) };
    if taken != 0 {
        return std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    }
    // SAFETY: as above. Without this it would be let go when the descriptor is closed.
    let _ = unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    false
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_writer_is_seen_as_long_as_it_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = std::fs::File::create(&path).unwrap();
        let reader = std::fs::File::open(&path).unwrap();
        assert!(has_writer(reader.as_fd()));
        drop(writer);
        assert!(!has_writer(reader.as_fd()));
        // And nothing is left of the lease: a writer may come at once.
        std::fs::write(&path, b"x").unwrap();
    }
}
