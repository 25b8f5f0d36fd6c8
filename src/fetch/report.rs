//! What the fetcher tells about itself, for `status`, `why` and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::source::{PeerReport, SourceKind};

/// What is known of one source.
#[derive(Clone, Debug)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: SourceKind,
    /// Blocks it delivered that verified.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times it said that it has not got a block.
    pub missing: u64,
    /// Times it failed.
    pub failures: u64,
    /// Times another source was faster, or the deadline, and it was given up.
    pub beaten: u64,
    /// Times it delivered wrong bytes.
    pub lies: u64,
    /// Wants it is working on.
    pub in_flight: usize,
    /// Wants that wait for it.
    pub queued: usize,
    /// How many it may work on at once.
    pub limit: usize,
    /// Its usual time for a block of 1 MiB or, while that is unknown, of another size.
    pub usual: Option<Duration>,
    /// How long it will not be asked.
    pub resting: Option<Duration>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// The peers it consists of, who gave most first.
    pub peers: Vec<PeerReport>,
}

impl SourceReport {
    /// Returns whether there is anything to tell. Swarms are always there, and often nobody has a torrent.
    pub(super) fn is_in_use(&self) -> bool {
        let asked = self.blocks + self.missing + self.failures + self.beaten > 0;
        self.kind != SourceKind::Torrent || asked || !self.peers.is_empty()
    }
}

/// What the fetcher has done so far.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line for each source.
    pub sources: Vec<SourceReport>,
    /// Flights started.
    pub flights: u64,
    /// Flights under way.
    pub flying: u64,
    /// Waiters that joined a flight of somebody else.
    pub joined: u64,
    /// Answers out of memory.
    pub memory_hits: u64,
    /// Answers out of the store.
    pub store_hits: u64,
    /// Blocks that came from a source and verified.
    pub fetched_blocks: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Second attempts in parallel.
    pub hedges: u64,
    /// Flights that failed.
    pub failures: u64,
    /// Verified blocks that the store did not take.
    pub unstored: u64,
    /// Bytes of verified blocks in memory.
    pub memory_bytes: u64,
    /// Bytes being prefetched.
    pub prefetching_bytes: u64,
}

/// One number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) flights: Counter,
    pub(super) joined: Counter,
    pub(super) memory_hits: Counter,
    pub(super) store_hits: Counter,
    pub(super) fetched_blocks: Counter,
    pub(super) fetched_bytes: Counter,
    pub(super) hedges: Counter,
    pub(super) failures: Counter,
    pub(super) unstored: Counter,
}
