//! Flights over sources that fail in every way, on a paused clock: hours of waiting take no time, and each run is the
//! same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

use super::*;
use crate::block::{BlockRef, FileRef};
use crate::source::{SourceError, SourceKind, Spill};

pub(super) const MS: Duration = Duration::from_millis(1);

/// Block number `seed`, and its bytes.
fn block(seed: u64, len: usize) -> (Want, Bytes) {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    let bytes = Bytes::from(bytes);
    let digest = Digest::of(&bytes);
    let file = FileRef {
        id: digest,
        size: len as u64,
    };
    let block = BlockRef {
        file,
        index: 0,
        digest,
    };
    (Want::new(block), bytes)
}

fn blocks(count: u64) -> Vec<(Want, Bytes)> {
    (0..count)
        .map(|seed| block(seed, 1 + usize::try_from(seed * 977 % 30_000).unwrap()))
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Missing,
    Lying,
    Short,
    Oversized,
    Hanging,
    Failing,
    Busy,
    Refusing,
    /// A byte each five seconds.
    Dripping,
    /// Any of the others, or none, by turns.
    Moody,
}

struct FaultySource {
    name: String,
    fault: Fault,
    latency: Duration,
    parallel: usize,
    content: Mutex<HashMap<Digest, Bytes>>,
    asked: Mutex<HashMap<Digest, u32>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    random: Mutex<StdRng>,
}

impl FaultySource {
    fn new(name: &str, fault: Fault, latency: Duration, blocks: &[(Want, Bytes)]) -> Arc<Self> {
        Arc::new(FaultySource {
            name: name.to_owned(),
            fault,
            latency,
            parallel: 16,
            content: Mutex::new(
                blocks
                    .iter()
                    .map(|(want, bytes)| (want.block.digest, bytes.clone()))
                    .collect(),
            ),
            asked: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            random: Mutex::new(StdRng::seed_from_u64(name.len() as u64)),
        })
    }

    fn asked(&self) -> u32 {
        self.asked.lock().values().sum()
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl BlockSource for FaultySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Gateway
    }

    fn parallel(&self) -> usize {
        self.parallel
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_at_once.fetch_max(now, Ordering::Relaxed);
        let _leave = Leave(&self.at_once);
        *self.asked.lock().entry(want.block.digest).or_default() += 1;
        let fault = match self.fault {
            Fault::Moody => {
                use Fault::*;
                let all = [
                    None, None, Missing, Lying, Short, Oversized, Hanging, Failing, Busy, Dripping,
                ];
                all[self.random.lock().random_range(0..all.len())]
            }
            fault => fault,
        };
        sleep(self.latency).await;
        let bytes = self.content.lock().get(&want.block.digest).cloned();
        let bytes = bytes.ok_or_else(|| SourceError::not_found("404"))?;
        match fault {
            Fault::None => {
                spill.progressed(bytes.len() as u64);
                Ok(bytes)
            }
            Fault::Missing => Err(SourceError::not_found("404")),
            Fault::Lying => Ok(vec![0x55; bytes.len()].into()),
            Fault::Short => Ok(bytes.slice(..bytes.len() - 1)),
            Fault::Oversized => Ok([&bytes[..], b"x"].concat().into()),
            Fault::Failing => Err(SourceError::unavailable("reset")),
            Fault::Busy => Err(SourceError::Unavailable {
                retry_after: Some(Duration::from_secs(1)),
                reason: "429".to_owned(),
            }),
            Fault::Refusing => Err(SourceError::refused("a private address")),
            Fault::Hanging => std::future::pending().await,
            Fault::Dripping => loop {
                sleep(Duration::from_secs(5)).await;
                spill.progressed(1);
            },
            Fault::Moody => unreachable!("resolved above"),
        }
    }
}

#[derive(Default)]
pub(super) struct MemoryShelf {
    /// By file and index.
    pub(super) blocks: Mutex<HashMap<(Digest, u64), Block>>,
    refuses: bool,
}

impl Shelf for MemoryShelf {
    fn has(&self, block: &BlockRef) -> bool {
        self.blocks
            .lock()
            .contains_key(&(block.file.id, block.index))
    }

    fn load(&self, block: &BlockRef) -> Option<Block> {
        self.blocks
            .lock()
            .get(&(block.file.id, block.index))
            .cloned()
    }

    fn find(&self, _: &Digest) -> Option<BlockRef> {
        None
    }

    fn put(&self, place: &BlockRef, block: &Block) -> bool {
        assert_eq!(place.digest, block.digest());
        if !self.refuses {
            self.blocks
                .lock()
                .insert((place.file.id, place.index), block.clone());
        }
        !self.refuses
    }
}

fn fetcher(shelf: Arc<MemoryShelf>, sources: &[Arc<FaultySource>]) -> Fetcher {
    let fetcher = Fetcher::new(Options::default(), shelf, Handle::current());
    fetcher.set_sources(
        sources
            .iter()
            .map(|source| Arc::clone(source) as _)
            .collect(),
    );
    fetcher
}

fn fresh(sources: &[Arc<FaultySource>]) -> Fetcher {
    fetcher(Arc::default(), sources)
}

/// Gets all blocks at once. Returns how long the slowest took, and the results.
async fn get_all(
    fetcher: &Fetcher,
    blocks: &[(Want, Bytes)],
) -> (Duration, Vec<Result<Block, FetchError>>) {
    let start = Instant::now();
    let gets = blocks.iter().map(|(want, bytes)| async move {
        let got = fetcher.get(want.clone(), Priority::Foreground).await;
        if let Ok(block) = &got {
            assert_eq!(block.bytes(), bytes, "never a wrong byte");
        }
        got
    });
    let got = join_all(gets).await;
    (start.elapsed(), got)
}

#[tokio::test(start_paused = true)]
async fn one_flight_for_all_who_wait() {
    let all = blocks(1);
    let source = FaultySource::new("a", Fault::None, 10 * MS, &all);
    let fetcher = fresh(&[Arc::clone(&source)]);
    let same: Vec<_> = (0..100).map(|_| all[0].clone()).collect();
    let (_, got) = get_all(&fetcher, &same).await;
    assert!(got.iter().all(Result::is_ok));
    assert_eq!(source.asked(), 1);
    let report = fetcher.report();
    assert_eq!((report.flights, report.joined), (1, 99));
    // From now on it is in memory.
    get_all(&fetcher, &all).await.1.pop().unwrap().unwrap();
    assert_eq!(source.asked(), 1);
    assert_eq!(fetcher.report().memory_hits, 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_ends_nothing() {
    let all = blocks(1);
    let source = FaultySource::new("a", Fault::None, 100 * MS, &all);
    let fetcher = fresh(&[Arc::clone(&source)]);
    let want = &all[0].0;
    let left = tokio::time::timeout(10 * MS, fetcher.get(want.clone(), Priority::Foreground)).await;
    assert!(left.is_err());
    fetcher
        .get(want.clone(), Priority::Foreground)
        .await
        .unwrap();
    assert_eq!(source.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_warmed_block_is_in_the_store_when_get_returns() {
    let all = blocks(20);
    let source = FaultySource::new("a", Fault::None, MS, &all);
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = fetcher(Arc::clone(&shelf), &[source]);
    for (want, _) in &all {
        fetcher.get(want.clone(), Priority::Warm).await.unwrap();
        assert!(shelf.has(&want.block));
    }
    assert_eq!(fetcher.report().memory_bytes, 0, "memory is for readers");
    fetcher.set_sources(Vec::new());
    let (_, got) = get_all(&fetcher, &all).await;
    assert!(got.iter().all(Result::is_ok));
}

/// Wants of `count` equal blocks of one file, and the bytes of one.
fn equal_blocks(count: u64) -> (Vec<Want>, Bytes) {
    let bytes = Bytes::from(vec![0; 1 << 20]);
    let file = FileRef {
        id: Digest::of(b"a file of zeros"),
        size: count * crate::block::BLOCK_BYTES,
    };
    let block = |index| BlockRef {
        file,
        index,
        digest: Digest::of(&bytes),
    };
    let wants = (0..count).map(|index| Want::new(block(index)));
    (wants.collect(), bytes)
}

#[tokio::test(start_paused = true)]
async fn equal_blocks_are_kept_in_every_place_that_wants_them() {
    let (wants, bytes) = equal_blocks(8);
    let source = FaultySource::new("a", Fault::None, MS, &[(wants[0].clone(), bytes)]);
    for priority in [Priority::Warm, Priority::Foreground] {
        let shelf = Arc::new(MemoryShelf::default());
        let fetcher = fetcher(Arc::clone(&shelf), &[Arc::clone(&source)]);
        let all_there = || wants.iter().all(|want| shelf.has(&want.block));
        // Those after the first join its flight.
        let gets = wants[..7]
            .iter()
            .map(|want| fetcher.get(want.clone(), priority));
        let got = join_all(gets).await;
        assert!(got.iter().all(Result::is_ok));
        assert_eq!(fetcher.report().flights, 1);
        // The last one finds the bytes in memory, if they are for readers.
        fetcher.get(wants[7].clone(), priority).await.unwrap();
        if priority == Priority::Foreground {
            assert_eq!(fetcher.report().memory_hits, 1);
            fetcher.written().await;
        }
        assert!(all_there(), "{priority:?}");
        fetcher.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_has_been_written_when_it_was_waited_for() {
    let all = blocks(40);
    let source = FaultySource::new("a", Fault::None, MS, &all);
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = fetcher(Arc::clone(&shelf), &[source]);
    let (_, got) = get_all(&fetcher, &all).await;
    assert!(got.iter().all(Result::is_ok));
    fetcher.written().await;
    assert!(all.iter().all(|(want, _)| shelf.has(&want.block)));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_is_no_failure() {
    let all = blocks(20);
    let source = FaultySource::new("a", Fault::None, MS, &all);
    let shelf = MemoryShelf {
        refuses: true,
        ..Default::default()
    };
    let fetcher = fetcher(Arc::new(shelf), &[source]);
    for (want, _) in &all {
        fetcher.get(want.clone(), Priority::Warm).await.unwrap();
    }
    assert_eq!(fetcher.report().unstored, 20);
}

#[tokio::test(start_paused = true)]
async fn a_dead_source_alone_fails_all_by_the_deadline_and_stored_blocks_do_not_wait() {
    let all = blocks(1010);
    let (stored, wanted) = all.split_at(10);
    let source = FaultySource::new("hole", Fault::Hanging, MS, &all);
    let shelf = Arc::new(MemoryShelf::default());
    for (want, bytes) in stored {
        shelf.put(&want.block, &Block::seal(bytes.clone()));
    }
    let fetcher = fetcher(shelf, &[Arc::clone(&source)]);
    let wait = get_all(&fetcher, wanted);
    let read = async {
        sleep(Duration::from_secs(5)).await;
        get_all(&fetcher, stored).await
    };
    let ((waited, failed), (took, read)) = tokio::join!(wait, read);
    assert!(took < 5 * MS, "{took:?}");
    assert!(read.iter().all(Result::is_ok));
    assert!(waited <= Duration::from_secs(31), "{waited:?}");
    for error in failed {
        let error = error.unwrap_err();
        assert!(matches!(error, FetchError::Deadline { .. }), "{error}");
        assert_eq!(error.answers()[0].source, "hole");
    }
    assert_eq!(fetcher.report().flying, 0);
    assert_eq!(
        source.at_once.load(Ordering::Relaxed),
        0,
        "all attempts were cancelled"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_source_does_not_slow_a_good_one() {
    for fault in [Fault::Hanging, Fault::Dripping] {
        let all = blocks(1000);
        let dead = FaultySource::new("hole", fault, MS, &all);
        let good = FaultySource::new("good", Fault::None, 10 * MS, &all);
        let fetcher = fresh(&[Arc::clone(&dead), Arc::clone(&good)]);
        let (took, got) = get_all(&fetcher, &all).await;
        assert!(got.iter().all(Result::is_ok));
        // Alone the good one needs 1000 / 16 * 10 ms.
        assert!(took < 1500 * MS, "{fault:?}: {took:?}");
        assert!(dead.asked() < 40, "{}", dead.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_dropped_and_the_others_answer() {
    for fault in [Fault::Lying, Fault::Short, Fault::Oversized] {
        let all = blocks(500);
        let liar = FaultySource::new("liar", fault, MS, &all);
        let good = FaultySource::new("good", Fault::None, 20 * MS, &all);
        let fetcher = fresh(&[Arc::clone(&liar), Arc::clone(&good)]);
        for part in all.chunks(10) {
            let (_, got) = get_all(&fetcher, part).await;
            assert!(got.iter().all(Result::is_ok));
        }
        assert!(liar.asked() <= 10, "{fault:?}: {}", liar.asked());
        let report = fetcher.report();
        assert!(report.sources[0].lies > 0 && report.sources[0].blocks == 0);
        assert_eq!(report.sources[1].blocks, 500);
    }
}

#[tokio::test(start_paused = true)]
async fn only_liars_is_no_honest_source() {
    let all = blocks(3);
    let liars = ["a", "b"].map(|name| FaultySource::new(name, Fault::Lying, MS, &all));
    let fetcher = fresh(&liars);
    let (took, got) = get_all(&fetcher, &all[..1]).await;
    let error = got.into_iter().next().unwrap().unwrap_err();
    assert!(matches!(error, FetchError::NoHonest { .. }), "{error}");
    assert_eq!(error.answers().len(), 2);
    assert!(took < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_flipped_bit_costs_a_sole_source_seconds_only() {
    let all = blocks(2);
    let source = FaultySource::new("a", Fault::None, MS, &all);
    let wrong = Bytes::from(vec![1; all[0].1.len()]);
    source.content.lock().insert(all[0].0.block.digest, wrong);
    let fetcher = fresh(&[Arc::clone(&source)]);
    let (_, got) = get_all(&fetcher, &all[..1]).await;
    assert!(matches!(got[0], Err(FetchError::NoHonest { .. })));
    let (took, got) = get_all(&fetcher, &all[1..]).await;
    assert!(got[0].is_ok());
    assert!(took <= Duration::from_secs(3), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_has_is_said_at_once_and_remembered_briefly() {
    let all = blocks(1);
    let sources = ["a", "b"].map(|name| FaultySource::new(name, Fault::Missing, MS, &all));
    let fetcher = fresh(&sources);
    for _ in 0..10 {
        let (took, got) = get_all(&fetcher, &all).await;
        assert!(matches!(got[0], Err(FetchError::NoSource { .. })));
        assert!(took < 10 * MS, "{took:?}");
    }
    assert_eq!((sources[0].asked(), sources[1].asked()), (1, 1));
    sleep(Duration::from_secs(2)).await;
    assert!(get_all(&fetcher, &all).await.1[0].is_err());
    assert_eq!(sources[0].asked(), 2);
    assert!(fetcher.last_failure(&all[0].0.block.digest).is_some());
}

#[tokio::test(start_paused = true)]
async fn no_source_and_refused_sources_have_their_own_errors() {
    let all = blocks(1);
    let fetcher = fresh(&[]);
    let (_, got) = get_all(&fetcher, &all).await;
    assert!(matches!(got[0], Err(FetchError::NoSource { .. })));
    let refusing = FaultySource::new("r", Fault::Refusing, MS, &all);
    fetcher.set_sources(vec![Arc::clone(&refusing) as _]);
    for _ in 0..2 {
        let (_, got) = get_all(&fetcher, &all).await;
        assert!(matches!(got[0], Err(FetchError::Refused { .. })), "{got:?}");
        sleep(Duration::from_secs(3)).await;
    }
    assert_eq!(refusing.asked(), 1, "it is dropped");
    fetcher.set_sources(vec![Arc::clone(&refusing) as _]);
    let _ = get_all(&fetcher, &all).await;
    assert_eq!(refusing.asked(), 2, "a changed configuration pardons it");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_hedged_within_a_budget() {
    let all = blocks(400);
    let (known, late) = all.split_at(50);
    let first = FaultySource::new("first", Fault::None, 5 * MS, known);
    let second = FaultySource::new("second", Fault::None, 50 * MS, &all);
    let fetcher = fresh(&[Arc::clone(&first), Arc::clone(&second)]);
    for one in known {
        get_all(&fetcher, std::slice::from_ref(one))
            .await
            .1
            .pop()
            .unwrap()
            .unwrap();
    }
    assert!(second.asked() < 20, "{}", second.asked());
    // From now on the first one is stuck.
    for (want, bytes) in late {
        first
            .content
            .lock()
            .insert(want.block.digest, bytes.clone());
    }
    let stuck = FaultySource::new("first", Fault::Hanging, MS, &all);
    fetcher.set_sources(vec![stuck as _, Arc::clone(&second) as _]);
    for one in late {
        let (took, got) = get_all(&fetcher, std::slice::from_ref(one)).await;
        assert!(got[0].is_ok());
        assert!(took < 250 * MS, "{took:?}");
    }
    let report = fetcher.report();
    assert!(
        report.hedges > 0 && report.hedges < 100,
        "{}",
        report.hedges
    );
}

#[tokio::test(start_paused = true)]
async fn readers_do_not_wait_behind_prefetch() {
    let all = blocks(401);
    let source = FaultySource::new("a", Fault::None, 100 * MS, &all);
    let fetcher = fresh(&[Arc::clone(&source)]);
    let ahead: Vec<_> = all[1..].iter().map(|(want, _)| want.clone()).collect();
    assert_eq!(fetcher.prefetch(ahead), 400);
    sleep(10 * MS).await;
    // One that nobody has asked for, and one that waits at the end of the line.
    let (took, got) = get_all(&fetcher, &[all[0].clone(), all[400].clone()]).await;
    assert!(got.iter().all(Result::is_ok));
    assert!(took <= 210 * MS, "{took:?}");
    assert!(source.most_at_once.load(Ordering::Relaxed) <= 17);
}

#[tokio::test(start_paused = true)]
async fn prefetch_has_a_budget_and_ends_in_the_store() {
    let all: Vec<_> = (0..40).map(|seed| block(seed, 1 << 20)).collect();
    let source = FaultySource::new("a", Fault::None, 100 * MS, &all);
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = fetcher(Arc::clone(&shelf), &[Arc::clone(&source)]);
    let wants: Vec<_> = all.iter().map(|(want, _)| want.clone()).collect();
    assert_eq!(fetcher.prefetch(wants.clone()), 32);
    assert_eq!(fetcher.prefetch_room(), 0);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(fetcher.prefetch_room(), 32 << 20);
    assert_eq!(shelf.blocks.lock().len(), 32);
    // What is stored is not read again; who then asks for it gets it all the same.
    fetcher.forget();
    assert_eq!(fetcher.prefetch(wants.clone()), 32);
    let got = fetcher.get(wants[0].clone(), Priority::Foreground).await;
    assert_eq!(got.unwrap().bytes(), &all[0].1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(source.asked(), 32);
    assert_eq!(fetcher.report().flying, 0);
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_source_is_left_alone_as_long_as_it_says() {
    let all = blocks(2);
    let source = FaultySource::new("a", Fault::Busy, MS, &all);
    let fetcher = fresh(&[Arc::clone(&source)]);
    let get = get_all(&fetcher, &all);
    let watch = async {
        sleep(900 * MS).await;
        source.asked()
    };
    let ((took, got), asked) = tokio::join!(get, watch);
    assert_eq!(asked, 2, "nobody asks while it rests");
    assert!(
        got.iter()
            .all(|got| matches!(got, Err(FetchError::Deadline { .. })))
    );
    assert!(took <= Duration::from_secs(31), "{took:?}");
    assert!(source.asked.lock().values().all(|asked| *asked <= 8));
    assert!(fetcher.report().sources[0].limit < 16);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_comes_back_is_used_again() {
    let all = blocks(200);
    let down = FaultySource::new("a", Fault::Failing, MS, &all);
    let up = FaultySource::new("a", Fault::None, MS, &all);
    let fetcher = fresh(&[down]);
    let get = get_all(&fetcher, &all);
    let restart = async {
        sleep(Duration::from_secs(4)).await;
        fetcher.set_sources(vec![up as _]);
    };
    let ((took, got), ()) = tokio::join!(get, restart);
    assert!(got.iter().all(Result::is_ok));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_along_is_verified_and_kept() {
    let all = blocks(3);
    let hole = FaultySource::new("hole", Fault::Hanging, MS, &all);
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = fetcher(Arc::clone(&shelf), &[hole]);
    let spill = Spill::new(fetcher.inner.offers.clone());
    let give = async {
        sleep(MS).await;
        spill.offer(all[0].0.block, all[1].1.clone());
        spill.offer(all[0].0.block, all[0].1.clone());
        spill.offer(all[1].0.block, all[1].1.clone());
        spill.offer(all[2].0.block, all[1].1.clone());
    };
    let ((took, got), ()) = tokio::join!(get_all(&fetcher, &all[..1]), give);
    assert!(got[0].is_ok());
    assert!(took < 100 * MS);
    sleep(MS).await;
    assert!(shelf.has(&all[0].0.block) && shelf.has(&all[1].0.block));
    assert!(!shelf.has(&all[2].0.block));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_every_flight() {
    let all = blocks(50);
    let hole = FaultySource::new("hole", Fault::Hanging, MS, &all);
    let fetcher = fresh(&[Arc::clone(&hole)]);
    let close = async {
        sleep(MS).await;
        fetcher.close().await;
    };
    let ((took, got), ()) = tokio::join!(get_all(&fetcher, &all), close);
    assert!(took < 10 * MS);
    assert!(got.iter().all(|got| matches!(got, Err(FetchError::Closed))));
    assert!(matches!(
        get_all(&fetcher, &all[..1]).await.1[0],
        Err(FetchError::Closed)
    ));
    assert_eq!(hole.at_once.load(Ordering::Relaxed), 0);
}

/// Random sources, random faults, random order: never a wrong byte, bounded attempts, done by the deadline; and with an
/// honest source among them every block comes.
#[tokio::test(start_paused = true)]
async fn random_crowds_of_sources() {
    let faults = [
        Fault::Missing,
        Fault::Lying,
        Fault::Short,
        Fault::Oversized,
        Fault::Hanging,
        Fault::Failing,
        Fault::Busy,
        Fault::Refusing,
        Fault::Dripping,
        Fault::Moody,
    ];
    let all = blocks(60);
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut sources: Vec<_> = (0..random.random_range(1..5))
            .map(|i| {
                let fault = faults[random.random_range(0..faults.len())];
                let latency = MS * random.random_range(0..400);
                FaultySource::new(&format!("{i}{fault:?}"), fault, latency, &all)
            })
            .collect();
        let honest = random.random_bool(0.7);
        if honest {
            let latency = MS * random.random_range(0..400);
            let at = random.random_range(0..=sources.len());
            sources.insert(at, FaultySource::new("honest", Fault::None, latency, &all));
        }
        let names: Vec<_> = sources.iter().map(|source| source.name.clone()).collect();
        let fetcher = fresh(&sources);
        let start = Instant::now();
        let gets = all.iter().enumerate().map(|(i, (want, bytes))| {
            let priority = [Priority::Foreground, Priority::Prefetch, Priority::Warm]
                [random.random_range(0..3)];
            let after = MS * random.random_range(0..3000);
            let fetcher = &fetcher;
            async move {
                sleep(after).await;
                if i % 7 == 0 {
                    fetcher.prefetch(vec![want.clone()]);
                }
                let began = Instant::now();
                let got = fetcher.get(want.clone(), priority).await;
                assert!(began.elapsed() <= Duration::from_secs(121));
                match got {
                    Ok(block) => {
                        assert_eq!(block.bytes(), bytes);
                        true
                    }
                    Err(error) => {
                        assert!(!error.answers().is_empty(), "{error}");
                        false
                    }
                }
            }
        });
        let got = join_all(gets).await;
        if honest {
            let came = got.iter().filter(|came| **came).count();
            assert_eq!(came, all.len(), "seed {seed}: {names:?}");
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(60),
                "seed {seed}: {names:?}: {took:?}"
            );
        }
        for source in &sources {
            let most = source.asked.lock().values().max().copied().unwrap_or(0);
            assert!(most <= 8, "seed {seed}: {most} attempts at {}", source.name);
            assert_eq!(source.at_once.load(Ordering::Relaxed), 0, "seed {seed}");
        }
        // The last ones may still be on their way into the store.
        sleep(MS).await;
        assert_eq!(fetcher.report().flying, 0, "seed {seed}");
        assert_eq!(fetcher.prefetch_room(), 32 << 20, "seed {seed}");
    }
}
