//! A catalog's `SHA256SUMS`, in row order.

use std::io::{self, Write};
use std::ops::ControlFlow;

use super::{Catalog, CatalogError, Kind, ReadAt};
use crate::manifest::sums;

/// Writes a line for each regular file.
///
/// # Errors
/// [`CatalogError`]; those of `out` as [`super::ReadError::Io`].
pub fn write<R: ReadAt>(catalog: &Catalog<R>, out: &mut dyn Write) -> Result<(), CatalogError> {
    // Children are one run, and runs lie in their directories' order: so this is row order.
    catalog.scan(0..catalog.rows(), &mut |directory| {
        if directory.children().is_empty() {
            return Ok(());
        }
        let mut path = catalog.path(directory.number())?;
        if !path.is_empty() {
            path.push(b'/');
        }
        let prefix = path.len();
        let mut outcome = Ok(());
        catalog.entries(directory, 0, &mut |_, row, name| {
            if row.kind() == Kind::File {
                path.truncate(prefix);
                path.extend_from_slice(name);
                outcome = catalog
                    .whole(row)
                    .and_then(|digest| Ok(out.write_all(&sums::line(digest, &path))?));
            }
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        outcome
    })
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
