//! Checks a whole catalog in one sequential pass and constant memory.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use super::header::{DIGEST_BYTES, Header};
use super::row::{ROW_BYTES, RawRow, Row};
use super::{Catalog, CatalogError, DEPTH_MAX, Kind, RESERVED_NAME, ReadAt, Rule, Totals};
use crate::block::{BLOCK_BYTES, Digest, block_count};
use crate::unixfs::{Cid, file, symlink};

/// Bytes that each cursor reads at once.
const CURSOR_BYTES: usize = 64 << 10;

/// Checks a catalog of `len` bytes against its format, and against what its manifest says.
///
/// What passes can be read by position without surprises. Ids of directories are locators and are not checked here;
/// [`super::verify_ids`] does that.
///
/// # Errors
/// [`CatalogError`] with the first rule that is broken.
pub fn validate(
    reader: &dyn ReadAt,
    len: u64,
    totals: &Totals,
    root: Cid,
) -> Result<(), CatalogError> {
    let catalog = Catalog::open(reader, len)?;
    let header = *catalog.header();
    if header.totals != *totals {
        return Err(CatalogError::Whole(Rule::Totals));
    }
    if catalog.row(0)?.cid() != root {
        return Err(CatalogError::Whole(Rule::RootId));
    }
    let mut pass = Pass::new(reader, header);
    for number in 0..header.rows {
        pass.row(number).map_err(|fault| match fault {
            Fault::Rule(rule) => CatalogError::Row { row: number, rule },
            Fault::Error(error) => error,
        })?;
    }
    pass.finish()
}

/// What is wrong with a row.
enum Fault {
    Rule(Rule),
    Error(CatalogError),
}

impl<E: Into<CatalogError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Fault::Error(error.into())
    }
}

/// The running totals of a pass, and where it is in each part.
struct Pass<'a> {
    header: Header,
    rows: Cursor<'a>,
    digests: Cursor<'a>,
    names: Cursor<'a>,
    parents: Parents<'a>,
    /// The row at which the next run of children begins.
    next_child: u64,
    next_digest: u64,
    next_name: u64,
    /// The name before, within one run.
    previous: Vec<u8>,
    name: Vec<u8>,
    target: Vec<u8>,
    depth: u32,
    /// The first row of the next level.
    level_end: u64,
    seen: Totals,
}

impl<'a> Pass<'a> {
    fn new(reader: &'a dyn ReadAt, header: Header) -> Self {
        Pass {
            rows: Cursor::new(reader, header.row_at(0), header.digests_at()),
            digests: Cursor::new(reader, header.digests_at(), header.names_at()),
            names: Cursor::new(reader, header.names_at(), header.len()),
            parents: Parents::new(reader, header),
            next_child: 1,
            next_digest: 0,
            next_name: 0,
            previous: Vec::new(),
            name: Vec::new(),
            target: Vec::new(),
            depth: 0,
            level_end: 1,
            seen: Totals::default(),
            header,
        }
    }

    fn row(&mut self, number: u32) -> Result<(), Fault> {
        let mut bytes = [0; ROW_BYTES as usize];
        self.rows.read(&mut bytes)?;
        let raw: &RawRow = zerocopy::transmute_ref!(&bytes);
        let row = Row::parse(raw, number, &self.header)?;
        self.place(&row)?;
        self.name(&row)?;
        match row.kind() {
            Kind::Directory => {
                self.seen.directories += 1;
                if row.size() > 0 {
                    if u64::from(row.first) != self.next_child {
                        return Err(Fault::Rule(Rule::First));
                    }
                    self.next_child += row.size();
                }
            }
            Kind::File => {
                self.seen.files += 1;
                self.seen.bytes = self
                    .seen
                    .bytes
                    .checked_add(row.size())
                    .ok_or(Fault::Rule(Rule::Totals))?;
                self.file(&row)?;
            }
            Kind::Symlink => {
                if symlink::link(&self.target).cid.digest() != row.id() {
                    return Err(Fault::Rule(Rule::LinkId));
                }
            }
        }
        Ok(())
    }

    /// Checks that the row lies in its parent's run, and not too deep.
    fn place(&mut self, row: &Row) -> Result<(), Fault> {
        let number = u64::from(row.number());
        if number == 0 {
            return Ok(());
        }
        if number == self.level_end {
            // Every directory of the level above has been seen, so its children end where the next run would begin.
            self.level_end = self.next_child;
            self.depth += 1;
            if self.depth > DEPTH_MAX {
                return Err(Fault::Rule(Rule::Depth));
            }
        }
        if number >= self.next_child {
            return Err(Fault::Rule(Rule::Parent));
        }
        if self.parents.of_next(row.number())? {
            self.previous.clear();
        }
        if row.parent() == self.parents.current {
            Ok(())
        } else {
            Err(Fault::Rule(Rule::Parent))
        }
    }

    fn name(&mut self, row: &Row) -> Result<(), Fault> {
        if u64::from(row.name) != self.next_name {
            return Err(Fault::Rule(Rule::NameOffset));
        }
        self.next_name = row.name_end();
        self.name.resize(row.name_len.into(), 0);
        self.names.read(&mut self.name)?;
        let name = &self.name[..];
        if row.number() != 0 {
            if matches!(name, b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
                return Err(Fault::Rule(Rule::Name));
            }
            // A run's first name follows nothing, which is less than any name.
            if *name <= self.previous[..] {
                return Err(Fault::Rule(Rule::NameOrder));
            }
            if row.parent() == 0 && name == RESERVED_NAME {
                return Err(Fault::Rule(Rule::ReservedName));
            }
        }
        std::mem::swap(&mut self.previous, &mut self.name);
        if row.kind() == Kind::Symlink {
            self.target
                .resize(usize::try_from(row.size()).unwrap_or(0), 0);
            self.names.read(&mut self.target)?;
            if self.target.contains(&0) {
                return Err(Fault::Rule(Rule::Target));
            }
        }
        Ok(())
    }

    fn file(&mut self, row: &Row) -> Result<(), Fault> {
        let wrong = Err(Fault::Rule(Rule::FileId));
        if row.size() <= BLOCK_BYTES {
            // What a small file's bytes hash to is seen when they are read; of an empty one it is known.
            return if row.size() == 0 && row.id() != Digest::EMPTY {
                wrong
            } else {
                Ok(())
            };
        }
        if u64::from(row.first) != self.next_digest {
            return Err(Fault::Rule(Rule::First));
        }
        let blocks = block_count(row.size());
        self.next_digest += 1 + blocks;
        let _whole = self.digests.digest()?;
        let mut failed = None;
        let leaves = (0..blocks).map_while(|_| {
            self.digests
                .digest()
                .map_err(|error| failed = Some(error))
                .ok()
        });
        let root = file::root(row.size(), leaves);
        if let Some(error) = failed {
            return Err(error.into());
        }
        if root.digest() == row.id() {
            Ok(())
        } else {
            wrong
        }
    }

    fn finish(self) -> Result<(), CatalogError> {
        let complete = self.next_child == u64::from(self.header.rows)
            && self.next_digest == self.header.digests
            && self.next_name == self.header.names
            && self.seen == self.header.totals;
        if complete {
            Ok(())
        } else {
            Err(CatalogError::Whole(Rule::Totals))
        }
    }
}

/// Which directory the next row belongs to: a second pass over the rows, behind the first.
struct Parents<'a> {
    header: Header,
    rows: Cursor<'a>,
    /// The number of the row that the cursor reads next.
    next: u32,
    current: u32,
    /// Children of `current` that are still to come.
    left: u64,
}

impl<'a> Parents<'a> {
    fn new(reader: &'a dyn ReadAt, header: Header) -> Self {
        let rows = Cursor::new(reader, header.row_at(0), header.digests_at());
        Parents {
            header,
            rows,
            next: 0,
            current: 0,
            left: 0,
        }
    }

    /// Moves on by one child; returns whether it is the first of its directory. `number` is the child's own row.
    fn of_next(&mut self, number: u32) -> Result<bool, Fault> {
        let first = self.left == 0;
        while self.left == 0 {
            // The caller has seen that some earlier directory claims this row, so one is found before it.
            if self.next >= number {
                return Err(Fault::Rule(Rule::Parent));
            }
            let mut bytes = [0; ROW_BYTES as usize];
            self.rows.read(&mut bytes)?;
            let row = Row::parse(zerocopy::transmute_ref!(&bytes), self.next, &self.header)?;
            if row.kind() == Kind::Directory {
                (self.current, self.left) = (self.next, row.size());
            }
            self.next += 1;
        }
        self.left -= 1;
        Ok(first)
    }
}

/// Reads one part from its start to its end.
struct Cursor<'a> {
    reader: &'a dyn ReadAt,
    buffer: Vec<u8>,
    /// Of `buffer`, what has been taken.
    taken: usize,
    /// Where the part goes on after `buffer`.
    next: u64,
    end: u64,
}

impl<'a> Cursor<'a> {
    fn new(reader: &'a dyn ReadAt, start: u64, end: u64) -> Self {
        Cursor {
            reader,
            buffer: Vec::new(),
            taken: 0,
            next: start,
            end,
        }
    }

    fn read(&mut self, mut out: &mut [u8]) -> Result<(), CatalogError> {
        while !out.is_empty() {
            if self.taken == self.buffer.len() {
                let len =
                    CURSOR_BYTES.min(usize::try_from(self.end - self.next).unwrap_or(usize::MAX));
                if len == 0 {
                    return Err(CatalogError::Whole(Rule::Length));
                }
                self.buffer.resize(len, 0);
                self.taken = 0;
                self.reader
                    .read_at(self.next, &mut self.buffer)
                    .inspect_err(|_| self.taken = len)?;
                self.next += len as u64;
            }
            let count = out.len().min(self.buffer.len() - self.taken);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&self.buffer[self.taken..self.taken + count]);
            self.taken += count;
            out = later;
        }
        Ok(())
    }

    fn digest(&mut self) -> Result<Digest, CatalogError> {
        let mut bytes = [0; DIGEST_BYTES as usize];
        self.read(&mut bytes)?;
        Ok(Digest::from_bytes(bytes))
    }
}
