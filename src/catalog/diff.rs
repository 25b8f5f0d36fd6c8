//! What differs between two trees, from their catalogs alone: no byte of a file is read.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::{Catalog, CatalogError, Kind, ReadAt, Row};

/// Children of a directory that are read at once, and kept for each level of the tree.
const AHEAD: usize = 512;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is only in the second tree.
    Added,
    /// It is only in the first tree.
    Removed,
    /// It has another content or, a link, another target; its mode may be another one, too.
    Changed,
    /// Only its permission bits are others.
    Mode,
    /// It is something else: file, directory or link. What lay below it is removed, what lies below it is added.
    Type,
}

/// A path that is not the same in both trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// From what is compared; empty for that itself.
    pub path: Vec<u8>,
    /// What became of it.
    pub what: What,
    /// Its row in the first tree.
    pub before: Option<Row>,
    /// Its row in the second tree.
    pub after: Option<Row>,
}

/// An iterator over the differences of two trees, in the order of their paths, each directory before what lies in it.
///
/// Every directory is compared, whatever its id says: modes are not part of it. Memory holds some hundred entries for
/// each level of the tree.
pub struct Diff<'a, R, S> {
    before: &'a Catalog<R>,
    after: &'a Catalog<S>,
    /// Still to be compared: what the diff begins with.
    start: Option<(Row, Row)>,
    levels: Vec<Level>,
    path: Vec<u8>,
    times: u64,
}

/// A directory that is being compared.
struct Level {
    before: Option<Children>,
    after: Option<Children>,
    /// Bytes of its path.
    path_len: usize,
}

/// The children of a directory that are still to come.
struct Children {
    directory: Row,
    next: u32,
    ready: VecDeque<(Row, Vec<u8>)>,
}

impl Children {
    fn new(directory: Row) -> Children {
        Children {
            directory,
            next: 0,
            ready: VecDeque::new(),
        }
    }

    fn peek<R: ReadAt>(&mut self, catalog: &Catalog<R>) -> Result<Option<&[u8]>, CatalogError> {
        if self.ready.is_empty() {
            let ready = &mut self.ready;
            catalog.entries(&self.directory, self.next, &mut |_, row, name| {
                ready.push_back((*row, name.to_vec()));
                if ready.len() < AHEAD {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
        }
        Ok(self.ready.front().map(|(_, name)| name.as_slice()))
    }

    fn take(&mut self) -> Option<(Row, Vec<u8>)> {
        let taken = self.ready.pop_front();
        self.next += u32::from(taken.is_some());
        taken
    }
}

/// Compares what lies at and below a row of one catalog with what lies at and below a row of another.
pub fn diff<'a, R: ReadAt, S: ReadAt>(
    before: (&'a Catalog<R>, Row),
    after: (&'a Catalog<S>, Row),
) -> Diff<'a, R, S> {
    Diff {
        before: before.0,
        after: after.0,
        start: Some((before.1, after.1)),
        levels: Vec::new(),
        path: Vec::new(),
        times: 0,
    }
}

impl<R: ReadAt, S: ReadAt> Diff<'_, R, S> {
    /// Returns how many files and links, so far, differ in nothing but their times.
    pub fn times(&self) -> u64 {
        self.times
    }

    fn step(&mut self) -> Result<Option<Difference>, CatalogError> {
        if let Some((before, after)) = self.start.take()
            && let Some(found) = self.pair(before, after)
        {
            return Ok(Some(found));
        }
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path_len);
            let before = match &mut level.before {
                Some(children) => children.peek(self.before)?,
                None => None,
            };
            let after = match &mut level.after {
                Some(children) => children.peek(self.after)?,
                None => None,
            };
            let order = match (before, after) {
                (Some(before), Some(after)) => before.cmp(after),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => {
                    self.levels.pop();
                    continue;
                }
            };
            let (mut old, mut new) = (None, None);
            if order.is_le() {
                old = level.before.as_mut().and_then(Children::take);
            }
            if order.is_ge() {
                new = level.after.as_mut().and_then(Children::take);
            }
            if let Some((_, name)) = old.as_ref().or(new.as_ref()) {
                if !self.path.is_empty() {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(name);
            }
            let found = match (old, new) {
                (Some((before, _)), Some((after, _))) => self.pair(before, after),
                (Some((before, _)), None) => Some(self.single(What::Removed, Some(before), None)),
                (None, Some((after, _))) => Some(self.single(What::Added, None, Some(after))),
                (None, None) => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Judges a path that is in both trees.
    fn pair(&mut self, before: Row, after: Row) -> Option<Difference> {
        self.descend(Some(before), Some(after));
        let what = if before.kind() != after.kind() {
            What::Type
        } else if before.kind() != Kind::Directory
            && (before.id() != after.id() || before.size() != after.size())
        {
            What::Changed
        } else if before.mode() != after.mode() {
            What::Mode
        } else {
            let file = before.kind() != Kind::Directory;
            self.times += u64::from(file && before.mtime_ns() != after.mtime_ns());
            return None;
        };
        Some(self.difference(what, Some(before), Some(after)))
    }

    fn single(&mut self, what: What, before: Option<Row>, after: Option<Row>) -> Difference {
        self.descend(before, after);
        self.difference(what, before, after)
    }

    fn difference(&self, what: What, before: Option<Row>, after: Option<Row>) -> Difference {
        Difference {
            path: self.path.clone(),
            what,
            before,
            after,
        }
    }

    /// Goes on with what lies below the path, if it is a directory on either side.
    fn descend(&mut self, before: Option<Row>, after: Option<Row>) {
        let children = |row: Option<Row>| {
            row.filter(|row| row.kind() == Kind::Directory)
                .map(Children::new)
        };
        let (before, after) = (children(before), children(after));
        if before.is_some() || after.is_some() {
            self.levels.push(Level {
                before,
                after,
                path_len: self.path.len(),
            });
        }
    }
}

impl<R: ReadAt, S: ReadAt> Iterator for Diff<'_, R, S> {
    type Item = Result<Difference, CatalogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.step().transpose();
        if matches!(found, Some(Err(_))) {
            self.levels.clear();
        }
        found
    }
}
