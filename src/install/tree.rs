//! The catalog of an installed version, read by position through verified blocks and a bounded cache.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::block::{BLOCK_BYTES, BlockRef, Digest, FileRef};
use crate::catalog::{Catalog, CatalogError, ReadAt, ReadError};
use crate::manifest::Manifest;
use crate::source::{TorrentPlace, TreePlace, Want};
use crate::store::{ReadOutcome, Store, Wait};
use crate::torrent::{Layout, TorrentError};

use super::Listed;
use super::pages::PageCache;

/// Where a mirror keeps the catalog, below the tree's own directory.
const CATALOG_PATH: &[u8] = b".manifs/catalog";

/// The tree of an installed version.
pub type Tree = Catalog<StoredCatalog>;

/// Returns a manifest's catalog as a file: what the store knows it by.
pub fn catalog_file(manifest: &Manifest) -> FileRef {
    let catalog = &manifest.catalog;
    catalog.file()
}

/// A catalog's bytes in the store.
pub struct StoredCatalog {
    store: Arc<Store>,
    pages: Arc<PageCache>,
    file: FileRef,
    blocks: Arc<[Digest]>,
    /// Bytes of a piece of the torrent that the manifest names.
    piece_bytes: Option<u64>,
    /// Where files lie in it, once somebody asked; none inside when the tree has no such torrent.
    layout: Mutex<Option<Option<Arc<Layout>>>>,
}

impl StoredCatalog {
    pub(super) fn new(store: Arc<Store>, pages: Arc<PageCache>, manifest: &Manifest) -> Self {
        StoredCatalog {
            store,
            pages,
            file: catalog_file(manifest),
            blocks: manifest.catalog.blocks.clone().into(),
            piece_bytes: manifest.torrent.map(|torrent| torrent.piece_length),
            layout: Mutex::new(None),
        }
    }

    pub(super) fn file(&self) -> FileRef {
        self.file
    }

    /// Returns block `index`, if there is one.
    pub(super) fn block(&self, index: u64) -> Option<BlockRef> {
        let digest = *self.blocks.get(usize::try_from(index).ok()?)?;
        Some(BlockRef {
            file: self.file,
            index,
            digest,
        })
    }

    /// Reads a span of one block; the block has to be verified and here.
    fn read_block(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let index = offset / BLOCK_BYTES;
        let missing = || ReadError::Missing { block: index };
        let block = self.block(index).ok_or_else(missing)?;
        let within = u32::try_from(offset % BLOCK_BYTES).map_err(|_| missing())?;
        match self.store.read_verified(&block, within, buffer, Wait::Yes) {
            ReadOutcome::Done => Ok(()),
            // With `verify = "always"` no mark is ever trusted, so the block is hashed here and now.
            ReadOutcome::Unverified if self.store.verifies_always() => {
                let block = self.store.load(&block).ok_or_else(missing)?;
                let start = within as usize;
                let bytes = block.bytes().get(start..start + buffer.len());
                buffer.copy_from_slice(bytes.ok_or_else(missing)?);
                Ok(())
            }
            ReadOutcome::Unverified | ReadOutcome::Missing | ReadOutcome::WouldBlock => {
                Err(missing())
            }
        }
    }
}

/// Returns where the files of an installed version lie in the torrent that its manifest names; none without torrent, and
/// when the tree gives another one. Made when first asked for: one pass over the rows. Blocking.
///
/// # Errors
/// [`CatalogError`] when the catalog cannot be read; the next call tries again.
pub fn torrent_layout(tree: &Tree) -> Result<Option<Arc<Layout>>, CatalogError> {
    let reader = tree.reader();
    let Some(piece_bytes) = reader.piece_bytes else {
        return Ok(None);
    };
    let mut layout = reader.layout.lock();
    if let Some(known) = &*layout {
        return Ok(known.clone());
    }
    let made = match Layout::of(tree) {
        Ok(made) => Some(made),
        Err(TorrentError::NotOffered(_)) => None,
        Err(TorrentError::Catalog(error)) => return Err(error),
        Err(TorrentError::Io(error)) => return Err(error.into()),
    };
    let made = made
        .filter(|made| made.piece_bytes() == piece_bytes)
        .map(Arc::new);
    *layout = Some(made.clone());
    Ok(made)
}

impl ReadAt for StoredCatalog {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.pages.read(self.file, offset, buffer, |start, page| {
            self.read_block(start, page)
        })
    }
}

/// Returns what to ask for to get a block of a catalog.
pub fn catalog_want(version: &Listed, block: BlockRef) -> Want {
    let hints = version.hints();
    let place = TreePlace {
        tree: version.package().tree_name().into(),
        path: CATALOG_PATH.into(),
        offset: block.index * BLOCK_BYTES,
        mirrors: Arc::clone(&hints.http),
        gateways: Arc::clone(&hints.gateways),
    };
    // The catalog lies at the beginning, whatever follows it.
    let torrent = version.torrent(None).map(|torrent| TorrentPlace {
        torrent,
        offset: block.index * BLOCK_BYTES,
    });
    Want {
        block,
        place: Some(place),
        torrent,
    }
}

/// Returns what to ask for to get a block of the file in `row`.
///
/// # Errors
/// [`CatalogError`] when the file's path cannot be read from the catalog.
pub fn want_of(
    version: &Listed,
    tree: &Tree,
    row: u32,
    block: BlockRef,
) -> Result<Want, CatalogError> {
    let hints = version.hints();
    let place = TreePlace {
        tree: version.package().tree_name().into(),
        path: tree.path(row)?.into(),
        offset: block.index * BLOCK_BYTES,
        mirrors: Arc::clone(&hints.http),
        gateways: Arc::clone(&hints.gateways),
    };
    Ok(Want {
        block,
        place: Some(place),
        torrent: torrent_place(version, tree, row, block)?,
    })
}

fn torrent_place(
    version: &Listed,
    tree: &Tree,
    row: u32,
    block: BlockRef,
) -> Result<Option<TorrentPlace>, CatalogError> {
    let Some(layout) = torrent_layout(tree)? else {
        return Ok(None);
    };
    let place = layout
        .offset_of(row)
        .zip(version.torrent(Some(layout.bytes())));
    Ok(place.map(|(start, torrent)| TorrentPlace {
        torrent,
        offset: start + block.index * BLOCK_BYTES,
    }))
}
