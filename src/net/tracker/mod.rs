//! One announce to one tracker, over HTTP (BEP 3, 7, 23) or UDP (BEP 15).
//!
//! [`announce`] asks once and returns: nothing keeps running, and who wants to be known for longer announces again after
//! the interval it was told. A tracker is a stranger that release indexes name, so that it costs little whatever it does:
//! its address passes the [`AddressFilter`](super::AddressFilter), what it answers is cut at a limit, the peers it names
//! are few and filtered too, and the interval it wants is kept within bounds.

mod http;
#[cfg(test)]
mod tests;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{AddressFilter, Client, FilterError, NetError};

/// Peers taken from one answer at most.
pub const PEERS_MAX: usize = 200;

/// The shortest time between two announces, whatever a tracker wants.
pub const INTERVAL_MIN: Duration = Duration::from_secs(60);

/// The longest one: a tracker forgets who has been silent for about twice its usual half hour.
pub const INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);

/// Characters of a tracker's own words that are shown.
const WORDS_MAX: usize = 120;

/// What an announce tells besides numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Event {
    /// Still here.
    #[default]
    None,
    /// The first announce.
    Started,
    /// The last byte has come.
    Completed,
    /// Gone from now on.
    Stopped,
}

/// What is told to a tracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announce {
    /// The torrent.
    pub info_hash: [u8; 20],
    /// Who we are in the swarm.
    pub peer_id: [u8; 20],
    /// Where other peers reach us; 0 when nobody can.
    pub port: u16,
    /// Bytes sent to peers since `Started`.
    pub uploaded: u64,
    /// Bytes got from peers since `Started`.
    pub downloaded: u64,
    /// Bytes that are missing; 0 only for who has everything.
    pub left: u64,
    /// What happened.
    pub event: Event,
    /// How many peers to name; at most [`PEERS_MAX`].
    pub peers: usize,
}

/// What a tracker answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// When to announce again, within [`INTERVAL_MIN`] and [`INTERVAL_MAX`].
    pub interval: Duration,
    /// Peers, each once, each let through by the address filter.
    pub peers: Vec<SocketAddr>,
}

/// Why there is no answer. One variant for each thing that the caller can do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrackerError {
    /// It must not be asked, now or later.
    #[error(transparent)]
    Refused(#[from] FilterError),
    /// Not the URL of a tracker: never ask.
    #[error("{0:?} is not the URL of a tracker")]
    Url(String),
    /// Nobody answers: come back later.
    #[error("no answer ({0})")]
    Unavailable(String),
    /// It answers, and will not help: come back much later.
    #[error("the tracker says: {0}")]
    Failure(String),
    /// What it answers is no answer.
    #[error("nonsense from the tracker ({0})")]
    Nonsense(&'static str),
}

impl From<NetError> for TrackerError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Refused(error) => TrackerError::Refused(error),
            NetError::Url(url) => TrackerError::Url(url),
            error => TrackerError::Unavailable(error.to_string()),
        }
    }
}

/// Announces to `tracker`, an `http`, `https` or `udp` URL.
///
/// `bind` is the address that the configuration binds this program to; UDP goes out from there where the tracker can be
/// reached from it.
///
/// # Errors
/// [`TrackerError`]
pub async fn announce(
    client: &Client,
    tracker: &str,
    bind: Option<IpAddr>,
    announce: &Announce,
) -> Result<Response, TrackerError> {
    match tracker.split_once("://") {
        Some(("http" | "https", _)) => http::announce(client, tracker, announce).await,
        Some(("udp", place)) => {
            udp::announce(client.filter(), tracker, place, bind, announce).await
        }
        _ => Err(TrackerError::Url(tracker.to_owned())),
    }
}

/// Keeps a wanted interval within bounds.
fn interval(seconds: u64) -> Duration {
    Duration::from_secs(seconds).clamp(INTERVAL_MIN, INTERVAL_MAX)
}

/// Gathers peers: each once, none that may not be dialled, no more than were asked for.
struct Peers<'a> {
    filter: &'a AddressFilter,
    most: usize,
    found: Vec<SocketAddr>,
}

impl<'a> Peers<'a> {
    fn new(filter: &'a AddressFilter, announce: &Announce) -> Self {
        Peers {
            filter,
            most: announce.peers.min(PEERS_MAX),
            found: Vec::new(),
        }
    }

    fn add(&mut self, address: SocketAddr) {
        let wanted = self.found.len() < self.most
            && address.port() != 0
            && self.filter.dial(address).is_ok()
            && !self.found.contains(&address);
        if wanted {
            self.found.push(address);
        }
    }

    /// Adds peers of 4 bytes of address and 2 of port (BEP 23).
    fn add_compact_v4(&mut self, bytes: &[u8]) {
        for peer in bytes.as_chunks::<6>().0 {
            let [a, b, c, d, high, low] = *peer;
            self.add(SocketAddr::from((
                [a, b, c, d],
                u16::from_be_bytes([high, low]),
            )));
        }
    }

    /// Adds peers of 16 bytes of address and 2 of port (BEP 7).
    fn add_compact_v6(&mut self, bytes: &[u8]) {
        for peer in bytes.as_chunks::<18>().0 {
            let [address @ .., high, low] = *peer;
            let _: &[u8; 16] = &address;
            self.add(SocketAddr::from((address, u16::from_be_bytes([high, low]))));
        }
    }
}

/// Returns what a tracker says of itself, fit to be shown.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let printable = text.chars().filter(|letter| !letter.is_control());
    printable.take(WORDS_MAX).collect()
}
