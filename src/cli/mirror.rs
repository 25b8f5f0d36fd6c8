//! Mirrors: directories of whole trees with their catalogs, for plain web servers and as `[sources] local`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::fetch::Copy;
use super::session::Session;
use super::{Context, Error, output};
use crate::block::{BLOCK_BYTES, Digest};
use crate::serve::control::{Done, Failure, FailureKind, Request};
use crate::unixfs::file;

/// Where a tree keeps its catalog.
const CATALOG: &str = ".manifs/catalog";

/// A tree's place in a mirror.
pub(super) struct Mirror<'a> {
    /// The mirror.
    pub(super) directory: &'a Path,
    /// The tree's name.
    pub(super) tree: &'a str,
    /// The CID of its catalog, which is signed.
    pub(super) catalog: &'a str,
}

/// What was written.
pub(super) struct Written {
    pub(super) place: PathBuf,
    /// None: it was there.
    pub(super) done: Option<Done>,
}

impl Written {
    /// Says it in a sentence.
    pub(super) fn sentence(&self) -> String {
        let place = self.place.display();
        match &self.done {
            Some(done) => format!(
                "{} files, {} in {place}",
                done.files,
                output::bytes(done.bytes)
            ),
            None => format!("{place} is there already"),
        }
    }
}

impl Mirror<'_> {
    /// Writes what answers `request`, unless it is there. Nobody sees a part of it: it gets its name at the end.
    pub(super) fn write(
        &self,
        context: &Context,
        session: &mut Session,
        request: &Request,
    ) -> Result<Written, Error> {
        let directory = std::path::absolute(self.directory)?;
        std::fs::create_dir_all(&directory)
            .map_err(|error| Failure::failed(format!("{}: {error}", directory.display())))?;
        let place = directory.join(self.tree);
        if place.symlink_metadata().is_ok() {
            // It got its name when all of it was there, so its catalog tells.
            if catalog_of(&place).as_deref() == Some(self.catalog) {
                return Ok(Written { place, done: None });
            }
            let message = format!(
                "{} exists, and is not the tree that was signed",
                place.display()
            );
            let failure = Failure::new(FailureKind::Failed, message);
            return Err(failure
                .hint("move it away, or name another directory")
                .into());
        }
        let mut copy = Copy::begin(&place, context.output.progress())?;
        copy.durable = true;
        let done = copy.write(session, request, &place)?;
        Ok(Written {
            place,
            done: Some(done),
        })
    }
}

/// Returns the CID of the catalog that a tree in a mirror has; none where there is none that can be read.
fn catalog_of(place: &Path) -> Option<String> {
    let path = place.join(CATALOG);
    let mut reader = std::fs::File::open(path).ok()?;
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
