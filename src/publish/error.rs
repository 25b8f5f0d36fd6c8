//! Why a publish ends without a version.

use std::io;

use super::build::GUARDED_QUOTAS_MAX;
use super::change::REASON_BYTES_MAX;
use super::options::JobId;
use super::refusal::Refusals;
use super::tar::TarError;
use crate::catalog::CatalogError;
use crate::manifest::{
    EnvelopeError, FieldError, ManifestId, PackageName, PackageVersion, TrustError,
};
use crate::registry::RegistryError;
use crate::state::{SeenError, StateError};
use crate::store::StoreError;
use crate::torrent::NotOffered;

/// Why a publish ends without a version. Nothing is visible then, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Something in the tree cannot be published.
    #[error("nothing was published: {0}")]
    Refused(Refusals),
    /// The directory cannot be opened.
    #[error("the directory cannot be read: {0}")]
    Directory(io::Error),
    /// There is no version that a tree could be laid on top of.
    #[error("{0} has no version yet that could be updated")]
    NothingBeneath(PackageName),
    /// Its catalog is not in the store.
    #[error("{0}, which is to be updated, is not in the store")]
    NotHere(PackageVersion),
    /// What stays of a version is not in the store.
    #[error("{0}, which is to be updated, is not whole in the store")]
    NotWhole(PackageVersion),
    /// What is to be removed is not there.
    #[error("{package} has no {path:?} that could be removed")]
    NothingThere {
        /// The version.
        package: PackageVersion,
        /// The path.
        path: String,
    },
    /// The stream does not become a tree.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The time that everything is to have does not fit a catalog.
    #[error("the time {0} is outside the years 1677 to 2262")]
    MtimeRange(i64),
    /// It does not fit the store.
    #[error(
        "{needed} bytes are needed, but the store has room for {room}: its quota is {quota} bytes, of which {held} cannot be evicted"
    )]
    Quota {
        /// What files and catalog take at most.
        needed: u64,
        /// What could be made free.
        room: u64,
        /// The store's quota.
        quota: u64,
        /// What is pinned, installed or published here.
        held: u64,
    },
    /// Its files are mostly holes.
    #[error(
        "the files have {bytes} bytes with their holes, but at most {most} are taken from a drop directory: {GUARDED_QUOTAS_MAX} times the store's quota of {quota}"
    )]
    Holes {
        /// The sum of the sizes.
        bytes: u64,
        /// The most.
        most: u64,
        /// The store's quota.
        quota: u64,
    },
    /// It is to be seeded, and has no torrent.
    #[error("no torrent is offered: {0}")]
    NoTorrent(NotOffered),
    /// It is to be seeded, and exists with a manifest that names no torrent of this tree.
    #[error("{0} exists, and its manifest does not name the torrent of its tree")]
    OtherTorrent(PackageVersion),
    /// There are more entries, or longer names, than a catalog holds.
    #[error("the catalog would have more than {0} bytes")]
    CatalogSize(u64),
    /// Somebody asked that it end.
    #[error("cancelled; nothing was published")]
    Cancelled,
    /// The version exists with other content.
    #[error("{package} exists already as {there}, and this tree would be {ours}")]
    Exists {
        /// The version.
        package: PackageVersion,
        /// The manifest of the tree at hand.
        ours: ManifestId,
        /// The one that is known.
        there: ManifestId,
    },
    /// This home showed a version that it could not announce, and somebody else announced another one.
    #[error("this home has shown {package} as {here}, and {place} has it as {there}")]
    Split {
        /// The version, which need not be the one at hand.
        package: PackageVersion,
        /// The manifest here.
        here: ManifestId,
        /// The one that was announced.
        there: ManifestId,
        /// The registry.
        place: String,
    },
    /// The version is withdrawn.
    #[error("{package} is withdrawn: {reason}")]
    Withdrawn {
        /// The version.
        package: PackageVersion,
        /// Why, as the publisher said.
        reason: String,
    },
    /// There is no release index that could say something else.
    #[error("there is no release index of {0}, here or in the registry")]
    NoPackage(PackageName),
    /// The release index does not name the version.
    #[error("there is no version {version} of {name}", version = .0.version, name = .0.name)]
    NoVersion(PackageVersion),
    /// A withdrawal is to have no reason, or a long one.
    #[error("the reason has {0} bytes; it takes 1 to {REASON_BYTES_MAX}")]
    Reason(usize),
    /// Others have announced something of the package in between, each time.
    #[error("others were faster {tries} times: {package} has changed again and again")]
    Contended {
        /// The package.
        package: PackageName,
        /// How often it was tried.
        tries: u32,
    },
    /// Another publish of this package waits for its signatures or announces.
    #[error("another publish of {0} is under way")]
    Busy(PackageName),
    /// There is no such job: it was finished, given up, or lost with the process that prepared it.
    #[error("there is no publish with the id {0} that waits for signatures")]
    NoJob(JobId),
    /// The provenance is no JSON object in canonical form.
    #[error("the provenance is not a JSON object in canonical form (RFC 8785)")]
    Provenance,
    /// What came back is not what was to be signed.
    #[error("what was signed is not what was to be published: {0}")]
    OtherSigned(&'static str),
    /// The signer did not sign.
    #[error("not signed: {0}")]
    Signer(String),
    /// What is there under this name is not trusted here, and would be replaced.
    #[error("{place} has a {what} of {package} that is refused here: {error}")]
    Stranger {
        /// The registry.
        place: String,
        /// Manifest or release index.
        what: &'static str,
        /// Of which package.
        package: PackageName,
        /// Why it is refused.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This home has seen a later release index than it can find now.
    #[error(
        "{place} has release index {sequence} of {package}, but this home has seen {seen}: versions would be lost"
    )]
    Behind {
        /// The package.
        package: PackageName,
        /// The registry.
        place: String,
        /// The highest sequence there and in this home's own publications; 0 for none.
        sequence: u64,
        /// The highest seen.
        seen: u64,
    },
    /// Our own envelope does not pass our own policy.
    #[error("the signed {what} would be refused by this home itself: {error}")]
    Untrusted {
        /// Manifest or release index.
        what: &'static str,
        /// Why.
        error: TrustError,
    },
    /// It contradicts what was seen before.
    #[error(transparent)]
    Seen(#[from] SeenError),
    /// A description or a hint is nothing that a manifest or index may say.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// An envelope has the wrong form.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The catalog cannot be written.
    #[error("the catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// The store cannot take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What must not be forgotten cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The registry did not take it. The version is visible in this home, and announced when it is tried again.
    #[error("published here, but not announced: {0}")]
    Announce(RegistryError),
    /// The registry of a job that an earlier process left is not configured any more.
    #[error("published here, but the registry {0} is not known any more")]
    NoRegistry(String),
    /// The registry cannot be asked what it has.
    #[error(transparent)]
    Registry(RegistryError),
    /// A temporary file, or the journal.
    #[error("a file of the job: {0}")]
    Io(#[from] io::Error),
}

impl PublishError {
    /// Returns what a person can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            PublishError::Refused(refusals) => refusals.hints().collect::<Vec<_>>().join("; "),
            PublishError::Quota { .. } | PublishError::Store(StoreError::Full { .. }) => {
                "raise [store] quota, or unpin and remove versions".to_owned()
            }
            PublishError::Holes { .. } => {
                "take the sparse files out, raise [store] quota, or publish it by hand".to_owned()
            }
            PublishError::NothingBeneath(_) => "publish without --update".to_owned(),
            PublishError::NotHere(package) | PublishError::NotWhole(package) => {
                format!("fetch all of it: manifs warm {package}")
            }
            PublishError::NothingThere { package, .. } => {
                format!("see what it has: manifs ls -R {package}")
            }
            PublishError::Tar(error) => return error.hint(),
            PublishError::Exists { .. } => {
                "a version never changes: publish this tree under a new version".to_owned()
            }
            PublishError::Split { package, .. } => format!(
                "no version has two contents, and this home keeps what it has shown: publish {} from another home",
                package.name
            ),
            PublishError::NoTorrent(_) => {
                "publish it without --to torrent, or in several packages".to_owned()
            }
            PublishError::OtherTorrent(_) => "publish the tree under a new version".to_owned(),
            PublishError::Withdrawn { .. } => {
                "a withdrawal is for ever: publish the tree under a new version".to_owned()
            }
            PublishError::NoPackage(_) => {
                "publish it first, or name its registry with --registry".to_owned()
            }
            PublishError::NoVersion(package) => {
                format!("`manifs list --all {}` shows those there are", package.name)
            }
            PublishError::Reason(_) => "say in a sentence why it must not be used".to_owned(),
            PublishError::Contended { .. } => "run the same command again".to_owned(),
            PublishError::Registry(RegistryError::Conflict { .. }) => {
                "somebody else was faster: run the same command again".to_owned()
            }
            PublishError::Busy(_) => "wait until it ends".to_owned(),
            PublishError::NoJob(_) => "publish again".to_owned(),
            PublishError::Stranger { .. } => {
                "publish under another name or to another registry, or trust its key".to_owned()
            }
            PublishError::Behind { .. } => {
                "update the registry, or publish to the one that has the later index".to_owned()
            }
            PublishError::Untrusted { error, .. } => error.hint(),
            PublishError::Seen(error) => return error.hint(),
            PublishError::Field(error) => error.hint().to_owned(),
            PublishError::Envelope(error) => error.hint().to_owned(),
            PublishError::State(error) => return error.hint().map(str::to_owned),
            PublishError::Announce(_) => {
                "run the same command again: nothing is read twice into another version".to_owned()
            }
            _ => return None,
        })
    }
}
