//! The quota: a hard limit. Space is reserved, others' is evicted, then it is written.
//!
//! What is charged is never less than what the disk gives: whole granules, directories at the most names they ever
//! had, maps and extents of large files. Evicting clears marks first and punches or unlinks then.

use std::cmp::Reverse;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::disk::{Access, Name};
use super::large::{Large, State};
use super::read::{SmallState, is_small};
use super::table::Folders;
use super::write::is_full;
use super::{Store, StoreError, Wait};
use crate::block::{BLOCK_BYTES, Digest, FileRef, block_len};

/// The fewest and the most candidates for eviction that are looked up at once.
const VICTIMS: (usize, usize) = (64, 1 << 16);

/// Reservations between two looks at what other files below `store/` take.
const OTHERS_EVERY: u64 = 256;

/// The counters of the quota.
#[derive(Default)]
pub(super) struct Space {
    /// Charged and reserved.
    pub(super) used: AtomicU64,
    pub(super) unevictable: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) files: AtomicU64,
    /// Charged for what is no data file.
    others: AtomicU64,
    reservations: AtomicU64,
    /// Least recently used last. Whoever evicts holds it.
    victims: Mutex<Vec<Victim>>,
}

/// What may be evicted, unless it was used again since.
struct Victim {
    used: u32,
    id: Digest,
    /// A span of a large file; none for a small one.
    span: Option<u64>,
}

/// Space that is set aside, and given back when this is dropped.
pub(super) struct Reservation<'a> {
    used: &'a AtomicU64,
    bytes: u64,
}

impl Reservation<'_> {
    /// Charges `bytes` of it for good, and more if that is what it took.
    pub(super) fn charge(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.used.fetch_add(more, Ordering::AcqRel);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Store {
    /// Sets `need` bytes aside, evicting others if they do not fit.
    pub(super) fn reserve(&self, need: u64) -> Result<Reservation<'_>, StoreError> {
        self.counted.wait();
        let before = self.space.reservations.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(OTHERS_EVERY) {
            self.count_others();
        }
        if !self.try_reserve(need) {
            let mut victims = self.space.victims.lock();
            while !self.try_reserve(need) {
                if need > self.options.quota || self.evict_one(&mut victims) == 0 {
                    return Err(self.full(need));
                }
            }
        }
        Ok(Reservation {
            used: &self.space.used,
            bytes: need,
        })
    }

    fn try_reserve(&self, need: u64) -> bool {
        let fits = |used: u64| {
            used.checked_add(need)
                .filter(|sum| *sum <= self.options.quota)
        };
        self.space
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
    }

    /// Evicts at least `want` bytes, if there are so many, though the quota does not demand it.
    pub(super) fn make_room(&self, want: u64) {
        let mut victims = self.space.victims.lock();
        let mut freed = 0;
        while freed < want {
            match self.evict_one(&mut victims) {
                0 => return,
                bytes => freed += bytes,
            }
        }
    }

    /// Evicts until the quota holds, after a start with a smaller one, or when other files have grown. Not at the start
    /// itself: what is not to be evicted has not been named then.
    pub(super) fn shrink(&self) {
        // One at a time, so that whoever needs room meanwhile does not wait for all of it.
        while self.space.used.load(Ordering::Acquire) > self.options.quota {
            if self.evict_one(&mut self.space.victims.lock()) == 0 {
                return;
            }
        }
    }

    /// Looks again at what the index, the summary and strangers take.
    pub(super) fn count_others(&self) {
        match self.disk.other_bytes() {
            Ok(now) => {
                let before = self.space.others.swap(now, Ordering::AcqRel);
                self.recharge(before, now);
            }
            Err(error) => self.count_failure(&error, "other files"),
        }
    }

    fn recharge(&self, before: u64, after: u64) {
        if after > before {
            self.space.used.fetch_add(after - before, Ordering::AcqRel);
        } else {
            self.uncharge(before - after);
        }
    }

    pub(super) fn uncharge(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self
            .space
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    pub(super) fn full(&self, need: u64) -> StoreError {
        let usage = self.usage();
        StoreError::Full {
            need,
            quota: usage.quota,
            unevictable: usage.unevictable,
        }
    }

    /// Evicts what was used longest ago; returns the bytes that came free, 0 when nothing can go.
    fn evict_one(&self, victims: &mut Vec<Victim>) -> u64 {
        for fresh in [false, true] {
            if fresh {
                *victims = self.victims();
            }
            while let Some(victim) = victims.pop() {
                let freed = self.evict_victim(&victim);
                if freed > 0 {
                    self.space.evicted.fetch_add(freed, Ordering::Relaxed);
                    return freed;
                }
            }
        }
        0
    }

    /// Returns about an eighth of all that can be evicted, least recently used last.
    fn victims(&self) -> Vec<Victim> {
        let mut times = Vec::new();
        self.each_evictable(&mut |used, _, _| times.push(used));
        if times.is_empty() {
            return Vec::new();
        }
        let count = (times.len() / 8)
            .clamp(VICTIMS.0, VICTIMS.1)
            .min(times.len());
        let (_, newest, _) = times.select_nth_unstable(count - 1);
        let newest = *newest;
        let mut victims = Vec::with_capacity(count);
        self.each_evictable(&mut |used, id, span| {
            if used <= newest && victims.len() < 2 * count {
                victims.push(Victim { used, id, span });
            }
        });
        victims.sort_by_key(|victim| Reverse(victim.used));
        victims
    }

    fn each_evictable(&self, visit: &mut dyn FnMut(u32, Digest, Option<u64>)) {
        for shard in &self.shards {
            let kept = shard.kept.read();
            for (id, entry) in &*shard.small.read() {
                if !kept.contains_key(id) {
                    visit(entry.used.load(Ordering::Relaxed), *id, None);
                }
            }
            for (id, large) in &*shard.large.read() {
                if !kept.contains_key(id) {
                    (0..large.spans())
                        .filter(|span| large.any_present_in(*span))
                        .for_each(|span| visit(large.used(span), *id, Some(span)));
                }
            }
        }
    }

    fn evict_victim(&self, victim: &Victim) -> u64 {
        let shard = self.shard(&victim.id);
        let mut folders = shard.change.lock();
        if shard.is_kept(&victim.id) {
            return 0;
        }
        match victim.span {
            None => {
                let used = |state: &SmallState| state.used == victim.used;
                match self.small_state(&victim.id).filter(used) {
                    Some(_) => self.remove_small(&mut folders, &victim.id),
                    None => 0,
                }
            }
            Some(span) => match self.known_large(&victim.id) {
                Some(large) if large.used(span) == victim.used => {
                    let blocks = large.span(span);
                    self.remove_blocks(&mut folders, &large, blocks, &mut || true)
                }
                _ => 0,
            },
        }
    }

    /// Evicts a file, unless it is kept. Returns the bytes that came free. Blocking.
    pub fn evict(&self, file: &FileRef) -> u64 {
        let found = if is_small(file) {
            self.find_small(&file.id).is_some()
        } else {
            self.find_large(file).is_some()
        };
        let shard = self.shard(&file.id);
        let mut folders = shard.change.lock();
        if !found || shard.is_kept(&file.id) {
            return 0;
        }
        let freed = if is_small(file) {
            self.remove_small(&mut folders, &file.id)
        } else {
            self.known_large(&file.id).map_or(0, |large| {
                let all = 0..large.blocks();
                self.remove_blocks(&mut folders, &large, all, &mut || true)
            })
        };
        self.space.evicted.fetch_add(freed, Ordering::Relaxed);
        freed
    }

    /// Drops a small file that was found damaged, if it is still the one that was looked at. Returns whether.
    pub(super) fn drop_small(&self, id: &Digest, damaged: SmallState) -> bool {
        let mut folders = self.shard(id).change.lock();
        match self.small_state(id).filter(|now| now.is_same(&damaged)) {
            Some(_) => self.remove_small(&mut folders, id) > 0,
            None => false,
        }
    }

    /// Drops a block that was found damaged, if nobody has written or removed it since. Returns whether.
    pub(super) fn drop_block(
        &self,
        large: &Arc<Large>,
        index: u64,
        generation: u32,
        verified: bool,
    ) -> bool {
        let mut folders = self.shard(&large.file.id).change.lock();
        let mut same = || {
            large.is_present(index)
                && large.generation(index) == generation
                && large.is_verified(index) == verified
        };
        self.remove_blocks(&mut folders, large, index..index + 1, &mut same);
        !large.is_present(index)
    }

    /// Removes a small file: the entry with its mark first, then the file. Returns the bytes that came free.
    pub(super) fn remove_small(&self, folders: &mut MutexGuard<'_, Folders>, id: &Digest) -> u64 {
        let shard = self.shard(id);
        let Some(entry) = shard.small.write().remove(id) else {
            return 0;
        };
        self.handles.forget_small(id);
        if let Err(error) = self.disk.remove(Name::Small(*id)) {
            self.count_failure(&error, "remove");
            // It is still there and takes space; but nobody trusts it any more, and others go first.
            entry.verified.store(false, Ordering::Release);
            entry.used.store(self.tick(), Ordering::Relaxed);
            shard.small.write().insert(*id, entry);
            return 0;
        }
        folders.small.remove(1);
        self.space.files.fetch_sub(1, Ordering::Relaxed);
        let cost = self.small_cost(entry.size);
        if shard.is_kept(id) {
            self.space.unevictable.fetch_sub(cost, Ordering::Relaxed);
        }
        self.uncharge(cost);
        cost
    }

    pub(super) fn small_cost(&self, size: u32) -> u64 {
        u64::from(size).next_multiple_of(self.granule)
    }

    pub(super) fn block_cost(&self, size: u64, index: u64) -> u64 {
        u64::from(block_len(size, index)).next_multiple_of(self.granule)
    }

    /// Takes blocks off the disk, unless `still` says that this is no longer wanted: marks first, then bytes. A file
    /// without blocks is removed. Returns the bytes that came free.
    pub(super) fn remove_blocks(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        large: &Arc<Large>,
        blocks: Range<u64>,
        still: &mut dyn FnMut() -> bool,
    ) -> u64 {
        let mut state = large.lock.write();
        if *state == State::Gone || !still() {
            return 0;
        }
        let gone = large.forget(blocks.clone());
        if gone.is_empty() && !large.is_empty() {
            return 0;
        }
        let before = large.cost.load(Ordering::Relaxed);
        let removed = if large.is_empty() {
            self.remove_file(folders, large, &mut state)
        } else {
            self.punch(large, &mut state, blocks)
        };
        if let Err(error) = removed {
            self.count_failure(&error, "evict");
            // They still take space, so they are still there, as strangers; others go first.
            let now = self.tick();
            for index in gone {
                large.set_present(index);
                large.touch(index, now);
            }
            return 0;
        }
        before.saturating_sub(large.cost.load(Ordering::Relaxed))
    }

    pub(super) fn remove_file(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        large: &Arc<Large>,
        state: &mut State,
    ) -> io::Result<()> {
        let id = large.file.id;
        if let Some(name) = state.name(id) {
            self.disk.remove(name)?;
        }
        self.disk.remove(Name::Map(id))?;
        self.forget_file(folders, large, state);
        Ok(())
    }

    /// Takes a large file, which is no longer on the disk, out of the table.
    pub(super) fn forget_file(
        &self,
        folders: &mut MutexGuard<'_, Folders>,
        large: &Arc<Large>,
        state: &mut State,
    ) {
        *state = State::Gone;
        large.forget(0..large.blocks());
        large.handle.store(None);
        folders.large.remove(2);
        self.space.files.fetch_sub(1, Ordering::Relaxed);
        self.set_cost(large, 0);
        self.shard(&large.file.id)
            .large
            .write()
            .remove(&large.file.id);
    }

    fn punch(&self, large: &Arc<Large>, state: &mut State, blocks: Range<u64>) -> io::Result<()> {
        let id = large.file.id;
        let file = self.handle_of(large, *state, Wait::Yes)?;
        if *state == State::Whole {
            // A complete name says that the file is complete, so it goes before the first hole comes.
            match self.write_map(large) {
                // No room for a map must not keep room from being made: without one, blocks are looked for where the
                // file has data, which misses none but those of zeros.
                Err(error) if !is_full(&error) => return Err(error),
                _ => {}
            }
            self.disk.rename(Name::Whole(id), Name::Part(id))?;
            *state = State::Part;
        }
        let end = (blocks.end * BLOCK_BYTES).min(large.file.size);
        // A granule that reaches past the end of the file would otherwise stay.
        let end = end.next_multiple_of(self.granule);
        file.0.punch(blocks.start * BLOCK_BYTES..end)?;
        large.map_changed.store(true, Ordering::Relaxed);
        self.recount(large, &file.0.stat()?);
        Ok(())
    }

    /// Charges a file for what the disk says that it takes; the caller holds its lock alone.
    pub(super) fn recount(&self, large: &Large, stat: &super::Stat) {
        let overhead = Large::overhead(large.file.size, self.granule);
        self.set_cost(large, stat.allocated + overhead);
    }

    pub(super) fn set_cost(&self, large: &Large, cost: u64) {
        let before = large.cost.swap(cost, Ordering::AcqRel);
        self.recharge(before, cost);
        if large.kept.load(Ordering::Relaxed) {
            self.space.unevictable.fetch_add(cost, Ordering::Relaxed);
            self.space.unevictable.fetch_sub(before, Ordering::Relaxed);
        }
    }

    /// Writes the map of a part file.
    pub(super) fn write_map(&self, large: &Large) -> io::Result<()> {
        large.map_changed.store(false, Ordering::Relaxed);
        let written = self
            .disk
            .open(Name::Map(large.file.id), Access::New)
            .and_then(|file| file.write_at(0, &large.map()));
        if written.is_err() {
            large.map_changed.store(true, Ordering::Relaxed);
        }
        written
    }
}
