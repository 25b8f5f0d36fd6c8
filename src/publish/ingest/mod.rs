//! Reads every file once: hashes it, hands what was hashed to the sink, and tells the catalog.
//!
//! The caller's thread follows the spool and opens directories; threads on all cores open, read, hash and store. A
//! file of at most one block has one hash. A larger one has a thread that reads it in order and hashes it as a whole,
//! while its blocks are hashed and stored by whoever is free. What a file takes of memory does not grow with it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths fit usize on the 64-bit machines that the crate insists on"
)]

mod large;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use super::PublishError;
use super::beneath::Beneath;
use super::disk::{self, Disk, Stat};
use super::pool::{Queue, Work};
use super::progress::Progress;
use super::refusal::{Reason, Refusals};
use super::reuse::Base;
use super::rules;
use super::sink::{LargeSink, Sink};
use super::spool::{SpoolReader, SpooledFile};
use super::walk::{Attributes, join, reason_of};
use crate::block::{BLOCK_BYTES, Block, Digest, block_count, block_len};
use crate::catalog::Writer;
use crate::torrent::Pieces;
use crate::unixfs::file;

/// The most threads: more of them only wait for the disk, and each may hold [`large::BLOCKS_UNDER_WAY`] blocks.
const THREADS_MAX: usize = 16;

/// How many files a thread takes at once: of 4 KiB, a piece of the torrent.
const BATCH_FILES: usize = 256;

/// How many bytes a thread takes at once, one file at least.
const BATCH_BYTES: u64 = 4 << 20;

/// A block of zeros, for holes.
static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// What a whole block of zeros hashes to.
static ZEROS_DIGEST: LazyLock<Digest> = LazyLock::new(|| Digest::of(&ZEROS));

/// What the ingest works on.
pub(crate) struct Ingest<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) catalog: &'a Writer,
    pub(crate) attributes: &'a Attributes,
    pub(crate) sink: &'a dyn Sink,
    /// The last version, whose files need not be read again.
    pub(crate) base: Option<&'a Base>,
    /// The version of which some files stay.
    pub(crate) beneath: Option<&'a Beneath>,
    /// Takes the bytes for the version's torrent, if one is offered.
    pub(crate) pieces: Option<&'a Pieces>,
    /// Whether files are published that look like secrets.
    pub(crate) allow_secrets: bool,
    pub(crate) progress: &'a Progress,
}

/// Reads all files of `spool`. With `refusals` that are not empty, and after the first one, files are only looked at for
/// more of them: nothing is published then.
pub(crate) fn ingest(
    work: &Ingest<'_>,
    mut spool: SpoolReader,
    refusals: Refusals,
) -> Result<Refusals, PublishError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.clamp(1, THREADS_MAX);
    let run = Run {
        work,
        queue: Queue::new(threads + 1),
        refused: AtomicBool::new(!refusals.is_empty()),
        refusals: Mutex::new(refusals),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        buffers: Mutex::new(Vec::new()),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| run.thread());
        }
        if let Err(error) = run.dispatch(&mut spool) {
            run.fail(error);
        }
        run.queue.close();
    });
    match run.failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(run.refusals.into_inner()),
    }
}

/// Some files of one directory.
struct Batch {
    directory: Arc<Directory>,
    files: Vec<SpooledFile>,
}

struct Directory {
    path: Vec<u8>,
    /// None when it is not on disk.
    opened: Option<OwnedFd>,
}

/// One block of a large file.
struct BlockWork<'s> {
    sink: Arc<dyn LargeSink + 's>,
    index: u64,
    bytes: Arc<Vec<u8>>,
    /// Where it lies in the torrent, when its pieces do not have to be brought in order.
    torrent: Option<u64>,
    slot: Arc<OnceLock<Digest>>,
}

struct Run<'a> {
    work: &'a Ingest<'a>,
    queue: Queue<BlockWork<'a>, Batch>,
    refused: AtomicBool,
    refusals: Mutex<Refusals>,
    failed: AtomicBool,
    failure: Mutex<Option<PublishError>>,
    /// Block buffers that nobody uses at the moment.
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// Why one file is not in the catalog.
enum Trouble {
    /// It cannot be published.
    Refused(Reason, String),
    /// Nothing can.
    Failed(PublishError),
}

impl<E: Into<PublishError>> From<E> for Trouble {
    fn from(error: E) -> Trouble {
        Trouble::Failed(error.into())
    }
}

/// An error of opening or reading a file of the tree.
fn unreadable(error: &io::Error) -> Trouble {
    Trouble::Refused(reason_of(error), error.to_string())
}

fn changed() -> Trouble {
    Trouble::Refused(Reason::Changed, String::new())
}

impl<'a> Run<'a> {
    /// Follows the spool, directory by directory.
    fn dispatch(&self, spool: &mut SpoolReader) -> Result<(), PublishError> {
        while let Some(found) = spool.directory()? {
            let opened = match &found.stat {
                None => Ok(None),
                Some(before) => self.work.disk.directory(&found.path).and_then(|opened| {
                    if !disk::stat(&opened)?.unchanged(before) {
                        self.refuse(Reason::Changed, &found.path, "");
                    }
                    Ok(Some(opened))
                }),
            };
            let directory = match opened {
                Ok(opened) => {
                    let path = found.path;
                    Some(Arc::new(Directory { path, opened }))
                }
                Err(error) => {
                    self.refuse(reason_of(&error), &found.path, &error.to_string());
                    None
                }
            };
            let mut files = Vec::new();
            let mut bytes = 0_u64;
            let mut piece = None;
            for _ in 0..found.files {
                if self.stopped() {
                    return Ok(());
                }
                let file = spool.file()?;
                if self.is_settled(&file) {
                    self.work.progress.took_over(file.stat.size);
                    continue;
                }
                let ends_in = self.last_piece(&file);
                // A piece is hashed from its front, so a thread begins with the file that begins one: the next thread
                // need not wait for it.
                let full = files.len() >= BATCH_FILES || bytes >= BATCH_BYTES || ends_in != piece;
                if full && !files.is_empty() {
                    self.hand_out(directory.as_ref(), std::mem::take(&mut files));
                    bytes = 0;
                }
                piece = ends_in;
                bytes = bytes.saturating_add(file.stat.size);
                files.push(file);
            }
            if !files.is_empty() {
                self.hand_out(directory.as_ref(), files);
            }
        }
        Ok(())
    }

    /// Gives files to whoever is free; those of a directory that was refused to nobody.
    fn hand_out(&self, directory: Option<&Arc<Directory>>, files: Vec<SpooledFile>) {
        if let Some(directory) = directory {
            let directory = Arc::clone(directory);
            self.queue.add_files(Batch { directory, files });
        }
    }

    /// Returns the piece of the torrent in which a file's last byte lies.
    fn last_piece(&self, file: &SpooledFile) -> Option<u64> {
        let (pieces, offset) = self.torrent_place(file.row)?;
        let last = offset + file.stat.size.saturating_sub(1);
        Some(last / pieces.layout().piece_bytes())
    }

    fn thread(&self) {
        let _guard = AbortOnPanic(self);
        while let Some(work) = self.queue.next() {
            match work {
                Work::Block(block) => self.block(block),
                Work::Files(batch) => {
                    for file in &batch.files {
                        if !self.stopped() {
                            self.file(&batch.directory, file);
                        }
                    }
                    self.queue.files_done();
                }
            }
        }
    }

    fn file(&self, directory: &Directory, file: &SpooledFile) {
        let done = match &directory.opened {
            Some(opened) if !file.kept => self.read(opened.as_fd(), file),
            _ => self.keep(file),
        };
        match done {
            Ok(()) => {}
            Err(Trouble::Refused(reason, detail)) => {
                self.refuse(reason, &join(&directory.path, &file.name), &detail);
            }
            Err(Trouble::Failed(error)) => self.fail(error),
        }
    }

    fn read(&self, directory: BorrowedFd<'_>, file: &SpooledFile) -> Result<(), Trouble> {
        if self.take_over(file)? {
            return Ok(());
        }
        let opened = disk::open_file(directory, &file.name).map_err(|error| unreadable(&error))?;
        let before = disk::stat(&opened).map_err(|error| unreadable(&error))?;
        if !self.is_same(&before, &file.stat) {
            return Err(changed());
        }
        let opened = std::fs::File::from(opened);
        if self.refused.load(Ordering::Relaxed) {
            let mut head = [0; rules::HEAD_BYTES];
            let head = read_up_to(&opened, &mut head, 0).map_err(|error| unreadable(&error))?;
            return self.judge(head);
        }
        if before.size <= BLOCK_BYTES {
            self.small(&opened, file, &before)?;
        } else {
            self.large(&opened, file, &before)?;
        }
        self.work.progress.read(1, 0);
        Ok(())
    }

    /// Returns whether nothing is left to be done for a file: its one block is known, and the catalog has its id from
    /// when that was found out.
    fn is_settled(&self, file: &SpooledFile) -> bool {
        let known = file.known.is_some() && !file.kept;
        known && file.stat.size <= BLOCK_BYTES && !self.torrent_needs(file)
    }

    /// Returns whether bytes of a file are in a piece of the torrent that is not known.
    fn torrent_needs(&self, file: &SpooledFile) -> bool {
        let place = self.torrent_place(file.row);
        place.is_some_and(|(pieces, offset)| !pieces.know_all(offset..offset + file.stat.size))
    }

    /// Takes a known file of several blocks over from the last version, as the walk has found it, unless the torrent
    /// needs its bytes. Returns whether it did.
    fn take_over(&self, file: &SpooledFile) -> Result<bool, Trouble> {
        let (Some(base), Some(known)) = (self.work.base, file.known) else {
            return Ok(false);
        };
        let size = file.stat.size;
        if size <= BLOCK_BYTES || self.torrent_needs(file) {
            return Ok(false);
        }
        base.hand_over(known.row, self.work.catalog, file.row)?;
        self.work.progress.took_over(size);
        Ok(true)
    }

    /// Takes over a file that stays; if the torrent needs its bytes, they come from the store.
    fn keep(&self, file: &SpooledFile) -> Result<(), Trouble> {
        let (Some(beneath), Some(known)) = (self.work.beneath, file.known) else {
            return Err(changed());
        };
        if self.refused.load(Ordering::Relaxed) {
            return Ok(());
        }
        let row = beneath.row(known.row)?;
        if self.torrent_needs(file)
            && let Some((pieces, offset)) = self.torrent_place(file.row)
        {
            for index in 0..row.blocks() {
                if self.stopped() {
                    return Ok(());
                }
                let block = self.work.sink.load(&beneath.block(&row, index)?);
                let block = block.ok_or_else(|| beneath.not_whole())?;
                pieces.add(offset + index * BLOCK_BYTES, block.bytes());
            }
        }
        beneath.hand_over(&row, self.work.catalog, file.row)?;
        self.work.progress.took_over(row.size());
        Ok(())
    }

    /// Returns whether a file is what the walk found.
    fn is_same(&self, now: &Stat, found: &Stat) -> bool {
        let mode = |stat| self.work.attributes.mode(stat);
        now.unchanged(found) && mode(now) == mode(found)
    }

    /// Refuses what begins like a private key.
    fn judge(&self, head: &[u8]) -> Result<(), Trouble> {
        if self.work.allow_secrets {
            return Ok(());
        }
        match rules::secret_content(head) {
            Some(what) => Err(Trouble::Refused(Reason::Secret, what.to_owned())),
            None => Ok(()),
        }
    }

    fn small(
        &self,
        opened: &std::fs::File,
        file: &SpooledFile,
        before: &Stat,
    ) -> Result<(), Trouble> {
        if before.size == 0 {
            self.work.catalog.set_id(file.row, Digest::EMPTY)?;
            return Ok(());
        }
        let mut buffer = self.buffer();
        // At most a block. That it grew meanwhile shows in its size.
        let size = before.size as usize;
        buffer.resize(size, 0);
        let read = read_up_to(opened, &mut buffer, 0)
            .map(<[u8]>::len)
            .map_err(|error| unreadable(&error))?;
        let after = disk::stat(opened).map_err(|error| unreadable(&error))?;
        if read != size || !after.unchanged(before) {
            return Err(changed());
        }
        // What is known was judged and stored when it was read before: its bytes are for the torrent only.
        if file.known.is_none() {
            self.judge(&buffer)?;
            let block = Block::seal(Bytes::copy_from_slice(&buffer));
            self.work.sink.small(&block)?;
            self.work.catalog.set_id(file.row, block.digest())?;
        }
        if let Some((pieces, offset)) = self.torrent_place(file.row) {
            pieces.add(offset, &buffer);
        }
        self.work.progress.read(0, before.size);
        self.give_back(buffer);
        Ok(())
    }

    fn block(&self, block: BlockWork<'a>) {
        let digest = Digest::of(&block.bytes);
        // Zeros stay a hole, also where the file system had written them out.
        if digest != *ZEROS_DIGEST
            && let Err(error) = block.sink.block(block.index, &block.bytes)
        {
            self.fail(error);
        }
        if let (Some(pieces), Some(offset)) = (self.work.pieces, block.torrent) {
            pieces.add(offset, &block.bytes);
        }
        let BlockWork {
            bytes, slot, sink, ..
        } = block;
        drop(sink);
        if let Ok(buffer) = Arc::try_unwrap(bytes) {
            self.give_back(buffer);
        }
        let _ = slot.set(digest);
        self.queue.done();
    }

    fn refuse(&self, reason: Reason, path: &[u8], detail: &str) {
        self.refusals.lock().add(reason, path, detail.as_bytes());
        self.refused.store(true, Ordering::Relaxed);
        self.give_up();
    }

    fn fail(&self, error: PublishError) {
        // The first one is what went wrong; others follow from it.
        self.failure.lock().get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
        self.give_up();
    }

    /// Lets nobody wait for bytes that will not be read.
    fn give_up(&self) {
        if let Some(pieces) = self.work.pieces {
            pieces.give_up();
        }
    }

    /// Returns where a file lies in the torrent, and what takes its bytes.
    fn torrent_place(&self, row: u32) -> Option<(&'a Pieces, u64)> {
        let pieces = self.work.pieces?;
        Some((pieces, pieces.layout().offset_of(row)?))
    }

    fn stopped(&self) -> bool {
        if self.work.progress.is_cancelled() {
            self.fail(PublishError::Cancelled);
        }
        self.failed.load(Ordering::Relaxed)
    }

    fn buffer(&self) -> Vec<u8> {
        let kept = self.buffers.lock().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES as usize))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        self.buffers.lock().push(buffer);
    }
}

/// Ends the other threads when one dies, so that its panic is heard instead of waited for.
struct AbortOnPanic<'r, 'a>(&'r Run<'a>);

impl Drop for AbortOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
            self.0.give_up();
            self.0.queue.abort();
        }
    }
}

/// Reads from `offset` until `buffer` is full or the file ends; returns what was read.
fn read_up_to<'b>(file: &std::fs::File, buffer: &'b mut [u8], offset: u64) -> io::Result<&'b [u8]> {
    use std::os::unix::fs::FileExt as _;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..filled])
}

/// Stores a catalog, which is a file like any other, and returns the digest of each of its blocks.
pub(crate) fn store_catalog(
    sink: &dyn Sink,
    catalog: &std::fs::File,
    len: u64,
    pieces: Option<&Pieces>,
) -> Result<Vec<Digest>, PublishError> {
    let mut buffer = vec![0; BLOCK_BYTES as usize];
    let large = if len > BLOCK_BYTES {
        Some(sink.large(len, len)?)
    } else {
        None
    };
    let mut digests = Vec::new();
    for index in 0..block_count(len) {
        let wanted = block_len(len, index) as usize;
        let bytes = read_up_to(catalog, &mut buffer[..wanted], index * BLOCK_BYTES)?;
        if bytes.len() != wanted {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(pieces) = pieces {
            // The catalog is the torrent's first file.
            pieces.add(index * BLOCK_BYTES, bytes);
        }
        match &large {
            Some(large) => {
                large.block(index, bytes)?;
                digests.push(Digest::of(bytes));
            }
            None => {
                let block = Block::seal(Bytes::copy_from_slice(bytes));
                sink.small(&block)?;
                digests.push(block.digest());
            }
        }
    }
    if let Some(large) = large {
        large.finish(file::root(len, digests.iter().copied()).digest())?;
    }
    Ok(digests)
}
