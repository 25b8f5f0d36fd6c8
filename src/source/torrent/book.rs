//! The peers of a swarm that we know of: where they are, and how they behaved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Peers of one swarm that are remembered.
const PEERS_MAX: usize = 256;

/// Lies after which a peer is not asked again while this process lives.
const LIES_MAX: u32 = 2;

/// The rest after a failure; doubles with each one in a row up to [`REST_MAX`].
const REST: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(60);

/// How long a peer is left alone that broke the protocol; doubles as above.
const REST_MISDEED: Duration = Duration::from_secs(5);

/// Name of a peer: `host:port`, as it was configured or found.
pub(super) type Peer = Arc<str>;

/// How much a peer is to blame for the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// Not at all: we hung up.
    None,
    /// It did not answer, went away, or stalled.
    Failure,
    /// It broke the protocol.
    Misdeed,
}

/// What is known of a peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// Whether the configuration names it.
    pub(super) configured: bool,
    /// Whether there is a connection, or one is being made.
    pub(super) linked: bool,
    /// Its client's name.
    pub(super) client: Option<String>,
    /// Blocks that came wholly or in part from it, and were right.
    pub(super) blocks: u64,
    /// Bytes of them.
    pub(super) bytes: u64,
    /// Wrong answers.
    pub(super) lies: u32,
    /// Connections that ended badly.
    pub(super) failures: u64,
    /// The last thing that went wrong.
    pub(super) last_error: Option<String>,
    in_row: u32,
    until: Option<Instant>,
}

impl Record {
    /// Returns whether it is not asked any more.
    pub(super) fn banned(&self) -> bool {
        self.lies >= LIES_MAX
    }
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    records: HashMap<Peer, Record>,
}

impl Book {
    /// Notes which peers the configuration names now.
    pub(super) fn configure(&mut self, peers: &[Peer]) {
        self.records.retain(|peer, record| {
            !record.configured || record.lies > 0 || record.linked || peers.contains(peer)
        });
        for record in self.records.values_mut() {
            record.configured = false;
        }
        for peer in peers {
            let record = self.records.entry(Arc::clone(peer)).or_default();
            record.configured = true;
        }
    }

    /// Notes a peer that somebody told of. A full book forgets one that was of no use, or does not take it.
    pub(super) fn learn(&mut self, peer: &str) {
        if self.records.contains_key(peer) {
            return;
        }
        if self.records.len() >= PEERS_MAX {
            let useless = self
                .records
                .iter()
                .filter(|(_, record)| {
                    !record.configured && !record.linked && record.lies == 0 && record.blocks == 0
                })
                .max_by_key(|(_, record)| record.in_row)
                .filter(|(_, record)| record.in_row > 0)
                .map(|(peer, _)| Arc::clone(peer));
            match useless {
                Some(peer) => self.records.remove(&peer),
                None => return,
            };
        }
        self.records.insert(Arc::from(peer), Record::default());
    }

    /// Chooses whom to dial next: who delivered, who is configured, who failed least.
    pub(super) fn next(&self, now: Instant) -> Option<Peer> {
        self.records
            .iter()
            .filter(|(_, record)| record.ready(now))
            .max_by_key(|(_, record)| {
                let fresh = u32::MAX - record.in_row;
                (
                    record.lies == 0,
                    record.blocks > 0,
                    record.configured,
                    fresh,
                )
            })
            .map(|(peer, _)| Arc::clone(peer))
    }

    /// Returns whether somebody could be dialled now who is not among `avoid`.
    pub(super) fn has_ready(&self, avoid: &[Peer], now: Instant) -> bool {
        self.records
            .iter()
            .any(|(peer, record)| record.ready(now) && !avoid.contains(peer))
    }

    /// Notes that a connection is being made.
    pub(super) fn linked(&mut self, peer: &Peer) {
        if let Some(record) = self.records.get_mut(peer) {
            record.linked = true;
        }
    }

    /// Notes the end of a connection.
    pub(super) fn unlinked(&mut self, peer: &Peer, blame: Blame, why: &str, now: Instant) {
        let Some(record) = self.records.get_mut(peer) else {
            return;
        };
        record.linked = false;
        if blame == Blame::None {
            return;
        }
        record.failures += 1;
        record.last_error = Some(why.to_owned());
        let first = match blame {
            Blame::Misdeed => REST_MISDEED,
            Blame::Failure | Blame::None => REST,
        };
        let rest = first * 2_u32.saturating_pow(record.in_row.min(16));
        record.until = Some(now + rest.min(REST_MAX));
        record.in_row = record.in_row.saturating_add(1);
    }

    /// Notes the client's name.
    pub(super) fn client(&mut self, peer: &Peer, client: String) {
        if let Some(record) = self.records.get_mut(peer) {
            record.client = Some(client);
        }
    }

    /// Notes right bytes of a block.
    pub(super) fn delivered(&mut self, peer: &Peer, bytes: u64) {
        if let Some(record) = self.records.get_mut(peer) {
            record.blocks += 1;
            record.bytes += bytes;
            record.in_row = 0;
        }
    }

    /// Notes a wrong answer; returns whether the peer is not asked any more.
    pub(super) fn lied(&mut self, peer: &Peer) -> bool {
        let Some(record) = self.records.get_mut(peer) else {
            return false;
        };
        record.lies += 1;
        record.last_error = Some("sent wrong bytes".to_owned());
        record.banned()
    }

    /// Returns what is known of each peer.
    pub(super) fn records(&self) -> impl Iterator<Item = (&Peer, &Record)> {
        self.records.iter()
    }

    /// Says in a few words why nobody can be dialled.
    pub(super) fn excuse(&self) -> Option<String> {
        let (peer, record) = self
            .records
            .iter()
            .filter(|(_, record)| record.last_error.is_some())
            .min_by_key(|(_, record)| record.in_row)?;
        let error = record.last_error.as_deref()?;
        Some(format!("{peer}: {error}"))
    }
}

impl Record {
    fn ready(&self, now: Instant) -> bool {
        !self.linked && !self.banned() && self.until.is_none_or(|until| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_rests_longer_each_time_up_to_a_bound() {
        let mut book = Book::default();
        let peer: Peer = "a:1".into();
        book.configure(&[Arc::clone(&peer)]);
        let start = Instant::now();
        let mut now = start;
        let mut before = Duration::ZERO;
        for _ in 0..12 {
            assert_eq!(book.next(now), Some(Arc::clone(&peer)));
            book.linked(&peer);
            assert_eq!(book.next(now), None);
            book.unlinked(&peer, Blame::Failure, "gone", now);
            assert!(!book.has_ready(&[], now));
            let mut rest = REST;
            while !book.has_ready(&[], now + rest) {
                rest += REST;
            }
            assert!(rest >= before && rest <= REST_MAX, "{rest:?}");
            before = rest;
            now += rest;
        }
        book.delivered(&peer, 1);
        book.unlinked(&peer, Blame::Failure, "gone", now);
        assert!(book.has_ready(&[], now + REST));
        assert!(!book.has_ready(&[Arc::clone(&peer)], now + REST));
    }

    #[tokio::test(start_paused = true)]
    async fn two_lies_are_for_ever() {
        let mut book = Book::default();
        let peer: Peer = "a:1".into();
        book.learn("a:1");
        assert!(!book.lied(&peer));
        assert!(book.lied(&peer));
        let later = Instant::now() + Duration::from_secs(1_000_000);
        assert_eq!(book.next(later), None);
        // Neither the configuration nor a tracker brings it back.
        book.configure(&[Arc::clone(&peer)]);
        book.configure(&[]);
        book.learn("a:1");
        assert_eq!(book.next(later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_book_is_bounded_and_keeps_who_is_of_use() {
        let mut book = Book::default();
        book.configure(&["mine:1".into()]);
        for peer in 0..5000 {
            book.learn(&format!("{peer}:1"));
        }
        assert_eq!(book.records.len(), PEERS_MAX);
        let now = Instant::now();
        assert_eq!(book.next(now).as_deref(), Some("mine:1"));
        book.unlinked(&"7:1".into(), Blame::Misdeed, "no", now);
        book.learn("new:1");
        assert!(book.records.contains_key("new:1"));
        assert!(!book.records.contains_key("7:1"));
    }
}
