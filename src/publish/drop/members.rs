//! The group that may write to a drop directory, and who is in it.

use nix::unistd::{Gid, Uid, User};

/// Why a group is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// No such group.
    #[error("there is no group {0:?} on this machine")]
    NoGroup(String),
    /// The system's list of users or groups cannot be read.
    #[error("the system does not tell its users and groups: {0}")]
    System(String),
}

/// A group of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    name: String,
    gid: u32,
}

impl Group {
    /// Finds a group by its name.
    ///
    /// # Errors
    /// [`GroupError`]
    pub fn find(name: &str) -> Result<Group, GroupError> {
        let found = nix::unistd::Group::from_name(name)
            .map_err(|error| GroupError::System(error.to_string()))?;
        let found = found.ok_or_else(|| GroupError::NoGroup(name.to_owned()))?;
        Ok(Group {
            name: name.to_owned(),
            gid: found.gid.as_raw(),
        })
    }

    /// Returns its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its number.
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// Returns whether a user belongs to it now: as its own group, or in the group's list.
    ///
    /// # Errors
    /// [`GroupError::System`]; a user that the machine does not know belongs to no group.
    pub fn has(&self, uid: u32) -> Result<bool, GroupError> {
        let system = |error: nix::Error| GroupError::System(error.to_string());
        let Some(user) = User::from_uid(Uid::from_raw(uid)).map_err(system)? else {
            return Ok(false);
        };
        if user.gid.as_raw() == self.gid {
            return Ok(true);
        }
        let group = nix::unistd::Group::from_gid(Gid::from_raw(self.gid)).map_err(system)?;
        Ok(group.is_some_and(|group| group.mem.contains(&user.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_its_own_group_and_nobody_is_not() {
        let root = Group::find("root").unwrap();
        assert_eq!(root.gid(), 0);
        assert_eq!(root.has(0), Ok(true));
        assert_eq!(root.has(65534), Ok(false));
        assert_eq!(root.has(4_000_000_000), Ok(false));
        assert_eq!(
            Group::find("no such group"),
            Err(GroupError::NoGroup("no such group".to_owned()))
        );
    }
}
