//! Pins: what the user wants kept in the store whatever the quota says.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{StateError, durable};
use crate::manifest::{PackageName, Version};

/// What is kept: a package, one version of it, or a path in one version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The package.
    pub name: PackageName,
    /// The version; `None` pins every version that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// A path in the version, without a leading slash; `None` pins all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(version) = &self.version {
            write!(f, "@{version}")?;
        }
        if let Some(path) = &self.path {
            write!(f, "/{path}")?;
        }
        Ok(())
    }
}

/// The pins of a home.
pub struct Pins {
    path: PathBuf,
    pins: Mutex<BTreeSet<Pin>>,
}

impl Pins {
    pub(super) fn open(path: PathBuf) -> Result<Pins, StateError> {
        let pins = durable::read_json(&path)
            .map_err(|error| StateError::io(&path, error))?
            .unwrap_or_default();
        Ok(Pins {
            path,
            pins: Mutex::new(pins),
        })
    }

    /// Returns all pins, sorted.
    pub fn list(&self) -> Vec<Pin> {
        self.pins.lock().iter().cloned().collect()
    }

    /// Adds a pin; durable when this returns. Returns whether it is new.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn add(&self, pin: Pin) -> Result<bool, StateError> {
        self.change(|pins| pins.insert(pin))
    }

    /// Removes a pin; durable when this returns. Returns whether it was there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove(&self, pin: &Pin) -> Result<bool, StateError> {
        self.change(|pins| pins.remove(pin))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Pin>) -> bool) -> Result<bool, StateError> {
        let mut pins = self.pins.lock();
        let mut changed = pins.clone();
        if !change(&mut changed) {
            return Ok(false);
        }
        durable::write_json(&self.path, &changed)
            .map_err(|error| StateError::io(&self.path, error))?;
        *pins = changed;
        Ok(true)
    }
}
