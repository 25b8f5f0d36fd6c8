//! Whether a symlink leaves its version.
//!
//! Judged by walking the tree part by part with links followed, never by text: `a/../..` leaves or not depending on
//! whether `a` is a link.

use super::{Catalog, CatalogError, DEPTH_MAX, Kind, ReadAt, Row, Rule};

/// Links that one walk follows at most, as the kernel does.
const LINKS_MAX: u32 = 40;

/// Returns whether following the link in row `link` leads out of its version, at whatever step.
///
/// Absolute targets leave, and so does one that passes above the root, even if it comes back. What does not exist
/// counts as a plain directory. A chain of more than 40 links ends in `ELOOP`, so it leads nowhere.
///
/// # Errors
/// [`CatalogError`]; [`CatalogError::WrongKind`] when the row is no link.
pub fn leaves<R: ReadAt>(catalog: &Catalog<R>, link: u32) -> Result<bool, CatalogError> {
    let row = catalog.row(link)?;
    let mut above = ancestors(catalog, row.parent())?;
    // The parts still to be walked, the next one last.
    let mut parts = Vec::new();
    let mut followed = 0;
    if push_target(&catalog.target(&row)?, &mut parts) {
        return Ok(true);
    }
    while let Some(part) = parts.pop() {
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                // Where we are is popped; the root has nothing above it.
                above.pop();
                if above.is_empty() {
                    return Ok(true);
                }
                continue;
            }
            _ => {}
        }
        let found = match above.last() {
            Some(Some(directory)) => {
                let directory = catalog.row(*directory)?;
                catalog.lookup(&directory, &part)?
            }
            Some(None) | None => None,
        };
        match found {
            Some((_, row)) if row.kind() == Kind::Symlink => {
                followed += 1;
                if followed > LINKS_MAX {
                    return Ok(false);
                }
                if push_target(&catalog.target(&row)?, &mut parts) {
                    return Ok(true);
                }
            }
            Some((number, row)) if row.kind() == Kind::Directory => above.push(Some(number)),
            // A file, or nothing: counts as an empty directory.
            Some(_) | None => above.push(None),
        }
    }
    Ok(false)
}

/// Finds what a path leads to inside the version, links followed; none where it leads nowhere, or out.
///
/// # Errors
/// [`CatalogError`]
pub fn resolve<R: ReadAt>(
    catalog: &Catalog<R>,
    path: &[u8],
) -> Result<Option<(u32, Row)>, CatalogError> {
    let mut above = vec![0];
    let mut parts = Vec::new();
    push_target(path, &mut parts);
    let mut followed = 0;
    // What the walk has reached, while that is no directory.
    let mut leaf = None;
    while let Some(part) = parts.pop() {
        if leaf.is_some() {
            return Ok(None);
        }
        let Some(directory) = above.last() else {
            return Ok(None);
        };
        match &part[..] {
            b"" | b"." => continue,
            b".." => {
                above.pop();
                continue;
            }
            _ => {}
        }
        let directory = catalog.row(*directory)?;
        let Some((number, row)) = catalog.lookup(&directory, &part)? else {
            return Ok(None);
        };
        match row.kind() {
            Kind::Directory => above.push(number),
            Kind::File => leaf = Some(number),
            Kind::Symlink => {
                followed += 1;
                if followed > LINKS_MAX || push_target(&catalog.target(&row)?, &mut parts) {
                    return Ok(None);
                }
            }
        }
    }
    match leaf.or(above.last().copied()) {
        Some(number) => Ok(Some((number, catalog.row(number)?))),
        None => Ok(None),
    }
}

/// Puts a target's parts in front; returns whether it is absolute.
fn push_target(target: &[u8], parts: &mut Vec<Vec<u8>>) -> bool {
    parts.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
    target.starts_with(b"/")
}

/// Returns the directories from the root to `directory`.
fn ancestors<R: ReadAt>(
    catalog: &Catalog<R>,
    directory: u32,
) -> Result<Vec<Option<u32>>, CatalogError> {
    let mut above = vec![Some(directory)];
    let mut number = directory;
    while number != 0 {
        if above.len() > DEPTH_MAX as usize {
            return Err(CatalogError::Row {
                row: directory,
                rule: Rule::Depth,
            });
        }
        number = catalog.row(number)?.parent();
        above.push(Some(number));
    }
    above.reverse();
    Ok(above)
}
