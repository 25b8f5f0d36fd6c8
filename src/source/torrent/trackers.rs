//! Peers from a torrent's trackers.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::Finder;
use crate::net::Client;
use crate::net::tracker::{Announce, Event, PEERS_MAX, announce};
use crate::source::Torrent;

/// Trackers of one torrent that are asked; a release index names no more.
const TRACKERS_MAX: usize = 16;

/// The trackers that wants name.
pub struct Trackers {
    client: Client,
}

impl Trackers {
    /// Asks them through `client`, whose filter decides which of them, and of their peers, may be dialled.
    pub fn new(client: Client) -> Self {
        Trackers { client }
    }
}

#[async_trait]
impl Finder for Trackers {
    async fn find(
        &self,
        torrent: &Torrent,
        peer_id: [u8; 20],
        told: &(dyn Fn(Vec<SocketAddr>) + Send + Sync),
    ) -> Option<Duration> {
        let say = Announce {
            info_hash: torrent.info_hash,
            peer_id,
            // A reader takes no connections.
            port: 0,
            uploaded: 0,
            downloaded: 0,
            // Some trackers show seeds only to those who miss something.
            left: torrent.bytes.unwrap_or(1).max(1),
            event: Event::Started,
            peers: PEERS_MAX,
        };
        let asked = torrent.trackers.iter().take(TRACKERS_MAX);
        let mut answers: FuturesUnordered<_> = asked
            .map(|tracker| {
                let say = &say;
                async move { (tracker, announce(&self.client, tracker, None, say).await) }
            })
            .collect();
        let mut again: Option<Duration> = None;
        while let Some((tracker, answer)) = answers.next().await {
            match answer {
                Ok(answer) => {
                    // Who found nobody does not wait for half an hour.
                    if !answer.peers.is_empty() {
                        let sooner = again.map_or(answer.interval, |at| at.min(answer.interval));
                        again = Some(sooner);
                    }
                    told(answer.peers);
                }
                Err(error) => tracing::debug!(tracker, %error, "no peers from a tracker"),
            }
        }
        again
    }
}
