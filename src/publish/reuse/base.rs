//! The version that was published last from this home, with what its files were on disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use super::super::disk::Stat;
use super::record::{Entry, KnownPieces, Record, RecordError};
use crate::block::FileRef;
use crate::catalog::{Catalog, CatalogError, Kind, Row, Writer};
use crate::manifest::CatalogBlocks;
use crate::store::Store;
use crate::torrent::{Layout, Pieces};

/// How many files are looked for by their inodes, 16 bytes each; those of later rows are read.
const INODES_MAX: usize = 4 << 20;

/// How many rows with one inode are looked at: hard links, and equal numbers on several devices.
const ROWS_PER_INODE_MAX: usize = 16;

/// How many neighbouring rows are read at once: a tree is looked for in its own order.
const ROWS_AT_ONCE: u32 = 64;

/// How many digests are copied at once.
const DIGESTS_AT_ONCE: u64 = 1024;

/// The last version: its record and its catalog.
pub(crate) struct Base {
    record: Record,
    /// A copy, so that it stays whatever the store evicts.
    catalog: Catalog<File>,
    /// Inodes and rows of files, sorted.
    inodes: Vec<(u64, u32)>,
}

impl Base {
    /// Opens what the record at `path` is of. `None` when that cannot be used, which the log tells when it is damaged.
    ///
    /// Files whose content was judged by other rules than `judged` were not judged at all; 0 judges nothing.
    pub(crate) fn open(
        path: &Path,
        judged: u32,
        store: &Arc<Store>,
        temporary: &Path,
    ) -> Option<Base> {
        match try_open(path, judged, store, temporary) {
            Ok(base) => base,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was ingested last is not known any more: everything is read");
                None
            }
        }
    }

    /// Returns what finds files.
    pub(super) fn finder(&self) -> Finder<'_> {
        Finder {
            base: self,
            first: 0,
            rows: Vec::new(),
        }
    }

    /// Gives the id and the digests of a file of more than one block to `row` of a new catalog.
    pub(crate) fn hand_over(
        &self,
        from: u32,
        catalog: &Writer,
        row: u32,
    ) -> Result<(), CatalogError> {
        copy_digests(&self.catalog, &self.catalog.row(from)?, catalog, row)
    }

    /// Returns whether this is the version with a catalog.
    pub(super) fn is_of(&self, catalog: &FileRef) -> bool {
        self.record.catalog.file() == *catalog
    }

    /// Tells `pieces` the hashes of those that have only bytes of known files, in the same places as a piece of the last
    /// version. `pairs` are rows of the new catalog and of the last one with equal content, ascending.
    pub(super) fn tell(&self, pairs: &[(u32, u32)], pieces: &Pieces) -> Result<(), CatalogError> {
        let Some((layout, known)) = self.pieces()? else {
            return Ok(());
        };
        let row_of = |row: u32| {
            let index = pairs.binary_search_by_key(&row, |(row, _)| *row).ok()?;
            Some(pairs[index].1)
        };
        for index in 0..pieces.layout().piece_count() {
            let same = pieces.layout().same_piece(index, &layout, &row_of);
            let hash = same.and_then(|same| known.hashes.get(usize::try_from(same).ok()?));
            if let Some(hash) = hash {
                pieces.know(index, *hash);
            }
        }
        Ok(())
    }

    /// Returns where the last version's files lie in its torrent, and the hashes of its pieces.
    fn pieces(&self) -> Result<Option<(Layout, &KnownPieces)>, CatalogError> {
        use crate::torrent::TorrentError;
        let Some(known) = &self.record.pieces else {
            return Ok(None);
        };
        let layout = match Layout::of(&self.catalog) {
            Ok(layout) => layout,
            Err(TorrentError::NotOffered(_)) => return Ok(None),
            Err(TorrentError::Catalog(error)) => return Err(error),
            Err(TorrentError::Io(error)) => return Err(error.into()),
        };
        let fits = layout.piece_bytes() == known.piece_bytes
            && layout.piece_count() == known.hashes.len() as u64;
        Ok(fits.then_some((layout, known)))
    }
}

/// Finds files of the last version, best in the order of its rows.
pub(super) struct Finder<'a> {
    base: &'a Base,
    /// Some neighbouring rows, and what their files were on disk.
    first: u32,
    rows: Vec<(Row, Option<Entry>)>,
}

impl Finder<'_> {
    /// Returns the row that has the content of a file on disk.
    pub(super) fn find(&mut self, stat: &Stat) -> Result<Option<Row>, CatalogError> {
        let inodes = &self.base.inodes;
        let start = inodes.partition_point(|(inode, _)| *inode < stat.inode);
        let same = inodes[start..].iter();
        let same = same.take_while(|(inode, _)| *inode == stat.inode);
        for (_, number) in same.take(ROWS_PER_INODE_MAX) {
            if let Some((row, Some(entry))) = self.row(*number)?
                && entry.proves(stat)
                && row.kind() == Kind::File
                && row.size() == stat.size
            {
                return Ok(Some(*row));
            }
        }
        Ok(None)
    }

    fn row(&mut self, number: u32) -> Result<Option<&(Row, Option<Entry>)>, CatalogError> {
        let here = |first: u32| usize::try_from(number.checked_sub(first)?).ok();
        if here(self.first).is_none_or(|index| index >= self.rows.len()) {
            let (record, catalog) = (&self.base.record, &self.base.catalog);
            self.first = number / ROWS_AT_ONCE * ROWS_AT_ONCE;
            let end = self.first.saturating_add(ROWS_AT_ONCE).min(record.rows);
            let mut entries = record.entries(self.first..end)?.into_iter();
            self.rows.clear();
            catalog.scan::<CatalogError>(self.first..end, &mut |row| {
                self.rows.push((*row, entries.next().flatten()));
                Ok(())
            })?;
        }
        Ok(here(self.first).and_then(|index| self.rows.get(index)))
    }
}

fn try_open(
    path: &Path,
    judged: u32,
    store: &Arc<Store>,
    temporary: &Path,
) -> Result<Option<Base>, RecordError> {
    let Some(record) = Record::open(path)? else {
        return Ok(None);
    };
    if judged != 0 && record.judged != judged {
        return Ok(None);
    }
    let Some(copy) = copy_catalog(&record.catalog, store, temporary)? else {
        return Ok(None);
    };
    let other = |_| RecordError::Format("of another catalog");
    let catalog = Catalog::open(copy, record.catalog.size).map_err(other)?;
    if catalog.rows() != record.rows {
        return Err(RecordError::Format("of another catalog"));
    }
    let mut inodes = Vec::new();
    record.each(&mut |row, entry| {
        if inodes.len() < INODES_MAX {
            inodes.push((entry.inode, row));
        }
    })?;
    inodes.sort_unstable();
    Ok(Some(Base {
        record,
        catalog,
        inodes,
    }))
}

/// Gives the id and the digests of the file in row `from` of a catalog to `row` of a new one.
pub(crate) fn copy_digests(
    catalog: &Catalog<File>,
    from: &Row,
    to: &Writer,
    row: u32,
) -> Result<(), CatalogError> {
    if from.blocks() <= 1 {
        return Ok(to.set_id(row, from.id())?);
    }
    let mut next = 0;
    while next < from.blocks() {
        let end = (next + DIGESTS_AT_ONCE).min(from.blocks());
        to.set_digests(row, next, &catalog.digests(from, next..end)?)?;
        next = end;
    }
    to.set_whole(row, catalog.whole(from)?, from.id())
}

/// Copies a catalog out of the store into an unnamed file; `None` when the store does not have all of it.
pub(crate) fn copy_catalog(
    catalog: &CatalogBlocks,
    store: &Arc<Store>,
    temporary: &Path,
) -> std::io::Result<Option<File>> {
    let mut copy = tempfile::tempfile_in(temporary)?;
    for block in catalog.block_refs() {
        let Some(block) = store.load(&block) else {
            return Ok(None);
        };
        copy.write_all(block.bytes())?;
    }
    Ok(Some(copy))
}
