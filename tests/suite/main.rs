//! Integration tests: one module per theme.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "helpers of tests may stop a test as tests themselves do"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/machine.rs"]
#[allow(dead_code, reason = "not every helper is needed without a mount")]
mod machine;

mod catalog;
mod catalog_diff;
mod catalog_reading;
mod cli;
mod dropping;
mod dropping_races;
mod dropping_stress;
mod envelope;
mod fetch_speed;
mod fuzz_corpus;
mod gateway_server;
mod gateway_source;
mod guide;
mod http_source;
mod incremental;
mod keys;
mod poison;
mod publish;
mod publish_trees;
mod publishers;
mod registry;
mod releases;
mod seeding;
mod share;
mod state;
mod store;
mod store_model;
mod store_speed;
mod swarm;
mod tar;
mod torrent;
mod torrent_publish;
mod trackers;
mod trust;
mod unixfs;
mod update;
