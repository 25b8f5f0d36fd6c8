//! What `fetch` needs of the store: a narrow view, so that its rules can be tested without a disk.

use crate::block::{Block, BlockRef, Digest};

/// Blocks kept between fetches. All calls may block on a disk, `has` only briefly.
pub trait Shelf: Send + Sync + 'static {
    /// Returns whether the block seems to be there, without looking at its bytes.
    fn has(&self, block: &BlockRef) -> bool;

    /// Reads and verifies the block; a bad one is dropped.
    fn load(&self, block: &BlockRef) -> Option<Block>;

    /// Returns another place where a block of this digest is kept.
    fn find(&self, digest: &Digest) -> Option<BlockRef>;

    /// Keeps the block. Returns whether it is kept; a failure is a miss later, never an error.
    fn put(&self, place: &BlockRef, block: &Block) -> bool;
}

/// Keeps nothing.
impl Shelf for () {
    fn has(&self, _: &BlockRef) -> bool {
        false
    }

    fn load(&self, _: &BlockRef) -> Option<Block> {
        None
    }

    fn find(&self, _: &Digest) -> Option<BlockRef> {
        None
    }

    fn put(&self, _: &BlockRef, _: &Block) -> bool {
        false
    }
}
