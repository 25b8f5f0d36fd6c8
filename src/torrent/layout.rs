//! Where every byte of a version lies in its torrent: catalog, small files, large files, padding between them.

use std::ops::Range;

use super::{FILES_MAX, NotOffered, PIECE_BYTES_MIN, PIECES_MAX, TorrentError};
use crate::catalog::{Catalog, CatalogError, Kind, ReadAt};

/// The longest piece. A catalog of 4 GiB names at most 2^47 bytes, for which this is more than enough.
const PIECE_BYTES_MAX: u64 = 1 << 32;

/// Where the files of one version lie in its torrent. At most 24 bytes for each file that is not empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    piece_bytes: u64,
    catalog_bytes: u64,
    /// Files shorter than a piece, one after the other, by row and so by offset.
    small: Vec<Small>,
    /// Where the last of them ends; where the first would begin when there is none.
    small_end: u64,
    /// The others, each on a piece boundary, by row and so by offset.
    large: Vec<Large>,
    bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Small {
    offset: u64,
    row: u32,
    /// Less than a piece, which has at most 2^32 bytes.
    size: u32,
}

#[derive(Debug, PartialEq, Eq)]
struct Large {
    offset: u64,
    size: u64,
    row: u32,
}

/// What lies somewhere in a torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes of the catalog.
    Catalog {
        /// From where in the catalog.
        offset: u64,
    },
    /// Bytes of a file.
    File {
        /// The file's row.
        row: u32,
        /// From where in the file.
        offset: u64,
    },
    /// Zeros up to a piece boundary.
    Padding,
}

/// Neighbouring bytes of a torrent that belong to one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where in the torrent.
    pub bytes: Range<u64>,
    /// What lies there.
    pub place: Place,
}

impl Layout {
    /// Lays out a catalog of `catalog_bytes` and regular files, given as row and size in the order of rows.
    ///
    /// # Errors
    /// [`NotOffered`]
    pub fn new(
        catalog_bytes: u64,
        files: impl IntoIterator<Item = (u32, u64)>,
    ) -> Result<Layout, NotOffered> {
        let mut count = 0;
        let mut sizes = Vec::new();
        for (row, size) in files {
            count += 1;
            if count > FILES_MAX {
                return Err(NotOffered::Files { files: count });
            }
            if size > 0 {
                sizes.push((row, size));
            }
        }
        let piece_bytes = piece_bytes(catalog_bytes, &sizes).ok_or(NotOffered::Bytes)?;
        // At most PIECES_MAX pieces of PIECE_BYTES_MAX from here on: no sum overflows.
        let mut end = catalog_bytes.next_multiple_of(piece_bytes);
        let mut small = Vec::with_capacity(sizes.len());
        for &(row, size) in sizes.iter().filter(|(_, size)| *size < piece_bytes) {
            let Ok(size) = u32::try_from(size) else {
                return Err(NotOffered::Bytes);
            };
            small.push(Small {
                offset: end,
                row,
                size,
            });
            end += u64::from(size);
        }
        small.shrink_to_fit();
        let small_end = end;
        let mut large = Vec::new();
        for &(row, size) in sizes.iter().filter(|(_, size)| *size >= piece_bytes) {
            let offset = end.next_multiple_of(piece_bytes);
            large.push(Large { offset, size, row });
            end = offset + size;
        }
        large.shrink_to_fit();
        Ok(Layout {
            piece_bytes,
            catalog_bytes,
            small,
            small_end,
            large,
            bytes: end,
        })
    }

    /// Lays out the tree of a catalog.
    ///
    /// # Errors
    /// [`TorrentError`]
    pub fn of<R: ReadAt>(catalog: &Catalog<R>) -> Result<Layout, TorrentError> {
        let totals = catalog.totals();
        if totals.files > FILES_MAX {
            let files = totals.files;
            return Err(NotOffered::Files { files }.into());
        }
        let mut files = Vec::new();
        catalog.scan::<CatalogError>(0..catalog.rows(), &mut |row| {
            // One more than allowed is enough to be refused, whatever the rows say.
            if row.kind() == Kind::File && files.len() as u64 <= FILES_MAX {
                files.push((row.number(), row.size()));
            }
            Ok(())
        })?;
        Ok(Layout::new(catalog.header().len(), files)?)
    }

    /// Returns the bytes of a piece; the last one is shorter unless padded.
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// Returns the number of pieces, at most [`PIECES_MAX`].
    pub fn piece_count(&self) -> u64 {
        self.bytes.div_ceil(self.piece_bytes)
    }

    /// Returns the bytes of all pieces: catalog, files and padding.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes of the catalog, which lies at the beginning.
    pub fn catalog_bytes(&self) -> u64 {
        self.catalog_bytes
    }

    /// Returns where piece `index` lies; empty past the last.
    pub fn piece(&self, index: u64) -> Range<u64> {
        let start = index.saturating_mul(self.piece_bytes).min(self.bytes);
        start..start.saturating_add(self.piece_bytes).min(self.bytes)
    }

    /// Returns where the file in `row` begins; none when it is empty, or no file.
    pub fn offset_of(&self, row: u32) -> Option<u64> {
        let small = self.small.binary_search_by_key(&row, |file| file.row);
        let large = || self.large.binary_search_by_key(&row, |file| file.row);
        match small {
            Ok(index) => Some(self.small[index].offset),
            Err(_) => large().ok().map(|index| self.large[index].offset),
        }
    }

    /// Returns where the last small file ends; nothing of a large one lies before.
    pub(super) fn small_end(&self) -> u64 {
        self.small_end
    }

    /// Returns whether a file of `size` bytes lies among the small ones, as links and empty files do.
    pub fn is_small(&self, size: u64) -> bool {
        size < self.piece_bytes
    }

    /// Returns what lies in `bytes`, in order and without gaps; what is past the end is left out.
    pub fn spans(&self, bytes: Range<u64>) -> impl Iterator<Item = Span> + '_ {
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            if at >= bytes.end {
                return None;
            }
            let (place, end) = self.at(at)?;
            let start = at;
            at = end.min(bytes.end);
            Some(Span {
                bytes: start..at,
                place,
            })
        })
    }

    /// Returns the bytes at the start of piece `index` that are no padding: in no piece does data follow padding.
    pub(super) fn data_bytes(&self, index: u64) -> u64 {
        let piece = self.piece(index);
        if piece.start < self.catalog_bytes {
            return (self.catalog_bytes - piece.start).min(self.piece_bytes);
        }
        if piece.start < self.small_end {
            return (self.small_end - piece.start).min(self.piece_bytes);
        }
        match self.large_at(piece.start) {
            Some((file, _)) => (file.offset + file.size - piece.start).min(self.piece_bytes),
            None => 0,
        }
    }

    /// Returns the piece of `other` that has just the bytes of piece `index`: made of the same files in the same places.
    /// `row_of` tells which file of `other`, by its row, has the content of one here. Pieces of catalogs are never the same.
    pub fn same_piece(
        &self,
        index: u64,
        other: &Layout,
        row_of: &dyn Fn(u32) -> Option<u32>,
    ) -> Option<u64> {
        if self.piece_bytes != other.piece_bytes {
            return None;
        }
        let (piece, data) = (self.piece(index), self.data_bytes(index));
        let mut found = None;
        for span in self.spans(piece.start..piece.start + data) {
            let Place::File { row, offset } = span.place else {
                return None;
            };
            let there = other.offset_of(row_of(row)?)? + offset;
            let same = there / self.piece_bytes;
            if there % self.piece_bytes != span.bytes.start - piece.start
                || found.is_some_and(|found| found != same)
            {
                return None;
            }
            found = Some(same);
        }
        let found = found?;
        let theirs = other.piece(found);
        // Neither more files after them, nor another padding.
        (other.data_bytes(found) == data && theirs.end - theirs.start == piece.end - piece.start)
            .then_some(found)
    }

    /// Returns what lies at an offset, and where that thing ends.
    fn at(&self, offset: u64) -> Option<(Place, u64)> {
        if offset < self.catalog_bytes {
            return Some((Place::Catalog { offset }, self.catalog_bytes));
        }
        let small_start = self.catalog_bytes.next_multiple_of(self.piece_bytes);
        if offset < small_start {
            return Some((Place::Padding, small_start));
        }
        if offset < self.small_end {
            let next = self.small.partition_point(|file| file.offset <= offset);
            let file = self.small.get(next.checked_sub(1)?)?;
            let place = Place::File {
                row: file.row,
                offset: offset - file.offset,
            };
            return Some((place, file.offset + u64::from(file.size)));
        }
        match self.large_at(offset) {
            Some((file, _)) if offset < file.offset + file.size => {
                let place = Place::File {
                    row: file.row,
                    offset: offset - file.offset,
                };
                Some((place, file.offset + file.size))
            }
            Some((_, next)) => Some((Place::Padding, self.large.get(next)?.offset)),
            None => Some((Place::Padding, self.large.first()?.offset)),
        }
    }

    /// Returns the last large file that begins at or before an offset, and the index of the next one.
    fn large_at(&self, offset: u64) -> Option<(&Large, usize)> {
        let next = self.large.partition_point(|file| file.offset <= offset);
        let file = self.large.get(next.checked_sub(1)?)?;
        Some((file, next))
    }
}

/// Returns the shortest allowed length of piece; none when even the longest gives too many pieces.
fn piece_bytes(catalog_bytes: u64, sizes: &[(u32, u64)]) -> Option<u64> {
    let mut piece_bytes = PIECE_BYTES_MIN;
    while piece_bytes <= PIECE_BYTES_MAX {
        let mut packed = 0_u64;
        let mut pieces = catalog_bytes.div_ceil(piece_bytes);
        for &(_, size) in sizes {
            if size < piece_bytes {
                // At most FILES_MAX sizes below 2^32.
                packed = packed.saturating_add(size);
            } else {
                pieces = pieces.saturating_add(size.div_ceil(piece_bytes));
            }
        }
        if pieces.saturating_add(packed.div_ceil(piece_bytes)) <= PIECES_MAX {
            return Some(piece_bytes);
        }
        piece_bytes *= 2;
    }
    None
}
