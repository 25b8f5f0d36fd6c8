//! The first 64 bytes: where everything lies.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::row::ROW_BYTES;
use super::{CatalogError, Rule, Totals};
use crate::block::BLOCK_BYTES;

/// The largest catalog, in bytes: 4 GiB, so that a name's offset fits 32 bits.
pub const CATALOG_BYTES_MAX: u64 = 1 << 32;

/// Bytes of the header.
pub(super) const HEADER_BYTES: u64 = 64;

/// Bytes of a digest.
pub(super) const DIGEST_BYTES: u64 = 32;

/// Its last character is the format; another format is another magic.
const MAGIC: [u8; 8] = *b"manifsc1";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    magic: [u8; 8],
    block_bytes: U32,
    zero: U32,
    rows: U64,
    digests: U64,
    names: U64,
    file_bytes: U64,
    files: U32,
    directories: U32,
    zero_too: U64,
}

/// The counts of a catalog, consistent with its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Rows, the root's included.
    pub rows: u32,
    /// Digests of all runs.
    pub digests: u64,
    /// Bytes of names and targets.
    pub names: u64,
    /// What the version holds.
    pub totals: Totals,
}

impl Header {
    /// Checks the header of a catalog of `len` bytes.
    pub(super) fn parse(
        bytes: &[u8; HEADER_BYTES as usize],
        len: u64,
    ) -> Result<Header, CatalogError> {
        let raw: &RawHeader = zerocopy::transmute_ref!(bytes);
        let whole = |rule| Err(CatalogError::Whole(rule));
        if raw.magic != MAGIC {
            return whole(Rule::Magic);
        }
        if u64::from(raw.block_bytes.get()) != BLOCK_BYTES {
            return whole(Rule::BlockBytes);
        }
        if raw.zero.get() != 0 || raw.zero_too.get() != 0 {
            return whole(Rule::Reserved);
        }
        let (digests, names) = (raw.digests.get(), raw.names.get());
        // With fewer than 2^26 rows in 4 GiB, a count that does not fit is a length that does not either.
        let Ok(rows @ 1..) = u32::try_from(raw.rows.get()) else {
            return whole(Rule::Length);
        };
        let expected = digests
            .checked_mul(DIGEST_BYTES)
            .and_then(|digests| digests.checked_add(names))
            .and_then(|rest| rest.checked_add(HEADER_BYTES + ROW_BYTES * u64::from(rows)));
        if expected != Some(len) || len > CATALOG_BYTES_MAX {
            return whole(Rule::Length);
        }
        let totals = Totals {
            files: raw.files.get().into(),
            directories: raw.directories.get().into(),
            bytes: raw.file_bytes.get(),
        };
        Ok(Header {
            rows,
            digests,
            names,
            totals,
        })
    }

    /// Encodes the header; `None` when a count does not fit the format.
    pub(super) fn encode(&self) -> Option<[u8; HEADER_BYTES as usize]> {
        if self.len() > CATALOG_BYTES_MAX {
            return None;
        }
        Some(zerocopy::transmute!(RawHeader {
            magic: MAGIC,
            block_bytes: U32::new(u32::try_from(BLOCK_BYTES).ok()?),
            zero: U32::ZERO,
            rows: U64::new(self.rows.into()),
            digests: U64::new(self.digests),
            names: U64::new(self.names),
            file_bytes: U64::new(self.totals.bytes),
            files: U32::new(u32::try_from(self.totals.files).ok()?),
            directories: U32::new(u32::try_from(self.totals.directories).ok()?),
            zero_too: U64::ZERO,
        }))
    }

    /// Returns the length of the whole catalog.
    pub fn len(&self) -> u64 {
        self.names_at().saturating_add(self.names)
    }

    /// Returns whether there is nothing, which is never the case: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns where a row lies.
    pub(super) fn row_at(&self, row: u32) -> u64 {
        HEADER_BYTES + ROW_BYTES * u64::from(row)
    }

    /// Returns where the digests begin.
    pub(super) fn digests_at(&self) -> u64 {
        self.row_at(self.rows)
    }

    /// Returns where the names begin.
    pub(super) fn names_at(&self) -> u64 {
        self.digests_at()
            .saturating_add(self.digests.saturating_mul(DIGEST_BYTES))
    }
}
