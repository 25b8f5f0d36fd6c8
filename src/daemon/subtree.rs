//! The rows below a directory, level by level, in constant memory.

use std::ops::Range;

use crate::catalog::{CatalogError, Kind, Row};
use crate::install::Tree;

/// Visits `top` and every row below it, parents before children.
///
/// Rows lie breadth-first, so what lies below one directory is one run of rows on each level.
///
/// # Errors
/// [`CatalogError`] of a row that cannot be read.
pub(super) fn rows(tree: &Tree, top: u32) -> Rows<'_> {
    Rows {
        tree,
        level: top..top + 1,
        next: NOTHING,
    }
}

/// No run yet: any row widens it.
const NOTHING: Range<u32> = Range {
    start: u32::MAX,
    end: 0,
};

/// An iterator over the rows of a subtree.
pub(super) struct Rows<'a> {
    tree: &'a Tree,
    level: Range<u32>,
    /// The run of the next level so far; empty while its start lies after its end.
    next: Range<u32>,
}

impl Iterator for Rows<'_> {
    type Item = Result<(u32, Row), CatalogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.level.is_empty() {
            self.level = std::mem::replace(&mut self.next, NOTHING);
        }
        let number = self.level.next()?;
        let row = match self.tree.row(number) {
            Ok(row) => row,
            Err(error) => {
                (self.level, self.next) = (0..0, NOTHING);
                return Some(Err(error));
            }
        };
        let children = row.children();
        if row.kind() == Kind::Directory && !children.is_empty() {
            self.next.start = self.next.start.min(children.start);
            self.next.end = self.next.end.max(children.end);
        }
        Some(Ok((number, row)))
    }
}
