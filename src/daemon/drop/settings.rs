//! What `[publish]` means for a daemon that runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::{Paths, PublishSection, variable};
use crate::manifest::{KeyError, PackageName, Password, Pattern, PrivateKey};
use crate::publish::drop::{After, DropError, Group, GroupError};
use crate::serve::control::Failure;

/// How packages are published unattended.
pub(in crate::daemon) struct Settings {
    pub(super) key: PrivateKey,
    pub(super) names: Vec<Pattern>,
    /// A directory; `None` for the home's own.
    pub(super) registry: Option<PathBuf>,
    pub(super) seed: bool,
    /// Where versions are written before they are announced.
    pub(super) mirrors: Vec<PathBuf>,
    pub(super) settle: Duration,
    pub(super) after: After,
}

impl Settings {
    /// Reads the key, which may take a while when it has a password. Blocking.
    ///
    /// # Errors
    /// [`Failure`] that names the key.
    pub(super) fn new(paths: &Paths, section: &PublishSection) -> Result<Settings, Failure> {
        Ok(Settings {
            key: key(paths, &section.key)?,
            names: section.names.iter().map(|name| name.0.clone()).collect(),
            registry: section.registry.clone(),
            seed: section.seeds(),
            mirrors: section.mirrors(),
            settle: section.settle,
            after: section.after,
        })
    }

    /// Returns whether a package may be signed.
    pub(super) fn allows(&self, name: &PackageName) -> bool {
        self.names.iter().any(|pattern| pattern.matches(name))
    }

    /// Returns the patterns, for people.
    pub(super) fn patterns(&self) -> String {
        let patterns: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        patterns.join(", ")
    }
}

/// Returns where the drop directory of a section is.
pub(in crate::daemon) fn directory(paths: &Paths, section: &PublishSection) -> PathBuf {
    section
        .directory
        .clone()
        .unwrap_or_else(|| paths.publish.clone())
}

/// Returns the group that may write to it.
pub(super) fn group(section: &PublishSection) -> Result<Option<Group>, GroupError> {
    section.group.as_deref().map(Group::find).transpose()
}

pub(super) fn drop_failure(error: &DropError) -> Failure {
    Failure::failed(error).hint(error.hint())
}

/// Reads the key: nobody can be asked for a password here.
fn key(paths: &Paths, word: &Path) -> Result<PrivateKey, Failure> {
    let named = word.components().count() == 1;
    let path = match word.to_str() {
        Some(name) if named => paths.private_key(name),
        _ => word.to_owned(),
    };
    PrivateKey::read(&path, password).map_err(|error| {
        let failure = Failure::failed(format!("[publish] key: {}: {error}", path.display()));
        match error {
            KeyError::PasswordNeeded | KeyError::PasswordWrong => {
                failure.hint("set MANIFS_PASSWORD_FILE for the daemon to a file with its password")
            }
            error => match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            },
        }
    })
}

fn password() -> Result<Option<Password>, KeyError> {
    if let Some(password) = variable("MANIFS_PASSWORD") {
        return Ok(Some(Password::new(password)));
    }
    let Some(file) = variable("MANIFS_PASSWORD_FILE") else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&file).map_err(|error| KeyError::Io {
        path: PathBuf::from(file),
        error,
    })?;
    let text = Zeroizing::new(text);
    Ok(Some(Password::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    )))
}
