//! Where the bytes that were read go: into the store, or nowhere when nothing is to be stored.

use std::sync::Arc;

use super::PublishError;
use crate::block::Digest;

/// Takes files while they are hashed.
pub(crate) trait Sink: Sync {
    /// Takes a whole file of at most one block, which hashes to `id`; never an empty one.
    fn small(&self, id: Digest, bytes: &[u8]) -> Result<(), PublishError>;

    /// Begins a file of more than one block, whose id is not known yet.
    fn large(&self, size: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError>;

    /// Returns how much it can take; `None` for as much as comes.
    fn room(&self) -> Option<Room>;

    /// Makes everything durable that it has taken.
    fn sync(&self) -> Result<(), PublishError>;
}

/// How much a sink can take, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// In all.
    pub(crate) quota: u64,
    /// Of that, what is there and cannot be evicted.
    pub(crate) held: u64,
}

/// Takes one file of more than one block. Blocks that are never written are zeros.
pub(crate) trait LargeSink: Send + Sync {
    /// Takes a block; in any order, from any thread, each once.
    fn block(&self, index: u64, digest: Digest, bytes: &[u8]) -> Result<(), PublishError>;

    /// Says that everything was written, and what the file's id is. Without it nothing is kept.
    fn finish(&self, id: Digest) -> Result<(), PublishError>;
}

/// Forgets everything: for `--dry-run`, and once something was refused.
pub(crate) struct Nowhere;

impl Sink for Nowhere {
    fn small(&self, _: Digest, _: &[u8]) -> Result<(), PublishError> {
        Ok(())
    }

    fn large(&self, _: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError> {
        Ok(Arc::new(Nowhere))
    }

    fn room(&self) -> Option<Room> {
        None
    }

    fn sync(&self) -> Result<(), PublishError> {
        Ok(())
    }
}

impl LargeSink for Nowhere {
    fn block(&self, _: u64, _: Digest, _: &[u8]) -> Result<(), PublishError> {
        Ok(())
    }

    fn finish(&self, _: Digest) -> Result<(), PublishError> {
        Ok(())
    }
}
