//! A catalog's `SHA256SUMS`, in row order.

use std::io::{self, Write};

use super::{Catalog, CatalogError, Kind, ReadAt};
use crate::manifest::sums;

/// Writes a line for each regular file.
///
/// # Errors
/// [`CatalogError`]; those of `out` as [`super::ReadError::Io`].
pub fn write<R: ReadAt>(catalog: &Catalog<R>, out: &mut dyn Write) -> Result<(), CatalogError> {
    // Rows of one directory follow each other, so its path is found once.
    let mut parent: Option<(u32, Vec<u8>)> = None;
    for number in 1..catalog.rows() {
        let row = catalog.row(number)?;
        if row.kind() != Kind::File {
            continue;
        }
        let mut path = match &parent {
            Some((known, path)) if *known == row.parent() => path.clone(),
            _ => {
                let mut path = catalog.path(row.parent())?;
                if !path.is_empty() {
                    path.push(b'/');
                }
                parent = Some((row.parent(), path.clone()));
                path
            }
        };
        path.extend_from_slice(&catalog.name(&row)?);
        out.write_all(&sums::line(catalog.whole(&row)?, &path))?;
    }
    Ok(())
}

/// Returns the whole text, or nothing when it is longer than `max_bytes`.
///
/// # Errors
/// [`CatalogError`]
pub fn text<R: ReadAt>(
    catalog: &Catalog<R>,
    max_bytes: u64,
) -> Result<Option<Vec<u8>>, CatalogError> {
    let mut text = Bounded {
        bytes: Vec::new(),
        max_bytes,
        over: false,
    };
    match write(catalog, &mut text) {
        Err(_) if text.over => Ok(None),
        outcome => outcome.map(|()| Some(text.bytes)),
    }
}

/// Bytes up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    max_bytes: u64,
    over: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.max_bytes {
            self.over = true;
            return Err(io::Error::other("longer than the limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
