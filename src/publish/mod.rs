//! A directory becomes a signed version (for people: `docs/publishing.md`).
//!
//! [`Publisher::prepare`] walks the tree (`walk`, over the descriptors of `disk`), reads every file once (`ingest`, on the
//! threads of `pool`, into a `sink`: the store, or nowhere), seals the catalog (`build`), and says what has to be signed,
//! going on from what is `known`. Whoever has the key signs, in this process or another. [`Publisher::finish`] judges the
//! envelopes by the trust policy, writes the job into the `journal`, makes the version visible in this home and announces
//! it to its registry; a job that a crash interrupted there is carried on by [`Publisher::resume`].
//!
//! Nothing here knows a key, a mount or a network.

mod build;
#[cfg(test)]
mod change_tests;
mod disk;
mod error;
mod finish;
mod ingest;
mod job;
mod journal;
mod keep;
mod known;
mod options;
mod pool;
mod progress;
mod refusal;
mod reuse;
mod rules;
mod sink;
mod spool;
mod torrent;
mod walk;

pub use error::PublishError;
pub use finish::{Outcome, Resumed};
pub use job::{Envelopes, Prepared, Publisher, Signer, Summary};
pub use options::{About, Allow, AllowSyntax, Guard, Hints, JobId, JobIdSyntax, Latest, Options};
pub use progress::{Progress, Snapshot, Step};
pub use refusal::{Group, Reason, Refusals, Refused, SHOWN_PER_REASON};

/// The longest path in a package, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
