//! What is known of one connection: what the peer has, what it is asked for, and how it behaves.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::book::{Blame, Peer};
use super::pace::Pace;
use super::wire::Key;

/// Requests that were taken back and may be answered all the same; more are not remembered.
const LATE_MAX: usize = 2048;

/// Bytes of messages that are of no use to a reader, besides a quarter of the useful ones. All pieces of the largest
/// torrent announced one by one are 1.2 MB.
const NOISE_BYTES: u64 = 4 << 20;

/// Chokes and unchokes without a piece between them.
const FLAPS_MAX: u32 = 64;

/// A break of the protocol, or of good manners. Ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misdeed {
    #[error("a piece, or part of one, that it was not asked for")]
    Unasked,
    #[error("a piece that the torrent has not got")]
    Piece,
    #[error("a bitfield of the wrong length")]
    Bitfield,
    #[error("a flood of messages")]
    Flood,
    #[error("chokes and unchokes without an answer between them")]
    Flaps,
}

/// The end of a connection that we decided, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doom(pub(super) Blame, pub(super) String);

/// A request at a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) job: u64,
    pub(super) part: usize,
    pub(super) sent: Instant,
    /// Grows with each request of the connection.
    pub(super) order: u64,
}

/// The block by which an unknown peer shows what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) job: u64,
    /// When the block had come together, or was not wanted any more; the verdict follows.
    pub(super) ended: Option<Instant>,
}

/// A connection.
pub(super) struct Link {
    pub(super) peer: Peer,
    /// Tells its task that there is something to say.
    pub(super) wake: Arc<Notify>,
    /// When hands had been shaken; none before.
    pub(super) opened: Option<Instant>,
    pub(super) choked: bool,
    pub(super) choked_since: Instant,
    /// Whether it has said which pieces it has.
    pub(super) told: bool,
    /// Whether its last judged block was right.
    pub(super) proven: bool,
    pub(super) trial: Option<Trial>,
    pub(super) pace: Pace,
    /// When it last answered, or was first asked after it had nothing to do. None while nothing is asked.
    pub(super) heard: Option<Instant>,
    pub(super) doom: Option<Doom>,
    /// Requests whose cancelling has not been told.
    pub(super) cancels: Vec<Key>,
    /// When it last looked for what others are late with.
    pub(super) looked: Option<Instant>,
    /// Pieces that it did not give although it has them, as it says.
    pub(super) passed_over: u32,
    have: Vec<u8>,
    asked: HashMap<Key, Asked>,
    asked_bytes: u64,
    order: u64,
    /// The newest request that was answered.
    answered: u64,
    late: VecDeque<Key>,
    noise: u64,
    useful: u64,
    flaps: u32,
}

impl Link {
    pub(super) fn new(peer: Peer, now: Instant) -> Self {
        Link {
            peer,
            wake: Arc::new(Notify::new()),
            opened: None,
            choked: true,
            choked_since: now,
            told: false,
            proven: false,
            trial: None,
            pace: Pace::new(),
            heard: None,
            doom: None,
            cancels: Vec::new(),
            looked: None,
            passed_over: 0,
            have: Vec::new(),
            asked: HashMap::new(),
            asked_bytes: 0,
            order: 0,
            answered: 0,
            late: VecDeque::new(),
            noise: 0,
            useful: 0,
            flaps: 0,
        }
    }

    /// Returns whether it answers requests.
    pub(super) fn ready(&self) -> bool {
        self.opened.is_some() && !self.choked && self.doom.is_none()
    }

    /// Returns whether hands were shaken less than `time` ago.
    pub(super) fn is_new(&self, now: Instant, time: Duration) -> bool {
        self.opened
            .is_none_or(|opened| now.saturating_duration_since(opened) < time)
    }

    /// Returns how many more requests it can be given.
    pub(super) fn room(&self) -> usize {
        self.pace.window().saturating_sub(self.asked.len())
    }

    /// Returns the bytes that it is asked for.
    pub(super) fn asked_bytes(&self) -> u64 {
        self.asked_bytes
    }

    /// Returns what it is asked for.
    pub(super) fn asked(&self) -> &HashMap<Key, Asked> {
        &self.asked
    }

    /// Returns when it will have answered everything and `bytes` more.
    pub(super) fn turn(&self, bytes: u64) -> Duration {
        self.pace.estimate(self.asked_bytes + bytes)
    }

    /// Returns how long it has been silent while it was asked for something.
    pub(super) fn silent(&self, now: Instant) -> Duration {
        self.heard
            .map_or(Duration::ZERO, |heard| now.saturating_duration_since(heard))
    }

    /// Returns whether it has answered what was asked for later than this, and not this for `patience`.
    pub(super) fn passes_over(&self, asked: &Asked, patience: Duration, now: Instant) -> bool {
        asked.order < self.answered && now.saturating_duration_since(asked.sent) >= patience
    }

    /// Returns whether it has a piece, as it says.
    pub(super) fn has(&self, piece: u32) -> bool {
        let byte = self.have.get((piece / 8) as usize);
        byte.is_some_and(|byte| byte & (0x80 >> (piece % 8)) != 0)
    }

    /// Notes that it has a piece; the caller has checked that there is one.
    pub(super) fn set(&mut self, piece: u32) {
        let at = (piece / 8) as usize;
        if self.have.len() <= at {
            self.have.resize(at + 1, 0);
        }
        self.have[at] |= 0x80 >> (piece % 8);
        self.told = true;
    }

    /// Notes that it has not got a piece.
    pub(super) fn unset(&mut self, piece: u32) {
        if let Some(byte) = self.have.get_mut((piece / 8) as usize) {
            *byte &= !(0x80 >> (piece % 8));
        }
    }

    /// Notes which pieces it has.
    pub(super) fn set_all(&mut self, bits: &[u8]) {
        self.have = bits.to_vec();
        self.told = true;
    }

    /// Notes a request, unless it has the same one already.
    pub(super) fn ask(&mut self, key: Key, job: u64, part: usize, now: Instant) -> bool {
        if self.asked.contains_key(&key) {
            return false;
        }
        let idle = self.asked.is_empty();
        self.pace.asked(idle, now);
        if idle {
            self.heard = Some(now);
        }
        self.order += 1;
        let asked = Asked {
            job,
            part,
            sent: now,
            order: self.order,
        };
        self.asked.insert(key, asked);
        self.asked_bytes += u64::from(key.len);
        true
    }

    /// Notes an answer; returns what it answers, or nothing when that was taken back before.
    pub(super) fn answer(&mut self, key: Key, now: Instant) -> Result<Option<Asked>, Misdeed> {
        let Some(asked) = self.forget(&key) else {
            let at = self.late.iter().position(|late| *late == key);
            let at = at.ok_or(Misdeed::Unasked)?;
            self.late.remove(at);
            self.heard = self.heard.map(|_| now);
            return Ok(None);
        };
        let took = now.saturating_duration_since(asked.sent);
        self.pace.answered(key.len, took, now);
        self.answered = self.answered.max(asked.order);
        self.heard = self.heard.map(|_| now);
        self.useful += u64::from(key.len);
        self.flaps = 0;
        Ok(Some(asked))
    }

    fn forget(&mut self, key: &Key) -> Option<Asked> {
        let asked = self.asked.remove(key)?;
        self.asked_bytes -= u64::from(key.len);
        if self.asked.is_empty() {
            self.heard = None;
        }
        Some(asked)
    }

    /// Takes a request back; its answer may be on its way.
    pub(super) fn take_back(&mut self, key: Key) -> Option<Asked> {
        let asked = self.forget(&key)?;
        self.expect_late(key);
        self.cancels.push(key);
        self.wake.notify_one();
        Some(asked)
    }

    /// Takes back every request of a job.
    pub(super) fn take_back_job(&mut self, job: u64) {
        let of_job = self.asked.iter().filter(|(_, asked)| asked.job == job);
        for key in of_job.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.take_back(key);
        }
    }

    /// Takes back everything, for a peer that has forgotten it or is gone.
    pub(super) fn take_back_all(&mut self) -> Vec<Asked> {
        let all: Vec<(Key, Asked)> = self.asked.drain().collect();
        self.asked_bytes = 0;
        self.heard = None;
        let mut asked = Vec::with_capacity(all.len());
        for (key, one) in all {
            self.expect_late(key);
            asked.push(one);
        }
        // In their order, so that they are asked for in their order elsewhere.
        asked.sort_unstable_by_key(|asked| std::cmp::Reverse(asked.order));
        asked
    }

    fn expect_late(&mut self, key: Key) {
        if self.late.len() >= LATE_MAX {
            self.late.pop_front();
        }
        self.late.push_back(key);
    }

    /// Counts a message that is of no use.
    pub(super) fn noise(&mut self, bytes: usize) -> Result<(), Misdeed> {
        self.noise += bytes as u64;
        if self.noise > NOISE_BYTES + self.useful / 4 {
            return Err(Misdeed::Flood);
        }
        Ok(())
    }

    /// Counts a choke or unchoke.
    pub(super) fn flap(&mut self) -> Result<(), Misdeed> {
        self.flaps += 1;
        if self.flaps > FLAPS_MAX {
            return Err(Misdeed::Flaps);
        }
        Ok(())
    }

    /// Ends the connection, soon.
    pub(super) fn end(&mut self, blame: Blame, why: &str) {
        if self.doom.is_none() {
            self.doom = Some(Doom(blame, why.to_owned()));
            self.wake.notify_one();
        }
    }
}
