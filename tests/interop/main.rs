//! What other programs make of what manifs publishes, and it of what they serve.
//!
//! The other program is Kubo's `ipfs`, whose path is in `MANIFS_TEST_IPFS`; `scripts/test` builds it. Nothing leaves
//! loopback.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "tests may stop and speak, and share helpers with other binaries"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../common/throttle.rs"]
mod throttle;

mod clients;
mod exchange;
mod hash_table;
mod kubo;
mod mirrors;
mod peers;
mod published;
mod roots;
mod torrent_files;
mod torrent_seed;
