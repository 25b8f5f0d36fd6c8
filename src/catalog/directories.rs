//! The ids of directories: built from their entries, children first.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;

use super::batch::{BATCH_ROWS, Batch};
use super::{Catalog, CatalogError, Kind, ReadAt, Row, Rule};
use crate::unixfs::{Link, Node, directory, file, symlink};

/// Entries that room is made for at once, whatever a row says.
const ENTRIES_AT_ONCE: usize = 1 << 16;

/// Builds the node of every directory, deepest rows first.
///
/// `emit` gets each node with the directory's row, `built` each finished directory. Memory holds the entries of one
/// directory, and some 50 bytes for each directory whose parent's turn has not come: those of about one level. The time
/// grows with the rows, also when these are not valid.
///
/// # Errors
/// [`CatalogError`] of a row, or of a callback.
pub fn build_directories<R: ReadAt>(
    catalog: &Catalog<R>,
    emit: &mut dyn FnMut(u32, Node<'_>) -> io::Result<()>,
    built: &mut dyn FnMut(&Row, Link) -> Result<(), CatalogError>,
) -> Result<Link, CatalogError> {
    let mut pass = Pass {
        catalog,
        waiting: VecDeque::new(),
        claimed: catalog.rows(),
    };
    let mut root = None;
    let mut batch = Batch::new();
    let mut end = catalog.rows();
    // Children have higher rows than their directory, so downwards each finds its own done.
    while end > 0 {
        let start = (end - 1) / BATCH_ROWS * BATCH_ROWS;
        batch.read_rows(catalog, start, end - start)?;
        for index in (0..batch.len()).rev() {
            let row = batch.row(catalog, index)?;
            if row.kind() == Kind::Directory {
                let entries = pass.entries(&row)?;
                let link = directory::build(&entries, &mut |node| emit(row.number(), node))?;
                built(&row, link)?;
                pass.waiting.push_back((row.number(), link));
                root = Some(link);
            }
        }
        end = start;
    }
    root.ok_or(CatalogError::NoSuchRow(0))
}

/// A walk through the directories, from the last row to the first.
struct Pass<'a, R> {
    catalog: &'a Catalog<R>,
    /// Built directories whose parent is still to come. Runs lie in their directories' order, so what is built first
    /// is needed first.
    waiting: VecDeque<(u32, Link)>,
    /// The row at which the run of children begins that was read last; the next one ends before it.
    claimed: u32,
}

impl<R: ReadAt> Pass<'_, R> {
    fn entries(&mut self, row: &Row) -> Result<Vec<directory::Entry>, CatalogError> {
        let children = row.children();
        if children.is_empty() {
            return Ok(Vec::new());
        }
        // No row is anybody's child twice, so all runs together are no longer than the catalog.
        if children.end > self.claimed {
            return Err(CatalogError::Row {
                row: row.number(),
                rule: Rule::First,
            });
        }
        self.claimed = children.start;
        let mut entries = Vec::with_capacity(children.len().min(ENTRIES_AT_ONCE));
        let mut directories = Vec::new();
        let mut failed = None;
        self.catalog.entries(row, 0, &mut |number, child, name| {
            if child.kind() == Kind::Directory {
                directories.push((entries.len(), number));
            }
            match self.link_of(child) {
                Ok(link) => entries.push(directory::Entry {
                    name: name.to_vec(),
                    link,
                }),
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for (index, number) in directories.into_iter().rev() {
            entries[index].link = match self.waiting.pop_front() {
                Some((waiting, link)) if waiting == number => link,
                _ => {
                    return Err(CatalogError::Row {
                        row: number,
                        rule: Rule::Parent,
                    });
                }
            };
        }
        Ok(entries)
    }

    /// Returns the link to a child; a directory's is a placeholder until all children are known.
    fn link_of(&self, child: &Row) -> Result<Link, CatalogError> {
        match child.kind() {
            Kind::Directory => Ok(Link {
                cid: child.cid(),
                tsize: 0,
            }),
            Kind::File => Ok(Link {
                cid: child.cid(),
                tsize: file::tsize(child.size()),
            }),
            Kind::Symlink => Ok(symlink::link(&self.catalog.target(child)?)),
        }
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
