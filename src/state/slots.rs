//! Slots: the durable number of each listed version, upper half of its inodes. A slot is given once and never again.
//!
//! `slots` is a text file that only grows, one JSON object a line, line `n` for slot `n`: giving one costs one append
//! and one sync, however many there are. A line without its newline is what a crash left of a slot that nobody was
//! given; it is cut off.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{StateError, durable};
use crate::manifest::{ManifestId, PackageVersion};

/// The largest slots file, in bytes: several million versions.
const SLOTS_BYTES_MAX: u64 = 1 << 30;

/// Why there is no slot to be had.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// All 2^32 - 1 slots are given.
    #[error("all slots of this home are given")]
    Exhausted,
    /// It cannot be made durable.
    #[error(transparent)]
    State(#[from] StateError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    slot: u32,
    package: PackageVersion,
    manifest: ManifestId,
}

/// The slots of a home. Slot 0 is never given: it is the synthetic directories.
pub struct Slots {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// Bytes of whole lines.
    len: u64,
    /// Index `n` is slot `n + 1`.
    versions: Vec<(PackageVersion, ManifestId)>,
    slots: HashMap<(PackageVersion, ManifestId), u32>,
}

impl Slots {
    pub(super) fn open(path: PathBuf) -> Result<Slots, StateError> {
        let io = |error| StateError::io(&path, error);
        if !path.exists() {
            durable::write(&path, b"", 0o600).map_err(io)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut text = String::new();
        Read::by_ref(&mut file)
            .take(SLOTS_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io)?;
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        let mut inner = Inner {
            len: whole as u64,
            file,
            versions: Vec::new(),
            slots: HashMap::new(),
        };
        for (number, line) in (1_u32..).zip(text[..whole].lines()) {
            let damaged = |reason: String| StateError::Damaged {
                path: path.clone(),
                reason: format!("line {number}: {reason}"),
            };
            let line: Line =
                serde_json::from_str(line).map_err(|error| damaged(error.to_string()))?;
            if line.slot != number {
                return Err(damaged(format!("slot {} is out of order", line.slot)));
            }
            let key = (line.package, line.manifest);
            if inner.slots.insert(key.clone(), number).is_some() {
                return Err(damaged("a version has a slot already".to_owned()));
            }
            inner.versions.push(key);
        }
        if whole < text.len() {
            inner.file.set_len(inner.len).map_err(io)?;
            inner.file.sync_all().map_err(io)?;
        }
        Ok(Slots {
            path,
            inner: Mutex::new(inner),
        })
    }

    /// Returns the slot of a version, if one was given.
    pub fn get(&self, package: &PackageVersion, manifest: ManifestId) -> Option<u32> {
        let key = (package.clone(), manifest);
        self.inner.lock().slots.get(&key).copied()
    }

    /// Returns which version a slot was given to.
    pub fn version(&self, slot: u32) -> Option<(PackageVersion, ManifestId)> {
        let index = usize::try_from(slot.checked_sub(1)?).ok()?;
        self.inner.lock().versions.get(index).cloned()
    }

    /// Returns the slot of a version, a new one when none was given. Durable when this returns.
    ///
    /// # Errors
    /// [`SlotsError`].
    pub fn assign(
        &self,
        package: &PackageVersion,
        manifest: ManifestId,
    ) -> Result<u32, SlotsError> {
        let slots = self.assign_all(&[(package.clone(), manifest)])?;
        Ok(slots[0])
    }

    /// Returns the slot of each version, in order: [`Slots::assign`] of many with one sync.
    ///
    /// # Errors
    /// [`SlotsError`]; then none is given.
    pub fn assign_all(
        &self,
        versions: &[(PackageVersion, ManifestId)],
    ) -> Result<Vec<u32>, SlotsError> {
        let mut inner = self.inner.lock();
        let known = inner.versions.len();
        let mut added: Vec<((PackageVersion, ManifestId), u32)> = Vec::new();
        let mut numbers: HashMap<&(PackageVersion, ManifestId), u32> = HashMap::new();
        let mut text = Vec::new();
        let mut slots = Vec::with_capacity(versions.len());
        for key in versions {
            let given = inner.slots.get(key).or_else(|| numbers.get(key)).copied();
            if let Some(slot) = given {
                slots.push(slot);
                continue;
            }
            let slot = u32::try_from(known + added.len() + 1).map_err(|_| SlotsError::Exhausted)?;
            let line = Line {
                slot,
                package: key.0.clone(),
                manifest: key.1,
            };
            serde_json::to_writer(&mut text, &line).map_err(|error| self.io(error.into()))?;
            text.push(b'\n');
            numbers.insert(key, slot);
            added.push((key.clone(), slot));
            slots.push(slot);
        }
        if added.is_empty() {
            return Ok(slots);
        }
        // A failed append may have left whole lines whose slots nobody was given: they go before the next one.
        inner
            .file
            .set_len(inner.len)
            .and_then(|()| inner.file.write_all_at(&text, inner.len))
            .and_then(|()| inner.file.sync_data())
            .map_err(|error| self.io(error))?;
        inner.len += text.len() as u64;
        for (key, slot) in added {
            inner.slots.insert(key.clone(), slot);
            inner.versions.push(key);
        }
        Ok(slots)
    }

    fn io(&self, error: io::Error) -> StateError {
        StateError::io(&self.path, error)
    }
}
