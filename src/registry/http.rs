//! A registry on a web server: a manifs daemon, or files.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use reqwest::StatusCode;
use reqwest::header::{ETAG, HeaderMap, RETRY_AFTER};
use tokio::time::{Instant, sleep, sleep_until};

use crate::manifest::{KeyId, PackageName, PackageVersion, Version};
use crate::net::{Answer, Client, Get, NetError};

use super::changes::{self, Cursor, HOLD};
use super::layout::Place;
use super::listing::Listing;
use super::{Announcement, Moment, Registry, RegistryError, SCAN_EVERY};

/// How long the answer to a long poll may take: what the server holds it back, and as much as a slow network may take.
const POLL_PATIENCE: Duration = Duration::from_secs(45);

/// Waits after failed polls: the first, doubled each time until it is the interval.
const BACKOFF: Duration = Duration::from_secs(1);

/// The least time between two answers of a poll, whatever the server says.
const POLL_GAP: Duration = Duration::from_millis(250);

/// How often a server that answered no long poll is asked again whether it does.
const DETECT_EVERY: Duration = Duration::from_secs(600);

/// The longest wait that a server's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Envelopes kept to spare the server and the network an unchanged answer, in bytes.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// The same, in envelopes.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("4096 is not zero");

/// What an HTTP registry is made from.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// How often a server that has no long poll is asked.
    pub interval: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            interval: Duration::from_secs(60),
        }
    }
}

/// A registry on a web server.
pub struct Http {
    base: String,
    client: Client,
    options: HttpOptions,
    kept: Mutex<Kept>,
    listing: Mutex<Option<(String, Arc<Listing>)>>,
    polled: Mutex<Polled>,
}

/// Answers that may be given again when the server says that nothing has changed.
struct Kept {
    answers: LruCache<Place, (String, Bytes)>,
    bytes: usize,
}

/// What is known of the server's changes.
struct Polled {
    moment: u64,
    cursor: Option<Cursor>,
    /// When it was asked in vain for a cursor.
    without: Option<Instant>,
    failures: u32,
}

/// What the server is, as far as it is known.
enum Server {
    /// A manifs daemon, with its cursor of last time.
    Daemon(Cursor),
    /// A web server with files.
    Files,
    /// Not reached yet; with the number of attempts.
    Unknown(u32),
}

enum Reply {
    Body(Bytes, Option<String>),
    Unchanged,
    None,
}

impl Http {
    /// Names the server by the URL under which `packages/` lies. Nothing is dialled.
    pub fn new(url: &str, client: Client, options: HttpOptions) -> Self {
        Http {
            base: url.trim_end_matches('/').to_owned(),
            client,
            options,
            kept: Mutex::new(Kept {
                answers: LruCache::new(KEPT_MAX),
                bytes: 0,
            }),
            listing: Mutex::new(None),
            polled: Mutex::new(Polled {
                moment: 1,
                cursor: None,
                without: None,
                failures: 0,
            }),
        }
    }

    /// Returns whether the server is known to be a manifs daemon, which then also serves the blocks. Known after the
    /// first [`Registry::changed`] or [`Http::detect`].
    pub fn is_daemon(&self) -> bool {
        self.polled.lock().cursor.is_some()
    }

    /// Asks the server whether it is a manifs daemon. `false` when it cannot be reached.
    pub async fn detect(&self) -> bool {
        self.look_for_cursor().await;
        self.is_daemon()
    }

    /// Asks what the server is; returns whether it was reached.
    async fn look_for_cursor(&self) -> bool {
        let found = self.poll(None).await;
        let mut polled = self.polled.lock();
        match found {
            Ok(cursor) => {
                polled.failures = 0;
                polled.without = cursor.is_none().then(Instant::now);
                polled.cursor = cursor;
                polled.moment += 1;
                true
            }
            Err(error) => {
                polled.failures += 1;
                tracing::debug!(registry = %self.base, %error, "not reached");
                false
            }
        }
    }

    fn known(&self) -> (u64, Server) {
        let polled = self.polled.lock();
        let without = polled
            .without
            .filter(|asked| asked.elapsed() < DETECT_EVERY);
        let server = match (&polled.cursor, without) {
            (Some(cursor), _) => Server::Daemon(cursor.clone()),
            (None, Some(_)) => Server::Files,
            (None, None) => Server::Unknown(polled.failures),
        };
        (polled.moment, server)
    }

    /// Reads a public key.
    ///
    /// # Errors
    /// [`RegistryError`] when the server does not answer.
    pub async fn key(&self, key: KeyId) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Key(key)).await
    }

    fn unavailable(&self, reason: &impl ToString) -> RegistryError {
        RegistryError::Unavailable {
            registry: self.base.clone(),
            reason: reason.to_string(),
            retry_after: None,
        }
    }

    async fn ask(&self, place: &Place, etag: Option<&str>) -> Result<Reply, RegistryError> {
        let url = format!("{}/{place}", self.base);
        let get = Get {
            if_none_match: etag,
            ..Get::new(place.bytes_max())
        };
        let answer = self
            .client
            .get(&url, &get)
            .await
            .map_err(|error| self.unavailable(&error))?;
        match answer.status {
            StatusCode::OK if !answer.whole => Err(RegistryError::TooLarge {
                path: url,
                max: get.limit,
            }),
            StatusCode::OK => {
                let etag = answer.headers.get(ETAG);
                let etag = etag.and_then(|etag| etag.to_str().ok()).map(str::to_owned);
                Ok(Reply::Body(answer.body, etag))
            }
            StatusCode::NOT_MODIFIED if etag.is_some() => Ok(Reply::Unchanged),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Reply::None),
            status => Err(RegistryError::Unavailable {
                registry: self.base.clone(),
                reason: format!("{place}: {status}"),
                retry_after: retry_after(&answer.headers),
            }),
        }
    }

    async fn read(&self, place: Place) -> Result<Option<Bytes>, RegistryError> {
        let kept = self.kept.lock().answers.get(&place).cloned();
        let etag = kept.as_ref().map(|(etag, _)| etag.as_str());
        match self.ask(&place, etag).await? {
            Reply::Unchanged => Ok(kept.map(|(_, body)| body)),
            Reply::Body(body, etag) => {
                let mut kept = self.kept.lock();
                kept.forget(&place);
                if let Some(etag) = etag {
                    kept.keep(place, etag, body.clone());
                }
                Ok(Some(body))
            }
            Reply::None => {
                self.kept.lock().forget(&place);
                Ok(None)
            }
        }
    }

    async fn listing(&self) -> Result<Arc<Listing>, RegistryError> {
        let kept = self.listing.lock().clone();
        let etag = kept.as_ref().map(|(etag, _)| etag.as_str());
        let (body, etag) = match self.ask(&Place::Listing, etag).await? {
            Reply::Unchanged => return Ok(kept.map(|(_, listing)| listing).unwrap_or_default()),
            Reply::None => return Ok(Arc::default()),
            Reply::Body(body, etag) => (body, etag),
        };
        let listing = Arc::new(
            Listing::parse(&body).map_err(|reason| RegistryError::Listing {
                path: format!("{}/{}", self.base, Place::Listing),
                reason,
            })?,
        );
        *self.listing.lock() = etag.map(|etag| (etag, Arc::clone(&listing)));
        Ok(listing)
    }

    /// Asks for the server's cursor: at once, or when it is no longer `since`. `None` when the server has no such thing.
    async fn poll(&self, since: Option<&Cursor>) -> Result<Option<Cursor>, NetError> {
        let mut get = Get::new(changes::ANSWER_BYTES_MAX);
        let url = match since {
            None => format!("{}/changes", self.base),
            Some(cursor) => {
                get.first_byte = POLL_PATIENCE;
                format!("{}/changes?since={cursor}", self.base)
            }
        };
        match self.client.get(&url, &get).await? {
            Answer {
                status: StatusCode::OK,
                body,
                whole: true,
                ..
            } => Ok(changes::parse(&body)),
            answer if answer.status.is_server_error() || answer.status == 429 => {
                Err(NetError::Broken(answer.status.to_string()))
            }
            _ => Ok(None),
        }
    }

    /// One long poll; waits after a failure. Returns when it is worth looking at the moment again.
    async fn poll_once(&self, since: Cursor) {
        let started = Instant::now();
        let polled = self.poll(Some(&since)).await;
        let failures = {
            let mut state = self.polled.lock();
            match &polled {
                Ok(Some(cursor)) => {
                    // Another waiter may have been told the same change.
                    if *cursor != since && state.cursor.as_ref() != Some(cursor) {
                        state.cursor = Some(cursor.clone());
                        state.moment += 1;
                    }
                    state.failures = 0;
                }
                Ok(None) => {
                    state.cursor = None;
                    state.without = Some(Instant::now());
                    state.moment += 1;
                }
                Err(error) => {
                    state.failures += 1;
                    tracing::debug!(registry = %self.base, %error, "long poll failed");
                }
            }
            state.failures
        };
        match failures {
            0 => sleep_until(started + POLL_GAP).await,
            _ => sleep(self.backoff(failures)).await,
        }
    }

    fn backoff(&self, failures: u32) -> Duration {
        let doubled = BACKOFF.saturating_mul(1 << (failures - 1).min(10));
        doubled.min(self.options.interval)
    }
}

impl Kept {
    fn forget(&mut self, place: &Place) {
        if let Some((_, body)) = self.answers.pop(place) {
            self.bytes -= body.len();
        }
    }

    fn keep(&mut self, place: Place, etag: String, body: Bytes) {
        if body.len() > KEPT_BYTES_MAX / 8 {
            return;
        }
        self.bytes += body.len();
        if let Some((_, (_, old))) = self.answers.push(place, (etag, body)) {
            self.bytes -= old.len();
        }
        while self.bytes > KEPT_BYTES_MAX {
            let Some((_, (_, old))) = self.answers.pop_lru() else {
                break;
            };
            self.bytes -= old.len();
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

#[async_trait]
impl Registry for Http {
    fn name(&self) -> &str {
        &self.base
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn names(&self) -> Result<Vec<PackageName>, RegistryError> {
        Ok(self.listing().await?.names().cloned().collect())
    }

    async fn index(&self, name: &PackageName) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Index(name.clone())).await
    }

    async fn versions(&self, name: &PackageName) -> Result<Vec<Version>, RegistryError> {
        Ok(self.listing().await?.versions(name).to_vec())
    }

    async fn manifest(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Manifest(package.clone())).await
    }

    async fn sums(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        // Not kept: it may be large, and is read once by a person.
        match self.ask(&Place::Sums(package.clone()), None).await? {
            Reply::Body(body, _) => Ok(Some(body)),
            Reply::None | Reply::Unchanged => Ok(None),
        }
    }

    async fn put(&self, _: Announcement) -> Result<(), RegistryError> {
        Err(RegistryError::ReadOnly {
            registry: self.base.clone(),
        })
    }

    async fn changed(&self, since: Moment) -> Moment {
        let deadline = Instant::now() + SCAN_EVERY;
        loop {
            let (moment, server) = self.known();
            let late = Instant::now() >= deadline;
            match server {
                Server::Daemon(_) if moment > since.0 || late => return Moment(moment),
                Server::Daemon(cursor) => {
                    tokio::select! {
                        () = self.poll_once(cursor) => {}
                        () = sleep_until(deadline) => {}
                    }
                }
                Server::Files => {
                    if moment <= since.0 {
                        sleep(self.options.interval).await;
                    }
                    return Moment(moment);
                }
                Server::Unknown(_) if late => return Moment(moment),
                Server::Unknown(failures) => {
                    let first = moment > since.0;
                    if !first && failures > 0 {
                        sleep(self.backoff(failures)).await;
                    }
                    // Asked for before the caller looks, so that nothing falls between the two.
                    let reached = self.look_for_cursor().await;
                    if first && !reached {
                        return Moment(moment);
                    }
                }
            }
        }
    }
}

const _: () = assert!(
    POLL_PATIENCE.as_secs() > HOLD.as_secs(),
    "a held answer must not look like a dead server"
);
