//! What was seen of each package: the highest release index, and the manifest of each version. Nothing counts as
//! admitted before it is durable, and nothing admitted is ever taken back.
//!
//! One JSON file per package, `seen/<name>.json` with `@` for the slash, read when the package is first asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{StateError, durable};
use crate::manifest::{
    ManifestId, PackageName, PackageVersion, SeenIndex, TrustError, TrustedIndex, TrustedManifest,
    Version,
};

/// Why something verified is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// It contradicts what was seen before: rollback, same sequence, other content.
    #[error(transparent)]
    Refused(#[from] TrustError),
    /// Its first part is already known as the other of package and scope.
    #[error(
        "{name} cannot be shown beside {other}, which was trusted first: '{first}' is either a package or a scope"
    )]
    NameTaken {
        /// The package that came.
        name: PackageName,
        /// The one there.
        other: PackageName,
        /// The part they share.
        first: String,
    },
    /// It cannot be made durable.
    #[error(transparent)]
    State(#[from] StateError),
}

impl SeenError {
    /// Returns what a person can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            SeenError::Refused(error) => Some(error.hint()),
            SeenError::NameTaken { .. } => {
                Some("one of the two publishers has to choose another name".to_owned())
            }
            SeenError::State(error) => error.hint().map(str::to_owned),
        }
    }
}

/// What is known of one package.
#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<SeenIndex>,
    #[serde(default)]
    versions: BTreeMap<Version, ManifestId>,
}

/// What was seen, of all packages.
pub struct Seen {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Every package that has a file, with its content once it was read.
    packages: HashMap<PackageName, Option<Arc<Package>>>,
    /// For each first part, one package that has it.
    firsts: HashMap<String, PackageName>,
}

impl Seen {
    pub(super) fn open(dir: PathBuf) -> Result<Seen, StateError> {
        durable::create_dir(&dir)
            .and_then(|()| durable::sweep(&dir))
            .map_err(|error| StateError::io(&dir, error))?;
        let mut packages = HashMap::new();
        let mut firsts = HashMap::new();
        for entry in fs::read_dir(&dir).map_err(|error| StateError::io(&dir, error))? {
            let file_name = entry
                .map_err(|error| StateError::io(&dir, error))?
                .file_name();
            let name = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|name| name.replace('@', "/").parse::<PackageName>().ok());
            // Nothing else belongs here, and nothing else is touched.
            let Some(name) = name else { continue };
            firsts.insert(name.first().to_owned(), name.clone());
            packages.insert(name, None);
        }
        Ok(Seen {
            dir,
            inner: Mutex::new(Inner { packages, firsts }),
        })
    }

    /// Returns the highest release index admitted for a package: to be handed to `TrustPolicy::verify_index`.
    ///
    /// # Errors
    /// [`StateError`] when what is known cannot be read; then nothing of the package can be judged.
    pub fn index(&self, name: &PackageName) -> Result<Option<SeenIndex>, StateError> {
        Ok(self.package(&mut self.inner.lock(), name)?.index)
    }

    /// Returns the manifest that is known for a version.
    ///
    /// # Errors
    /// As [`Seen::index`].
    pub fn manifest(&self, package: &PackageVersion) -> Result<Option<ManifestId>, StateError> {
        let known = self.package(&mut self.inner.lock(), &package.name)?;
        Ok(known.versions.get(&package.version).copied())
    }

    /// Returns the names of all packages of which something was admitted.
    pub fn names(&self) -> Vec<PackageName> {
        let mut names: Vec<_> = self.inner.lock().packages.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Admits a verified release index, and with it the manifest id of each version that it names. Durable when this
    /// returns; admitting the same again costs nothing.
    ///
    /// # Errors
    /// [`TrustError::Rollback`], [`TrustError::SameSequence`] or [`TrustError::OtherContent`] when it contradicts what
    /// was seen, [`SeenError::NameTaken`], [`SeenError::State`].
    pub fn admit_index(&self, index: &TrustedIndex) -> Result<(), SeenError> {
        self.admit(index.name(), |known| known.learn_index(index))
    }

    /// Admits a verified manifest. Durable when this returns; admitting the same again costs nothing.
    ///
    /// # Errors
    /// [`TrustError::OtherContent`] when the version is known with another manifest, [`SeenError::NameTaken`],
    /// [`SeenError::State`].
    pub fn admit_manifest(&self, manifest: &TrustedManifest) -> Result<(), SeenError> {
        self.admit(&manifest.package().name, |known| {
            known.learn_manifest(manifest)
        })
    }

    /// Admits what this home has published, both or neither, together with the files that `stage` adds: all are durable
    /// when this returns, and nothing counts before.
    pub(super) fn admit_published(
        &self,
        name: &PackageName,
        manifest: Option<&TrustedManifest>,
        index: Option<&TrustedIndex>,
        stage: impl FnOnce(&mut durable::Batch) -> Result<(), StateError>,
    ) -> Result<(), SeenError> {
        let learn = |known: &mut Package| {
            manifest.map_or(Ok(()), |manifest| known.learn_manifest(manifest))?;
            index.map_or(Ok(()), |index| known.learn_index(index))
        };
        self.admit_with(name, learn, stage)
    }

    /// Says whether [`Seen::admit_manifest`] would admit a manifest now; nothing is remembered.
    ///
    /// # Errors
    /// As [`Seen::admit_manifest`].
    pub fn check_manifest(&self, manifest: &TrustedManifest) -> Result<(), SeenError> {
        let (name, learn) = (&manifest.package().name, |known: &mut Package| {
            known.learn_manifest(manifest)
        });
        self.judge(&mut self.inner.lock(), name, learn)?;
        Ok(())
    }

    fn admit(
        &self,
        name: &PackageName,
        change: impl FnOnce(&mut Package) -> Result<(), TrustError>,
    ) -> Result<(), SeenError> {
        self.admit_with(name, change, |_| Ok(()))
    }

    fn admit_with(
        &self,
        name: &PackageName,
        change: impl FnOnce(&mut Package) -> Result<(), TrustError>,
        stage: impl FnOnce(&mut durable::Batch) -> Result<(), StateError>,
    ) -> Result<(), SeenError> {
        let mut inner = self.inner.lock();
        let changed = self.judge(&mut inner, name, change)?;
        let path = self.path(name);
        let at = |error| StateError::io(&path, error);
        let mut batch = durable::Batch::default();
        if let Some(package) = &changed {
            batch.write_json(&path, package).map_err(at)?;
        }
        stage(&mut batch)?;
        batch.commit().map_err(at)?;
        if let Some(package) = changed {
            inner.packages.insert(name.clone(), Some(Arc::new(package)));
            inner
                .firsts
                .entry(name.first().to_owned())
                .or_insert_with(|| name.clone());
        }
        Ok(())
    }

    /// Returns what would be known after a change; `None` when it says nothing new.
    fn judge(
        &self,
        inner: &mut Inner,
        name: &PackageName,
        change: impl FnOnce(&mut Package) -> Result<(), TrustError>,
    ) -> Result<Option<Package>, SeenError> {
        if let Some(other) = inner.firsts.get(name.first())
            && (other.scope().is_some() != name.scope().is_some())
        {
            return Err(SeenError::NameTaken {
                name: name.clone(),
                other: other.clone(),
                first: name.first().to_owned(),
            });
        }
        let known = self.package(inner, name)?;
        let mut package = Package::clone(&known);
        change(&mut package)?;
        Ok((package != *known).then_some(package))
    }

    fn package(&self, inner: &mut Inner, name: &PackageName) -> Result<Arc<Package>, StateError> {
        let Some(slot) = inner.packages.get_mut(name) else {
            return Ok(Arc::default());
        };
        if let Some(package) = slot {
            return Ok(Arc::clone(package));
        }
        let path = self.path(name);
        let read = durable::read_json::<Package>(&path);
        let package = read
            .map_err(|error| StateError::io(&path, error))?
            .ok_or_else(|| StateError::Damaged {
                path,
                reason: "it is gone".to_owned(),
            })?;
        let package = Arc::new(package);
        *slot = Some(Arc::clone(&package));
        Ok(package)
    }

    fn path(&self, name: &PackageName) -> PathBuf {
        self.dir
            .join(format!("{}.json", name.as_str().replace('/', "@")))
    }
}

impl Package {
    fn learn_index(&mut self, index: &TrustedIndex) -> Result<(), TrustError> {
        index.check_sequence(self.index)?;
        self.index = Some(index.seen());
        for (version, &id) in &index.index().versions {
            self.learn(index.name(), version, id)?;
        }
        Ok(())
    }

    fn learn_manifest(&mut self, manifest: &TrustedManifest) -> Result<(), TrustError> {
        let package = manifest.package();
        self.learn(&package.name, &package.version, manifest.id())
    }

    fn learn(
        &mut self,
        name: &PackageName,
        version: &Version,
        id: ManifestId,
    ) -> Result<(), TrustError> {
        let seen = *self.versions.entry(version.clone()).or_insert(id);
        if seen != id {
            return Err(TrustError::OtherContent {
                package: Box::new(PackageVersion::new(name.clone(), version.clone())),
                seen,
                got: id,
            });
        }
        Ok(())
    }
}
