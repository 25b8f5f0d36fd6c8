//! The version that a tree is laid on top of: what of it stays.
//!
//! Of two entries with one path the tree's counts, whatever kinds they are; two directories are put together. What is
//! removed is removed first, so that the tree may have something else there.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::PublishError;
use super::options::Update;
use super::reuse::{copy_catalog, copy_digests};
use crate::block::{BlockRef, FileRef};
use crate::catalog::{Catalog, CatalogError, Kind, Row, Writer};
use crate::manifest::{Manifest, PackageVersion};
use crate::store::Store;

/// A version of which everything stays that is not removed or replaced.
pub(crate) struct Beneath {
    package: PackageVersion,
    catalog: Catalog<File>,
    /// The catalog as the store knows it.
    file: FileRef,
    /// Paths that go.
    remove: Vec<Vec<u8>>,
    /// There is no tree: the root's own mode and time stay as well.
    pub(crate) bare: bool,
}

/// An entry that stays.
pub(crate) struct Kept {
    pub(crate) name: Vec<u8>,
    pub(crate) row: Row,
    pub(crate) target: Vec<u8>,
}

impl Beneath {
    /// Opens a version of which the store has at least the catalog. Blocking.
    pub(super) fn open(
        manifest: &Manifest,
        update: &Update,
        store: &Arc<Store>,
        temporary: &Path,
    ) -> Result<Beneath, PublishError> {
        let package = &manifest.package;
        let copy = copy_catalog(&manifest.catalog, store, temporary)?;
        let copy = copy.ok_or_else(|| PublishError::NotHere(package.clone()))?;
        let catalog = Catalog::open(copy, manifest.catalog.size)?;
        let mut remove = Vec::new();
        for path in &update.remove {
            let parts = path.split('/').filter(|part| !part.is_empty());
            let parts: Vec<&str> = parts.collect();
            let plain = parts.join("/").into_bytes();
            if plain.is_empty() || catalog.find(&plain)?.is_none() {
                return Err(PublishError::NothingThere {
                    package: package.clone(),
                    path: path.clone(),
                });
            }
            remove.push(plain);
        }
        Ok(Beneath {
            package: package.clone(),
            catalog,
            file: manifest.catalog.file(),
            remove,
            bare: update.bare,
        })
    }

    /// Returns the error that it is not whole in the store.
    pub(crate) fn not_whole(&self) -> PublishError {
        PublishError::NotWhole(self.package.clone())
    }

    /// Returns the catalog as the store knows it.
    pub(crate) fn file(&self) -> FileRef {
        self.file
    }

    /// Returns a row.
    pub(crate) fn row(&self, number: u32) -> Result<Row, CatalogError> {
        self.catalog.row(number)
    }

    /// Returns what stays of the directory at `path`, in order; `None` when there is no such directory.
    pub(crate) fn children(&self, path: &[u8]) -> Result<Option<Vec<Kept>>, CatalogError> {
        if self.is_removed(path) {
            return Ok(None);
        }
        let Some((_, directory)) = self.catalog.find(path)? else {
            return Ok(None);
        };
        if directory.kind() != Kind::Directory {
            return Ok(None);
        }
        let mut kept = Vec::new();
        let mut full = path.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        let prefix = full.len();
        self.catalog.entries(&directory, 0, &mut |_, row, name| {
            full.truncate(prefix);
            full.extend_from_slice(name);
            if !self.remove.contains(&full) {
                kept.push(Kept {
                    name: name.to_vec(),
                    row: *row,
                    target: Vec::new(),
                });
            }
            std::ops::ControlFlow::Continue(())
        })?;
        for entry in &mut kept {
            if entry.row.kind() == Kind::Symlink {
                entry.target = self.catalog.target(&entry.row)?;
            }
        }
        Ok(Some(kept))
    }

    /// Returns whether a path goes, or lies below one that does.
    fn is_removed(&self, path: &[u8]) -> bool {
        self.remove.iter().any(|gone| {
            let rest = path.strip_prefix(&gone[..]);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
    }

    /// Gives the id and the digests of the file in row `from` to `row` of a new catalog.
    pub(crate) fn hand_over(
        &self,
        from: &Row,
        catalog: &Writer,
        row: u32,
    ) -> Result<(), CatalogError> {
        copy_digests(&self.catalog, from, catalog, row)
    }

    /// Returns one block of a file.
    pub(crate) fn block(&self, row: &Row, index: u64) -> Result<BlockRef, CatalogError> {
        self.catalog.block(row, index)
    }
}
