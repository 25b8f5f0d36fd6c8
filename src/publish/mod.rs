//! A directory becomes a signed version (for people: `docs/publishing.md`).
//!
//! [`Publisher::prepare`] walks the tree (`walk`, over the descriptors of `disk`), reads every file once (`ingest`, on the
//! threads of `pool`, into a `sink`: the store, or nowhere), seals the catalog (`build`), and says what has to be signed,
//! going on from what is `known`: a `draft`. Whoever has the key signs, in this process or another. [`Publisher::finish`]
//! judges the envelopes by the trust policy, writes the job into the `journal`, announces the version to its registry and
//! makes it visible in this home; a job that a crash interrupted there is carried on by [`Publisher::resume`]. When
//! somebody else has announced something of the package in between, nothing is visible yet, and another draft is to be
//! signed. A `change` of the release index alone goes the same way, without a tree.
//!
//! Nothing here knows a key, a mount or a network.

mod beneath;
mod build;
mod change;
#[cfg(test)]
mod change_tests;
mod disk;
mod draft;
pub mod drop;
mod error;
mod finish;
mod ingest;
mod job;
mod journal;
mod keep;
mod known;
mod options;
mod pool;
#[cfg(test)]
mod power_cut_tests;
mod progress;
mod refusal;
mod reuse;
mod rules;
mod sink;
mod spool;
mod tar;
mod torrent;
mod walk;

pub use change::{Change, REASON_BYTES_MAX};
pub use error::PublishError;
pub use finish::{Finished, Outcome, Resumed};
pub use job::{Envelopes, Hold, Prepared, Publisher, Rehearsal, Signer, Summary};
pub use options::{
    About, Allow, AllowSyntax, Guard, Hints, JobId, JobIdSyntax, Latest, Options, Update,
};
pub use progress::{Progress, Snapshot, Step};
pub use refusal::{Group, Reason, Refusals, Refused, SHOWN_PER_REASON};
pub use tar::{TarError, Unpacked};

/// The longest path in a package, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
