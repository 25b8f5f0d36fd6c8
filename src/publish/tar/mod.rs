//! A tar stream becomes a tree on disk, to be published like any other.
//!
//! Formats are ustar, pax, GNU's long names and GNU's old sparse files. Every name is resolved from the tree's root, part
//! by part, following no symlink, so nothing is written anywhere else whatever the stream says. A member that comes
//! twice replaces the first, as GNU tar has it. What is not read to its end mark is no archive.

mod stream;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use stream::{HEADER_BYTES_MAX, Input, broken, drain};

use super::progress::{Progress, Step};
use super::{PATH_BYTES_MAX, PublishError};
use crate::store::Scratch;

/// Bytes that are read and written at once; so many zeros become a hole.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes of the store that are set aside at once.
const RESERVED_AT_ONCE: u64 = 16 << 20;

/// Bytes that a member takes beside its content: its inode and its name.
const MEMBER_BYTES: u64 = 4096;

/// Why a stream is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It is compressed.
    #[error("the stream is compressed")]
    Compressed {
        /// What makes a tar stream of it.
        program: &'static str,
    },
    /// It ends before its end mark.
    #[error("the tar stream ends too early")]
    Truncated,
    /// It is something else, or damaged.
    #[error("this is no tar stream: {0}")]
    Damaged(String),
    /// A member cannot become part of a tree.
    #[error("tar member {name:?} {what}")]
    Member {
        /// Its name, as far as it is text.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It cannot be read, or written to the disk.
    #[error("unpacking {name:?}: {error}")]
    Io {
        /// The member.
        name: String,
        /// The system's word.
        error: io::Error,
    },
}

impl TarError {
    /// Returns what a person can do about it, where there is something.
    pub(super) fn hint(&self) -> Option<String> {
        Some(match self {
            TarError::Compressed { program } => {
                format!("decompress it first: {program} FILE | manifs publish --from-stdin ...")
            }
            TarError::Truncated => "the program that writes it may have failed".to_owned(),
            TarError::Member {
                what: PAX_SPARSE, ..
            } => "make the archive with tar --format=gnu, or without --sparse".to_owned(),
            TarError::Damaged(_) | TarError::Member { .. } | TarError::Io { .. } => return None,
        })
    }
}

const PAX_SPARSE: &str = "is a sparse file in the pax format, which is not read";
const OUTSIDE: &str = "has a name that leads out of the tree";
const BELOW: &str = "lies below something that is no directory";

/// Unpacks `stream` into the directory of `scratch`.
pub(super) fn unpack(
    stream: OwnedFd,
    scratch: &Scratch,
    progress: &Progress,
) -> Result<(), PublishError> {
    progress.enter(Step::Unpack);
    let input = Input::open(stream, progress)?;
    let limits = Rc::clone(&input.limits);
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER_BYTES, input));
    let mut tree = Tree::new(scratch)?;
    limits.headers();
    let entries = archive
        .entries()
        .map_err(|error| broken(&error, progress))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| limits.judge(&error, progress))?;
        limits.content();
        tree.member(&mut entry, progress)?;
        limits.headers();
    }
    if limits.ended() {
        return Err(TarError::Truncated.into());
    }
    tree.finish()?;
    drain(archive.into_inner());
    Ok(())
}

/// The tree that is being written.
struct Tree<'a> {
    scratch: &'a Scratch,
    root: OwnedFd,
    /// The directory that a member was written to last, by its path: the next one's, mostly.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// What is set aside and not yet used.
    room: u64,
    /// Directories with their modes and times, which are set last: writing into one changes its time.
    directories: BufWriter<File>,
    buffer: Vec<u8>,
}

/// Name, mode and time of a member.
struct Member {
    path: Vec<u8>,
    mode: u32,
    seconds: i64,
    nanoseconds: u32,
}

impl Member {
    fn wrong(&self, what: &'static str) -> PublishError {
        wrong(&self.path, what)
    }

    fn io(&self, error: impl Into<io::Error>) -> PublishError {
        let name = text(&self.path);
        let error = error.into();
        TarError::Io { name, error }.into()
    }

    fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.seconds,
            tv_nsec: self.nanoseconds.into(),
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn wrong(name: &[u8], what: &'static str) -> PublishError {
    let name = text(name);
    TarError::Member { name, what }.into()
}

/// Returns the parts of a member's name, without `.` and empty ones.
fn clean(name: &[u8]) -> Result<Vec<u8>, PublishError> {
    if name.starts_with(b"/") {
        return Err(wrong(name, OUTSIDE));
    }
    let mut path = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(wrong(name, OUTSIDE)),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if path.len() > PATH_BYTES_MAX
        || path
            .split(|byte| *byte == b'/')
            .any(|part| part.len() > 255)
    {
        return Err(wrong(name, "has too long a name"));
    }
    Ok(path)
}

/// Returns a path's directory and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl<'a> Tree<'a> {
    fn new(scratch: &'a Scratch) -> Result<Tree<'a>, PublishError> {
        let root = rustix::fs::open(scratch.path(), DIRECTORY, Mode::empty());
        Ok(Tree {
            scratch,
            root: root.map_err(io::Error::from)?,
            last: None,
            room: 0,
            directories: BufWriter::new(tempfile::tempfile_in(scratch.path())?),
            buffer: vec![0; BUFFER_BYTES],
        })
    }

    fn member(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        progress: &Progress,
    ) -> Result<(), PublishError> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return global(entry, progress);
        }
        let member = self.describe(entry)?;
        self.use_room(MEMBER_BYTES)?;
        if member.path.is_empty() {
            return match kind {
                EntryType::Directory => self.later(&member),
                _ => Err(member.wrong("has no name")),
            };
        }
        match kind {
            EntryType::Directory => {
                self.directory(&member.path)?;
                self.later(&member)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&member, entry, progress)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() {
                    return Err(member.wrong("is a link to nothing"));
                }
                let (directory, name) = self.place(&member)?;
                rustix::fs::symlinkat(&*target, directory, name)
                    .and_then(|()| {
                        let flags = AtFlags::SYMLINK_NOFOLLOW;
                        rustix::fs::utimensat(directory, name, &member.times(), flags)
                    })
                    .map_err(|error| member.io(error))
            }
            EntryType::Link => self.hard_link(&member, entry),
            EntryType::Fifo => Err(member.wrong("is a FIFO, which has no content")),
            EntryType::Char | EntryType::Block => {
                Err(member.wrong("is a device, which has no content"))
            }
            _ => Err(member.wrong("is of a kind that no tree has")),
        }
    }

    fn describe(&self, entry: &mut Entry<'_, impl Read>) -> Result<Member, PublishError> {
        let name = entry.path_bytes().into_owned();
        let damaged = |error: io::Error| TarError::Damaged(error.to_string());
        let mut member = Member {
            path: clean(&name)?,
            mode: entry.header().mode().map_err(damaged)? & 0o777,
            seconds: 0,
            nanoseconds: 0,
        };
        let seconds = entry.header().mtime().map_err(damaged)?;
        let Ok(seconds) = i64::try_from(seconds) else {
            return Err(member.wrong("has a time that is none"));
        };
        member.seconds = seconds;
        if let Some(records) = entry.pax_extensions().map_err(damaged)? {
            for record in records {
                let record = record.map_err(damaged)?;
                let key = record.key_bytes();
                if key.starts_with(b"GNU.sparse.") {
                    return Err(member.wrong(PAX_SPARSE));
                }
                if key == b"mtime" {
                    let time = record.value().ok().and_then(pax_time);
                    let Some((seconds, nanoseconds)) = time else {
                        return Err(member.wrong("has a time that is none"));
                    };
                    (member.seconds, member.nanoseconds) = (seconds, nanoseconds);
                }
            }
        }
        Ok(member)
    }

    fn file(
        &mut self,
        member: &Member,
        entry: &mut Entry<'_, impl Read>,
        progress: &Progress,
    ) -> Result<(), PublishError> {
        let (directory, name) = self.place(member)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o600);
        let opened = rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, mode);
        let file = File::from(opened.map_err(|error| member.io(error))?);
        let size = entry.size();
        let mut at = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            // Filled as far as it goes, so that zeros come in whole buffers.
            let mut filled = 0;
            while filled < buffer.len() {
                match entry.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(broken(&error, progress)),
                }
            }
            let bytes = &buffer[..filled];
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|byte| *byte != 0) {
                self.use_room(filled as u64)?;
                file.write_all_at(bytes, at)
                    .map_err(|error| member.io(error))?;
            }
            at += filled as u64;
            progress.read(0, filled as u64);
        }
        self.buffer = buffer;
        if at != size {
            return Err(TarError::Truncated.into());
        }
        file.set_len(size).map_err(|error| member.io(error))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(member.mode))
            .and_then(|()| rustix::fs::futimens(&file, &member.times()))
            .map_err(|error| member.io(error))
    }

    fn hard_link(
        &mut self,
        member: &Member,
        entry: &Entry<'_, impl Read>,
    ) -> Result<(), PublishError> {
        let target = clean(&entry.link_name_bytes().unwrap_or_default())?;
        if target == member.path {
            return Ok(());
        }
        let (above, target) = split(&target);
        let missing = || member.wrong("is a hard link to what did not come before it");
        let from = self.open(above, false)?.ok_or_else(missing)?;
        let found = rustix::fs::statat(&from, target, AtFlags::SYMLINK_NOFOLLOW);
        let kind = found.map(|found| rustix::fs::FileType::from_raw_mode(found.st_mode));
        if kind != Ok(rustix::fs::FileType::RegularFile) {
            return Err(missing());
        }
        let (directory, name) = self.place(member)?;
        rustix::fs::linkat(from, target, directory, name, AtFlags::empty())
            .map_err(|error| member.io(error))
    }

    /// Returns where a member goes, and takes away what was there before.
    fn place<'m>(
        &mut self,
        member: &'m Member,
    ) -> Result<(std::os::fd::BorrowedFd<'_>, &'m [u8]), PublishError> {
        let (above, name) = split(&member.path);
        self.directory(above)?;
        let directory = self.at();
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).map_err(|_| {
                    member.wrong("takes the place of a directory that is not empty")
                })?;
            }
            Err(error) => return Err(member.io(error)),
        }
        Ok((self.at(), name))
    }

    /// Returns the directory that [`Tree::directory`] went to last.
    fn at(&self) -> std::os::fd::BorrowedFd<'_> {
        let last = self.last.as_ref();
        last.map_or(self.root.as_fd(), |(_, directory)| directory.as_fd())
    }

    /// Goes to a directory, which is made with those above it if it is missing.
    fn directory(&mut self, path: &[u8]) -> Result<(), PublishError> {
        if path.is_empty() {
            self.last = None;
        } else if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            let opened = self.open(path, true)?;
            self.last = opened.map(|opened| (path.to_vec(), opened));
        }
        Ok(())
    }

    /// Opens a directory part by part; makes what is missing, or returns `None`.
    fn open(&mut self, path: &[u8], make: bool) -> Result<Option<OwnedFd>, PublishError> {
        let failed = |error: Errno| {
            let (name, error) = (text(path), error.into());
            PublishError::from(TarError::Io { name, error })
        };
        if path.is_empty() {
            return Ok(Some(self.root.try_clone()?));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let whole = rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), resolve);
        if let Ok(opened) = whole {
            return Ok(Some(opened));
        }
        let mut at = self.root.try_clone()?;
        for part in path.split(|byte| *byte == b'/') {
            at = match rustix::fs::openat(&at, part, DIRECTORY, Mode::empty()) {
                Ok(opened) => opened,
                Err(Errno::NOENT) if make => {
                    self.use_room(MEMBER_BYTES)?;
                    rustix::fs::mkdirat(&at, part, Mode::RWXU).map_err(failed)?;
                    rustix::fs::openat(&at, part, DIRECTORY, Mode::empty()).map_err(failed)?
                }
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => return Err(wrong(path, BELOW)),
                Err(error) => return Err(failed(error)),
            };
        }
        Ok(Some(at))
    }

    /// Remembers mode and time of a directory.
    fn later(&mut self, member: &Member) -> Result<(), PublishError> {
        let len = u32::try_from(member.path.len()).map_err(io::Error::other)?;
        let out = &mut self.directories;
        out.write_all(&len.to_le_bytes())?;
        out.write_all(&member.path)?;
        out.write_all(&member.mode.to_le_bytes())?;
        out.write_all(&member.seconds.to_le_bytes())?;
        Ok(out.write_all(&member.nanoseconds.to_le_bytes())?)
    }

    /// Sets modes and times of directories: that of one that came twice as it came last.
    fn finish(mut self) -> Result<(), PublishError> {
        self.last = None;
        self.directories.flush()?;
        let mut file = self.directories.get_ref();
        let len = file.stream_position()?;
        file.rewind()?;
        let mut reader = BufReader::new(file.try_clone()?);
        let mut at = 0;
        while at < len {
            let (mut four, mut eight) = ([0; 4], [0; 8]);
            reader.read_exact(&mut four)?;
            let mut path = vec![0; u32::from_le_bytes(four) as usize];
            reader.read_exact(&mut path)?;
            reader.read_exact(&mut four)?;
            let mode = u32::from_le_bytes(four);
            reader.read_exact(&mut eight)?;
            let seconds = i64::from_le_bytes(eight);
            reader.read_exact(&mut four)?;
            at += 20 + path.len() as u64;
            let member = Member {
                path,
                mode,
                seconds,
                nanoseconds: u32::from_le_bytes(four),
            };
            // Replaced by something else meanwhile.
            let Ok(Some(opened)) = self.open(&member.path, false) else {
                continue;
            };
            // Whoever unpacks has to be able to enter and to remove it.
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(member.mode | 0o700))
                .and_then(|()| rustix::fs::futimens(&opened, &member.times()))
                .map_err(|error| member.io(error))?;
        }
        Ok(())
    }

    fn use_room(&mut self, bytes: u64) -> Result<(), PublishError> {
        if bytes > self.room {
            let more = bytes.max(RESERVED_AT_ONCE);
            // A store too small for so much at once may have room for what is needed.
            let reserved = match self.scratch.reserve(more) {
                Ok(()) => more,
                Err(_) => {
                    self.scratch.reserve(bytes)?;
                    bytes
                }
            };
            self.room += reserved;
        }
        self.room -= bytes;
        Ok(())
    }
}

/// Reads what is said of all members that follow: `git archive` says there which commit it is of.
fn global(entry: &mut Entry<'_, impl Read>, progress: &Progress) -> Result<(), PublishError> {
    let mut records = Vec::new();
    entry
        .take(HEADER_BYTES_MAX)
        .read_to_end(&mut records)
        .map_err(|error| broken(&error, progress))?;
    for record in tar::PaxExtensions::new(&records) {
        let record = record.map_err(|error| TarError::Damaged(error.to_string()))?;
        if !matches!(record.key_bytes(), b"comment" | b"charset" | b"hdrcharset") {
            let what = "says something of all members, which is not read";
            return Err(wrong(record.key_bytes(), what));
        }
    }
    Ok(())
}

/// Reads seconds with a fraction, as pax has them.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (negative, nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// A tree that came as a stream; it is gone when this is dropped.
pub struct Unpacked(Option<Scratch>);

impl Drop for Unpacked {
    /// Removes it where that may take its time.
    fn drop(&mut self) {
        let scratch = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(scratch));
        }
    }
}

impl Unpacked {
    pub(super) fn new(scratch: Scratch) -> Unpacked {
        Unpacked(Some(scratch))
    }

    /// Opens the tree, to be published.
    ///
    /// # Errors
    /// The system's.
    pub fn directory(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Some(scratch) => Ok(rustix::fs::open(scratch.path(), DIRECTORY, Mode::empty())?),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}
