//! The envelopes of what this home published, in the layout of a registry directory, so that they are listed and
//! served whatever becomes of the registry they were announced in. They pass the trust policy like any others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{StateError, durable};
use crate::manifest::{
    ENVELOPE_BYTES_MAX, Envelope, PackageName, PackageVersion, Signed, TrustedIndex,
    TrustedManifest, Version,
};

/// How many envelopes are written together, each an open file.
const PUT_AT_ONCE: usize = 64;

/// The envelopes of own publications.
pub struct Published {
    dir: PathBuf,
}

impl Published {
    pub(super) fn open(dir: PathBuf) -> Result<Published, StateError> {
        let packages = dir.join("packages");
        durable::create_dir(&packages).map_err(|error| StateError::io(&packages, error))?;
        Ok(Published { dir })
    }

    /// Returns the directory, laid out as a registry: `packages/<name>/index.json`,
    /// `packages/<name>/<version>/manifest.json`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps an envelope; durable when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put(&self, envelope: &Envelope) -> Result<(), StateError> {
        self.put_all(std::slice::from_ref(envelope))
    }

    /// Keeps envelopes, which appear in this order; durable when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_all(&self, envelopes: &[Envelope]) -> Result<(), StateError> {
        for envelopes in envelopes.chunks(PUT_AT_ONCE) {
            let mut batch = durable::Batch::default();
            for envelope in envelopes {
                let path = match envelope.unverified() {
                    Signed::Manifest(manifest) => self.manifest_path(&manifest.package),
                    Signed::Index(index) => self.index_path(&index.name),
                };
                self.stage(&path, envelope.bytes(), &mut batch)?;
            }
            batch
                .commit()
                .map_err(|error| StateError::io(&self.dir, error))?;
        }
        Ok(())
    }

    /// Adds a manifest's envelope to what is written together.
    pub(super) fn stage_manifest(
        &self,
        manifest: &TrustedManifest,
        batch: &mut durable::Batch,
    ) -> Result<(), StateError> {
        let path = self.manifest_path(manifest.package());
        self.stage(&path, manifest.envelope(), batch)
    }

    /// Adds a release index's envelope to what is written together.
    pub(super) fn stage_index(
        &self,
        index: &TrustedIndex,
        batch: &mut durable::Batch,
    ) -> Result<(), StateError> {
        self.stage(&self.index_path(index.name()), index.envelope(), batch)
    }

    fn stage(
        &self,
        path: &Path,
        bytes: &[u8],
        batch: &mut durable::Batch,
    ) -> Result<(), StateError> {
        batch
            .create_dir(path.parent().unwrap_or(&self.dir))
            .and_then(|()| batch.write(path, &[bytes], 0o600))
            .map_err(|error| StateError::io(path, error))
    }

    /// Returns the release index of a package, as it was published.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn index(&self, name: &PackageName) -> Result<Option<Vec<u8>>, StateError> {
        read(&self.index_path(name))
    }

    /// Returns the manifest of a version, as it was published.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn manifest(&self, package: &PackageVersion) -> Result<Option<Vec<u8>>, StateError> {
        read(&self.manifest_path(package))
    }

    /// Forgets a version; durable when this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove(&self, package: &PackageVersion) -> Result<(), StateError> {
        let path = self.manifest_path(package);
        durable::remove(&path).map_err(|error| StateError::io(&path, error))?;
        // Only the empty directory goes.
        let _ = path.parent().map(fs::remove_dir);
        Ok(())
    }

    /// Returns every version published here, sorted.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn versions(&self) -> Result<Vec<PackageVersion>, StateError> {
        let mut found = Vec::new();
        let packages = self.dir.join("packages");
        for (first, path) in directories(&packages)? {
            for (second, path) in directories(&path)? {
                if let Some(package) = package_version(&first, &second) {
                    found.push(package);
                    continue;
                }
                let name = format!("{first}/{second}");
                found.extend(
                    directories(&path)?
                        .iter()
                        .filter_map(|(version, _)| package_version(&name, version)),
                );
            }
        }
        found.retain(|package| self.manifest_path(package).is_file());
        found.sort_unstable();
        Ok(found)
    }

    fn package_dir(&self, name: &PackageName) -> PathBuf {
        self.dir.join("packages").join(name.as_str())
    }

    fn index_path(&self, name: &PackageName) -> PathBuf {
        self.package_dir(name).join("index.json")
    }

    fn manifest_path(&self, package: &PackageVersion) -> PathBuf {
        self.package_dir(&package.name)
            .join(package.version.as_str())
            .join("manifest.json")
    }
}

fn package_version(name: &str, version: &str) -> Option<PackageVersion> {
    let version: Version = version.parse().ok()?;
    Some(PackageVersion::new(name.parse().ok()?, version))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    durable::read(path, ENVELOPE_BYTES_MAX as u64).map_err(|error| StateError::io(path, error))
}

/// Returns name and path of each directory in `dir` whose name is a text.
fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>, StateError> {
    let list = || -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir()
                && let Ok(name) = entry.file_name().into_string()
            {
                found.push((name, entry.path()));
            }
        }
        Ok(found)
    };
    list().map_err(|error| StateError::io(dir, error))
}
