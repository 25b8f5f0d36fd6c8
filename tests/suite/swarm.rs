//! BitTorrent peers over real sockets: what an honest one gives comes in, whatever a hostile one sends is contained.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use manifs::block::{BlockRef, Digest, FileRef};
use manifs::fetch::{Fetcher, Options, Priority};
use manifs::net::{AddressFilter, Client};
use manifs::source::torrent::{Finder, Found, Patience, Settings, Swarms};
use manifs::source::{BlockSource, SourceError, Spill, Torrent, TorrentPlace, Want};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::common::peer::{Conduct, HOSTILE, Held, Peer};

const MIB: u64 = 1 << 20;

/// Nothing below may take longer than this; what hangs, hangs for ever.
const HANG: Duration = Duration::from_secs(60);

/// Impatient, so that the tests are not slow.
const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(5),
    handshake: Duration::from_millis(700),
    stall: Duration::from_millis(700),
    choked: Duration::from_millis(700),
    idle: Duration::from_secs(60),
};

fn held(len: u64) -> Held {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    StdRng::seed_from_u64(len).fill(&mut bytes[..]);
    Held {
        info_hash: [7; 20],
        piece_bytes: 1 << 20,
        bytes: bytes.into(),
    }
}

fn torrent(held: &Held) -> Arc<Torrent> {
    Arc::new(Torrent {
        info_hash: held.info_hash,
        piece_bytes: held.piece_bytes.into(),
        bytes: Some(held.bytes.len() as u64),
        trackers: Vec::new(),
    })
}

fn want(held: &Held, torrent: &Arc<Torrent>, offset: u64, len: u64) -> (Want, Bytes) {
    let from = usize::try_from(offset).unwrap();
    let bytes = held.bytes.slice(from..from + usize::try_from(len).unwrap());
    let digest = Digest::of(&bytes);
    let file = FileRef {
        id: digest,
        size: len,
    };
    let block = BlockRef {
        file,
        index: 0,
        digest,
    };
    let want = Want {
        torrent: Some(TorrentPlace {
            torrent: Arc::clone(torrent),
            offset,
        }),
        ..Want::new(block)
    };
    (want, bytes)
}

fn client(allow: &[&str]) -> Client {
    let allow = allow.iter().map(|entry| entry.parse().unwrap()).collect();
    Client::new(manifs::net::Options {
        filter: AddressFilter::new(allow),
        ..Default::default()
    })
}

fn settings(peers: &[&Peer]) -> Settings {
    Settings {
        client: client(&["127.0.0.1"]),
        peers: peers.iter().map(|peer| peer.address.to_string()).collect(),
        finder: None,
    }
}

fn swarms(peers: &[&Peer]) -> Arc<Swarms> {
    Swarms::new(settings(peers), PATIENCE)
}

async fn fetch(swarms: &Swarms, want: &Want) -> Result<Bytes, SourceError> {
    let spill = Spill::ignored();
    let answer = tokio::time::timeout(HANG, swarms.fetch(want, &spill));
    answer.await.expect("no answer, for ever")
}

/// Waits for what somebody else does in a moment.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn just_the_bytes_are_asked_for_over_one_connection() {
    let held = held(8 * MIB + 12_345);
    let torrent = torrent(&held);
    let peer = Peer::start(&held, Conduct::Honest).await;
    let swarms = swarms(&[&peer]);
    let end = held.bytes.len() as u64;
    let places = [
        (0, 1),
        (0, MIB),
        (3 * MIB, MIB),
        (MIB - 5, 10),
        (MIB + 70_000, 4096),
        (5 * MIB + 3, MIB),
        (8 * MIB, 12_345),
        (end - 1, 1),
        (77, 0),
    ];
    let mut sum = 0;
    for (offset, len) in places {
        let (want, bytes) = want(&held, &torrent, offset, len);
        assert_eq!(fetch(&swarms, &want).await, Ok(bytes), "{offset} {len}");
        sum += len;
    }
    assert_eq!(peer.served(), sum);
    assert_eq!(peer.count(), 1);
    assert!(peer.seen.longest.load(Ordering::Relaxed) <= 16_384);
    // And many at once.
    let wants: Vec<_> = (0..64)
        .map(|n| want(&held, &torrent, n * 100_000, 60_000))
        .collect();
    let answers = join_all(wants.iter().map(|(want, _)| fetch(&swarms, want))).await;
    for (answer, (_, bytes)) in answers.into_iter().zip(&wants) {
        assert_eq!(answer.as_ref(), Ok(bytes));
    }
    assert_eq!(peer.count(), 1);
    let hello = String::from_utf8_lossy(&peer.seen.hello.lock()).into_owned();
    assert!(
        hello.contains(concat!("manifs ", env!("CARGO_PKG_VERSION"))),
        "{hello}"
    );
    let reports = swarms.peers();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].name, peer.address.to_string());
    assert_eq!(reports[0].bytes, sum + 64 * 60_000);
    assert_eq!(reports[0].client.as_deref(), Some("scripted [1m"));
    assert!(reports[0].connected && !reports[0].banned);
    swarms.close().await;
}

#[tokio::test]
async fn what_no_torrent_has_is_not_asked_for() {
    let held = held(MIB);
    let peer = Peer::start(&held, Conduct::Honest).await;
    let swarms = swarms(&[&peer]);
    let torrent = torrent(&held);
    let (mut outside, _) = want(&held, &torrent, 0, 100);
    outside.torrent.as_mut().unwrap().offset = MIB - 99;
    let nowhere = Want::new(outside.block);
    for want in [&outside, &nowhere] {
        let answer = fetch(&swarms, want).await;
        assert!(
            matches!(answer, Err(SourceError::NotFound { .. })),
            "{answer:?}"
        );
    }
    assert!(!swarms.serves(&nowhere) && swarms.serves(&outside));
    let nobody = Swarms::new(settings(&[]), PATIENCE);
    assert!(!nobody.serves(&outside));
    let answer = fetch(&nobody, &want(&held, &torrent, 0, 1).0).await;
    assert!(
        matches!(answer, Err(SourceError::NotFound { .. })),
        "{answer:?}"
    );
    assert_eq!(peer.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_peer_alone_hangs_or_is_believed() {
    let held = held(3 * MIB);
    let torrent = torrent(&held);
    let all = HOSTILE.map(|conduct| {
        let (held, torrent) = (held.clone(), Arc::clone(&torrent));
        async move {
            let peer = Peer::start(&held, conduct).await;
            let swarms = swarms(&[&peer]);
            let start = Instant::now();
            for n in 0..3 {
                let (want, right) = want(&held, &torrent, n * MIB, 100_000);
                match fetch(&swarms, &want).await {
                    // Wrong bytes may be handed on, for `fetch` to see that there is no honest peer.
                    Ok(bytes) if matches!(conduct, Conduct::Garbage | Conduct::Poisoned) => {
                        assert_ne!(bytes, right);
                    }
                    Ok(bytes) => assert_eq!((conduct, bytes), (Conduct::HaveLies, right)),
                    Err(error) => {
                        let tell = matches!(
                            error,
                            SourceError::NotFound { .. } | SourceError::Unavailable { .. }
                        );
                        assert!(tell, "{conduct:?}: {error}");
                    }
                }
            }
            swarms.close().await;
            (conduct, start.elapsed())
        }
    });
    for (conduct, took) in join_all(all).await {
        assert!(took < HANG / 2, "{conduct:?}: {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_peer_makes_up_for_each_hostile_one() {
    let held = held(6 * MIB);
    let torrent = torrent(&held);
    let all = HOSTILE.map(|conduct| {
        let (held, torrent) = (held.clone(), Arc::clone(&torrent));
        async move {
            let hostile = Peer::start(&held, conduct).await;
            let honest = Peer::start(&held, Conduct::Honest).await;
            // The honest one has its time on a loaded machine; nobody waits for the other.
            let patience = Patience {
                handshake: HANG,
                ..PATIENCE
            };
            let swarms = Swarms::new(settings(&[&hostile, &honest]), patience);
            let wants: Vec<_> = (0..6)
                .map(|n| want(&held, &torrent, n * MIB, MIB))
                .collect();
            let answers = join_all(wants.iter().map(|(want, _)| fetch(&swarms, want))).await;
            for (answer, (_, right)) in answers.iter().zip(&wants) {
                assert_eq!(answer.as_ref(), Ok(right), "{conduct:?}");
            }
            swarms.close().await;
        }
    });
    join_all(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_choke_drops_is_asked_for_again() {
    let held = held(2 * MIB);
    let torrent = torrent(&held);
    for conduct in [Conduct::Chokes, Conduct::Chatty] {
        let peer = Peer::start(&held, conduct).await;
        let swarms = swarms(&[&peer]);
        for n in 0..2 {
            let (want, right) = want(&held, &torrent, n * MIB, 300_000);
            assert_eq!(fetch(&swarms, &want).await, Ok(right), "{conduct:?}");
        }
        assert_eq!(peer.count(), 1);
        swarms.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_banned_after_two_lies_and_nobody_else() {
    let held = held(16 * MIB);
    let torrent = torrent(&held);
    let liar = Peer::start(&held, Conduct::Garbage).await;
    let honest = Peer::start(&held, Conduct::Honest).await;
    let swarms = swarms(&[&liar, &honest]);
    let banned = |swarms: &Swarms| {
        let reports = swarms.peers();
        let find = |peer: &Peer| {
            let name = peer.address.to_string();
            reports.iter().find(|report| report.name == name).cloned()
        };
        (find(&liar).unwrap(), find(&honest).unwrap())
    };
    for _ in 0..50 {
        let wants: Vec<_> = (0..16)
            .map(|n| want(&held, &torrent, n * MIB, MIB))
            .collect();
        let answers = join_all(wants.iter().map(|(want, _)| fetch(&swarms, want))).await;
        for (answer, (_, right)) in answers.iter().zip(&wants) {
            assert_eq!(answer.as_ref(), Ok(right));
        }
        if banned(&swarms).0.banned {
            break;
        }
    }
    let (liar_report, honest_report) = banned(&swarms);
    assert!(liar_report.banned, "{liar_report:?}");
    assert_eq!((honest_report.lies, honest_report.banned), (0, false));
    until("the liar's connection to end", || {
        !banned(&swarms).0.connected
    })
    .await;
    let before = liar.count();
    // Neither time nor a new configuration brings it back.
    swarms.configure(settings(&[&liar, &honest]));
    for n in 0..16 {
        let (want, right) = want(&held, &torrent, n * MIB, MIB);
        assert_eq!(fetch(&swarms, &want).await, Ok(right));
    }
    assert_eq!(liar.count(), before);
    swarms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_proven_to_lie_in_one_swarm_is_asked_in_none() {
    let held = held(16 * MIB);
    let (one, mut other) = (torrent(&held), Arc::into_inner(torrent(&held)).unwrap());
    other.info_hash = [8; 20];
    let other = Arc::new(other);
    let liar = Peer::start(&held, Conduct::Garbage).await;
    let honest = Peer::start(&held, Conduct::Honest).await;
    let swarms = swarms(&[&liar, &honest]);
    let name = liar.address.to_string();
    let banned = || {
        let reports = swarms.peers();
        reports.iter().any(|peer| peer.name == name && peer.banned)
    };
    for _ in 0..50 {
        let wants: Vec<_> = (0..16).map(|n| want(&held, &one, n * MIB, MIB)).collect();
        let answers = join_all(wants.iter().map(|(want, _)| fetch(&swarms, want))).await;
        for (answer, (_, right)) in answers.iter().zip(&wants) {
            assert_eq!(answer.as_ref(), Ok(right));
        }
        if banned() {
            break;
        }
    }
    assert!(banned());
    let (before, asked) = (liar.count(), honest.count());
    for n in 0..16 {
        let (want, right) = want(&held, &other, n * MIB, MIB);
        assert_eq!(fetch(&swarms, &want).await, Ok(right));
    }
    assert_eq!((liar.count(), honest.count()), (before, asked + 1));
    // What is told of a want is told of its own torrent.
    let (want, _) = want(&held, &other, 0, MIB);
    let peers = swarms.peers_for(&want);
    assert_eq!(peers.iter().map(|peer| peer.blocks).sum::<u64>(), 16);
    assert!(swarms.peers_for(&Want::new(want.block)).is_empty());
    swarms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_agree_are_not_blamed_for_a_torrent_of_other_bytes() {
    let held = held(4 * MIB);
    let torrent = torrent(&held);
    let peers = [
        Peer::start(&held, Conduct::Poisoned).await,
        Peer::start(&held, Conduct::Poisoned).await,
    ];
    let swarms = swarms(&[&peers[0], &peers[1]]);
    // As a publisher does whose pieces pass SHA-1 and not SHA-256; the fetcher hands nothing of it on.
    let fetcher = Fetcher::new(
        Options::default(),
        Arc::new(()),
        tokio::runtime::Handle::current(),
    );
    fetcher.set_sources(vec![Arc::clone(&swarms) as Arc<dyn BlockSource>]);
    for n in 0..4 {
        let (want, _) = want(&held, &torrent, n * MIB, MIB);
        let answer = tokio::time::timeout(HANG, fetcher.get(want, Priority::Foreground)).await;
        let error = answer.expect("no answer, for ever").unwrap_err();
        assert!(error.to_string().contains("other bytes"), "{error}");
    }
    for report in swarms.peers() {
        assert_eq!((report.lies, report.banned), (0, false), "{report:?}");
    }
    fetcher.close().await;
    swarms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_want_cancels_its_requests() {
    let held = held(MIB);
    let torrent = torrent(&held);
    let peer = Peer::start(&held, Conduct::Silent).await;
    let patience = Patience {
        stall: HANG,
        ..PATIENCE
    };
    let swarms = Swarms::new(settings(&[&peer]), patience);
    let (want, _) = want(&held, &torrent, 0, MIB);
    let task = tokio::spawn({
        let swarms = Arc::clone(&swarms);
        async move { swarms.fetch(&want, &Spill::ignored()).await }
    });
    until("its requests", || peer.requests() == 64).await;
    task.abort();
    until("the cancels", || {
        peer.seen.cancels.load(Ordering::Relaxed) == 64
    })
    .await;
    swarms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_peer_takes_over_from_a_slow_one() {
    let held = held(4 * MIB);
    let torrent = torrent(&held);
    let slow = Peer::start(&held, Conduct::Slow).await;
    let quick = Peer::start(&held, Conduct::Honest).await;
    let patience = Patience {
        stall: HANG,
        ..PATIENCE
    };
    let swarms = Swarms::new(settings(&[&slow, &quick]), patience);
    let start = Instant::now();
    let wants: Vec<_> = (0..4)
        .map(|n| want(&held, &torrent, n * MIB, MIB))
        .collect();
    let answers = join_all(wants.iter().map(|(want, _)| fetch(&swarms, want))).await;
    for (answer, (_, right)) in answers.iter().zip(&wants) {
        assert_eq!(answer.as_ref(), Ok(right));
    }
    // Alone, the slow one takes 19 s for one block.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    swarms.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_not_needed_ends_and_comes_again() {
    let held = held(MIB);
    let torrent = torrent(&held);
    let peer = Peer::start(&held, Conduct::Honest).await;
    let patience = Patience {
        idle: Duration::from_millis(1),
        ..PATIENCE
    };
    let swarms = Swarms::new(settings(&[&peer]), patience);
    for count in 1..=3 {
        let (want, right) = want(&held, &torrent, 0, 1000);
        assert_eq!(fetch(&swarms, &want).await, Ok(right));
        assert_eq!(peer.count(), count);
        until("the end of the connection", || {
            swarms.peers().iter().all(|report| !report.connected)
        })
        .await;
    }
}

/// Tells of these peers.
struct Told(Vec<SocketAddr>);

#[async_trait]
impl Finder for Told {
    async fn find(
        &self,
        _: &Torrent,
        _: [u8; 20],
        _: &[String],
        told: &(dyn Fn(Found) + Send + Sync),
    ) -> Option<Duration> {
        told(Found {
            by: Some("somebody".to_owned()),
            peers: self.0.clone(),
        });
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_opens_no_way_inwards() {
    let held = held(MIB);
    let peer = Peer::start(&held, Conduct::Honest).await;
    let mut torrent = Arc::into_inner(torrent(&held)).unwrap();
    torrent
        .trackers
        .push("http://tracker.example/announce".to_owned());
    let torrent = Arc::new(torrent);
    // Thousands of them, and all of one's own network but one.
    let mut told: Vec<SocketAddr> = (0..5000_u16)
        .map(|n| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 6881)))
        .collect();
    told.push(peer.address);
    for (allow, found) in [(&[][..], false), (&["127.0.0.1"], true)] {
        let settings = Settings {
            client: client(allow),
            peers: Vec::new(),
            finder: Some(Arc::new(Told(told.clone()))),
        };
        let swarms = Swarms::new(settings, PATIENCE);
        let (want, right) = want(&held, &torrent, 0, 1000);
        assert!(swarms.serves(&want));
        let answer = fetch(&swarms, &want).await;
        if found {
            assert_eq!(answer, Ok(right));
        } else {
            assert!(
                matches!(answer, Err(SourceError::NotFound { .. })),
                "{answer:?}"
            );
            assert_eq!(peer.count(), 0);
        }
        assert_eq!(swarms.peers().len(), usize::from(found));
        swarms.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_silence_beside_one_honest_peer_through_the_fetcher() {
    let held = held(48 * MIB);
    let torrent = torrent(&held);
    let garbage = Peer::start(&held, Conduct::Garbage).await;
    let silent = Peer::start(&held, Conduct::Silent).await;
    let honest = Peer::start(&held, Conduct::Honest).await;
    let swarms = Swarms::new(settings(&[&garbage, &silent, &honest]), Patience::default());
    let fetcher = Fetcher::new(
        Options::default(),
        Arc::new(()),
        tokio::runtime::Handle::current(),
    );
    fetcher.set_sources(vec![Arc::clone(&swarms) as Arc<dyn BlockSource>]);
    let gets = (0..48).map(|n| {
        let (want, right) = want(&held, &torrent, n * MIB, MIB);
        let fetcher = fetcher.clone();
        async move {
            let get = fetcher.get(want, Priority::Foreground);
            let block = tokio::time::timeout(HANG, get).await;
            let block = block.expect("no answer, for ever").unwrap();
            assert_eq!(*block.bytes(), right);
        }
    });
    join_all(gets).await;
    let wasted = honest.served() as f64 / (48 * MIB) as f64;
    assert!(wasted < 1.5, "{wasted}");
    fetcher.close().await;
    swarms.close().await;
}
