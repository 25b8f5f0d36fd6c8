//! Where the bytes that were read go: into the store, or nowhere when nothing is to be stored.

use std::sync::Arc;

use parking_lot::RwLock;

use super::PublishError;
use super::keep::Kept;
use crate::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef};
use crate::store::{self, Store};

/// Takes files while they are hashed.
pub(crate) trait Sink: Sync {
    /// Takes a whole file of at most one block; never an empty one.
    fn small(&self, block: &Block) -> Result<(), PublishError>;

    /// Begins a file of more than one block, whose id is not known yet. At most `data` bytes of it will be written.
    fn large(&self, size: u64, data: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError>;

    /// Returns whether it has all of a file already, and keeps it then.
    fn has(&self, file: &FileRef) -> Result<bool, PublishError>;

    /// Returns a block of a file that it has.
    fn load(&self, block: &BlockRef) -> Option<Block>;

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
    fn block(&self, index: u64, bytes: &[u8]) -> Result<(), PublishError>;

    /// Says that everything was written, and what the file's id is. Without it nothing is kept.
    fn finish(&self, id: Digest) -> Result<(), PublishError>;
}

/// The store, which keeps what it takes from being evicted.
pub(crate) struct Keeping<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) kept: &'a Kept,
}

/// Returns how much a store can take.
fn room(store: &Store) -> Room {
    let usage = store.usage();
    Room {
        quota: usage.quota,
        held: usage.unevictable,
    }
}

impl Sink for Keeping<'_> {
    fn small(&self, block: &Block) -> Result<(), PublishError> {
        let file = FileRef {
            id: block.digest(),
            size: block.bytes().len() as u64,
        };
        let place = BlockRef {
            file,
            index: 0,
            digest: block.digest(),
        };
        self.kept.keep(&file)?;
        Ok(self.store.put(&place, block)?)
    }

    fn large(&self, size: u64, data: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError> {
        let ingest = self.store.ingest(size, data)?;
        Ok(Arc::new(LargeFile {
            size,
            kept: self.kept,
            ingest: RwLock::new(Some(ingest)),
        }))
    }

    fn has(&self, file: &FileRef) -> Result<bool, PublishError> {
        if file.size > 0 {
            // Kept first, so that it does not go between the look and its use.
            self.kept.keep(file)?;
        }
        Ok(self.store.complete(file))
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        self.store.load(block)
    }

    fn room(&self) -> Option<Room> {
        Some(room(self.store))
    }

    fn sync(&self) -> Result<(), PublishError> {
        Ok(self.store.sync()?)
    }
}

/// A large file on its way into the store.
struct LargeFile<'a> {
    size: u64,
    kept: &'a Kept,
    /// Gone once it is finished.
    ingest: RwLock<Option<store::Ingest>>,
}

impl LargeSink for LargeFile<'_> {
    fn block(&self, index: u64, bytes: &[u8]) -> Result<(), PublishError> {
        match &*self.ingest.read() {
            Some(ingest) => Ok(ingest.write(index * BLOCK_BYTES, bytes)?),
            None => Ok(()),
        }
    }

    fn finish(&self, id: Digest) -> Result<(), PublishError> {
        let ingest = self.ingest.write().take();
        let file = FileRef {
            id,
            size: self.size,
        };
        match ingest {
            Some(ingest) => {
                self.kept.keep(&file)?;
                Ok(ingest.finish(file)?)
            }
            None => Ok(()),
        }
    }
}

/// Forgets everything, but has the room and the files of the store: for `--dry-run`.
pub(crate) struct Nowhere<'a>(pub(crate) Option<&'a Arc<Store>>);

impl Sink for Nowhere<'_> {
    fn small(&self, _: &Block) -> Result<(), PublishError> {
        Ok(())
    }

    fn large(&self, _: u64, _: u64) -> Result<Arc<dyn LargeSink + '_>, PublishError> {
        Ok(Arc::new(Nothing))
    }

    fn has(&self, file: &FileRef) -> Result<bool, PublishError> {
        Ok(self.0.is_some_and(|store| store.complete(file)))
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        self.0?.load(block)
    }

    fn room(&self) -> Option<Room> {
        self.0.map(|store| room(store))
    }

    fn sync(&self) -> Result<(), PublishError> {
        Ok(())
    }
}

struct Nothing;

impl LargeSink for Nothing {
    fn block(&self, _: u64, _: &[u8]) -> Result<(), PublishError> {
        Ok(())
    }

    fn finish(&self, _: Digest) -> Result<(), PublishError> {
        Ok(())
    }
}
