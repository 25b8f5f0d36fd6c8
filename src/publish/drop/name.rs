//! What the name of an entry means: `<name>@<version>`, `<name>@next`, both also below a scope.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::manifest::{NameError, PackageName, Version, VersionError};
use crate::publish::refusal::write_escaped;

/// What the name of a status file ends with.
pub(super) const STATUS: &str = ".status";

/// The word that stands for the version after the last one.
const NEXT: &str = "next";

/// Where an entry lies below the drop directory: its name, or scope and name. Raw bytes, whatever somebody chose.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    scope: Option<String>,
    name: Vec<u8>,
}

/// Why an entry's name says no package and version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameTrouble {
    /// It is no directory.
    #[error("it is not a directory")]
    NotADirectory,
    /// It is not UTF-8.
    #[error("its name is not UTF-8")]
    NotUtf8,
    /// There is no `@`, and no entry with one in it.
    #[error("its name says no version")]
    NoVersion,
    /// What stands before the `@` is no package name.
    #[error("its name is no package name: {0}")]
    Name(#[from] NameError),
    /// What stands after the `@` is no version.
    #[error("its name says no version that there can be: {0}")]
    Version(#[from] VersionError),
    /// Its status could not be told from an entry.
    #[error("its version ends with {STATUS}, as the names of status files do")]
    Status,
}

impl NameTrouble {
    /// Returns what to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            NameTrouble::NotADirectory => {
                "unpack it, or put it into a directory named NAME@VERSION"
            }
            _ => {
                "rename it to NAME@VERSION, for instance tool@1.2.0, or NAME@next; a scoped name is a directory in a directory: acme/tool@1.2.0"
            }
        }
    }
}

/// Which version of which package an entry wants to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The package.
    pub name: PackageName,
    /// The version; `None` for the one after the last.
    pub version: Option<Version>,
}

impl Key {
    /// Names an entry of the drop directory, or of a scope in it.
    pub fn new(scope: Option<&str>, name: &[u8]) -> Key {
        Key {
            scope: scope.map(str::to_owned),
            name: name.to_vec(),
        }
    }

    /// Takes a path below the drop directory; `None` when no entry can lie there.
    pub fn from_path(path: &[u8]) -> Option<Key> {
        let text = std::str::from_utf8(path).ok()?;
        let (scope, name) = match text.split_once('/') {
            Some((scope, name)) => (Some(scope), name),
            None => (None, text),
        };
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('/');
        (plain(name) && scope.is_none_or(plain)).then(|| Key::new(scope, name.as_bytes()))
    }

    /// Returns the scope whose directory it lies in.
    pub fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }

    /// Returns its path below the drop directory.
    pub fn path(&self) -> PathBuf {
        let name = OsStr::from_bytes(&self.name);
        match &self.scope {
            Some(scope) => Path::new(scope).join(name),
            None => PathBuf::from(name),
        }
    }

    /// Returns its own name.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Reads what it wants to be.
    ///
    /// # Errors
    /// [`NameTrouble`]
    pub fn wanted(&self) -> Result<Wanted, NameTrouble> {
        let text = std::str::from_utf8(&self.name).map_err(|_| NameTrouble::NotUtf8)?;
        let (name, version) = text.split_once('@').ok_or(NameTrouble::NoVersion)?;
        let name = match &self.scope {
            Some(scope) => format!("{scope}/{name}"),
            None => name.to_owned(),
        };
        if text.ends_with(STATUS) {
            return Err(NameTrouble::Status);
        }
        let version = match version {
            NEXT => None,
            version => Some(version.parse()?),
        };
        Ok(Wanted {
            name: name.parse()?,
            version,
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(scope) = &self.scope {
            write!(f, "{scope}/")?;
        }
        write_escaped(f, &self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(scope: Option<&str>, name: &str) -> Result<String, NameTrouble> {
        let wanted = Key::new(scope, name.as_bytes()).wanted()?;
        let version = wanted.version.map_or("next".to_owned(), |v| v.to_string());
        Ok(format!("{} {version}", wanted.name))
    }

    #[test]
    fn names_say_package_and_version() {
        assert_eq!(wanted(None, "tool@1.2.3").unwrap(), "tool 1.2.3");
        assert_eq!(wanted(None, "tool@next").unwrap(), "tool next");
        assert_eq!(
            wanted(Some("acme"), "tool@1.0.0-rc.1").unwrap(),
            "acme/tool 1.0.0-rc.1"
        );
        for (name, trouble) in [
            ("tool", "no version"),
            ("tool-1.2.3", "no version"),
            ("Tool@1.2.3", "no package name"),
            ("tool@1.2", "no version that there can be"),
            ("tool@1.2.3+build", "build metadata"),
            ("tool@1.2.3@4", "no version that there can be"),
            ("@1.2.3", "no package name"),
            ("publish@1.0.0", "reserved"),
            ("tool@latest", "no version that there can be"),
            ("tool@1.0.0-a.status", "status files"),
            ("tool@next.status", "status files"),
        ] {
            let said = wanted(None, name).unwrap_err().to_string();
            assert!(said.contains(trouble), "{name}: {said}");
        }
        let raw = Key::new(None, b"t\xff@1.0.0");
        assert_eq!(raw.wanted(), Err(NameTrouble::NotUtf8));
        assert_eq!(raw.to_string(), "t\\xff@1.0.0");
    }

    #[test]
    fn paths_that_no_entry_can_have_are_no_keys() {
        assert_eq!(
            Key::from_path(b"acme/tool@1.0.0"),
            Some(Key::new(Some("acme"), b"tool@1.0.0"))
        );
        for path in [
            "",
            ".",
            "..",
            "a/../b",
            "../a",
            ".x@1.0.0",
            "a/b/c@1.0.0",
            "/a",
            "a/",
        ] {
            assert_eq!(Key::from_path(path.as_bytes()), None, "{path}");
        }
    }
}
