//! What is asked and answered about versions that exist: what their release index says, and how two of them differ.

use serde::{Deserialize, Serialize};

use super::message::{Prepared, Published};

/// What a release index is to say of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexChange {
    /// It must not be used any more, for this reason.
    Withdraw(String),
    /// `latest` leads to it.
    Latest,
}

/// What became of signatures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finished {
    /// All of it is announced.
    Done(Published),
    /// Somebody else was faster: this is to be signed instead, for the same job.
    Again(Box<Prepared>),
}

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiffKind {
    /// It is only in the second tree.
    Added,
    /// It is only in the first tree.
    Removed,
    /// Its content, or a link's target, is another one.
    Changed,
    /// Only its permission bits are others.
    Mode,
    /// It is something else: a file, a directory or a link.
    Type,
}

/// An entry on one side of a difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffSide {
    /// `file`, `directory` or `symlink`.
    pub kind: String,
    /// Permission bits.
    pub mode: u16,
    /// Bytes of a file, children of a directory.
    pub size: u64,
}

/// A path that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffItem {
    /// Its path from what is compared, empty for that itself; not UTF-8 is shown with replacement characters.
    pub path: String,
    /// The very bytes of the path in hexadecimal digits, where `path` had to replace some.
    pub path_hex: Option<String>,
    /// What became of it.
    pub change: DiffKind,
    /// What it was.
    pub before: Option<DiffSide>,
    /// What it is.
    pub after: Option<DiffSide>,
}

/// How many paths differ, and in what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffSummary {
    /// What was compared, as name and version.
    pub from: String,
    /// What it was compared with; empty: a directory that is not published.
    pub to: String,
    /// Paths that are only in the second.
    pub added: u64,
    /// Paths that are only in the first.
    pub removed: u64,
    /// Files and links with another content or target.
    pub changed: u64,
    /// Paths with other permission bits only.
    pub modes: u64,
    /// Paths that are something else.
    pub types: u64,
    /// Files and links that differ in nothing but their times.
    pub times: u64,
}

impl DiffSummary {
    /// Counts a difference.
    pub fn count(&mut self, kind: DiffKind) {
        match kind {
            DiffKind::Added => self.added += 1,
            DiffKind::Removed => self.removed += 1,
            DiffKind::Changed => self.changed += 1,
            DiffKind::Mode => self.modes += 1,
            DiffKind::Type => self.types += 1,
        }
    }

    /// Returns how many paths differ in more than their times.
    pub fn paths(&self) -> u64 {
        self.added + self.removed + self.changed + self.modes + self.types
    }

    /// Says it in one line.
    pub fn sentence(&self) -> String {
        let counts = [
            (self.added, "added"),
            (self.removed, "removed"),
            (self.changed, "changed"),
            (self.modes, "with another mode"),
            (self.types, "of another type"),
            (self.times, "with another time only"),
        ];
        let said: Vec<String> = counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if said.is_empty() {
            "no difference".to_owned()
        } else {
            said.join(", ")
        }
    }
}

/// How a tree that would be published differs from the last version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffPreview {
    /// The counts of all of it.
    pub summary: DiffSummary,
    /// The first differences.
    pub entries: Vec<DiffItem>,
}
