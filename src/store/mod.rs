//! Verified blocks on disk, under a quota (layout and promises: `docs/store.md`).
//!
//! A block on disk is a stranger until this process has hashed it ([`Store::load`]); then it is trusted until exit, and
//! [`Store::read_verified`] hands out its bytes without hashing again. The mark is private to this module. So a torn
//! write, a flipped bit or an edited file heals itself, and nothing on the read path needs to be durable.
//!
//! Nothing here fails a read: a store that cannot answer says that it has not got the block.

mod disk;
mod entry;
mod evict;
mod index;
mod ingest;
mod probe;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::block::{BLOCK_BYTES, Block, BlockRef, Digest, FileRef, block_len};
use crate::durable;
use entry::{Entry, Writing};

pub use disk::{Disk, DiskFile, RealDisk, Stat};
pub use index::{Index, IndexError, IndexWriter, NodeKind, NodeRef};
pub use ingest::Ingest;
pub use probe::{Probe, probe};

/// The layout's version; another one is refused, never wiped.
const VERSION: &str = "manifs store 1\n";

/// Files kept open.
const HANDLES_MAX: usize = 512;

/// Locks of the map of entries.
const SHARDS: usize = 32;

/// The smallest space a file takes, and the unit of what it takes.
const PAGE_BYTES: u64 = 4096;

/// When a block is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// On its first use in each run.
    #[default]
    FirstTouch,
    /// On each use.
    Always,
}

/// What a store is told.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The most bytes that everything below `store/` may take.
    pub quota: u64,
    /// When blocks are hashed.
    pub verify: Verify,
}

/// Whether a read may wait for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It may not.
    No,
    /// It may.
    Yes,
}

/// How a read of verified bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The buffer is filled.
    Done,
    /// It would have to wait for the disk.
    WouldBlock,
    /// This process has not hashed the block yet: [`Store::load`] it.
    Unverified,
    /// The block is not there.
    Missing,
}

/// Why a block is not kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The quota, or the disk, has no room, and nothing more can be evicted.
    #[error(
        "the store is full: {need} more bytes do not fit the quota of {quota}, of which {unevictable} cannot be evicted"
    )]
    Full {
        /// What was to be added.
        need: u64,
        /// The quota.
        quota: u64,
        /// What is pinned, or installed, or published here.
        unevictable: u64,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// Which file, relative to the store.
        path: String,
        /// The system's word.
        source: io::Error,
    },
    /// The directory belongs to another version of manifs.
    #[error("{} holds a store of another version ({found:?})", .path.display())]
    UnknownVersion {
        /// The directory.
        path: PathBuf,
        /// What its VERSION says.
        found: String,
    },
}

/// What the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on the disk.
    pub used: u64,
    /// The most they may be.
    pub quota: u64,
    /// Bytes that cannot be evicted.
    pub unevictable: u64,
    /// Data files.
    pub files: u64,
    /// Reads that found damage since the start.
    pub damaged: u64,
    /// Failures of the disk since the start.
    pub failures: u64,
    /// Bytes evicted since the start.
    pub evicted: u64,
}

/// A data file that this run has not touched yet.
struct Cold {
    digest: Digest,
    large: bool,
    cost: u64,
    used: u64,
}

/// Blocks by file, on a disk.
pub struct Store {
    disk: Arc<dyn Disk>,
    options: Options,
    shards: [Mutex<HashMap<Digest, Arc<Entry>>>; SHARDS],
    handles: Mutex<LruCache<Digest, ()>>,
    clock: AtomicU64,
    used: AtomicU64,
    files: AtomicU64,
    damaged: AtomicU64,
    failures: AtomicU64,
    evicted: AtomicU64,
    temporary: AtomicU64,
    full_said: AtomicBool,
    /// Files found at the start and not touched since, the least recently used last; none until they are counted.
    cold: Mutex<Option<Vec<Cold>>>,
    counted: Condvar,
    /// One eviction at a time.
    evicting: Mutex<()>,
}

impl Store {
    /// Opens the store below `path`, which is made when it is missing. What is there is counted on a thread; reads work
    /// at once, writes wait for it.
    ///
    /// # Errors
    /// [`StoreError::UnknownVersion`], [`StoreError::Io`].
    pub fn open(path: &Path, options: Options) -> Result<Arc<Store>, StoreError> {
        let at = |source| StoreError::Io {
            path: path.display().to_string(),
            source,
        };
        let disk = RealDisk::new(path).map_err(at)?;
        let version = path.join("VERSION");
        match durable::read(&version, 1 << 10).map_err(at)? {
            Some(found) if found == VERSION.as_bytes() => {}
            Some(found) => {
                let found = String::from_utf8_lossy(&found).trim().to_owned();
                return Err(StoreError::UnknownVersion {
                    path: path.to_path_buf(),
                    found,
                });
            }
            None => durable::write(&version, VERSION.as_bytes(), 0o600).map_err(at)?,
        }
        let store = Arc::new(Store::new(Arc::new(disk), options));
        let counting = Arc::clone(&store);
        std::thread::Builder::new()
            .name("manifs-count".into())
            .spawn(move || counting.count())
            .map_err(at)?;
        Ok(store)
    }

    /// Opens a store on any disk, and counts what is there before it returns.
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Arc<Store> {
        let store = Arc::new(Store::new(disk, options));
        store.count();
        store
    }

    fn new(disk: Arc<dyn Disk>, options: Options) -> Store {
        Store {
            disk,
            options,
            shards: std::array::from_fn(|_| Mutex::default()),
            handles: Mutex::new(LruCache::new(
                NonZeroUsize::new(HANDLES_MAX).expect("it is 512"),
            )),
            clock: AtomicU64::new(1),
            used: AtomicU64::new(0),
            files: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            temporary: AtomicU64::new(0),
            full_said: AtomicBool::new(false),
            cold: Mutex::new(None),
            counted: Condvar::new(),
            evicting: Mutex::new(()),
        }
    }

    /// Reads bytes of a block that this process has verified, from `offset` within it.
    ///
    /// The mark and the generation are looked at again after the read: bytes that were evicted meanwhile are thrown away.
    pub fn read_verified(
        &self,
        block: &BlockRef,
        offset: u32,
        buffer: &mut [u8],
        wait: Wait,
    ) -> ReadOutcome {
        if self.options.verify == Verify::Always {
            return ReadOutcome::Unverified;
        }
        let Some(entry) = self.known(&block.file.id) else {
            return ReadOutcome::Unverified;
        };
        if !entry.is_verified(block.index) {
            // What is known of a file is all there is: no entry is made without a look at the disk.
            return if entry.is_present(block.index) {
                ReadOutcome::Unverified
            } else {
                ReadOutcome::Missing
            };
        }
        let generation = entry.generation();
        let handle = entry.handle.read().clone();
        let handle = match (handle, wait) {
            (Some(handle), _) => handle,
            (None, Wait::No) => return ReadOutcome::WouldBlock,
            (None, Wait::Yes) => match self.handle(&entry) {
                Some(handle) => handle,
                None => return ReadOutcome::Unverified,
            },
        };
        let at = block.index * BLOCK_BYTES + u64::from(offset);
        match handle.read_at(at, buffer, wait) {
            Ok(count) if count == buffer.len() => {}
            Ok(_) if wait == Wait::No => return ReadOutcome::WouldBlock,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return ReadOutcome::WouldBlock;
            }
            // Shorter than it was, or a failing disk: what was verified is no longer what is there.
            Ok(_) | Err(_) => {
                entry.forget_verified();
                return ReadOutcome::Unverified;
            }
        }
        if !entry.is_verified(block.index) || entry.generation() != generation {
            return ReadOutcome::Unverified;
        }
        entry.touch(block.index, self.now());
        ReadOutcome::Done
    }

    /// Returns whether this process has verified the block and still trusts it.
    pub fn verified(&self, block: &BlockRef) -> bool {
        self.options.verify == Verify::FirstTouch
            && self
                .known(&block.file.id)
                .is_some_and(|entry| entry.is_verified(block.index))
    }

    /// Returns whether every block is hashed at each use, so that none is ever handed out by its mark.
    pub fn verifies_always(&self) -> bool {
        self.options.verify == Verify::Always
    }

    /// Reads and hashes a block; one that is not what it should be is dropped. Blocking.
    pub fn load(&self, block: &BlockRef) -> Option<Block> {
        if block.is_empty() {
            return None;
        }
        let entry = self.entry(&block.file);
        if !entry.is_present(block.index) {
            return None;
        }
        let generation = entry.generation();
        let handle = self.handle(&entry)?;
        let len = block.len() as usize;
        let mut bytes = vec![0; len];
        let read = handle.read_at(block.index * BLOCK_BYTES, &mut bytes, Wait::Yes);
        let read = read.inspect_err(|_| self.count_failure()).unwrap_or(0);
        bytes.truncate(read);
        match Block::verify(block.digest, block.len(), bytes.into()) {
            Ok(verified) => {
                // Evicted meanwhile: the bytes are right, but the mark would be of what is gone.
                if entry.generation() == generation {
                    entry.set_verified(block.index);
                }
                entry.touch(block.index, self.now());
                Some(verified)
            }
            Err(wrong) => {
                if entry.generation() == generation {
                    tracing::warn!(file = %block.file.id, index = block.index, %wrong, "damage in the store, fetched again");
                    self.damaged.fetch_add(1, Ordering::Relaxed);
                    self.drop_block(&entry, block.index);
                }
                None
            }
        }
    }

    /// Keeps a block. Blocking.
    ///
    /// # Errors
    /// [`StoreError`]; the block can be used all the same.
    pub fn put(&self, place: &BlockRef, block: &Block) -> Result<(), StoreError> {
        if place.is_empty()
            || place.digest != block.digest()
            || u64::from(place.len()) != block.bytes().len() as u64
        {
            return Ok(());
        }
        let entry = self.entry(&place.file);
        if entry.is_present(place.index) && entry.is_verified(place.index) {
            entry.touch(place.index, self.now());
            return Ok(());
        }
        let need = u64::from(place.len()).next_multiple_of(PAGE_BYTES)
            + if entry.is_small() { 0 } else { PAGE_BYTES };
        self.reserve(need)?;
        let written = self.write(&entry, place.index, block);
        self.release(need);
        let written = written.or_else(|error| {
            if error.kind() != io::ErrorKind::StorageFull {
                return Err(error);
            }
            // The disk is fuller than the quota knows: make room once, else the block passes through unstored.
            self.evict_bytes(need.max(SLACK_BYTES));
            self.write(&entry, place.index, block)
        });
        written.map_err(|source| self.failed(&entry, source, need))?;
        entry.set_verified(place.index);
        entry.touch(place.index, self.now());
        Ok(())
    }

    fn write(&self, entry: &Entry, index: u64, block: &Block) -> io::Result<()> {
        let mut writing = entry.writing.lock();
        let before = entry.cost.load(Ordering::Relaxed);
        let new = *writing == Writing::Absent;
        if entry.is_small() {
            let temporary = self.temporary();
            let file = self.disk.create(&temporary)?;
            let placed = file.write_at(0, block.bytes()).and_then(|()| {
                self.disk
                    .rename(&temporary, &path(&entry.file, Writing::Complete))
            });
            if let Err(error) = placed {
                let _ = self.disk.remove(&temporary);
                return Err(error);
            }
            *entry.handle.write() = None;
            *writing = Writing::Complete;
            entry.set_present(0);
            self.account(entry, before, file.stat()?.allocated.max(PAGE_BYTES));
        } else {
            let file = match *writing {
                Writing::Absent => {
                    let file = self.disk.create(&path(&entry.file, Writing::Partial))?;
                    file.set_len(entry.file.size)?;
                    *writing = Writing::Partial;
                    *entry.handle.write() = Some(Arc::clone(&file));
                    file
                }
                Writing::Partial | Writing::Complete => self
                    .handle_of(entry, *writing)?
                    .ok_or(io::ErrorKind::NotFound)?,
            };
            file.write_at(index * BLOCK_BYTES, block.bytes())?;
            entry.set_present(index);
            if *writing == Writing::Partial {
                if entry.is_complete() {
                    self.disk.rename(
                        &path(&entry.file, Writing::Partial),
                        &path(&entry.file, Writing::Complete),
                    )?;
                    self.disk.remove(&map_path(&entry.file))?;
                    *writing = Writing::Complete;
                } else {
                    self.write_map(entry, index)?;
                }
            }
            self.account(entry, before, file.stat()?.allocated + PAGE_BYTES);
        }
        if new {
            self.files.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes the byte of the map that holds one block's bit.
    fn write_map(&self, entry: &Entry, index: u64) -> io::Result<()> {
        let path = map_path(&entry.file);
        let map = entry.map();
        match self.disk.open(&path)? {
            Some(file) => {
                let at = index / 8;
                let byte = usize::try_from(at)
                    .ok()
                    .and_then(|at| map.get(at))
                    .copied()
                    .unwrap_or(0);
                file.write_at(at, &[byte])
            }
            None => self.disk.create(&path)?.write_at(0, &map),
        }
    }

    /// Takes a block that is damaged off the disk, as far as the store is concerned.
    fn drop_block(&self, entry: &Entry, index: u64) {
        let mut writing = entry.writing.lock();
        let dropped = self.remove_blocks(entry, &mut writing, index..index + 1);
        if let Err(error) = dropped {
            self.count_failure();
            tracing::debug!(%error, "a damaged block could not be removed");
        }
        // Whatever the disk did: it is not there.
        entry.forget(index);
    }

    /// Returns whether the block seems to be there, without a look at its bytes.
    pub fn has(&self, block: &BlockRef) -> bool {
        self.entry(&block.file).is_present(block.index)
    }

    /// Returns how many bytes of a file seem to be there.
    pub fn cached(&self, file: &FileRef) -> u64 {
        let entry = self.entry(file);
        if entry.is_complete() {
            return file.size;
        }
        entry
            .present_blocks()
            .map(|index| u64::from(block_len(file.size, index)))
            .sum()
    }

    /// Returns whether all of a file seems to be there.
    pub fn complete(&self, file: &FileRef) -> bool {
        file.size == 0 || self.entry(file).is_complete()
    }

    /// Keeps a file from being evicted until [`Store::unprotect`] is called as often.
    pub fn protect(&self, file: &FileRef) {
        self.entry(file).protected.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes back one [`Store::protect`].
    pub fn unprotect(&self, file: &FileRef) {
        let entry = self.entry(file);
        let _ = entry
            .protected
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                count.checked_sub(1)
            });
    }

    /// Returns what the store holds.
    pub fn usage(&self) -> Usage {
        let mut unevictable = 0;
        for shard in &self.shards {
            let shard = shard.lock();
            let protected = shard.values().filter(|entry| entry.is_protected());
            unevictable += protected
                .map(|entry| entry.cost.load(Ordering::Relaxed))
                .sum::<u64>();
        }
        Usage {
            used: self.used.load(Ordering::Relaxed),
            quota: self.options.quota,
            unevictable,
            files: self.files.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    /// Forgets which blocks were verified: each is hashed again before it is handed out.
    pub fn forget_verified(&self) {
        for shard in &self.shards {
            shard
                .lock()
                .values()
                .for_each(|entry| entry.forget_verified());
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// [`StoreError::Io`]
    pub fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync().map_err(|source| StoreError::Io {
            path: "store".into(),
            source,
        })
    }

    /// Writes down what was used since the last time, so that the next run evicts in the right order.
    pub fn flush(&self) {
        let fresh: Vec<Arc<Entry>> =
            self.entries(|entry| entry.fresh.swap(false, Ordering::Relaxed));
        for entry in fresh {
            let writing = *entry.writing.lock();
            if writing != Writing::Absent {
                let _ = self.disk.touch(&path(&entry.file, writing));
            }
        }
    }

    fn entries(&self, mut which: impl FnMut(&Entry) -> bool) -> Vec<Arc<Entry>> {
        let all = self
            .shards
            .iter()
            .flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>());
        all.filter(|entry| which(entry)).collect()
    }

    fn known(&self, id: &Digest) -> Option<Arc<Entry>> {
        self.shard(id).lock().get(id).cloned()
    }

    fn shard(&self, id: &Digest) -> &Mutex<HashMap<Digest, Arc<Entry>>> {
        &self.shards[usize::from(id.as_bytes()[31]) % SHARDS]
    }

    /// Returns what is known of a file; the first time, that is what the disk says.
    fn entry(&self, file: &FileRef) -> Arc<Entry> {
        if let Some(entry) = self.known(&file.id) {
            return entry;
        }
        let entry = Entry::new(*file);
        let found = self
            .look(&entry)
            .inspect_err(|_| self.count_failure())
            .unwrap_or(Writing::Absent);
        *entry.writing.lock() = found;
        let mut shard = self.shard(&file.id).lock();
        Arc::clone(shard.entry(file.id).or_insert_with(|| Arc::new(entry)))
    }

    /// Looks at the disk for a file that nothing is known of.
    fn look(&self, entry: &Entry) -> io::Result<Writing> {
        for writing in [Writing::Complete, Writing::Partial] {
            let Some(file) = self.disk.open(&path(&entry.file, writing))? else {
                continue;
            };
            if writing == Writing::Complete {
                entry.fill();
            } else if let Some(map) = self.disk.open(&map_path(&entry.file))? {
                let mut bytes = vec![0; entry.map().len()];
                let len = map.read_at(0, &mut bytes, Wait::Yes)?;
                entry.read_map(&bytes[..len]);
            }
            let extra = if entry.is_small() { 0 } else { PAGE_BYTES };
            entry.cost.store(
                file.stat()?.allocated.max(PAGE_BYTES) + extra,
                Ordering::Relaxed,
            );
            if !entry.is_small() {
                *entry.handle.write() = Some(file);
                self.remember_handle(entry.file.id);
            }
            return Ok(writing);
        }
        Ok(Writing::Absent)
    }

    /// Returns the open file, opening it if need be.
    fn handle(&self, entry: &Entry) -> Option<Arc<dyn DiskFile>> {
        if let Some(handle) = entry.handle.read().clone() {
            return Some(handle);
        }
        let writing = *entry.writing.lock();
        self.handle_of(entry, writing)
            .inspect_err(|_| self.count_failure())
            .ok()
            .flatten()
    }

    fn handle_of(&self, entry: &Entry, writing: Writing) -> io::Result<Option<Arc<dyn DiskFile>>> {
        if let Some(handle) = entry.handle.read().clone() {
            return Ok(Some(handle));
        }
        if writing == Writing::Absent {
            return Ok(None);
        }
        let opened = self.disk.open(&path(&entry.file, writing))?;
        // Small files are read once and then lie in the kernel's cache; keeping them open would push the large ones out.
        if let (Some(file), false) = (&opened, entry.is_small()) {
            *entry.handle.write() = Some(Arc::clone(file));
            self.remember_handle(entry.file.id);
        }
        Ok(opened)
    }

    /// Counts an open file in; the least recently opened one is closed for it.
    fn remember_handle(&self, id: Digest) {
        let closed = self.handles.lock().push(id, ());
        if let Some(other) = closed.map(|(other, ())| other).filter(|other| *other != id)
            && let Some(entry) = self.known(&other)
        {
            *entry.handle.write() = None;
        }
    }

    fn temporary(&self) -> String {
        format!("tmp/{}", self.temporary.fetch_add(1, Ordering::Relaxed))
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn account(&self, entry: &Entry, before: u64, after: u64) {
        entry.cost.store(after, Ordering::Relaxed);
        if after >= before {
            self.used.fetch_add(after - before, Ordering::AcqRel);
        } else {
            self.release(before - after);
        }
    }

    fn count_failure(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, entry: &Entry, source: io::Error, need: u64) -> StoreError {
        if source.kind() == io::ErrorKind::StorageFull
            || source.raw_os_error() == Some(libc::EDQUOT)
        {
            if !self.full_said.swap(true, Ordering::Relaxed) {
                tracing::warn!("the disk of the store is full: blocks pass through unstored");
            }
            let usage = self.usage();
            return StoreError::Full {
                need,
                quota: usage.quota,
                unevictable: usage.unevictable,
            };
        }
        self.count_failure();
        StoreError::Io {
            path: path(&entry.file, Writing::Complete),
            source,
        }
    }
}

/// Bytes that one eviction frees at least, so that not every block evicts.
const SLACK_BYTES: u64 = 16 << 20;

/// Returns where a file lies, relative to the store.
fn path(file: &FileRef, writing: Writing) -> String {
    let hex = file.id.to_string();
    let kind = if file.size <= BLOCK_BYTES { 'r' } else { 'p' };
    let extension = if writing == Writing::Partial {
        ".part"
    } else {
        ""
    };
    format!("{kind}/{}/{hex}{extension}", &hex[..2])
}

fn map_path(file: &FileRef) -> String {
    let hex = file.id.to_string();
    format!("p/{}/{hex}.map", &hex[..2])
}

impl crate::fetch::Shelf for Store {
    fn has(&self, block: &BlockRef) -> bool {
        Store::has(self, block)
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        Store::load(self, block)
    }

    fn find(&self, _: &Digest) -> Option<BlockRef> {
        None
    }

    fn put(&self, place: &BlockRef, block: &Block) -> bool {
        Store::put(self, place, block).is_ok()
    }
}
