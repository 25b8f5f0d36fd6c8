//! Goes along with the walk, before anything is read: which files are known, and what all of them are on disk now.

use std::path::Path;

use super::super::PublishError;
use super::super::beneath::Beneath;
use super::super::sink::Sink;
use super::super::spool::{KnownFile, SpoolReader, SpoolWriter, SpooledDirectory, SpooledFile};
use super::Base;
use super::base::Finder;
use super::record::{Began, Entry, KnownPieces, NewRecord, RecordWriter};
use crate::block::{BLOCK_BYTES, Digest};
use crate::catalog::{CatalogError, Writer};
use crate::manifest::CatalogBlocks;
use crate::torrent::{FILES_MAX, Pieces};

/// How many ids are gathered before the catalog gets them.
const IDS_GATHERED: usize = 1024;

/// Takes what a walk finds, and looks for every file in the last version.
pub(crate) struct Matcher<'a> {
    beneath: Option<&'a Beneath>,
    sink: &'a dyn Sink,
    began: Began,
    finder: Option<Finder<'a>>,
    /// Whether the version beneath is the last one, so that the torrent knows the files that stay.
    same: bool,
    files: SpoolWriter,
    record: Option<RecordWriter>,
    pairs: Vec<(u32, u32)>,
    dense: u64,
    /// Ids of known files of one block that the catalog does not have yet.
    ids: Vec<(u32, Digest)>,
}

/// What the walk found, with what is known of it.
pub(crate) struct Matched {
    /// The files; those that are known say so, and of those of one block the catalog has the ids.
    pub(crate) files: SpoolReader,
    /// Bytes of known files, without their holes: they are stored already.
    pub(crate) dense: u64,
    /// Rows of files with the rows of the last version that have their content, ascending. Empty for more files
    /// than a torrent has: they are for nothing else.
    pairs: Vec<(u32, u32)>,
    record: Option<Unwritten>,
}

impl<'a> Matcher<'a> {
    /// Begins before the walk, at `began`. A record of what is found is begun in `records`, if that is wanted; other
    /// files go to `temporary`.
    pub(crate) fn new(
        base: Option<&'a Base>,
        beneath: Option<&'a Beneath>,
        sink: &'a dyn Sink,
        began: Began,
        records: Option<&Path>,
        temporary: &Path,
    ) -> std::io::Result<Matcher<'a>> {
        Ok(Matcher {
            beneath,
            sink,
            began,
            finder: base.map(Base::finder),
            same: base
                .zip(beneath)
                .is_some_and(|(base, beneath)| base.is_of(&beneath.file())),
            files: SpoolWriter::new(temporary)?,
            record: records.map(RecordWriter::new).transpose()?,
            pairs: Vec::new(),
            dense: 0,
            ids: Vec::new(),
        })
    }

    /// Takes a directory; its files have to follow.
    pub(crate) fn directory(&mut self, directory: &SpooledDirectory) -> std::io::Result<()> {
        self.files.directory(directory)
    }

    /// Takes a file of the directory before it, by ascending rows of `catalog`.
    pub(crate) fn file(
        &mut self,
        mut file: SpooledFile,
        catalog: &Writer,
    ) -> Result<(), PublishError> {
        if let (Some(beneath), true, Some(known)) = (self.beneath, file.kept, file.known) {
            if !self.sink.has(&beneath.row(known.row)?.file())? {
                return Err(beneath.not_whole());
            }
            if self.same {
                self.pair(file.row, known.row);
            }
            return Ok(self.files.file(&file)?);
        }
        if let Some(record) = &mut self.record
            && let Some(entry) = Entry::new(&file.stat, self.began)
        {
            record.set(file.row, &entry)?;
        }
        let finder = self.finder.as_mut();
        let found = finder.map(|finder| finder.find(&file.stat)).transpose()?;
        if let Some(row) = found.flatten() {
            // Pieces know it also when it has to be stored again.
            self.pair(file.row, row.number());
            if self.sink.has(&row.file())? {
                file.known = Some(KnownFile {
                    row: row.number(),
                    id: row.id(),
                });
                self.dense = self.dense.saturating_add(file.stat.dense());
                if row.size() <= BLOCK_BYTES {
                    self.ids.push((file.row, row.id()));
                }
                if self.ids.len() == IDS_GATHERED {
                    self.give_ids(catalog)?;
                }
            }
        }
        Ok(self.files.file(&file)?)
    }

    /// Ends after the walk.
    pub(crate) fn finish(mut self, catalog: &Writer) -> Result<Matched, PublishError> {
        self.give_ids(catalog)?;
        if self.pairs.len() as u64 > FILES_MAX {
            self.pairs = Vec::new();
        }
        Ok(Matched {
            files: self.files.finish()?,
            dense: self.dense,
            pairs: self.pairs,
            record: self.record.map(Unwritten),
        })
    }

    fn pair(&mut self, row: u32, last: u32) {
        if self.pairs.len() as u64 <= FILES_MAX {
            self.pairs.push((row, last));
        }
    }

    fn give_ids(&mut self, catalog: &Writer) -> std::io::Result<()> {
        catalog.set_ids(&self.ids)?;
        self.ids.clear();
        Ok(())
    }
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
