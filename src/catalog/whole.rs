//! The digest of a whole large file, which only its bytes can prove.

use sha2::{Digest as _, Sha256};

use super::{Catalog, CatalogError, ReadAt, Row, Rule};
use crate::block::Digest;

/// Hashes a file's bytes, to compare them with what its catalog says of the whole.
///
/// No block is read by this digest, so neither [`super::validate`] nor a read looks at it; `SHA256SUMS` is made of it.
#[derive(Clone, Debug, Default)]
pub struct WholeFile(Sha256);

impl WholeFile {
    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes.
    pub fn digest(self) -> Digest {
        Digest::from_bytes(self.0.finalize().into())
    }

    /// Compares all bytes with the digest of the file in `row`.
    ///
    /// # Errors
    /// [`Rule::WholeDigest`] when it is another one; [`CatalogError::WrongKind`] when the row is no file.
    pub fn check<R: ReadAt>(self, catalog: &Catalog<R>, row: &Row) -> Result<(), CatalogError> {
        if catalog.whole(row)? == self.digest() {
            Ok(())
        } else {
            Err(CatalogError::Row {
                row: row.number(),
                rule: Rule::WholeDigest,
            })
        }
    }
}
