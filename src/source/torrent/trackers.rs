//! Peers from a torrent's trackers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;

use super::{Finder, Found};
use crate::net::Client;
use crate::net::tracker::{Announce, Event, PEERS_MAX, Response, TrackerError, announce};
use crate::source::Torrent;

/// Trackers of one torrent that are asked; a release index names no more.
const TRACKERS_MAX: usize = 16;

/// Trackers asked at once, of all torrents together.
const AT_ONCE: usize = 16;

/// The port that is announced. A reader takes no connections, and 0, which says so, is refused by some trackers; where
/// nobody listens other programs tell 1. Never the port of our own seeding: trackers know peers by address and port, so
/// that a reader who leaves would take the seed away with it.
const PORT: u16 = 1;

/// The trackers that wants name.
pub struct Trackers {
    client: Client,
    bind: Option<IpAddr>,
    permits: Arc<Semaphore>,
}

impl Trackers {
    /// Asks them through `client`, whose filter decides which of them, and of their peers, may be dialled; over UDP from
    /// `bind`, where the configuration binds this program to an address.
    pub fn new(client: Client, bind: Option<IpAddr>) -> Self {
        Trackers {
            client,
            bind,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    async fn ask(
        &self,
        tracker: &str,
        torrent: &Torrent,
        peer_id: [u8; 20],
        event: Event,
    ) -> Result<Response, TrackerError> {
        let say = Announce {
            info_hash: torrent.info_hash,
            peer_id,
            port: PORT,
            uploaded: 0,
            downloaded: 0,
            // Some trackers show seeds only to those who miss something.
            left: torrent.bytes.unwrap_or(1).max(1),
            event,
            peers: match event {
                Event::Stopped => 0,
                Event::None | Event::Started | Event::Completed => PEERS_MAX,
            },
        };
        // Nobody closes it.
        let _permit = self.permits.acquire().await;
        announce(&self.client, tracker, self.bind, &say).await
    }
}

#[async_trait]
impl Finder for Trackers {
    async fn find(
        &self,
        torrent: &Torrent,
        peer_id: [u8; 20],
        known: &[String],
        told: &(dyn Fn(Found) + Send + Sync),
    ) -> Option<Duration> {
        let asked = torrent.trackers.iter().take(TRACKERS_MAX);
        let mut answers: FuturesUnordered<_> = asked
            .map(|tracker| async move {
                let event = match known.contains(tracker) {
                    true => Event::None,
                    false => Event::Started,
                };
                (tracker, self.ask(tracker, torrent, peer_id, event).await)
            })
            .collect();
        let mut again: Option<Duration> = None;
        while let Some((tracker, answer)) = answers.next().await {
            match answer {
                Ok(mut answer) => {
                    // Readers as we are, and ourselves.
                    answer.peers.retain(|peer| peer.port() != PORT);
                    // Who found nobody does not wait for half an hour.
                    if !answer.peers.is_empty() {
                        let sooner = again.map_or(answer.interval, |at| at.min(answer.interval));
                        again = Some(sooner);
                    }
                    told(Found {
                        by: Some(tracker.clone()),
                        peers: answer.peers,
                    });
                }
                Err(error) => tracing::debug!(tracker, %error, "no peers from a tracker"),
            }
        }
        again
    }

    async fn leave(&self, torrent: &Torrent, peer_id: [u8; 20], known: &[String]) {
        let asked = known.iter().take(TRACKERS_MAX);
        let farewell: FuturesUnordered<_> = asked
            .map(|tracker| self.ask(tracker, torrent, peer_id, Event::Stopped))
            .collect();
        // Whoever was not reached forgets by itself.
        farewell.for_each(|_| async {}).await;
    }
}
