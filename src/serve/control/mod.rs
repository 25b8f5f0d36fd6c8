//! The control socket: commands ask the daemon of their home.
//!
//! A connection carries one request, with descriptors if it needs any, and a stream of events back. A command that finds
//! no daemon runs the same [`Handler`] in its own process, over a socket pair, so there is one way to do each thing.

mod address;
mod client;
mod message;
mod release;
mod server;
mod source;
#[cfg(test)]
mod tests;
mod wire;

pub use address::bind;
pub use client::{Client, ClientError, Reply};
pub use message::*;
pub use release::*;
pub(crate) use server::Taken;
pub use server::{Handler, Peer, Replies, serve, serve_connection};
pub use source::{PeerStatus, SourceStatus};
pub use wire::FRAME_BYTES_MAX;
