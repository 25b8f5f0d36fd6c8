//! Why a block did not come, and the short memory of it.

use std::fmt;
use std::sync::Arc;

use crate::block::Digest;

/// What one source said about one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The source's name.
    pub source: String,
    /// What it said or did, in a few words.
    pub said: String,
}

/// What every source that was asked said, in the order of asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(pub Arc<[Answer]>);

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no source was asked");
        }
        for (i, answer) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "; " };
            write!(f, "{comma}{}: {}", answer.source, answer.said)?;
        }
        Ok(())
    }
}

/// Why a block did not come. Each variant is another errno.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No source delivered in time.
    #[error("no source delivered block {digest} in time ({answers})")]
    Deadline {
        /// The block.
        digest: Digest,
        /// What every source said.
        answers: Answers,
    },
    /// There is no source, or none of them has it.
    #[error("no source has block {digest} ({answers})")]
    NoSource {
        /// The block.
        digest: Digest,
        /// What every source said.
        answers: Answers,
    },
    /// Somebody answered, but with other bytes, and nobody had the right ones.
    #[error("no honest source for block {digest} ({answers})")]
    NoHonest {
        /// The block.
        digest: Digest,
        /// What every source said.
        answers: Answers,
    },
    /// All sources there are were refused, by the address filter or by themselves.
    #[error("every source of block {digest} was refused ({answers})")]
    Refused {
        /// The block.
        digest: Digest,
        /// What every source said.
        answers: Answers,
    },
    /// The fetcher is shutting down.
    #[error("shutting down")]
    Closed,
}

impl FetchError {
    /// Returns what every source said; empty when none was asked.
    pub fn answers(&self) -> &[Answer] {
        match self {
            FetchError::Deadline { answers, .. }
            | FetchError::NoSource { answers, .. }
            | FetchError::NoHonest { answers, .. }
            | FetchError::Refused { answers, .. } => &answers.0,
            FetchError::Closed => &[],
        }
    }
}
