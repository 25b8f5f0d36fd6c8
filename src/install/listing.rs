//! The picture of what is visible, and what was refused and why.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::names::Package;
use super::{DirectoryId, Listed, Names};
use crate::manifest::{Envelope, PackageName, Version};

/// A directory above the versions changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The directory.
    pub directory: DirectoryId,
    /// The entry that came, went or changed.
    pub name: String,
}

/// Why something that a registry offers is not shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rule that refused it, as a sentence.
    pub reason: String,
    /// What the reader can do about it.
    pub hint: Option<String>,
}

/// What one package shows from now on.
#[derive(Debug, Clone)]
pub(super) struct PackageUpdate {
    pub(super) name: PackageName,
    pub(super) versions: BTreeMap<Version, Arc<Listed>>,
    pub(super) latest: Option<Version>,
    /// Of the whole package (`None`), or of single versions; replaces all earlier ones.
    pub(super) refusals: BTreeMap<Option<Version>, Refusal>,
    /// Envelopes that are to be kept for the next start before this is applied.
    pub(super) keep: Vec<Envelope>,
}

#[derive(Default)]
struct Edit {
    packages: BTreeMap<PackageName, Package>,
    gone: HashMap<u32, Arc<Listed>>,
    refusals: BTreeMap<PackageName, BTreeMap<Option<Version>, Refusal>>,
    subscribers: Vec<Sender<Change>>,
}

/// Every listed version of a home, shared by all its mounts.
pub struct Listing {
    names: ArcSwap<Names>,
    edit: Mutex<Edit>,
    number: Number,
}

/// Gives scopes and package names their durable numbers, from 2, in order.
type Number = Box<dyn Fn(&[&str]) -> Vec<DirectoryId> + Send + Sync>;

impl Listing {
    /// Makes an empty listing. `number` gives scopes and package names their durable numbers, from 2, in order.
    pub fn new(number: impl Fn(&[&str]) -> Vec<DirectoryId> + Send + Sync + 'static) -> Listing {
        let names = Names::build(&BTreeMap::new(), &HashMap::new(), &number);
        Listing {
            names: ArcSwap::from_pointee(names),
            edit: Mutex::default(),
            number: Box::new(number),
        }
    }

    /// Returns the directories above the versions as they are now.
    pub fn names(&self) -> Arc<Names> {
        self.names.load_full()
    }

    /// Returns the version in a slot, also one that is gone since: its open files stay readable.
    pub fn by_slot(&self, slot: u32) -> Option<Arc<Listed>> {
        self.names.load().by_slot(slot).cloned()
    }

    /// Returns the version of that name, or what `latest` leads to when `version` is `None`.
    pub fn find(&self, name: &PackageName, version: Option<&Version>) -> Option<Arc<Listed>> {
        let edit = self.edit.lock();
        let package = edit.packages.get(name)?;
        package
            .versions
            .get(version.or(package.latest.as_ref())?)
            .cloned()
    }

    /// Returns every listed version of a package, lowest first.
    pub fn versions(&self, name: &PackageName) -> Vec<Arc<Listed>> {
        self.edit
            .lock()
            .packages
            .get(name)
            .map(|package| package.versions.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns every package with its versions, lowest first, and the one that `latest` leads to.
    pub fn all(&self) -> Vec<(PackageName, Vec<Arc<Listed>>, Option<Version>)> {
        let edit = self.edit.lock();
        let one = |(name, package): (&PackageName, &Package)| {
            (
                name.clone(),
                package.versions.values().cloned().collect(),
                package.latest.clone(),
            )
        };
        edit.packages.iter().map(one).collect()
    }

    /// Returns what was refused, and why; `None` stands for the package as a whole.
    pub fn refusals(&self) -> Vec<(PackageName, Option<Version>, Refusal)> {
        let edit = self.edit.lock();
        let flat = edit
            .refusals
            .iter()
            .flat_map(|(name, of)| of.iter().map(move |(version, why)| (name, version, why)));
        flat.map(|(name, version, why)| (name.clone(), version.clone(), why.clone()))
            .collect()
    }

    /// Returns every change from now on.
    pub fn changes(&self) -> Receiver<Change> {
        let (sender, receiver) = mpsc::channel();
        self.edit.lock().subscribers.push(sender);
        receiver
    }

    /// Forgets every tree, so that each is hashed and validated again when it is next entered.
    pub fn forget_trees(&self) {
        for (_, versions, _) in self.all() {
            versions.iter().for_each(|version| version.forget_tree());
        }
    }

    /// Replaces what some packages show, and tells who listens.
    pub(super) fn apply(&self, updates: Vec<PackageUpdate>) {
        let mut edit = self.edit.lock();
        let now = now_ns();
        for update in updates {
            let old = edit.packages.remove(&update.name).unwrap_or_default();
            for (version, listed) in &old.versions {
                let stays = update
                    .versions
                    .get(version)
                    .is_some_and(|new| Arc::ptr_eq(new, listed));
                listed.set_gone(!stays);
                if !stays {
                    edit.gone.insert(listed.slot(), Arc::clone(listed));
                }
            }
            for listed in update.versions.values() {
                listed.set_gone(false);
                edit.gone.remove(&listed.slot());
            }
            let mut package = Package {
                versions: update.versions,
                latest: update.latest,
                changed_ns: old.changed_ns,
            };
            let same = |one: &Package, other: &Package| {
                one.latest == other.latest && one.versions.keys().eq(other.versions.keys())
            };
            if !old.versions.is_empty() && !same(&old, &package) {
                package.changed_ns = now;
            }
            if update.refusals.is_empty() {
                edit.refusals.remove(&update.name);
            } else {
                edit.refusals.insert(update.name.clone(), update.refusals);
            }
            if !package.versions.is_empty() {
                edit.packages.insert(update.name, package);
            }
        }
        let new = Arc::new(Names::build(&edit.packages, &edit.gone, &self.number));
        let old = self.names.swap(Arc::clone(&new));
        let changes = differences(&old, &new);
        edit.subscribers.retain(|subscriber| {
            changes
                .iter()
                .all(|change| subscriber.send(change.clone()).is_ok())
        });
    }
}

/// Returns the entries that came, went, or lead elsewhere.
fn differences(old: &Names, new: &Names) -> Vec<Change> {
    let mut changes = Vec::new();
    let ids = |names: &Names| {
        names
            .directories()
            .map(super::names::Directory::id)
            .collect::<Vec<_>>()
    };
    let mut all: Vec<DirectoryId> = ids(old).into_iter().chain(ids(new)).collect();
    all.sort_unstable();
    all.dedup();
    for id in all {
        let entries = |names: &Names| -> BTreeMap<String, u64> {
            let children = names
                .directory(id)
                .map(|directory| directory.children())
                .unwrap_or_default();
            children
                .iter()
                .map(|(name, child)| (name.clone(), child.target()))
                .collect()
        };
        let (before, after) = (entries(old), entries(new));
        let changed = before
            .iter()
            .filter(|(name, target)| after.get(*name) != Some(*target))
            .map(|(name, _)| name);
        let came = after.keys().filter(|name| !before.contains_key(*name));
        changes.extend(changed.chain(came).map(|name| Change {
            directory: id,
            name: name.clone(),
        }));
    }
    changes
}

fn now_ns() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
