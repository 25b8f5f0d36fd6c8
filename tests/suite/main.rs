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

mod catalog;
mod catalog_reading;
mod cli;
mod envelope;
mod fetch_speed;
mod fuzz_corpus;
mod gateway_server;
mod gateway_source;
mod http_source;
mod incremental;
mod keys;
mod poison;
mod publish;
mod publish_trees;
mod registry;
mod share;
mod state;
mod store;
mod store_model;
mod store_speed;
mod swarm;
mod torrent;
mod torrent_publish;
mod trackers;
mod trust;
mod unixfs;
