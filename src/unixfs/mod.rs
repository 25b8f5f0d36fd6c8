//! CIDs, dag-pb nodes, the UnixFS trees of profile `unixfs-v1-2025`, and CAR files.
//!
//! A package's files, directories and symlinks are also nodes of an IPFS graph, so that the same 32-byte digests serve
//! every network. Writing is byte-exact and knows one profile (`docs/formats/unixfs.md`): [`file`], [`directory`] and
//! [`symlink`] build nodes, hand each to a callback together with its [`NodePlace`], and can build that one node again
//! later from the place alone, so that a gateway stores no inner node. Reading ([`decode()`], [`car::Reader`]) takes any
//! bytes, also of other writers, within named limits. Nothing here touches a network, a disk or a catalog.

pub mod car;
pub mod cid;
pub mod dagpb;
pub mod decode;
pub mod directory;
pub mod file;
pub mod hamt;
mod message;
pub mod symlink;
mod varint;
mod wire;

pub use cid::{AnyCid, Cid, CidError, Codec, Multihash, UnknownHash};
pub use decode::{DecodeError, Decoded, decode};
pub use varint::VarintError;

/// The largest node or leaf that any peer of the network passes on; longer ones are refused unread.
pub const NODE_BYTES_MAX: usize = 2 << 20;

/// How deep a foreign graph is followed before it is refused.
pub const LEVELS_MAX: usize = 100;

/// What a parent needs to know of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Link {
    /// The child's root node.
    pub cid: Cid,
    /// Bytes of that node and of everything below it, a node used twice counted twice.
    pub tsize: u64,
}

/// A node that was just built.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its name.
    pub cid: Cid,
    /// What a link to it carries.
    pub tsize: u64,
    /// Its encoding.
    pub bytes: &'a [u8],
    /// Where it stands in its file or directory.
    pub place: NodePlace,
}

/// Where a node stands in its entry's tree: enough to build that one node again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodePlace {
    /// The only node of a symlink.
    Symlink,
    /// An inner node of a file.
    File {
        /// Levels above the leaves, from 1.
        level: u8,
        /// Which node of that level, from 0.
        index: u64,
    },
    /// The only node of a directory that is not sharded.
    Directory,
    /// One shard of a large directory.
    Shard {
        /// Levels below the root shard, which is 0.
        depth: u8,
        /// The slot taken at each level above; zero from `depth` on.
        prefix: [u8; 8],
    },
}
