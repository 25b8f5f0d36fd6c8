//! One source with what is known of it, and the queue before it.
//!
//! A source has a number of places at once, which moves like TCP's window: up while full use costs no time, halved when
//! the source says that it has too much to do. Who finds none free waits in line, foreground before prefetch before
//! warming, and the lower classes always leave some places free, so that a reader finds one. The limit is of this source
//! only: wants that hang at a dead one take nothing from the others.
//!
//! Torrent swarms are one source, and each torrent has a desk of its own: other peers, other times, other places. A dead
//! swarm holds up its own readers and nobody else's.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Priority;
use super::report::SourceReport;
use super::times::{Times, UNKNOWN};
use crate::source::{BlockSource, SourceKind, Want};

/// Places that a source can grow to.
const LIMIT_MAX: usize = 64;

/// Places of a source until its first right answer: what hangs or lies there has to be fetched again.
const LIMIT_UNPROVEN: usize = 4;

/// The first ban of a liar; each further one is ten times as long, up to [`BAN_MAX`]. A flipped bit costs seconds.
const BAN: Duration = Duration::from_secs(2);
const BAN_MAX: Duration = Duration::from_secs(3600);

/// Trees that a source may have given wrong bytes of, remembered apart.
const TREES_MAX: usize = 256;

/// The rest after failures in a row: from the second one, doubling, up to [`REST_MAX`].
const REST: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(30);

/// How long a source that refused is left alone.
const REFUSED: Duration = Duration::from_secs(300);

/// Weight of one answer in the rate of hits.
const HIT_WEIGHT: f64 = 1.0 / 16.0;

/// A source with hits rarer than this is not ranked even lower.
const HIT_MIN: f64 = 0.05;

/// Torrents whose desks are remembered.
pub(super) const DESKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The cost of a source that is asked only when there is nobody else.
const COST_MAX: Duration = Duration::from_secs(3600);

/// A source and its desks. The desks outlive a change of the list of sources.
pub(super) struct Ranked {
    pub(super) source: Arc<dyn BlockSource>,
    desks: Arc<Desks>,
}

/// The desks of a source, and what they did together.
struct Desks {
    tally: Arc<Mutex<Tally>>,
    desks: Mutex<LruCache<Lane, Arc<Desk>>>,
}

/// What a desk is for: one torrent, or all of a source that is one.
type Lane = Option<[u8; 20]>;

/// What a source did so far, whatever for.
#[derive(Debug, Default)]
struct Tally {
    blocks: u64,
    bytes: u64,
    missing: u64,
    failures: u64,
    beaten: u64,
    lies: u64,
    last_error: Option<String>,
}

/// Whether a source can be asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Readiness {
    /// Yes; an answer is expected after so long.
    Ready(Duration),
    /// Not before this moment.
    Resting { until: Instant, lied: bool },
    /// It refused.
    Refused { said: String },
}

/// The places, the queue and the records of a source.
pub(super) struct Desk {
    state: Mutex<State>,
}

struct State {
    /// Whether it is many: that one swarm fails says nothing of another.
    many: bool,
    limit: usize,
    /// Successes since the limit last moved, while all places were taken.
    full: usize,
    next: u64,
    working: Vec<(u64, Instant)>,
    queues: [VecDeque<oneshot::Sender<Slot>>; 3],
    times: Times,
    hit: f64,
    /// Whether its last answer was right or an honest no.
    proven: bool,
    asked: bool,
    failures_in_row: u32,
    /// Failures, overloads and lies of attempts that began before this are of one event, and count once.
    counted: Option<Instant>,
    resting: Option<Rest>,
    strikes: u32,
    /// Trees that this source, asked by path, gave wrong bytes of.
    trees: HashMap<Arc<str>, Wrong>,
    tally: Arc<Mutex<Tally>>,
}

/// A tree that is not what its signature says, at one source.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    until: Instant,
    strikes: u32,
    /// Wrong answers to what was asked before this count once.
    counted: Instant,
}

#[derive(Clone, Debug)]
struct Rest {
    until: Instant,
    why: Why,
}

#[derive(Clone, Debug, PartialEq)]
enum Why {
    Overloaded,
    Failing,
    Lied,
    Refused(String),
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Delivered,
    Missing { said: String },
    Failed { said: String },
    Overloaded { said: String, wait: Duration },
    Refused { said: String },
    Lied { said: String, condemned: Condemned },
}

/// What a wrong answer condemns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condemned {
    /// The source as a whole.
    Source,
    /// The tree that was asked for.
    Tree,
    /// Nothing that is known here: the source sees to it.
    Nothing,
}

impl Ranked {
    /// Gives the source the desks it had, or new ones.
    pub(super) fn new(source: Arc<dyn BlockSource>, before: &[Arc<Ranked>]) -> Self {
        let known = before
            .iter()
            .find(|old| old.source.name() == source.name() && old.source.kind() == source.kind());
        let desks = match known {
            Some(old) => Arc::clone(&old.desks),
            None => Arc::new(Desks {
                tally: Arc::default(),
                desks: Mutex::new(LruCache::new(DESKS_MAX)),
            }),
        };
        for (_, desk) in desks.desks.lock().iter() {
            desk.pardon();
        }
        Ranked { source, desks }
    }

    /// Returns the desk where `want` is asked for.
    pub(super) fn desk(&self, want: &Want) -> Arc<Desk> {
        let kind = self.source.kind();
        let torrent = want.torrent.as_ref().map(|place| place.torrent.info_hash);
        let lane = torrent.filter(|_| kind == SourceKind::Torrent);
        let mut desks = self.desks.desks.lock();
        let desk = desks.get_or_insert(lane, || {
            let tally = Arc::clone(&self.desks.tally);
            Arc::new(Desk::new(self.source.parallel(), kind, tally))
        });
        Arc::clone(desk)
    }

    /// Returns how many desks there are.
    #[cfg(test)]
    pub(super) fn desks(&self) -> usize {
        self.desks.desks.lock().len()
    }

    /// Returns the tree that it is asked by, if it is one that is asked by path.
    pub(super) fn tree<'a>(&self, want: &'a Want) -> Option<&'a Arc<str>> {
        let place = want.place.as_ref()?;
        self.source.kind().answers_by_path().then_some(&place.tree)
    }

    /// Returns what it did; of several desks limit and times are those of the one that was last asked at.
    pub(super) fn report(&self, now: Instant) -> SourceReport {
        let desks: Vec<Arc<Desk>> = {
            let desks = self.desks.desks.lock();
            desks.iter().map(|(_, desk)| Arc::clone(desk)).collect()
        };
        let tally = self.desks.tally.lock();
        let mut report = SourceReport {
            name: self.source.name().to_owned(),
            kind: self.source.kind(),
            blocks: tally.blocks,
            bytes: tally.bytes,
            missing: tally.missing,
            failures: tally.failures,
            beaten: tally.beaten,
            lies: tally.lies,
            in_flight: 0,
            queued: 0,
            limit: self.source.parallel().clamp(1, LIMIT_MAX),
            usual: None,
            resting: None,
            last_error: tally.last_error.clone(),
            peers: Vec::new(),
        };
        drop(tally);
        for (nth, desk) in desks.iter().enumerate() {
            let state = desk.state.lock();
            report.in_flight += state.working.len();
            report.queued += state.queues.iter().map(VecDeque::len).sum::<usize>();
            report.usual = report.usual.or_else(|| state.times.mean(u32::MAX));
            if nth > 0 {
                continue;
            }
            report.limit = state.limit;
            let rest = state.resting.as_ref();
            report.resting = rest
                .map(|rest| rest.until.saturating_duration_since(now))
                .filter(|left| !left.is_zero());
        }
        report.peers = self.source.peers();
        report
    }
}

impl Tally {
    fn failed(&mut self, said: String) {
        self.failures += 1;
        self.last_error = Some(said);
    }
}

impl Desk {
    fn new(parallel: usize, kind: SourceKind, tally: Arc<Mutex<Tally>>) -> Self {
        Desk {
            state: Mutex::new(State {
                many: kind == SourceKind::Torrent,
                limit: parallel.clamp(1, LIMIT_MAX),
                full: 0,
                next: 0,
                working: Vec::new(),
                queues: Default::default(),
                times: Times::default(),
                hit: 1.0,
                proven: false,
                asked: false,
                failures_in_row: 0,
                counted: None,
                resting: None,
                strikes: 0,
                trees: HashMap::new(),
                tally,
            }),
        }
    }

    /// Forgets a refusal: the configuration may have changed, and so may what lies there.
    fn pardon(&self) {
        let mut state = self.state.lock();
        state.trees.clear();
        if matches!(
            &state.resting,
            Some(Rest {
                why: Why::Refused(_),
                ..
            })
        ) {
            state.resting = None;
        }
    }

    pub(super) fn proven(&self) -> bool {
        self.state.lock().proven
    }

    /// After which time its answer is late, and whether that is known rather than assumed.
    pub(super) fn late(&self, len: u32) -> (Duration, bool) {
        let state = self.state.lock();
        (state.times.late(len), state.proven)
    }

    /// Judges whether it can be asked for `len` bytes of `tree`. `probe`: others are proven, so an unproven one gets one
    /// want.
    pub(super) fn readiness(
        &self,
        len: u32,
        tree: Option<&Arc<str>>,
        probe: bool,
        now: Instant,
    ) -> Readiness {
        let mut state = self.state.lock();
        if let Some(rest) = &state.resting {
            if now < rest.until {
                return match &rest.why {
                    Why::Refused(said) => Readiness::Refused { said: said.clone() },
                    why => Readiness::Resting {
                        until: rest.until,
                        lied: *why == Why::Lied,
                    },
                };
            }
            state.resting = None;
        }
        if let Some(wrong) = tree.and_then(|tree| state.trees.get(tree))
            && now < wrong.until
        {
            return Readiness::Resting {
                until: wrong.until,
                lied: true,
            };
        }
        let mut time = match state.times.mean(len) {
            Some(mean) => mean,
            // Let it show what it can, once.
            None if !state.asked || !probe => Duration::from_millis(1),
            None => UNKNOWN,
        };
        // Judge one that is stuck by its oldest want, not by its past.
        if let Some(age) = state.working.iter().map(|(_, began)| now - *began).max()
            && age > state.times.late(len)
        {
            time = time.max(age);
        }
        if probe && !state.proven && !state.working.is_empty() {
            return Readiness::Ready(COST_MAX);
        }
        let limit = state.effective(probe);
        let queued: usize = state.queues.iter().map(VecDeque::len).sum();
        let load = (state.working.len() + queued) as f64 / limit as f64;
        let cost = time.as_secs_f64() * (1.0 + load) / state.hit.max(HIT_MIN);
        Readiness::Ready(Duration::from_secs_f64(cost).min(COST_MAX))
    }

    /// Takes a place if one is free for this class.
    pub(super) fn take(
        self: &Arc<Self>,
        class: Priority,
        probe: bool,
        now: Instant,
    ) -> Option<Slot> {
        let mut state = self.state.lock();
        let returned = state.dispatch(self, now);
        let ahead = state.queues[..=class as usize]
            .iter()
            .any(|queue| !queue.is_empty());
        let slot = (!ahead && state.free(class, probe)).then(|| state.open(self, now));
        drop(state);
        drop(returned);
        slot
    }

    /// Calls who is next in line, if there are places.
    pub(super) fn call(self: &Arc<Self>) {
        let returned = self.state.lock().dispatch(self, Instant::now());
        drop(returned);
    }

    /// Waits in line for a place.
    pub(super) fn queue(&self, class: Priority) -> oneshot::Receiver<Slot> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        let queue = &mut state.queues[class as usize];
        // Who left the line is taken out when the line grows, so that it is never longer than twice its waiters.
        if queue.len() >= 64 && queue.len().is_power_of_two() {
            queue.retain(|waiter| !waiter.is_closed());
        }
        queue.push_back(sender);
        receiver
    }

    /// Ends an attempt: records what became of it, frees the place and calls who is next.
    fn close(self: &Arc<Self>, slot: &Slot, len: u32, outcome: Option<Outcome>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.working.retain(|(id, _)| *id != slot.id);
        if slot.asked {
            state.record(slot, len, outcome, now);
        }
        let returned = state.dispatch(self, now);
        drop(state);
        drop(returned);
    }
}

impl State {
    /// A failing source is tried with one want until it answers again; so is an unproven one while others are proven.
    fn effective(&self, probe: bool) -> usize {
        if self.proven {
            self.limit
        } else if self.failures_in_row >= 2 || self.strikes > 0 || probe {
            1
        } else {
            self.limit.min(LIMIT_UNPROVEN)
        }
    }

    fn free(&self, class: Priority, probe: bool) -> bool {
        let limit = self.effective(probe);
        let usable = match class {
            Priority::Foreground => limit,
            Priority::Prefetch => limit - limit / 4,
            Priority::Warm => limit - limit / 2,
        };
        self.working.len() < usable.max(1)
    }

    /// Calls who is next while there are places. Returns the slots whose waiters left at that moment: they close
    /// themselves when dropped, which must not happen under the lock.
    fn dispatch(&mut self, desk: &Arc<Desk>, now: Instant) -> Vec<Slot> {
        let mut returned = Vec::new();
        if self.resting.as_ref().is_some_and(|rest| now < rest.until) {
            return returned;
        }
        for class in [Priority::Foreground, Priority::Prefetch, Priority::Warm] {
            while self.free(class, false)
                && let Some(waiter) = self.queues[class as usize].pop_front()
            {
                if !waiter.is_closed() {
                    let slot = self.open(desk, now);
                    returned.extend(waiter.send(slot).err());
                }
            }
            // Nobody overtakes a waiter of a higher class; who has left the line does not count.
            if !self.queues[class as usize].is_empty() {
                break;
            }
        }
        for queue in &mut self.queues {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
        }
        returned
    }

    fn open(&mut self, desk: &Arc<Desk>, now: Instant) -> Slot {
        let id = self.next;
        self.next += 1;
        self.working.push((id, now));
        Slot {
            desk: Arc::clone(desk),
            id,
            began: now,
            len: 0,
            tree: None,
            asked: false,
            closed: false,
        }
    }

    fn record(&mut self, slot: &Slot, len: u32, outcome: Option<Outcome>, now: Instant) {
        let began = slot.began;
        self.asked = true;
        let took = now - began;
        let first = self.counted.is_none_or(|counted| began >= counted);
        let Some(outcome) = outcome else {
            self.tally.lock().beaten += 1;
            self.times.at_least(len, took);
            self.hit -= self.hit * HIT_WEIGHT;
            return;
        };
        match outcome {
            Outcome::Delivered => {
                {
                    let mut tally = self.tally.lock();
                    tally.blocks += 1;
                    tally.bytes += u64::from(len);
                }
                self.times.sample(len, took);
                self.hit += (1.0 - self.hit) * HIT_WEIGHT;
                self.proven = true;
                self.failures_in_row = 0;
                if let Some(tree) = &slot.tree {
                    self.trees.remove(tree);
                }
                self.grow(len);
                return;
            }
            Outcome::Missing { .. } => {
                self.tally.lock().missing += 1;
                self.hit -= self.hit * HIT_WEIGHT;
                self.failures_in_row = 0;
                return;
            }
            Outcome::Failed { said } => {
                self.tally.lock().failed(said);
                self.hit -= self.hit * HIT_WEIGHT;
                if !first || self.many {
                    return;
                }
                self.failures_in_row = self.failures_in_row.saturating_add(1);
                if self.failures_in_row >= 2 {
                    self.proven = false;
                    let rest = REST * 2_u32.saturating_pow((self.failures_in_row - 2).min(16));
                    self.rest(now + rest.min(REST_MAX), Why::Failing);
                }
            }
            Outcome::Overloaded { said, wait } => {
                self.tally.lock().failed(said);
                if !first {
                    return;
                }
                self.limit = (self.limit / 2).max(1);
                self.full = 0;
                self.rest(now + wait, Why::Overloaded);
            }
            Outcome::Refused { said } => {
                self.tally.lock().failed(said.clone());
                self.proven = false;
                self.rest(now + REFUSED, Why::Refused(said));
            }
            Outcome::Lied { said, condemned } => {
                {
                    let mut tally = self.tally.lock();
                    tally.lies += 1;
                    tally.last_error = Some(said);
                }
                self.hit -= self.hit * HIT_WEIGHT;
                if condemned == Condemned::Tree
                    && let Some(tree) = &slot.tree
                {
                    self.strike_tree(tree, began, now);
                    // It may well have other trees: let it show that, too.
                    self.asked = false;
                }
                if condemned != Condemned::Source || !first {
                    return;
                }
                self.proven = false;
                let ban = BAN * 10_u32.saturating_pow(self.strikes.min(8));
                self.strikes = self.strikes.saturating_add(1);
                self.rest(now + ban.min(BAN_MAX), Why::Lied);
            }
        }
        self.counted = Some(now);
    }

    /// Leaves a tree alone for a while; a right answer out of it pardons it.
    fn strike_tree(&mut self, tree: &Arc<str>, began: Instant, now: Instant) {
        let before = self.trees.get(tree).copied();
        if before.is_some_and(|wrong| began < wrong.counted) {
            return;
        }
        let strikes = before.map_or(0, |wrong| wrong.strikes);
        if before.is_none() && self.trees.len() >= TREES_MAX {
            let soonest = self.trees.iter().min_by_key(|(_, wrong)| wrong.until);
            let soonest = soonest.map(|(tree, _)| Arc::clone(tree));
            soonest.map(|tree| self.trees.remove(&tree));
        }
        let ban = BAN * 10_u32.saturating_pow(strikes.min(8));
        let wrong = Wrong {
            until: now + ban.min(BAN_MAX),
            strikes: strikes.saturating_add(1),
            counted: now,
        };
        self.trees.insert(Arc::clone(tree), wrong);
    }

    /// Rests until a moment, unless it rests longer already.
    fn rest(&mut self, until: Instant, why: Why) {
        if self.resting.as_ref().is_none_or(|rest| rest.until < until) {
            self.resting = Some(Rest { until, why });
        }
    }

    /// One place more after as many successes as there are places, all taken; unless full use makes each answer slower,
    /// for then the source, or the line to it, is busy already.
    fn grow(&mut self, len: u32) {
        if self.working.len() + 1 < self.limit || self.times.crowded(len) {
            return;
        }
        self.full += 1;
        if self.full >= self.limit {
            self.full = 0;
            self.limit = (self.limit + 1).min(LIMIT_MAX);
        }
    }
}

/// A place at a source's desk. Dropping it unfinished says that the source was beaten, or given up.
pub(super) struct Slot {
    desk: Arc<Desk>,
    id: u64,
    began: Instant,
    len: u32,
    /// The tree that is asked for, where the source knows trees.
    tree: Option<Arc<str>>,
    asked: bool,
    closed: bool,
}

impl Slot {
    pub(super) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    /// Says that the source is being asked for `len` bytes, of a tree perhaps, from now on.
    pub(super) fn asking(&mut self, len: u32, tree: Option<Arc<str>>) {
        self.asked = true;
        self.len = len;
        self.tree = tree;
        self.began = Instant::now();
    }

    pub(super) fn finish(mut self, outcome: Outcome) {
        self.closed = true;
        let desk = Arc::clone(&self.desk);
        desk.close(&self, self.len, Some(outcome));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.closed {
            self.closed = true;
            let desk = Arc::clone(&self.desk);
            desk.close(self, self.len, None);
        }
    }
}
