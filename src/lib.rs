//! manifs shows signed manifests as directories.
//!
//! Bytes arrive as strangers and leave with a name. Two doors lead in: [`block::Block::verify`] for data and
//! [`manifest::TrustPolicy`] for manifests; nothing else turns bytes from a network or a disk into something
//! that the kernel, or a caller of this library, is given.
//!
//! Layers, imports going strictly down: `cli` (7) > `daemon`, `config` (6) > `fuse`, `serve` (5) > `fs` (4) >
//! `fetch`, `install`, `publish` (3) > `store`, `state`, `source`, `registry` (2) > `catalog`, `manifest`, `torrent`, `net` (1) >
//! `block`, `unixfs`, `durable` (0).

#[cfg(not(target_pointer_width = "64"))]
compile_error!("manifs needs a 64-bit machine: lengths of blocks and catalogs are used as usize");

pub mod block;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod durable;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod install;
pub mod manifest;
pub mod net;
pub mod publish;
pub mod registry;
pub mod serve;
pub mod source;
pub mod state;
pub mod store;
pub mod torrent;
pub mod unixfs;
