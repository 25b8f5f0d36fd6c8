//! The ids of directories: built from their entries, children first.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;

use super::{Catalog, CatalogError, Kind, ReadAt, Row, Rule};
use crate::unixfs::{Link, Node, directory, file, symlink};

/// Builds the node of every directory, deepest rows first.
///
/// `emit` gets each node with the directory's row, `built` each finished directory. Memory holds the entries of one
/// directory and a link for each directory.
///
/// # Errors
/// [`CatalogError`] of a row, or of a callback.
pub fn build_directories<R: ReadAt>(
    catalog: &Catalog<R>,
    emit: &mut dyn FnMut(u32, Node<'_>) -> io::Result<()>,
    built: &mut dyn FnMut(&Row, Link) -> Result<(), CatalogError>,
) -> Result<Link, CatalogError> {
    let mut links: HashMap<u32, Link> = HashMap::new();
    // Children have higher rows than their directory, so downwards each finds its own done.
    for number in (0..catalog.rows()).rev() {
        let row = catalog.row(number)?;
        if row.kind() != Kind::Directory {
            continue;
        }
        let mut entries = Vec::with_capacity(row.children().len());
        let mut failed = None;
        catalog.entries(&row, 0, &mut |child, row, name| match link_of(
            catalog, row, &mut links, child,
        ) {
            Ok(link) => {
                entries.push(directory::Entry {
                    name: name.to_vec(),
                    link,
                });
                ControlFlow::Continue(())
            }
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let link = directory::build(&entries, &mut |node| emit(number, node))?;
        built(&row, link)?;
        links.insert(number, link);
    }
    links.remove(&0).ok_or(CatalogError::NoSuchRow(0))
}

fn link_of<R: ReadAt>(
    catalog: &Catalog<R>,
    row: &Row,
    links: &mut HashMap<u32, Link>,
    number: u32,
) -> Result<Link, CatalogError> {
    match row.kind() {
        // Each directory lies in one other, so its link is needed once.
        Kind::Directory => links.remove(&number).ok_or(CatalogError::Row {
            row: number,
            rule: Rule::Parent,
        }),
        Kind::File => Ok(Link {
            cid: row.cid(),
            tsize: file::tsize(row.size()),
        }),
        Kind::Symlink => Ok(symlink::link(&catalog.target(row)?)),
    }
}

/// Checks what [`super::validate`] leaves out: that the id of each directory is what its entries give.
///
/// # Errors
/// [`CatalogError::Row`] with [`Rule::DirectoryId`] for the deepest that is wrong.
pub fn verify_ids<R: ReadAt>(catalog: &Catalog<R>) -> Result<(), CatalogError> {
    build_directories(catalog, &mut |_, _| Ok(()), &mut |row, link| {
        if link.cid == row.cid() {
            Ok(())
        } else {
            Err(CatalogError::Row {
                row: row.number(),
                rule: Rule::DirectoryId,
            })
        }
    })?;
    Ok(())
}
