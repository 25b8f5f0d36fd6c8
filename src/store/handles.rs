//! Files kept open, so that a read costs one call.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};

use super::disk::DiskFile;
use super::large::Large;
use crate::block::Digest;

/// Large files kept open, if the process may have that many.
const LARGE_MAX: usize = 512;

/// Small files kept open: those that the kernel reads in several requests.
const SMALL_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// A small file of at most this many bytes is read in one request of the kernel's, so it is not kept open.
pub(super) const ONE_READ_BYTES: u32 = 128 << 10;

/// Open files. Each large one is held by its entry; here is who has one.
pub(super) struct Handles {
    /// Opened longest ago first; those used since get a second chance.
    large: Mutex<VecDeque<Weak<Large>>>,
    large_max: usize,
    small: Mutex<LruCache<Digest, OpenSmall>>,
}

/// An open small file, and the number of the write that made it.
type OpenSmall = (u32, Arc<dyn DiskFile>);

impl Handles {
    pub(super) fn new() -> Handles {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let quarter = usize::try_from(limit / 4).unwrap_or(LARGE_MAX);
        Handles {
            large: Mutex::default(),
            large_max: quarter.clamp(8, LARGE_MAX),
            small: Mutex::new(LruCache::new(SMALL_MAX)),
        }
    }

    /// Counts the file of `large` in, which was just opened; another one is closed for it.
    pub(super) fn opened(&self, large: &Arc<Large>) {
        let mut open = self.large.lock();
        open.push_back(Arc::downgrade(large));
        // Each is passed over once at most: its mark is taken away then.
        while open.len() > self.large_max {
            let Some(oldest) = open.pop_front() else {
                return;
            };
            let Some(oldest) = oldest.upgrade() else {
                continue;
            };
            if oldest.handle_used.swap(false, Ordering::Relaxed) {
                open.push_back(Arc::downgrade(&oldest));
            } else {
                oldest.handle.store(None);
            }
        }
    }

    /// Returns a small file that was opened after write number `written`, which made it.
    pub(super) fn small(&self, id: &Digest, written: u32) -> Option<Arc<dyn DiskFile>> {
        let mut small = self.small.lock();
        let (opened, file) = small.get(id)?;
        (*opened == written).then(|| Arc::clone(file))
    }

    pub(super) fn keep_small(&self, id: Digest, written: u32, file: Arc<dyn DiskFile>) {
        // What is pushed out is closed after the lock is given back.
        let closed = self.small.lock().push(id, (written, file));
        drop(closed);
    }

    pub(super) fn forget_small(&self, id: &Digest) {
        let closed = self.small.lock().pop(id);
        drop(closed);
    }
}
