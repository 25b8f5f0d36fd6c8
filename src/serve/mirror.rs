//! Mirrors: directories of whole trees with their catalogs, for plain web servers and as `[sources] local`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::control::Failure;
use super::copy::Copy;
use crate::block::{BLOCK_BYTES, Digest};
use crate::unixfs::file;

/// Where a tree keeps its catalog.
const CATALOG: &str = ".manifs/catalog";

/// A tree's place in a mirror.
#[derive(Clone, Debug)]
pub(crate) struct Mirror {
    /// The mirror; absolute.
    pub(crate) directory: PathBuf,
    /// The tree's name.
    pub(crate) tree: String,
    /// The CID of its catalog, which is signed.
    pub(crate) catalog: String,
}

impl Mirror {
    /// Returns where the tree lies.
    pub(crate) fn place(&self) -> PathBuf {
        self.directory.join(&self.tree)
    }

    /// Says whether anything can be written into a mirror.
    ///
    /// # Errors
    /// [`Failure`], as [`Mirror::begin`] would.
    pub(crate) fn check(directory: &Path) -> Result<(), Failure> {
        // Its temporary directory goes with it.
        Copy::begin(&directory.join("probe")).map(drop)
    }

    /// Begins to write the tree; `None` when it is there. Nobody sees a part of it: it gets its name at the end, when all of
    /// it is on the disk.
    ///
    /// # Errors
    /// [`Failure`]: another tree is in its place, or the mirror cannot be written.
    pub(crate) fn begin(&self) -> Result<Option<Copy>, Failure> {
        let place = self.place();
        if place.symlink_metadata().is_ok() {
            // It got its name when all of it was there, so its catalog tells.
            if catalog_of(&place).as_deref() == Some(&self.catalog) {
                return Ok(None);
            }
            let message = format!(
                "{} exists, and is not the tree that was signed",
                place.display()
            );
            return Err(Failure::failed(message).hint("move it away, or name another directory"));
        }
        Copy::sweep(&self.directory);
        let mut copy = Copy::begin(&place)?;
        copy.durable = true;
        Ok(Some(copy))
    }
}

/// Returns the CID of the catalog that a tree in a mirror has; none where there is none that can be read.
fn catalog_of(place: &Path) -> Option<String> {
    let mut reader = File::open(place.join(CATALOG)).ok()?;
    let (mut size, mut digests) = (0, Vec::new());
    loop {
        let mut block = Vec::new();
        let read = reader
            .by_ref()
            .take(BLOCK_BYTES)
            .read_to_end(&mut block)
            .ok()?;
        if read == 0 {
            break;
        }
        size += read as u64;
        digests.push(Digest::of(&block));
    }
    Some(file::root(size, digests).to_string())
}
