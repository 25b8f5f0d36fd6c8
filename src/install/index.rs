//! Fills the store's index with a version, so that it can be served by digest.

use std::io;

use super::Tree;
use crate::block::{BLOCK_BYTES, Digest};
use crate::catalog::{CatalogError, Kind, build_directories};
use crate::manifest::Manifest;
use crate::store::{Index, IndexError, IndexWriter, NodeKind};
use crate::unixfs::{Node, NodePlace, file};

/// The row that stands for the catalog itself in the index: no catalog has so many.
pub const CATALOG_ROW: u32 = u32::MAX;

/// Why a version cannot be served by digest.
#[derive(Debug, thiserror::Error)]
pub enum IndexingError {
    /// Its catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The index cannot be written.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Puts the digest of every block, inner node, directory and link of an installed version into the index, and those of
/// its catalog. One that is there already costs a look. Blocking.
///
/// # Errors
/// [`IndexingError`]; nothing of the version is found then.
pub fn index_version(
    index: &Index,
    slot: u32,
    manifest: &Manifest,
    tree: &Tree,
) -> Result<(), IndexingError> {
    let id = manifest.id().0;
    if index.version(slot)? == Some(id) {
        return Ok(());
    }
    let mut writer = index.begin(slot);
    let catalog = &manifest.catalog;
    add_file(
        &mut writer,
        CATALOG_ROW,
        catalog.size,
        catalog.file().id,
        &catalog.blocks,
    )?;
    for number in 0..tree.rows() {
        let row = tree.row(number)?;
        match row.kind() {
            Kind::File if row.size() <= BLOCK_BYTES => {
                add_file(&mut writer, number, row.size(), row.id(), &[row.id()])?
            }
            Kind::File => add_file(
                &mut writer,
                number,
                row.size(),
                row.id(),
                &tree.digests(&row, 0..row.blocks())?,
            )?,
            Kind::Symlink => {
                let tsize = crate::unixfs::symlink::link(&tree.target(&row)?).tsize;
                writer.add(&row.id(), number, NodeKind::Node(NodePlace::Symlink), tsize)?;
            }
            Kind::Directory => {}
        }
    }
    let mut emit = |row, node: Node<'_>| add_node(&mut writer, row, &node);
    build_directories(tree, &mut emit, &mut |_, _| Ok(()))?;
    Ok(writer.finish(id)?)
}

fn add_file(
    writer: &mut IndexWriter<'_>,
    row: u32,
    size: u64,
    id: Digest,
    blocks: &[Digest],
) -> Result<(), IndexingError> {
    if size <= BLOCK_BYTES {
        return Ok(writer.add(&id, row, NodeKind::Block { index: 0 }, size)?);
    }
    for (index, digest) in (0..).zip(blocks) {
        writer.add(
            digest,
            row,
            NodeKind::Block { index },
            crate::block::block_len(size, index).into(),
        )?;
    }
    file::build(size, blocks.iter().copied(), &mut |node| {
        add_node(writer, row, &node)
    })
    .map_err(CatalogError::from)?;
    Ok(())
}

fn add_node(writer: &mut IndexWriter<'_>, row: u32, node: &Node<'_>) -> io::Result<()> {
    writer
        .add(
            &node.cid.digest(),
            row,
            NodeKind::Node(node.place),
            node.tsize,
        )
        .map_err(io::Error::other)
}
