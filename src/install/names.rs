//! The directories above the versions: the root, scopes and package names, as one immutable picture.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Listed;
use crate::manifest::{PackageName, Version};

/// What a name leads to.
#[derive(Debug, Clone)]
pub enum Child {
    /// A scope, or a package.
    Directory(DirectoryId),
    /// A version.
    Version(Arc<Listed>),
    /// The link `latest`, by its target.
    Latest(Arc<Listed>),
}

impl Child {
    /// Returns a number that differs where the name leads elsewhere.
    pub(super) fn target(&self) -> u64 {
        match self {
            Child::Directory(id) => u64::from(*id),
            Child::Version(version) => 1 << 32 | u64::from(version.slot()),
            Child::Latest(version) => 2 << 32 | u64::from(version.slot()),
        }
    }
}

/// The durable number of a synthetic directory; the root is [`ROOT`].
pub type DirectoryId = u32;

/// The root of every mount.
pub const ROOT: DirectoryId = 1;

/// The root, a scope or a package name.
#[derive(Debug, Clone)]
pub struct Directory {
    id: DirectoryId,
    parent: DirectoryId,
    /// Sorted by name.
    children: Vec<(String, Child)>,
    changed_ns: i64,
}

impl Directory {
    /// Returns its durable number.
    pub fn id(&self) -> DirectoryId {
        self.id
    }

    /// Returns the number of the directory above; the root's is its own.
    pub fn parent(&self) -> DirectoryId {
        self.parent
    }

    /// Returns the entries, sorted by name.
    pub fn children(&self) -> &[(String, Child)] {
        &self.children
    }

    /// Returns when an entry last came, went or changed, in nanoseconds since 1970.
    pub fn changed_ns(&self) -> i64 {
        self.changed_ns
    }

    /// Finds an entry by its name.
    pub fn child(&self, name: &[u8]) -> Option<&Child> {
        let at = self
            .children
            .binary_search_by(|(child, _)| child.as_bytes().cmp(name))
            .ok()?;
        Some(&self.children[at].1)
    }
}

/// What one package shows.
#[derive(Debug, Clone, Default)]
pub(super) struct Package {
    pub(super) versions: BTreeMap<Version, Arc<Listed>>,
    pub(super) latest: Option<Version>,
    /// When its directory last changed in this run; 0: not yet, so its newest version's time stands for it.
    pub(super) changed_ns: i64,
}

/// Every directory above the versions, and every version by its slot.
#[derive(Debug, Clone, Default)]
pub struct Names {
    directories: HashMap<DirectoryId, Directory>,
    packages: BTreeMap<PackageName, DirectoryId>,
    by_slot: HashMap<u32, Arc<Listed>>,
}

impl Names {
    /// Builds the picture. `number` gives scopes and package names their durable numbers, in order.
    ///
    /// A first part is a package or a scope; `packages` holds no clash, since `state::Seen` admits only the first.
    pub(super) fn build(
        packages: &BTreeMap<PackageName, Package>,
        gone: &HashMap<u32, Arc<Listed>>,
        number: impl Fn(&[&str]) -> Vec<DirectoryId>,
    ) -> Names {
        let mut names = Names {
            by_slot: gone.clone(),
            ..Names::default()
        };
        names.directories.insert(
            ROOT,
            Directory {
                id: ROOT,
                parent: ROOT,
                children: Vec::new(),
                changed_ns: 0,
            },
        );
        let shown = || {
            packages
                .iter()
                .filter(|(_, package)| !package.versions.is_empty())
        };
        let all: Vec<&str> = shown()
            .flat_map(|(name, _)| name.scope().into_iter().chain([name.as_str()]))
            .collect();
        let numbers: HashMap<&str, DirectoryId> = all.iter().copied().zip(number(&all)).collect();
        for (name, package) in shown() {
            let mut parent = ROOT;
            if let Some(scope) = name.scope() {
                parent = names.enter(ROOT, scope, numbers[scope]);
            }
            let own = names.enter(parent, last(name), numbers[name.as_str()]);
            names.packages.insert(name.clone(), own);
            let mut children: Vec<(String, Child)> = package
                .versions
                .iter()
                .map(|(version, listed)| (version.to_string(), Child::Version(Arc::clone(listed))))
                .collect();
            if let Some(listed) = package
                .latest
                .as_ref()
                .and_then(|latest| package.versions.get(latest))
            {
                children.push((LATEST.to_owned(), Child::Latest(Arc::clone(listed))));
            }
            // Versions came in their own order; names are found by bytes.
            children.sort_by(|one, other| one.0.cmp(&other.0));
            let newest = package
                .versions
                .values()
                .map(|listed| listed.created_ns())
                .max()
                .unwrap_or(0);
            let changed_ns = package.changed_ns.max(newest);
            names.by_slot.extend(
                package
                    .versions
                    .values()
                    .map(|listed| (listed.slot(), Arc::clone(listed))),
            );
            names.fill(own, children, changed_ns);
        }
        for directory in names.directories.values_mut() {
            directory.children.sort_by(|one, other| one.0.cmp(&other.0));
        }
        names
    }

    /// Returns a directory by its number.
    pub fn directory(&self, id: DirectoryId) -> Option<&Directory> {
        self.directories.get(&id)
    }

    /// Returns every directory, in no order.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Directory> {
        self.directories.values()
    }

    /// Returns the directory of a package.
    pub fn of_package(&self, name: &PackageName) -> Option<&Directory> {
        self.directory(*self.packages.get(name)?)
    }

    /// Returns every package that has versions, in order.
    pub fn packages(&self) -> impl Iterator<Item = (&PackageName, &Directory)> {
        self.packages
            .iter()
            .filter_map(|(name, id)| Some((name, self.directory(*id)?)))
    }

    /// Returns the version in a slot, also one that is gone since.
    pub fn by_slot(&self, slot: u32) -> Option<&Arc<Listed>> {
        self.by_slot.get(&slot)
    }

    fn enter(&mut self, parent: DirectoryId, name: &str, id: DirectoryId) -> DirectoryId {
        if let Entry::Vacant(vacant) = self.directories.entry(id) {
            vacant.insert(Directory {
                id,
                parent,
                children: Vec::new(),
                changed_ns: 0,
            });
            if let Some(above) = self.directories.get_mut(&parent) {
                above.children.push((name.to_owned(), Child::Directory(id)));
            }
        }
        id
    }

    fn fill(&mut self, id: DirectoryId, children: Vec<(String, Child)>, changed_ns: i64) {
        let Some(own) = self.directories.get_mut(&id) else {
            return;
        };
        own.children = children;
        own.changed_ns = changed_ns;
        let mut above = own.parent;
        // A change below the root is a change of what the root's listing shows at most two levels up.
        for _ in 0..2 {
            let Some(directory) = self.directories.get_mut(&above) else {
                return;
            };
            directory.changed_ns = directory.changed_ns.max(changed_ns);
            above = directory.parent;
        }
    }
}

/// Returns the last part of a name.
pub(super) fn last(name: &PackageName) -> &str {
    name.parts().last().unwrap_or_default()
}

/// The name of the link to a package's current version; a reserved word, so never a version or a package.
pub const LATEST: &str = "latest";
