//! The peers of one torrent, and the tasks that talk with them.
//!
//! A swarm wakes with the first block that is asked of it: its keeper dials peers, looks for more, and ends when nothing
//! has been asked for a while. Each connection is a task of its own. All of them decide under one short lock, in
//! [`State`].

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, sleep};

use super::book::{Blame, Book, Peer};
use super::job::{Delivered, Job, Part, Terms};
use super::state::State;
use super::{Found, Patience, Shared, connection};
use crate::net::Client;
use crate::source::{PeerReport, SourceError, Spill, Torrent};

/// How often the keeper looks after a swarm that works, and one that waits.
const TICK: Duration = Duration::from_millis(25);
const TICK_IDLE: Duration = Duration::from_secs(1);

/// Time that a search for peers may take.
const SEARCH: Duration = Duration::from_secs(15);

/// The times between two searches at least and at most, whatever a tracker says; the first is that after a fruitless one.
const SEARCH_AGAIN: Duration = Duration::from_secs(30);
const SEARCH_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Time for telling trackers that nobody reads here any more, also when the program ends.
const FAREWELL: Duration = Duration::from_secs(3);

/// Trackers that are remembered to have been told; a release index names 16, and may change.
const KNOWN_MAX: usize = 64;

/// A swarm.
pub(super) struct Swarm {
    shared: Arc<Shared>,
    torrent: Mutex<Arc<Torrent>>,
    state: Mutex<State>,
    bell: Notify,
    keeper: Mutex<Keeper>,
}

#[derive(Default)]
struct Keeper {
    running: bool,
    /// When peers may be looked for again.
    search: Option<Instant>,
    /// Who has told of peers, and takes us for one of them.
    known: Vec<String>,
}

impl Swarm {
    pub(super) fn new(shared: Arc<Shared>, torrent: Arc<Torrent>) -> Arc<Self> {
        let book = Book::new(Arc::clone(&shared.liars));
        let mut state = State::new(shared.patience, book, Instant::now());
        state.pieces = pieces(&torrent);
        Arc::new(Swarm {
            shared,
            torrent: Mutex::new(torrent),
            state: Mutex::new(state),
            bell: Notify::new(),
            keeper: Mutex::new(Keeper::default()),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn patience(&self) -> Patience {
        self.shared.patience
    }

    pub(super) fn client(&self) -> Client {
        self.shared.settings.load().client.clone()
    }

    pub(super) fn info_hash(&self) -> [u8; 20] {
        self.torrent.lock().info_hash
    }

    pub(super) fn peer_id(&self) -> [u8; 20] {
        self.shared.peer_id
    }

    /// Takes what is newly known of the torrent: how long it is, and its trackers.
    pub(super) fn update(&self, torrent: &Arc<Torrent>) {
        let mut known = self.torrent.lock();
        if Arc::ptr_eq(&known, torrent) {
            return;
        }
        if known.trackers != torrent.trackers {
            self.keeper.lock().search = None;
        }
        // A want of the catalog does not know the length that an earlier one told.
        if torrent.bytes.is_some() || known.bytes.is_none() {
            *known = Arc::clone(torrent);
        }
        drop(known);
        if torrent.bytes.is_some() {
            self.state.lock().pieces = pieces(torrent);
        }
    }

    /// Asks the peers for a block's parts. Cancel-safe.
    pub(super) async fn ask(
        self: &Arc<Self>,
        parts: Vec<Part>,
        len: u32,
        terms: Terms,
        spill: &Spill,
    ) -> Result<Delivered, SourceError> {
        let (done, answer) = oneshot::channel();
        let job = Job::new(parts, len, terms, spill.clone(), done);
        let id = self.state.lock().add(job);
        let _withdraw = Withdraw { swarm: self, id };
        self.keep();
        match answer.await {
            Ok(result) => result,
            Err(_) => Err(SourceError::unavailable("shutting down")),
        }
    }

    /// Wakes the keeper, or starts it.
    fn keep(self: &Arc<Self>) {
        self.bell.notify_one();
        let mut keeper = self.keeper.lock();
        if keeper.running || self.shared.closed.is_cancelled() {
            drop(keeper);
            if self.shared.closed.is_cancelled() {
                self.state.lock().jobs.clear();
            }
            return;
        }
        keeper.running = true;
        drop(keeper);
        let swarm = Arc::clone(self);
        self.shared.tasks.spawn(async move { swarm.run().await });
    }

    async fn run(self: Arc<Self>) {
        let closed = self.shared.closed.clone();
        let configured = self.shared.settings.load_full();
        self.state.lock().book.configure(&configured.peers);
        let mut configured = configured;
        loop {
            let now_configured = self.shared.settings.load_full();
            if !Arc::ptr_eq(&configured, &now_configured) {
                configured = now_configured;
                self.state.lock().book.configure(&configured.peers);
            }
            let now = Instant::now();
            self.search(now);
            let (duties, working) = {
                let mut state = self.state.lock();
                let duties = state.tick(now);
                (duties, !state.jobs.is_empty())
            };
            for (id, peer, wake) in duties.dial {
                self.connect(id, peer, wake);
            }
            if !working && self.ended() {
                self.leave().await;
                return;
            }
            let tick = if working { TICK } else { TICK_IDLE };
            tokio::select! {
                () = closed.cancelled() => break,
                () = self.bell.notified() => {}
                () = sleep(tick) => {}
            }
        }
        {
            let mut state = self.state.lock();
            state.hang_up("shutting down");
            state.jobs.clear();
        }
        self.keeper.lock().running = false;
        self.leave().await;
    }

    /// Tells those who told of peers that nobody reads here any more.
    async fn leave(&self) {
        let known = {
            let mut keeper = self.keeper.lock();
            if keeper.known.is_empty() {
                return;
            }
            // Who comes back begins anew, and at once.
            keeper.search = None;
            std::mem::take(&mut keeper.known)
        };
        let Some(finder) = self.shared.settings.load().finder.clone() else {
            return;
        };
        let torrent = Arc::clone(&self.torrent.lock());
        let leave = finder.leave(&torrent, self.shared.peer_id, &known);
        // Also when the program ends, which waits for this, and no longer.
        let _ = tokio::time::timeout(FAREWELL, leave).await;
    }

    /// Returns whether nothing is left to look after; the keeper has ended then.
    fn ended(&self) -> bool {
        // The order of the locks is keeper, state; a job that comes now finds the keeper not running, and starts it.
        let mut keeper = self.keeper.lock();
        let state = self.state.lock();
        let ended = state.jobs.is_empty() && state.links.is_empty();
        keeper.running = !ended;
        ended
    }

    fn connect(self: &Arc<Self>, id: u64, peer: Peer, wake: Arc<Notify>) {
        let Ok(permit) = Arc::clone(&self.shared.connections).try_acquire_owned() else {
            let now = Instant::now();
            self.state
                .lock()
                .close(id, Blame::None, "too many connections", now);
            self.shared.make_room();
            return;
        };
        let swarm = Arc::clone(self);
        self.shared.tasks.spawn(async move {
            let _permit = permit;
            let closed = swarm.shared.closed.clone();
            let talk = connection::run(&swarm, id, &peer, &wake);
            let end = closed.run_until_cancelled(talk).await;
            let Some(end) = end else { return };
            tracing::debug!(%peer, why = %end.1, "connection to a peer ended");
            swarm.state.lock().close(id, end.0, &end.1, Instant::now());
            swarm.bell.notify_one();
        });
    }

    /// Looks for peers where the torrent's trackers are, if it is time.
    fn search(self: &Arc<Self>, now: Instant) {
        let torrent = Arc::clone(&self.torrent.lock());
        let Some(finder) = self.shared.settings.load().finder.clone() else {
            return;
        };
        if !finder.serves(&torrent) || self.state.lock().jobs.is_empty() {
            return;
        }
        let known = {
            let mut keeper = self.keeper.lock();
            if keeper.search.is_some_and(|at| now < at) {
                return;
            }
            keeper.search = Some(now + SEARCH_AGAIN);
            keeper.known.clone()
        };
        self.state.lock().searching = true;
        let swarm = Arc::clone(self);
        self.shared.tasks.spawn(async move {
            let closed = swarm.shared.closed.clone();
            let told = |found: Found| swarm.learn(found);
            let find = finder.find(&torrent, swarm.shared.peer_id, &known, &told);
            let find = tokio::time::timeout(SEARCH, find);
            let again = match closed.run_until_cancelled(find).await {
                Some(Ok(Some(again))) => again.clamp(SEARCH_AGAIN, SEARCH_AGAIN_MAX),
                _ => SEARCH_AGAIN,
            };
            swarm.keeper.lock().search = Some(Instant::now() + again);
            swarm.state.lock().searching = false;
            swarm.bell.notify_one();
        });
    }

    /// Notes peers that somebody told of; those that may not be dialled are left out.
    fn learn(&self, found: Found) {
        let client = self.client();
        {
            let mut keeper = self.keeper.lock();
            let new = found.by.filter(|by| !keeper.known.contains(by));
            if keeper.known.len() < KNOWN_MAX {
                keeper.known.extend(new);
            }
        }
        let mut state = self.state.lock();
        for address in &found.peers {
            if client.filter().dial(*address).is_ok() && address.port() != 0 {
                state.book.learn(&address.to_string());
            }
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Notes what became of a block: who sent right bytes, and how many, and who sent wrong ones.
    /// `proven`: those were wrong, since others were right.
    pub(super) fn judged(&self, right: &[(Peer, u64)], liars: &[Peer], proven: bool) {
        let mut state = self.state.lock();
        for (peer, bytes) in right {
            state.book.delivered(peer, *bytes);
            state.verdict(peer, true);
        }
        for peer in liars {
            tracing::warn!(%peer, "a peer sent wrong bytes");
            state.lied(peer, proven);
        }
    }

    /// Ends the connections of a swarm of which nothing is asked. Returns whether there were any.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.state.lock();
        if !state.jobs.is_empty() || state.links.is_empty() {
            return false;
        }
        state.hang_up("others need connections more");
        true
    }

    /// Adds what is known of its peers to `reports`.
    pub(super) fn report(&self, reports: &mut Vec<PeerReport>) {
        let state = self.state.lock();
        for (peer, record) in state.book.records() {
            let report = match reports.iter_mut().find(|known| known.name == **peer) {
                Some(known) => known,
                None => {
                    reports.push(PeerReport {
                        name: peer.to_string(),
                        ..PeerReport::default()
                    });
                    let Some(last) = reports.last_mut() else {
                        return;
                    };
                    last
                }
            };
            report.blocks += record.blocks;
            report.bytes += record.bytes;
            report.failures += record.failures;
            report.lies += u64::from(record.lies);
            report.connected |= record.linked;
            report.banned |= state.book.banned(peer);
            if record.client.is_some() {
                report.client.clone_from(&record.client);
            }
            if record.last_error.is_some() {
                report.last_error.clone_from(&record.last_error);
            }
        }
        for link in state.links.values() {
            if let Some(report) = reports.iter_mut().find(|known| known.name == *link.peer) {
                report.usual = link.pace.usual().or(report.usual);
            }
        }
    }
}

/// Returns how many pieces there are, if that is known.
fn pieces(torrent: &Torrent) -> Option<u32> {
    let pieces = torrent.bytes?.div_ceil(torrent.piece_bytes.max(1));
    u32::try_from(pieces).ok()
}

/// Takes a job back when nobody waits for it any more.
struct Withdraw<'a> {
    swarm: &'a Swarm,
    id: u64,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.swarm.state.lock().cancel(self.id, Instant::now());
    }
}
