//! The ways out: verified bytes without hashing, and blocks by hashing.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::disk::{Access, DiskFile};
use super::handles::ONE_READ_BYTES;
use super::large::{Handle, Large};
use super::table::Small;
use super::{ReadOutcome, Store, Verify, Wait};
use crate::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef};
use crate::store::disk::Name;

/// What a look at the entry of a small file tells.
#[derive(Clone, Copy)]
pub(super) struct SmallState {
    pub(super) size: u32,
    pub(super) written: u32,
    pub(super) verified: bool,
    pub(super) used: u32,
}

impl SmallState {
    /// Returns whether it is the same file, with the same mark.
    pub(super) fn is_same(&self, other: &SmallState) -> bool {
        (self.size, self.written, self.verified) == (other.size, other.written, other.verified)
    }
}

impl Store {
    /// Reads bytes of a block that this process has verified, from `offset` within it, until the buffer is full.
    ///
    /// Mark and generation are looked at again after the read: bytes that were evicted meanwhile are thrown away.
    pub fn read_verified(
        &self,
        block: &BlockRef,
        offset: u32,
        buffer: &mut [u8],
        wait: Wait,
    ) -> ReadOutcome {
        if u64::from(offset) + buffer.len() as u64 > u64::from(block.len()) {
            return ReadOutcome::Missing;
        }
        if is_small(&block.file) {
            self.read_small(block, offset, buffer, wait)
        } else {
            self.read_large(block, offset, buffer, wait)
        }
    }

    fn read_small(
        &self,
        block: &BlockRef,
        offset: u32,
        buffer: &mut [u8],
        wait: Wait,
    ) -> ReadOutcome {
        let id = block.file.id;
        let Some(state) = self.small_used(&id) else {
            return self.unknown(&id);
        };
        if u64::from(state.size) != block.file.size {
            return ReadOutcome::Missing;
        }
        if !self.trusts(state.verified) {
            return ReadOutcome::Unverified;
        }
        let read = self.pread_small(&id, state, u64::from(offset), buffer, wait);
        let outcome = read_outcome(read, buffer.len());
        // The bytes have been read before this looks again.
        fence(Ordering::Acquire);
        if !self.is_still(&id, &state) {
            return ReadOutcome::Unverified;
        }
        if outcome == ReadOutcome::Unverified {
            // Shorter than it was, gone, or a failing disk: what was verified is not what is there.
            self.distrust_small(&id);
        }
        outcome
    }

    fn pread_small(
        &self,
        id: &Digest,
        state: SmallState,
        offset: u64,
        buffer: &mut [u8],
        wait: Wait,
    ) -> io::Result<usize> {
        if state.size <= ONE_READ_BYTES {
            return self.disk.read(Name::Small(*id), offset, buffer, wait);
        }
        let file = match self.handles.small(id, state.written) {
            Some(file) => file,
            None => {
                let file = self.disk.open(Name::Small(*id), Access::Existing(wait))?;
                // It is the file of this write only if the entry has not changed since.
                if self.is_still(id, &state) {
                    self.handles
                        .keep_small(*id, state.written, Arc::clone(&file));
                }
                file
            }
        };
        file.read_at(offset, buffer, wait)
    }

    fn read_large(
        &self,
        block: &BlockRef,
        offset: u32,
        buffer: &mut [u8],
        wait: Wait,
    ) -> ReadOutcome {
        let Some(large) = self.known_large(&block.file.id) else {
            return self.unknown(&block.file.id);
        };
        let index = block.index;
        let generation = large.generation(index);
        if !large.is_present(index) || large.file.size != block.file.size {
            return ReadOutcome::Missing;
        }
        if !self.trusts(large.is_verified(index)) {
            return ReadOutcome::Unverified;
        }
        let file = match self.handle(&large, wait) {
            Ok(file) => file,
            Err(error) => return read_outcome(Err(error), 0),
        };
        let at = index * BLOCK_BYTES + u64::from(offset);
        let outcome = read_outcome(file.0.read_at(at, buffer, wait), buffer.len());
        // The bytes have been read before this looks again.
        fence(Ordering::Acquire);
        if !large.is_verified(index) || large.generation(index) != generation {
            return ReadOutcome::Unverified;
        }
        match outcome {
            ReadOutcome::Done => large.touch(index, self.now()),
            ReadOutcome::Unverified => large.distrust(index),
            ReadOutcome::WouldBlock | ReadOutcome::Missing => {}
        }
        outcome
    }

    /// Returns whether this process has verified the block and still trusts it.
    pub fn verified(&self, block: &BlockRef) -> bool {
        if is_small(&block.file) {
            self.small_state(&block.file.id).is_some_and(|state| {
                u64::from(state.size) == block.file.size && self.trusts(state.verified)
            })
        } else {
            self.known_large(&block.file.id).is_some_and(|large| {
                large.file == block.file && self.trusts(large.is_verified(block.index))
            })
        }
    }

    /// Returns whether every block is hashed at each use, so that none is ever handed out by its mark.
    pub fn verifies_always(&self) -> bool {
        self.options.verify == Verify::Always
    }

    /// Reads and hashes a block; one that is not what it should be is dropped. Blocking.
    pub fn load(&self, block: &BlockRef) -> Option<Block> {
        if block.is_empty() {
            return None;
        }
        if is_small(&block.file) {
            self.load_small(block)
        } else {
            self.load_large(block)
        }
    }

    /// Reads and hashes one block of what is there; a damaged one is dropped. Returns whether it was right. Blocking.
    pub fn check(&self, block: &BlockRef) -> bool {
        self.load(block).is_some()
    }

    fn load_small(&self, block: &BlockRef) -> Option<Block> {
        let id = block.file.id;
        let state = self.find_small(&id)?;
        let bytes = match self.disk.read_vec(Name::Small(id), block.len() as usize) {
            Ok(bytes) => bytes,
            Err(error) if is_passing(&error) => {
                self.count_failure(&error, "read");
                return None;
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.count_failure(&error, "read");
                }
                Vec::new()
            }
        };
        match Block::verify(block.digest, block.len(), bytes.into()) {
            Ok(verified) => {
                let now = self.tick();
                let small = self.shard(&id).small.read();
                // Evicted meanwhile: the bytes are right, but the mark would be of what is gone.
                if let Some(entry) = small
                    .get(&id)
                    .filter(|entry| entry.written == state.written)
                {
                    entry.verified.store(true, Ordering::Release);
                    entry.used.store(now, Ordering::Relaxed);
                }
                Some(verified)
            }
            Err(wrong) => {
                if block.digest == id && self.drop_small(&id, state) {
                    self.tell_damage(block, &wrong);
                }
                None
            }
        }
    }

    fn load_large(&self, block: &BlockRef) -> Option<Block> {
        let large = self.find_large(&block.file)?;
        let index = block.index;
        let generation = large.generation(index);
        let before = large.is_verified(index);
        if !large.is_present(index) {
            return None;
        }
        let read = self
            .handle(&large, Wait::Yes)
            .and_then(|file| file.0.read_vec(index * BLOCK_BYTES, block.len() as usize));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.count_failure(&error, "read");
                if is_passing(&error) {
                    return None;
                }
                Vec::new()
            }
        };
        match Block::verify(block.digest, block.len(), bytes.into()) {
            Ok(verified) => {
                // Nobody takes blocks away while this is held; if somebody did before, the mark would be of a hole.
                let _shared = large.lock.read();
                if large.generation(index) == generation && large.is_present(index) {
                    large.set_verified(index);
                    large.touch(index, self.tick());
                }
                Some(verified)
            }
            Err(wrong) => {
                if self.drop_block(&large, index, generation, before) {
                    self.tell_damage(block, &wrong);
                }
                None
            }
        }
    }

    fn tell_damage(&self, block: &BlockRef, wrong: &crate::block::WrongBytes) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(file = %block.file.id, index = block.index, %wrong, "damage in the store, dropped");
    }

    /// Returns whether the block seems to be there, without a look at its bytes.
    pub fn has(&self, block: &BlockRef) -> bool {
        if block.is_empty() {
            return false;
        }
        if is_small(&block.file) {
            self.find_small(&block.file.id)
                .is_some_and(|state| u64::from(state.size) == block.file.size)
        } else {
            self.find_large(&block.file)
                .is_some_and(|large| large.is_present(block.index))
        }
    }

    /// Returns a file of one block that has this digest, if one seems to be there.
    pub fn find(&self, digest: &Digest) -> Option<BlockRef> {
        let state = self.find_small(digest)?;
        let file = FileRef {
            id: *digest,
            size: u64::from(state.size),
        };
        Some(BlockRef {
            file,
            index: 0,
            digest: *digest,
        })
    }

    /// Returns how many bytes of a file seem to be there.
    pub fn cached(&self, file: &FileRef) -> u64 {
        if is_small(file) {
            let state = self.find_small(&file.id);
            let here = state.is_some_and(|state| u64::from(state.size) == file.size);
            if here { file.size } else { 0 }
        } else {
            self.find_large(file)
                .map_or(0, |large| large.present_bytes())
        }
    }

    /// Returns whether all of a file seems to be there.
    pub fn complete(&self, file: &FileRef) -> bool {
        file.size == 0 || self.cached(file) == file.size
    }

    /// Returns which blocks of a file seem to be there, as spans of their indices.
    pub fn present(&self, file: &FileRef) -> Vec<Range<u64>> {
        let indices: Vec<u64> = if is_small(file) {
            (self.cached(file) > 0).then_some(0).into_iter().collect()
        } else {
            self.find_large(file).map_or(Vec::new(), |large| {
                large.present_in(0..large.blocks()).collect()
            })
        };
        let mut spans: Vec<Range<u64>> = Vec::new();
        for index in indices {
            match spans.last_mut() {
                Some(last) if last.end == index => last.end += 1,
                _ => spans.push(index..index + 1),
            }
        }
        spans
    }

    fn trusts(&self, verified: bool) -> bool {
        verified && self.options.verify == Verify::FirstTouch
    }

    /// Says what it means that a file is not in the table.
    fn unknown(&self, id: &Digest) -> ReadOutcome {
        if self.shard(id).scanned.load(Ordering::Acquire) {
            ReadOutcome::Missing
        } else {
            ReadOutcome::Unverified
        }
    }

    pub(super) fn small_state(&self, id: &Digest) -> Option<SmallState> {
        self.shard(id).small.read().get(id).map(SmallState::of)
    }

    /// As [`Store::small_state`], and takes note that the file is used.
    fn small_used(&self, id: &Digest) -> Option<SmallState> {
        let small = self.shard(id).small.read();
        let entry = small.get(id)?;
        let now = self.now();
        if entry.used.load(Ordering::Relaxed) != now {
            entry.used.store(now, Ordering::Relaxed);
        }
        Some(SmallState::of(entry))
    }

    fn is_still(&self, id: &Digest, state: &SmallState) -> bool {
        self.small_state(id).is_some_and(|now| now.is_same(state))
    }

    fn distrust_small(&self, id: &Digest) {
        if let Some(entry) = self.shard(id).small.read().get(id) {
            entry.verified.store(false, Ordering::Release);
        }
    }

    /// Returns the entry of a large file that the table knows.
    pub(super) fn known_large(&self, id: &Digest) -> Option<Arc<Large>> {
        self.shard(id).large.read().get(id).cloned()
    }

    /// Returns the open file, opening it if need be.
    pub(super) fn handle(&self, large: &Arc<Large>, wait: Wait) -> io::Result<Arc<Handle>> {
        if let Some(file) = large.handle.load_full() {
            if !large.handle_used.load(Ordering::Relaxed) {
                large.handle_used.store(true, Ordering::Relaxed);
            }
            return Ok(file);
        }
        // Shared, so that the file does not get another name, or another file its name, meanwhile.
        let state = match wait {
            Wait::Yes => large.lock.read(),
            Wait::No => large.lock.try_read().ok_or(io::ErrorKind::WouldBlock)?,
        };
        self.handle_of(large, *state, wait)
    }

    /// As [`Store::handle`], for who holds the lock.
    pub(super) fn handle_of(
        &self,
        large: &Arc<Large>,
        state: super::large::State,
        wait: Wait,
    ) -> io::Result<Arc<Handle>> {
        let name = state.name(large.file.id).ok_or(io::ErrorKind::NotFound)?;
        let opened = {
            let _one = large.opening.lock();
            if let Some(file) = large.handle.load_full() {
                return Ok(file);
            }
            let file: Arc<dyn DiskFile> = self.disk.open(name, Access::Existing(wait))?;
            let opened = Arc::new(Handle(file));
            large.handle.store(Some(Arc::clone(&opened)));
            opened
        };
        self.handles.opened(large);
        Ok(opened)
    }
}

impl SmallState {
    fn of(entry: &Small) -> SmallState {
        SmallState {
            size: entry.size,
            written: entry.written,
            verified: entry.verified.load(Ordering::Acquire),
            used: entry.used.load(Ordering::Relaxed),
        }
    }
}

/// Returns whether the file is one block, in a file of its own kind.
pub(super) fn is_small(file: &FileRef) -> bool {
    file.size <= BLOCK_BYTES
}

/// Returns whether an error says nothing of the file itself: too many open files, no memory.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// Says how a read ended; `Unverified` is what has to be loaded again, and dropped when that fails too.
fn read_outcome(read: io::Result<usize>, wanted: usize) -> ReadOutcome {
    match read {
        Ok(count) if count == wanted => ReadOutcome::Done,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_passing(&error) => {
            ReadOutcome::WouldBlock
        }
        Ok(_) | Err(_) => ReadOutcome::Unverified,
    }
}
