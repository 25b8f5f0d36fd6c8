//! Places where envelopes are found: a directory, or a web server.
//!
//! A registry proves nothing. What it returns are bytes as they lie there, bounded in size and unverified: the caller
//! hands them to the trust policy together with the name and version it asked for, and a registry that lies is found
//! there. This module knows paths and HTTP; it does not know keys, catalogs, mounts or which packages anybody trusts.
//!
//! The layout (`docs/formats/registry.md`) is the same everywhere: `packages/<name>/index.json`,
//! `packages/<name>/<version>/manifest.json` with `SHA256SUMS` beside it, `keys/<key>.pem`, and `packages.json`, which
//! lists the names for those who cannot list a directory.

pub mod changes;
mod directory;
mod http;
mod layout;
mod listing;
mod tree;
mod watch;

use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::block::Digest;
use crate::manifest::{KeyId, PackageName, PackageVersion, Version};

pub use directory::Directory;
pub use http::{Http, HttpOptions};
pub use layout::Place;
pub use listing::{Listing, ListingError};

/// The largest `SHA256SUMS` that is read or written, in bytes.
pub const SUMS_BYTES_MAX: u64 = 64 << 20;

/// The largest public key file that is read, in bytes.
pub const KEY_BYTES_MAX: u64 = 16 << 10;

/// The largest `packages.json` that is read, in bytes.
pub const LISTING_BYTES_MAX: u64 = 16 << 20;

/// The most package names that one registry lists.
pub const NAMES_MAX: usize = 200_000;

/// The most versions of one package that are listed where there is no release index.
pub const VERSIONS_MAX: usize = 100_000;

/// How long nothing may be heard of a registry before it is looked at again all the same.
pub const SCAN_EVERY: Duration = Duration::from_secs(60);

/// Why a registry did not answer, or did not take what was announced.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be asked now: come back later.
    #[error("registry {registry} is unavailable: {reason}")]
    Unavailable {
        /// Where it is.
        registry: String,
        /// What happened, in a few words.
        reason: String,
        /// When it wants to be asked again, if it said so.
        retry_after: Option<Duration>,
    },
    /// A file of it is larger than such a file can be.
    #[error("{path} is larger than {max} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// The limit, in bytes.
        max: u64,
    },
    /// A path of it is not what its place says: not a regular file, or it leads out of the registry.
    #[error("{path} is not a regular file inside the registry")]
    Foreign {
        /// The path.
        path: String,
    },
    /// It lists more than a registry may hold.
    #[error("{path} has more than {max} entries")]
    TooMany {
        /// Where they are.
        path: String,
        /// The limit.
        max: usize,
    },
    /// Its list of names does not parse.
    #[error("{path}: {reason}")]
    Listing {
        /// The list.
        path: String,
        /// What is wrong with it.
        reason: ListingError,
    },
    /// Somebody else has announced something in between: read it again, and decide again.
    #[error("{path} has changed meanwhile")]
    Conflict {
        /// The file that is not what it was.
        path: String,
    },
    /// It can only be read.
    #[error("registry {registry} can only be read")]
    ReadOnly {
        /// Where it is.
        registry: String,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// What was read or written.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// What is put into a registry when a version is announced. Whatever is `None` stays as it is.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Which package and version.
    pub package: PackageVersion,
    /// The manifest's envelope. One that is there already is replaced if an index comes along, since that was made from
    /// the one there; otherwise it stays.
    pub manifest: Option<Bytes>,
    /// `SHA256SUMS`, for people.
    pub sums: Option<Bytes>,
    /// A `.torrent` file, for people and other clients.
    pub torrent: Option<Bytes>,
    /// The release index's envelope; written after everything it names.
    pub index: Option<Bytes>,
    /// The SHA-256 of the index envelope that `index` was made from, `None` if there was none. When another one has
    /// been put there since, nothing is written.
    pub replaces: Option<Digest>,
    /// Public keys as SPKI PEM, for people; readers take keys from their own trust policy only.
    pub keys: Vec<(KeyId, Bytes)>,
}

/// A moment in the life of a registry, for [`Registry::changed`]. The default one is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

/// A place where envelopes are found.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Returns the path or URL, without secrets.
    fn name(&self) -> &str;

    /// Returns whether nothing can ever be put here, so that nobody reads a tree for nothing.
    fn read_only(&self) -> bool {
        false
    }

    /// Lists the packages, sorted. Entries that are no package names are passed over.
    async fn names(&self) -> Result<Vec<PackageName>, RegistryError>;

    /// Reads the release index of a package.
    async fn index(&self, name: &PackageName) -> Result<Option<Bytes>, RegistryError>;

    /// Lists the versions that have a manifest, in ascending order: for packages without a release index.
    async fn versions(&self, name: &PackageName) -> Result<Vec<Version>, RegistryError>;

    /// Reads the manifest of a version.
    async fn manifest(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError>;

    /// Reads `SHA256SUMS` of a version.
    async fn sums(&self, package: &PackageVersion) -> Result<Option<Bytes>, RegistryError>;

    /// Puts a version there, durably and in an order in which no reader sees a name before what it names.
    async fn put(&self, announcement: Announcement) -> Result<(), RegistryError>;

    /// Returns when something may have changed after `since`, and the moment to wait from the next time. At once for
    /// the default moment, and after [`SCAN_EVERY`] at the latest, or the interval of a registry that has to be polled.
    /// Cancel-safe; several may wait at once.
    async fn changed(&self, since: Moment) -> Moment;
}
