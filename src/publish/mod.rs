//! A directory becomes a signed version.

mod disk;
mod error;
mod ingest;
mod options;
mod pool;
mod progress;
mod refusal;
mod rules;
mod sink;
mod spool;
mod walk;

pub use error::PublishError;
pub use options::{About, Allow, AllowSyntax, Hints, JobId, JobIdSyntax, Latest, Options};
pub use progress::{Progress, Snapshot, Step};
pub use refusal::{Group, Reason, Refusals, Refused, SHOWN_PER_REASON};

/// The longest path in a package, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
