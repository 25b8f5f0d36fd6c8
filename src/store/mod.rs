//! Verified blocks on disk, under a quota (layout and promises: `docs/store.md`).
//!
//! A block on disk is a stranger until this process has hashed it ([`Store::load`], [`Store::put`]); then it is trusted
//! until exit, and [`Store::read_verified`] hands out its bytes without hashing again. The mark is private to this
//! module. So a torn write, a flipped bit or an edited file heals itself, and nothing on the read path needs to be durable.
//!
//! Nothing here fails a read: a store that cannot answer says that it has not got the block. It knows digests and
//! files only, neither packages nor networks. All disk access goes through [`Disk`].

mod disk;
mod handles;
mod index;
mod ingest;
mod keep;
mod large;
mod memory;
mod probe;
mod read;
mod real;
mod recency;
mod scan;
mod scratch;
mod space;
mod table;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::block::{BLOCK_BYTES, Block, BlockRef, Digest};
use crate::durable;
use handles::Handles;
use scan::Counted;
use space::Space;
use table::Shard;

pub use disk::{Access, Disk, DiskFile, Folder, Listed, Name, Stat};
pub use index::{Index, IndexError, IndexWriter, NodeKind, NodeRef};
pub use ingest::Ingest;
pub use memory::MemoryDisk;
pub use probe::{Probe, probe};
pub use real::RealDisk;
pub use scratch::Scratch;

/// The layout's version; another one is refused, never wiped.
const VERSION: &str = "manifs store 1\n";

/// Shards of the table: one for each first byte of a digest, as the directories are.
const SHARDS: usize = 256;

/// The most blocks that are evicted at once.
const SPAN_BLOCKS_MAX: u64 = 64;

/// How long another process may take to end and give the store free.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

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
    /// The directory holds something else, and a store would evict what is in it.
    #[error("{} is no store: it holds {found:?}", .path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process", .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
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

/// Blocks by file, on a disk.
pub struct Store {
    disk: Arc<dyn Disk>,
    /// Where it lies; none in memory.
    path: Option<PathBuf>,
    options: Options,
    shards: Box<[Shard]>,
    space: Space,
    handles: Handles,
    counted: Arc<Counted>,
    /// Blocks of one span: fewer in a store that has room for few.
    span_blocks: u64,
    granule: u64,
    /// Advances with each block that comes or is hashed; what is read in between was used at the same time.
    clock: AtomicU32,
    /// Counts writes, so that what is not yet durable can be told.
    writes: AtomicU32,
    /// Of which so many are durable.
    durable: AtomicU32,
    temporaries: AtomicU64,
    damaged: AtomicU64,
    failures: AtomicU64,
    full_said: AtomicBool,
    /// One flush at a time.
    flushing: Mutex<recency::Flushed>,
    /// Held locked as long as the store is open.
    _lock: Option<std::fs::File>,
}

impl Store {
    /// Opens the store below `path`, which is made when it is missing. What is there is counted on threads; reads work
    /// at once, writes wait for them.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::UnknownVersion`], [`StoreError::NoStore`], [`StoreError::Io`].
    pub fn open(path: &Path, options: Options) -> Result<Arc<Store>, StoreError> {
        let at = |source| StoreError::Io {
            path: path.display().to_string(),
            source,
        };
        durable::create_dir(path).map_err(at)?;
        check_version(path)?;
        let lock = lock(path)?;
        scratch::sweep(path).map_err(at)?;
        let disk = RealDisk::new(path).map_err(at)?;
        let mut store = Store::new(Arc::new(disk), options, Some(lock));
        store.path = Some(path.to_path_buf());
        let store = Arc::new(store);
        store.count_behind().map_err(at)?;
        Ok(store)
    }

    /// Opens a store on any disk, and counts what is there before it returns.
    pub fn open_on(disk: Arc<dyn Disk>, options: Options) -> Arc<Store> {
        let store = Arc::new(Store::new(disk, options, None));
        store.count();
        store
    }

    fn new(disk: Arc<dyn Disk>, options: Options, lock: Option<std::fs::File>) -> Store {
        Store {
            granule: disk.granule(),
            disk,
            path: None,
            options,
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            space: Space::default(),
            handles: Handles::new(),
            counted: Arc::default(),
            span_blocks: (options.quota / (SPAN_BLOCKS_MAX * BLOCK_BYTES))
                .clamp(1, SPAN_BLOCKS_MAX),
            clock: AtomicU32::new(1),
            writes: AtomicU32::new(0),
            durable: AtomicU32::new(0),
            temporaries: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            full_said: AtomicBool::new(false),
            flushing: Mutex::default(),
            _lock: lock,
        }
    }

    /// Returns what the store holds.
    pub fn usage(&self) -> Usage {
        Usage {
            used: self.space.used.load(Ordering::Acquire),
            quota: self.options.quota,
            unevictable: self.space.unevictable.load(Ordering::Relaxed),
            files: self.space.files.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            evicted: self.space.evicted.load(Ordering::Relaxed),
        }
    }

    fn shard(&self, id: &Digest) -> &Shard {
        &self.shards[usize::from(id.as_bytes()[0])]
    }

    /// Returns the time, for what is read.
    fn now(&self) -> u32 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Returns the time, for what comes: later than everything before.
    fn tick(&self) -> u32 {
        self.clock.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    fn count_failure(&self, error: &io::Error, what: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%error, what, "the disk of the store");
    }
}

impl Drop for Store {
    /// Leaves a summary for the next start; nothing is lost without it.
    fn drop(&mut self) {
        if self.counted.is_done() {
            self.write_maps();
            self.write_recency(true);
        }
    }
}

/// Refuses what is no store of this version, before anything in it is touched.
fn check_version(path: &Path) -> Result<(), StoreError> {
    let at = |source| StoreError::Io {
        path: path.display().to_string(),
        source,
    };
    let version = path.join("VERSION");
    match durable::read(&version, 1 << 10).map_err(at)? {
        Some(found) if found == VERSION.as_bytes() => return Ok(()),
        Some(found) => {
            let found = String::from_utf8_lossy(&found).trim().to_owned();
            return Err(StoreError::UnknownVersion {
                path: path.to_path_buf(),
                found,
            });
        }
        None => {}
    }
    let ours = ["r", "p", "tmp", "lock", "recency", "recency.new"];
    for entry in std::fs::read_dir(path).map_err(at)? {
        let name = entry.map_err(at)?.file_name();
        let found = name.to_string_lossy();
        let known =
            ours.contains(&&*found) || found.starts_with("index") || found.starts_with(".VERSION");
        if !known {
            return Err(StoreError::NoStore {
                path: path.to_path_buf(),
                found: found.into_owned(),
            });
        }
    }
    durable::write(&version, VERSION.as_bytes(), 0o600).map_err(at)
}

/// Makes sure that no other process writes to the store.
fn lock(path: &Path) -> Result<std::fs::File, StoreError> {
    let name = path.join("lock");
    let at = |source| StoreError::Io {
        path: name.display().to_string(),
        source,
    };
    let mut open = std::fs::OpenOptions::new();
    let file = open.create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(at)?;
    let begin = Instant::now();
    while let Err(Errno::WOULDBLOCK) =
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
    {
        // Whoever has it may be about to end.
        if begin.elapsed() > LOCK_PATIENCE {
            return Err(StoreError::InUse {
                path: path.to_path_buf(),
            });
        }
        std::thread::park_timeout(LOCK_PATIENCE / 100);
    }
    // Any other error is a file system without locks; the probe tells what that means.
    Ok(file)
}

impl crate::fetch::Shelf for Store {
    fn has(&self, block: &BlockRef) -> bool {
        Store::has(self, block)
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        Store::load(self, block)
    }

    fn find(&self, digest: &Digest) -> Option<BlockRef> {
        Store::find(self, digest)
    }

    fn put(&self, place: &BlockRef, block: &Block) -> bool {
        Store::put(self, place, block).is_ok()
    }
}
