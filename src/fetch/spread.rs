//! Several fast sources at once, on a paused clock: large reads use all of them, and losing most of them costs rate only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::{sleep, sleep_until};

use super::simulation::{MS, MemoryShelf};
use super::*;
use crate::block::FileRef;
use crate::source::{SourceError, SourceKind, Spill, TreePlace};

const MIB: u64 = 1 << 20;

/// What a source sends before another of its answers gets its turn.
const PART: u64 = 64 << 10;

/// A source behind a line of its own: so many bytes a second, however many answers share it.
struct Capped {
    name: String,
    kind: SourceKind,
    latency: Duration,
    parallel: usize,
    bytes_per_second: u64,
    free: Mutex<Instant>,
    content: HashMap<Digest, Bytes>,
    dead: AtomicBool,
    sent: AtomicU64,
}

impl Capped {
    fn new(
        name: &str,
        kind: SourceKind,
        latency: Duration,
        parallel: usize,
        blocks: &[(Want, Bytes)],
    ) -> Arc<Self> {
        Arc::new(Capped {
            name: name.to_owned(),
            kind,
            latency,
            parallel,
            bytes_per_second: 20 * MIB,
            free: Mutex::new(Instant::now()),
            content: blocks
                .iter()
                .map(|(want, bytes)| (want.block.digest, bytes.clone()))
                .collect(),
            dead: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        })
    }

    /// Waits until the line has taken `bytes` more.
    async fn send(&self, bytes: u64) {
        let done = {
            let mut free = self.free.lock();
            let takes = Duration::from_secs(1).mul_f64(bytes as f64 / self.bytes_per_second as f64);
            *free = Instant::now().max(*free) + takes;
            *free
        };
        sleep_until(done).await;
    }
}

#[async_trait]
impl BlockSource for Capped {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> SourceKind {
        self.kind
    }

    fn parallel(&self) -> usize {
        self.parallel
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        sleep(self.latency).await;
        let bytes = &self.content[&want.block.digest];
        let mut left = bytes.len() as u64;
        while left > 0 {
            if self.dead.load(Ordering::Relaxed) {
                return Err(SourceError::unavailable("connection reset"));
            }
            let part = left.min(PART);
            self.send(part).await;
            spill.progressed(part);
            left -= part;
        }
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes.clone())
    }
}

/// The three networks: near, far, and in between.
fn three(blocks: &[(Want, Bytes)]) -> [Arc<Capped>; 3] {
    [
        Capped::new("gateway", SourceKind::Gateway, MS, 16, blocks),
        Capped::new("swarm", SourceKind::Torrent, 40 * MS, 16, blocks),
        Capped::new("mirror", SourceKind::Http, 8 * MS, 8, blocks),
    ]
}

fn fetcher(sources: &[Arc<Capped>]) -> Fetcher {
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = Fetcher::new(Options::default(), shelf, Handle::current());
    fetcher.set_sources(
        sources
            .iter()
            .map(|source| Arc::clone(source) as _)
            .collect(),
    );
    fetcher
}

/// Reads all blocks in order, as a reader of one large file does, with the window ahead of it.
async fn read(fetcher: &Fetcher, blocks: &[(Want, Bytes)], at: impl Fn(usize)) -> Duration {
    let began = Instant::now();
    let streams = streams::Streams::default();
    let size = blocks.len() as u64 * MIB;
    for (index, (want, bytes)) in blocks.iter().enumerate() {
        let ahead = streams.read(1, index as u64 * MIB, MIB, size, fetcher.prefetch_room());
        let ahead = ahead.map(|ahead| blocks[usize::try_from(ahead).unwrap()].0.clone());
        fetcher.prefetch(ahead.collect());
        let got = fetcher.get(want.clone(), Priority::Foreground).await;
        assert_eq!(got.unwrap().bytes(), bytes);
        at(index);
    }
    began.elapsed()
}

/// Fetches all blocks as `warm` does.
async fn warm(fetcher: &Fetcher, blocks: &[(Want, Bytes)]) -> Duration {
    let began = Instant::now();
    let gets = blocks
        .iter()
        .map(|(want, _)| fetcher.get(want.clone(), Priority::Warm));
    let got: Vec<_> = futures::stream::iter(gets)
        .buffer_unordered(48)
        .collect()
        .await;
    assert!(got.iter().all(Result::is_ok));
    began.elapsed()
}

fn large(count: u64) -> Vec<(Want, Bytes)> {
    let one = |seed: u64| {
        let bytes = Bytes::from(seed.to_le_bytes().repeat(1 << 17));
        let digest = Digest::of(&bytes);
        let (id, size) = (digest, MIB);
        let file = FileRef { id, size };
        let index = 0;
        (
            Want::new(BlockRef {
                file,
                index,
                digest,
            }),
            bytes,
        )
    };
    (0..count).map(one).collect()
}

/// How much faster all three together are than the best of them alone.
fn gain(alone: &[Duration], together: Duration) -> f64 {
    let best = alone.iter().min().unwrap();
    best.as_secs_f64() / together.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn a_large_read_uses_all_sources_that_are_fast() {
    let blocks = large(256);
    let mut alone = Vec::new();
    for source in three(&blocks) {
        alone.push(read(&fetcher(&[source]), &blocks, |_| {}).await);
    }
    let sources = three(&blocks);
    let fetcher = fetcher(&sources);
    let together = read(&fetcher, &blocks, |_| {}).await;
    let sent = sources
        .each_ref()
        .map(|source| source.sent.load(Ordering::Relaxed) / MIB);
    let gain = gain(&alone, together);
    assert!(gain >= 2.0, "{gain:.2} times the best alone; {sent:?} MiB");
    assert!(sent.iter().all(|sent| *sent >= 40), "{sent:?} MiB");
    let wasted = sent.iter().sum::<u64>() - 256;
    assert!(wasted <= 16, "{wasted} MiB came twice");
}

#[tokio::test(start_paused = true)]
async fn warming_uses_all_sources_that_are_fast() {
    let blocks = large(256);
    let mut alone = Vec::new();
    for source in three(&blocks) {
        alone.push(warm(&fetcher(&[source]), &blocks).await);
    }
    let sources = three(&blocks);
    let together = warm(&fetcher(&sources), &blocks).await;
    let gain = gain(&alone, together);
    assert!(
        gain >= 2.0,
        "{gain:.2} times the best alone: {alone:?}, {together:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn any_two_of_three_die_in_the_middle_and_the_reader_does_not_notice() {
    let blocks = large(128);
    for survivor in 0..3 {
        let sources = three(&blocks);
        let took = read(&fetcher(&sources), &blocks, |index| {
            if index == 40 {
                for (number, source) in sources.iter().enumerate() {
                    source.dead.store(number != survivor, Ordering::Relaxed);
                }
            }
        })
        .await;
        // 88 blocks at 20 MiB/s are 4.4 s.
        assert!(took < Duration::from_secs(8), "{took:?}");
    }
}

/// A source that has every tree, one of them of another age.
struct Aged {
    wrong: Arc<str>,
    content: HashMap<Digest, Bytes>,
    asked_wrong: AtomicU64,
}

#[async_trait]
impl BlockSource for Aged {
    fn name(&self) -> &str {
        "aged"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Http
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        sleep(MS).await;
        let bytes = &self.content[&want.block.digest];
        spill.progressed(bytes.len() as u64);
        if want
            .place
            .as_ref()
            .is_some_and(|place| place.tree == self.wrong)
        {
            self.asked_wrong.fetch_add(1, Ordering::Relaxed);
            return Ok(vec![0; bytes.len()].into());
        }
        Ok(bytes.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_answer_of_a_mirror_condemns_that_tree_and_not_the_host() {
    let mut blocks = large(60);
    for (number, (want, _)) in blocks.iter_mut().enumerate() {
        want.place = Some(TreePlace {
            tree: if number % 2 == 0 {
                "old-1.0.0"
            } else {
                "new-2.0.0"
            }
            .into(),
            path: b"f"[..].into(),
            offset: 0,
            mirrors: Arc::default(),
            gateways: Arc::default(),
        });
    }
    let aged = Arc::new(Aged {
        wrong: "old-1.0.0".into(),
        content: blocks
            .iter()
            .map(|(want, bytes)| (want.block.digest, bytes.clone()))
            .collect(),
        asked_wrong: AtomicU64::new(0),
    });
    let slow = Capped::new("slow", SourceKind::Gateway, 200 * MS, 16, &blocks);
    let shelf = Arc::new(MemoryShelf::default());
    let fetcher = Fetcher::new(Options::default(), shelf, Handle::current());
    fetcher.set_sources(vec![Arc::clone(&aged) as _, slow as _]);
    let began = Instant::now();
    for (want, bytes) in &blocks {
        let got = fetcher.get(want.clone(), Priority::Foreground).await;
        assert_eq!(got.unwrap().bytes(), bytes);
    }
    // 30 blocks from the slow one at about 250 ms.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let wrong = aged.asked_wrong.load(Ordering::Relaxed);
    assert!(
        (1..=3).contains(&wrong),
        "asked {wrong} times for the tree it has not"
    );
    let report = fetcher.report();
    assert!(report.sources[0].blocks >= 29, "{:?}", report.sources[0]);
    assert!((1..=wrong).contains(&report.sources[0].lies));
}
