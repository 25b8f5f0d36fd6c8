//! What a swarm knows and decides, without a socket: which connection is asked for which part of which block.
//!
//! Every connection pulls: whenever it has room in its window it takes parts that wait, so a fast peer gets more than a
//! slow one. Three rules beside that:
//!
//! - A connection that has not delivered a right block yet works on one block only, by itself. So a liar spoils
//!   little, and is known at once.
//! - A peer much slower than another one that has room takes nothing; it would only make a reader wait.
//! - A connection with nothing to do takes over what a late one was asked for. The first answer counts, the other request
//!   is cancelled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Patience;
use super::book::{Blame, Book, Peer};
use super::job::Job;
use super::link::{Doom, Link, Misdeed, Trial};
use super::wire::{self, Heard, Key, PIECES_MAX};
use crate::source::SourceError;

/// Connections that are made for one swarm, and how many there may be while some of them are choked.
const LINKS: usize = 8;
const LINKS_MAX: usize = 16;

/// Requests that one of several peers takes of a block at least.
const SHARE_MIN: usize = 8;

/// A connection that is silent for this time, or four times its usual one, is late.
const LATE: Duration = Duration::from_millis(100);

/// A peer is left out if it takes so many times longer than another one that has room.
const SLOWER: u32 = 3;

/// What a slow peer's queue must take longer than a quick peer's before the quick one takes it over.
const TAKE_OVER: Duration = Duration::from_millis(200);

/// Peers that are asked for one part at once.
const COPIES_MAX: u8 = 2;

/// A part that a peer passed over, answering later ones, is asked elsewhere at once, and given up after this time.
const PASSED_OVER: Duration = Duration::from_millis(500);
const PASSED_OVER_MAX: Duration = Duration::from_secs(3);

/// How long a new connection may take to say which pieces it has.
const SETTLE: Duration = Duration::from_secs(1);

/// How long a block that has to come from one peer waits for a silent one when there is another.
const ALONE_PATIENCE: Duration = Duration::from_secs(2);

/// Requests that a peer may pass over before it is hung up on.
const PASSED_OVER_TIMES: u32 = 64;

/// How long a verdict takes at most: hashing a block.
const VERDICT: Duration = Duration::from_millis(500);

/// What the swarm's keeper has to do.
#[derive(Debug, Default)]
pub(super) struct Duties {
    /// Peers to dial, with the numbers of their connections.
    pub(super) dial: Vec<(u64, Peer, Arc<Notify>)>,
}

/// The state of a swarm.
pub(super) struct State {
    pub(super) patience: Patience,
    pub(super) jobs: BTreeMap<u64, Job>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) book: Book,
    /// Pieces of the torrent, once that is known.
    pub(super) pieces: Option<u32>,
    /// Whether somebody is being asked for peers.
    pub(super) searching: bool,
    /// When the last job ended.
    pub(super) idle_since: Instant,
    next: u64,
}

impl State {
    pub(super) fn new(patience: Patience, book: Book, now: Instant) -> Self {
        State {
            patience,
            jobs: BTreeMap::new(),
            links: BTreeMap::new(),
            book,
            pieces: None,
            searching: false,
            idle_since: now,
            next: 0,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes a block to fetch; returns its number.
    pub(super) fn add(&mut self, job: Job) -> u64 {
        let id = self.number();
        self.jobs.insert(id, job);
        self.wake_all();
        id
    }

    /// Forgets a block that nobody waits for any more.
    pub(super) fn cancel(&mut self, id: u64, now: Instant) {
        if self.jobs.remove(&id).is_some() {
            self.withdraw(id, now);
        }
    }

    /// Takes back every request of a job.
    fn withdraw(&mut self, id: u64, now: Instant) {
        self.idle_since = now;
        for link in self.links.values_mut() {
            link.take_back_job(id);
        }
    }

    pub(super) fn wake_all(&self) {
        for link in self.links.values() {
            link.wake.notify_one();
        }
    }

    /// Notes that a connection stands: both sides have shaken hands.
    pub(super) fn open(&mut self, id: u64, now: Instant) {
        if let Some(link) = self.links.get_mut(&id) {
            link.opened = Some(now);
            link.choked_since = now;
        }
    }

    /// Notes the end of a connection, and lets others do what it was asked for.
    pub(super) fn close(&mut self, id: u64, blame: Blame, why: &str, now: Instant) {
        let Some(mut link) = self.links.remove(&id) else {
            return;
        };
        self.book.unlinked(&link.peer, blame, why, now);
        for asked in link.take_back_all() {
            if let Some(job) = self.jobs.get_mut(&asked.job) {
                job.give_back(asked.part);
            }
        }
        self.disown(id);
        self.wake_all();
    }

    /// Lets others have the jobs of a connection that does not work on them any more.
    fn disown(&mut self, id: u64) {
        for job in self.jobs.values_mut().filter(|job| job.owner == Some(id)) {
            if job.terms.alone {
                job.restart();
            }
            job.owner = None;
        }
    }

    /// Takes what a peer said.
    pub(super) fn hear(&mut self, id: u64, heard: Heard<'_>, now: Instant) -> Result<(), Misdeed> {
        let pieces = self.pieces;
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        match heard {
            Heard::Piece {
                piece,
                begin,
                bytes,
            } => return self.take(id, piece, begin, bytes, now),
            Heard::Choke => {
                link.flap()?;
                if !link.choked {
                    link.choked = true;
                    link.choked_since = now;
                    // It forgets what it was asked for; some have an answer on its way yet.
                    for asked in link.take_back_all() {
                        if let Some(job) = self.jobs.get_mut(&asked.job) {
                            job.give_back(asked.part);
                        }
                    }
                    self.disown(id);
                    self.wake_all();
                }
            }
            Heard::Unchoke => {
                link.flap()?;
                link.choked = false;
            }
            Heard::Have(piece) => {
                link.noise(9)?;
                if piece >= pieces.unwrap_or(PIECES_MAX) {
                    return Err(Misdeed::Piece);
                }
                link.set(piece);
            }
            Heard::Bitfield(bits) => {
                link.noise(bits.len())?;
                let exact = pieces.map(|pieces| pieces.div_ceil(8) as usize);
                let most = (PIECES_MAX / 8) as usize;
                if exact.is_some_and(|exact| bits.len() != exact) || bits.len() > most {
                    return Err(Misdeed::Bitfield);
                }
                link.set_all(bits);
            }
            Heard::Hello { client, queue } => {
                link.noise(64)?;
                if let Some(queue) = queue {
                    link.pace.set_queue(queue);
                }
                let peer = Arc::clone(&link.peer);
                if let Some(client) = client {
                    self.book.client(&peer, client);
                }
            }
            Heard::Noise => link.noise(16)?,
        }
        Ok(())
    }

    fn take(
        &mut self,
        id: u64,
        piece: u32,
        begin: u32,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Misdeed> {
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        let len = u32::try_from(bytes.len()).map_err(|_| Misdeed::Unasked)?;
        let key = Key { piece, begin, len };
        let Some(asked) = link.answer(key, now)? else {
            return Ok(());
        };
        let peer = Arc::clone(&link.peer);
        let Some(job) = self.jobs.get_mut(&asked.job) else {
            return Ok(());
        };
        let copies = job.copies[asked.part];
        job.copies[asked.part] = copies.saturating_sub(1);
        if !job.put(asked.part, bytes, &peer) {
            return Ok(());
        }
        let complete = job.left == 0;
        if copies > 1 {
            // The same bytes may be asked for under another job, too; only this one's requests are of no use any more.
            for link in self.links.values_mut() {
                let same = link
                    .asked()
                    .get(&key)
                    .is_some_and(|other| (other.job, other.part) == (asked.job, asked.part));
                if same && link.take_back(key).is_some() {
                    job.copies[asked.part] = job.copies[asked.part].saturating_sub(1);
                }
            }
        }
        if complete && let Some(job) = self.jobs.remove(&asked.job) {
            self.idle_since = now;
            job.finish(None);
        }
        Ok(())
    }

    /// Writes to `out` what a connection has to say now: cancels, and as many requests as its window takes.
    pub(super) fn fill(&mut self, id: u64, out: &mut BytesMut, now: Instant) -> Result<(), Doom> {
        let Some(mut link) = self.links.remove(&id) else {
            return Err(Doom(Blame::None, "closed".to_owned()));
        };
        let result = link.doom.clone().map_or(Ok(()), Err);
        if result.is_ok() {
            for key in link.cancels.drain(..) {
                wire::cancel(out, key);
            }
            if link.ready() {
                self.assign(id, &mut link, out, now);
            }
        }
        self.links.insert(id, link);
        result
    }

    /// Takes waiting parts for a connection, which is not among `self.links` meanwhile.
    fn assign(&mut self, id: u64, link: &mut Link, out: &mut BytesMut, now: Instant) {
        let mut room = link.room();
        let proven: Vec<&Link> = self
            .links
            .values()
            .filter(|other| other.ready() && other.proven)
            .collect();
        let other_trial = self.links.values().any(|other| other.trial.is_some());
        let waiting = self
            .jobs
            .values()
            .filter(|job| !job.pending.is_empty())
            .count();
        if let Some(trial) = &mut link.trial
            && !self.jobs.contains_key(&trial.job)
        {
            // Its verdict comes in a moment, unless nobody waits for the block any more.
            let ended = *trial.ended.get_or_insert(now);
            if now.saturating_duration_since(ended) >= VERDICT {
                link.trial = None;
            }
        }
        for (number, job) in &mut self.jobs {
            if room == 0 {
                link.pace.filled();
                break;
            }
            if job.pending.is_empty()
                || job.owner.is_some_and(|owner| owner != id)
                || job.terms.avoid.contains(&link.peer)
            {
                continue;
            }
            let able = |other: &&&Link| {
                !job.terms.avoid.contains(&other.peer)
                    && job.parts.iter().all(|part| other.has(part.key.piece))
            };
            let able: Vec<&&Link> = proven.iter().filter(able).collect();
            if job.owner.is_none() && (!link.proven || job.terms.alone) {
                if !job.parts.iter().all(|part| link.has(part.key.piece)) && job.untouched() {
                    continue;
                }
                if !link.proven {
                    if link.trial.is_some_and(|trial| trial.job != *number) {
                        continue;
                    }
                    let better = able.iter().any(|other| other.room() > 0);
                    if !able.is_empty()
                        && (other_trial || (waiting == 1 && better) || !job.untouched())
                    {
                        continue;
                    }
                    link.trial = Some(Trial {
                        job: *number,
                        ended: None,
                    });
                }
                if job.untouched() {
                    job.owner = Some(id);
                }
            } else if job.owner.is_none() {
                let bytes = job.pending.len() as u64 * u64::from(wire::REQUEST_BYTES);
                let mine = link.turn(bytes);
                let better = |other: &&&Link| {
                    other.room() >= job.pending.len().min(SHARE_MIN)
                        && other.turn(bytes) * SLOWER < mine
                };
                if able.iter().any(better) {
                    continue;
                }
            }
            let share = match (job.owner, able.len()) {
                (None, others) if others > 0 => {
                    job.pending.len().div_ceil(others + 1).max(SHARE_MIN)
                }
                _ => job.pending.len(),
            };
            let mut passed = VecDeque::new();
            let mut taken = 0;
            while taken < share.min(room)
                && let Some(part) = job.pending.pop_front()
            {
                let key = job.parts[part].key;
                if !link.has(key.piece) || !link.ask(key, *number, part, now) {
                    passed.push_back(part);
                    continue;
                }
                job.copies[part] += 1;
                wire::ask(out, key);
                taken += 1;
            }
            passed.append(&mut job.pending);
            job.pending = passed;
            room -= taken;
        }
        if link.asked().len() < SHARE_MIN && room > 0 {
            self.take_over(link, room, out, now);
        }
    }

    /// Asks for what late connections were asked for, too.
    fn take_over(&mut self, link: &mut Link, mut room: usize, out: &mut BytesMut, now: Instant) {
        if link
            .looked
            .is_some_and(|at| now.saturating_duration_since(at) < LATE / 4)
        {
            return;
        }
        link.looked = Some(now);
        let late = LATE.max(link.pace.estimate(0) * 4);
        for other in self.links.values() {
            let silent = other.silent(now) >= late;
            let bytes = other.asked_bytes();
            let slow = other.turn(0) > link.pace.estimate(bytes) * 2 + TAKE_OVER;
            let mut queue: Vec<_> = other
                .asked()
                .iter()
                .filter(|(key, asked)| {
                    link.has(key.piece)
                        && (silent || slow || other.passes_over(asked, PASSED_OVER, now))
                })
                .collect();
            // The last ones would come last.
            queue.sort_unstable_by_key(|(_, asked)| std::cmp::Reverse(asked.order));
            if slow && !silent {
                queue.truncate(queue.len().div_ceil(2));
            }
            for (key, asked) in queue {
                let Some(job) = self.jobs.get_mut(&asked.job) else {
                    continue;
                };
                if room == 0
                    || job.terms.alone
                    || job.copies[asked.part] >= COPIES_MAX
                    || job.terms.avoid.contains(&link.peer)
                    || !link.ask(*key, asked.job, asked.part, now)
                {
                    continue;
                }
                job.copies[asked.part] += 1;
                wire::ask(out, *key);
                room -= 1;
            }
        }
    }

    /// Looks after everything that time changes; says whom to dial.
    pub(super) fn tick(&mut self, now: Instant) -> Duties {
        self.doom_the_useless(now);
        self.give_up_passed_over(now);
        self.release_owned(now);
        let mut duties = Duties::default();
        if !self.jobs.is_empty() {
            let counted =
                |link: &&Link| link.doom.is_none() && (!link.choked || link.is_new(now, SETTLE));
            let mut useful = self.links.values().filter(counted).count();
            while useful < LINKS
                && self.links.len() < LINKS_MAX
                && let Some(peer) = self.book.next(now)
            {
                let id = self.number();
                let link = Link::new(Arc::clone(&peer), now);
                duties
                    .dial
                    .push((id, Arc::clone(&peer), Arc::clone(&link.wake)));
                self.book.linked(&peer);
                self.links.insert(id, link);
                useful += 1;
            }
        }
        self.fail_the_hopeless(now);
        if !self.jobs.is_empty() {
            self.wake_all();
        }
        duties
    }

    fn doom_the_useless(&mut self, now: Instant) {
        let patience = self.patience;
        let wanted = !self.jobs.is_empty();
        for link in self.links.values_mut().filter(|link| link.opened.is_some()) {
            if self.book.banned(&link.peer) {
                link.end(
                    Blame::Misdeed,
                    "sent wrong bytes, of this torrent or another",
                );
            }
            if link.silent(now) >= patience.stall {
                link.end(Blame::Misdeed, "stalled");
            }
            let choked = now.saturating_duration_since(link.choked_since);
            if wanted && link.choked && choked >= patience.choked {
                link.end(Blame::Misdeed, "never unchoked us");
            }
        }
        let idle = now.saturating_duration_since(self.idle_since) >= patience.idle;
        if !wanted && idle {
            self.hang_up("not needed any more");
        }
    }

    /// Ends all connections.
    pub(super) fn hang_up(&mut self, why: &str) {
        for link in self.links.values_mut() {
            link.end(Blame::None, why);
        }
    }

    /// A peer that answers others but not this request has not got the piece, whatever it said.
    fn give_up_passed_over(&mut self, now: Instant) {
        for link in self.links.values_mut() {
            let passed = link.asked().iter();
            let passed = passed.filter(|(_, asked)| link.passes_over(asked, PASSED_OVER_MAX, now));
            for key in passed.map(|(key, _)| *key).collect::<Vec<_>>() {
                if let Some(asked) = link.take_back(key)
                    && let Some(job) = self.jobs.get_mut(&asked.job)
                {
                    job.give_back(asked.part);
                }
                link.unset(key.piece);
                link.passed_over += 1;
            }
            if link.passed_over > PASSED_OVER_TIMES {
                link.end(Blame::Misdeed, "has not got what it says");
            }
        }
    }

    /// Takes blocks that one peer has for itself away from it when it is silent and another one could do it.
    fn release_owned(&mut self, now: Instant) {
        let mut release = Vec::new();
        for (number, job) in &self.jobs {
            let Some(owner) = job.owner else { continue };
            let silent = self
                .links
                .get(&owner)
                .map_or(Duration::MAX, |link| link.silent(now));
            let patience = if job.terms.alone {
                ALONE_PATIENCE
            } else {
                LATE
            };
            let another = || {
                self.links.iter().any(|(id, link)| {
                    *id != owner
                        && link.ready()
                        && !job.terms.avoid.contains(&link.peer)
                        && job.parts.iter().all(|part| link.has(part.key.piece))
                })
            };
            if silent >= patience && another() {
                release.push((*number, owner));
            }
        }
        for (number, owner) in release {
            let Some(job) = self.jobs.get_mut(&number) else {
                continue;
            };
            if job.terms.alone {
                if let Some(link) = self.links.get_mut(&owner) {
                    link.take_back_job(number);
                    job.terms.avoid.push(Arc::clone(&link.peer));
                }
                job.restart();
            }
            job.owner = None;
        }
    }

    /// Ends jobs that nobody here can do.
    fn fail_the_hopeless(&mut self, now: Instant) {
        if self.searching {
            return;
        }
        let hopeless: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| !self.has_hope(job, now))
            .map(|(number, _)| *number)
            .collect();
        for number in hopeless {
            let Some(job) = self.jobs.remove(&number) else {
                continue;
            };
            let error = self.excuse(&job);
            self.withdraw(number, now);
            job.finish(Some(error));
        }
    }

    fn has_hope(&self, job: &Job, now: Instant) -> bool {
        let avoid = &job.terms.avoid;
        let missing = || {
            job.parts
                .iter()
                .zip(&job.from)
                .filter(|(_, from)| from.is_none())
        };
        let link = |link: &Link| {
            link.doom.is_none()
                && !avoid.contains(&link.peer)
                && (link.opened.is_none()
                    || (!link.told && link.is_new(now, SETTLE))
                    || (job.terms.alone && missing().all(|(part, _)| link.has(part.key.piece)))
                    || (!job.terms.alone && missing().any(|(part, _)| link.has(part.key.piece))))
        };
        self.links.values().any(link)
            || (self.links.len() < LINKS_MAX && self.book.has_ready(avoid, now))
    }

    fn excuse(&self, job: &Job) -> SourceError {
        let open = |link: &Link| link.opened.is_some() && link.doom.is_none();
        if self
            .links
            .values()
            .any(|link| open(link) && !job.terms.avoid.contains(&link.peer))
        {
            return SourceError::not_found("no peer has it");
        }
        let any = self.book.records().next().is_some();
        match self.book.excuse() {
            _ if !any => SourceError::not_found("no peer is known"),
            // Coming back brings nothing.
            _ if self.book.all_banned() => SourceError::not_found("every peer sent wrong bytes"),
            Some(excuse) => SourceError::unavailable(excuse),
            None => SourceError::unavailable("no peer answers"),
        }
    }

    /// Notes whether what a peer sent was right.
    pub(super) fn verdict(&mut self, peer: &Peer, right: bool) {
        for link in self.links.values_mut().filter(|link| link.peer == *peer) {
            link.proven = right;
            link.trial = None;
            link.wake.notify_one();
        }
    }

    /// Notes a proven lie; a second one ends the connection for good.
    pub(super) fn lied(&mut self, peer: &Peer, proven: bool) {
        self.verdict(peer, false);
        if self.book.lied(peer, proven) {
            for link in self.links.values_mut().filter(|link| link.peer == *peer) {
                link.end(Blame::Misdeed, "sent wrong bytes");
            }
        }
    }
}
