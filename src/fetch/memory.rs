//! The memory tier: verified blocks that were just fetched, least recently used out first.
//!
//! It bridges the time until the store has a block, and serves what the store could not take. A plain LRU behind one
//! lock, rather than a concurrent cache: the bound on bytes is exact at every moment, and a lookup is some 100 ns.

use lru::LruCache;
use parking_lot::Mutex;

use crate::block::{Block, BlockRef, Digest};

/// What an entry costs besides its bytes.
const ENTRY_BYTES: u64 = 192;

#[derive(Debug)]
pub(super) struct Memory {
    bytes_max: u64,
    blocks: Mutex<Blocks>,
}

#[derive(Debug)]
struct Blocks {
    bytes: u64,
    by_digest: LruCache<Digest, Entry>,
}

#[derive(Debug)]
struct Entry {
    block: Block,
    /// The last place in which it was wanted.
    place: BlockRef,
}

impl Memory {
    pub(super) fn new(bytes_max: u64) -> Self {
        Memory {
            bytes_max,
            blocks: Mutex::new(Blocks {
                bytes: 0,
                by_digest: LruCache::unbounded(),
            }),
        }
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Block> {
        let mut blocks = self.blocks.lock();
        Some(blocks.by_digest.get(digest)?.block.clone())
    }

    /// Returns the block that is wanted in a place, and whether it was wanted in another one until now.
    pub(super) fn get_for(&self, place: &BlockRef) -> Option<(Block, bool)> {
        let mut blocks = self.blocks.lock();
        let entry = blocks.by_digest.get_mut(&place.digest)?;
        // A catalog may claim another length for a digest that it shares with a right one.
        if entry.block.bytes().len() != place.len() as usize {
            return None;
        }
        let moved = entry.place != *place;
        entry.place = *place;
        Some((entry.block.clone(), moved))
    }

    pub(super) fn put(&self, place: BlockRef, block: Block) {
        let weight = weight(&block);
        if weight > self.bytes_max {
            return;
        }
        let mut blocks = self.blocks.lock();
        let entry = Entry { place, block };
        if let Some(old) = blocks.by_digest.put(entry.block.digest(), entry) {
            blocks.bytes -= self::weight(&old.block);
        }
        blocks.bytes += weight;
        while blocks.bytes > self.bytes_max
            && let Some((_, old)) = blocks.by_digest.pop_lru()
        {
            blocks.bytes -= self::weight(&old.block);
        }
    }

    pub(super) fn remove(&self, digest: &Digest) {
        let mut blocks = self.blocks.lock();
        if let Some(old) = blocks.by_digest.pop(digest) {
            blocks.bytes -= weight(&old.block);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.blocks.lock().bytes
    }

    pub(super) fn clear(&self) {
        let mut blocks = self.blocks.lock();
        blocks.by_digest.clear();
        blocks.bytes = 0;
    }
}

fn weight(block: &Block) -> u64 {
    block.bytes().len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::block::FileRef;

    fn place(block: &Block) -> BlockRef {
        let file = FileRef {
            id: block.digest(),
            size: block.bytes().len() as u64,
        };
        BlockRef {
            file,
            index: 0,
            digest: block.digest(),
        }
    }

    fn block(seed: u8, len: usize) -> Block {
        Block::seal(Bytes::from(vec![seed; len]))
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_bound_is_exact() {
        let memory = Memory::new(3 * (1000 + ENTRY_BYTES));
        let [a, b, c, d] = [0, 1, 2, 3].map(|seed| block(seed, 1000));
        for block in [&a, &b, &c] {
            memory.put(place(block), block.clone());
        }
        assert!(memory.get(&a.digest()).is_some());
        memory.put(place(&d), d.clone());
        assert!(memory.get(&b.digest()).is_none());
        for block in [&a, &c, &d] {
            assert!(memory.get(&block.digest()).is_some());
        }
        assert_eq!(memory.bytes(), 3 * (1000 + ENTRY_BYTES));
        memory.put(place(&d), d);
        assert_eq!(memory.bytes(), 3 * (1000 + ENTRY_BYTES));
        let large = block(9, 4000);
        memory.put(place(&large), large);
        assert_eq!(memory.bytes(), 3 * (1000 + ENTRY_BYTES));
        memory.remove(&c.digest());
        memory.remove(&c.digest());
        assert_eq!(memory.bytes(), 2 * (1000 + ENTRY_BYTES));
        memory.clear();
        assert_eq!(memory.bytes(), 0);
        assert!(memory.get(&a.digest()).is_none());
    }
}
