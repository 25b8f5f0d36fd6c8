//! Builds inner nodes and directories again from a catalog.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use crate::block::Digest;
use crate::catalog::{CatalogError, Kind, Row};
use crate::install::{CATALOG_ROW, Listed, Tree};
use crate::store::{Index, NodeKind};
use crate::unixfs::directory::{self, Entry};
use crate::unixfs::{Link, NodePlace, file, symlink};

use super::SharedError;

/// Bytes of nodes that are kept after they were built.
const KEPT_BYTES: usize = 8 << 20;

/// The same, in nodes.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");

/// Large directories whose shards are kept, each in a file.
const SPOOLS: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not zero");

/// Builds nodes, and remembers some of them: whoever walks a tree asks for the shards of a directory one by one.
#[derive(Clone)]
pub(super) struct Rebuilder {
    inner: Arc<Inner>,
}

struct Inner {
    scratch: PathBuf,
    kept: Mutex<Kept>,
    /// By slot and row. Locked while a directory is built: one at a time, and nobody builds one twice.
    spools: Mutex<LruCache<(u32, u32), Spool>>,
}

struct Kept {
    nodes: LruCache<Digest, Bytes>,
    bytes: usize,
}

/// All shards of one directory, one after the other in a file without a name.
struct Spool {
    file: File,
    nodes: HashMap<Digest, (u64, usize)>,
}

impl Rebuilder {
    pub(super) fn new(scratch: PathBuf) -> Self {
        Rebuilder {
            inner: Arc::new(Inner {
                scratch,
                kept: Mutex::new(Kept {
                    nodes: LruCache::new(KEPT),
                    bytes: 0,
                }),
                spools: Mutex::new(LruCache::new(SPOOLS)),
            }),
        }
    }

    /// Returns a node that was built a short time ago.
    pub(super) fn known(&self, digest: &Digest) -> Option<Bytes> {
        self.inner.kept.lock().nodes.get(digest).cloned()
    }

    /// Builds a node and checks that it is the one that was asked for. Blocking.
    pub(super) fn rebuild(
        &self,
        index: &Index,
        listed: &Listed,
        tree: &Tree,
        row: u32,
        place: NodePlace,
        digest: Digest,
    ) -> Result<Bytes, SharedError> {
        let built = match place {
            NodePlace::Symlink => {
                let row = tree.row(row)?;
                Some(symlink::node(&tree.target(&row)?))
            }
            NodePlace::File { level, index } => inner_node(listed, tree, row, level, index)?,
            NodePlace::Directory => {
                let entries = entries(index, tree, &tree.row(row)?)?;
                directory::node(&entries, place)
            }
            NodePlace::Shard { .. } => self.shard(index, listed, tree, row, digest)?,
        };
        match built {
            Some(bytes) if Digest::of(&bytes) == digest => {
                let bytes = Bytes::from(bytes);
                self.inner.kept.lock().keep(digest, bytes.clone());
                Ok(bytes)
            }
            _ => Err(SharedError::Failed(format!(
                "node {digest} of {} is not what the index says",
                listed.package()
            ))),
        }
    }

    fn shard(
        &self,
        index: &Index,
        listed: &Listed,
        tree: &Tree,
        row: u32,
        digest: Digest,
    ) -> Result<Option<Vec<u8>>, SharedError> {
        let mut spools = self.inner.spools.lock();
        let key = (listed.slot(), row);
        if !spools.contains(&key) {
            let entries = entries(index, tree, &tree.row(row)?)?;
            spools.put(key, self.spool(&entries)?);
        }
        let found = spools
            .get(&key)
            .and_then(|spool| Some((spool.nodes.get(&digest)?, &spool.file)));
        let Some((&(at, len), file)) = found else {
            return Ok(None);
        };
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at)?;
        Ok(Some(bytes))
    }

    fn spool(&self, entries: &[Entry]) -> Result<Spool, SharedError> {
        let mut out = BufWriter::new(tempfile::tempfile_in(&self.inner.scratch)?);
        let mut nodes = HashMap::new();
        let mut at = 0;
        directory::build(entries, &mut |node| {
            out.write_all(node.bytes)?;
            nodes.insert(node.cid.digest(), (at, node.bytes.len()));
            at += node.bytes.len() as u64;
            Ok(())
        })?;
        let file = out
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        Ok(Spool { file, nodes })
    }
}

impl Kept {
    fn keep(&mut self, digest: Digest, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some((_, old)) = self.nodes.push(digest, bytes) {
            self.bytes -= old.len();
        }
        while self.bytes > KEPT_BYTES {
            let Some((_, old)) = self.nodes.pop_lru() else {
                break;
            };
            self.bytes -= old.len();
        }
    }
}

fn inner_node(
    listed: &Listed,
    tree: &Tree,
    row: u32,
    level: u8,
    index: u64,
) -> Result<Option<Vec<u8>>, SharedError> {
    if row == CATALOG_ROW {
        let catalog = &listed.manifest().catalog;
        return file::node(catalog.size, level, index, &mut |range| {
            let start = usize::try_from(range.start).ok();
            let end = usize::try_from(range.end).ok();
            let blocks = start
                .zip(end)
                .and_then(|(start, end)| catalog.blocks.get(start..end));
            Ok(blocks.unwrap_or_default().to_vec())
        });
    }
    let row = tree.row(row)?;
    file::node(row.size(), level, index, &mut |range| {
        Ok(tree.digests(&row, range)?)
    })
}

/// Reads the entries of a directory with what a link to each carries.
fn entries(index: &Index, tree: &Tree, directory: &Row) -> Result<Vec<Entry>, SharedError> {
    let mut entries = Vec::with_capacity(directory.children().len());
    let mut failed = None;
    tree.entries(
        directory,
        0,
        &mut |_, row, name| match link(index, tree, row) {
            Ok(link) => {
                entries.push(Entry {
                    name: name.to_vec(),
                    link,
                });
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    match failed {
        None => Ok(entries),
        Some(error) => Err(error),
    }
}

fn link(index: &Index, tree: &Tree, row: &Row) -> Result<Link, SharedError> {
    match row.kind() {
        Kind::File => Ok(Link {
            cid: row.cid(),
            tsize: file::tsize(row.size()),
        }),
        Kind::Symlink => Ok(symlink::link(&tree.target(row)?)),
        // What is below a directory is not in its row; the index has it from when the directory was built.
        Kind::Directory => {
            let found = index.find(&row.id())?;
            let place = found.iter().find(|place| {
                matches!(
                    place.what,
                    NodeKind::Node(NodePlace::Directory | NodePlace::Shard { depth: 0, .. })
                )
            });
            let place =
                place.ok_or_else(|| SharedError::from(CatalogError::NoSuchRow(row.number())))?;
            Ok(Link {
                cid: row.cid(),
                tsize: place.tsize,
            })
        }
    }
}
