//! The info dictionary again, from a version that is complete; and which block lies where.

use std::io;
use std::sync::Arc;

use super::{Info, Layout, Outline, Pieces, Place, TorrentError};
use crate::block::{BLOCK_BYTES, Block, BlockRef};
use crate::catalog::{Catalog, CatalogError, ReadAt};
use crate::manifest::CatalogBlocks;

/// Returns the block that holds what begins at a place, and where in the block that is; none for padding.
///
/// # Errors
/// [`CatalogError`]
pub fn block_at<R: ReadAt>(
    catalog: &Catalog<R>,
    blocks: &CatalogBlocks,
    place: Place,
) -> Result<Option<(BlockRef, u64)>, CatalogError> {
    Ok(match place {
        Place::Padding => None,
        Place::Catalog { offset } => {
            let index = offset / BLOCK_BYTES;
            let digest = usize::try_from(index)
                .ok()
                .and_then(|index| blocks.blocks.get(index));
            digest.map(|&digest| {
                let file = blocks.file();
                (
                    BlockRef {
                        file,
                        index,
                        digest,
                    },
                    offset % BLOCK_BYTES,
                )
            })
        }
        Place::File { row, offset } => {
            let row = catalog.row(row)?;
            let block = catalog.block(&row, offset / BLOCK_BYTES)?;
            Some((block, offset % BLOCK_BYTES))
        }
    })
}

/// Makes the info dictionary of a version, called `name`, whose blocks `load` has all of. Each is asked for once, in the
/// order of the torrent. Its info hash is the manifest's, or the manifest names another torrent than its tree's.
///
/// # Errors
/// [`TorrentError`]; what `load` says ends it.
pub fn rebuild<R: ReadAt>(
    name: &str,
    catalog: &Catalog<R>,
    blocks: &CatalogBlocks,
    layout: &Arc<Layout>,
    load: &mut dyn FnMut(&BlockRef) -> io::Result<Block>,
) -> Result<Info, TorrentError> {
    let outline = Outline::new(name, catalog, layout)?;
    let pieces = Pieces::new(Arc::clone(layout));
    // The catalog's own blocks: their file's id is made once, not for each.
    let mut own = blocks.block_refs();
    for span in layout.spans(0..layout.bytes()) {
        let mut at = span.bytes.start;
        while at < span.bytes.end {
            let block = match span.place {
                Place::Padding => break,
                Place::Catalog { .. } => own.next(),
                Place::File { row, .. } => {
                    let row = catalog.row(row)?;
                    Some(catalog.block(&row, (at - span.bytes.start) / BLOCK_BYTES)?)
                }
            };
            let block = block
                .ok_or(io::ErrorKind::UnexpectedEof)
                .map_err(io::Error::from)?;
            let block = load(&block)?;
            pieces.add(at, block.bytes());
            at += BLOCK_BYTES;
        }
    }
    let whole = pieces.finish().and_then(|hashes| outline.finish(&hashes));
    Ok(whole
        .ok_or(io::ErrorKind::UnexpectedEof)
        .map_err(io::Error::from)?)
}
