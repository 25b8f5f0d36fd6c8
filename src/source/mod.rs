//! Networks that may hold a block.
//!
//! A source answers one question: which bytes do you have for this [`Want`]? What it answers is plain [`Bytes`]: a
//! stranger, until `fetch` has verified it. Sources know nothing of ranks, retries, flights or the store, and they
//! never judge an answer: lying is found, and punished, by `fetch`.

pub mod gateway;
pub mod http;
pub mod local;
mod retry;
mod spill;
pub mod torrent;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

use crate::block::BlockRef;

pub use gateway::Gateway;
pub use http::Http;
pub use local::Local;
pub use spill::{Offer, Spill};

/// Where a block lies in a published tree, for sources that know files rather than digests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TreePlace {
    /// The tree's name, `<package with / as ->-<version>`.
    pub tree: Arc<str>,
    /// The file's path below the tree, without a leading slash; `.manifs/catalog` is the catalog.
    pub path: Arc<[u8]>,
    /// Where in the file the block begins, in bytes.
    pub offset: u64,
    /// Mirrors that the package's release index names, signed; they are asked for this package only.
    pub mirrors: Arc<[String]>,
    /// IPFS gateways that it names, in the same way.
    pub gateways: Arc<[String]>,
}

/// A torrent that holds a version's tree, as its signed manifest and release index name it.
#[derive(Debug, PartialEq, Eq)]
pub struct Torrent {
    /// SHA-1 of the info dictionary, BEP 3.
    pub info_hash: [u8; 20],
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Bytes of all pieces; none while the catalog, which tells the layout, is not here.
    pub bytes: Option<u64>,
    /// Announce URLs out of the release index, signed.
    pub trackers: Vec<String>,
}

/// Where a block lies in a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorrentPlace {
    /// The torrent.
    pub torrent: Arc<Torrent>,
    /// Where in the torrent's bytes, files and padding one after the other, the block begins.
    pub offset: u64,
}

/// A block that somebody asks for, and the places it may be had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Digest, length and where it belongs in the store.
    pub block: BlockRef,
    /// Where it lies in a tree, when the asker knows one.
    pub place: Option<TreePlace>,
    /// Where it lies in a torrent, when one is offered and its layout is known that far.
    pub torrent: Option<TorrentPlace>,
}

impl Want {
    /// A want for a block whose place in a tree is not known; only sources that know digests can answer it.
    pub fn new(block: BlockRef) -> Self {
        Want {
            block,
            place: None,
            torrent: None,
        }
    }
}

/// What kind of network a source is; decides how much of it a wrong answer condemns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// A trustless HTTP gateway.
    Gateway,
    /// A Kubo node's RPC interface.
    Kubo,
    /// A plain HTTP mirror of trees.
    Http,
    /// A torrent swarm.
    Torrent,
    /// A directory or an archive on this machine.
    Local,
}

impl SourceKind {
    /// Returns the word shown to people.
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::Gateway => "gateway",
            SourceKind::Kubo => "kubo",
            SourceKind::Http => "http",
            SourceKind::Torrent => "torrent",
            SourceKind::Local => "local",
        }
    }

    /// Returns whether one wrong answer condemns the source as a whole.
    ///
    /// A gateway answers by digest, so wrong bytes are a fault of it. In a swarm it is one peer that lied, and the source
    /// deals with that peer.
    pub fn answers_by_digest(self) -> bool {
        matches!(self, SourceKind::Gateway | SourceKind::Kubo)
    }

    /// Returns whether one wrong answer condemns the tree it was asked for, at this source, for a while.
    ///
    /// A mirror or a local directory answers by path, and may only have a tree of another age, or a damaged one.
    pub fn answers_by_path(self) -> bool {
        matches!(self, SourceKind::Http | SourceKind::Local)
    }
}

/// Why a source gave no bytes. One variant for each thing that the caller can do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It does not have the block: ask the next.
    #[error("has not got it ({reason})")]
    NotFound {
        /// What it said, in a few words.
        reason: String,
    },
    /// It cannot answer now: ask the next, come back later.
    #[error("unavailable ({reason})")]
    Unavailable {
        /// Set when it said that it has too much to do, with the time it wants to be left alone.
        retry_after: Option<Duration>,
        /// What happened, in a few words.
        reason: String,
    },
    /// We must not, or can never, ask it: drop it.
    #[error("refused ({reason})")]
    Refused {
        /// Why, in a few words.
        reason: String,
    },
}

impl SourceError {
    /// A `NotFound`.
    pub fn not_found(reason: impl Into<String>) -> Self {
        SourceError::NotFound {
            reason: reason.into(),
        }
    }

    /// An `Unavailable` without a wish of the source's own.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        SourceError::Unavailable {
            retry_after: None,
            reason: reason.into(),
        }
    }

    /// A `Refused`.
    pub fn refused(reason: impl Into<String>) -> Self {
        SourceError::Refused {
            reason: reason.into(),
        }
    }
}

/// What is known of one of the peers that a source consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerReport {
    /// Its host and port.
    pub name: String,
    /// The name and version of its program, as it says.
    pub client: Option<String>,
    /// Right blocks that came from it, wholly or in part.
    pub blocks: u64,
    /// The bytes of them that came from it.
    pub bytes: u64,
    /// Connections that ended badly.
    pub failures: u64,
    /// Wrong answers.
    pub lies: u64,
    /// The least time in which it answered a request.
    pub usual: Option<Duration>,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Whether it is not asked any more, because it lied.
    pub banned: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// Something that may answer a want.
#[async_trait]
pub trait BlockSource: Send + Sync + 'static {
    /// Returns the name that people and metrics see: a URL or a path, without secrets.
    fn name(&self) -> &str;

    /// Returns the kind of network.
    fn kind(&self) -> SourceKind;

    /// Returns how many wants it may be given at once, at first; `fetch` moves the limit as answers come.
    fn parallel(&self) -> usize {
        16
    }

    /// Returns whether it makes sense to ask it for `want`; who is not asked has not failed.
    fn serves(&self, _want: &Want) -> bool {
        true
    }

    /// Returns who gave how much, of a source that is many.
    fn peers(&self) -> Vec<PeerReport> {
        Vec::new()
    }

    /// Returns who of them can be asked for `want`.
    fn peers_for(&self, _want: &Want) -> Vec<PeerReport> {
        self.peers()
    }

    /// Asks for the bytes of `want`. Cancel-safe: dropping the future ends the work.
    ///
    /// At most one byte more than the wanted length is read; the answer is not checked here. While bytes arrive the
    /// source says so with [`Spill::progressed`], and hands over anything else that came along with [`Spill::offer`].
    ///
    /// # Errors
    /// [`SourceError`], which says what to do next.
    async fn fetch(&self, want: &Want, spill: &Spill) -> Result<Bytes, SourceError>;
}
