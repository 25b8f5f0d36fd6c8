//! A directory for a tree on its way in: on the store's file system, and counted in its quota.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Store, StoreError};

/// Where they lie below the store.
const SCRATCH: &str = "scratch";

/// A directory that is removed, with everything in it, when this is dropped, or else at the next start.
pub struct Scratch {
    store: Arc<Store>,
    path: PathBuf,
    reserved: AtomicU64,
}

impl Store {
    /// Makes a directory, readable for this user only. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn scratch(self: &Arc<Self>) -> Result<Scratch, StoreError> {
        let Some(store) = &self.path else {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        };
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let path = store.join(SCRATCH).join(number.to_string());
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&path).map_err(failed)?;
        Ok(Scratch {
            store: Arc::clone(self),
            path,
            reserved: AtomicU64::new(0),
        })
    }
}

impl Scratch {
    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets bytes aside that are about to be written, evicting others if they do not fit. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Full`]
    pub fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        self.store.reserve(bytes)?.charge(bytes);
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => self.store.uncharge(self.reserved.load(Ordering::Relaxed)),
            Err(error) => self.store.count_failure(&error, "remove"),
        }
    }
}

/// Removes what an earlier process left.
pub(super) fn sweep(store: &Path) -> io::Result<()> {
    match fs::remove_dir_all(store.join(SCRATCH)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn failed(source: io::Error) -> StoreError {
    let path = SCRATCH.to_owned();
    StoreError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::super::{Options, Verify};
    use super::*;

    fn open(path: &Path) -> Arc<Store> {
        let options = Options {
            quota: 1 << 20,
            verify: Verify::FirstTouch,
        };
        Store::open(path, options).unwrap()
    }

    #[test]
    fn it_counts_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        store.reserve(1).unwrap();
        let before = store.usage().used;
        let scratch = store.scratch().unwrap();
        fs::create_dir(scratch.path().join("d")).unwrap();
        fs::write(scratch.path().join("d/file"), b"1").unwrap();
        scratch.reserve(512 << 10).unwrap();
        assert_eq!(store.usage().used, before + (512 << 10));
        let full = scratch.reserve(600 << 10);
        assert!(matches!(full, Err(StoreError::Full { .. })));
        let path = scratch.path().to_path_buf();
        drop(scratch);
        assert!(!path.exists());
        assert_eq!(store.usage().used, before);
    }

    #[test]
    fn what_a_dead_process_left_is_removed_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let left = dir.path().join(SCRATCH).join("7/d");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("file"), b"1").unwrap();
        let _store = open(dir.path());
        assert!(!left.exists());
    }
}
