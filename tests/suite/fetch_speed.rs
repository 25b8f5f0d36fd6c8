//! How fast blocks come through one loopback gateway, and how little a hostile one beside it matters.
//!
//! Figures of a test build on a shared machine; the limits are set so low that only a blunder breaks them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use manifs::block::{BlockRef, Digest, FileRef};
use manifs::fetch::{Fetcher, Options, Priority, Shelf};
use manifs::net::{AddressFilter, Client};
use manifs::source::{BlockSource, Gateway, Want};
use manifs::store::{self, Store};

use crate::common::full;
use crate::common::hostile::{Hostile, Manner};

fn blocks(count: u64, len: usize) -> Vec<(Want, Bytes)> {
    let block = |i: u64| {
        let mut bytes = vec![0; len];
        bytes[..8].copy_from_slice(&i.to_le_bytes());
        let bytes = Bytes::from(bytes);
        let digest = Digest::of(&bytes);
        let size = len as u64;
        let file = FileRef { id: digest, size };
        let block = BlockRef {
            file,
            index: 0,
            digest,
        };
        (Want::new(block), bytes)
    };
    (0..count).map(block).collect()
}

/// Fetches all blocks, 32 at once, and returns the time it took.
async fn fetch(servers: &[&Hostile], blocks: &[(Want, Bytes)], shelf: Arc<dyn Shelf>) -> Duration {
    let client = Client::new(manifs::net::Options {
        filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Default::default()
    });
    let fetcher = Fetcher::new(Options::default(), shelf, tokio::runtime::Handle::current());
    let gateways = servers.iter().map(|server| {
        Arc::new(Gateway::new(&server.url(), client.clone())) as Arc<dyn BlockSource>
    });
    fetcher.set_sources(gateways.collect());
    let start = Instant::now();
    let gets = blocks.iter().map(|(want, bytes)| {
        let fetcher = fetcher.clone();
        async move {
            let got = fetcher.get(want.clone(), Priority::Foreground).await;
            assert_eq!(got.unwrap().bytes().len(), bytes.len());
        }
    });
    stream::iter(gets).buffer_unordered(32).count().await;
    let took = start.elapsed();
    fetcher.close().await;
    took
}

fn say(line: &str) {
    let line = format!("{line}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

#[test]
fn blocks_per_second_through_one_gateway_and_beside_a_liar() {
    if !full("fetch_speed") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    for (name, count, len, least) in [
        ("1 MiB", 512, 1 << 20, 100.0),
        ("4 KiB", 10_000, 4096, 2000.0),
    ] {
        let all = blocks(count, len);
        let bodies: Vec<_> = all.iter().map(|(_, bytes)| bytes.clone()).collect();
        let honest = Hostile::start(Manner::Honest, &bodies);
        let mut alone = f64::INFINITY;
        for _ in 0..3 {
            alone = alone.min(
                runtime
                    .block_on(fetch(&[&honest], &all, Arc::new(())))
                    .as_secs_f64(),
            );
        }
        let rate = count as f64 / alone;
        say(&format!(
            "{name}: {rate:.0} blocks/s over {} connections",
            honest.connections()
        ));
        assert!(rate > least, "{name}: {rate:.0} blocks/s");
        let options = store::Options {
            quota: 1 << 30,
            verify: store::Verify::FirstTouch,
        };
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path(), options).unwrap();
        let took = runtime
            .block_on(fetch(&[&honest], &all, store))
            .as_secs_f64();
        say(&format!(
            "{name} into a store: {:.0} blocks/s",
            count as f64 / took
        ));
        for manner in [
            Manner::Wrong,
            Manner::Endless,
            Manner::Drip(Duration::from_millis(100)),
            Manner::Hang,
            Manner::Reset,
            Manner::Status(500, ""),
            Manner::Status(429, ""),
            Manner::Status(404, ""),
            Manner::Html,
        ] {
            let hostile = Hostile::start(manner.clone(), &bodies);
            let took = runtime.block_on(fetch(&[&hostile, &honest], &all, Arc::new(())));
            let ratio = alone / took.as_secs_f64();
            say(&format!(
                "{name} beside {manner:?}: {ratio:.2} of the honest one alone, {} asked",
                hostile.requests()
            ));
            assert!(ratio > 0.4, "{name} {manner:?}: {ratio}");
        }
    }
}
