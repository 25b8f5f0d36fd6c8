//! The distributed hash table of BitTorrent (BEP 5), as one who only asks.
//!
//! [`Dht::find`] looks up who has a torrent, [`Dht::announce`] says that we have one. Each is one iterative lookup with a
//! socket of its own, bound where the configuration says, and nothing runs between two of them: no table of nodes is kept
//! up, nobody is pinged, and no question of others is answered, which they are told (BEP 43). What is kept are nodes that
//! answered, so that the bootstrap nodes are not asked each time.
//!
//! Nodes are strangers that strangers name: each address passes the [`AddressFilter`](super::AddressFilter) before a
//! datagram goes there, whatever they say is bounded, and the peers they name are hints like any others.
//!
//! Not `librqbit-dht`: it has no place for an address filter, so that any node could have it send to addresses of the
//! reader's own network, and it pings and refreshes while nobody asks.

mod lookup;
#[cfg(test)]
mod tests;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::AddressFilter;
use lookup::{Lookup, NEAREST, Node, distance};
pub use wire::Id;

/// Lookups at once; one more waits.
const AT_ONCE: usize = 8;

/// Nodes that answered and are remembered; some 30 KiB.
const NODES_MAX: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// Bootstrap nodes that are asked, and addresses of each.
const BOOTSTRAP_MAX: usize = 16;
const BOOTSTRAP_ADDRESSES_MAX: usize = 4;

/// Time to resolve the name of one.
const RESOLVE: Duration = Duration::from_secs(5);

/// How often who stays has to announce again: nodes forget after half an hour.
pub const ANNOUNCE_AGAIN: Duration = Duration::from_secs(15 * 60);

/// Nodes where everybody begins who names none: of the makers of the most common programs.
pub const BOOTSTRAP: [&str; 4] = [
    "router.bittorrent.com:6881",
    "router.utorrent.com:6881",
    "dht.transmissionbt.com:6881",
    "dht.libtorrent.org:25401",
];

/// Why a lookup came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DhtError {
    /// No socket where the configuration binds this program.
    #[error("no socket at {0}: {1}")]
    Bind(IpAddr, #[source] std::io::Error),
    /// Nobody answered: no network, or no bootstrap node that can be reached.
    #[error("no node answers")]
    Nobody,
}

/// Asks the hash table.
#[derive(Debug)]
pub struct Dht {
    id: Id,
    bind: IpAddr,
    bootstrap: Vec<String>,
    nodes: Mutex<LruCache<SocketAddr, Id>>,
    turns: Semaphore,
}

impl Dht {
    /// Asks from `bind`, in its family of addresses, beginning at the nodes `bootstrap`, each a `host:port` that the user
    /// vouches for. Nothing is sent yet.
    pub fn new(bind: IpAddr, bootstrap: Vec<String>) -> Self {
        Dht {
            id: rand::random(),
            bind,
            bootstrap,
            nodes: Mutex::new(LruCache::new(NODES_MAX)),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// Looks up who has a torrent, and tells of them as they are found. Returns how many were found.
    ///
    /// # Errors
    /// [`DhtError`]
    pub async fn find(
        &self,
        filter: &AddressFilter,
        info_hash: Id,
        told: &(dyn Fn(Vec<SocketAddr>) + Send + Sync),
    ) -> Result<usize, DhtError> {
        let lookup = self.look_up(filter, info_hash, told).await;
        Ok(lookup?.found())
    }

    /// Says that whoever wants a torrent can connect to this machine at `port`. Returns how many nodes took note.
    ///
    /// # Errors
    /// [`DhtError`]
    pub async fn announce(
        &self,
        filter: &AddressFilter,
        info_hash: Id,
        port: u16,
    ) -> Result<usize, DhtError> {
        let mut lookup = self.look_up(filter, info_hash, &|_| {}).await?;
        match lookup.announce(port).await {
            0 => Err(DhtError::Nobody),
            noted => Ok(noted),
        }
    }

    async fn look_up<'a>(
        &self,
        filter: &'a AddressFilter,
        info_hash: Id,
        told: &'a (dyn Fn(Vec<SocketAddr>) + Send + Sync),
    ) -> Result<Lookup<'a>, DhtError> {
        // Nobody closes it.
        let _turn = self.turns.acquire().await;
        let socket = UdpSocket::bind((self.bind, 0)).await;
        let socket = socket.map_err(|error| DhtError::Bind(self.bind, error))?;
        let mut lookup = Lookup::new(self.id, info_hash, socket, self.bind, filter, told);
        for node in self.remembered(&info_hash) {
            lookup.add(node);
        }
        lookup.run().await;
        if lookup.answered() < NEAREST {
            lookup.begin_at(self.resolve().await);
            lookup.run().await;
        }
        self.remember(&lookup);
        match lookup.answered() {
            0 => Err(DhtError::Nobody),
            _ => Ok(lookup),
        }
    }

    /// Returns the nodes to begin at that are nearest to what is looked for. Few, so that there is time left for the
    /// bootstrap nodes when all of them are gone.
    fn remembered(&self, target: &Id) -> Vec<Node> {
        let nodes = self.nodes.lock();
        let node = |(address, id): (&SocketAddr, &Id)| Node {
            id: *id,
            address: *address,
        };
        let mut nodes: Vec<Node> = nodes.iter().map(node).collect();
        nodes.sort_unstable_by_key(|node| distance(&node.id, target));
        nodes.truncate(2 * NEAREST);
        nodes
    }

    /// Keeps the nodes that answered, and forgets those that did not.
    fn remember(&self, lookup: &Lookup<'_>) {
        let mut nodes = self.nodes.lock();
        for (node, answered) in lookup.asked() {
            if answered {
                nodes.put(node.address, node.id);
            } else {
                nodes.pop(&node.address);
            }
        }
    }

    /// Returns the addresses of the bootstrap nodes. The configuration names them, and so vouches for them.
    async fn resolve(&self) -> Vec<SocketAddr> {
        let names = self.bootstrap.iter().take(BOOTSTRAP_MAX);
        let found = names.map(|name| timeout(RESOLVE, tokio::net::lookup_host(name.as_str())));
        let found = futures::future::join_all(found).await;
        let found = found.into_iter().filter_map(|found| found.ok()?.ok());
        let mut addresses = Vec::new();
        for of_one in found {
            let of_family = of_one.filter(|address| address.is_ipv4() == self.bind.is_ipv4());
            addresses.extend(of_family.take(BOOTSTRAP_ADDRESSES_MAX));
        }
        addresses
    }
}
