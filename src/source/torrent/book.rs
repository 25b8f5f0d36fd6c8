//! The peers of a swarm that we know of: where they are, and how they behaved.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Peers of one swarm that are remembered.
const PEERS_MAX: usize = 256;

/// Lies after which a peer is not asked again while this process lives.
const LIES_MAX: u32 = 2;

/// Proven liars of all swarms that are remembered.
const LIARS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// The rest after a failure; doubles with each one in a row up to [`REST_MAX`].
const REST: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(60);

/// How long a peer is left alone that broke the protocol; doubles as above.
const REST_MISDEED: Duration = Duration::from_secs(5);

/// What is said of a peer that lied.
const WRONG_BYTES: &str = "sent wrong bytes";

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

/// Peers that were proven to lie, in whatever swarm: somebody else of the same swarm had the right bytes.
///
/// Where nobody had them the torrent itself may hold other bytes than its manifest signs. That is held against a peer in
/// that swarm, and not in others: it may be the one honest seed of everything else.
#[derive(Debug)]
pub(super) struct Liars(Mutex<LruCache<Peer, u32>>);

impl Default for Liars {
    fn default() -> Self {
        Liars(Mutex::new(LruCache::new(LIARS_MAX)))
    }
}

impl Liars {
    fn add(&self, peer: &Peer) {
        *self.0.lock().get_or_insert_mut(Arc::clone(peer), || 0) += 1;
    }

    /// Returns whether a peer is asked for nothing any more.
    pub(super) fn banned(&self, peer: &str) -> bool {
        // Looking does not count as use: who lied last is remembered longest.
        self.0
            .lock()
            .peek(peer)
            .is_some_and(|lies| *lies >= LIES_MAX)
    }
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    records: HashMap<Peer, Record>,
    liars: Arc<Liars>,
}

impl Book {
    /// Makes an empty book that shares what is known of liars with other swarms' books.
    pub(super) fn new(liars: Arc<Liars>) -> Self {
        Book {
            records: HashMap::new(),
            liars,
        }
    }

    /// Returns whether a peer is not asked any more.
    pub(super) fn banned(&self, peer: &str) -> bool {
        let here = |record: &Record| record.lies >= LIES_MAX;
        self.records.get(peer).is_some_and(here) || self.liars.banned(peer)
    }

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
        if self.records.contains_key(peer) || self.liars.banned(peer) {
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
            .filter(|(peer, record)| record.ready(now) && !self.liars.banned(peer))
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
        self.records.iter().any(|(peer, record)| {
            record.ready(now) && !avoid.contains(peer) && !self.liars.banned(peer)
        })
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

    /// Notes a wrong answer, `proven` if another peer had the right one; returns whether the peer is not asked any more.
    pub(super) fn lied(&mut self, peer: &Peer, proven: bool) -> bool {
        if proven {
            self.liars.add(peer);
        }
        if let Some(record) = self.records.get_mut(peer) {
            record.lies += 1;
            record.last_error = Some(WRONG_BYTES.to_owned());
        }
        self.banned(peer)
    }

    /// Returns what is known of each peer.
    pub(super) fn records(&self) -> impl Iterator<Item = (&Peer, &Record)> {
        self.records.iter()
    }

    /// Returns whether peers are known, and none of them is asked any more.
    pub(super) fn all_banned(&self) -> bool {
        !self.records.is_empty() && self.records.keys().all(|peer| self.banned(peer))
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
        !self.linked && self.lies < LIES_MAX && self.until.is_none_or(|until| until <= now)
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
        assert!(!book.lied(&peer, false));
        assert!(book.lied(&peer, false) && book.all_banned());
        let later = Instant::now() + Duration::from_secs(1_000_000);
        assert_eq!(book.next(later), None);
        // Neither the configuration nor a tracker brings it back.
        book.configure(&[Arc::clone(&peer)]);
        book.configure(&[]);
        book.learn("a:1");
        assert_eq!(book.next(later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proven_liar_is_banned_from_every_swarm_and_a_suspect_from_one() {
        let liars = Arc::new(Liars::default());
        let mut books = [(); 2].map(|()| Book::new(Arc::clone(&liars)));
        let (liar, suspect): (Peer, Peer) = ("liar:1".into(), "suspect:1".into());
        for book in &mut books {
            book.configure(&[Arc::clone(&liar), Arc::clone(&suspect)]);
        }
        for _ in 0..LIES_MAX {
            books[0].lied(&liar, true);
            books[0].lied(&suspect, false);
        }
        let now = Instant::now();
        assert!(books[0].all_banned());
        assert_eq!(books[0].next(now), None);
        assert!(!books[0].has_ready(&[], now));
        // Known there before, never heard of, or told of again.
        assert!(books[1].banned(&liar) && !books[1].banned(&suspect));
        assert_eq!(books[1].next(now), Some(Arc::clone(&suspect)));
        assert!(!books[1].has_ready(&[suspect], now));
        let mut other = Book::new(liars);
        other.learn(&liar);
        assert!(other.records().next().is_none());
    }

    #[test]
    fn the_list_of_liars_is_bounded() {
        let liars = Liars::default();
        for peer in 0..2 * LIARS_MAX.get() {
            liars.add(&peer.to_string().into());
        }
        assert_eq!(liars.0.lock().len(), LIARS_MAX.get());
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
