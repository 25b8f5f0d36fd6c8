//! Extended attributes: what is known of a file, asked for by name.

use super::{Attempt, Fs, FsError, Ino, Place, catalog_error};
use crate::block::BLOCK_BYTES;
use crate::catalog::Kind;

const PREFIX: &[u8] = b"user.manifs.";

impl Fs {
    /// Returns an attribute's value as text: `user.manifs.package`, `.version`, `.manifest`, `.signers`, `.digest`,
    /// `.cid`, `.cached` (percent), and `user.mime_type`; on directories those that apply.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`] for every other name, and the errors of a lookup.
    pub fn attribute(&self, ino: Ino, name: &[u8]) -> Attempt<Vec<u8>> {
        let (slot, number) = match ino.place() {
            Place::Row { slot, row } => (slot, row),
            Place::Root | Place::Door | Place::Name(_) | Place::Latest { .. } => {
                return Err(FsError::NoAttribute);
            }
        };
        let version = self.living(slot)?;
        if name == b"user.mime_type" {
            return self.mime_type(ino, number);
        }
        let text = match name.strip_prefix(PREFIX).ok_or(FsError::NoAttribute)? {
            b"package" => version.package().name.to_string(),
            b"version" => version.package().version.to_string(),
            b"manifest" => version.manifest_id().to_string(),
            b"signers" => version
                .signers()
                .map(|key| key.to_string())
                .collect::<Vec<_>>()
                .join(","),
            rest => return self.row_attribute(slot, number, rest),
        };
        Ok(text.into_bytes())
    }

    fn row_attribute(&self, slot: u32, number: u32, name: &[u8]) -> Attempt<Vec<u8>> {
        let version = self.living(slot)?;
        if !matches!(name, b"digest" | b"cid" | b"cached") {
            return Err(FsError::NoAttribute);
        }
        let tree = self.tree(&version)?;
        let row = self.row(&version, &tree, number)?;
        let text = match name {
            b"cid" => row.cid().to_string(),
            b"digest" if row.kind() == Kind::File && row.size() > BLOCK_BYTES => tree
                .whole(&row)
                .map_err(|error| catalog_error(&version, &error))?
                .to_string(),
            b"digest" if row.kind() == Kind::File => row.id().to_string(),
            b"cached" if row.kind() == Kind::File => {
                let cached = if row.size() == 0 {
                    0
                } else {
                    self.store.cached(&row.file())
                };
                percent(cached, row.size()).to_string()
            }
            _ => return Err(FsError::NoAttribute),
        };
        Ok(text.into_bytes())
    }

    fn mime_type(&self, ino: Ino, number: u32) -> Attempt<Vec<u8>> {
        let Place::Row { slot, .. } = ino.place() else {
            return Err(FsError::NoAttribute);
        };
        let version = self.living(slot)?;
        let tree = self.tree(&version)?;
        let row = self.row(&version, &tree, number)?;
        if row.kind() != Kind::File {
            return Err(FsError::NoAttribute);
        }
        let name = tree
            .name(&row)
            .map_err(|error| catalog_error(&version, &error))?;
        let name = String::from_utf8_lossy(&name);
        let guess = mime_guess::from_path(&*name)
            .first_raw()
            .ok_or(FsError::NoAttribute)?;
        Ok(guess.as_bytes().to_vec())
    }
}

/// Returns how much of a file is here, rounded down, so that 100 means all of it.
fn percent(cached: u64, size: u64) -> u64 {
    (cached.min(size) * 100).checked_div(size).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_hundred_percent_means_all_of_it() {
        assert_eq!(
            [
                percent(0, 0),
                percent(0, 3),
                percent(2, 3),
                percent(3, 3),
                percent(1 << 50, 1 << 50)
            ],
            [100, 0, 66, 100, 100]
        );
    }
}
