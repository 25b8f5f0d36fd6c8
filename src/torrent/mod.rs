//! A version's tree as a torrent (format: `docs/formats/torrent.md`).
//!
//! A torrent is a pure function of name, version and tree. [`Layout`] says where every byte lies; it follows from the
//! catalog alone, so a reader needs no metainfo. [`Outline`] is the info dictionary but for its piece hashes, [`Info`]
//! the whole with its hash, [`Pieces`] makes the hashes while files are read for the first time, and [`rebuild`] from
//! what is stored. Info hashes are locators and SHA-1 proves nothing: whatever a peer sends is judged by its SHA-256.
//! Both sides of a connection, reading and seeding, greet by [`handshake`] as one [`peer_id`] makes them. This module
//! dials no peer and knows no store and no disk.

mod greeting;
mod info;
mod layout;
mod metainfo;
mod pieces;
mod rebuild;

use std::io;

use crate::catalog::CatalogError;

pub use greeting::{CLIENT, HANDSHAKE_BYTES, handshake, peer_id};
pub use info::{Info, InfoError, Outline};
pub use layout::{Layout, Place, Span};
pub use metainfo::{MetainfoHints, magnet, metainfo};
pub use pieces::Pieces;
pub use rebuild::{block_at, rebuild};

/// The most regular files: more entries make clients slow, and each costs memory in every one of them.
pub const FILES_MAX: u64 = 200_000;

/// The largest info dictionary, in bytes: what magnet links fetch from peers before anything else.
pub const INFO_BYTES_MAX: usize = 16 << 20;

/// The most pieces: the bitfield message of a client has to fit its buffer. Changing it changes info hashes.
pub const PIECES_MAX: u64 = 100_000;

/// The shortest piece, one block. Changing it changes info hashes.
pub const PIECE_BYTES_MIN: u64 = 1 << 20;

/// Where the catalog lies in the tree.
pub const CATALOG_PATH: [&str; 2] = [".manifs", "catalog"];

/// A SHA-1, of a piece or an info dictionary.
pub type Sha1Hash = [u8; 20];

/// Why a version has no torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// Too many files.
    #[error("{files} files, and a torrent is offered for at most {FILES_MAX}")]
    Files {
        /// How many.
        files: u64,
    },
    /// Too many bytes for any length of piece.
    #[error("more bytes than {PIECES_MAX} pieces can have")]
    Bytes,
    /// Too large an info dictionary.
    #[error("its info dictionary would be larger than 16 MiB")]
    Info,
    /// A link leaves the version.
    #[error("the link in row {row} leaves the package")]
    Link {
        /// The link.
        row: u32,
    },
}

/// Why there is no torrent, or it cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TorrentError {
    /// None is offered.
    #[error("no torrent: {0}")]
    NotOffered(#[from] NotOffered),
    /// The catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}
