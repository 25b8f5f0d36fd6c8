//! What is not evicted: installed catalogs, pinned files, own publications.

use std::sync::atomic::Ordering;

use super::Store;
use super::read::is_small;
use crate::block::FileRef;

impl Store {
    /// Keeps a file from being evicted until [`Store::unprotect`] is called as often. It need not be there yet.
    pub fn protect(&self, file: &FileRef) {
        let shard = self.shard(&file.id);
        let _change = shard.change.lock();
        let count = {
            let mut kept = shard.kept.write();
            let count = kept.entry(file.id).or_insert(0);
            *count = count.saturating_add(1);
            *count
        };
        if count == 1 {
            self.set_kept(file, true);
        }
    }

    /// Takes back one [`Store::protect`].
    pub fn unprotect(&self, file: &FileRef) {
        let shard = self.shard(&file.id);
        let _change = shard.change.lock();
        let free = {
            let mut kept = shard.kept.write();
            match kept.get_mut(&file.id) {
                Some(count) if *count > 1 => {
                    *count -= 1;
                    false
                }
                _ => kept.remove(&file.id).is_some(),
            }
        };
        if free {
            self.set_kept(file, false);
        }
    }

    /// Returns whether a file is kept from being evicted.
    pub fn is_protected(&self, file: &FileRef) -> bool {
        self.shard(&file.id).is_kept(&file.id)
    }

    /// Counts a file among what cannot be evicted, or no longer; the caller holds the shard's change.
    fn set_kept(&self, file: &FileRef, kept: bool) {
        let cost = if is_small(file) {
            self.small_state(&file.id)
                .map_or(0, |state| self.small_cost(state.size))
        } else {
            self.known_large(&file.id).map_or(0, |large| {
                // Alone: nobody charges the file meanwhile.
                let _alone = large.lock.write();
                large.kept.store(kept, Ordering::Relaxed);
                large.cost.load(Ordering::Relaxed)
            })
        };
        if kept {
            self.space.unevictable.fetch_add(cost, Ordering::Relaxed);
        } else {
            self.space.unevictable.fetch_sub(cost, Ordering::Relaxed);
        }
    }

    /// Forgets which blocks were verified: each is hashed again before it is handed out.
    pub fn forget_verified(&self) {
        for shard in &self.shards {
            for entry in shard.small.read().values() {
                entry.verified.store(false, Ordering::Release);
            }
            for large in shard.large.read().values() {
                large.forget_verified();
            }
        }
    }
}
