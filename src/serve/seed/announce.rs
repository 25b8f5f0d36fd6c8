//! Tells trackers what is seeded, again and again, and at the end that it is over.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Seeds;
use crate::net::Client;
use crate::net::dht::{self, Dht};
use crate::net::tracker::{Announce, Event, TrackerError, announce};

/// Trackers asked at once, of all torrents together.
const AT_ONCE: usize = 16;

/// Trackers of one torrent; a release index has no more.
const TRACKERS_MAX: usize = 16;

/// Wait after the first failure; doubled by each further one.
const RETRY: Duration = Duration::from_secs(30);

/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(60 * 60);

/// Time for telling all trackers that it is over; who was not told in time forgets by itself.
const FAREWELL: Duration = Duration::from_secs(3);

/// Announces seeds. Clones share the limit of how many trackers are asked at once.
#[derive(Clone)]
pub struct Announcer {
    seeds: Arc<Seeds>,
    client: Arc<ArcSwap<Client>>,
    /// Where leechers reach us.
    port: u16,
    bind: IpAddr,
    dht: Option<Arc<Dht>>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// One tracker of one torrent, or the hash table.
struct Known {
    tracker: Option<String>,
    due: Instant,
    failures: u32,
    /// Whether it has been told that we are here.
    told: bool,
    can_be_asked: bool,
}

impl Announcer {
    /// Announces that leechers reach us at `port`; sends from where `listen` is bound.
    pub fn new(
        seeds: Arc<Seeds>,
        client: Arc<ArcSwap<Client>>,
        listen: SocketAddr,
        port: u16,
        shutdown: CancellationToken,
    ) -> Announcer {
        Announcer {
            seeds,
            client,
            port,
            bind: listen.ip(),
            dht: None,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            tasks: TaskTracker::new(),
            shutdown,
        }
    }

    /// Also announces to the distributed hash table.
    pub fn with_dht(mut self, dht: Option<Arc<Dht>>) -> Announcer {
        self.dht = dht;
        self
    }

    /// Keeps a torrent announced until `over` or the end.
    pub fn keep(&self, info_hash: [u8; 20], trackers: &[String], over: CancellationToken) {
        let now = Instant::now();
        let trackers = trackers.iter().take(TRACKERS_MAX).cloned().map(Some);
        let known: Vec<Known> = trackers
            .chain(self.dht.is_some().then_some(None))
            .map(|tracker| Known {
                tracker,
                due: now,
                failures: 0,
                told: false,
                can_be_asked: true,
            })
            .collect();
        if known.is_empty() {
            return;
        }
        let announcer = self.clone();
        self.tasks
            .spawn(async move { announcer.run(info_hash, known, over).await });
    }

    /// Waits until every tracker has been told that it is over, or the time for that is up.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(&self, info_hash: [u8; 20], mut known: Vec<Known>, over: CancellationToken) {
        let mut uploaded = 0;
        loop {
            let due = known.iter().map(|known| known.due).min();
            let Some(due) = due else { return };
            tokio::select! {
                () = sleep_until(due) => {}
                () = over.cancelled() => break,
                () = self.shutdown.cancelled() => break,
            }
            let now = Instant::now();
            uploaded = self.seeds.uploaded(&info_hash).max(uploaded);
            let asking: FuturesUnordered<_> = known
                .iter_mut()
                .filter(|known| known.due <= now)
                .map(|known| self.tell(info_hash, uploaded, known))
                .collect();
            tokio::select! {
                () = asking.for_each(|()| async {}) => {}
                () = over.cancelled() => break,
                () = self.shutdown.cancelled() => break,
            }
            // What is none can never be asked.
            known.retain(|known| known.can_be_asked);
        }
        let farewell: FuturesUnordered<_> = known
            .iter()
            .filter(|known| known.told)
            // The hash table forgets by itself.
            .filter_map(|known| known.tracker.as_ref())
            .map(|tracker| self.ask(info_hash, uploaded, Event::Stopped, tracker))
            .collect();
        let _ = timeout(FAREWELL, farewell.for_each(|_| async {})).await;
    }

    async fn tell(&self, info_hash: [u8; 20], uploaded: u64, known: &mut Known) {
        let event = if known.told {
            Event::None
        } else {
            Event::Started
        };
        let answer = match &known.tracker {
            Some(tracker) => self.ask(info_hash, uploaded, event, tracker).await,
            None => self.ask_dht(info_hash).await,
        };
        let wait = match answer {
            Ok(interval) => {
                known.told = true;
                known.failures = 0;
                interval
            }
            Err(error) => {
                let tracker = known.tracker.as_deref().unwrap_or("the hash table");
                tracing::debug!(tracker, %error, "announce");
                match error {
                    TrackerError::Url(_) => {
                        known.can_be_asked = false;
                        return;
                    }
                    // What is refused now may be allowed when the configuration has been read again.
                    TrackerError::Refused(_)
                    | TrackerError::Failure(_)
                    | TrackerError::Nonsense(_) => RETRY_MAX,
                    TrackerError::Unavailable(_) => {
                        let doubled = RETRY.saturating_mul(1 << known.failures.min(16));
                        known.failures += 1;
                        doubled.min(RETRY_MAX)
                    }
                }
            }
        };
        known.due = Instant::now() + wait;
    }

    async fn ask_dht(&self, info_hash: [u8; 20]) -> Result<Duration, TrackerError> {
        // It has turns of its own.
        let client = self.client.load_full();
        if let Some(dht) = &self.dht {
            let noted = dht.announce(client.filter(), info_hash, self.port).await;
            noted.map_err(|error| TrackerError::Unavailable(error.to_string()))?;
        }
        Ok(dht::ANNOUNCE_AGAIN)
    }

    async fn ask(
        &self,
        info_hash: [u8; 20],
        uploaded: u64,
        event: Event,
        tracker: &str,
    ) -> Result<Duration, TrackerError> {
        let _permit = self.permits.acquire().await;
        let request = Announce {
            info_hash,
            peer_id: self.seeds.peer_id(),
            port: self.port,
            uploaded,
            downloaded: 0,
            left: 0,
            event,
            // Nobody is dialled.
            peers: 0,
        };
        let client = self.client.load_full();
        let response = announce(&client, tracker, Some(self.bind), &request).await?;
        Ok(response.interval)
    }
}
