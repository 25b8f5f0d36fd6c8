//! Versions that are to be seeded, and the info dictionaries of torrents, so that none is hashed at each start.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{StateError, durable};
use crate::manifest::PackageVersion;
use crate::torrent::{INFO_BYTES_MAX, Info, Sha1Hash};

/// What a home seeds, whether a daemon runs or not.
pub struct Seeding {
    path: PathBuf,
    infos: PathBuf,
    versions: Mutex<BTreeSet<PackageVersion>>,
}

impl Seeding {
    /// `path` is the list, `infos` the directory of dictionaries.
    pub(super) fn open(path: PathBuf, infos: PathBuf) -> Result<Seeding, StateError> {
        durable::create_dir(&infos).map_err(|error| StateError::io(&infos, error))?;
        let versions = durable::read_json(&path)
            .map_err(|error| StateError::io(&path, error))?
            .unwrap_or_default();
        Ok(Seeding {
            path,
            infos,
            versions: Mutex::new(versions),
        })
    }

    /// Returns all versions, sorted.
    pub fn list(&self) -> Vec<PackageVersion> {
        self.versions.lock().iter().cloned().collect()
    }

    /// Returns whether a version is to be seeded.
    pub fn contains(&self, package: &PackageVersion) -> bool {
        self.versions.lock().contains(package)
    }

    /// Adds a version; durable when this returns. Returns whether it is new.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn add(&self, package: &PackageVersion) -> Result<bool, StateError> {
        self.change(|versions| versions.insert(package.clone()))
    }

    /// Removes a version; durable when this returns. Returns whether it was there.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn remove(&self, package: &PackageVersion) -> Result<bool, StateError> {
        self.change(|versions| versions.remove(package))
    }

    /// Returns the info dictionary with this hash, if it was kept. A damaged one is as good as none.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn info(&self, hash: &Sha1Hash) -> Result<Option<Info>, StateError> {
        let path = self.info_path(hash);
        let bytes = durable::read(&path, INFO_BYTES_MAX as u64);
        let bytes = bytes.map_err(|error| StateError::io(&path, error))?;
        Ok(bytes.and_then(|bytes| Info::verify(Bytes::from(bytes), hash).ok()))
    }

    /// Keeps an info dictionary; durable when this returns.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn put_info(&self, info: &Info) -> Result<(), StateError> {
        let path = self.info_path(&info.hash());
        durable::write(&path, info.bytes(), 0o600).map_err(|error| StateError::io(&path, error))
    }

    /// Forgets an info dictionary, which can be made again from the version.
    ///
    /// # Errors
    /// [`StateError`]
    pub fn remove_info(&self, hash: &Sha1Hash) -> Result<(), StateError> {
        let path = self.info_path(hash);
        durable::remove(&path).map_err(|error| StateError::io(&path, error))
    }

    fn info_path(&self, hash: &Sha1Hash) -> PathBuf {
        self.infos.join(format!("{}.info", hex::encode(hash)))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeSet<PackageVersion>) -> bool,
    ) -> Result<bool, StateError> {
        let mut versions = self.versions.lock();
        let mut changed = versions.clone();
        if !change(&mut changed) {
            return Ok(false);
        }
        durable::write_json(&self.path, &changed)
            .map_err(|error| StateError::io(&self.path, error))?;
        *versions = changed;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torrent::{Layout, Outline, Pieces};

    fn info() -> Info {
        use crate::catalog::{Catalog, Times, Writer};
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(dir.path(), 0o755, 0).unwrap();
        writer.next_directory().unwrap();
        let sealed = writer.finish(Times::Keep, &mut |_, _| Ok(())).unwrap();
        let catalog = Catalog::open(&sealed.file, sealed.len).unwrap();
        let layout = Layout::of(&catalog).unwrap();
        let outline = Outline::new("a-1.0.0", &catalog, &layout).unwrap();
        let pieces = Pieces::new(layout.into());
        pieces.add_zeros(0, sealed.len);
        outline.finish(&pieces.finish().unwrap()).unwrap()
    }

    #[test]
    fn what_is_seeded_outlives_the_process_and_a_damaged_dictionary_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || Seeding::open(dir.path().join("seeding.json"), dir.path().join("torrents")).unwrap();
        let (one, other) = (
            "a@1.0.0".parse().unwrap(),
            "s/b@2.0.0-rc.1".parse().unwrap(),
        );
        let info = info();
        {
            let seeding = open();
            assert!(seeding.add(&other).unwrap() && seeding.add(&one).unwrap());
            assert!(!seeding.add(&one).unwrap());
            seeding.put_info(&info).unwrap();
        }
        let seeding = open();
        assert_eq!(seeding.list(), [one.clone(), other.clone()]);
        assert_eq!(seeding.info(&info.hash()).unwrap(), Some(info.clone()));
        assert_eq!(seeding.info(&[0; 20]).unwrap(), None);
        assert!(seeding.remove(&one).unwrap() && !seeding.remove(&one).unwrap());
        assert!(seeding.contains(&other) && !seeding.contains(&one));
        std::fs::write(seeding.info_path(&info.hash()), b"d5:filesle").unwrap();
        assert_eq!(seeding.info(&info.hash()).unwrap(), None);
        seeding.remove_info(&info.hash()).unwrap();
        seeding.remove_info(&info.hash()).unwrap();
    }
}
