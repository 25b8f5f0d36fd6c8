//! Paths, inodes and offsets to bytes: what a mount shows, free of FUSE, sockets and errnos.
//!
//! Two kinds of answers. Metadata of what is installed, and blocks that this process has verified, are *attempted* in
//! place: [`Attempt`] never waits. Where an attempt needs a catalog, or a block of one, it says [`FsError::Wait`], and
//! the caller moves to a task that waits ([`Fs::wait_and_retry`]) or reads ([`Fs::read`]).
//!
//! Content under an inode never changes, so the kernel may keep it for ever. What changes (names, versions, `latest`)
//! is told through [`Fs::changes`].

mod attributes;
mod door;
mod ino;
mod read;
mod xattr;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::{CatalogError, Kind, Row, links};
use crate::fetch::streams::Streams;
use crate::fetch::walk::DirectoryWalk;
use crate::fetch::{FetchError, Fetcher};
use crate::install::{Directory, InstallError, Installer, Listed, Listing, Names, ROOT, Tree};
use crate::store::Store;

pub use crate::install::Change;
pub use attributes::Attributes;
pub use door::Door;
pub use ino::{Ino, Place};
pub use read::{ReadHere, Turns};

/// How long entering a version may wait for its catalog; installing goes on behind.
const ENTER_WAIT: Duration = Duration::from_secs(10);

/// How long a failed block of a catalog is asked for again by one operation before it gives up.
const HEALS_MAX: u32 = 4096;

/// What can be answered without waiting.
pub type Attempt<T> = Result<T, FsError>;

/// Why there is no answer, as far as a caller can act on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such name; it may be remembered for `ttl`.
    #[error("no such file or directory")]
    NotFound {
        /// How long the absence holds.
        ttl: Duration,
    },
    /// Only directories have entries.
    #[error("not a directory")]
    NotADirectory,
    /// Only files have bytes.
    #[error("is a directory")]
    IsADirectory,
    /// Only symlinks have targets.
    #[error("not a symlink")]
    NotALink,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The version was withdrawn, blocked or is no longer trusted.
    #[error("the version is no longer there")]
    Stale,
    /// The symlink leaves its version, which the trust rule does not allow.
    #[error("the link leaves its version")]
    LinkLeaves,
    /// A source refused, and none delivered.
    #[error("every source refused")]
    Refused,
    /// The catalog, or one block of it, has to be fetched first.
    #[error("the catalog is not here yet")]
    Wait(Wait),
    /// The catalog did not come in time; installing goes on.
    #[error("the version is still being installed")]
    StillInstalling,
    /// Nobody installed the version, and entering is not to.
    #[error("the version is not installed")]
    NotInstalled,
    /// No source delivered in time.
    #[error("no source delivered in time")]
    NoSourceInTime,
    /// Sources answered, none with the right bytes.
    #[error("no source has the right bytes")]
    NoHonestSource,
    /// The catalog is signed but not valid.
    #[error("the catalog is not valid")]
    BadCatalog,
    /// The disk failed.
    #[error("the disk failed")]
    Disk,
}

/// What an attempt waits for.
#[derive(Debug, Clone)]
pub struct Wait {
    version: Arc<Listed>,
    /// A block of the catalog that was verified once and is not there now; none: the whole catalog.
    block: Option<u64>,
}

/// One entry of a directory.
pub struct Item<'a> {
    /// Where the listing goes on after this entry.
    pub cookie: u64,
    /// The name.
    pub name: &'a [u8],
    /// Its attributes, exactly as `attributes` would give them.
    pub attributes: &'a Attributes,
}

/// Takes one entry and says whether there is room for more.
pub type Visit<'a> = &'a mut dyn FnMut(Item<'_>) -> bool;

/// Whom the files of a mount belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits taken away from everything but symlinks.
    pub umask: u16,
}

/// What `statfs` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// The quota.
    pub total_bytes: u64,
    /// The quota less what cannot be evicted.
    pub free_bytes: u64,
}

/// The file system of one mount.
pub struct Fs {
    listing: Arc<Listing>,
    installer: Arc<Installer>,
    store: Arc<Store>,
    fetcher: Fetcher,
    streams: Streams,
    walks: DirectoryWalk,
    owner: Owner,
    door: Option<Door>,
}

impl Fs {
    /// Makes the file system of a mount over a home's listing, store and fetcher; with a `door`, its root has the link
    /// `publish`, a name that no package has.
    pub fn new(
        listing: Arc<Listing>,
        installer: Arc<Installer>,
        store: Arc<Store>,
        fetcher: Fetcher,
        owner: Owner,
        door: Option<Door>,
    ) -> Self {
        Fs {
            listing,
            installer,
            store,
            fetcher,
            streams: Streams::default(),
            walks: DirectoryWalk::default(),
            owner,
            door,
        }
    }

    /// Returns whom everything belongs to.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Returns the changes from now on.
    pub fn changes(&self) -> Receiver<Change> {
        self.listing.changes()
    }

    /// Returns the size of the store and what of it is free.
    pub fn space(&self) -> Space {
        let usage = self.store.usage();
        Space {
            total_bytes: usage.quota,
            free_bytes: usage.quota.saturating_sub(usage.unevictable),
        }
    }

    /// Finds `name` in a directory; `.` and `..` too, which NFS asks for.
    ///
    /// # Errors
    /// [`FsError`]; `NotFound` says how long the absence may be remembered.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Attempt<Attributes> {
        match name {
            b"." => return self.attributes(parent),
            b".." => return self.attributes(self.parent(parent)?),
            _ => {}
        }
        match parent.place() {
            Place::Root if name == door::NAME.as_bytes() && self.door.is_some() => {
                self.attributes(Ino::DOOR)
            }
            Place::Root | Place::Name(_) => {
                let names = self.listing.names();
                let found = directory(&names, parent)?.child(name);
                found
                    .ok_or(FsError::NotFound {
                        ttl: Duration::ZERO,
                    })
                    .map(|child| attributes::of_child(&names, child))
            }
            Place::Door | Place::Latest { .. } => Err(FsError::NotADirectory),
            Place::Row { slot, row } => {
                let version = self.living(slot)?;
                let tree = self.tree(&version)?;
                let directory = self.row(&version, &tree, row)?;
                if directory.kind() != Kind::Directory {
                    return Err(FsError::NotADirectory);
                }
                let found = tree
                    .lookup(&directory, name)
                    .map_err(|error| catalog_error(&version, &error))?;
                let (row, found) = found.ok_or(FsError::NotFound {
                    ttl: attributes::FOREVER,
                })?;
                Ok(attributes::of_row(slot, row, &found))
            }
        }
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// [`FsError`]
    pub fn attributes(&self, ino: Ino) -> Attempt<Attributes> {
        match ino.place() {
            Place::Root | Place::Name(_) => {
                let names = self.listing.names();
                Ok(attributes::of_directory(directory(&names, ino)?))
            }
            Place::Door => self.door().map(Door::attributes),
            Place::Latest { slot } => Ok(attributes::of_latest(&*self.living(slot)?)),
            Place::Row { slot, row: 0 } => Ok(attributes::of_version(&*self.living(slot)?)),
            Place::Row { slot, row } => {
                let version = self.living(slot)?;
                let tree = self.tree(&version)?;
                Ok(attributes::of_row(
                    slot,
                    row,
                    &self.row(&version, &tree, row)?,
                ))
            }
        }
    }

    /// Lists a directory from the entry after `cookie` (0: from the start). The cookie of child k is k + 3.
    ///
    /// # Errors
    /// [`FsError`]; `Wait` only when nothing was visited.
    pub fn list(&self, ino: Ino, cookie: u64, visit: Visit<'_>) -> Attempt<()> {
        if cookie < 2 {
            // Also makes sure that a catalog is here before the first entry is handed out.
            let own = self.enterable(ino)?;
            let parent = self.attributes(self.parent(ino)?)?;
            if cookie < 1
                && !visit(Item {
                    cookie: 1,
                    name: b".",
                    attributes: &own,
                })
            {
                return Ok(());
            }
            if !visit(Item {
                cookie: 2,
                name: b"..",
                attributes: &parent,
            }) {
                return Ok(());
            }
        }
        let from = cookie.saturating_sub(2);
        match ino.place() {
            Place::Root | Place::Name(_) => {
                let names = self.listing.names();
                let children = directory(&names, ino)?.children();
                for (index, (name, child)) in (from..).zip(
                    children
                        .iter()
                        .skip(usize::try_from(from).unwrap_or(usize::MAX)),
                ) {
                    let attributes = attributes::of_child(&names, child);
                    if !visit(Item {
                        cookie: index + 3,
                        name: name.as_bytes(),
                        attributes: &attributes,
                    }) {
                        return Ok(());
                    }
                }
                self.list_door(ino, children.len() as u64, from, visit);
                Ok(())
            }
            Place::Door | Place::Latest { .. } => Err(FsError::NotADirectory),
            Place::Row { slot, row } => {
                let version = self.living(slot)?;
                let tree = self.tree(&version)?;
                self.list_rows(&version, &tree, slot, row, from, cookie < 2, visit)
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, which has looked all of it up"
    )]
    fn list_rows(
        &self,
        version: &Arc<Listed>,
        tree: &Tree,
        slot: u32,
        row: u32,
        from: u64,
        visited_before: bool,
        visit: Visit<'_>,
    ) -> Attempt<()> {
        let directory = self.row(version, tree, row)?;
        if directory.kind() != Kind::Directory {
            return Err(FsError::NotADirectory);
        }
        let Ok(from_child) = u32::try_from(from) else {
            return Ok(());
        };
        let first = directory.children().start;
        let mut visited = visited_before;
        let outcome = tree.entries(&directory, from_child, &mut |number, row, name| {
            let attributes = attributes::of_row(slot, number, row);
            let cookie = u64::from(number - first) + 3;
            if visit(Item {
                cookie,
                name,
                attributes: &attributes,
            }) {
                visited = true;
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        });
        match outcome {
            Ok(()) => Ok(()),
            // What was visited is a reply already; the next call goes on, and waits, from there.
            Err(_) if visited => Ok(()),
            Err(error) => Err(catalog_error(version, &error)),
        }
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// [`FsError::LinkLeaves`] for a target outside the version, unless the package's trust rule says `links = "any"`.
    pub fn link(&self, ino: Ino) -> Attempt<Vec<u8>> {
        match ino.place() {
            Place::Door => self.door().map(|door| door.target().to_vec()),
            Place::Latest { slot } => Ok(self
                .living(slot)?
                .package()
                .version
                .to_string()
                .into_bytes()),
            Place::Root | Place::Name(_) => Err(FsError::NotALink),
            Place::Row { slot, row: number } => {
                let version = self.living(slot)?;
                let tree = self.tree(&version)?;
                let row = self.row(&version, &tree, number)?;
                if row.kind() != Kind::Symlink {
                    return Err(FsError::NotALink);
                }
                let target = tree
                    .target(&row)
                    .map_err(|error| catalog_error(&version, &error))?;
                let leaves = !version.links_may_leave()
                    && links::leaves(&*tree, number)
                        .map_err(|error| catalog_error(&version, &error))?;
                if leaves {
                    Err(FsError::LinkLeaves)
                } else {
                    Ok(target)
                }
            }
        }
    }

    /// Waits for what an attempt lacked and tries again, until it succeeds, fails otherwise, or [`ENTER_WAIT`] is over.
    ///
    /// # Errors
    /// Those of the attempt, those of installing, and [`FsError::StillInstalling`].
    pub async fn wait_and_retry<T>(
        &self,
        wait: Wait,
        mut attempt: impl FnMut(&Fs) -> Attempt<T>,
    ) -> Attempt<T> {
        let deadline = Instant::now() + ENTER_WAIT;
        let mut wait = wait;
        for _ in 0..HEALS_MAX {
            match tokio::time::timeout_at(deadline, self.arrive(&wait)).await {
                Ok(arrived) => arrived?,
                Err(_) => break,
            }
            match attempt(self) {
                Err(FsError::Wait(next)) => wait = next,
                outcome => return outcome,
            }
        }
        Err(FsError::StillInstalling)
    }

    /// Returns when what `wait` names is here.
    async fn arrive(&self, wait: &Wait) -> Attempt<()> {
        match wait.block {
            None => self
                .installer
                .enter(&wait.version)
                .await
                .map(drop)
                .map_err(|error| install_error(&error)),
            Some(block) => self
                .installer
                .heal(&wait.version, block)
                .await
                .map_err(|error| install_error(&error)),
        }
    }

    /// Returns the attributes of a directory whose entries can be listed now.
    fn enterable(&self, ino: Ino) -> Attempt<Attributes> {
        if let Place::Row { slot, .. } = ino.place() {
            self.tree(&self.living(slot)?)?;
        }
        let own = self.attributes(ino)?;
        if own.kind == Kind::Directory {
            Ok(own)
        } else {
            Err(FsError::NotADirectory)
        }
    }

    fn parent(&self, ino: Ino) -> Attempt<Ino> {
        match ino.place() {
            Place::Root | Place::Door => Ok(Ino::ROOT),
            Place::Name(_) => {
                let names = self.listing.names();
                Ok(Ino::name(directory(&names, ino)?.parent()))
            }
            Place::Latest { slot } | Place::Row { slot, row: 0 } => {
                let version = self.living(slot)?;
                let names = self.listing.names();
                let above = names
                    .of_package(&version.package().name)
                    .ok_or(FsError::Stale)?;
                Ok(Ino::name(above.id()))
            }
            Place::Row { slot, row } => {
                let version = self.living(slot)?;
                let tree = self.tree(&version)?;
                Ok(Ino::row(slot, self.row(&version, &tree, row)?.parent()))
            }
        }
    }

    /// Returns the version in a slot, unless it was withdrawn or is no longer trusted.
    fn living(&self, slot: u32) -> Attempt<Arc<Listed>> {
        self.listing
            .by_slot(slot)
            .filter(|version| !version.is_gone())
            .ok_or(FsError::Stale)
    }

    /// Returns a version's tree if it is installed.
    fn tree(&self, version: &Arc<Listed>) -> Attempt<Arc<Tree>> {
        version.tree().ok_or_else(|| {
            FsError::Wait(Wait {
                version: Arc::clone(version),
                block: None,
            })
        })
    }

    fn row(&self, version: &Arc<Listed>, tree: &Tree, row: u32) -> Attempt<Row> {
        tree.row(row)
            .map_err(|error| catalog_error(version, &error))
    }
}

/// Returns the synthetic directory that an inode stands for.
fn directory(names: &Names, ino: Ino) -> Attempt<&Directory> {
    let id = match ino.place() {
        Place::Root => ROOT,
        Place::Name(number) => number,
        Place::Door | Place::Latest { .. } | Place::Row { .. } => {
            return Err(FsError::NotADirectory);
        }
    };
    names.directory(id).ok_or(FsError::Stale)
}

fn catalog_error(version: &Arc<Listed>, error: &CatalogError) -> FsError {
    match error.missing_block() {
        Some(block) => FsError::Wait(Wait {
            version: Arc::clone(version),
            block: Some(block),
        }),
        // A row number that no installed catalog has: the kernel, or an NFS client, holds a handle of something else.
        None if error.is_no_such_row() => FsError::Stale,
        None => FsError::BadCatalog,
    }
}

fn fetch_error(error: &FetchError) -> FsError {
    match error {
        FetchError::Deadline { .. } => FsError::NoSourceInTime,
        FetchError::Refused { .. } => FsError::Refused,
        FetchError::NoSource { .. } | FetchError::NoHonest { .. } | FetchError::Closed => {
            FsError::NoHonestSource
        }
    }
}

fn install_error(error: &InstallError) -> FsError {
    match error {
        InstallError::Fetch { source, .. } => fetch_error(source),
        InstallError::Catalog { .. } => FsError::BadCatalog,
        InstallError::Stale { .. } => FsError::Refused,
        InstallError::NotByHand { .. } => FsError::NotInstalled,
        InstallError::Store { .. } | InstallError::Stopped => FsError::Disk,
    }
}
