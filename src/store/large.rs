//! What is known of one file of several blocks: which of them are there, and which this process has hashed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, RwLock};

use super::disk::{DiskFile, Name};
use crate::block::{BLOCK_BYTES, Digest, FileRef, block_count, block_len};

/// The start of a `.map` file; the digit is its format.
const MAP_MAGIC: &[u8; 8] = b"manifsm1";

/// A large file. The marks are private to the store: nothing else can set them.
///
/// Who writes a block, or opens the file, holds `lock` shared; who takes blocks away, or gives the file another name,
/// holds it alone. Who reads holds nothing, and looks at mark and generation again afterwards.
pub(super) struct Large {
    pub(super) file: FileRef,
    /// A bit for each block whose bytes are, or were said to be, on the disk.
    present: Box<[AtomicU64]>,
    /// A bit for each block that hashed to its digest in this run.
    verified: Box<[AtomicU64]>,
    spans: Box<[Span]>,
    span_blocks: u64,
    present_count: AtomicU64,
    pub(super) lock: RwLock<State>,
    /// Somebody protects it.
    pub(super) kept: AtomicBool,
    /// Bytes charged for it, what it takes beside its blocks included.
    pub(super) cost: AtomicU64,
    /// The map on the disk is not what is in memory.
    pub(super) map_changed: AtomicBool,
    /// The open file, while it is among those kept open.
    pub(super) handle: ArcSwapOption<Handle>,
    /// Used since the handles were last gone through.
    pub(super) handle_used: AtomicBool,
    pub(super) opening: Mutex<()>,
}

/// An open file, sized, as `ArcSwap` needs it.
pub(super) struct Handle(pub(super) Arc<dyn DiskFile>);

/// What is evicted at a time.
struct Span {
    /// When it was last used, by the store's clock.
    used: AtomicU32,
    /// Grows with each removal in it, so that a read can tell that one came in between.
    generation: AtomicU32,
    /// The store's count of writes when it was last written to.
    written: AtomicU32,
}

/// How the file lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// `.part` and, sooner or later, `.map`.
    Part,
    /// All of it, under its own name.
    Whole,
    /// Removed, and no longer in the table: whoever still holds it has to look again.
    Gone,
}

impl Large {
    pub(super) fn new(file: FileRef, state: State, span_blocks: u64) -> Large {
        let blocks = block_count(file.size);
        let zeros = || {
            (0..blocks.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect()
        };
        let span = |_| Span {
            used: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            written: AtomicU32::new(0),
        };
        Large {
            file,
            present: zeros(),
            verified: zeros(),
            spans: (0..blocks.div_ceil(span_blocks)).map(span).collect(),
            span_blocks,
            present_count: AtomicU64::new(0),
            lock: RwLock::new(state),
            kept: AtomicBool::new(false),
            cost: AtomicU64::new(0),
            map_changed: AtomicBool::new(false),
            handle: ArcSwapOption::empty(),
            handle_used: AtomicBool::new(false),
            opening: Mutex::new(()),
        }
    }

    /// Returns what a file takes beside its blocks: its map, and the extents that say where the blocks lie (at most 32
    /// bytes for a block in half-full tree nodes).
    pub(super) fn overhead(size: u64, granule: u64) -> u64 {
        let blocks = block_count(size);
        let map = (blocks.div_ceil(8) + 16).next_multiple_of(granule);
        map + (blocks * 32).next_multiple_of(granule)
    }

    pub(super) fn blocks(&self) -> u64 {
        block_count(self.file.size)
    }

    pub(super) fn spans(&self) -> u64 {
        self.spans.len() as u64
    }

    /// Returns the blocks of a span.
    pub(super) fn span(&self, span: u64) -> Range<u64> {
        let start = (span * self.span_blocks).min(self.blocks());
        start..(start + self.span_blocks).min(self.blocks())
    }

    pub(super) fn is_present(&self, index: u64) -> bool {
        bit(&self.present, index)
    }

    pub(super) fn is_verified(&self, index: u64) -> bool {
        bit(&self.verified, index)
    }

    pub(super) fn is_complete(&self) -> bool {
        self.present_count.load(Ordering::Acquire) == self.blocks()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.present_count.load(Ordering::Acquire) == 0
    }

    pub(super) fn present_in(&self, blocks: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        blocks.filter(|index| self.is_present(*index))
    }

    pub(super) fn any_present_in(&self, span: u64) -> bool {
        self.present_in(self.span(span)).next().is_some()
    }

    /// Returns the bytes of the blocks that are there.
    pub(super) fn present_bytes(&self) -> u64 {
        if self.is_complete() {
            return self.file.size;
        }
        self.present_in(0..self.blocks())
            .map(|index| u64::from(block_len(self.file.size, index)))
            .sum()
    }

    /// Says that a block is there; returns whether that is news.
    pub(super) fn set_present(&self, index: u64) -> bool {
        let new = set(&self.present, index);
        if new {
            self.present_count.fetch_add(1, Ordering::AcqRel);
        }
        new
    }

    pub(super) fn set_verified(&self, index: u64) {
        set(&self.verified, index);
    }

    /// Forgets blocks, marks first, so that no read that begins later trusts what is about to go. Returns those that
    /// were there.
    pub(super) fn forget(&self, blocks: Range<u64>) -> Vec<u64> {
        for index in blocks.clone() {
            clear(&self.verified, index);
        }
        if let Some(last) = blocks.end.checked_sub(1).filter(|_| !blocks.is_empty()) {
            for span in blocks.start / self.span_blocks..=last / self.span_blocks {
                if let Some(span) = self.span_at(span) {
                    span.generation.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        let gone: Vec<u64> = blocks
            .filter(|index| clear(&self.present, *index))
            .collect();
        self.present_count
            .fetch_sub(gone.len() as u64, Ordering::AcqRel);
        gone
    }

    /// Takes all marks away; the blocks stay.
    pub(super) fn forget_verified(&self) {
        self.verified
            .iter()
            .for_each(|word| word.store(0, Ordering::Release));
    }

    /// Takes one mark away; the block stays.
    pub(super) fn distrust(&self, index: u64) {
        clear(&self.verified, index);
    }

    pub(super) fn generation(&self, index: u64) -> u32 {
        self.span_of(index)
            .map_or(0, |span| span.generation.load(Ordering::Acquire))
    }

    pub(super) fn touch(&self, index: u64, now: u32) {
        if let Some(span) = self.span_of(index)
            && span.used.load(Ordering::Relaxed) != now
        {
            span.used.store(now, Ordering::Relaxed);
        }
    }

    pub(super) fn set_used(&self, span: u64, when: u32) {
        if let Some(span) = self.span_at(span) {
            span.used.store(when, Ordering::Relaxed);
        }
    }

    pub(super) fn used(&self, span: u64) -> u32 {
        self.span_at(span)
            .map_or(0, |span| span.used.load(Ordering::Relaxed))
    }

    pub(super) fn set_written(&self, index: u64, count: u32) {
        if let Some(span) = self.span_of(index) {
            span.written.fetch_max(count, Ordering::AcqRel);
        }
    }

    pub(super) fn written(&self, span: u64) -> u32 {
        self.span_at(span)
            .map_or(0, |span| span.written.load(Ordering::Acquire))
    }

    fn span_at(&self, span: u64) -> Option<&Span> {
        self.spans.get(usize::try_from(span).ok()?)
    }

    fn span_of(&self, index: u64) -> Option<&Span> {
        self.span_at(index / self.span_blocks)
    }

    /// Returns what a `.map` file holds: magic, size, and for block i bit i % 8 of byte i / 8.
    pub(super) fn map(&self) -> Vec<u8> {
        let mut bytes = MAP_MAGIC.to_vec();
        bytes.extend(self.file.size.to_le_bytes());
        for word in &self.present {
            bytes.extend(word.load(Ordering::Acquire).to_le_bytes());
        }
        bytes.truncate(Large::map_len(self.file.size));
        bytes
    }

    pub(super) fn map_len(size: u64) -> usize {
        let len = 16 + block_count(size).div_ceil(8);
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    /// Takes over a `.map` file; one that does not fit the file says nothing.
    pub(super) fn read_map(&self, bytes: &[u8]) {
        let fits = bytes.len() == Large::map_len(self.file.size)
            && bytes.starts_with(MAP_MAGIC)
            && bytes[8..16] == self.file.size.to_le_bytes();
        if !fits {
            return;
        }
        for (byte, first) in bytes[16..].iter().zip((0..).step_by(8)) {
            for index in first..self.blocks().min(first + 8) {
                if byte >> (index - first) & 1 == 1 {
                    self.set_present(index);
                }
            }
        }
    }

    /// Says that each block which has data in `span`, bytes of the file, is there.
    pub(super) fn set_present_bytes(&self, span: Range<u64>) {
        for index in span.start / BLOCK_BYTES..span.end.div_ceil(BLOCK_BYTES).min(self.blocks()) {
            self.set_present(index);
        }
    }
}

impl State {
    /// Returns the file's name; none when there is no file.
    pub(super) fn name(self, id: Digest) -> Option<Name> {
        match self {
            State::Part => Some(Name::Part(id)),
            State::Whole => Some(Name::Whole(id)),
            State::Gone => None,
        }
    }
}

fn word(bits: &[AtomicU64], index: u64) -> Option<&AtomicU64> {
    bits.get(usize::try_from(index / 64).ok()?)
}

fn bit(bits: &[AtomicU64], index: u64) -> bool {
    word(bits, index).is_some_and(|word| word.load(Ordering::Acquire) >> (index % 64) & 1 == 1)
}

/// Sets a bit; returns whether it was not set.
fn set(bits: &[AtomicU64], index: u64) -> bool {
    let mask = 1 << (index % 64);
    word(bits, index).is_some_and(|word| word.fetch_or(mask, Ordering::AcqRel) & mask == 0)
}

/// Clears a bit; returns whether it was set.
fn clear(bits: &[AtomicU64], index: u64) -> bool {
    let mask = 1 << (index % 64);
    word(bits, index).is_some_and(|word| word.fetch_and(!mask, Ordering::AcqRel) & mask != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(blocks: u64) -> Large {
        let file = FileRef {
            id: Digest::EMPTY,
            size: blocks * BLOCK_BYTES - 5,
        };
        Large::new(file, State::Part, 64)
    }

    #[test]
    fn a_map_says_what_is_present_and_only_of_its_own_file() {
        for blocks in [2, 7, 8, 9, 63, 64, 65, 200] {
            let one = large(blocks);
            for index in (0..blocks).step_by(3).chain([blocks - 1]) {
                one.set_present(index);
            }
            let again = large(blocks);
            again.read_map(&one.map());
            for index in 0..blocks + 70 {
                assert_eq!(one.is_present(index), again.is_present(index), "{index}");
            }
            assert_eq!(one.present_bytes(), again.present_bytes());
            let other = large(blocks + 1);
            other.read_map(&one.map());
            other.read_map(&one.map()[1..]);
            other.read_map(b"");
            assert!(other.is_empty());
        }
    }

    #[test]
    fn forgetting_changes_the_generation_of_the_spans_it_touches_only() {
        let one = large(200);
        (0..200).for_each(|index| {
            one.set_present(index);
            one.set_verified(index);
        });
        assert!(one.is_complete());
        assert_eq!(one.present_bytes(), one.file.size);
        assert_eq!(one.forget(63..65), [63, 64]);
        assert_eq!(one.forget(63..65), [0; 0]);
        assert_eq!([0, 64, 128].map(|index| one.generation(index)), [2, 2, 0]);
        assert!(one.is_verified(62) && !one.is_verified(63) && !one.is_verified(64));
        assert_eq!(one.present_bytes(), one.file.size - 2 * BLOCK_BYTES);
        assert_eq!(one.span(3), 192..200);
        assert_eq!(one.span(4), 200..200);
        one.forget_verified();
        assert!(!one.is_verified(0) && one.is_present(0));
    }
}
