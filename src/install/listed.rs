//! One version that somebody the reader trusts has signed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::Tree;
use super::installer::Installing;
use crate::manifest::{
    IndexFields, KeyId, Links, Manifest, ManifestId, PackageVersion, TrustedManifest,
};
use crate::source::Torrent;

/// Where a package's release index says its blocks may be had from: signed, yet only hints. They widen nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// URLs of mirrors.
    pub http: Arc<[String]>,
    /// URLs of IPFS gateways.
    pub gateways: Arc<[String]>,
    /// URLs of BitTorrent trackers.
    pub trackers: Arc<[String]>,
}

impl From<&IndexFields> for Hints {
    fn from(index: &IndexFields) -> Self {
        Hints {
            http: index.http.clone().into(),
            gateways: index.gateways.clone().into(),
            trackers: index.trackers.clone().into(),
        }
    }
}

/// A listed version: its manifest, and its tree once installed.
pub struct Listed {
    manifest: TrustedManifest,
    slot: u32,
    gone: AtomicBool,
    stale: AtomicBool,
    hints: ArcSwap<Hints>,
    torrent: Mutex<Option<Arc<Torrent>>>,
    tree: ArcSwapOption<Tree>,
    pub(super) installing: Mutex<Option<Installing>>,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in slot {}", self.package(), self.slot)
    }
}

impl Listed {
    pub(super) fn new(manifest: TrustedManifest, slot: u32) -> Arc<Listed> {
        Arc::new(Listed {
            manifest,
            slot,
            gone: AtomicBool::new(false),
            stale: AtomicBool::new(false),
            hints: ArcSwap::default(),
            torrent: Mutex::new(None),
            tree: ArcSwapOption::empty(),
            installing: Mutex::new(None),
        })
    }

    /// Returns its name and version.
    pub fn package(&self) -> &PackageVersion {
        self.manifest.package()
    }

    /// Returns the manifest that was signed.
    pub fn manifest(&self) -> &Manifest {
        self.manifest.manifest()
    }

    /// Returns the proof that its manifest is trusted.
    pub(super) fn trusted(&self) -> &TrustedManifest {
        &self.manifest
    }

    /// Returns the manifest's identity.
    pub fn manifest_id(&self) -> ManifestId {
        self.manifest.id()
    }

    /// Returns the trusted keys that signed it.
    pub fn signers(&self) -> impl Iterator<Item = KeyId> + '_ {
        self.manifest.signers().iter().copied()
    }

    /// Returns the pattern of the trust rule that accepted it.
    pub fn rule(&self) -> String {
        self.manifest.pattern().to_string()
    }

    /// Returns whether the trust rule lets this package's symlinks leave it.
    pub fn links_may_leave(&self) -> bool {
        self.manifest.links() == Links::Any
    }

    /// Returns the durable number that is the upper half of its inodes.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// Returns when the manifest says it was made, in nanoseconds since 1970.
    pub fn created_ns(&self) -> i64 {
        self.manifest()
            .created
            .unix_seconds()
            .saturating_mul(1_000_000_000)
    }

    /// Returns the tree if the version is installed.
    pub fn tree(&self) -> Option<Arc<Tree>> {
        self.tree.load_full()
    }

    pub(super) fn set_tree(&self, tree: Arc<Tree>) {
        self.tree.store(Some(tree));
    }

    /// Forgets the tree, so that the next entry hashes and validates the catalog again.
    pub(super) fn forget_tree(&self) {
        self.tree.store(None);
    }

    /// Returns where its package's release index says that blocks may be had from.
    pub fn hints(&self) -> Arc<Hints> {
        self.hints.load_full()
    }

    /// Returns the torrent that its manifest names, with the trackers of its release index; it has `bytes` if the
    /// caller knows, else as many as are known. The same object until something about it changes.
    pub(super) fn torrent(&self, bytes: Option<u64>) -> Option<Arc<Torrent>> {
        let named = self.manifest().torrent?;
        let hints = self.hints();
        let mut known = self.torrent.lock();
        let bytes = bytes.or(known.as_ref().and_then(|known| known.bytes));
        if let Some(known) = &*known
            && known.bytes == bytes
            && *known.trackers == *hints.trackers
        {
            return Some(Arc::clone(known));
        }
        let torrent = Arc::new(Torrent {
            info_hash: named.info_hash,
            piece_bytes: named.piece_length,
            bytes,
            trackers: hints.trackers.to_vec(),
        });
        *known = Some(Arc::clone(&torrent));
        Some(torrent)
    }

    pub(super) fn set_hints(&self, hints: Arc<Hints>) {
        self.hints.store(hints);
    }

    /// Returns whether it was withdrawn, blocked or is no longer trusted.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn set_gone(&self, gone: bool) {
        self.gone.store(gone, Ordering::Relaxed);
    }

    /// Returns whether its release index is expired or too old: what is installed stays readable.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    pub(super) fn set_stale(&self, stale: bool) {
        self.stale.store(stale, Ordering::Relaxed);
    }
}
