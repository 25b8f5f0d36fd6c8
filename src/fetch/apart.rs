//! Torrents are apart from each other: one whose peers are silent takes nothing from another, on a paused clock.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use tokio::time::sleep;

use super::ranked::DESKS_MAX;
use super::*;
use crate::block::FileRef;
use crate::source::{SourceError, SourceKind, Spill, Torrent, TorrentPlace};

/// How long a peer takes that answers.
const ANSWER: Duration = Duration::from_millis(10);

/// The torrent whose peers may fall silent, and another one.
const MOODY: [u8; 20] = [1; 20];
const GOOD: [u8; 20] = [2; 20];

#[derive(Default)]
struct Swarms {
    silent: AtomicBool,
}

#[async_trait]
impl BlockSource for Swarms {
    fn name(&self) -> &str {
        "swarms"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Torrent
    }

    fn parallel(&self) -> usize {
        64
    }

    async fn fetch(&self, want: &Want, _: &Spill) -> Result<Bytes, SourceError> {
        let place = want.torrent.as_ref().expect("every want has a place");
        if place.torrent.info_hash == MOODY && self.silent.load(Ordering::Relaxed) {
            sleep(Duration::from_secs(10)).await;
            return Err(SourceError::unavailable("stalled"));
        }
        sleep(ANSWER).await;
        Ok(content(place.offset))
    }
}

fn content(offset: u64) -> Bytes {
    Bytes::from(offset.to_le_bytes().repeat(512))
}

/// The block at `offset` of a torrent, which differs for each pair.
fn want(info_hash: [u8; 20], offset: u64) -> Want {
    let offset = offset * 100 + u64::from(info_hash[0]);
    let bytes = content(offset);
    let digest = Digest::of(&bytes);
    let file = FileRef {
        id: digest,
        size: bytes.len() as u64,
    };
    let torrent = Arc::new(Torrent {
        info_hash,
        piece_bytes: 1 << 20,
        bytes: None,
        trackers: Vec::new(),
    });
    Want {
        torrent: Some(TorrentPlace { torrent, offset }),
        ..Want::new(BlockRef {
            file,
            index: 0,
            digest,
        })
    }
}

fn fetcher() -> (Fetcher, Arc<Swarms>) {
    let swarms = Arc::new(Swarms::default());
    let fetcher = Fetcher::new(Options::default(), Arc::new(()), Handle::current());
    fetcher.set_sources(vec![Arc::clone(&swarms) as Arc<dyn BlockSource>]);
    (fetcher, swarms)
}

/// Reads `count` blocks of a torrent one after the other; returns how long that took.
async fn read(fetcher: &Fetcher, info_hash: [u8; 20], offset: u64, count: u64) -> Duration {
    let start = Instant::now();
    for nth in offset..offset + count {
        let get = fetcher.get(want(info_hash, nth), Priority::Foreground);
        get.await.unwrap();
    }
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_silent_swarm_takes_no_place_from_a_good_one() {
    for was_good in [false, true] {
        let (fetcher, swarms) = fetcher();
        let alone = read(&fetcher, GOOD, 0, 100).await;
        if was_good {
            // Proven, so that it is asked for as much at once as any.
            read(&fetcher, MOODY, 0, 100).await;
        }
        swarms.silent.store(true, Ordering::Relaxed);
        let waiting: Vec<_> = (1000..1300)
            .map(|nth| {
                let (fetcher, want) = (fetcher.clone(), want(MOODY, nth));
                tokio::spawn(async move { fetcher.get(want, Priority::Foreground).await })
            })
            .collect();
        sleep(Duration::from_millis(100)).await;
        let beside = read(&fetcher, GOOD, 1000, 100).await;
        assert!(beside <= alone * 11 / 10, "{beside:?}, {alone:?} alone");
        // And many at once are as many at once as ever.
        let start = Instant::now();
        let many = (2000..2064).map(|nth| fetcher.get(want(GOOD, nth), Priority::Foreground));
        assert!(join_all(many).await.iter().all(Result::is_ok));
        assert!(start.elapsed() <= ANSWER * 3, "{:?}", start.elapsed());
        assert!(waiting.iter().all(|task| !task.is_finished()));

        // To people they are one source.
        let report = fetcher.report();
        assert_eq!(report.sources.len(), 1);
        let blocks = 264 + if was_good { 100 } else { 0 };
        assert_eq!(report.sources[0].blocks, blocks);
        assert!(report.sources[0].in_flight > 0);
        for task in waiting {
            assert!(task.await.unwrap().is_err());
        }
        assert!(fetcher.report().sources[0].failures > 0);
        fetcher.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_died_does_not_keep_others_from_prefetching() {
    let swarms = Arc::new(Swarms::default());
    let options = Options {
        prefetch_bytes: 16 * 4096,
        ..Options::default()
    };
    let fetcher = Fetcher::new(options, Arc::new(()), Handle::current());
    fetcher.set_sources(vec![Arc::clone(&swarms) as Arc<dyn BlockSource>]);
    let ahead = |info_hash, offset| {
        let wants = (offset..offset + 100).map(|nth| want(info_hash, nth));
        fetcher.prefetch(wants.collect())
    };
    swarms.silent.store(true, Ordering::Relaxed);
    assert_eq!(ahead(MOODY, 0), 16);
    assert_eq!(ahead(GOOD, 0), 0, "the budget is for all");
    sleep(PREFETCH_LATE + ANSWER).await;
    assert_eq!(ahead(GOOD, 0), 16);
    sleep(ANSWER * 10).await;
    // What is late is bounded, too.
    assert_eq!(ahead(MOODY, 100), 16);
    sleep(PREFETCH_LATE + ANSWER).await;
    assert_eq!(ahead(GOOD, 100), 0);
    // And ends by its deadline.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fetcher.prefetch_room(), 16 * 4096);
    assert_eq!(fetcher.inner.late.load(Ordering::Relaxed), 0);
    assert_eq!(ahead(GOOD, 100), 16);
    fetcher.close().await;
}

#[tokio::test(start_paused = true)]
async fn desks_of_torrents_are_kept_when_the_sources_change_and_are_bounded() {
    let (fetcher, swarms) = fetcher();
    for torrent in 0..DESKS_MAX.get() as u64 + 100 {
        let mut info_hash = [0; 20];
        info_hash[..8].copy_from_slice(&torrent.to_le_bytes());
        read(&fetcher, info_hash, torrent, 1).await;
    }
    fetcher.set_sources(vec![swarms as Arc<dyn BlockSource>]);
    let report = &fetcher.report().sources[0];
    assert_eq!(report.blocks, DESKS_MAX.get() as u64 + 100);
    let sources = fetcher.inner.sources.load();
    assert_eq!(sources[0].desks(), DESKS_MAX.get());
    fetcher.close().await;
}
