//! From a directory to a catalog that is stored: the blocking half of a publish, which knows no signature.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::PublishError;
use super::beneath::Beneath;
use super::disk::{self, Disk};
use super::ingest::{Ingest, ingest, store_catalog};
use super::options::Options;
use super::progress::{Progress, Step};
use super::refusal::{Reason, Refusals};
use super::reuse::{Base, Began, Matcher, NewRecord};
use super::rules::CONTENT_RULES;
use super::sink::Sink;
use super::torrent::{self, Begun, Torrent};
use super::walk::{Attributes, Walk, walk};
use crate::catalog::{self, Catalog, Totals, sums};
use crate::manifest::CatalogBlocks;
use crate::manifest::sums::SUMS_BYTES_MAX;
use crate::torrent::NotOffered;
use crate::unixfs::Cid;

/// A tree that was read.
pub(crate) struct Built {
    pub(crate) totals: Totals,
    pub(crate) root: Cid,
    pub(crate) catalog: CatalogBlocks,
    /// The catalog's bytes, in an unnamed file.
    pub(crate) file: File,
    /// The torrent, or why none is offered.
    pub(crate) torrent: Result<Torrent, NotOffered>,
    /// Names in the root that are instructions, not content.
    pub(crate) instructions: Vec<String>,
    /// What its files were on disk; for when the version is visible.
    pub(crate) record: Option<NewRecord>,
}

impl Built {
    /// Returns the text of `SHA256SUMS`; `None` when it would be too long.
    pub(crate) fn sums(&self) -> Result<Option<Vec<u8>>, PublishError> {
        let catalog = Catalog::open(&self.file, self.catalog.size)?;
        Ok(sums::text(&catalog, SUMS_BYTES_MAX)?)
    }
}

/// What a build works with.
pub(crate) struct Task<'a> {
    pub(crate) options: &'a Options,
    /// Directories that must not be in what is published.
    pub(crate) homes: &'a [PathBuf],
    /// Where unnamed files go.
    pub(crate) temporary: &'a Path,
    pub(crate) sink: &'a dyn Sink,
    /// The last version, of which some files need not be read.
    pub(crate) base: Option<&'a Base>,
    /// The version that the tree is laid on top of.
    pub(crate) beneath: Option<&'a Beneath>,
    /// Where a record of the files is begun, if one is wanted.
    pub(crate) records: Option<&'a Path>,
    /// What time it is: files that changed just before are looked at again the next time.
    pub(crate) now: SystemTime,
    pub(crate) progress: &'a Progress,
}

/// How large, holes included, a tree may be that somebody else put there: so many times the quota. With the default of
/// 20 GiB that is 1.25 TiB, whose zeros are hashed for the torrent in about half an hour.
pub(crate) const GUARDED_QUOTAS_MAX: u64 = 64;

/// Returns by which rules the content of files is judged; 0 for none.
pub(crate) fn judged(options: &Options) -> u32 {
    if options.allow.secrets {
        0
    } else {
        CONTENT_RULES
    }
}

/// Walks, ingests into the sink and seals. Durable in the sink when this returns.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the directory is let go when it is built"
)]
pub(crate) fn build(directory: OwnedFd, task: &Task<'_>) -> Result<Built, PublishError> {
    let Task {
        options,
        temporary,
        sink,
        base,
        beneath,
        progress,
        ..
    } = *task;
    progress.enter(Step::Walk);
    let attributes = Attributes::new(options)?;
    let disk = Disk::new(&directory).map_err(PublishError::Directory)?;
    let fine = disk.has_fine_times().map_err(PublishError::Directory)?;
    let began = Began {
        ns: nanoseconds(task.now),
        fine_device: fine.then_some(disk.stat().device),
    };
    if disk::own_mounts().contains(&disk.stat().mount) {
        let mut refusals = Refusals::default();
        refusals.add(Reason::Mount, b"", b"");
        return Err(PublishError::Refused(refusals));
    }
    let homes = task.homes.iter();
    let homes: HashSet<(u64, u64)> = homes.filter_map(|home| identity(home)).collect();
    let files = Matcher::new(base, beneath, sink, began, task.records, temporary)?;
    let work = Walk {
        disk: &disk,
        options,
        attributes: &attributes,
        homes: &homes,
        beneath,
        temporary,
        progress,
    };
    let mut walked = walk(&work, files)?;
    let catalog_bytes = walked.catalog_bytes()?;
    if walked.refusals.is_empty() {
        let new = walked.dense.saturating_sub(walked.matched.dense);
        check_room(sink, new, catalog_bytes)?;
        if options.guard.is_some() {
            check_holes(sink, walked.bytes)?;
        }
    }
    // Also when refused already: then nothing comes of it, and no case is a case of its own.
    let begun = torrent::begin(&options.package.tree_name(), &mut walked.catalog)?;
    if let (true, Err(reason)) = (options.seed && walked.refusals.is_empty(), &begun) {
        return Err(PublishError::NoTorrent(*reason));
    }
    let pieces = begun.as_ref().ok().map(Begun::pieces);

    let (files, record) = walked.matched.begin(base, pieces)?;

    progress.enter(Step::Ingest);
    let work = Ingest {
        disk: &disk,
        catalog: &walked.catalog,
        attributes: &attributes,
        sink,
        base,
        beneath,
        pieces,
        allow_secrets: options.allow.secrets,
        progress,
    };
    let refusals = ingest(&work, files, walked.refusals)?;
    if !refusals.is_empty() {
        return Err(PublishError::Refused(refusals));
    }

    progress.enter(Step::Seal);
    let sealed = walked
        .catalog
        .finish(attributes.times(), &mut |_, _| Ok(()))?;
    // Nobody is given what a reader would refuse.
    catalog::validate(&sealed.file, sealed.len, &sealed.totals, sealed.root)?;
    let blocks = store_catalog(sink, &sealed.file, sealed.len, pieces)?;
    if progress.is_cancelled() {
        return Err(PublishError::Cancelled);
    }
    let torrent = match begun {
        Ok(begun) => Ok(begun.finish()?),
        Err(reason) => Err(reason),
    };
    sink.sync()?;
    let catalog = CatalogBlocks {
        size: sealed.len,
        blocks,
    };
    let pieces = torrent.as_ref().ok().map(|torrent| &torrent.pieces);
    let record = match record {
        Some(record) => record.finish(sealed.rows, &catalog, pieces, judged(options))?,
        None => None,
    };
    Ok(Built {
        totals: sealed.totals,
        root: sealed.root,
        catalog,
        file: sealed.file,
        torrent,
        instructions: walked.instructions,
        record,
    })
}

/// Returns a time in nanoseconds since 1970; one that 64 bits do not hold is the first, before which nothing happened.
fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).ok();
    since
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(i64::MIN)
}

/// Refuses what cannot fit, before a byte is read.
fn check_room(sink: &dyn Sink, dense: u64, catalog_bytes: u64) -> Result<(), PublishError> {
    let Some(room) = sink.room() else {
        return Ok(());
    };
    let needed = dense.saturating_add(catalog_bytes);
    let free = room.quota.saturating_sub(room.held);
    if needed > free {
        return Err(PublishError::Quota {
            needed,
            room: free,
            quota: room.quota,
            held: room.held,
        });
    }
    Ok(())
}

/// Refuses a tree of others that is nearly nothing but holes: they take no room, but hashing them takes its time.
fn check_holes(sink: &dyn Sink, bytes: u64) -> Result<(), PublishError> {
    let Some(room) = sink.room() else {
        return Ok(());
    };
    let most = room.quota.saturating_mul(GUARDED_QUOTAS_MAX);
    if bytes > most {
        return Err(PublishError::Holes {
            bytes,
            most,
            quota: room.quota,
        });
    }
    Ok(())
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let stat = disk::stat(File::open(path).ok()?).ok()?;
    Some((stat.device, stat.inode))
}
