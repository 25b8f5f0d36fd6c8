//! The mounts of a home.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Home;
use crate::fs::{Door, Fs, Owner};
use crate::fuse::Mounted;
use crate::fuse::mounting::{MountError, MountOptions};
use crate::serve::control::{self, Failure, FailureKind, MountRequest};

/// The permission bits a mode may lose.
const UMASK_MAX: u16 = 0o777;

/// Live mounts.
#[derive(Default)]
pub(super) struct Mounts {
    live: Mutex<Vec<Arc<Mounted>>>,
    /// Whether there ever was one.
    any: AtomicBool,
    /// Told whenever a mount has gone.
    pub(super) gone: Notify,
}

impl Mounts {
    pub(super) fn points(&self) -> Vec<PathBuf> {
        self.live
            .lock()
            .iter()
            .map(|mounted| mounted.mountpoint().to_path_buf())
            .collect()
    }

    /// Returns whether there were mounts, and none is left.
    pub(super) fn are_over(&self) -> bool {
        self.any.load(Ordering::Acquire) && self.live.lock().is_empty()
    }
}

impl Home {
    /// Mounts, and returns when the mount answers.
    pub(super) async fn mount(
        self: &Arc<Self>,
        mountpoint: &Path,
        request: &MountRequest,
    ) -> Result<control::Mounted, Failure> {
        let config = self.config.load_full();
        if request.umask.is_some_and(|umask| umask > UMASK_MAX) {
            return Err(Failure::new(FailureKind::Usage, "umask: at most 0777"));
        }
        let owner = Owner {
            uid: request
                .uid
                .unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: request
                .gid
                .unwrap_or_else(|| rustix::process::getegid().as_raw()),
            umask: request.umask.unwrap_or(0),
        };
        let options = MountOptions {
            allow_other: request.allow_other || config.mount.allow_other,
        };
        self.first_reading().await;
        // A new mount trusts nothing that an earlier one has seen.
        self.store.forget_verified();
        self.pages.clear();
        self.listing.forget_trees();
        let fs = Fs::new(
            Arc::clone(&self.listing),
            Arc::clone(&self.installer),
            Arc::clone(&self.store),
            self.fetcher.clone(),
            owner,
            self.serving
                .dropping
                .load()
                .as_ref()
                .map(|dropping| Door::new(dropping.path())),
        );
        let (point, runtime) = (mountpoint.to_path_buf(), self.runtime.clone());
        let mount = move || {
            let mounted = Mounted::new(Arc::new(fs), &point, &options, runtime)?;
            // The first answer: from here on the mount is there for everybody.
            std::fs::metadata(mounted.mountpoint()).map_err(|source| MountError::Serve {
                mountpoint: point,
                source,
            })?;
            Ok(mounted)
        };
        let mounted: Result<Mounted, MountError> = tokio::task::spawn_blocking(mount)
            .await
            .map_err(Failure::failed)?;
        let mounted = Arc::new(mounted.map_err(|error| mount_failure(&error))?);
        let point = mounted.mountpoint().to_path_buf();
        tracing::info!(mountpoint = %point.display(), "mounted");
        self.mounts.live.lock().push(Arc::clone(&mounted));
        self.mounts.any.store(true, Ordering::Release);
        let home = Arc::clone(self);
        // Not tracked: it ends with the mount, which closing the home waits for elsewhere.
        self.runtime.spawn(async move {
            mounted.ended().await;
            home.mounts
                .live
                .lock()
                .retain(|other| !Arc::ptr_eq(other, &mounted));
            tracing::info!(mountpoint = %mounted.mountpoint().display(), "unmounted");
            home.mounts.gone.notify_waiters();
        });
        let notes = self.mount_notes();
        Ok(control::Mounted {
            mountpoint: point,
            packages: self.listing.names().packages().count() as u64,
            notes,
        })
    }

    fn mount_notes(&self) -> Vec<String> {
        let mut notes = self.notes.lock().clone();
        if self.updater.policy().rules().is_empty() {
            notes.push(
                "nothing is trusted yet, so nothing is shown: `manifs trust add PATTERN KEY`"
                    .to_owned(),
            );
        }
        notes
    }

    /// Detaches a mount, and returns once the kernel has let go of it, unless somebody still has files open.
    pub(super) async fn unmount(&self, mountpoint: &Path) -> Result<(), Failure> {
        let real = tokio::fs::canonicalize(mountpoint)
            .await
            .unwrap_or_else(|_| mountpoint.to_path_buf());
        let found = self
            .mounts
            .live
            .lock()
            .iter()
            .find(|mounted| mounted.mountpoint() == real)
            .cloned();
        let Some(mounted) = found else {
            return Err(Failure::new(
                FailureKind::NotFound,
                format!("{} is not mounted by this home", mountpoint.display()),
            )
            .hint("`manifs status` shows what is"));
        };
        self.detach(&mounted).await
    }

    async fn detach(&self, mounted: &Arc<Mounted>) -> Result<(), Failure> {
        let gone = self.mounts.gone.notified();
        let detaching = Arc::clone(mounted);
        let detached = tokio::task::spawn_blocking(move || detaching.unmount())
            .await
            .map_err(Failure::failed)?;
        detached.map_err(|error| mount_failure(&error))?;
        // With files open the session lives on until they are closed; the path is free all the same.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), gone).await;
        self.mounts
            .live
            .lock()
            .retain(|other| !Arc::ptr_eq(other, mounted));
        self.mounts.gone.notify_waiters();
        Ok(())
    }

    /// Detaches every mount.
    pub(super) async fn unmount_all(&self) {
        let all = self.mounts.live.lock().clone();
        for mounted in all {
            if let Err(failure) = self.detach(&mounted).await {
                tracing::warn!(%failure, "a mount stays");
            }
        }
    }
}

fn mount_failure(error: &MountError) -> Failure {
    let failure = Failure::failed(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
