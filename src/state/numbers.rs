//! The durable numbers of scopes and package names: their inodes are the same after a restart.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::{StateError, durable};

/// The first number given: 1 is the root of a mount.
const FIRST: u32 = 2;

/// Numbers of names, from 2, never given twice.
pub struct Numbers {
    path: PathBuf,
    numbers: Mutex<BTreeMap<String, u32>>,
}

impl Numbers {
    pub(super) fn open(path: PathBuf) -> Result<Numbers, StateError> {
        let numbers = durable::read_json(&path).map_err(|error| StateError::io(&path, error))?;
        Ok(Numbers {
            path,
            numbers: Mutex::new(numbers.unwrap_or_default()),
        })
    }

    /// Returns the numbers of `names`, in order; new ones are durable when this returns.
    ///
    /// # Errors
    /// [`StateError`]; the numbers are good for this run all the same.
    pub fn assign(&self, names: &[&str]) -> (Vec<u32>, Result<(), StateError>) {
        let mut numbers = self.numbers.lock();
        let before = numbers.len();
        let mut next = numbers.values().max().map_or(FIRST, |last| last + 1);
        let one = |name: &&str| {
            *numbers.entry((*name).to_owned()).or_insert_with(|| {
                next += 1;
                next - 1
            })
        };
        let assigned = names.iter().map(one).collect();
        let saved = if numbers.len() == before {
            Ok(())
        } else {
            durable::write_json(&self.path, &*numbers)
                .map_err(|error| StateError::io(&self.path, error))
        };
        (assigned, saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outlive_a_restart_and_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.json");
        let numbers = Numbers::open(path.clone()).unwrap();
        assert_eq!(numbers.assign(&["b", "a", "b"]).0, [2, 3, 2]);
        let again = Numbers::open(path).unwrap();
        assert_eq!(again.assign(&["c", "a", "b"]).0, [4, 3, 2]);
    }
}
