//! What of the last version's ingest need not be done again: files that nobody has written to since, and pieces of the
//! torrent that are made of such files.
//!
//! A file is known by what it was on disk (`record`), not by its path, so one that was moved is known too. Its id and
//! digests come from the last version's catalog, read from the store by its verified blocks, and it counts only while
//! the store has all of it. Whatever cannot be used, from the record to the last file, is read as if it were new.

mod base;
mod matched;
mod record;

pub(crate) use base::{Base, copy_catalog, copy_digests};
pub(crate) use matched::{Matched, Matcher};
pub(crate) use record::{Began, KnownPieces, NewRecord};
