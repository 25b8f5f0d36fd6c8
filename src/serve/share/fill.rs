//! Puts what a version consists of into the index: its blocks, inner nodes, directories, symlinks, and its catalog.

use std::io;

use crate::block::BLOCK_BYTES;
use crate::catalog::{Kind, Row, build_directories};
use crate::install::{Listed, Tree, catalog_file};
use crate::store::{Index, IndexWriter, NodeKind};
use crate::unixfs::file::Builder;
use crate::unixfs::{Node, NodePlace, symlink};

use super::SharedError;

/// The row under which the catalog itself is in the index; no catalog of 4 GiB has so many rows.
pub(super) const CATALOG_ROW: u32 = u32::MAX;

/// Digests that are read from a catalog at once.
const DIGESTS: u64 = 1 << 14;

/// Puts a version into the index, reading its catalog once.
pub(super) fn fill(index: &Index, listed: &Listed, tree: &Tree) -> Result<(), SharedError> {
    let mut writer = index.begin(listed.slot());
    for number in 0..tree.rows() {
        let row = tree.row(number)?;
        match row.kind() {
            // By `build_directories`, which has to go through them children first.
            Kind::Directory => {}
            Kind::File if row.size() <= BLOCK_BYTES => {
                writer.add(&row.id(), number, NodeKind::Block { index: 0 }, row.size())?;
            }
            Kind::File => large(&mut writer, tree, &row)?,
            Kind::Symlink => {
                let link = symlink::link(&tree.target(&row)?);
                let what = NodeKind::Node(NodePlace::Symlink);
                writer.add(&row.id(), number, what, link.tsize)?;
            }
        }
    }
    build_directories(
        tree,
        &mut |number, node| emit(&mut writer, number, node),
        &mut |_, _| Ok(()),
    )?;
    let catalog = catalog_file(listed.manifest());
    let mut builder = Builder::new(catalog.size);
    for (digest, block) in listed.manifest().catalog.blocks.iter().zip(0..) {
        let len = crate::block::block_len(catalog.size, block).into();
        let what = NodeKind::Block { index: block };
        writer.add(digest, CATALOG_ROW, what, len)?;
        builder.push(*digest, &mut |node| emit(&mut writer, CATALOG_ROW, node))?;
    }
    builder.finish(&mut |node| emit(&mut writer, CATALOG_ROW, node))?;
    writer.finish(listed.manifest_id().0)?;
    Ok(())
}

fn large(writer: &mut IndexWriter<'_>, tree: &Tree, row: &Row) -> Result<(), SharedError> {
    let mut builder = Builder::new(row.size());
    let blocks = row.blocks();
    let mut next = 0;
    while next < blocks {
        let until = blocks.min(next + DIGESTS);
        for (digest, block) in tree.digests(row, next..until)?.into_iter().zip(next..) {
            let len = crate::block::block_len(row.size(), block).into();
            let what = NodeKind::Block { index: block };
            writer.add(&digest, row.number(), what, len)?;
            builder.push(digest, &mut |node| emit(writer, row.number(), node))?;
        }
        next = until;
    }
    builder.finish(&mut |node| emit(writer, row.number(), node))?;
    Ok(())
}

fn emit(writer: &mut IndexWriter<'_>, row: u32, node: Node<'_>) -> io::Result<()> {
    let what = NodeKind::Node(node.place);
    writer
        .add(&node.cid.digest(), row, what, node.tsize)
        .map_err(io::Error::other)
}

impl From<io::Error> for SharedError {
    fn from(error: io::Error) -> Self {
        SharedError::Failed(error.to_string())
    }
}
