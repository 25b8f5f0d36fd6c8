//! A look at what lies in the drop directory: what is new, what is gone, what can be no entry.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::watch::Watch;
use super::{Dropping, Told, make_scopes};
use crate::manifest::PackageName;
use crate::publish::drop::{
    DropError, ENTRIES_MAX, Found, Key, Listed, NameTrouble, Phase, Report, Seen, Word, Written,
};

/// What a look found.
struct Look {
    /// Whether the scopes are there.
    scopes: Result<(), DropError>,
    listed: Result<Listed, DropError>,
    /// What is known and there, and did not fit the listing.
    unlisted: BTreeSet<Key>,
    /// Whether something may have been missed.
    again: bool,
    watch: Watch,
}

impl Dropping {
    /// Looks at what lies in the directory. Returns whether to look again soon.
    pub(super) async fn scan(
        self: &Arc<Self>,
        watch: Watch,
        bad: &mut BTreeMap<Key, NameTrouble>,
    ) -> (bool, Watch) {
        let now = Instant::now();
        {
            let mut board = self.board.lock();
            for key in self.heard.take() {
                board.moved_in(key, now);
            }
        }
        let dropping = Arc::clone(self);
        let known_bad = bad.keys().cloned().collect();
        let look = tokio::task::spawn_blocking(move || dropping.look_around(watch, known_bad));
        let Ok(look) = look.await else {
            // Only when the process ends.
            return (false, Watch::new(&self.real, &self.heard));
        };
        let Look {
            scopes,
            listed,
            unlisted,
            again,
            watch,
        } = look;
        let listed = match listed {
            Ok(listed) => {
                let count = listed.entries.len();
                let more = listed.more.then(|| {
                    format!("the drop directory holds more than {count} entries, and the rest is not looked at: take some out")
                });
                self.set_problem(more.or_else(|| Some(scopes.err()?.to_string())));
                listed
            }
            Err(error) => {
                self.set_problem(Some(error.to_string()));
                return (false, watch);
            }
        };
        let whole = !listed.more;
        let mut entries = Vec::new();
        let mut bad_now = BTreeMap::new();
        for found in listed.entries {
            match judge(&found) {
                Ok(package) => {
                    let remembered = found.key.to_string();
                    let remembered = self.remembered.lock().get(&remembered).cloned();
                    let seen = Seen {
                        inode: found.inode,
                        owner: found.owner,
                        mark: found.mark,
                        moved_in: found.moved_in,
                        package: Some(package),
                        remembered,
                    };
                    entries.push((found.key, seen));
                }
                // Removed once it is seen to be gone.
                Err(trouble) => {
                    bad_now.insert(found.key, trouble);
                }
            }
        }
        if whole {
            self.forget_missing(&entries).await;
        }
        let (new, gone) = self.board.lock().found(entries, unlisted.clone(), now);
        // What did not fit the first listing is as new to this process as what did.
        let first = !self.seen_once.load(Ordering::Relaxed);
        self.seen_once.fetch_or(whole, Ordering::Relaxed);
        for key in new {
            self.take_up(key, first, now).await;
        }
        for (key, _) in gone {
            self.forget(&key).await;
        }
        for (key, trouble) in &bad_now {
            if bad.get(key) != Some(trouble) {
                tracing::warn!(entry = %key, %trouble, "refused in the drop directory");
                let lines = vec![
                    format!("- {trouble}"),
                    format!("  what to do: {}", trouble.hint()),
                ];
                self.tell(key, Report::new(Word::Refused, lines)).await;
            }
        }
        for (key, trouble) in std::mem::take(bad) {
            if bad_now.contains_key(&key) {
                continue;
            }
            if unlisted.contains(&key) && bad_now.len() < ENTRIES_MAX {
                bad_now.insert(key, trouble);
            } else {
                self.forget(&key).await;
            }
        }
        *bad = bad_now;
        (again, watch)
    }

    /// Lists the directory, and watches what lies in it. Blocking.
    fn look_around(&self, mut watch: Watch, bad: Vec<Key>) -> Look {
        let scopes = make_scopes(&self.place, &self.settings.load());
        let listed = self.place.list();
        let mut again = false;
        let mut unlisted = BTreeSet::new();
        if let Ok(listed) = &listed {
            if listed.more {
                unlisted = self.unlisted(listed, bad);
            }
            let root = (self.real.clone(), listed.inode);
            let inside = listed.scopes.iter();
            let inside = inside.map(|(scope, inode)| (self.real.join(scope), *inode));
            let entries = listed.entries.iter().filter(|found| found.directory);
            let entries = entries.map(|found| (self.real.join(found.key.path()), found.inode));
            again = watch.set([root].into_iter().chain(inside).chain(entries));
        }
        Look {
            scopes,
            listed,
            unlisted,
            again,
            watch,
        }
    }

    /// Returns what is known and there, and did not fit the listing. Blocking.
    fn unlisted(&self, listed: &Listed, bad: Vec<Key>) -> BTreeSet<Key> {
        let there: HashSet<&Key> = listed.entries.iter().map(|found| &found.key).collect();
        let known: Vec<(Key, Option<u64>)> = {
            let board = self.board.lock();
            let known = board.phases().map(|(key, _)| key);
            known.map(|key| (key.clone(), board.inode(key))).collect()
        };
        let known = known
            .into_iter()
            .chain(bad.into_iter().map(|key| (key, None)));
        let known = known.filter(|(key, inode)| {
            let found = self.place.inode(key);
            // Another directory in its place is another entry.
            !there.contains(key) && found.is_some() && inode.is_none_or(|_| found == *inode)
        });
        known.map(|(key, _)| key).collect()
    }

    /// Takes up an entry that is new to the board, on the `first` look with what an earlier process said of it.
    async fn take_up(self: &Arc<Self>, key: Key, first: bool, now: Instant) {
        let phase = self.board.lock().phase(&key);
        let written = if first {
            self.written(&key).await
        } else {
            None
        };
        match (phase, written) {
            // An earlier process died over it; whoever committed it does not do so twice. Also one that was refused
            // before, but not one of which it is known what it has to look like.
            (Some(Phase::Arriving | Phase::Done), Some(written))
                if written.is_under_way()
                    && !written.changed
                    && !self.board.lock().is_unfinished(&key) =>
            {
                self.board.lock().go_on(&key, now);
            }
            (Some(Phase::Arriving), _) => {
                self.tell(&key, self.arriving()).await;
            }
            // Said already, in its status.
            (Some(Phase::Done), Some(Written { report, at, .. })) => {
                self.told.lock().insert(key, Told { report, at });
            }
            _ => {}
        }
    }

    /// Reads what an earlier process said of an entry.
    async fn written(&self, key: &Key) -> Option<Written> {
        let (place, key) = (Arc::clone(&self.place), key.clone());
        let read = tokio::task::spawn_blocking(move || place.status(&key));
        read.await.ok().flatten()
    }
}

/// Returns the package that an entry wants to be.
fn judge(found: &Found) -> Result<PackageName, NameTrouble> {
    if !found.directory {
        return Err(NameTrouble::NotADirectory);
    }
    Ok(found.key.wanted()?.name)
}
