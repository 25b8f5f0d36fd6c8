//! Reads single rows by position.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::cmp::Ordering;
use std::ops::{ControlFlow, Range};

use super::batch::Batch;
use super::header::{DIGEST_BYTES, HEADER_BYTES, Header};
use super::row::ROW_BYTES;
use super::{CatalogError, DEPTH_MAX, Kind, ReadAt, Row, Rule, Totals};
use crate::block::{BLOCK_BYTES, BlockRef, Digest};

/// When so few children are left, a lookup reads them all at once: one read costs less than five more steps.
const LOOKUP_ROWS: u32 = 32;

/// Takes a row of a listing, with its number and name.
pub type VisitRow<'a> = &'a mut dyn FnMut(u32, &Row, &[u8]) -> ControlFlow<()>;

/// Takes a row with its name, or says why no more are wanted.
pub type VisitNamed<'a, E> = &'a mut dyn FnMut(&Row, &[u8]) -> Result<(), E>;

/// A catalog whose header is right. Rows are checked when they are read.
pub struct Catalog<R> {
    reader: R,
    header: Header,
}

impl<R: ReadAt> Catalog<R> {
    /// Opens a catalog of `len` bytes: reads and checks its header.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn open(reader: R, len: u64) -> Result<Catalog<R>, CatalogError> {
        if len < HEADER_BYTES {
            return Err(CatalogError::Whole(Rule::Length));
        }
        let mut bytes = [0; HEADER_BYTES as usize];
        reader.read_at(0, &mut bytes)?;
        let header = Header::parse(&bytes, len)?;
        Ok(Catalog { reader, header })
    }

    /// Returns where the bytes come from.
    pub fn reader(&self) -> &R {
        &self.reader
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> u32 {
        self.header.rows
    }

    /// Returns what the header says that the version holds.
    pub fn totals(&self) -> Totals {
        self.header.totals
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn row(&self, number: u32) -> Result<Row, CatalogError> {
        if number >= self.header.rows {
            return Err(CatalogError::NoSuchRow(number));
        }
        let mut bytes = [0; ROW_BYTES as usize];
        self.reader
            .read_at(self.header.row_at(number), &mut bytes)?;
        Row::parse(zerocopy::transmute_ref!(&bytes), number, &self.header)
    }

    /// Reads a row's name; the root has none.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn name(&self, row: &Row) -> Result<Vec<u8>, CatalogError> {
        let mut name = vec![0; row.name_len.into()];
        self.reader
            .read_at(self.header.names_at() + u64::from(row.name), &mut name)?;
        Ok(name)
    }

    /// Reads a link's target.
    ///
    /// # Errors
    /// [`CatalogError::WrongKind`] for everything but a link.
    pub fn target(&self, row: &Row) -> Result<Vec<u8>, CatalogError> {
        if row.kind != Kind::Symlink {
            return Err(CatalogError::WrongKind(row.number));
        }
        // At most TARGET_BYTES_MAX: `Row::parse` has seen to it.
        let mut target = vec![0; usize::try_from(row.size).unwrap_or(0)];
        let at = self.header.names_at() + u64::from(row.name) + u64::from(row.name_len);
        self.reader.read_at(at, &mut target)?;
        Ok(target)
    }

    /// Finds a child by its name: a binary search.
    ///
    /// # Errors
    /// [`CatalogError`]; [`CatalogError::WrongKind`] when `directory` is none.
    pub fn lookup(&self, directory: &Row, name: &[u8]) -> Result<Option<(u32, Row)>, CatalogError> {
        if directory.kind != Kind::Directory {
            return Err(CatalogError::WrongKind(directory.number));
        }
        let Range { mut start, mut end } = directory.children();
        let mut buffer = [0; u8::MAX as usize];
        while end - start > LOOKUP_ROWS {
            let middle = start + (end - start) / 2;
            let row = self.row(middle)?;
            let found = &mut buffer[..row.name_len.into()];
            self.reader
                .read_at(self.header.names_at() + u64::from(row.name), found)?;
            match (*found).cmp(name) {
                Ordering::Less => start = middle + 1,
                Ordering::Greater => end = middle,
                Ordering::Equal => return Ok(Some((middle, row))),
            }
        }
        if start == end {
            return Ok(None);
        }
        let mut batch = Batch::new();
        batch.read(self, start, end - start)?;
        let (mut low, mut high) = (0, batch.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let row = batch.row(self, middle)?;
            match batch.with_name(self, &row, |found| found.cmp(name))? {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Some((row.number, row))),
            }
        }
        Ok(None)
    }

    /// Visits the children of a directory in order, from child number `from`, until `visit` breaks.
    ///
    /// Reads many rows, and their names, at once: this is what listings live on.
    ///
    /// # Errors
    /// [`CatalogError`]; children visited before it were right.
    pub fn entries(
        &self,
        directory: &Row,
        from: u32,
        visit: VisitRow<'_>,
    ) -> Result<(), CatalogError> {
        if directory.kind != Kind::Directory {
            return Err(CatalogError::WrongKind(directory.number));
        }
        let children = directory.children();
        let mut next = children.start.saturating_add(from);
        let mut batch = Batch::new();
        while next < children.end {
            batch.read(self, next, children.end - next)?;
            for index in 0..batch.len() {
                let row = batch.row(self, index)?;
                let flow = batch.with_name(self, &row, |name| visit(row.number, &row, name))?;
                if flow.is_break() {
                    return Ok(());
                }
            }
            next += batch.len();
        }
        Ok(())
    }

    /// Visits rows in order, many at a read, without their names.
    ///
    /// # Errors
    /// [`CatalogError`], of a row or of `visit`.
    pub fn scan<E: From<CatalogError>>(
        &self,
        rows: Range<u32>,
        visit: &mut dyn FnMut(&Row) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut batch = Batch::new();
        let mut next = rows.start;
        while next < rows.end {
            batch.read_rows(self, next, rows.end - next)?;
            for index in 0..batch.len() {
                visit(&batch.row(self, index)?)?;
            }
            next += batch.len();
        }
        Ok(())
    }

    /// Visits rows in order with their names, many at a read.
    ///
    /// # Errors
    /// [`CatalogError`], of a row or of `visit`.
    pub fn scan_named<E: From<CatalogError>>(
        &self,
        rows: Range<u32>,
        visit: VisitNamed<'_, E>,
    ) -> Result<(), E> {
        let mut batch = Batch::new();
        let mut next = rows.start;
        while next < rows.end {
            batch.read(self, next, rows.end - next)?;
            for index in 0..batch.len() {
                let row = batch.row(self, index)?;
                batch.with_name(self, &row, |name| visit(&row, name))??;
            }
            next += batch.len();
        }
        Ok(())
    }

    /// Reads the digests of some blocks of a file of more than one.
    ///
    /// # Errors
    /// [`CatalogError`]; [`CatalogError::WrongKind`] for other rows, and for blocks past the end.
    pub fn digests(&self, row: &Row, blocks: Range<u64>) -> Result<Vec<Digest>, CatalogError> {
        if row.kind != Kind::File
            || row.size <= BLOCK_BYTES
            || blocks.end > row.blocks()
            || blocks.start > blocks.end
        {
            return Err(CatalogError::WrongKind(row.number));
        }
        // Digest 0 of a run is the whole file's.
        self.run(row, 1 + blocks.start, blocks.end - blocks.start)
    }

    /// Reads the SHA-256 of a whole file.
    ///
    /// # Errors
    /// [`CatalogError`]; [`CatalogError::WrongKind`] for everything but a file.
    pub fn whole(&self, row: &Row) -> Result<Digest, CatalogError> {
        match row.kind {
            Kind::File if row.size <= BLOCK_BYTES => Ok(row.id),
            Kind::File => self
                .run(row, 0, 1)?
                .pop()
                .ok_or(CatalogError::WrongKind(row.number)),
            Kind::Directory | Kind::Symlink => Err(CatalogError::WrongKind(row.number)),
        }
    }

    /// Returns one block of a file: what to look for in the store and ask of sources.
    ///
    /// # Errors
    /// [`CatalogError`]; [`CatalogError::WrongKind`] when there is no such block.
    pub fn block(&self, row: &Row, index: u64) -> Result<BlockRef, CatalogError> {
        if index >= row.blocks() {
            return Err(CatalogError::WrongKind(row.number));
        }
        let digest = if row.size <= BLOCK_BYTES {
            row.id
        } else {
            let mut bytes = [0; DIGEST_BYTES as usize];
            let at = self.header.digests_at() + (u64::from(row.first) + 1 + index) * DIGEST_BYTES;
            self.reader.read_at(at, &mut bytes)?;
            Digest::from_bytes(bytes)
        };
        Ok(BlockRef {
            file: row.file(),
            index,
            digest,
        })
    }

    fn run(&self, row: &Row, skip: u64, count: u64) -> Result<Vec<Digest>, CatalogError> {
        // `Row::parse` has checked that the run lies among the digests, so its length is bounded by the catalog's.
        let len = usize::try_from(count * DIGEST_BYTES)
            .map_err(|_| CatalogError::WrongKind(row.number))?;
        let mut bytes = vec![0; len];
        let at = self.header.digests_at() + (u64::from(row.first) + skip) * DIGEST_BYTES;
        self.reader.read_at(at, &mut bytes)?;
        let (digests, _) = bytes.as_chunks::<{ DIGEST_BYTES as usize }>();
        Ok(digests.iter().copied().map(Digest::from_bytes).collect())
    }

    /// Returns the path of a row from the root, without a leading slash; empty for the root.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn path(&self, number: u32) -> Result<Vec<u8>, CatalogError> {
        let mut row = self.row(number)?;
        let mut names = Vec::new();
        while row.number != 0 {
            if names.len() > DEPTH_MAX as usize {
                return Err(CatalogError::Row {
                    row: number,
                    rule: Rule::Depth,
                });
            }
            names.push(self.name(&row)?);
            row = self.row(row.parent)?;
        }
        names.reverse();
        Ok(names.join(&b'/'))
    }

    /// Finds an entry by its path from the root; no link is followed.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub fn find(&self, path: &[u8]) -> Result<Option<(u32, Row)>, CatalogError> {
        let mut found = (0, self.row(0)?);
        for part in path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
        {
            if found.1.kind != Kind::Directory {
                return Ok(None);
            }
            match self.lookup(&found.1, part)? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }
}
