//! One flight per block: ranks, hedges, deadlines, the memory tier, prefetch.
//!
//! A reader asks [`Fetcher::get`]; the answer is a verified [`Block`] or a [`FetchError`] that says what every source
//! said. On the way: the memory tier, the flight of that digest if there is one, the store, and then the sources in the
//! order of their ranks (`ranked`), a second one when the first is late (`flight`). What comes is verified, handed to
//! the waiters, and written (`writer`). `fetch` does not know files, packages or the kernel; [`streams`] and [`walk`]
//! only count positions.

mod failure;
mod flight;
mod memory;
mod ranked;
mod report;
mod shelf;
pub mod streams;
mod times;
pub mod walk;
mod writer;

#[cfg(test)]
mod apart;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod spread;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::block::{Block, BlockRef, Digest};
use crate::source::{BlockSource, Offer, Want};
use failure::Failures;
use flight::{Flight, Stage, ask_sources};
use memory::Memory;
use ranked::Ranked;
use report::Counters;
use writer::Writer;

pub use failure::{Answer, Answers, FetchError};
pub use report::{Report, SourceReport};
pub use shelf::Shelf;

/// Offers of sources that may wait to be verified.
const OFFERS_MAX: usize = 64;

/// Prefetch flights at once; their bytes are bounded by [`Options::prefetch_bytes`].
const PREFETCH_FLIGHTS_MAX: usize = 512;

/// A prefetch that takes longer is ahead of nobody. Its bytes count in a second budget from then on, of the same size, so
/// that a source that died does not keep the readers of others from what is ahead of them.
const PREFETCH_LATE: Duration = Duration::from_secs(5);

/// Blocks that are read from the store and hashed at once; each takes a thread and its bytes.
const LOADS: usize = 8;

/// Bytes that hedges may cost at first: 16 blocks. They get back a twentieth of what is fetched.
const HEDGE_BYTES: u64 = 16 << 20;

/// Which part of the fetched bytes hedges get.
const HEDGE_SHARE: u64 = 20;

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

/// Gets blocks: from memory, the store, or the sources. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

struct Inner {
    options: Options,
    runtime: Handle,
    shelf: Arc<dyn Shelf>,
    sources: ArcSwap<Vec<Arc<Ranked>>>,
    memory: Memory,
    flights: Mutex<HashMap<(Digest, u32), Arc<Flight>>>,
    failures: Failures,
    writer: Writer,
    loads: Semaphore,
    tokens: Tokens,
    offers: mpsc::Sender<Offer>,
    prefetching: AtomicU64,
    /// Bytes of prefetches that are late.
    late: AtomicU64,
    counters: Counters,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Fetcher {
    /// Makes a fetcher without sources. Its tasks run on `runtime`.
    pub fn new(options: Options, shelf: Arc<dyn Shelf>, runtime: Handle) -> Self {
        let (offers, offered) = mpsc::channel(OFFERS_MAX);
        let (tasks, closed) = (TaskTracker::new(), CancellationToken::new());
        let inner = Arc::new(Inner {
            memory: Memory::new(options.memory_bytes),
            failures: Failures::new(options.negative),
            writer: Writer::start(Arc::clone(&shelf), &runtime, &tasks, closed.clone()),
            options,
            shelf,
            sources: ArcSwap::default(),
            flights: Mutex::new(HashMap::new()),
            loads: Semaphore::new(LOADS),
            tokens: Tokens(Mutex::new(HEDGE_BYTES)),
            offers,
            prefetching: AtomicU64::new(0),
            late: AtomicU64::new(0),
            counters: Counters::default(),
            tasks,
            closed,
            runtime,
        });
        let take = take_offers(Arc::downgrade(&inner), offered);
        inner.runtime.spawn(take);
        Fetcher { inner }
    }

    /// Replaces the sources. What is known of one stays known when its name stays; old failures are forgotten.
    pub fn set_sources(&self, sources: Vec<Arc<dyn BlockSource>>) {
        let before = self.inner.sources.load_full();
        let ranked = sources
            .into_iter()
            .map(|source| Arc::new(Ranked::new(source, &before)))
            .collect();
        self.inner.sources.store(Arc::new(ranked));
        self.inner.failures.forget_all();
    }

    /// Gets a block, joining its flight when there is one. Dropping the future leaves the flight alone.
    ///
    /// # Errors
    /// [`FetchError`], no later than the deadlines in [`Options`].
    pub async fn get(&self, want: Want, mut priority: Priority) -> Result<Block, FetchError> {
        let inner = &self.inner;
        let kept = priority == Priority::Warm;
        let digest = want.block.digest;
        if !kept && let Some(block) = self.at_hand(&want.block) {
            return Ok(block);
        }
        if let Some(error) = inner.failures.fresh(&digest) {
            return Err(error);
        }
        loop {
            let flight = inner.join(&want, priority)?;
            if let Some(end) = flight.end(kept).await {
                if let Ok(block) = &end
                    && flight.want.block != want.block
                {
                    // The flight was for the same bytes in another place, and wrote them there only.
                    if !kept {
                        inner.keep_here_too(want.block, block);
                    } else if !inner.shelf.has(&want.block) {
                        inner.writer.put(want.block, block.clone()).await;
                    }
                }
                return end;
            }
            // It was a prefetch that found the block in the store; a flight of our own reads it. Not another prefetch.
            if priority == Priority::Prefetch {
                priority = Priority::Foreground;
            }
            inner.remove(&flight);
        }
    }

    /// Returns a block that lies in memory, without waiting for anything.
    pub fn at_hand(&self, block: &BlockRef) -> Option<Block> {
        let (found, moved) = self.inner.memory.get_for(block)?;
        if moved {
            self.inner.keep_here_too(*block, &found);
        }
        self.inner.counters.memory_hits.add(1);
        Some(found)
    }

    /// Returns whether a block is being fetched, so that joining its flight is the quickest way to it.
    pub fn is_under_way(&self, block: &BlockRef) -> bool {
        let key = (block.digest, block.len());
        self.inner.flights.lock().contains_key(&key)
    }

    /// Starts flights for blocks that a reader will probably ask for. Returns how many of them, from the front, are now
    /// stored, in memory or on their way; the rest is over the budget and was not started.
    pub fn prefetch(&self, wants: Vec<Want>) -> usize {
        let all = wants.len();
        for (done, want) in wants.into_iter().enumerate() {
            if self.inner.memory.get(&want.block.digest).is_some() {
                continue;
            }
            let bytes = u64::from(want.block.len());
            if self.prefetch_room() < bytes || self.inner.join(&want, Priority::Prefetch).is_err() {
                return done;
            }
        }
        all
    }

    /// Returns how many more bytes may be prefetched now.
    pub fn prefetch_room(&self) -> u64 {
        let used = self.inner.prefetching.load(Ordering::Relaxed);
        self.inner.options.prefetch_bytes.saturating_sub(used)
    }

    /// Returns the last failure of a block that is still remembered, for `why`.
    pub fn last_failure(&self, digest: &Digest) -> Option<FetchError> {
        self.inner.failures.explain(digest)
    }

    /// Drops a block from memory, for who has stored it and reads it from there only.
    pub fn release(&self, block: &BlockRef) {
        self.inner.memory.remove(&block.digest);
    }

    /// Waits until everything that readers have got is in the store, or could not be taken.
    pub async fn written(&self) {
        self.inner.writer.written().await;
    }

    /// Drops the blocks in memory and the remembered failures; what is under way goes on.
    pub fn forget(&self) {
        self.inner.memory.clear();
        self.inner.failures.forget_all();
    }

    /// Returns what has been done, for `status` and metrics.
    pub fn report(&self) -> Report {
        let inner = &self.inner;
        let counters = &inner.counters;
        let now = Instant::now();
        Report {
            sources: inner
                .sources
                .load()
                .iter()
                .map(|ranked| ranked.report(now))
                .filter(SourceReport::is_in_use)
                .collect(),
            flights: counters.flights.get(),
            flying: inner.flights.lock().len() as u64,
            joined: counters.joined.get(),
            memory_hits: counters.memory_hits.get(),
            store_hits: counters.store_hits.get(),
            fetched_blocks: counters.fetched_blocks.get(),
            fetched_bytes: counters.fetched_bytes.get(),
            hedges: counters.hedges.get(),
            failures: counters.failures.get(),
            unstored: counters.unstored.get(),
            memory_bytes: inner.memory.bytes(),
            prefetching_bytes: inner.prefetching.load(Ordering::Relaxed),
        }
    }

    /// Returns what is known of those that could be asked for a block.
    pub fn report_for(&self, want: &Want) -> Vec<SourceReport> {
        let now = Instant::now();
        let sources = self.inner.sources.load();
        let asked = sources.iter().filter(|ranked| ranked.source.serves(want));
        asked
            .map(|ranked| SourceReport {
                peers: ranked.source.peers_for(want),
                ..ranked.report(now)
            })
            .collect()
    }

    /// Ends all flights; their waiters get [`FetchError::Closed`]. Returns when the last one has ended and everything
    /// that was fetched is in the store.
    pub async fn close(&self) {
        self.inner.closed.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// Joins the flight of a block, or starts it.
    fn join(self: &Arc<Self>, want: &Want, priority: Priority) -> Result<Arc<Flight>, FetchError> {
        if self.closed.is_cancelled() {
            return Err(FetchError::Closed);
        }
        let key = (want.block.digest, want.block.len());
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key) {
            self.counters.joined.add(1);
            flight.raise(priority);
            return Ok(Arc::clone(flight));
        }
        let prefetched = match priority {
            Priority::Prefetch if flights.len() >= PREFETCH_FLIGHTS_MAX => {
                return Err(FetchError::Closed);
            }
            Priority::Prefetch => u64::from(want.block.len()),
            Priority::Foreground | Priority::Warm => 0,
        };
        let flight = Arc::new(Flight::new(want.clone(), priority));
        flights.insert(key, Arc::clone(&flight));
        drop(flights);
        self.counters.flights.add(1);
        self.prefetching.fetch_add(prefetched, Ordering::Relaxed);
        let landing = Landing {
            inner: Arc::clone(self),
            flight: Arc::clone(&flight),
            prefetched,
            late: AtomicBool::new(false),
        };
        let closed = self.closed.clone();
        let run = async move {
            closed.run_until_cancelled(landing.run()).await;
        };
        self.tasks.spawn_on(run, &self.runtime);
        Ok(flight)
    }

    /// Has a block written in one more place, unless it is there. `written` waits for it.
    fn keep_here_too(&self, place: BlockRef, block: &Block) {
        if !self.shelf.has(&place) {
            // Whether the store takes it is seen by the next who looks.
            drop(self.writer.try_put(place, block.clone()));
        }
    }

    /// Takes a flight out of the list, unless another one has its place.
    fn remove(&self, flight: &Arc<Flight>) {
        let key = (flight.want.block.digest, flight.want.block.len());
        let mut flights = self.flights.lock();
        if flights
            .get(&key)
            .is_some_and(|other| Arc::ptr_eq(other, flight))
        {
            flights.remove(&key);
        }
    }

    /// Looks for the block in the store, there or in another file. `None`: not there.
    async fn look_in_store(&self, flight: &Flight) -> Option<Stored> {
        let want = flight.want.block;
        // One look at a directory entry; a read that got here has just failed on the same entry.
        if self.shelf.has(&want) {
            if flight.priority() == Priority::Prefetch {
                return Some(Stored::Unread);
            }
            let shelf = Arc::clone(&self.shelf);
            let _turn = self.loads.acquire().await.ok()?;
            let load = move || shelf.load(&want);
            if let Some(block) = tokio::task::spawn_blocking(load).await.ok()? {
                return Some(Stored::Here(block));
            }
            return None;
        }
        // A file of one block is named by its digest: where `has` finds nothing, there is nothing to find.
        if want.file.size <= crate::block::BLOCK_BYTES {
            return None;
        }
        let shelf = Arc::clone(&self.shelf);
        let _turn = self.loads.acquire().await.ok()?;
        let find = move || {
            shelf
                .find(&want.digest)
                .and_then(|other| shelf.load(&other))
        };
        let block = tokio::task::spawn_blocking(find).await.ok()??;
        Some(Stored::Elsewhere(block))
    }
}

enum Stored {
    Unread,
    Here(Block),
    Elsewhere(Block),
}

/// A running flight; however it ends, its waiters learn of it.
struct Landing {
    inner: Arc<Inner>,
    flight: Arc<Flight>,
    prefetched: u64,
    /// Whether its bytes count as late.
    late: AtomicBool,
}

impl Landing {
    async fn run(self) {
        let mut fly = pin!(self.fly());
        if self.prefetched > 0 {
            let done = tokio::time::timeout(PREFETCH_LATE, fly.as_mut()).await;
            if done.is_ok() {
                return;
            }
            self.count_as_late();
        }
        fly.await;
    }

    /// Makes room for prefetches of others, unless too many are late.
    fn count_as_late(&self) {
        let (late, most) = (&self.inner.late, self.inner.options.prefetch_bytes);
        let more = |late: u64| Some(late + self.prefetched).filter(|late| *late <= most);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if late.fetch_update(set, get, more).is_ok() {
            self.late.store(true, Ordering::Relaxed);
            self.inner
                .prefetching
                .fetch_sub(self.prefetched, Ordering::Relaxed);
        }
    }

    async fn fly(&self) {
        let Landing { inner, flight, .. } = self;
        let counters = &inner.counters;
        let block = match inner.look_in_store(flight).await {
            Some(Stored::Unread) => {
                counters.store_hits.add(1);
                return flight.set(Stage::Present);
            }
            Some(Stored::Here(block)) => {
                counters.store_hits.add(1);
                return flight.set(Stage::Done(block));
            }
            Some(Stored::Elsewhere(block)) => {
                counters.store_hits.add(1);
                block
            }
            None => match inner.memory.get(&flight.want.block.digest) {
                Some(block) => block,
                None => match ask_sources(inner, flight).await {
                    Ok(block) => {
                        let bytes = block.bytes().len() as u64;
                        counters.fetched_blocks.add(1);
                        counters.fetched_bytes.add(bytes);
                        inner.tokens.refill(bytes);
                        block
                    }
                    Err(error) => {
                        counters.failures.add(1);
                        tracing::debug!(%error, "flight failed");
                        let digest = flight.want.block.digest;
                        inner.failures.remember(digest, error.clone());
                        return flight.set(Stage::Failed(error));
                    }
                },
            },
        };
        // What is warmed is not read soon; the memory is for those who read.
        if flight.priority() != Priority::Warm {
            inner.memory.put(flight.want.block, block.clone());
        }
        inner.failures.forget(&flight.want.block.digest);
        let patient = flight.priority() != Priority::Foreground;
        let kept = if patient {
            flight.set(Stage::Verified(block.clone()));
            inner.writer.put(flight.want.block, block.clone()).await
        } else {
            // In line before the reader goes on, so that `written` waits for all that was read.
            let kept = inner.writer.try_put(flight.want.block, block.clone());
            flight.set(Stage::Verified(block.clone()));
            kept.await
        };
        if !kept {
            counters.unstored.add(1);
        }
        flight.set(Stage::Done(block));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flight.abandon();
        self.inner.remove(&self.flight);
        let counted = match self.late.load(Ordering::Relaxed) {
            true => &self.inner.late,
            false => &self.inner.prefetching,
        };
        counted.fetch_sub(self.prefetched, Ordering::Relaxed);
    }
}

/// Verifies what sources handed over besides their answers, gives it to flights that wait for it, and stores it.
async fn take_offers(inner: Weak<Inner>, mut offers: mpsc::Receiver<Offer>) {
    while let Some(Offer {
        block: place,
        bytes,
    }) = offers.recv().await
    {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let Ok(block) = Block::verify(place.digest, place.len(), bytes) else {
            tracing::debug!(digest = %place.digest, "a source offered other bytes than it said");
            continue;
        };
        let flight = {
            let flights = inner.flights.lock();
            flights.get(&(place.digest, place.len())).cloned()
        };
        match flight {
            Some(flight) => flight.give(block),
            None if inner.shelf.has(&place) => {}
            None => {
                inner.memory.put(place, block.clone());
                inner.writer.put(place, block).await;
            }
        }
    }
}

/// Bytes that hedges may cost.
struct Tokens(Mutex<u64>);

impl Tokens {
    fn has(&self, len: u32) -> bool {
        *self.0.lock() >= u64::from(len)
    }

    fn take(&self, len: u32) {
        let mut bytes = self.0.lock();
        *bytes = bytes.saturating_sub(u64::from(len));
    }

    fn refill(&self, fetched: u64) {
        let mut bytes = self.0.lock();
        *bytes = (*bytes + fetched / HEDGE_SHARE).min(HEDGE_BYTES);
    }
}
