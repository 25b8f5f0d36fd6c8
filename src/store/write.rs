//! The ways in: a verified block to its place, and making it all durable.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::disk::{Access, Name};
use super::large::{Handle, Large, State};
use super::read::is_small;
use super::space::Reservation;
use super::table::Small;
use super::{Store, StoreError, Wait};
use crate::block::{BLOCK_BYTES, Block, BlockRef, FileRef};

/// Tries at writing into a file that is removed again and again meanwhile.
const TRIES_MAX: usize = 8;

impl Store {
    /// Keeps a block. What does not fit its place is ignored. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]; the block can be used all the same.
    pub fn put(&self, place: &BlockRef, block: &Block) -> Result<(), StoreError> {
        let fits = !place.is_empty()
            && place.digest == block.digest()
            && u64::from(place.len()) == block.bytes().len() as u64
            && (!is_small(&place.file) || place.digest == place.file.id);
        if !fits {
            return Ok(());
        }
        let put = || {
            if is_small(&place.file) {
                self.put_small(place, block)
            } else {
                self.put_large(place, block)
            }
        };
        let first = match put() {
            Err(StoreError::Io { source, .. }) if is_full(&source) => {
                // The disk is fuller than the quota knows: what is here makes room once, else the block passes through.
                self.make_room(4 * u64::from(place.len()));
                put()
            }
            first => first,
        };
        first.map_err(|error| self.judge(error, u64::from(place.len())))
    }

    /// Tells a full disk from a failing one.
    pub(super) fn judge(&self, error: StoreError, need: u64) -> StoreError {
        match error {
            StoreError::Io { source, .. } if is_full(&source) => {
                if !self.full_said.swap(true, Ordering::Relaxed) {
                    tracing::warn!("the disk of the store is full: blocks pass through unstored");
                }
                self.full(need)
            }
            StoreError::Io { path, source } => {
                self.count_failure(&source, "write");
                StoreError::Io { path, source }
            }
            other => other,
        }
    }

    fn put_small(&self, place: &BlockRef, block: &Block) -> Result<(), StoreError> {
        let id = place.file.id;
        if self.verified(place) {
            self.small_touch(place);
            return Ok(());
        }
        // A stranger may be just what it should be: then nothing is written.
        if self.has(place) && self.load(place).is_some() {
            return Ok(());
        }
        let size = place.len();
        let cost = self.small_cost(size);
        // One granule more, in case the directory grows.
        let mut reservation = self.reserve(cost + self.granule)?;
        let shard = self.shard(&id);
        let mut folders = shard.change.lock();
        if self.verified(place) {
            return Ok(());
        }
        // A stranger of that name goes first, entry and all, so that nobody marks it while it is written over.
        self.remove_small(&mut folders, &id);
        if self.small_state(&id).is_some() {
            let error = io::Error::other("a file that is there cannot be replaced");
            return Err(failed(&place.file, error));
        }
        let name = Name::Small(id);
        let written = self
            .disk
            .open(name, Access::New)
            .and_then(|file| file.write_at(0, block.bytes()));
        if let Err(source) = written {
            if let Err(error) = self.disk.remove(name) {
                self.count_failure(&error, "remove");
            }
            return Err(failed(&place.file, source));
        }
        let entry = Small {
            size,
            used: AtomicU32::new(self.tick()),
            written: self.next_write(),
            verified: AtomicBool::new(true),
            proven: true,
        };
        reservation.charge(cost + folders.small.add(1, self.granule));
        self.space.files.fetch_add(1, Ordering::Relaxed);
        if shard.is_kept(&id) {
            self.space.unevictable.fetch_add(cost, Ordering::Relaxed);
        }
        shard.small.write().insert(id, entry);
        Ok(())
    }

    fn small_touch(&self, place: &BlockRef) {
        if let Some(entry) = self.shard(&place.file.id).small.read().get(&place.file.id) {
            entry.used.store(self.now(), Ordering::Relaxed);
        }
    }

    fn put_large(&self, place: &BlockRef, block: &Block) -> Result<(), StoreError> {
        let (file, index) = (&place.file, place.index);
        // A stranger may be just what it should be: then nothing is written.
        if self.has(place) && !self.verified(place) && self.load(place).is_some() {
            return Ok(());
        }
        for _ in 0..TRIES_MAX {
            let known = self.known_large(&file.id);
            if let Some(large) = known.as_ref().filter(|large| large.is_verified(index)) {
                large.touch(index, self.now());
                return Ok(());
            }
            let cost = self.block_cost(file.size, index);
            let beside = match known {
                Some(_) => 0,
                None => Large::overhead(file.size, self.granule) + self.granule,
            };
            let mut reservation = self.reserve(cost + beside)?;
            let large = self
                .large_to_write(file, &mut reservation)
                .map_err(|source| failed(file, source))?;
            let state = large.lock.read();
            if *state == State::Gone || large.is_verified(index) {
                continue;
            }
            let stranger = large.is_present(index);
            let written = self
                .handle_of(&large, *state, Wait::Yes)
                .and_then(|handle| handle.0.write_at(index * BLOCK_BYTES, block.bytes()));
            if let Err(source) = written {
                drop(state);
                self.clean_up(&large, index);
                return Err(failed(file, source));
            }
            let new = large.set_present(index);
            // A stranger that was written over may have been a hole; flush and eviction look at the disk again.
            if new || stranger {
                self.charge_large(&large, cost, &mut reservation);
            }
            large.set_written(index, self.next_write());
            large.set_verified(index);
            large.touch(index, self.tick());
            large.map_changed.store(true, Ordering::Relaxed);
            drop(state);
            if new && large.is_complete() {
                self.complete_file(&large);
            }
            return Ok(());
        }
        Err(self.full(u64::from(place.len())))
    }

    fn charge_large(&self, large: &Large, bytes: u64, reservation: &mut Reservation<'_>) {
        reservation.charge(bytes);
        large.cost.fetch_add(bytes, Ordering::AcqRel);
        if large.kept.load(Ordering::Relaxed) {
            self.space.unevictable.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Returns the entry of a large file, beginning the file if there is none.
    fn large_to_write(
        &self,
        file: &FileRef,
        reservation: &mut Reservation<'_>,
    ) -> io::Result<Arc<Large>> {
        let shard = self.shard(&file.id);
        let mut folders = shard.change.lock();
        if let Some(large) = self.known_large(&file.id) {
            if large.file.size == file.size {
                return Ok(large);
            }
            // Cut short, or grown, by somebody else: nothing of it can be used.
            self.remove_blocks(&mut folders, &large, 0..large.blocks(), &mut || true);
        }
        let data = self.disk.open(Name::Part(file.id), Access::New)?;
        data.set_len(file.size)?;
        let large = Arc::new(Large::new(*file, State::Part, self.span_blocks));
        large.kept.store(shard.is_kept(&file.id), Ordering::Relaxed);
        large.handle.store(Some(Arc::new(Handle(data))));
        let overhead = Large::overhead(file.size, self.granule);
        self.charge_large(&large, overhead, reservation);
        reservation.charge(folders.large.add(2, self.granule));
        self.space.files.fetch_add(1, Ordering::Relaxed);
        shard.large.write().insert(file.id, Arc::clone(&large));
        drop(folders);
        self.handles.opened(&large);
        Ok(large)
    }

    /// Gives back what a failed write has taken.
    fn clean_up(&self, large: &Arc<Large>, index: u64) {
        let mut folders = self.shard(&large.file.id).change.lock();
        let mut state = large.lock.write();
        if *state == State::Gone || large.is_present(index) {
            return;
        }
        let start = index * BLOCK_BYTES;
        let end = start + self.block_cost(large.file.size, index);
        let cleaned = if large.is_empty() {
            self.remove_file(&mut folders, large, &mut state)
        } else {
            self.handle_of(large, *state, Wait::Yes)
                .and_then(|handle| handle.0.punch(start..end))
        };
        if let Err(error) = cleaned {
            self.count_failure(&error, "punch");
            let stat = self
                .handle_of(large, *state, Wait::Yes)
                .and_then(|handle| handle.0.stat());
            if let Ok(stat) = stat {
                self.recount(large, &stat);
            }
        }
    }

    /// Gives a file of which nothing is missing its own name.
    fn complete_file(&self, large: &Arc<Large>) {
        let mut state = large.lock.write();
        if *state != State::Part || !large.is_complete() {
            return;
        }
        let id = large.file.id;
        match self.disk.rename(Name::Part(id), Name::Whole(id)) {
            Ok(()) => {
                *state = State::Whole;
                large.map_changed.store(false, Ordering::Relaxed);
                if let Err(error) = self.disk.remove(Name::Map(id)) {
                    self.count_failure(&error, "remove");
                }
            }
            // It stays a part file with a full map, which is as good.
            Err(error) => self.count_failure(&error, "rename"),
        }
    }

    /// Returns a number that no write had before; 0 is what earlier runs wrote.
    pub(super) fn next_write(&self) -> u32 {
        self.writes.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Makes everything durable. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Io`]: what was written since the last time may not be what the disk holds, so it is dropped.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.counted.wait();
        self.write_maps();
        let before = self.writes.load(Ordering::Acquire);
        match self.disk.sync() {
            Ok(()) => {
                self.durable.fetch_max(before, Ordering::AcqRel);
                Ok(())
            }
            Err(source) => {
                self.count_failure(&source, "sync");
                tracing::warn!(error = %source, "the disk lost writes; what was stored last is dropped");
                self.drop_unsynced();
                Err(StoreError::Io {
                    path: "store".into(),
                    source,
                })
            }
        }
    }

    /// Drops what was written since the last sync: the kernel may still show it and yet never bring it to the disk.
    fn drop_unsynced(&self) {
        let durable = self.durable.load(Ordering::Acquire);
        for shard in &self.shards {
            let mut folders = shard.change.lock();
            let small: Vec<_> = (shard.small.read().iter())
                .filter(|(_, entry)| entry.written > durable)
                .map(|(id, _)| *id)
                .collect();
            for id in small {
                self.remove_small(&mut folders, &id);
            }
            let large: Vec<_> = shard.large.read().values().cloned().collect();
            for large in large {
                for span in (0..large.spans()).filter(|span| large.written(*span) > durable) {
                    self.remove_blocks(&mut folders, &large, large.span(span), &mut || true);
                }
            }
        }
    }

    /// Writes down the maps that have changed.
    pub(super) fn write_maps(&self) {
        for shard in &self.shards {
            let large: Vec<_> = (shard.large.read().values())
                .filter(|large| large.map_changed.load(Ordering::Relaxed))
                .cloned()
                .collect();
            for large in large {
                // Alone, so that the file is not renamed or removed, and the charge is what the disk says.
                let state = large.lock.write();
                if *state != State::Part {
                    continue;
                }
                if let Err(error) = self.write_map(&large) {
                    self.count_failure(&error, "map");
                }
                let handle = self.handle_of(&large, *state, Wait::Yes);
                if let Ok(stat) = handle.and_then(|handle| handle.0.stat()) {
                    self.recount(&large, &stat);
                }
            }
        }
    }
}

pub(super) fn failed(file: &FileRef, source: io::Error) -> StoreError {
    let kind = if is_small(file) { 'r' } else { 'p' };
    StoreError::Io {
        path: format!("{kind}/{}", file.id),
        source,
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
