//! Peers from the distributed hash table, and from several who know some.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;

use super::{Finder, Found};
use crate::net::Client;
use crate::net::dht::Dht;
use crate::source::Torrent;

/// When somebody who reads on asks again.
const AGAIN: Duration = Duration::from_secs(5 * 60);

/// The distributed hash table. A reader only asks there: it is no seed.
pub struct ByDht {
    dht: Arc<Dht>,
    client: Client,
}

impl ByDht {
    /// Asks `dht`, where the filter of `client` decides which nodes may be dialled.
    pub fn new(dht: Arc<Dht>, client: Client) -> Self {
        ByDht { dht, client }
    }
}

#[async_trait]
impl Finder for ByDht {
    fn serves(&self, _: &Torrent) -> bool {
        true
    }

    async fn find(
        &self,
        torrent: &Torrent,
        _: [u8; 20],
        _: &[String],
        told: &(dyn Fn(Found) + Send + Sync),
    ) -> Option<Duration> {
        let tell = |peers| told(Found { by: None, peers });
        let found = self
            .dht
            .find(self.client.filter(), torrent.info_hash, &tell)
            .await;
        match found {
            Ok(0) => None,
            Ok(_) => Some(AGAIN),
            Err(error) => {
                tracing::debug!(%error, "no peers from the hash table");
                None
            }
        }
    }
}

/// Several who know peers, all of them asked at once.
pub struct Finders(pub Vec<Arc<dyn Finder>>);

#[async_trait]
impl Finder for Finders {
    fn serves(&self, torrent: &Torrent) -> bool {
        self.0.iter().any(|finder| finder.serves(torrent))
    }

    async fn find(
        &self,
        torrent: &Torrent,
        peer_id: [u8; 20],
        known: &[String],
        told: &(dyn Fn(Found) + Send + Sync),
    ) -> Option<Duration> {
        let able = self.0.iter().filter(|finder| finder.serves(torrent));
        let found = able.map(|finder| finder.find(torrent, peer_id, known, told));
        join_all(found).await.into_iter().flatten().min()
    }

    async fn leave(&self, torrent: &Torrent, peer_id: [u8; 20], known: &[String]) {
        let left = self
            .0
            .iter()
            .map(|finder| finder.leave(torrent, peer_id, known));
        join_all(left).await;
    }
}
