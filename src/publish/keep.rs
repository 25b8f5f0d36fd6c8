//! Keeps what was published here from being evicted: nobody else may have it.
//!
//! Every file is protected before it is stored. Which ones lies in a temporary file, so that a publish that ends without
//! a version can let them go again, whatever their number.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::PublishError;
use crate::block::{BLOCK_BYTES, BlockRef, Digest, FileRef};
use crate::catalog::{Catalog, Kind, ReadAt, ReadError};
use crate::manifest::{CatalogBlocks, Manifest};
use crate::store::{ReadOutcome, Store, Wait};

/// Bytes of one file in the list: its id and its size.
const ENTRY_BYTES: usize = 40;

/// The files of one publish, protected until this is dropped, or for good after [`Kept::for_good`].
pub(crate) struct Kept {
    store: Arc<Store>,
    list: Option<Mutex<BufWriter<File>>>,
}

impl Kept {
    /// Protects nothing yet; the list goes to `temporary`.
    pub(crate) fn new(store: Arc<Store>, temporary: &Path) -> io::Result<Kept> {
        let list = BufWriter::new(tempfile::tempfile_in(temporary)?);
        Ok(Kept {
            store,
            list: Some(Mutex::new(list)),
        })
    }

    /// Protects a file, which need not be there yet.
    pub(crate) fn keep(&self, file: &FileRef) -> io::Result<()> {
        if let Some(list) = &self.list {
            let mut entry = [0; ENTRY_BYTES];
            entry[..32].copy_from_slice(file.id.as_bytes());
            entry[32..].copy_from_slice(&file.size.to_le_bytes());
            list.lock().write_all(&entry)?;
            self.store.protect(file);
        }
        Ok(())
    }

    /// Leaves everything protected.
    pub(crate) fn for_good(mut self) {
        self.list = None;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(list) = self.list.take() else { return };
        let let_go = || -> io::Result<()> {
            let mut list = list.into_inner().into_inner()?;
            let count = list.stream_position()? / ENTRY_BYTES as u64;
            list.rewind()?;
            let mut list = BufReader::new(list);
            for _ in 0..count {
                let (mut id, mut size) = ([0; 32], [0; 8]);
                list.read_exact(&mut id)?;
                list.read_exact(&mut size)?;
                self.store.unprotect(&FileRef {
                    id: Digest::from_bytes(id),
                    size: u64::from_le_bytes(size),
                });
            }
            Ok(())
        };
        if let Err(error) = let_go() {
            tracing::warn!(%error, "files of a publish that was given up are kept until the next start");
        }
    }
}

/// Protects the catalog of a version and all its files.
///
/// # Errors
/// [`PublishError::Catalog`] when the catalog is not whole in the store.
pub(crate) fn keep_version(store: &Arc<Store>, manifest: &Manifest) -> Result<(), PublishError> {
    let reader = StoredCatalog {
        store: Arc::clone(store),
        file: manifest.catalog.file(),
        catalog: &manifest.catalog,
    };
    store.protect(&reader.file);
    let catalog = Catalog::open(reader, manifest.catalog.size)?;
    for number in 0..catalog.rows() {
        let row = catalog.row(number)?;
        if row.kind() == Kind::File && row.size() > 0 {
            store.protect(&row.file());
        }
    }
    Ok(())
}

/// A catalog in the store, read block by block.
struct StoredCatalog<'a> {
    store: Arc<Store>,
    file: FileRef,
    catalog: &'a CatalogBlocks,
}

impl ReadAt for StoredCatalog<'_> {
    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), ReadError> {
        while !buffer.is_empty() {
            let index = offset / BLOCK_BYTES;
            let missing = || ReadError::Missing { block: index };
            let digest = usize::try_from(index)
                .ok()
                .and_then(|index| self.catalog.blocks.get(index));
            let block = BlockRef {
                file: self.file,
                index,
                digest: *digest.ok_or_else(missing)?,
            };
            // Below 2^20, so the casts lose nothing.
            let within = (offset % BLOCK_BYTES) as u32;
            let len = buffer
                .len()
                .min(block.len().saturating_sub(within) as usize);
            if len == 0 {
                return Err(missing());
            }
            let (part, rest) = std::mem::take(&mut buffer).split_at_mut(len);
            if self.store.read_verified(&block, within, part, Wait::Yes) != ReadOutcome::Done {
                let block = self.store.load(&block).ok_or_else(missing)?;
                part.copy_from_slice(&block.bytes()[within as usize..][..len]);
            }
            buffer = rest;
            offset += len as u64;
        }
        Ok(())
    }
}
