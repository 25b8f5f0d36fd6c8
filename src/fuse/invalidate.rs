//! Tells the kernel which cached directories have changed.
//!
//! On a thread of its own: an invalidation waits for locks that a pending request of ours may hold.

use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::Receiver;

use fuser::{INodeNo, Notifier};

use crate::fs::{Change, Ino};

/// Starts the thread; it ends when the file system is dropped.
pub(super) fn spawn(notifier: Notifier, changes: Receiver<Change>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("manifs-inval".into())
        .spawn(move || {
            for change in changes {
                // The entry goes first: a lookup between the two would otherwise be answered from the stale dentry.
                let directory = INodeNo(Ino::name(change.directory).get());
                for error in [
                    notifier
                        .inval_entry(directory, OsStr::new(&change.name))
                        .err(),
                    // Without this one `ls` stays stale: the kernel keeps the listing as pages of the directory.
                    notifier.inval_inode(directory, 0, 0).err(),
                ]
                .into_iter()
                .flatten()
                {
                    tracing::debug!(%error, ?directory, "the kernel did not take an invalidation");
                }
            }
        })?;
    Ok(())
}
