//! Inode numbers: a pure function of what they stand for, so that there is no table and nothing to forget.

use std::fmt;

/// An inode number: the upper half says which version (its slot), the lower half which row of its catalog.
///
/// Slot 0 holds the synthetic directories: the root, scopes and package names, numbered durably. The top bit marks the
/// `latest` link, whose number follows its target, so that a link never changes under its inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(u64);

const LATEST: u64 = 1 << 63;

/// The link to the drop directory: of the links, the one in slot 0, where no version is.
const DOOR: u64 = LATEST | 1;

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The root of the mount.
    Root,
    /// The link `publish`, which leads to the drop directory.
    Door,
    /// A scope or a package name, by its durable number.
    Name(u32),
    /// The `latest` link that points at the version in this slot.
    Latest {
        /// The target's slot.
        slot: u32,
    },
    /// A row of a version's catalog.
    Row {
        /// The version's slot.
        slot: u32,
        /// The row in its catalog; 0 is the version's directory.
        row: u32,
    },
}

impl Ino {
    /// The root of the mount, as FUSE has it.
    pub const ROOT: Ino = Ino(1);

    /// The link `publish` in the root.
    pub const DOOR: Ino = Ino(DOOR);

    /// Takes a number that the kernel sent.
    pub const fn from_kernel(number: u64) -> Self {
        Ino(number)
    }

    /// Returns the number of a scope or package name; names are numbered from 2.
    pub const fn name(number: u32) -> Self {
        Ino(number as u64)
    }

    /// Returns the number of a row of the version in `slot`.
    pub const fn row(slot: u32, row: u32) -> Self {
        Ino((slot as u64) << 32 | row as u64)
    }

    /// Returns the number of the `latest` link to the version in `slot`.
    pub const fn latest(slot: u32) -> Self {
        Ino(LATEST | (slot as u64) << 32)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns what the number stands for.
    pub const fn place(self) -> Place {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "each half is masked to its width first"
        )]
        let (slot, low) = (((self.0 & !LATEST) >> 32) as u32, self.0 as u32);
        match (self.0 & LATEST != 0, slot, low) {
            (true, 0, 1) => Place::Door,
            (true, slot, _) => Place::Latest { slot },
            (false, 0, 1) => Place::Root,
            (false, 0, number) => Place::Name(number),
            (false, slot, row) => Place::Row { slot, row },
        }
    }
}

impl fmt::Debug for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_places_are_one_to_one() {
        assert_eq!(Ino::ROOT.place(), Place::Root);
        assert_eq!(Ino::name(2).place(), Place::Name(2));
        assert_eq!(Ino::row(1, 0).get(), 1 << 32);
        assert_eq!(Ino::row(1, 0).place(), Place::Row { slot: 1, row: 0 });
        let (slot, row) = ((1 << 31) - 1, u32::MAX);
        assert_eq!(Ino::row(slot, row).place(), Place::Row { slot, row });
        assert_eq!(Ino::latest(slot).place(), Place::Latest { slot });
        assert_eq!(Ino::DOOR.place(), Place::Door);
        assert_ne!(Ino::latest(7), Ino::latest(8));
    }
}
