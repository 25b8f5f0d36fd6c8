//! A catalog that is still being written, read as if it were finished.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;

use super::header::HEADER_BYTES;
use super::{Catalog, CatalogError, ReadAt, ReadError, Rule, Writer};

/// The parts of an unfinished catalog, one after the other.
#[derive(Debug)]
pub struct Draft<'a> {
    header: [u8; HEADER_BYTES as usize],
    /// Rows, digests and names, each with where it would lie.
    parts: [(&'a File, Range<u64>); 3],
}

impl ReadAt for Draft<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        if offset < HEADER_BYTES {
            return self.header.as_slice().read_at(offset, buffer);
        }
        // A catalog's reader never reads across two parts.
        let end = offset.saturating_add(buffer.len() as u64);
        match self
            .parts
            .iter()
            .find(|(_, part)| part.start <= offset && end <= part.end)
        {
            Some((file, part)) => file.read_at(offset - part.start, buffer),
            None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

impl Writer {
    /// Returns what was written so far as a catalog: the tree's shape, names and links. Ids and digests that were not
    /// set are zeros or anything else.
    ///
    /// # Errors
    /// [`CatalogError`]; [`Rule::Length`] when it is larger already than the format allows.
    pub fn draft(&mut self) -> Result<Catalog<Draft<'_>>, CatalogError> {
        self.names.flush()?;
        let header = self.header();
        let encoded = header.encode().ok_or(CatalogError::Whole(Rule::Length))?;
        let len = header.len();
        let parts = [
            (&self.rows, header.row_at(0)..header.digests_at()),
            (&self.digests, header.digests_at()..header.names_at()),
            (self.names.get_ref(), header.names_at()..len),
        ];
        Catalog::open(
            Draft {
                header: encoded,
                parts,
            },
            len,
        )
    }
}
