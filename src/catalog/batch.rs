//! Neighbouring rows and their names, each read at once.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use zerocopy::{FromBytes, IntoBytes};

use super::row::{ROW_BYTES, RawRow, Row};
use super::{Catalog, CatalogError, ReadAt};

/// Rows that are read at once: one page of memory.
pub(super) const BATCH_ROWS: u32 = 64;

/// Bytes of names that are read at once; rows with longer ones, which only links have, are read one by one.
const BATCH_NAME_BYTES: u64 = 32 << 10;

/// Some neighbouring rows of a catalog, and their names. One serves many reads, so that these allocate nothing.
pub(super) struct Batch {
    rows: [u8; BATCH_ROWS as usize * ROW_BYTES as usize],
    first: u32,
    count: u32,
    names: Vec<u8>,
    /// Where `names` begins in the catalog's names.
    names_start: u64,
}

impl Batch {
    /// Returns a batch that holds nothing yet.
    pub(super) fn new() -> Self {
        Batch {
            rows: [0; BATCH_ROWS as usize * ROW_BYTES as usize],
            first: 0,
            count: 0,
            names: Vec::new(),
            names_start: 0,
        }
    }

    /// Reads `count` rows from row `first`, at most [`BATCH_ROWS`], without their names.
    pub(super) fn read_rows<R: ReadAt>(
        &mut self,
        catalog: &Catalog<R>,
        first: u32,
        count: u32,
    ) -> Result<(), CatalogError> {
        let count = count.min(BATCH_ROWS);
        if u64::from(first) + u64::from(count) > catalog.rows().into() {
            return Err(CatalogError::NoSuchRow(first));
        }
        (self.first, self.count) = (first, 0);
        self.names.clear();
        let bytes = &mut self.rows[..count as usize * ROW_BYTES as usize];
        catalog
            .reader()
            .read_at(catalog.header().row_at(first), bytes)?;
        self.count = count;
        Ok(())
    }

    /// Reads `count` rows from row `first`, at most [`BATCH_ROWS`], and what lies between the first one's name and the
    /// last one's: in a valid catalog all their names.
    pub(super) fn read<R: ReadAt>(
        &mut self,
        catalog: &Catalog<R>,
        first: u32,
        count: u32,
    ) -> Result<(), CatalogError> {
        self.read_rows(catalog, first, count)?;
        let Some(last) = self.count.checked_sub(1) else {
            return Ok(());
        };
        let start = self.row(catalog, 0)?.name.into();
        let end = self.row(catalog, last)?.name_end();
        if let Some(len @ 1..=BATCH_NAME_BYTES) = end.checked_sub(start) {
            self.names.resize(len as usize, 0);
            self.names_start = start;
            let at = catalog.header().names_at() + start;
            catalog.reader().read_at(at, &mut self.names)?;
        }
        Ok(())
    }

    /// Returns how many rows it holds.
    pub(super) fn len(&self) -> u32 {
        self.count
    }

    /// Decodes the row at `index`.
    pub(super) fn row<R: ReadAt>(
        &self,
        catalog: &Catalog<R>,
        index: u32,
    ) -> Result<Row, CatalogError> {
        let number = self.first + index;
        let raws = <[RawRow]>::ref_from_bytes(self.rows.as_bytes());
        match raws.ok().and_then(|raws| raws.get(index as usize)) {
            Some(raw) if index < self.count => Row::parse(raw, number, catalog.header()),
            _ => Err(CatalogError::NoSuchRow(number)),
        }
    }

    /// Gives `use_name` the name of one of its rows, which is read when it lies elsewhere.
    pub(super) fn with_name<R: ReadAt, T>(
        &self,
        catalog: &Catalog<R>,
        row: &Row,
        use_name: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, CatalogError> {
        match self.name(row) {
            Some(name) => Ok(use_name(name)),
            None => Ok(use_name(&catalog.name(row)?)),
        }
    }

    fn name(&self, row: &Row) -> Option<&[u8]> {
        let start = usize::try_from(u64::from(row.name).checked_sub(self.names_start)?).ok()?;
        self.names.get(start..start + usize::from(row.name_len))
    }
}
