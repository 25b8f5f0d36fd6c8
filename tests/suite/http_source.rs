//! Plain web servers as a source over real sockets: whatever they know or send, only right bytes come through.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use manifs::block::{BLOCK_BYTES, BlockRef, Digest, FileRef, block_len};
use manifs::fetch::{FetchError, Fetcher, Options, Priority};
use manifs::net::{AddressFilter, Client};
use manifs::source::{BlockSource, Http, SourceError, Spill, TreePlace, Want};

use crate::common::hostile::{Hostile, Manner};

/// Where the trees lie on the server.
const BASE: &str = "/pub/mirror";

const TREE: &str = "acme-tools-1.0.0";

fn client(allow: &[&str]) -> Client {
    let allow = allow.iter().map(|entry| entry.parse().unwrap()).collect();
    Client::new(manifs::net::Options {
        filter: AddressFilter::new(allow),
        ..Default::default()
    })
}

fn mirror(server: &Hostile) -> Http {
    Http::new(&format!("{}{BASE}/", server.url()), client(&["127.0.0.1"]))
}

fn bytes(seed: u8, len: usize) -> Bytes {
    let pattern = (0..=250_u8).cycle();
    pattern
        .map(|byte| byte.wrapping_mul(31) ^ seed)
        .take(len)
        .collect()
}

/// The blocks of a file, each with its want.
fn wants(path: &str, content: &Bytes) -> Vec<(Want, Bytes)> {
    let size = content.len() as u64;
    let file = FileRef {
        id: Digest::of(content),
        size,
    };
    (0..size.div_ceil(BLOCK_BYTES))
        .map(|index| {
            let offset = index * BLOCK_BYTES;
            let from = usize::try_from(offset).unwrap();
            let bytes = content.slice(from..from + block_len(size, index) as usize);
            let want = Want {
                place: Some(TreePlace {
                    tree: TREE.into(),
                    path: path.as_bytes().into(),
                    offset,
                    mirrors: Arc::default(),
                    gateways: Arc::default(),
                }),
                ..Want::new(BlockRef {
                    file,
                    index,
                    digest: Digest::of(&bytes),
                })
            };
            (want, bytes)
        })
        .collect()
}

fn server(manner: Manner, files: &[(&str, &Bytes)]) -> Hostile {
    let server = Hostile::start(manner, &[]);
    for (path, content) in files {
        server.add_file(&format!("{BASE}/{TREE}/{path}"), (*content).clone());
    }
    server
}

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

const MIB: usize = 1 << 20;

#[tokio::test]
async fn files_of_every_size_come_by_ranges_over_few_connections() {
    let sizes = [1, 5000, MIB - 1, MIB, MIB + 1, 3 * MIB, 6 * MIB + 77];
    let files: Vec<_> = (0..)
        .zip(sizes)
        .map(|(seed, len)| bytes(seed, len))
        .collect();
    let names: Vec<String> = sizes.iter().map(|size| format!("d/{size} b")).collect();
    let served: Vec<_> = names
        .iter()
        .zip(&files)
        .map(|(name, file)| (name.replace(' ', "%20"), file))
        .collect();
    let served: Vec<(&str, &Bytes)> = served.iter().map(|(name, file)| (&**name, *file)).collect();
    let server = server(Manner::Ranges, &served);
    let source = mirror(&server);
    let spill = Spill::ignored();
    let mut requests = 0;
    for (name, file) in names.iter().zip(&files) {
        for (want, bytes) in wants(name, file) {
            let got = source.fetch(&want, &spill).await.unwrap();
            assert!(got == bytes, "{name} {}", want.block.index);
            requests += 1;
        }
    }
    assert_eq!((server.requests(), server.connections()), (requests, 1));
    let sum: usize = sizes.iter().sum();
    assert_eq!(server.bytes(), sum as u64, "nothing comes twice");
    let missing = source.fetch(&wants("none", &files[0])[0].0, &spill).await;
    assert!(
        matches!(missing, Err(SourceError::NotFound { .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn a_server_without_ranges_gives_small_files_and_is_not_bothered_with_large_ones() {
    let (small, large) = (bytes(1, 3 * MIB + 5), bytes(2, 9 * MIB));
    let server = server(Manner::Honest, &[("small", &small), ("large", &large)]);
    let source = mirror(&server);
    let spill = Spill::ignored();
    for (want, bytes) in wants("small", &small) {
        assert!(source.fetch(&want, &spill).await.unwrap() == bytes);
    }
    let before = server.requests();
    for (number, (want, bytes)) in wants("large", &large).into_iter().enumerate() {
        match source.fetch(&want, &spill).await {
            Ok(got) => assert!(number == 0 && got == bytes, "{number}"),
            Err(error) => assert!(
                number > 0 && matches!(error, SourceError::NotFound { .. }),
                "{number}: {error}"
            ),
        }
    }
    assert_eq!(server.requests() - before, 1, "it is remembered");
}

#[tokio::test]
async fn each_misbehaviour_is_harmless_and_of_the_right_kind() {
    let file = bytes(3, 5 * MIB + 5);
    let server = server(Manner::Ranges, &[("f", &file)]);
    let wants = wants("f", &file);
    let (want, right) = &wants[2];
    let ask = async |manner: Manner| {
        server.behave(manner);
        // A new one each time: what it remembers of another must not matter.
        mirror(&server).fetch(want, &Spill::ignored()).await
    };
    assert!(ask(Manner::Ranges).await.unwrap() == *right);
    assert!(
        ask(Manner::OtherAge).await.unwrap() == *right,
        "the digest decides"
    );
    for manner in [
        Manner::OtherRange,
        Manner::NoContentRange,
        Manner::Multipart,
        Manner::Honest,
        Manner::Html,
        Manner::Status(404, ""),
        Manner::Status(403, ""),
        Manner::Status(416, "Content-Range: bytes */7\r\n"),
    ] {
        let got = ask(manner.clone()).await;
        assert!(
            matches!(got, Err(SourceError::NotFound { .. })),
            "{manner:?}: {got:?}"
        );
    }
    for manner in [Manner::Long, Manner::Endless, Manner::Huge] {
        let got = ask(manner.clone()).await.unwrap();
        assert_eq!(got.len(), MIB + 1, "{manner:?}");
    }
    for manner in [
        Manner::LyingRange,
        Manner::Wrong,
        Manner::Short,
        Manner::Gzip,
    ] {
        // Handed over as they are, to be found out.
        let got = ask(manner.clone()).await;
        assert!(got.is_err() || got.unwrap() != *right, "{manner:?}");
    }
    for manner in [
        Manner::Cut,
        Manner::Reset,
        Manner::Garbage,
        Manner::EndlessHeaders,
        Manner::Status(500, ""),
        Manner::Status(429, "Retry-After: 3\r\n"),
        Manner::Status(503, ""),
    ] {
        let got = ask(manner.clone()).await;
        assert!(
            matches!(got, Err(SourceError::Unavailable { .. })),
            "{manner:?}: {got:?}"
        );
    }
    let got = ask(Manner::Status(401, "")).await;
    assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
}

#[tokio::test]
async fn beside_an_honest_mirror_no_misbehaviour_matters() {
    let file = bytes(4, 5 * MIB + 5);
    let small = bytes(5, 40_000);
    let files = [("f", &file), ("small", &small)];
    let honest = server(Manner::Ranges, &files);
    let mut all = wants("f", &file);
    all.extend(wants("small", &small));
    let own = [
        Manner::Honest,
        Manner::OtherRange,
        Manner::OtherAge,
        Manner::LyingRange,
        Manner::NoContentRange,
        Manner::Multipart,
        Manner::Status(429, "Retry-After: 60\r\n"),
        Manner::Status(401, ""),
        Manner::Redirect("http://10.0.0.1/".to_owned()),
    ];
    let lies = Manner::lies(Duration::from_millis(100));
    for manner in own.into_iter().chain(lies) {
        let hostile = server(manner.clone(), &files);
        let fetcher = fetcher(
            vec![Arc::new(mirror(&hostile)), Arc::new(mirror(&honest))],
            20,
        );
        let start = Instant::now();
        let gets = all
            .iter()
            .map(|(want, _)| fetcher.get(want.clone(), Priority::Foreground));
        for ((_, right), got) in all.iter().zip(join_all(gets).await) {
            assert!(got.unwrap().bytes() == right, "{manner:?}");
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{manner:?} took {took:?}");
        fetcher.close().await;
    }
}

#[tokio::test]
async fn a_stale_tree_alone_is_no_honest_source_and_other_trees_of_the_host_are_read() {
    let file = bytes(6, 40_000);
    let server = server(Manner::Ranges, &[("wrong", &bytes(7, 40_000))]);
    let other = format!("{BASE}/other-1.0.0/right");
    let fetcher = fetcher(vec![Arc::new(mirror(&server))], 1);
    let wrong = wants("wrong", &file)[0].0.clone();
    let failed = fetcher.get(wrong, Priority::Foreground).await.unwrap_err();
    assert!(matches!(failed, FetchError::NoHonest { .. }), "{failed}");
    // A failure is remembered by digest; this is another one.
    let right = bytes(9, 30_000);
    server.add_file(&other, right.clone());
    let mut want = wants("right", &right)[0].0.clone();
    if let Some(place) = &mut want.place {
        place.tree = "other-1.0.0".into();
    }
    let start = Instant::now();
    let got = fetcher.get(want, Priority::Foreground).await.unwrap();
    assert!(got.bytes() == &right);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    fetcher.close().await;
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_each_is_filtered() {
    let file = bytes(10, 2 * MIB);
    let inner = server(Manner::Ranges, &[("f", &file)]);
    let goal = format!("{}{BASE}/{TREE}/f", inner.url());
    let outer = Hostile::start(Manner::Redirect(goal), &[]);
    let (want, right) = &wants("f", &file)[1];
    let got = mirror(&outer).fetch(want, &Spill::ignored()).await;
    assert!(got.unwrap() == *right, "the range goes along");
    // The configuration names the mirror's host and port only.
    let host = outer.url().trim_start_matches("http://").to_owned();
    let before = inner.connections();
    let named = Http::new(&outer.url(), client(&[&host]));
    let got = named.fetch(want, &Spill::ignored()).await;
    assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
    assert_eq!(inner.connections(), before);
    outer.behave(Manner::Redirect(outer.url()));
    let asked = outer.requests();
    let got = mirror(&outer).fetch(want, &Spill::ignored()).await;
    assert!(matches!(got, Err(SourceError::NotFound { .. })), "{got:?}");
    assert_eq!(outer.requests() - asked, 4);
}

#[tokio::test]
async fn a_hinted_mirror_on_this_machine_is_not_dialled() {
    let file = bytes(11, 100);
    let server = server(Manner::Ranges, &[("f", &file)]);
    let base = format!("{}{BASE}", server.url());
    let mut want = wants("f", &file)[0].0.clone();
    let hinted = Http::hinted(&base, client(&[]));
    assert!(!hinted.serves(&want));
    if let Some(place) = &mut want.place {
        place.mirrors = [base].into();
    }
    assert!(hinted.serves(&want));
    let got = hinted.fetch(&want, &Spill::ignored()).await;
    assert!(matches!(got, Err(SourceError::Refused { .. })), "{got:?}");
    assert_eq!(server.connections(), 0);
}
