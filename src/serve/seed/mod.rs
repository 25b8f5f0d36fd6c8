//! Seeding: complete versions, given to any BitTorrent program that asks.
//!
//! It only answers. Nobody is dialled, nothing is downloaded, and no path of the user's is opened: bytes come out of the
//! store, through the same two ways as for the gateway, so that what leaves is what was signed. [`Seeds`] is the table of
//! what is seeded, [`serve`] the listener, and [`Announcer`] tells the trackers of the release index. A version is opened
//! when the first leecher comes and closed after the last, so that one nobody asks for costs a line in a table.
//!
//! The wire is ours rather than that of `librqbit`'s session, which was built and measured first: docs/serving.md says
//! what was found.

mod announce;
mod content;
mod encryption;
mod peer;
mod server;
#[cfg(test)]
mod tests;
mod versions;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use crate::net::Rate;
use crate::store::Store;
use crate::torrent::peer_id;

pub use announce::Announcer;
pub use content::{Content, Span};
pub use server::serve;
pub use versions::{Parts, Versions, Wanted};

/// What strangers may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more is closed.
    pub connections: usize,
    /// Connections of one address.
    pub of_one_address: usize,
    /// Time for the handshake.
    pub handshake: Duration,
    /// Time without any message; others say at least every two minutes that they are there.
    pub silence: Duration,
    /// Time without a request.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 256,
            of_one_address: 32,
            handshake: Duration::from_secs(10),
            silence: Duration::from_secs(180),
            idle: Duration::from_secs(600),
        }
    }
}

/// Finds where a version's bytes lie; none when that cannot be told any more. Blocking.
pub type Open = Box<dyn Fn() -> Option<Arc<dyn Content>> + Send + Sync>;

/// One torrent that is seeded.
struct Seed {
    info_hash: [u8; 20],
    /// By what it is asked for in an encrypted handshake.
    hidden: [u8; 20],
    /// What it holds, for people.
    name: String,
    open: Open,
    opened: Mutex<Option<Weak<dyn Content>>>,
    uploaded: AtomicU64,
    peers: AtomicUsize,
    over: CancellationToken,
}

impl Seed {
    /// Returns the content, opening it unless another connection has. Blocking.
    fn open(&self) -> Option<Arc<dyn Content>> {
        let mut opened = self.opened.lock();
        if let Some(content) = opened.as_ref().and_then(Weak::upgrade) {
            return Some(content);
        }
        let content = (self.open)()?;
        *opened = Some(Arc::downgrade(&content));
        Some(content)
    }
}

/// What is told of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedReport {
    /// What it holds.
    pub name: String,
    /// Its info hash.
    pub info_hash: [u8; 20],
    /// Bytes given to others since it is seeded.
    pub uploaded: u64,
    /// Who is connected.
    pub peers: usize,
}

/// Everything that is seeded.
pub struct Seeds {
    store: Arc<Store>,
    limits: Limits,
    rate: Option<Arc<Rate>>,
    batch_bytes: u64,
    peer_id: [u8; 20],
    seeds: RwLock<HashMap<[u8; 20], Arc<Seed>>>,
    /// Why seeds ended that were to stay, by name, until they are seeded again.
    ended: Mutex<HashMap<String, &'static str>>,
}

impl Seeds {
    /// Makes an empty table. Whatever is given to others is paid for at `up`.
    pub fn new(store: Arc<Store>, limits: Limits, up: Option<Arc<Rate>>) -> Arc<Seeds> {
        Arc::new(Seeds {
            store,
            limits,
            batch_bytes: peer::batch_bytes(up.as_ref().map_or(0, |up| up.bytes_per_second())),
            rate: up,
            peer_id: peer_id(),
            seeds: RwLock::default(),
            ended: Mutex::default(),
        })
    }

    /// Returns who we are in swarms in this run.
    pub fn peer_id(&self) -> [u8; 20] {
        self.peer_id
    }

    /// Seeds a torrent from now on; returns a token that is cancelled when it is over. One that is seeded stays as it is.
    pub fn insert(&self, info_hash: [u8; 20], name: &str, open: Open) -> CancellationToken {
        let mut seeds = self.seeds.write();
        let seed = seeds.entry(info_hash).or_insert_with(|| {
            Arc::new(Seed {
                info_hash,
                hidden: encryption::hidden(&info_hash),
                name: name.to_owned(),
                open,
                opened: Mutex::new(None),
                uploaded: AtomicU64::new(0),
                peers: AtomicUsize::new(0),
                over: CancellationToken::new(),
            })
        });
        self.ended.lock().remove(name);
        seed.over.clone()
    }

    /// Ends a seed because it cannot go on, and says so once.
    pub fn end(&self, info_hash: &[u8; 20], reason: &'static str) {
        if let Some(seed) = self.take(info_hash) {
            tracing::warn!(package = %seed.name, reason, "no longer seeded");
            self.ended.lock().insert(seed.name.clone(), reason);
        }
    }

    /// Ends a seed that is no longer wanted.
    pub fn remove(&self, info_hash: &[u8; 20]) {
        self.take(info_hash);
    }

    fn take(&self, info_hash: &[u8; 20]) -> Option<Arc<Seed>> {
        let seed = self.seeds.write().remove(info_hash)?;
        seed.over.cancel();
        Some(seed)
    }

    fn get(&self, info_hash: &[u8; 20]) -> Option<Arc<Seed>> {
        self.seeds.read().get(info_hash).cloned()
    }

    /// Returns the torrent that is asked for without being named.
    fn find_hidden(&self, hidden: &[u8; 20]) -> Option<[u8; 20]> {
        let seeds = self.seeds.read();
        let found = seeds.values().find(|seed| seed.hidden == *hidden);
        found.map(|seed| seed.info_hash)
    }

    /// Returns the bytes that were given of a torrent.
    pub fn uploaded(&self, info_hash: &[u8; 20]) -> u64 {
        self.get(info_hash)
            .map_or(0, |seed| seed.uploaded.load(Ordering::Relaxed))
    }

    /// Returns whether a torrent is seeded.
    pub fn contains(&self, info_hash: &[u8; 20]) -> bool {
        self.seeds.read().contains_key(info_hash)
    }

    /// Returns what is seeded, by name.
    pub fn report(&self) -> Vec<SeedReport> {
        let mut report: Vec<SeedReport> = self
            .seeds
            .read()
            .values()
            .map(|seed| SeedReport {
                name: seed.name.clone(),
                info_hash: seed.info_hash,
                uploaded: seed.uploaded.load(Ordering::Relaxed),
                peers: seed.peers.load(Ordering::Relaxed),
            })
            .collect();
        report.sort_by(|one, other| one.name.cmp(&other.name));
        report
    }

    /// Returns what was to be seeded and is not, and why, one sentence each.
    pub fn problems(&self) -> Vec<String> {
        let ended = self.ended.lock();
        let mut problems: Vec<String> = ended
            .iter()
            .map(|(name, reason)| format!("{name} is no longer seeded: {reason}"))
            .collect();
        problems.sort();
        problems
    }
}
