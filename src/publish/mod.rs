//! A directory becomes a signed version.

mod disk;
mod refusal;
mod rules;

pub use refusal::{Group, Reason, Refusals, Refused, SHOWN_PER_REASON};
