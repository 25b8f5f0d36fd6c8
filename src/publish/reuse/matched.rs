//! Goes over what the walk found before anything is read: which files are known, and what all of them are on disk now.

use std::path::Path;

use super::super::PublishError;
use super::super::beneath::Beneath;
use super::super::sink::Sink;
use super::super::spool::{KnownFile, SpoolReader, SpoolWriter};
use super::Base;
use super::record::{Began, Entry, KnownPieces, NewRecord, RecordWriter};
use crate::catalog::CatalogError;
use crate::manifest::CatalogBlocks;
use crate::torrent::{FILES_MAX, Pieces};

/// What the walk found, with what is known of it.
pub(crate) struct Matched {
    /// The files; those that are known say so.
    pub(crate) files: SpoolReader,
    /// Bytes of known files, without their holes: they are stored already.
    pub(crate) dense: u64,
    /// Rows of files with the rows of the last version that have their content, ascending. Empty for more files
    /// than a torrent has: they are for nothing else.
    pairs: Vec<(u32, u32)>,
    record: Option<Unwritten>,
}

/// Looks for every file of `spool` in the last version. `began` was before the walk; the record of what is found is
/// begun in `records`, if that is wanted; other files go to `temporary`.
pub(crate) fn match_up(
    mut spool: SpoolReader,
    base: Option<&Base>,
    beneath: Option<&Beneath>,
    sink: &dyn Sink,
    began: Began,
    records: Option<&Path>,
    temporary: &Path,
) -> Result<Matched, PublishError> {
    let mut record = records.map(RecordWriter::new).transpose()?;
    let mut out = base.map(|_| SpoolWriter::new(temporary)).transpose()?;
    let mut finder = base.map(Base::finder);
    // Files that stay are known to the torrent when they stay from the last version.
    let same = base
        .zip(beneath)
        .is_some_and(|(base, beneath)| base.is_of(&beneath.file()));
    let add = |pairs: &mut Vec<(u32, u32)>, pair| {
        if pairs.len() as u64 <= FILES_MAX {
            pairs.push(pair);
        }
    };
    let (mut pairs, mut dense) = (Vec::new(), 0_u64);
    while let Some(directory) = spool.directory()? {
        if let Some(out) = &mut out {
            out.directory(&directory)?;
        }
        for _ in 0..directory.files {
            let mut file = spool.file()?;
            if let (Some(beneath), true, Some(known)) = (beneath, file.kept, file.known) {
                if !sink.has(&beneath.row(known.row)?.file())? {
                    return Err(beneath.not_whole());
                }
                if same {
                    add(&mut pairs, (file.row, known.row));
                }
                if let Some(out) = &mut out {
                    out.file(&file)?;
                }
                continue;
            }
            if let Some(record) = &mut record
                && let Some(entry) = Entry::new(&file.stat, began)
            {
                record.set(file.row, &entry)?;
            }
            let (Some(finder), Some(out)) = (&mut finder, &mut out) else {
                continue;
            };
            if let Some(row) = finder.find(&file.stat)? {
                // Pieces know it also when it has to be stored again.
                add(&mut pairs, (file.row, row.number()));
                if sink.has(&row.file())? {
                    file.known = Some(KnownFile {
                        row: row.number(),
                        id: row.id(),
                    });
                    dense = dense.saturating_add(file.stat.dense());
                }
            }
            out.file(&file)?;
        }
    }
    if pairs.len() as u64 > FILES_MAX {
        pairs = Vec::new();
    }
    let files = match out {
        Some(out) => out.finish()?,
        None => spool.again()?,
    };
    Ok(Matched {
        files,
        dense,
        pairs,
        record: record.map(Unwritten),
    })
}

/// What is left of [`Matched`] when its files are read.
pub(crate) struct Unwritten(RecordWriter);

impl Matched {
    /// Tells `pieces` what is known of them, and returns the files to be read.
    pub(crate) fn begin(
        self,
        base: Option<&Base>,
        pieces: Option<&Pieces>,
    ) -> Result<(SpoolReader, Option<Unwritten>), CatalogError> {
        if let (Some(base), Some(pieces)) = (base, pieces) {
            base.tell(&self.pairs, pieces)?;
        }
        Ok((self.files, self.record))
    }
}

impl Unwritten {
    /// Finishes the record for a sealed catalog; `None` when it is too large for one.
    pub(crate) fn finish(
        self,
        rows: u32,
        catalog: &CatalogBlocks,
        pieces: Option<&KnownPieces>,
        judged: u32,
    ) -> std::io::Result<Option<NewRecord>> {
        self.0.finish(rows, catalog, pieces, judged)
    }
}
