//! The mount, through the kernel: what `ls`, `cp`, `python` and the like see.

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
#[path = "../common/proxy.rs"]
mod proxy;

mod awkward;
mod changes;
mod damage;
mod dropping;
mod laziness;
mod liars;
mod library;
mod ordinary_user;
mod publishing;
mod reading;
mod semantics;
mod software;
mod warming;
