//! One flight per block: ranks, hedges, deadlines, the memory tier, prefetch.
//!
//! A reader asks [`Fetcher::get`]; the answer is a verified [`Block`] or a [`FetchError`] that says what every source
//! said. `fetch` does not know files, packages or the kernel.

mod failure;
mod shelf;
pub mod streams;
pub mod walk;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::block::{Block, Digest};
use crate::source::{BlockSource, SourceError, SourceKind, Spill, Want};

pub use failure::{Answer, Answers, FetchError};
pub use shelf::Shelf;

/// How urgent a block is. Lower is sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A reader waits for it.
    Foreground,
    /// A reader will probably ask for it next.
    Prefetch,
    /// An admin, or an installation, wants it in the store. `get` returns after the store has it (or could not take it).
    Warm,
}

/// What can be set; the defaults are the design's.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of verified blocks kept in memory.
    pub memory_bytes: u64,
    /// A flight ends after this time without a byte.
    pub idle_deadline: Duration,
    /// A flight ends after this time, whatever happens.
    pub total_deadline: Duration,
    /// How long a failure is remembered and answered at once.
    pub negative: Duration,
    /// How many bytes may be prefetched at once.
    pub prefetch_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            memory_bytes: 48 << 20,
            idle_deadline: Duration::from_secs(30),
            total_deadline: Duration::from_secs(120),
            negative: Duration::from_secs(2),
            prefetch_bytes: 32 << 20,
        }
    }
}

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
    /// Times it failed or was late for good.
    pub failures: u64,
    /// Times it delivered wrong bytes.
    pub lies: u64,
    /// Wants it is working on.
    pub in_flight: usize,
    /// How many it may work on at once.
    pub limit: usize,
    /// Its usual time for a block, where known.
    pub usual: Option<Duration>,
    /// How long it will not be asked.
    pub resting: Option<Duration>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
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
    /// Bytes of verified blocks in memory.
    pub memory_bytes: u64,
}

/// Gets blocks: from memory, the store, or the sources.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    shelf: Arc<dyn Shelf>,
    sources: arc_swap::ArcSwap<Vec<Arc<dyn BlockSource>>>,
}

impl Fetcher {
    /// Makes a fetcher without sources. Its flights run on `runtime`.
    pub fn new(_options: Options, shelf: Arc<dyn Shelf>, _runtime: Handle) -> Self {
        Fetcher {
            inner: Arc::new(Inner {
                shelf,
                sources: arc_swap::ArcSwap::default(),
            }),
        }
    }

    /// Replaces the sources. What is known of one stays known when its name stays.
    pub fn set_sources(&self, sources: Vec<Arc<dyn BlockSource>>) {
        self.inner.sources.store(Arc::new(sources));
    }

    /// Gets a block, joining its flight when there is one. Dropping the future leaves the flight alone.
    ///
    /// # Errors
    /// [`FetchError`], no later than the deadlines in [`Options`].
    pub async fn get(&self, want: Want, _priority: Priority) -> Result<Block, FetchError> {
        let digest = want.block.digest;
        if let Some(block) = self.inner.shelf.load(&want.block) {
            return Ok(block);
        }
        let mut answers = Vec::new();
        for source in self.inner.sources.load_full().iter() {
            let said = match source.fetch(&want, &Spill::ignored()).await {
                Ok(bytes) => match Block::verify(digest, want.block.len(), bytes) {
                    Ok(block) => {
                        self.inner.shelf.put(&want.block, &block);
                        return Ok(block);
                    }
                    Err(wrong) => wrong.to_string(),
                },
                Err(
                    error @ (SourceError::NotFound { .. }
                    | SourceError::Unavailable { .. }
                    | SourceError::Refused { .. }),
                ) => error.to_string(),
            };
            answers.push(Answer {
                source: source.name().to_owned(),
                said,
            });
        }
        Err(FetchError::NoSource {
            digest,
            answers: Answers(answers.into()),
        })
    }

    /// Starts flights for blocks that a reader will probably ask for. Returns how many of them, from the front, are
    /// now stored, in memory or on their way; the rest is over the budget and was not started.
    pub fn prefetch(&self, wants: Vec<Want>) -> usize {
        drop(wants);
        0
    }

    /// Returns how many more bytes may be prefetched now.
    pub fn prefetch_room(&self) -> u64 {
        0
    }

    /// Returns the last failure of a block that is still remembered, for `why`.
    pub fn last_failure(&self, _digest: &Digest) -> Option<FetchError> {
        None
    }

    /// Returns what has been done, for `status` and metrics.
    pub fn report(&self) -> Report {
        Report::default()
    }
}
