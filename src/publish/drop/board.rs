//! How every entry stands, and what is to be done next: a table without a clock, a disk or a task.
//!
//! An entry arrives; it is committed by being renamed into place, by its `.publish`, by a command, or by being quiet for
//! `settle`; it is published; then it is done, until it changes. What passes by itself is tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::inventory::Fingerprint;
use super::name::Key;
use crate::manifest::{PackageName, Version};

/// How often an arriving entry is looked at, at most: so that being quiet is noticed in time, yet a large tree is not
/// walked all the time.
const LOOK_MIN: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(15);

/// How often one that is done is looked at, for changes that no event tells of.
const LOOK_DONE: Duration = Duration::from_secs(60);

/// Looking takes at most this part of the time.
const LOOK_SHARE: u32 = 20;

/// How long after a try that failed the next one comes, at first and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(120);

/// How long events are passed over that tell of our own renaming.
const DEAF: Duration = Duration::from_secs(5);

/// A `.publish`, so that a new one, or one that was touched, is told from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub(super) inode: u64,
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
}

/// What is written down of an entry, for the next process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// What it looked like.
    pub fingerprint: Fingerprint,
    /// Its `.publish` that has had its effect.
    pub mark: Option<Mark>,
    /// The version that it was about to become, which may be there by now; `None` when nothing is left to be done.
    pub becomes: Option<Version>,
}

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Somebody is putting it there.
    Arriving,
    /// It is to be published.
    Committed,
    /// It is being published.
    Publishing,
    /// It is tried again later.
    Waiting,
    /// It is refused, or kept after success.
    Done,
}

/// What says that an entry is complete; the later ones say so more surely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// It was quiet.
    Quiet,
    /// It was renamed into place, which may have been our own giving back.
    Rename,
    /// Its `.publish`, or a command.
    Word,
}

/// How a publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing more is to be done before it changes.
    Done {
        /// What it looked like.
        fingerprint: Option<Fingerprint>,
    },
    /// Somebody is at work in it: it arrives anew, whether it was published or not.
    Again,
    /// Something that passes by itself is in the way.
    Wait,
}

/// What was seen of an entry in the directory.
#[derive(Debug)]
pub struct Seen {
    /// Its inode.
    pub inode: u64,
    /// Whose it is, by number.
    pub owner: u32,
    /// Its `.publish`.
    pub mark: Option<Mark>,
    /// Whether it must have been renamed into place.
    pub moved_in: bool,
    /// What it wants to be; `None` when its name says nothing.
    pub package: Option<PackageName>,
    /// What an earlier process wrote down of it.
    pub remembered: Option<Remembered>,
}

#[derive(Debug)]
struct Entry {
    inode: u64,
    owner: u32,
    package: Option<PackageName>,
    phase: Phase,
    /// When it was committed last.
    committed_at: Instant,
    /// The `.publish` that has had its effect.
    mark: Option<Mark>,
    fingerprint: Option<Fingerprint>,
    /// Since when it looks the same.
    quiet_since: Instant,
    look_at: Instant,
    tries: u32,
    retry_at: Instant,
    /// What committed it last.
    by: By,
    /// What committed it once more while it was being published.
    again: Option<By>,
    /// Whether an earlier process had begun to sign for it, or to clear it away.
    unfinished: bool,
    deaf_until: Option<Instant>,
}

/// How every entry stands.
#[derive(Debug)]
pub struct Board {
    entries: BTreeMap<Key, Entry>,
    /// Entries that were renamed into place before they were seen.
    moved: HashSet<Key>,
    /// Directories that somebody commits, by inode, before they are seen.
    commits: HashMap<Key, u64>,
    settle: Duration,
}

/// The most entries that are known.
pub const ENTRIES_MAX: usize = 10_000;

/// The most names that are remembered before they are seen.
pub const MOVED_MAX: usize = 4096;

impl Board {
    /// Starts with nothing. An entry that is quiet for `settle` is committed; zero means never.
    pub fn new(settle: Duration) -> Board {
        Board {
            entries: BTreeMap::new(),
            moved: HashSet::new(),
            commits: HashMap::new(),
            settle,
        }
    }

    /// Takes another `settle`.
    pub fn set_settle(&mut self, settle: Duration) {
        self.settle = settle;
    }

    /// Takes what is in the directory, as far as it is `listed`, and which others of the known are there; returns what is
    /// new, and what is gone with its last phase.
    pub fn found(
        &mut self,
        listed: Vec<(Key, Seen)>,
        mut there: BTreeSet<Key>,
        now: Instant,
    ) -> (Vec<Key>, Vec<(Key, Phase)>) {
        let mut new = Vec::new();
        let mut later = HashSet::new();
        for (key, seen) in listed {
            there.insert(key.clone());
            let moved = self.moved.remove(&key);
            let full = self.entries.len() >= ENTRIES_MAX;
            match self.entries.get_mut(&key) {
                // It is new when there is room.
                None if full => continue,
                // Another one came in the place of one that is being published: it is judged when that has ended.
                Some(entry) if entry.phase == Phase::Publishing && entry.inode != seen.inode => {
                    if moved {
                        later.insert(key);
                    }
                    continue;
                }
                _ => {}
            }
            let said = self.take_commit(&key, seen.inode);
            match self.entries.get_mut(&key) {
                Some(entry) if entry.inode == seen.inode => {
                    if seen.mark.is_some() && seen.mark != entry.mark {
                        entry.mark = seen.mark;
                        entry.commit(By::Word, now);
                    }
                    if said {
                        entry.commit(By::Word, now);
                    } else if moved {
                        entry.commit(By::Rename, now);
                    }
                }
                _ => {
                    let mut entry = Entry::new(&seen, now);
                    let marked = seen.remembered.as_ref().and_then(|known| known.mark);
                    if said || (seen.mark.is_some() && seen.mark != marked) {
                        entry.commit(By::Word, now);
                    } else if moved {
                        entry.commit(By::Rename, now);
                    } else if let Some(known) = seen.remembered {
                        entry.phase = Phase::Done;
                        entry.fingerprint = Some(known.fingerprint);
                        entry.unfinished = known.becomes.is_some();
                    } else if seen.moved_in {
                        entry.commit(By::Rename, now);
                    }
                    self.entries.insert(key.clone(), entry);
                    new.push(key);
                }
            }
        }
        let gone = |(key, entry): (&Key, &Entry)| {
            let gone = !there.contains(key) && entry.phase != Phase::Publishing;
            gone.then(|| (key.clone(), entry.phase))
        };
        let gone: Vec<_> = self.entries.iter().filter_map(gone).collect();
        for (key, _) in &gone {
            self.entries.remove(key);
        }
        // What else was renamed in went away again.
        self.moved = later;
        (new, gone)
    }

    /// Takes that something was renamed to this name.
    pub fn moved_in(&mut self, key: Key, now: Instant) {
        match self.entries.get_mut(&key) {
            Some(entry) if entry.deaf_until.is_some_and(|until| now < until) => {
                entry.deaf_until = None;
            }
            // Another directory may have come in its place; the next listing tells.
            _ if self.moved.len() < MOVED_MAX => {
                self.moved.insert(key);
            }
            _ => {}
        }
    }

    /// Commits the directory with this inode because somebody says so: as soon as it is found under this name.
    pub fn commit(&mut self, key: &Key, inode: u64) {
        self.commits.insert(key.clone(), inode);
    }

    /// Returns whether an earlier process had begun to sign for an entry, or to clear it away: what it looks like decides
    /// whether that is gone on with.
    pub fn is_unfinished(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.unfinished)
    }

    /// Goes on with an entry that an earlier process had taken for committed.
    pub fn go_on(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.commit(By::Rename, now);
        }
    }

    fn take_commit(&mut self, key: &Key, inode: u64) -> bool {
        let said = self.commits.get(key) == Some(&inode);
        if said {
            self.commits.remove(key);
        }
        said
    }

    /// Returns whether an entry was committed by nothing but being quiet.
    pub fn is_by_quiet(&self, key: &Key) -> bool {
        let by = |entry: &Entry| entry.by.max(entry.again.unwrap_or(By::Quiet));
        self.entries
            .get(key)
            .is_some_and(|entry| by(entry) == By::Quiet)
    }

    /// Returns the `.publish` of an entry that has had its effect.
    pub fn mark(&self, key: &Key) -> Option<Mark> {
        self.entries.get(key)?.mark
    }

    /// Returns the inode of an entry.
    pub fn inode(&self, key: &Key) -> Option<u64> {
        self.entries.get(key).map(|entry| entry.inode)
    }

    /// Returns whether the directory with this inode was committed, and was not found yet.
    pub fn is_pending(&self, key: &Key, inode: u64) -> bool {
        self.commits.get(key) == Some(&inode)
    }

    /// Takes back a commit that was not found yet.
    pub fn withdraw(&mut self, key: &Key, inode: u64) {
        self.take_commit(key, inode);
    }

    /// Returns the entries to look at now.
    pub fn to_look_at(&self, now: Instant) -> Vec<Key> {
        let due = |entry: &Entry| match entry.phase {
            Phase::Arriving => !self.settle.is_zero() && entry.look_at <= now,
            Phase::Done => entry.look_at <= now,
            _ => false,
        };
        let due = self.entries.iter().filter(|(_, entry)| due(entry));
        due.map(|(key, _)| key.clone()).collect()
    }

    /// Takes what an entry looks like, how long it took to look, and whether somebody has a file in it open for writing;
    /// `None` for one that changed under the look. Returns the phase if it is another one now.
    pub fn looked(
        &mut self,
        key: &Key,
        fingerprint: Option<Fingerprint>,
        written: bool,
        took: Duration,
        now: Instant,
    ) -> Option<Phase> {
        let settle = self.settle;
        let entry = self.entries.get_mut(key)?;
        let before = entry.phase;
        let same = fingerprint.is_some() && fingerprint == entry.fingerprint;
        match entry.phase {
            Phase::Arriving => {
                if !same {
                    entry.fingerprint = fingerprint;
                    entry.quiet_since = now;
                } else if now.duration_since(entry.quiet_since) >= settle && !written {
                    entry.commit(By::Quiet, now);
                }
                let pace = (settle / 4).clamp(LOOK_MIN, LOOK_MAX);
                entry.look_at = now + pace.max(took * LOOK_SHARE);
            }
            Phase::Done => {
                if entry.fingerprint.is_none() {
                    entry.fingerprint = fingerprint;
                } else if !same {
                    entry.phase = Phase::Arriving;
                    entry.fingerprint = fingerprint;
                    entry.quiet_since = now;
                } else if std::mem::take(&mut entry.unfinished) {
                    // As it was: what was begun is ended.
                    entry.commit(By::Quiet, now);
                }
                entry.look_at = now + LOOK_DONE.max(took * LOOK_SHARE);
                if entry.phase == Phase::Arriving {
                    entry.look_at = now + (settle / 4).clamp(LOOK_MIN, LOOK_MAX);
                }
            }
            _ => {}
        }
        (entry.phase != before).then_some(entry.phase)
    }

    /// Returns whether an entry has been quiet for long enough, so that it is worth asking for writers.
    pub fn is_quiet(&self, key: &Key, fingerprint: Fingerprint, now: Instant) -> bool {
        self.entries.get(key).is_some_and(|entry| {
            entry.phase == Phase::Arriving
                && entry.fingerprint == Some(fingerprint)
                && now.duration_since(entry.quiet_since) >= self.settle
        })
    }

    /// Takes that something in an entry may have changed: it is looked at soon.
    pub fn touched(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.phase == Phase::Done
        {
            entry.look_at = entry.look_at.min(now + LOOK_MIN);
        }
    }

    /// Takes entries to publish, at most `room`: each is under way from now on. Of one package, one at a time; of one
    /// owner, in the order in which they were committed; and owners take turns, however many entries one has.
    pub fn start(&mut self, room: usize, now: Instant) -> Vec<Key> {
        if room == 0 {
            return Vec::new();
        }
        let mut busy: HashSet<PackageName> = HashSet::new();
        // How many entries of each owner come before the next one.
        let mut before: HashMap<u32, usize> = HashMap::new();
        let publishing = |entry: &&Entry| entry.phase == Phase::Publishing;
        for entry in self.entries.values().filter(publishing) {
            busy.extend(entry.package.clone());
            *before.entry(entry.owner).or_default() += 1;
        }
        let due = |(_, entry): &(&Key, &Entry)| match entry.phase {
            Phase::Committed => true,
            Phase::Waiting => entry.retry_at <= now,
            _ => false,
        };
        let mut line: Vec<(&Key, &Entry)> = self.entries.iter().filter(due).collect();
        line.sort_by_key(|(_, entry)| entry.committed_at);
        let mut turns: Vec<(usize, &Key, &Entry)> = Vec::with_capacity(line.len());
        for (key, entry) in line {
            let before = before.entry(entry.owner).or_default();
            turns.push((*before, key, entry));
            *before += 1;
        }
        turns.sort_by_key(|(before, _, entry)| (*before, entry.committed_at));
        let mut started = Vec::new();
        for (_, key, entry) in turns {
            let free = |package: &PackageName| busy.insert(package.clone());
            if entry.package.as_ref().is_none_or(free) {
                started.push(key.clone());
            }
            if started.len() >= room {
                break;
            }
        }
        for key in &started {
            if let Some(entry) = self.entries.get_mut(key) {
                entry.phase = Phase::Publishing;
                entry.again = None;
                // It is read from here on, so this is what was asked for.
                if self.commits.get(key) == Some(&entry.inode) {
                    self.commits.remove(key);
                    entry.by = By::Word;
                }
            }
        }
        started
    }

    /// Takes how a publish ended.
    pub fn ended(&mut self, key: &Key, ending: Ending, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        let again = entry.again.take();
        match ending {
            Ending::Done { fingerprint } => {
                entry.phase = Phase::Done;
                entry.fingerprint = fingerprint;
                entry.look_at = now + LOOK_DONE;
                entry.tries = 0;
            }
            Ending::Again => {
                entry.phase = Phase::Arriving;
                entry.fingerprint = None;
                entry.quiet_since = now;
                entry.look_at = now;
                entry.tries = 0;
                entry.deaf_until = Some(now + DEAF);
            }
            Ending::Wait => {
                entry.phase = Phase::Waiting;
                let wait = RETRY_MIN
                    .saturating_mul(1 << entry.tries.min(16))
                    .min(RETRY_MAX);
                entry.tries += 1;
                entry.retry_at = now + wait;
            }
        }
        // We rename it ourselves when we give it back.
        let ours = By::Rename;
        if let Some(by) = again.filter(|by| ending != Ending::Again || *by > ours) {
            entry.phase = Phase::Committed;
            entry.committed_at = now;
            entry.by = by;
        }
    }

    /// Returns how an entry stands.
    pub fn phase(&self, key: &Key) -> Option<Phase> {
        self.entries.get(key).map(|entry| entry.phase)
    }

    /// Returns every entry with how it stands.
    pub fn phases(&self) -> impl Iterator<Item = (&Key, Phase)> {
        self.entries.iter().map(|(key, entry)| (key, entry.phase))
    }

    /// Returns when something is to be done next, whatever happens.
    pub fn wake_at(&self) -> Option<Instant> {
        let wake = |entry: &Entry| match entry.phase {
            Phase::Arriving => (!self.settle.is_zero()).then_some(entry.look_at),
            Phase::Done => Some(entry.look_at),
            Phase::Waiting => Some(entry.retry_at),
            Phase::Committed | Phase::Publishing => None,
        };
        self.entries.values().filter_map(wake).min()
    }
}

impl Entry {
    fn new(seen: &Seen, now: Instant) -> Entry {
        Entry {
            inode: seen.inode,
            owner: seen.owner,
            package: seen.package.clone(),
            phase: Phase::Arriving,
            committed_at: now,
            mark: seen.mark,
            fingerprint: None,
            quiet_since: now,
            look_at: now,
            tries: 0,
            retry_at: now,
            by: By::Quiet,
            again: None,
            unfinished: false,
            deaf_until: None,
        }
    }

    fn commit(&mut self, by: By, now: Instant) {
        match self.phase {
            Phase::Publishing => self.again = self.again.max(Some(by)),
            Phase::Waiting => {
                self.retry_at = now;
                self.by = self.by.max(by);
            }
            Phase::Committed => self.by = self.by.max(by),
            Phase::Arriving | Phase::Done => {
                self.phase = Phase::Committed;
                self.committed_at = now;
                self.by = by;
            }
        }
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
