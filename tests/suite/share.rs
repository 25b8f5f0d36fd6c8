//! What a home shares: everything of the versions that it should, nothing else.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use manifs::block::Digest;
use manifs::catalog::Kind;
use manifs::fetch::Priority;
use manifs::install::{Tree, want_of};
use manifs::manifest::Manifest;
use manifs::net::{AddressFilter, Client};
use manifs::registry::{Http, HttpOptions, Moment, Registry};
use manifs::serve::gateway::{Gateway, Limits, Options, serve};
use manifs::serve::share::Share;
use manifs::source;
use manifs::unixfs::{AnyCid, Cid, car};
use tokio_util::sync::CancellationToken;

use crate::common::home::{Entry, Home, name, varied};
use crate::common::signed;
use crate::common::trees::{ask, get};

async fn start(share: &Arc<Share>) -> SocketAddr {
    let router = Gateway::new(Arc::clone(share) as _, &Options::default()).router();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(
        listener,
        router,
        Limits::default(),
        std::future::pending(),
    ));
    address
}

fn home() -> Home {
    Home::new(signed::trusting("*", &[&signed::key(1)], 1))
}

fn client() -> Client {
    Client::new(manifs::net::Options {
        filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Default::default()
    })
}

async fn car_of(address: SocketAddr, root: Cid) -> Vec<AnyCid> {
    let answer = get(address, &format!("/ipfs/{root}?format=car")).await;
    assert_eq!(answer.status, 200);
    assert!(answer.whole, "cut off");
    let mut reader = car::Reader::new(&answer.body[..]).unwrap();
    let mut found = Vec::new();
    while let Some(section) = reader.read().unwrap() {
        found.push(section.cid);
    }
    found
}

fn catalog_cid(manifest: &Manifest) -> Cid {
    let file = manifest.catalog.file();
    if manifest.catalog.blocks.len() == 1 {
        Cid::raw(file.id)
    } else {
        Cid::dag_pb(file.id)
    }
}

/// Every CID of an installed tree that its rows name.
fn named(tree: &Tree) -> HashSet<Cid> {
    (0..tree.rows())
        .map(|number| tree.row(number).unwrap().cid())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_version_is_served_by_digest() {
    let publisher = home();
    // Enough entries for two levels of shards, and for a catalog of several blocks.
    let manifest = publisher.publish("tool@1.0.0", &varied(10_000), 1).await;
    publisher.update().await;
    let share = publisher.share(&["*"]);
    let address = start(&share).await;
    // Not before it is ready.
    let early = get(address, "/packages/tool/1.0.0/manifest.json").await;
    assert_eq!(early.status, 404);
    share.refresh().await;
    assert_eq!(
        get(address, "/packages/tool/1.0.0/manifest.json")
            .await
            .status,
        200
    );

    let listed = publisher.listing.find(&name("tool"), None).unwrap();
    let tree = publisher.installer.install(&listed).await.unwrap();
    let found: HashSet<AnyCid> = car_of(address, manifest.root).await.into_iter().collect();
    for cid in named(&tree) {
        assert!(found.contains(&cid.into()), "{cid}");
    }
    // Shards, inner nodes and leaves are more than the rows.
    assert!(found.len() > named(&tree).len() + 20);
    let catalog = car_of(address, catalog_cid(&manifest)).await;
    assert_eq!(catalog.len(), manifest.catalog.blocks.len() + 1);

    // Each of them is served one by one too, in whatever order somebody asks, and HEAD says how long it is.
    for cid in found.iter().step_by(97).chain(&catalog) {
        let path = format!("/ipfs/{cid}?format=raw");
        let raw = get(address, &path).await;
        assert!(cid.names(&raw.body).unwrap());
        let head = ask(address, "HEAD", &path, "").await;
        assert_eq!(
            head.header("content-length"),
            Some(raw.body.len().to_string().as_str())
        );
    }
    // Paths lead through shards and inner nodes.
    let by_path = get(address, &format!("/ipfs/{}/large/entry%20number%20000777%20with%20a%20name%20that%20takes%20some%20room?format=raw", manifest.root)).await;
    assert_eq!(by_path.body, b"777");
    let empty = get(
        address,
        &format!("/ipfs/{}/empty?format=raw", manifest.root),
    )
    .await;
    assert_eq!((empty.status, empty.body.len()), (200, 0));

    // A new run finds the index filled and the catalog not yet opened.
    listed_forgets(&publisher);
    let share = publisher.share(&["*"]);
    share.refresh().await;
    let address = start(&share).await;
    assert_eq!(car_of(address, manifest.root).await.len(), found.len());
}

fn listed_forgets(home: &Home) {
    home.listing.forget_trees();
    home.store.forget_verified();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_shared_is_served() {
    let publisher = home();
    let only = |text: &str| {
        [("file".to_owned(), Entry::File(text.as_bytes().to_vec()))]
            .into_iter()
            .collect()
    };
    let open = publisher.publish("acme/open@1.0.0", &only("open"), 1).await;
    let secret = publisher
        .publish("acme/secret@1.0.0", &only("secret"), 1)
        .await;
    publisher.update().await;
    let share = publisher.share(&["acme/open"]);
    share.refresh().await;
    let address = start(&share).await;
    let status = async |path: String| get(address, &path).await.status;
    let raw = |bytes: &[u8]| format!("/ipfs/{}?format=raw", Cid::raw(Digest::of(bytes)));
    assert_eq!(status(raw(b"open")).await, 200);
    assert_eq!(
        status(raw(b"secret")).await,
        404,
        "the store has it, and nobody may know"
    );
    assert_eq!(
        status(format!("/ipfs/{}?format=car", secret.root)).await,
        404
    );
    assert_eq!(status(format!("/ipfs/{}?format=car", open.root)).await, 200);
    assert_eq!(
        status("/packages/acme/open/index.json".to_owned()).await,
        200
    );
    assert_eq!(
        status("/packages/acme/secret/index.json".to_owned()).await,
        404
    );
    assert_eq!(
        status("/packages/acme/secret/1.0.0/manifest.json".to_owned()).await,
        404
    );
    let names = get(address, "/packages.json").await.body;
    let names = String::from_utf8(names).unwrap();
    assert!(
        names.contains("acme/open") && !names.contains("secret"),
        "{names}"
    );

    share.set_patterns(vec!["acme/*".parse().unwrap()]).await;
    assert_eq!(status(raw(b"secret")).await, 200);
    share.set_patterns(Vec::new()).await;
    assert_eq!(status(raw(b"open")).await, 404);
    // What was published here is shared whatever the patterns say.
    let key = signed::key(1);
    let envelope = signed::sign(open.clone(), &[&key]);
    publisher.state.published().put(&envelope).unwrap();
    share.refresh().await;
    assert_eq!(status(raw(b"open")).await, 200);
    assert_eq!(status(raw(b"secret")).await, 404);

    // What is no longer trusted is not handed on either.
    publisher
        .updater
        .set_policy(signed::trusting("*", &[&signed::key(2)], 1));
    publisher.updater.restore().await.unwrap();
    assert_eq!(status(raw(b"open")).await, 404);
    assert_eq!(
        status("/packages/acme/open/1.0.0/manifest.json".to_owned()).await,
        404
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_not_sent() {
    let publisher = home();
    publisher.publish("tool@1.0.0", &varied(0), 1).await;
    publisher.update().await;
    let share = publisher.share(&["*"]);
    share.refresh().await;
    let address = start(&share).await;
    let path = format!("/ipfs/{}?format=raw", Cid::raw(Digest::of(b"hello\n")));
    assert_eq!(get(address, &path).await.body, b"hello\n");
    let id = Digest::of(b"hello\n").to_string();
    let file = publisher
        .directory
        .path()
        .join("store/r")
        .join(&id[..2])
        .join(&id);
    std::fs::write(&file, b"hellp\n").unwrap();
    publisher.store.forget_verified();
    let answer = get(address, &path).await;
    assert_eq!(answer.status, 404, "{:?}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_home_needs_one_url_and_sees_what_is_new_within_two_seconds() {
    let publisher = home();
    publisher.publish("tool@1.0.0", &varied(300), 1).await;
    publisher.update().await;
    let share = publisher.share(&["*"]);
    let stop = CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&share).run(stop.clone()));
    let address = start(&share).await;
    let url = format!("http://{address}");

    let reader = home();
    reader
        .fetcher
        .set_sources(vec![Arc::new(source::Gateway::new(&url, client()))]);
    let registry = Http::new(&url, client(), HttpOptions::default());
    let mut since = registry.changed(Moment::default()).await;
    assert!(registry.is_daemon());
    let wait_for = async |version: &str, since: &mut Moment| {
        let version = version.parse().unwrap();
        loop {
            reader.updater.update(&registry).await.unwrap();
            if let Some(listed) = reader.listing.find(&name("tool"), Some(&version)) {
                break listed;
            }
            *since = registry.changed(*since).await;
        }
    };
    let limit = Duration::from_secs(20);
    let listed = tokio::time::timeout(limit, wait_for("1.0.0", &mut since))
        .await
        .unwrap();
    let tree = reader.installer.install(&listed).await.unwrap();
    let there = publisher.listing.find(&name("tool"), None).unwrap();
    let there = publisher.installer.install(&there).await.unwrap();
    for number in 0..tree.rows() {
        let row = tree.row(number).unwrap();
        assert_eq!(row.id(), there.row(number).unwrap().id());
        if row.kind() != Kind::File {
            continue;
        }
        for index in 0..row.blocks() {
            let block = tree.block(&row, index).unwrap();
            if !block.is_empty() {
                let want = want_of(&listed, &tree, number, block).unwrap();
                reader
                    .fetcher
                    .get(want, Priority::Foreground)
                    .await
                    .unwrap();
            }
        }
    }

    // A new version: published, updated on its own machine, and seen over there.
    publisher.publish("tool@1.1.0", &varied(301), 2).await;
    publisher.update().await;
    let told = std::time::Instant::now();
    tokio::time::timeout(limit, wait_for("1.1.0", &mut since))
        .await
        .unwrap();
    assert!(
        told.elapsed() < Duration::from_secs(2),
        "{:?}",
        told.elapsed()
    );
    stop.cancel();
    running.await.unwrap();
}
