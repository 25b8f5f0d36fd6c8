//! What is in memory of each file: 256 shards, as there are 256 directories, so that readers do not meet writers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use parking_lot::{Mutex, RwLock};

use super::large::Large;
use crate::block::Digest;

/// Bytes that one name takes in its directory: 72 of ext4's, doubled by its half-full blocks, and some.
const NAME_BYTES: u64 = 160;

/// A map by digest.
pub(super) type DigestMap<V> = HashMap<Digest, V, BuildHasherDefault<DigestHasher>>;

/// Digests are random already; eight of their bytes will do. The multiplication keeps those that somebody has chosen
/// apart in all bits.
#[derive(Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*last).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    /// The length of the digest, which says nothing.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// A file of at most one block: 16 bytes beside its digest, since there may be millions.
pub(super) struct Small {
    pub(super) size: u32,
    /// When it was last used, by the store's clock.
    pub(super) used: AtomicU32,
    /// The store's count of writes when it was written; 0 when an earlier run did. Never twice the same for one file.
    pub(super) written: u32,
    /// This process has hashed it.
    pub(super) verified: AtomicBool,
    /// The size is what the file's bytes have, not merely what the disk says of a stranger.
    pub(super) proven: bool,
}

/// One directory's worth of files. Locks are taken in the order of the fields.
#[derive(Default)]
pub(super) struct Shard {
    /// Held while small files are written or removed, and while large ones come and go.
    pub(super) change: Mutex<Folders>,
    /// How many reasons there are to keep a file, there or not.
    pub(super) kept: RwLock<DigestMap<u32>>,
    pub(super) small: RwLock<DigestMap<Small>>,
    pub(super) large: RwLock<DigestMap<Arc<Large>>>,
    /// What is not in the maps is not on the disk.
    pub(super) scanned: AtomicBool,
}

impl Shard {
    pub(super) fn is_kept(&self, id: &Digest) -> bool {
        self.kept.read().contains_key(id)
    }
}

/// What the shard's two directories take.
#[derive(Default)]
pub(super) struct Folders {
    pub(super) small: Folder,
    pub(super) large: Folder,
}

/// What a directory takes. It grows with its names and never shrinks.
#[derive(Default)]
pub(super) struct Folder {
    names: u64,
    charged: u64,
}

impl Folder {
    /// Adds names; returns the bytes to charge.
    pub(super) fn add(&mut self, names: u64, granule: u64) -> u64 {
        self.names += names;
        self.grow((self.names * NAME_BYTES).next_multiple_of(granule))
    }

    /// Takes note of what the directory takes in truth; returns the bytes to charge.
    pub(super) fn grow(&mut self, bytes: u64) -> u64 {
        let more = bytes.saturating_sub(self.charged);
        self.charged += more;
        more
    }

    pub(super) fn remove(&mut self, names: u64) {
        self.names = self.names.saturating_sub(names);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_a_small_file_stays_small() {
        assert_eq!(size_of::<(Digest, Small)>(), 48);
    }

    #[test]
    fn a_directory_is_charged_for_the_most_names_it_ever_had() {
        let mut folder = Folder::default();
        assert_eq!(folder.add(1, 4096), 4096);
        assert_eq!(folder.add(24, 4096), 0);
        assert_eq!(folder.add(1, 4096), 4096);
        folder.remove(26);
        assert_eq!(folder.add(26, 4096), 0);
        assert_eq!(folder.grow(8192), 0);
        assert_eq!(folder.grow(12288), 4096);
    }
}
