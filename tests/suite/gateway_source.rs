//! Gateways over real sockets: what an honest one gives comes in, whatever a hostile one sends is contained.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use manifs::block::{BlockRef, Digest, FileRef};
use manifs::fetch::{FetchError, Fetcher, Options, Priority};
use manifs::net::{AddressFilter, Client, Get, NetError};
use manifs::source::{BlockSource, Gateway, SourceError, Spill, Want};
use manifs::store::{self, Store};

use crate::common::hostile::{Hostile, Manner};

fn client(allow: &[&str]) -> Client {
    let allow = allow.iter().map(|entry| entry.parse().unwrap()).collect();
    Client::new(manifs::net::Options {
        filter: AddressFilter::new(allow),
        ..Default::default()
    })
}

fn gateway(server: &Hostile) -> Arc<dyn BlockSource> {
    Arc::new(Gateway::new(&server.url(), client(&["127.0.0.1"])))
}

fn block(seed: u8, len: usize) -> Bytes {
    let pattern = (0..=250_u8).cycle();
    pattern
        .map(|byte| byte.wrapping_mul(31) ^ seed)
        .take(len)
        .collect()
}

fn want(bytes: &Bytes) -> Want {
    let digest = Digest::of(bytes);
    let size = bytes.len() as u64;
    Want::new(BlockRef {
        file: FileRef { id: digest, size },
        index: 0,
        digest,
    })
}

/// A fetcher whose flights end after so many seconds.
fn fetcher(sources: Vec<Arc<dyn BlockSource>>, seconds: u64) -> Fetcher {
    let options = Options {
        idle_deadline: Duration::from_secs(seconds),
        total_deadline: Duration::from_secs(seconds + 1),
        ..Options::default()
    };
    let fetcher = Fetcher::new(options, Arc::new(()), tokio::runtime::Handle::current());
    fetcher.set_sources(sources);
    fetcher
}

#[tokio::test]
async fn an_honest_gateway_over_few_connections() {
    let blocks: Vec<_> = (0..200)
        .map(|seed| block(seed, 1 + usize::from(seed) * 100))
        .collect();
    let large = block(1, 1 << 20);
    let server = Hostile::start(Manner::Honest, &blocks);
    server.add(large.clone());
    let source = gateway(&server);
    let spill = Spill::ignored();
    assert_eq!(source.fetch(&want(&large), &spill).await.unwrap(), large);
    assert_eq!(spill.arrived(), 1 << 20);
    let fetcher = fetcher(vec![Arc::clone(&source)], 20);
    let got = join_all(
        blocks
            .iter()
            .map(|block| fetcher.get(want(block), Priority::Foreground)),
    )
    .await;
    for (block, got) in blocks.iter().zip(got) {
        assert_eq!(got.unwrap().bytes(), block);
    }
    assert_eq!(server.requests(), 201);
    assert!(
        server.connections() <= 40,
        "{} connections",
        server.connections()
    );
    let missing = source.fetch(&want(&block(9, 77)), &spill).await;
    assert!(
        matches!(missing, Err(SourceError::NotFound { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn no_more_is_read_than_one_byte_too_many() {
    let block = block(3, 100_000);
    let server = Hostile::start(Manner::Long, std::slice::from_ref(&block));
    for manner in [Manner::Long, Manner::Endless, Manner::Huge] {
        server.behave(manner.clone());
        let got = gateway(&server)
            .fetch(&want(&block), &Spill::ignored())
            .await;
        assert_eq!(got.unwrap().len(), 100_001, "{manner:?}");
    }
    // Socket buffers hold some megabytes; what matters is that it ended.
    assert!(server.bytes() < 64 << 20);
}

#[tokio::test]
async fn each_misbehaviour_is_an_error_of_the_right_kind() {
    let block = block(4, 5000);
    let server = Hostile::start(Manner::Honest, std::slice::from_ref(&block));
    let source = gateway(&server);
    for manner in [
        Manner::Cut,
        Manner::Reset,
        Manner::Garbage,
        Manner::EndlessHeaders,
        Manner::Status(500, ""),
        Manner::Status(429, "Retry-After: 3\r\n"),
        Manner::Status(503, ""),
    ] {
        server.behave(manner.clone());
        let got = source.fetch(&want(&block), &Spill::ignored()).await;
        assert!(
            matches!(got, Err(SourceError::Unavailable { .. })),
            "{manner:?}: {got:?}"
        );
        if matches!(manner, Manner::Status(429, _)) {
            let wait = Some(Duration::from_secs(3));
            assert!(
                matches!(got, Err(SourceError::Unavailable { retry_after, .. }) if retry_after == wait)
            );
        }
    }
    let victim = Hostile::start(Manner::Honest, std::slice::from_ref(&block));
    let path = format!("{}/ipfs/x", victim.url());
    for manner in [
        Manner::Redirect(path),
        Manner::Status(404, ""),
        Manner::Status(451, ""),
    ] {
        server.behave(manner.clone());
        let got = source.fetch(&want(&block), &Spill::ignored()).await;
        assert!(
            matches!(got, Err(SourceError::NotFound { .. })),
            "{manner:?}: {got:?}"
        );
    }
    assert_eq!(victim.connections(), 0, "a redirect was followed");
    server.behave(Manner::Status(400, ""));
    let got = source.fetch(&want(&block), &Spill::ignored()).await;
    assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
    // And it can be asked again afterwards.
    server.behave(Manner::Honest);
    assert_eq!(
        source
            .fetch(&want(&block), &Spill::ignored())
            .await
            .unwrap(),
        block
    );
}

#[tokio::test]
async fn beside_an_honest_gateway_no_misbehaviour_matters() {
    let blocks: Vec<_> = (0..40).map(|seed| block(seed, 40_000)).collect();
    let honest = Hostile::start(Manner::Honest, &blocks);
    let own = [
        Manner::Status(429, "Retry-After: 60\r\n"),
        Manner::Status(404, ""),
        Manner::Redirect("http://127.0.0.1:1/".to_owned()),
    ];
    let lies = Manner::lies(Duration::from_millis(100));
    for manner in own.into_iter().chain(lies) {
        let hostile = Hostile::start(manner.clone(), &blocks);
        let fetcher = fetcher(vec![gateway(&hostile), gateway(&honest)], 20);
        let start = Instant::now();
        let gets = blocks
            .iter()
            .map(|block| fetcher.get(want(block), Priority::Foreground));
        for (block, got) in blocks.iter().zip(join_all(gets).await) {
            assert_eq!(got.unwrap().bytes(), block, "{manner:?}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{manner:?} took {:?}",
            start.elapsed()
        );
        fetcher.close().await;
    }
}

#[tokio::test]
async fn a_hostile_gateway_alone_fails_in_time_and_says_why() {
    let block = block(5, 40_000);
    let cases = [
        (Manner::Wrong, false),
        (Manner::Endless, false),
        (Manner::Html, false),
        (Manner::Hang, true),
        (Manner::Drip(Duration::from_millis(100)), true),
        (Manner::Reset, true),
        (Manner::Status(503, "Retry-After: 30\r\n"), true),
    ];
    let runs = cases.map(|(manner, honest)| {
        let block = block.clone();
        async move {
            let hostile = Hostile::start(manner.clone(), std::slice::from_ref(&block));
            let fetcher = fetcher(vec![gateway(&hostile)], 2);
            let start = Instant::now();
            let got = fetcher.get(want(&block), Priority::Foreground).await;
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{manner:?} took {took:?}");
            match got.unwrap_err() {
                FetchError::NoHonest { .. } => assert!(!honest, "{manner:?}"),
                FetchError::Deadline { .. } => assert!(honest, "{manner:?}"),
                other => panic!("{manner:?}: {other}"),
            }
            assert!(hostile.requests() <= 8);
            fetcher.close().await;
        }
    });
    join_all(runs).await;
}

#[tokio::test]
async fn the_filter_is_asked_before_the_network() {
    let block = block(6, 10);
    let server = Hostile::start(Manner::Honest, std::slice::from_ref(&block));
    let refused = Gateway::new(&server.url(), client(&[]));
    let got = refused.fetch(&want(&block), &Spill::ignored()).await;
    assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
    // A name that leads inwards is found out when it is resolved; `localhost` by its name already.
    let port = server.url().rsplit(':').next().unwrap().to_owned();
    for host in ["localhost", "127.1", "[::ffff:127.0.0.1]", "0"] {
        let source = Gateway::new(&format!("http://{host}:{port}"), client(&["127.0.0.1"]));
        let got = source.fetch(&want(&block), &Spill::ignored()).await;
        match host {
            "127.1" => assert_eq!(got.unwrap(), block),
            _ => assert!(
                matches!(got, Err(SourceError::Refused { .. })),
                "{host}: {got:?}"
            ),
        }
    }
    assert_eq!(server.connections(), 1);
    let named = Gateway::new(&format!("http://localhost:{port}"), client(&["localhost"]));
    assert_eq!(
        named.fetch(&want(&block), &Spill::ignored()).await.unwrap(),
        block
    );
}

#[tokio::test]
async fn redirects_are_filtered_one_by_one() {
    let body = block(7, 10);
    let inner = Hostile::start(Manner::Honest, std::slice::from_ref(&body));
    let cid = manifs::unixfs::Cid::raw(Digest::of(&body));
    let goal = format!("{}/ipfs/{cid}", inner.url());
    let outer = Hostile::start(Manner::Redirect(goal), &[]);
    let host = outer.url().trim_start_matches("http://").to_owned();
    let mut get = Get::new(100);
    get.redirects = 3;
    let got = client(&["127.0.0.1"])
        .get(&outer.url(), &get)
        .await
        .unwrap();
    assert_eq!(got.body, body);
    let before = inner.connections();
    let refused = client(&[&host]).get(&outer.url(), &get).await;
    assert!(matches!(refused, Err(NetError::Refused(_))), "{refused:?}");
    assert_eq!(inner.connections(), before);
    outer.behave(Manner::Redirect(outer.url()));
    let asked = outer.requests();
    let round = client(&["127.0.0.1"]).get(&outer.url(), &get).await;
    assert!(matches!(round, Err(NetError::Redirects)), "{round:?}");
    assert_eq!(outer.requests() - asked, 4);
}

fn open_store(path: &std::path::Path) -> Arc<Store> {
    let options = store::Options {
        quota: 64 << 20,
        verify: store::Verify::FirstTouch,
    };
    Store::open(path, options).unwrap()
}

/// Overwrites each data file below `path` with as many other bytes, or cuts it.
fn spoil(path: &std::path::Path, cut: bool) -> usize {
    let mut spoilt = 0;
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            spoilt += spoil(&path, cut);
        } else if path
            .parent()
            .unwrap()
            .file_name()
            .is_some_and(|name| name.len() == 2)
        {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[0] ^= 1;
            bytes.truncate(if cut { bytes.len() / 2 } else { bytes.len() });
            std::fs::write(&path, bytes).unwrap();
            spoilt += 1;
        }
    }
    spoilt
}

#[tokio::test]
async fn what_the_store_holds_is_not_fetched_and_what_it_lost_is_healed() {
    let blocks: Vec<_> = (0..20).map(|seed| block(seed, 3000)).collect();
    let server = Hostile::start(Manner::Honest, &blocks);
    let home = tempfile::tempdir().unwrap();
    let handle = tokio::runtime::Handle::current;
    let mut asked = 0;
    for run in ["cold", "stored", "flipped", "stored again", "cut"] {
        match run {
            "flipped" => assert_eq!(spoil(home.path(), false), 20),
            "cut" => assert_eq!(spoil(home.path(), true), 20),
            _ => {}
        }
        let store = open_store(home.path());
        let fetcher = Fetcher::new(Options::default(), store.clone(), handle());
        fetcher.set_sources(vec![gateway(&server)]);
        for block in &blocks {
            let got = fetcher.get(want(block), Priority::Warm).await.unwrap();
            assert_eq!(got.bytes(), block, "{run}");
            assert!(store.has(&want(block).block), "{run}");
        }
        asked += if run.starts_with("stored") { 0 } else { 20 };
        assert_eq!(server.requests(), asked, "{run}");
        fetcher.close().await;
        drop(fetcher);
        // Its writer lets the store go when it is run once more.
        while Arc::strong_count(&store) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
