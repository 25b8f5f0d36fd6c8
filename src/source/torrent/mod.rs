//! The torrent swarm as a source: blocks from BitTorrent peers, on demand and in bulk.
//!
//! A want says in which torrent its block lies and where, so no metainfo is needed: the info hash is enough to shake hands,
//! offset and piece length to ask. What is asked for is just the block's bytes, in requests of 16 KiB.
//!
//! A want's way: [`judge`] cuts it into parts and hands them to the [`swarm`], whose [`state`] decides which
//! [`connection`] asks for which part; [`judge`] checks what came together, and finds who lied. The [`book`] knows the
//! peers, [`link`] what is known of one connection, [`pace`] how much it is asked for at once, [`wire`] the words.
//!
//! Nothing here trusts a peer: messages are bounded before they are read, silent peers are replaced, and bytes are only
//! ever strangers that `fetch` verifies. The swarm knows nothing of files, catalogs or other sources.

mod book;
mod connection;
mod finders;
mod job;
mod judge;
mod link;
mod pace;
mod state;
#[cfg(test)]
mod state_tests;
mod swarm;
mod trackers;
mod wire;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{BlockSource, PeerReport, SourceError, SourceKind, Spill, Torrent, Want};
use crate::net::Client;
use crate::torrent::peer_id;
pub use finders::{ByDht, Finders};
use swarm::Swarm;
pub use trackers::Trackers;

/// Wants in flight at first. A swarm is many peers, and each can be asked for many things at once.
const PARALLEL: usize = 64;

/// Connections to peers of all swarms.
const CONNECTIONS_MAX: usize = 200;

/// Swarms that are remembered, with the peers that lied.
const SWARMS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Peers that are told of, who gave most first.
const PEERS_TOLD: usize = 64;

/// How long peers may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until hands have been shaken.
    pub handshake: Duration,
    /// Without an answer while there are requests at the peer.
    pub stall: Duration,
    /// Until it lets us ask; Transmission decides that every 10 s.
    pub choked: Duration,
    /// Until a connection that nothing is asked of is closed.
    pub idle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            stall: Duration::from_secs(10),
            choked: Duration::from_secs(60),
            idle: Duration::from_secs(300),
        }
    }
}

/// Peers that somebody told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who told, if it takes us for one of them now and wants to hear when that is over: the URL of a tracker.
    pub by: Option<String>,
    /// Where they are.
    pub peers: Vec<SocketAddr>,
}

/// Somebody who knows peers of a torrent: its trackers, the hash table.
#[async_trait]
pub trait Finder: Send + Sync + 'static {
    /// Returns whether it can know peers of `torrent`.
    fn serves(&self, torrent: &Torrent) -> bool {
        !torrent.trackers.is_empty()
    }

    /// Looks for peers of `torrent`, and tells of those it finds. `known` are those who have told before and have not been
    /// left since. Returns when to ask again, if somebody said so.
    async fn find(
        &self,
        torrent: &Torrent,
        peer_id: [u8; 20],
        known: &[String],
        told: &(dyn Fn(Found) + Send + Sync),
    ) -> Option<Duration>;

    /// Says to those who are `known` that nobody reads `torrent` here any more.
    async fn leave(&self, _torrent: &Torrent, _peer_id: [u8; 20], _known: &[String]) {}
}

/// What the configuration says.
#[derive(Clone)]
pub struct Settings {
    /// Knows what may be dialled, and the rate cap.
    pub client: Client,
    /// Peers of every torrent, `host:port`.
    pub peers: Vec<String>,
    /// Who finds more.
    pub finder: Option<Arc<dyn Finder>>,
}

/// All swarms of a home.
pub struct Swarms {
    shared: Arc<Shared>,
}

struct Prepared {
    client: Client,
    peers: Vec<book::Peer>,
    finder: Option<Arc<dyn Finder>>,
}

impl From<Settings> for Prepared {
    fn from(settings: Settings) -> Self {
        Prepared {
            client: settings.client,
            peers: settings
                .peers
                .iter()
                .map(|peer| peer.as_str().into())
                .collect(),
            finder: settings.finder,
        }
    }
}

struct Shared {
    settings: ArcSwap<Prepared>,
    patience: Patience,
    peer_id: [u8; 20],
    connections: Arc<Semaphore>,
    swarms: Mutex<LruCache<[u8; 20], Arc<Swarm>>>,
    liars: Arc<book::Liars>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Shared {
    /// Closes the connections of the swarm that was not needed for the longest time.
    fn make_room(&self) {
        let swarms: Vec<Arc<Swarm>> = {
            let swarms = self.swarms.lock();
            swarms
                .iter()
                .rev()
                .map(|(_, swarm)| Arc::clone(swarm))
                .collect()
        };
        for swarm in swarms {
            if swarm.rest() {
                return;
            }
        }
    }
}

impl Swarms {
    /// Makes the source. Nothing is dialled before something is wanted.
    pub fn new(settings: Settings, patience: Patience) -> Arc<Self> {
        Arc::new(Swarms {
            shared: Arc::new(Shared {
                settings: ArcSwap::from_pointee(settings.into()),
                patience,
                peer_id: peer_id(),
                connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
                swarms: Mutex::new(LruCache::new(SWARMS_MAX)),
                liars: Arc::default(),
                tasks: TaskTracker::new(),
                closed: CancellationToken::new(),
            }),
        })
    }

    /// Takes a new configuration; connections and what is known of peers stay.
    pub fn configure(&self, settings: Settings) {
        self.shared.settings.store(Arc::new(settings.into()));
    }

    /// Ends all connections and waits until their tasks have ended. Wants under way fail.
    pub async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn swarm(&self, torrent: &Arc<Torrent>) -> Arc<Swarm> {
        let mut swarms = self.shared.swarms.lock();
        if let Some(swarm) = swarms.get(&torrent.info_hash) {
            let swarm = Arc::clone(swarm);
            drop(swarms);
            swarm.update(torrent);
            return swarm;
        }
        let swarm = Swarm::new(Arc::clone(&self.shared), Arc::clone(torrent));
        let out = swarms.push(torrent.info_hash, Arc::clone(&swarm));
        drop(swarms);
        if let Some((_, out)) = out {
            // One that works on goes on; the next want of it begins a new one.
            out.rest();
        }
        swarm
    }
}

impl Drop for Swarms {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        // Each of them holds what is shared.
        self.shared.swarms.lock().clear();
    }
}

/// Says what is known of the peers of some swarms, who gave most first.
fn tell(swarms: impl IntoIterator<Item = Arc<Swarm>>) -> Vec<PeerReport> {
    let mut reports = Vec::new();
    for swarm in swarms {
        swarm.report(&mut reports);
    }
    reports.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    reports.truncate(PEERS_TOLD);
    reports
}

#[async_trait]
impl BlockSource for Swarms {
    fn name(&self) -> &str {
        "torrent swarm"
    }

    fn kind(&self) -> SourceKind {
        SourceKind::Torrent
    }

    fn parallel(&self) -> usize {
        PARALLEL
    }

    fn serves(&self, want: &Want) -> bool {
        let settings = self.shared.settings.load();
        want.torrent.as_ref().is_some_and(|place| {
            let finder = settings.finder.as_ref();
            !settings.peers.is_empty() || finder.is_some_and(|finder| finder.serves(&place.torrent))
        })
    }

    fn peers(&self) -> Vec<PeerReport> {
        let swarms: Vec<Arc<Swarm>> = {
            let swarms = self.shared.swarms.lock();
            swarms.iter().map(|(_, swarm)| Arc::clone(swarm)).collect()
        };
        tell(swarms)
    }

    fn peers_for(&self, want: &Want) -> Vec<PeerReport> {
        let torrent = want.torrent.as_ref().map(|place| place.torrent.info_hash);
        let swarms = self.shared.swarms.lock();
        // Looking is no use of it.
        let swarm = torrent.and_then(|info_hash| swarms.peek(&info_hash).cloned());
        drop(swarms);
        tell(swarm)
    }

    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError> {
        let Some(place) = &want.torrent else {
            return Err(SourceError::not_found("it is in no torrent"));
        };
        let swarm = self.swarm(&place.torrent);
        judge::get(&swarm, want, place, spill).await
    }
}
