//! Why a block did not come, and the short memory of it.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

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

/// Failures remembered; the oldest are forgotten first.
const FAILURES_MAX: usize = 4096;

/// How long a failure can be asked for by `why` after it has stopped answering readers.
const EXPLAINED: Duration = Duration::from_secs(600);

/// The last failures by digest.
#[derive(Debug)]
pub(super) struct Failures {
    negative: Duration,
    last: Mutex<LruCache<Digest, (Instant, FetchError)>>,
}

impl Failures {
    pub(super) fn new(negative: Duration) -> Self {
        let max = NonZeroUsize::new(FAILURES_MAX).unwrap_or(NonZeroUsize::MIN);
        Failures {
            negative,
            last: Mutex::new(LruCache::new(max)),
        }
    }

    pub(super) fn remember(&self, digest: Digest, error: FetchError) {
        self.last.lock().put(digest, (Instant::now(), error));
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.last.lock().pop(digest);
    }

    pub(super) fn forget_all(&self) {
        self.last.lock().clear();
    }

    /// The failure that answers a reader at once, since the kernel asks each failed page again.
    pub(super) fn fresh(&self, digest: &Digest) -> Option<FetchError> {
        self.within(digest, self.negative)
    }

    /// The failure that explains.
    pub(super) fn explain(&self, digest: &Digest) -> Option<FetchError> {
        self.within(digest, EXPLAINED)
    }

    fn within(&self, digest: &Digest, age: Duration) -> Option<FetchError> {
        let last = self.last.lock();
        let (at, error) = last.peek(digest)?;
        (at.elapsed() < age).then(|| error.clone())
    }
}
