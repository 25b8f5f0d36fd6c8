//! A registry in a directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::block::Digest;
use crate::manifest::{PackageName, PackageVersion, Version};

use super::layout::Place;
use super::listing::Listing;
use super::tree::{Entry, Staged, Tree, place};
use super::watch::Watch;
use super::{Announcement, Moment, NAMES_MAX, Registry, RegistryError, SCAN_EVERY, VERSIONS_MAX};

/// How long a writer waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How often it looks whether the other one is done.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A registry in a directory, which need not exist until something is put into it.
///
/// Writers of one machine take turns by a lock on the directory. Readers need none: a file appears whole, by a rename.
pub struct Directory {
    root: Arc<Path>,
    name: String,
    watch: Watch,
}

impl Directory {
    /// Names the directory; nothing is read, made or watched yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root: Arc<Path> = root.into().into();
        Directory {
            name: root.to_string_lossy().into_owned(),
            watch: Watch::new(Arc::clone(&root)),
            root,
        }
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads a public key.
    ///
    /// # Errors
    /// [`RegistryError`] when it is there and cannot be read.
    pub async fn key(&self, key: crate::manifest::KeyId) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Key(key)).await
    }

    async fn read(&self, place: Place) -> Result<Option<Bytes>, RegistryError> {
        self.with_tree(move |tree| tree.read(&place.to_string(), place.bytes_max()))
            .await
            .map(Option::flatten)
    }

    /// Runs `job` on the open directory, on a thread that may block. `None` if there is no directory.
    async fn with_tree<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tree) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<Option<T>, RegistryError> {
        let root = Arc::clone(&self.root);
        let done = tokio::task::spawn_blocking(move || match Tree::open(&root)? {
            Some(tree) => job(&tree).map(Some),
            None => Ok(None),
        })
        .await;
        done.unwrap_or_else(|error| {
            Err(RegistryError::Unavailable {
                registry: self.name.clone(),
                reason: error.to_string(),
                retry_after: None,
            })
        })
    }

    /// Opens the directory, which is made if need be, and takes the lock.
    async fn locked(&self) -> Result<Tree, RegistryError> {
        let deadline = Instant::now() + LOCK_WAIT;
        let io = |source| RegistryError::Io {
            path: self.name.clone(),
            source,
        };
        tokio::fs::create_dir_all(&self.root).await.map_err(io)?;
        loop {
            let tree =
                Tree::open(&self.root)?.ok_or_else(|| io(std::io::ErrorKind::NotFound.into()))?;
            if tree.lock()? {
                return Ok(tree);
            }
            if Instant::now() >= deadline {
                return Err(RegistryError::Unavailable {
                    registry: self.name.clone(),
                    reason: "another process is writing to it".to_owned(),
                    retry_after: None,
                });
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }
}

#[async_trait]
impl Registry for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    async fn names(&self) -> Result<Vec<PackageName>, RegistryError> {
        Ok(self.with_tree(names).await?.unwrap_or_default())
    }

    async fn index(&self, name: &PackageName) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Index(name.clone())).await
    }

    async fn versions(&self, name: &PackageName) -> Result<Vec<Version>, RegistryError> {
        let name = name.clone();
        let found = self.with_tree(move |tree| versions(tree, &name)).await?;
        Ok(found.unwrap_or_default())
    }

    async fn manifest(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Manifest(package.clone())).await
    }

    async fn sums(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError> {
        self.read(Place::Sums(package.clone())).await
    }

    async fn put(&self, announcement: Announcement) -> Result<(), RegistryError> {
        let tree = self.locked().await?;
        let done = tokio::task::spawn_blocking(move || put(&tree, &announcement)).await;
        done.unwrap_or_else(|error| {
            Err(RegistryError::Unavailable {
                registry: self.name.clone(),
                reason: error.to_string(),
                retry_after: None,
            })
        })
    }

    async fn changed(&self, since: Moment) -> Moment {
        self.watch.changed(since, SCAN_EVERY).await
    }
}

fn put(tree: &Tree, announcement: &Announcement) -> Result<(), RegistryError> {
    let package = &announcement.package;
    let index = Place::Index(package.name.clone());
    if announcement.index.is_some() {
        let there = tree.read(&index.to_string(), index.bytes_max())?;
        if there.map(|bytes| Digest::of(&bytes)) != announcement.replaces {
            return Err(RegistryError::Conflict {
                path: index.to_string(),
            });
        }
    }
    let keeps = announcement.index.is_none();
    let keys = announcement
        .keys
        .iter()
        .map(|(key, pem)| (Place::Key(*key), pem));
    let sums = (Place::Sums(package.clone()), announcement.sums.as_ref());
    let manifest = (
        Place::Manifest(package.clone()),
        announcement.manifest.as_ref(),
    );
    let index = (index, announcement.index.as_ref());
    let torrent = (
        Place::Torrent(package.clone()),
        announcement.torrent.as_ref(),
    );
    let stage = |place: &Place, bytes: &Bytes| {
        let (path, max) = (place.to_string(), place.bytes_max());
        if bytes.len() as u64 > max {
            return Err(RegistryError::TooLarge { path, max });
        }
        // What is there already is left alone: putting twice is the same as once, and nobody is woken for nothing.
        let stays = match tree.read(&path, max) {
            Ok(Some(there)) => there == *bytes || keeps && matches!(place, Place::Manifest(_)),
            _ => false,
        };
        (!stays).then(|| tree.stage(&path, bytes)).transpose()
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for (place, pem) in keys {
        before.extend(stage(&place, pem)?);
    }
    for (place, bytes) in [sums, torrent, manifest] {
        before.extend(
            bytes
                .map(|bytes| stage(&place, bytes))
                .transpose()?
                .flatten(),
        );
    }
    // Nobody hears of a version before it is there.
    if let (place, Some(bytes)) = index {
        after.extend(stage(&place, bytes)?);
    }
    after.extend(list(tree, package)?);
    place(&[before, after])
}

/// Brings `packages.json` up to date, which is there for those who copy the directory to a web server.
fn list(tree: &Tree, package: &PackageVersion) -> Result<Option<Staged>, RegistryError> {
    let path = Place::Listing.to_string();
    let there = tree.read(&path, Place::Listing.bytes_max());
    let text = there.as_ref().ok().and_then(|there| there.as_deref());
    let (mut listing, known) = match text.map(Listing::parse) {
        Some(Ok(listing)) => (listing, true),
        // None yet, or none that can be read: made from what is there.
        _ => (scan(tree)?, false),
    };
    let before = known.then(|| listing.clone());
    listing.insert(&package.name, Some(&package.version));
    if before.is_some_and(|before| before == listing) {
        return Ok(None);
    }
    tree.stage(&path, listing.to_string().as_bytes()).map(Some)
}

fn scan(tree: &Tree) -> Result<Listing, RegistryError> {
    let mut listing = Listing::default();
    for name in names(tree)? {
        listing.insert(&name, None);
        for version in versions(tree, &name)? {
            listing.insert(&name, Some(&version));
        }
    }
    Ok(listing)
}

fn names(tree: &Tree) -> Result<Vec<PackageName>, RegistryError> {
    let mut names = Vec::new();
    for first in parts(tree, "packages")? {
        let Ok(name) = first.parse::<PackageName>() else {
            continue;
        };
        let path = format!("packages/{first}");
        let inside = look_inside(tree, &path)?;
        if inside.package {
            names.push(name);
        }
        for part in inside.parts {
            let Ok(name) = format!("{first}/{part}").parse::<PackageName>() else {
                continue;
            };
            if look_inside(tree, &format!("{path}/{part}"))?.package {
                names.push(name);
            }
        }
        if names.len() > NAMES_MAX {
            return Err(RegistryError::TooMany {
                path: "packages".to_owned(),
                max: NAMES_MAX,
            });
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Lists the directories below `path`, or what may be some.
fn parts(tree: &Tree, path: &str) -> Result<Vec<String>, RegistryError> {
    let mut parts = Vec::new();
    tree.list(path, &mut |entry: Entry| {
        if entry.directory != Some(false) {
            parts.push(entry.name);
        }
        parts.len() <= NAMES_MAX
    })?;
    if parts.len() > NAMES_MAX {
        return Err(RegistryError::TooMany {
            path: path.to_owned(),
            max: NAMES_MAX,
        });
    }
    Ok(parts)
}

/// What a directory below `packages` is: a package, a scope, or (which the mount refuses) both.
struct Inside {
    package: bool,
    parts: Vec<String>,
}

fn look_inside(tree: &Tree, path: &str) -> Result<Inside, RegistryError> {
    let mut inside = Inside {
        package: false,
        parts: Vec::new(),
    };
    let listed = tree.list(path, &mut |entry: Entry| {
        if entry.directory != Some(true) && entry.name == "index.json" {
            inside.package = true;
        } else if entry.directory != Some(false) {
            if entry.name.parse::<Version>().is_ok() {
                inside.package = true;
            } else {
                inside.parts.push(entry.name);
            }
        }
        inside.parts.len() <= NAMES_MAX
    });
    match listed {
        Ok(_) | Err(RegistryError::Foreign { .. }) => Ok(inside),
        Err(error) => Err(error),
    }
}

fn versions(tree: &Tree, name: &PackageName) -> Result<Vec<Version>, RegistryError> {
    let path = format!("packages/{name}");
    let mut versions = Vec::new();
    tree.list(&path, &mut |entry: Entry| {
        if entry.directory != Some(false)
            && let Ok(version) = entry.name.parse::<Version>()
        {
            versions.push(version);
        }
        versions.len() <= VERSIONS_MAX
    })?;
    if versions.len() > VERSIONS_MAX {
        return Err(RegistryError::TooMany {
            path,
            max: VERSIONS_MAX,
        });
    }
    versions.retain(|version| tree.has_file(&format!("{path}/{version}/manifest.json")));
    versions.sort_unstable();
    Ok(versions)
}
