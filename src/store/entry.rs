//! What is known of one data file: which blocks are there, and which of them this process has hashed.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::disk::DiskFile;
use crate::block::{BLOCK_BYTES, FileRef, block_count};

/// Blocks of one span: what is evicted at a time, and one word of each bitmap.
pub(super) const SPAN_BLOCKS: u64 = 64;

/// A data file. The marks are private to the store: nothing else can set them.
pub(super) struct Entry {
    pub(super) file: FileRef,
    /// A bit for each block whose bytes are, or were said to be, on the disk.
    present: Box<[AtomicU64]>,
    /// A bit for each block that hashed to its digest in this run.
    verified: Box<[AtomicU64]>,
    /// When each span was last used, by the store's clock.
    used: Box<[AtomicU64]>,
    /// Grows with each eviction, so that a read can tell that one came in between.
    generation: AtomicU32,
    /// How many reasons there are to keep it.
    pub(super) protected: AtomicU32,
    /// Used since the last flush.
    pub(super) fresh: AtomicBool,
    /// Bytes it takes on the disk.
    pub(super) cost: AtomicU64,
    /// The open file, while it is among the most recently opened.
    pub(super) handle: RwLock<Option<Arc<dyn DiskFile>>>,
    /// Held while the file on disk changes.
    pub(super) writing: Mutex<Writing>,
}

/// How the file lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// No file.
    Absent,
    /// `.part` and `.map`.
    Partial,
    /// All of it, under its own name.
    Complete,
}

impl Entry {
    pub(super) fn new(file: FileRef) -> Entry {
        let words = block_count(file.size).div_ceil(SPAN_BLOCKS);
        let zeros = || (0..words).map(|_| AtomicU64::new(0)).collect();
        Entry {
            file,
            present: zeros(),
            verified: zeros(),
            used: zeros(),
            generation: AtomicU32::new(0),
            protected: AtomicU32::new(0),
            fresh: AtomicBool::new(false),
            cost: AtomicU64::new(0),
            handle: RwLock::new(None),
            writing: Mutex::new(Writing::Absent),
        }
    }

    /// Returns whether it is one block in a file of its own.
    pub(super) fn is_small(&self) -> bool {
        self.file.size <= BLOCK_BYTES
    }

    pub(super) fn blocks(&self) -> u64 {
        block_count(self.file.size)
    }

    pub(super) fn is_present(&self, index: u64) -> bool {
        bit(&self.present, index)
    }

    pub(super) fn is_verified(&self, index: u64) -> bool {
        bit(&self.verified, index)
    }

    pub(super) fn is_complete(&self) -> bool {
        (0..self.blocks())
            .step_by(SPAN_BLOCKS as usize)
            .all(|start| {
                let len = SPAN_BLOCKS.min(self.blocks() - start);
                self.present_in(start / SPAN_BLOCKS).count_ones() as u64 == len
            })
    }

    pub(super) fn present_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.blocks()).filter(|index| self.is_present(*index))
    }

    /// Returns the word of one span.
    pub(super) fn present_in(&self, span: u64) -> u64 {
        word(&self.present, span).map_or(0, |word| word.load(Ordering::Acquire))
    }

    pub(super) fn set_present(&self, index: u64) {
        set(&self.present, index);
    }

    pub(super) fn set_verified(&self, index: u64) {
        set(&self.verified, index);
    }

    /// Takes the mark away first, so that no read that begins later trusts what is about to go.
    pub(super) fn forget(&self, index: u64) {
        clear(&self.verified, index);
        self.generation.fetch_add(1, Ordering::AcqRel);
        clear(&self.present, index);
    }

    pub(super) fn forget_verified(&self) {
        self.verified
            .iter()
            .for_each(|word| word.store(0, Ordering::Release));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn touch(&self, index: u64, now: u64) {
        if let Some(used) = word(&self.used, index / SPAN_BLOCKS) {
            used.store(now, Ordering::Relaxed);
        }
        self.fresh.store(true, Ordering::Relaxed);
    }

    pub(super) fn used(&self, span: u64) -> u64 {
        word(&self.used, span).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    pub(super) fn is_protected(&self) -> bool {
        self.protected.load(Ordering::Acquire) > 0
    }

    /// Returns the bitmap as the bytes of a `.map` file: block i is bit i % 8 of byte i / 8.
    pub(super) fn map(&self) -> Vec<u8> {
        let len = usize::try_from(self.blocks().div_ceil(8)).unwrap_or(usize::MAX);
        let mut bytes: Vec<u8> = self
            .present
            .iter()
            .flat_map(|word| word.load(Ordering::Acquire).to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }

    /// Takes over a `.map` file; bits past the last block are ignored.
    pub(super) fn read_map(&self, bytes: &[u8]) {
        for index in 0..self.blocks() {
            let byte = usize::try_from(index / 8).ok().and_then(|at| bytes.get(at));
            if byte.is_some_and(|byte| byte >> (index % 8) & 1 == 1) {
                self.set_present(index);
            }
        }
    }

    pub(super) fn fill(&self) {
        (0..self.blocks()).for_each(|index| self.set_present(index));
    }
}

fn word(bits: &[AtomicU64], span: u64) -> Option<&AtomicU64> {
    bits.get(usize::try_from(span).ok()?)
}

fn bit(bits: &[AtomicU64], index: u64) -> bool {
    word(bits, index / SPAN_BLOCKS)
        .is_some_and(|word| word.load(Ordering::Acquire) >> (index % SPAN_BLOCKS) & 1 == 1)
}

fn set(bits: &[AtomicU64], index: u64) {
    if let Some(word) = word(bits, index / SPAN_BLOCKS) {
        word.fetch_or(1 << (index % SPAN_BLOCKS), Ordering::AcqRel);
    }
}

fn clear(bits: &[AtomicU64], index: u64) {
    if let Some(word) = word(bits, index / SPAN_BLOCKS) {
        word.fetch_and(!(1 << (index % SPAN_BLOCKS)), Ordering::AcqRel);
    }
}
