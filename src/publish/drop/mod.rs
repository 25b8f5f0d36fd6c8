//! The drop directory: directories that people put into it become signed versions (for people: `docs/publishing.md`).
//!
//! `name` says what the name of an entry means, `instructions` what its `manifs.toml` asks for. [`DropDirectory`] is the
//! directory on disk: everything in it is reached by descriptors, and what it says to people goes into status files
//! (`report`). An entry passes over the [`Board`], which decides when it is committed, tried again, and done; to do that
//! it is looked at by `inventory` (cheaply: nothing is read), which also tells afterwards what may be cleared away.
//!
//! Whoever may write to the directory is a stranger: an entry is never followed out of it, and what was published is
//! what was hashed from the very descriptors that were checked. Nothing here knows a key, a socket or a mount, and
//! nothing waits: the daemon calls it when something may have happened.

mod board;
mod clear;
mod error;
mod instructions;
mod inventory;
mod lease;
mod members;
mod name;
mod place;
mod report;
mod rights;
mod standing;
mod status;

pub use board::{Board, ENTRIES_MAX, Ending, MOVED_MAX, Mark, Phase, Remembered, Seen};
pub use clear::{After, Cleared};
pub use error::DropError;
pub use instructions::{Bump, InstructionError, Instructions};
pub use inventory::{Fingerprint, Inventory};
pub use members::{Group, GroupError};
pub use name::{Key, NameTrouble, Wanted};
pub use place::{DropDirectory, Entry, Found, Listed};
pub use report::{Report, Word, refusal_lines};
pub use standing::{NoNext, Standing};
pub use status::Written;
