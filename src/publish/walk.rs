//! Lists the tree breadth first: rows for the catalog, files for the ingest, and everything that is refused.
//!
//! A thread lists the next directories of a level while the caller's judges the one before and lays it down, so that
//! the system's work on each entry and ours go on at the same time.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use super::beneath::{Beneath, Kept};
use super::disk::{self, Disk, FileKind, Found, Stat};
use super::options::{Guard, Options};
use super::progress::Progress;
use super::refusal::{Reason, Refusals};
use super::reuse::{Matched, Matcher};
use super::rules;
use super::spool::{KnownFile, SpooledDirectory, SpooledFile};
use super::{PATH_BYTES_MAX, PublishError};
use crate::block::FILE_BYTES_MAX;
use crate::catalog::{
    CATALOG_BYTES_MAX, DEPTH_MAX, Kind, NewEntry, Row, Rule, TARGET_BYTES_MAX, Times, Writer, links,
};

/// How many directories are asked for before they are needed: each is in memory with all of its entries.
const AHEAD: usize = 2;

/// How modes and times become a catalog's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes {
    preserve: bool,
    /// The one time of everything.
    mtime_ns: Option<i64>,
}

impl Attributes {
    pub(crate) fn new(options: &Options) -> Result<Attributes, PublishError> {
        let ns = |seconds: i64| {
            let ns = seconds.checked_mul(1_000_000_000);
            ns.ok_or(PublishError::MtimeRange(seconds))
        };
        Ok(Attributes {
            preserve: options.preserve,
            mtime_ns: options.mtime.map(ns).transpose()?,
        })
    }

    /// Returns what becomes of the times of directories and symlinks when the catalog is finished.
    pub(crate) fn times(&self) -> Times {
        if self.preserve || self.mtime_ns.is_some() {
            Times::Keep
        } else {
            Times::Newest
        }
    }

    /// Returns the permission bits: the git rule, or what is there without setuid, setgid and sticky.
    pub(crate) fn mode(&self, stat: &Stat) -> u16 {
        match stat.kind {
            FileKind::Symlink => 0o777,
            _ if self.preserve => stat.mode & 0o777,
            FileKind::Directory => 0o755,
            _ if stat.mode & 0o100 != 0 => 0o755,
            _ => 0o644,
        }
    }

    /// Returns the time of an entry that stays from the version beneath.
    pub(crate) fn kept_mtime_ns(&self, row: &Row) -> i64 {
        self.mtime_ns.unwrap_or(row.mtime_ns())
    }

    /// Returns the time; `None` when a catalog cannot hold it.
    fn mtime_ns(&self, stat: &Stat) -> Option<i64> {
        match self.mtime_ns {
            Some(ns) => Some(ns),
            // Replaced at the end, so it does not matter that no catalog may hold it.
            None if stat.kind != FileKind::File && !self.preserve => Some(0),
            None => stat.mtime_ns(),
        }
    }
}

/// What the walk found.
pub(crate) struct Walked {
    pub(crate) catalog: Writer,
    pub(crate) matched: Matched,
    /// Bytes that have to be stored at most: the files' sizes without their holes.
    pub(crate) dense: u64,
    /// The files' sizes, holes included.
    pub(crate) bytes: u64,
    /// Names in the root that are instructions, not content.
    pub(crate) instructions: Vec<String>,
    pub(crate) refusals: Refusals,
}

impl Walked {
    /// Returns how long the catalog will be.
    pub(crate) fn catalog_bytes(&mut self) -> Result<u64, PublishError> {
        match self.catalog.draft() {
            Ok(draft) => Ok(draft.header().len()),
            Err(error) if error.rule() == Some(Rule::Length) => {
                Err(PublishError::CatalogSize(CATALOG_BYTES_MAX))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What the walk works on.
pub(crate) struct Walk<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) options: &'a Options,
    pub(crate) attributes: &'a Attributes,
    /// Directories that must not be in the tree.
    pub(crate) homes: &'a HashSet<(u64, u64)>,
    /// The version that the tree is laid on top of.
    pub(crate) beneath: Option<&'a Beneath>,
    /// Where temporary files go.
    pub(crate) temporary: &'a Path,
    pub(crate) progress: &'a Progress,
}

/// Walks the tree; `files` takes those that are found.
pub(crate) fn walk(work: &Walk<'_>, files: Matcher<'_>) -> Result<Walked, PublishError> {
    let (disk, attributes) = (work.disk, work.attributes);
    let root = disk.stat();
    let mut run = Run {
        work,
        own_mounts: disk::own_mounts(),
        files,
        dense: 0,
        bytes: 0,
        symlinks: 0,
        instructions: Vec::new(),
        refusals: Refusals::default(),
    };
    // The root's own time may be out of range; then it is refused like any other.
    let mtime_ns = attributes.mtime_ns(root).unwrap_or_else(|| {
        run.refusals.add(Reason::Time, b"", b"");
        0
    });
    let (mode, mtime_ns) = match work.beneath.filter(|beneath| beneath.bare) {
        Some(beneath) => {
            let row = beneath.row(0)?;
            (row.mode(), attributes.kept_mtime_ns(&row))
        }
        None => (attributes.mode(root), mtime_ns),
    };
    let mut catalog = Writer::new(work.temporary, mode, mtime_ns)?;
    if run.passes(b"", root) {
        run.directories(&mut catalog)?;
    }
    if run.symlinks > 0 && !work.options.allow.links {
        run.judge_links(&mut catalog)?;
    }
    Ok(Walked {
        matched: run.files.finish(&catalog)?,
        catalog,
        dense: run.dense,
        bytes: run.bytes,
        instructions: run.instructions,
        refusals: run.refusals,
    })
}

/// A directory that was opened and listed.
struct Listed {
    opened: OwnedFd,
    stat: Stat,
    /// Names that are instructions, not content.
    instructions: Vec<String>,
    found: io::Result<Vec<Found>>,
}

fn list(disk: &Disk, path: &[u8]) -> io::Result<Listed> {
    let opened = disk.directory(path)?;
    let stat = disk::stat(&opened)?;
    let mut instructions = Vec::new();
    let found = disk::list(opened.as_fd(), &mut |name| {
        let skip = path.is_empty() && rules::INSTRUCTIONS.contains(&name);
        if skip {
            instructions.push(String::from_utf8_lossy(name).into_owned());
        }
        skip
    });
    instructions.sort_unstable();
    Ok(Listed {
        opened,
        stat,
        instructions,
        found,
    })
}

/// Entries of one directory, with where they come from.
type Children = Vec<(NewEntry, Origin)>;

/// Where an entry comes from.
enum Origin {
    Disk(Stat),
    /// The version beneath.
    Beneath(KnownFile),
}

struct Run<'a> {
    work: &'a Walk<'a>,
    own_mounts: HashSet<u64>,
    files: Matcher<'a>,
    dense: u64,
    bytes: u64,
    symlinks: u64,
    instructions: Vec<String>,
    refusals: Refusals,
}

impl Run<'_> {
    /// Goes through all directories, level by level.
    fn directories(&mut self, catalog: &mut Writer) -> Result<(), PublishError> {
        let work = self.work;
        std::thread::scope(|scope| {
            // Never more than fits is asked for, so neither side waits to say something.
            let (ask, asked) = sync_channel::<Vec<u8>>(AHEAD);
            let (tell, told) = sync_channel(AHEAD);
            scope.spawn(move || {
                for path in asked {
                    if tell.send(list(work.disk, &path)).is_err() {
                        return;
                    }
                }
            });
            let gone = || io::Error::other("the thread that lists directories is gone");
            let mut ahead = VecDeque::with_capacity(AHEAD);
            loop {
                while ahead.len() < AHEAD {
                    let next = if ahead.is_empty() {
                        catalog.next_directory()?
                    } else {
                        catalog.next_in_level()?
                    };
                    let Some((row, path)) = next else { break };
                    ask.send(path.clone()).map_err(|_| gone())?;
                    ahead.push_back((row, path));
                }
                let Some((row, path)) = ahead.pop_front() else {
                    return Ok(());
                };
                if work.progress.is_cancelled() {
                    return Err(PublishError::Cancelled);
                }
                let listed = told.recv().map_err(|_| gone())?;
                self.directory(catalog, row, &path, listed)?;
            }
        })
    }

    /// Takes one directory: its rows into the catalog, its files to who matches them.
    fn directory(
        &mut self,
        catalog: &mut Writer,
        row: u32,
        path: &[u8],
        listed: io::Result<Listed>,
    ) -> Result<(), PublishError> {
        let kept = match self.work.beneath {
            Some(beneath) => beneath.children(path)?,
            None => None,
        };
        let mut listed = match listed {
            Ok(listed) => listed,
            Err(error) if kept.is_some() && reason_of(&error) == Reason::Changed => {
                // It is in the version beneath only.
                let children = self.merge(Vec::new(), &[], kept.unwrap_or_default());
                return self.lay(catalog, row, path, None, children);
            }
            Err(error) => {
                self.unreadable(path, &error);
                return Ok(());
            }
        };
        self.instructions.append(&mut listed.instructions);
        let found = match listed.found {
            Ok(found) => found,
            Err(error) => {
                self.unreadable(path, &error);
                return Ok(());
            }
        };
        let mut children = Vec::with_capacity(found.len());
        let mut full = join(path, b"");
        let above = full.len();
        for found in &found {
            full.truncate(above);
            full.extend_from_slice(&found.name);
            if let Some(entry) = self.entry(listed.opened.as_fd(), &full, found) {
                children.push((entry, Origin::Disk(found.stat)));
            }
        }
        let children = self.merge(children, &found, kept.unwrap_or_default());
        self.lay(catalog, row, path, Some(listed.stat), children)
    }

    /// Adds to the children of a directory what stays of the version beneath.
    fn merge(&mut self, mut children: Children, found: &[Found], kept: Vec<Kept>) -> Children {
        if kept.is_empty() {
            return children;
        }
        for kept in kept {
            let there = found.binary_search_by(|found| found.name.cmp(&kept.name));
            if there.is_ok() {
                continue;
            }
            let kind = kept.row.kind();
            self.symlinks += u64::from(kind == Kind::Symlink);
            let entry = NewEntry {
                name: kept.name,
                kind,
                mode: kept.row.mode(),
                mtime_ns: self.work.attributes.kept_mtime_ns(&kept.row),
                size: kept.row.file().size,
                target: kept.target,
            };
            let known = KnownFile {
                row: kept.row.number(),
                id: kept.row.id(),
            };
            children.push((entry, Origin::Beneath(known)));
        }
        children.sort_unstable_by(|(left, _), (right, _)| left.name.cmp(&right.name));
        children
    }

    /// Lays the children of a directory down.
    fn lay(
        &mut self,
        catalog: &mut Writer,
        row: u32,
        path: &[u8],
        stat: Option<Stat>,
        children: Children,
    ) -> Result<(), PublishError> {
        let (entries, origins): (Vec<_>, Vec<_>) = children.into_iter().unzip();
        if !self.work.options.allow.case {
            self.judge_case(path, &entries);
        }
        let first = match catalog.add_children(row, &entries) {
            Ok(first) => first,
            // The names and sizes were checked above, so it is the whole that has grown too large.
            Err(error) if error.rule().is_some() => {
                return Err(PublishError::CatalogSize(CATALOG_BYTES_MAX));
            }
            Err(error) => return Err(error.into()),
        };
        self.spool(catalog, path, stat, first, &entries, &origins)
    }

    /// Makes a row of what was found, or refuses it.
    fn entry(
        &mut self,
        directory: std::os::fd::BorrowedFd<'_>,
        path: &[u8],
        found: &Found,
    ) -> Option<NewEntry> {
        let stat = &found.stat;
        if !self.passes(path, stat) {
            return None;
        }
        let kind = match stat.kind {
            FileKind::Directory => Kind::Directory,
            FileKind::File => Kind::File,
            FileKind::Symlink => Kind::Symlink,
            other => {
                let reason = match other {
                    FileKind::Fifo => Reason::Fifo,
                    FileKind::Socket => Reason::Socket,
                    _ => Reason::Device,
                };
                self.refusals.add(reason, path, b"");
                return None;
            }
        };
        let Some(mtime_ns) = self.work.attributes.mtime_ns(stat) else {
            self.refusals.add(Reason::Time, path, b"");
            return None;
        };
        let mut target = Vec::new();
        if kind == Kind::Symlink {
            match disk::target(directory, &found.name) {
                Ok(found) if (1..=TARGET_BYTES_MAX).contains(&(found.len() as u64)) => {
                    target = found
                }
                Ok(_) => {
                    self.refusals.add(Reason::Length, path, b"its target");
                    return None;
                }
                Err(error) => {
                    self.unreadable(path, &error);
                    return None;
                }
            }
            self.symlinks += 1;
        }
        let size = if kind == Kind::File { stat.size } else { 0 };
        Some(NewEntry {
            name: found.name.clone(),
            kind,
            mode: self.work.attributes.mode(stat),
            mtime_ns,
            size,
            target,
        })
    }

    /// Judges what holds for every kind of entry; adds the refusal and returns `false` when it is refused.
    fn passes(&mut self, path: &[u8], stat: &Stat) -> bool {
        let name = disk::last_name(path);
        let depth = if path.is_empty() {
            0
        } else {
            1 + path.iter().filter(|byte| **byte == b'/').count()
        };
        let parent = &path[..path.len().saturating_sub(name.len() + 1)];
        let directory = stat.kind == FileKind::Directory;
        let secret = if stat.kind == FileKind::File && !self.work.options.allow.secrets {
            rules::secret_name(disk::last_name(parent), name)
        } else {
            None
        };
        let (reason, detail) = if path == rules::RESERVED {
            (Reason::Reserved, "")
        } else if std::str::from_utf8(name).is_err() {
            (Reason::Encoding, "")
        } else if depth > DEPTH_MAX as usize {
            (Reason::Depth, "")
        } else if path.len() > PATH_BYTES_MAX {
            (Reason::Length, "")
        } else if directory && self.own_mounts.contains(&stat.mount) {
            (Reason::Mount, "")
        } else if self.work.options.guard.is_some() && stat.mount != self.work.disk.stat().mount {
            (Reason::OtherMount, "")
        } else if let Some(Guard { owner: Some(owner) }) = self.work.options.guard
            && stat.uid != owner
        {
            (Reason::Owner, "")
        } else if directory && self.work.homes.contains(&(stat.device, stat.inode)) {
            (Reason::Home, "")
        } else if stat.kind == FileKind::File && stat.size > FILE_BYTES_MAX {
            (Reason::Size, "")
        } else if let Some(what) = secret {
            (Reason::Secret, what)
        } else {
            return true;
        };
        self.refusals.add(reason, path, detail.as_bytes());
        false
    }

    fn judge_case(&mut self, path: &[u8], entries: &[NewEntry]) {
        // Names that are not UTF-8 were refused already.
        let names: Vec<&str> = entries
            .iter()
            .map(|entry| std::str::from_utf8(&entry.name).unwrap_or_default())
            .collect();
        for (first, second) in rules::collisions(&names) {
            let detail = format!("like {}", names[first]);
            let path = join(path, &entries[second].name);
            self.refusals.add(Reason::Case, &path, detail.as_bytes());
        }
    }

    /// Judges every symlink, now that the whole tree is known.
    fn judge_links(&mut self, catalog: &mut Writer) -> Result<(), PublishError> {
        let draft = catalog.draft()?;
        for number in 0..draft.rows() {
            let row = draft.row(number)?;
            if row.kind() == Kind::Symlink && links::leaves(&draft, number)? {
                let mut detail = b"-> ".to_vec();
                detail.extend_from_slice(&draft.target(&row)?);
                self.refusals
                    .add(Reason::Link, &draft.path(number)?, &detail);
            }
        }
        Ok(())
    }

    fn spool(
        &mut self,
        catalog: &Writer,
        path: &[u8],
        stat: Option<Stat>,
        first: u32,
        entries: &[NewEntry],
        origins: &[Origin],
    ) -> Result<(), PublishError> {
        let files = || {
            (first..)
                .zip(entries)
                .zip(origins)
                .filter(|((_, entry), _)| entry.kind == Kind::File)
        };
        let count = files().count();
        if count == 0 {
            return Ok(());
        }
        self.files.directory(&SpooledDirectory {
            path: path.to_vec(),
            stat,
            // No more than there are rows, of which a catalog holds fewer than 2^26.
            files: u32::try_from(count)
                .map_err(|_| PublishError::CatalogSize(CATALOG_BYTES_MAX))?,
        })?;
        let mut bytes = 0_u64;
        for ((row, entry), origin) in files() {
            let (stat, known) = match origin {
                Origin::Disk(stat) => (*stat, None),
                Origin::Beneath(known) => (Stat::of_size(entry.size), Some(*known)),
            };
            bytes = bytes.saturating_add(stat.size);
            self.dense = self.dense.saturating_add(stat.dense());
            let file = SpooledFile {
                row,
                name: entry.name.clone(),
                stat,
                known,
                kept: known.is_some(),
            };
            self.files.file(file, catalog)?;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.work.progress.found(count as u64, bytes);
        Ok(())
    }

    fn unreadable(&mut self, path: &[u8], error: &std::io::Error) {
        self.refusals
            .add(reason_of(error), path, error.to_string().as_bytes());
    }
}

/// Returns what an error of opening or reading says: whether the path went away under our hands, or cannot be read.
pub(crate) fn reason_of(error: &std::io::Error) -> Reason {
    match error.raw_os_error() {
        Some(
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ESTALE | libc::EXDEV | libc::EAGAIN,
        ) => Reason::Changed,
        _ => Reason::Unreadable,
    }
}

pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
