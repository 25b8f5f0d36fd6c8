//! A directory becomes a signed version.

mod build;
mod disk;
mod error;
mod finish;
mod ingest;
mod job;
mod journal;
mod known;
mod options;
mod pool;
mod progress;
mod refusal;
mod rules;
mod sink;
mod spool;
mod walk;

pub use error::PublishError;
pub use finish::{Outcome, Resumed};
pub use job::{Envelopes, Prepared, Publisher, Signer, Summary};
pub use options::{About, Allow, AllowSyntax, Hints, JobId, JobIdSyntax, Latest, Options};
pub use progress::{Progress, Snapshot, Step};
pub use refusal::{Group, Reason, Refusals, Refused, SHOWN_PER_REASON};

/// The longest path in a package, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
