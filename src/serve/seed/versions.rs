//! Which versions are seeded: complete ones, with a torrent in their manifest, that somebody wants seeded.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Announcer, Content, Seeds, Span};
use crate::block::BlockRef;
use crate::catalog::{CatalogError, Kind};
use crate::install::{Installer, Listed, Listing, Tree, catalog_file, torrent_layout};
use crate::manifest::{CatalogBlocks, PackageVersion, Pattern};
use crate::state::State;
use crate::store::Store;
use crate::torrent::{Info, Layout, Outline, Place, block_at, rebuild};

/// How often it is looked whether something has become complete, or is so no longer.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The parts of a home that seeding reads.
#[derive(Clone)]
pub struct Parts {
    /// Holds the blocks.
    pub store: Arc<Store>,
    /// Says which versions are trusted.
    pub listing: Arc<Listing>,
    /// Opens their catalogs.
    pub installer: Arc<Installer>,
    /// Says what was published here and what is to be seeded, and keeps info dictionaries.
    pub state: Arc<State>,
}

/// What is wanted, besides versions that were marked one by one.
#[derive(Clone, Default)]
pub struct Wanted {
    /// Everything that was published here.
    pub own: bool,
    /// Packages of these names.
    pub patterns: Vec<Pattern>,
}

/// A version that is seeded.
struct Known {
    listed: Arc<Listed>,
    tree: Arc<Tree>,
    over: CancellationToken,
    trackers: Arc<[String]>,
    announced: CancellationToken,
}

/// Keeps the table of seeds as the listing, the store and the configuration want it.
pub struct Versions {
    parts: Parts,
    seeds: Arc<Seeds>,
    announcer: Announcer,
    wanted: ArcSwap<Wanted>,
    look: Arc<Notify>,
    known: Mutex<HashMap<[u8; 20], Known>>,
    /// What the store had lost when it was last looked at.
    lost: Mutex<(u64, u64)>,
    /// Info dictionaries are made one at a time: each is a pass over all bytes of a version.
    making: Arc<Mutex<()>>,
}

impl Versions {
    /// Makes an empty table's keeper; nothing happens before [`Versions::run`].
    pub fn new(
        parts: Parts,
        seeds: Arc<Seeds>,
        announcer: Announcer,
        wanted: Wanted,
    ) -> Arc<Versions> {
        let look = Arc::new(Notify::new());
        crate::serve::share::follow(&parts.listing, Arc::downgrade(&look));
        Arc::new(Versions {
            parts,
            seeds,
            announcer,
            wanted: ArcSwap::from_pointee(wanted),
            look,
            known: Mutex::default(),
            lost: Mutex::default(),
            making: Arc::default(),
        })
    }

    /// Wants others from now on.
    pub fn set_wanted(&self, wanted: Wanted) {
        self.wanted.store(Arc::new(wanted));
        self.look_again();
    }

    /// Has it looked at once what is to be seeded.
    pub fn look_again(&self) {
        self.look.notify_one();
    }

    /// Returns what is seeded.
    pub fn seeds(&self) -> &Arc<Seeds> {
        &self.seeds
    }

    /// Keeps the table until `shutdown`, then tells the trackers.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.refresh().await;
            tokio::select! {
                () = self.look.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => {}
            }
        }
        self.announcer.close().await;
    }

    /// Brings the table up to date.
    async fn refresh(self: &Arc<Self>) {
        let wanted = self.wanted_now().await;
        self.drop_unwanted(&wanted).await;
        for (info_hash, listed) in wanted {
            let known = self.known.lock().contains_key(&info_hash);
            if known {
                self.follow_trackers(&info_hash);
            } else if let Err(error) = self.begin(info_hash, listed.clone()).await {
                tracing::debug!(package = %listed.package(), %error, "not seeded yet");
            }
        }
    }

    /// Returns the listed versions that are to be seeded, complete or not.
    async fn wanted_now(self: &Arc<Self>) -> HashMap<[u8; 20], Arc<Listed>> {
        let this = Arc::clone(self);
        let found = tokio::task::spawn_blocking(move || {
            let wanted = this.wanted.load();
            let own: BTreeSet<PackageVersion> = match wanted.own {
                true => match this.parts.state.published().versions() {
                    Ok(own) => own.into_iter().collect(),
                    Err(error) => {
                        tracing::warn!(%error, "what was published here cannot be listed");
                        BTreeSet::new()
                    }
                },
                false => BTreeSet::new(),
            };
            let is_wanted = |package: &PackageVersion| {
                let mut patterns = wanted.patterns.iter();
                own.contains(package)
                    || this.parts.state.seeding().contains(package)
                    || patterns.any(|pattern| pattern.matches(&package.name))
            };
            let all = this.parts.listing.all();
            let all = all.into_iter().flat_map(|(_, versions, _)| versions);
            all.filter(|listed| !listed.is_gone() && is_wanted(listed.package()))
                .filter_map(|listed| Some((listed.manifest().torrent?.info_hash, listed)))
                .collect()
        });
        found.await.unwrap_or_default()
    }

    /// Ends what is no longer wanted, or ended by itself, or is complete no longer.
    async fn drop_unwanted(self: &Arc<Self>, wanted: &HashMap<[u8; 20], Arc<Listed>>) {
        self.known.lock().retain(|info_hash, known| {
            let stays = wanted
                .get(info_hash)
                .is_some_and(|listed| Arc::ptr_eq(listed, &known.listed))
                && !known.over.is_cancelled();
            if !stays {
                known.announced.cancel();
                if !known.over.is_cancelled() {
                    self.seeds.remove(info_hash);
                }
            }
            stays
        });
        let usage = self.parts.store.usage();
        let now = (usage.evicted, usage.damaged);
        if std::mem::replace(&mut *self.lost.lock(), now) == now {
            return;
        }
        let this = Arc::clone(self);
        let checked = tokio::task::spawn_blocking(move || {
            let known: Vec<_> = {
                let known = this.known.lock();
                let all = known.iter();
                all.map(|(info_hash, known)| (*info_hash, known.listed.clone(), known.tree.clone()))
                    .collect()
            };
            for (info_hash, listed, tree) in known {
                if !is_complete(&this.parts.store, &listed, &tree).unwrap_or(false) {
                    let reason = "something of it is not in the store any more";
                    this.seeds.end(&info_hash, reason);
                }
            }
            this.known.lock().retain(|_, known| {
                let over = known.over.is_cancelled();
                if over {
                    known.announced.cancel();
                }
                !over
            });
        });
        let _ = checked.await;
    }

    /// Announces to other trackers when the release index names others.
    fn follow_trackers(&self, info_hash: &[u8; 20]) {
        let mut all = self.known.lock();
        let Some(known) = all.get_mut(info_hash) else {
            return;
        };
        let trackers = Arc::clone(&known.listed.hints().trackers);
        if trackers != known.trackers {
            known.announced.cancel();
            known.announced = known.over.child_token();
            self.announcer
                .keep(*info_hash, &trackers, known.announced.clone());
            known.trackers = trackers;
        }
    }

    /// Seeds a version if all of it is here.
    async fn begin(
        self: &Arc<Self>,
        info_hash: [u8; 20],
        listed: Arc<Listed>,
    ) -> Result<(), String> {
        let store = &self.parts.store;
        if !store.complete(&catalog_file(listed.manifest())) {
            return Err("its catalog is not here".to_owned());
        }
        // All of the catalog is here, so that nothing is fetched.
        let tree = self.parts.installer.install(&listed).await;
        let tree = tree.map_err(|error| error.to_string())?;
        let (of, version, seen) = (Arc::clone(store), Arc::clone(&listed), Arc::clone(&tree));
        let complete = tokio::task::spawn_blocking(move || {
            let complete = is_complete(&of, &version, &seen)?;
            Ok::<_, CatalogError>(complete && torrent_layout(&seen)?.is_some())
        });
        match complete.await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err("it is not complete, or its torrent is another".to_owned()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
        let open = {
            let (parts, making) = (self.parts.clone(), Arc::clone(&self.making));
            let (listed, tree) = (Arc::downgrade(&listed), Arc::downgrade(&tree));
            move || open(&parts, &making, &listed, &tree)
        };
        let name = listed.package().to_string();
        let over = self.seeds.insert(info_hash, &name, Box::new(open));
        let trackers = Arc::clone(&listed.hints().trackers);
        let announced = over.child_token();
        self.announcer.keep(info_hash, &trackers, announced.clone());
        let known = Known {
            listed,
            tree,
            over,
            trackers,
            announced,
        };
        self.known.lock().insert(info_hash, known);
        tracing::info!(package = name, info_hash = hex::encode(info_hash), "seeded");
        Ok(())
    }
}

/// Returns whether every byte of a version seems to be in the store.
fn is_complete(store: &Store, listed: &Listed, tree: &Tree) -> Result<bool, CatalogError> {
    /// Ends the scan at the first file that is missing.
    enum End {
        Missing,
        Failed(CatalogError),
    }
    impl From<CatalogError> for End {
        fn from(error: CatalogError) -> Self {
            End::Failed(error)
        }
    }
    if !store.complete(&catalog_file(listed.manifest())) {
        return Ok(false);
    }
    healing(store, &listed.manifest().catalog, || {
        let scanned = tree.scan(0..tree.rows(), &mut |row| {
            let here = row.kind() != Kind::File || store.complete(&row.file());
            if here { Ok(()) } else { Err(End::Missing) }
        });
        match scanned {
            Ok(()) => Ok(true),
            Err(End::Missing) => Ok(false),
            Err(End::Failed(error)) => Err(error),
        }
    })
}

/// Reads of a catalog; where a block of it is here but not verified, as after a new mount, verifies it and reads again.
fn healing<T>(
    store: &Store,
    catalog: &CatalogBlocks,
    mut read: impl FnMut() -> Result<T, CatalogError>,
) -> Result<T, CatalogError> {
    // Each turn makes one more block readable.
    for _ in 0..=catalog.blocks.len() {
        let error = match read() {
            Err(error) => error,
            done => return done,
        };
        let healed = error.missing_block().and_then(|index| {
            let block = BlockRef {
                file: catalog.file(),
                index,
                digest: *catalog.blocks.get(usize::try_from(index).ok()?)?,
            };
            store.load(&block)
        });
        if healed.is_none() {
            return Err(error);
        }
    }
    read()
}

/// Opens a version for its first leecher.
fn open(
    parts: &Parts,
    making: &Arc<Mutex<()>>,
    listed: &Weak<Listed>,
    tree: &Weak<Tree>,
) -> Option<Arc<dyn Content>> {
    let (listed, tree) = (listed.upgrade()?, tree.upgrade()?);
    let layout = healing(&parts.store, &listed.manifest().catalog, || {
        torrent_layout(&tree)
    })
    .ok()??;
    Some(Arc::new(Version {
        blocks: listed.manifest().catalog.clone(),
        info_hash: listed.manifest().torrent?.info_hash,
        name: listed.package().tree_name(),
        tree,
        layout,
        store: Arc::clone(&parts.store),
        state: Arc::clone(&parts.state),
        making: Arc::clone(making),
    }))
}

/// The content of a version's torrent.
struct Version {
    tree: Arc<Tree>,
    layout: Arc<Layout>,
    blocks: CatalogBlocks,
    info_hash: [u8; 20],
    name: String,
    store: Arc<Store>,
    state: Arc<State>,
    making: Arc<Mutex<()>>,
}

impl Version {
    fn kept(&self) -> Option<Info> {
        let kept = self.state.seeding().info(&self.info_hash);
        kept.unwrap_or_else(|error| {
            tracing::debug!(%error, "an info dictionary that was kept");
            None
        })
    }

    /// Makes the info dictionary again, of what is stored, and keeps it.
    fn make(&self) -> Option<Info> {
        let mut load = |block: &_| {
            let loaded = self.store.load(block);
            loaded.ok_or_else(|| std::io::ErrorKind::NotFound.into())
        };
        let made = rebuild(
            &self.name,
            &*self.tree,
            &self.blocks,
            &self.layout,
            &mut load,
        );
        let made = match made {
            Ok(made) if made.hash() == self.info_hash => made,
            Ok(_) => {
                tracing::warn!(torrent = self.name, "its manifest names another info hash");
                return None;
            }
            Err(error) => {
                tracing::debug!(torrent = self.name, %error, "no info dictionary");
                return None;
            }
        };
        if let Err(error) = self.state.seeding().put_info(&made) {
            tracing::warn!(%error, "an info dictionary is not kept");
        }
        Some(made)
    }
}

impl Version {
    /// Returns what a range is made of; none when the catalog contradicts itself, which a valid one does not.
    fn read_spans(&self, range: Range<u64>) -> Result<Option<Vec<Span>>, CatalogError> {
        let mut spans = Vec::new();
        for run in self.layout.spans(range) {
            let mut left = run.bytes.end - run.bytes.start;
            let mut place = run.place;
            while left > 0 {
                let found = block_at(&self.tree, &self.blocks, place)?;
                let Some((span, length)) = span(found, left) else {
                    return Ok(None);
                };
                spans.push(span);
                left -= length;
                match &mut place {
                    Place::Catalog { offset } | Place::File { offset, .. } => *offset += length,
                    Place::Padding => {}
                }
            }
        }
        Ok(Some(spans))
    }
}

/// Returns what is found at a place, at most `left` bytes of it, and how many.
fn span(found: Option<(BlockRef, u64)>, left: u64) -> Option<(Span, u64)> {
    let Some((block, offset)) = found else {
        let length = u32::try_from(left).ok()?;
        return Some((Span::Zeros { length }, left));
    };
    let here = u64::from(block.len()).checked_sub(offset)?.min(left);
    let length = u32::try_from(here).ok().filter(|length| *length > 0)?;
    let offset = u32::try_from(offset).ok()?;
    let span = Span::Block {
        block,
        offset,
        length,
    };
    Some((span, here))
}

impl Content for Version {
    fn piece_bytes(&self) -> u64 {
        self.layout.piece_bytes()
    }

    fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    fn spans(&self, range: Range<u64>) -> Option<Vec<Span>> {
        healing(&self.store, &self.blocks, || self.read_spans(range.clone())).ok()?
    }

    fn info_bytes(&self) -> Option<u64> {
        match self.kept() {
            Some(info) => Some(info.bytes().len() as u64),
            None => {
                let outline = Outline::new(&self.name, &self.tree, &self.layout);
                outline.ok().map(|outline| outline.bytes())
            }
        }
    }

    fn info(&self) -> Option<Bytes> {
        if let Some(info) = self.kept() {
            return Some(info.bytes().clone());
        }
        let _turn = self.making.lock();
        // Whoever had the turn before may have made this one.
        let info = self.kept().or_else(|| self.make())?;
        Some(info.bytes().clone())
    }
}
