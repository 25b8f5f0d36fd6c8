//! Which versions are seeded: complete ones, with a torrent, that are wanted, trusted and still all here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use manifs::block::BlockRef;
use manifs::catalog::Kind;
use manifs::fetch::Priority;
use manifs::install::{Listed, Tree, want_of};
use manifs::manifest::TrustPolicy;
use manifs::net::{Client, Options as NetOptions};
use manifs::publish::Options;
use manifs::serve::seed::{Announcer, Limits, Parts, Seeds, Versions, Wanted};
use manifs::source::{BlockSource, SourceError, SourceKind, Spill, Want};
use manifs::store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::home;
use crate::common::publishing::{Home, tempdir, trusting};
use crate::common::signed::package;

const VERSION: &str = "acme/tool@1.0.0";

/// Gives what the publisher's store holds.
struct Publisher(Arc<Store>);

#[async_trait]
impl BlockSource for Publisher {
    fn name(&self) -> &str {
        "publisher"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Local
    }

    async fn fetch(&self, want: &Want, _: &Spill) -> Result<Bytes, SourceError> {
        let block = self.0.load(&want.block);
        let block = block.ok_or_else(|| SourceError::not_found("not of the version"))?;
        Ok(block.bytes().clone())
    }
}

/// A reader's home that may seed.
struct Scene {
    reader: home::Home,
    listed: Arc<Listed>,
    tree: Arc<Tree>,
    info_hash: [u8; 20],
    seeds: Arc<Seeds>,
    versions: Arc<Versions>,
    stop: CancellationToken,
    running: JoinHandle<()>,
    _publisher: Home,
}

impl Scene {
    async fn new(wanted: Wanted) -> Scene {
        let (publisher, source) = (Home::new(), tempdir());
        std::fs::write(source.path().join("small"), [1; 1000]).unwrap();
        std::fs::write(source.path().join("large"), vec![2; 3_000_000]).unwrap();
        let options = Options::new(package(VERSION));
        publisher.publish(source.path(), options).await.unwrap();
        let reader = home::Home::new(TrustPolicy::clone(&trusting(1)));
        let store = Publisher(Arc::clone(&publisher.store));
        reader.fetcher.set_sources(vec![Arc::new(store)]);
        reader.updater.update(&*publisher.registry).await.unwrap();
        let name = package(VERSION).name;
        let listed = reader.listing.find(&name, None).unwrap();
        let tree = reader.installer.install(&listed).await.unwrap();
        let seeds = Seeds::new(Arc::clone(&reader.store), Limits::default(), None);
        let stop = CancellationToken::new();
        let client = Client::new(NetOptions::default());
        let announcer = Announcer::new(
            Arc::clone(&seeds),
            Arc::new(ArcSwap::from_pointee(client)),
            "127.0.0.1:1".parse().unwrap(),
            1,
            stop.clone(),
        );
        let parts = Parts {
            store: Arc::clone(&reader.store),
            listing: Arc::clone(&reader.listing),
            installer: Arc::clone(&reader.installer),
            state: Arc::clone(&reader.state),
        };
        let versions = Versions::new(parts, Arc::clone(&seeds), announcer, wanted);
        let running = tokio::spawn(Arc::clone(&versions).run(stop.clone()));
        Scene {
            info_hash: listed.manifest().torrent.unwrap().info_hash,
            reader,
            listed,
            tree,
            seeds,
            versions,
            stop,
            running,
            _publisher: publisher,
        }
    }

    fn blocks(&self) -> Vec<(u32, BlockRef)> {
        let mut blocks = Vec::new();
        for number in 0..self.tree.rows() {
            let row = self.tree.row(number).unwrap();
            if row.kind() == Kind::File {
                let all = 0..row.blocks();
                blocks.extend(all.map(|at| (number, self.tree.block(&row, at).unwrap())));
            }
        }
        blocks
    }

    /// Fetches some of the version's blocks into the store.
    async fn fetch(&self, blocks: &[(u32, BlockRef)]) {
        for (row, block) in blocks {
            let want = want_of(&self.listed, &self.tree, *row, *block).unwrap();
            let fetched = self.reader.fetcher.get(want, Priority::Warm).await;
            fetched.unwrap();
        }
    }

    fn is_seeded(&self) -> bool {
        self.seeds.contains(&self.info_hash)
    }

    /// Waits until the table has been looked through, with this outcome.
    async fn until(&self, what: &str, done: impl Fn(&Scene) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.versions.look_again();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
        self.reader.fetcher.close().await;
    }
}

fn all() -> Wanted {
    Wanted {
        own: true,
        patterns: vec!["acme/*".parse().unwrap()],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_seeded_while_all_of_it_is_here() {
    let scene = Scene::new(all()).await;
    let blocks = scene.blocks();
    assert_eq!(blocks.len(), 4);
    scene.fetch(&blocks[1..]).await;
    assert!(!scene.is_seeded());
    scene.fetch(&blocks[..1]).await;
    scene.until("it is complete", Scene::is_seeded).await;
    let report = scene.seeds.report();
    assert_eq!((report.len(), &*report[0].name), (1, VERSION));
    assert!(scene.seeds.problems().is_empty());

    // Something of it goes, and comes again.
    let (_, lost) = blocks[3];
    assert!(scene.reader.store.evict(&lost.file) > 0);
    scene
        .until("it is not complete", |scene| !scene.is_seeded())
        .await;
    let problems = scene.seeds.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with(VERSION) && problems[0].contains("not in the store"));
    scene.fetch(&blocks).await;
    scene.until("it is complete again", Scene::is_seeded).await;
    assert!(scene.seeds.problems().is_empty());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_seeded_while_somebody_wants_it_and_it_is_trusted() {
    let scene = Scene::new(Wanted::default()).await;
    scene.fetch(&scene.blocks()).await;
    scene.reader.state.seeding().add(&package(VERSION)).unwrap();
    scene.until("it was marked", Scene::is_seeded).await;
    scene
        .reader
        .state
        .seeding()
        .remove(&package(VERSION))
        .unwrap();
    scene
        .until("the mark is gone", |scene| !scene.is_seeded())
        .await;
    assert!(scene.seeds.problems().is_empty(), "nothing was lost");
    scene.versions.set_wanted(all());
    scene.until("a pattern names it", Scene::is_seeded).await;
    let other = Wanted {
        own: true,
        patterns: vec!["other/*".parse().unwrap()],
    };
    scene.versions.set_wanted(other);
    scene
        .until("no pattern names it", |scene| !scene.is_seeded())
        .await;
    scene.versions.set_wanted(all());
    scene
        .until("a pattern names it again", Scene::is_seeded)
        .await;

    // Trust in its key is withdrawn: it is listed no more.
    scene.reader.updater.set_policy(TrustPolicy::default());
    scene.reader.updater.restore().await.unwrap();
    scene
        .until("nobody trusts it", |scene| !scene.is_seeded())
        .await;
    scene.end().await;
}
