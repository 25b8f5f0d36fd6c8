//! What lies where, for those who ask by digest: derived from catalogs, never on the read path.
//!
//! For each shared version it maps the digest of every file, inner node, directory and block to a place in the
//! version's catalog. When the database is missing or cannot be opened it is set aside, and its owner fills it again.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use redb::{Database, Durability, ReadableDatabase, TableDefinition};

use crate::block::Digest;
use crate::unixfs::NodePlace;

/// digest and slot (big-endian) -> place.
const NODES: TableDefinition<[u8; 36], [u8; NODE_BYTES]> = TableDefinition::new("nodes-1");

/// slot -> the manifest id of the version whose nodes are complete.
const VERSIONS: TableDefinition<u32, [u8; 32]> = TableDefinition::new("versions-1");

/// row, kind, level, index or prefix, tsize.
const NODE_BYTES: usize = 4 + 1 + 1 + 8 + 8;

/// Entries of one transaction: 58 bytes each in memory. Sorted, they fill the tree page by page, so larger is faster.
const BATCH: usize = 1 << 20;

/// Where a digest is found in a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef {
    /// The version's slot.
    pub slot: u32,
    /// The row of its catalog.
    pub row: u32,
    /// What it is there.
    pub what: NodeKind,
    /// What a link to it carries.
    pub tsize: u64,
}

/// What a digest is within its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A block of the file.
    Block {
        /// Which, from 0.
        index: u64,
    },
    /// A node that can be built again.
    Node(NodePlace),
}

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the index of the store: {0}")]
pub struct IndexError(String);

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        IndexError(error.into().to_string())
    }
}

/// The index of a store.
pub struct Index {
    database: Database,
}

impl Index {
    /// Opens the index at `path`; one that cannot be opened is set aside and begun anew.
    ///
    /// # Errors
    /// [`IndexError`] when a new one cannot be made either.
    pub fn open(path: &Path) -> Result<Index, IndexError> {
        // A damaged file may make the database panic on open; that is this file's problem, not the store's.
        let open = || std::panic::catch_unwind(AssertUnwindSafe(|| Index::create(path)));
        let said = match open() {
            Ok(Ok(index)) => return Ok(index),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it is damaged".to_owned(),
        };
        let aside = PathBuf::from(format!("{}.damaged", path.display()));
        tracing::warn!(%said, aside = %aside.display(), "the index is set aside and made anew");
        std::fs::rename(path, &aside).map_err(|error| IndexError(error.to_string()))?;
        Index::create(path)
    }

    fn create(path: &Path) -> Result<Index, IndexError> {
        let database = Database::builder().set_cache_size(8 << 20).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(NODES)?;
        transaction.open_table(VERSIONS)?;
        transaction.commit()?;
        Ok(Index { database })
    }

    /// Returns the manifest whose nodes are all in the index for a slot.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn version(&self, slot: u32) -> Result<Option<Digest>, IndexError> {
        let transaction = self.database.begin_read()?;
        let versions = transaction.open_table(VERSIONS)?;
        Ok(versions.get(slot)?.map(|id| Digest::from_bytes(id.value())))
    }

    /// Begins to write a version's nodes. Nothing of it counts before [`IndexWriter::finish`].
    pub fn begin(&self, slot: u32) -> IndexWriter<'_> {
        IndexWriter {
            index: self,
            slot,
            batch: Vec::new(),
        }
    }

    /// Returns every place that a digest has in a complete version.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn find(&self, digest: &Digest) -> Result<Vec<NodeRef>, IndexError> {
        let transaction = self.database.begin_read()?;
        let nodes = transaction.open_table(NODES)?;
        let versions = transaction.open_table(VERSIONS)?;
        let mut found = Vec::new();
        for entry in nodes.range(key(digest, 0)..=key(digest, u32::MAX))? {
            let (key, value) = entry?;
            let slot =
                u32::from_be_bytes(key.value().last_chunk::<4>().copied().unwrap_or_default());
            if versions.get(slot)?.is_some() {
                found.extend(decode(slot, &value.value()));
            }
        }
        Ok(found)
    }

    /// Forgets a version: what it alone had is found no more.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn drop_version(&self, slot: u32) -> Result<(), IndexError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(VERSIONS)?.remove(slot)?;
        transaction.commit()?;
        Ok(())
    }
}

/// The nodes of one version on their way in.
pub struct IndexWriter<'a> {
    index: &'a Index,
    slot: u32,
    batch: Vec<([u8; 36], [u8; NODE_BYTES])>,
}

impl IndexWriter<'_> {
    /// Adds a digest.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn add(
        &mut self,
        digest: &Digest,
        row: u32,
        what: NodeKind,
        tsize: u64,
    ) -> Result<(), IndexError> {
        self.batch
            .push((key(digest, self.slot), encode(row, what, tsize)));
        if self.batch.len() >= BATCH {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Makes everything count.
    ///
    /// # Errors
    /// [`IndexError`]
    pub fn finish(mut self, manifest: Digest) -> Result<(), IndexError> {
        self.flush()?;
        let transaction = self.index.database.begin_write()?;
        transaction
            .open_table(VERSIONS)?
            .insert(self.slot, manifest.as_bytes())?;
        transaction.commit()?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        // In order, so that the tree is filled page by page.
        self.batch.sort_unstable();
        let mut transaction = self.index.database.begin_write()?;
        // A crash loses what can be derived again; `finish` makes all of it durable at once.
        transaction
            .set_durability(Durability::None)
            .map_err(|error| IndexError(error.to_string()))?;
        {
            let mut nodes = transaction.open_table(NODES)?;
            for (key, value) in self.batch.drain(..) {
                nodes.insert(key, value)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn key(digest: &Digest, slot: u32) -> [u8; 36] {
    let mut key = [0; 36];
    key[..32].copy_from_slice(digest.as_bytes());
    key[32..].copy_from_slice(&slot.to_be_bytes());
    key
}

fn encode(row: u32, what: NodeKind, tsize: u64) -> [u8; NODE_BYTES] {
    let (kind, level, rest) = match what {
        NodeKind::Block { index } => (0, 0, index.to_le_bytes()),
        NodeKind::Node(NodePlace::Symlink) => (1, 0, [0; 8]),
        NodeKind::Node(NodePlace::File { level, index }) => (2, level, index.to_le_bytes()),
        NodeKind::Node(NodePlace::Directory) => (3, 0, [0; 8]),
        NodeKind::Node(NodePlace::Shard { depth, prefix }) => (4, depth, prefix),
    };
    let mut bytes = [0; NODE_BYTES];
    bytes[..4].copy_from_slice(&row.to_le_bytes());
    (bytes[4], bytes[5]) = (kind, level);
    bytes[6..14].copy_from_slice(&rest);
    bytes[14..].copy_from_slice(&tsize.to_le_bytes());
    bytes
}

fn decode(slot: u32, bytes: &[u8; NODE_BYTES]) -> Option<NodeRef> {
    let row = u32::from_le_bytes(*bytes.first_chunk()?);
    let rest: [u8; 8] = bytes[6..14].try_into().ok()?;
    let what = match bytes[4] {
        0 => NodeKind::Block {
            index: u64::from_le_bytes(rest),
        },
        1 => NodeKind::Node(NodePlace::Symlink),
        2 => NodeKind::Node(NodePlace::File {
            level: bytes[5],
            index: u64::from_le_bytes(rest),
        }),
        3 => NodeKind::Node(NodePlace::Directory),
        4 => NodeKind::Node(NodePlace::Shard {
            depth: bytes[5],
            prefix: rest,
        }),
        _ => return None,
    };
    Some(NodeRef {
        slot,
        row,
        what,
        tsize: u64::from_le_bytes(*bytes.last_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn only_complete_versions_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.redb")).unwrap();
        let kinds = [
            NodeKind::Block { index: u64::MAX },
            NodeKind::Node(NodePlace::Symlink),
            NodeKind::Node(NodePlace::File { level: 2, index: 7 }),
            NodeKind::Node(NodePlace::Directory),
            NodeKind::Node(NodePlace::Shard {
                depth: 3,
                prefix: [1, 2, 3, 0, 0, 0, 0, 0],
            }),
        ];
        for slot in [1, 2] {
            let mut writer = index.begin(slot);
            for (row, what) in (0..).zip(kinds) {
                writer
                    .add(&digest(&row.to_string()), row, what, 100 + u64::from(row))
                    .unwrap();
            }
            if slot == 1 {
                writer.finish(digest("manifest")).unwrap();
            } else {
                writer.flush().unwrap();
            }
        }
        for (row, what) in (0..).zip(kinds) {
            let want = NodeRef {
                slot: 1,
                row,
                what,
                tsize: 100 + u64::from(row),
            };
            assert_eq!(index.find(&digest(&row.to_string())).unwrap(), [want]);
        }
        assert_eq!(index.find(&digest("other")).unwrap(), []);
        assert_eq!(
            (index.version(1).unwrap(), index.version(2).unwrap()),
            (Some(digest("manifest")), None)
        );
        index.drop_version(1).unwrap();
        assert_eq!(index.find(&digest("0")).unwrap(), []);
    }

    #[test]
    fn a_damaged_index_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.redb");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let index = Index::open(&path).unwrap();
        assert_eq!(index.version(1).unwrap(), None);
        assert!(dir.path().join("index.redb.damaged").exists());
    }
}
