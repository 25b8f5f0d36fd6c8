//! The kernel adapter: FUSE requests to [`crate::fs`], its answers to replies.
//!
//! A FUSE thread answers metadata and blocks at hand itself; whatever has to wait moves, reply included, to a task, and
//! every such reply has a deadline, since fuser never delivers an interrupt. The way of a mount: [`mounting`] makes the
//! mount and hands over the device, [`adapter`] serves it, [`invalidate`] tells the kernel what changed. Only
//! [`errno`] knows how an error is spelt for the kernel.
//!
//! The session is made from our own descriptor, because fuser's own unmount is not lazy, tests for a live mount the
//! wrong way round and could take down somebody else's.

mod adapter;
mod errno;
mod invalidate;
pub mod mounting;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::fs::Fs;
use mounting::{MountError, MountOptions};

/// FUSE threads of one mount. More do not help: what waits has left them (measured).
const THREADS: usize = 2;

/// Kibibytes that the kernel reads ahead, where we may set it: the mount's best for stored and for fetched data.
const READ_AHEAD_KIB: u32 = 1024;

/// A live mount. Dropping it does nothing; [`Mounted::unmount`] detaches it.
pub struct Mounted {
    mountpoint: PathBuf,
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Mounts `fs` at `mountpoint`, an existing directory, and serves it on threads of its own.
    ///
    /// A dead mount that an earlier daemon left at that place is cleared first. Blocking.
    ///
    /// # Errors
    /// [`MountError`] when the place is no directory, is in use, or the kernel refuses.
    pub fn new(
        fs: Arc<Fs>,
        mountpoint: &Path,
        options: &MountOptions,
        runtime: Handle,
    ) -> Result<Mounted, MountError> {
        let mountpoint = mounting::prepare(mountpoint)?;
        let device = mounting::mount(&mountpoint, options)?;
        let result = Self::serve(fs, &mountpoint, device, options, runtime);
        if result.is_err() {
            // The mount exists but nobody serves it: every access would hang until the descriptor is closed.
            let _ = mounting::unmount(&mountpoint);
        }
        result
    }

    fn serve(
        fs: Arc<Fs>,
        mountpoint: &Path,
        device: std::os::fd::OwnedFd,
        options: &MountOptions,
        runtime: Handle,
    ) -> Result<Mounted, MountError> {
        let at = |source| MountError::Serve {
            mountpoint: mountpoint.to_path_buf(),
            source,
        };
        let mut config = Config::default();
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(THREADS);
        config.clone_fd = mounting::device_opens();
        let changes = fs.changes();
        let session = Session::from_fd(
            adapter::Adapter::new(fs, runtime),
            device,
            config.acl,
            config,
        )
        .map_err(at)?;
        invalidate::spawn(session.notifier(), changes).map_err(at)?;
        let (over, ended) = watch::channel(false);
        std::thread::Builder::new()
            .name("manifs-fuse".into())
            .spawn(move || {
                if let Err(error) = session.run() {
                    tracing::debug!(%error, "the FUSE session ended");
                }
                let _ = over.send(true);
            })
            .map_err(at)?;
        mounting::set_read_ahead(mountpoint, READ_AHEAD_KIB);
        Ok(Mounted {
            mountpoint: mountpoint.to_path_buf(),
            ended,
        })
    }

    /// Returns where it is mounted, as an absolute path.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns whether the kernel has let go of it.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Returns when the kernel has let go of it, whoever unmounted.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the sender is gone, so the session is over too.
        let _ = ended.wait_for(|over| *over).await;
    }

    /// Detaches the mount: new accesses see the directory below at once, files that are open stay readable.
    ///
    /// # Errors
    /// [`MountError`] when the kernel or `fusermount3` refuses.
    pub fn unmount(&self) -> Result<(), MountError> {
        if self.has_ended() {
            Ok(())
        } else {
            mounting::unmount(&self.mountpoint)
        }
    }
}
