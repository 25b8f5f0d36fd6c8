//! Power cuts: whatever of a publish was on the disk when the power went, the next start ends with the whole version or
//! with nothing of it, and no version ever has two manifests.
//!
//! The blocks are not cut: the store syncs its file system before anything is signed, and has a double of its own.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;

use super::{Options, Outcome, Progress, Publisher};
use crate::durable::recorder::{self, Disk, Recording};
use crate::manifest::{Envelope, ManifestId, PackageVersion, PrivateKey, Signed, TrustPolicy};
use crate::registry::{Directory, Registry};
use crate::state::State;
use crate::store::{self, Store, Verify};

/// In memory, where that can be had: everything is synced all the time.
fn tempdir() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// A home and its registry.
struct Home {
    publisher: Arc<Publisher>,
    state: Arc<State>,
    registry: Arc<dyn Registry>,
    trust: Arc<TrustPolicy>,
    key: PrivateKey,
}

impl Home {
    fn open(root: &Path, store: &Arc<Store>) -> Home {
        let key = PrivateKey::from_seed(&[1; 32]);
        let mut trust = TrustPolicy::parse("").unwrap();
        let all = "*".parse().unwrap();
        trust.add(&all, &key.public(), None).unwrap();
        let state = Arc::new(State::open(&root.join("state")).unwrap());
        Home {
            publisher: Publisher::new(Arc::clone(store), Arc::clone(&state), Vec::new()),
            state,
            registry: Arc::new(Directory::new(root.join("registry"))),
            trust: Arc::new(trust),
            key,
        }
    }

    async fn publish(&self, tree: &Path, package: &PackageVersion) -> Outcome {
        let tree = File::open(tree).unwrap().into();
        let options = Options::new(package.clone());
        let (registry, trust) = (Arc::clone(&self.registry), Arc::clone(&self.trust));
        let progress = Arc::new(Progress::new());
        let publish = self
            .publisher
            .publish(tree, options, registry, trust, &self.key, progress);
        publish.await.unwrap()
    }

    /// Starts as a daemon does.
    async fn start(&self) {
        let open = |_: &str| Some(Arc::clone(&self.registry));
        let trust = Arc::clone(&self.trust);
        for resumed in self.publisher.resume(&open, trust).await {
            resumed.result.unwrap();
        }
        assert_eq!(self.publisher.journal.jobs().unwrap(), []);
    }

    /// Returns the manifest that the registry has of a version, and the one that its release index names.
    async fn announced(
        &self,
        package: &PackageVersion,
    ) -> (Option<ManifestId>, Option<ManifestId>) {
        let manifest = self.registry.manifest(package).await.unwrap();
        let index = self.registry.index(&package.name).await.unwrap();
        let listed = index.and_then(
            |index| match Envelope::parse(&index).unwrap().unverified() {
                Signed::Index(index) => index.versions.get(&package.version).copied(),
                Signed::Manifest(_) => None,
            },
        );
        (manifest.map(|bytes| id(&bytes)), listed)
    }

    fn shown(&self, package: &PackageVersion) -> Option<ManifestId> {
        let bytes = self.state.published().manifest(package).unwrap();
        bytes.map(|bytes| id(&bytes))
    }
}

fn id(bytes: &[u8]) -> ManifestId {
    match Envelope::parse(bytes).unwrap().unverified() {
        Signed::Manifest(manifest) => manifest.id(),
        Signed::Index(_) => panic!("an index in the place of a manifest"),
    }
}

#[tokio::test]
async fn a_power_cut_at_any_moment_leaves_the_whole_version_or_nothing_of_it() {
    let (dir, before, tree, shelf) = (tempdir(), tempdir(), tempdir(), tempdir());
    let root = fs::canonicalize(dir.path()).unwrap();
    let options = store::Options {
        quota: 1 << 30,
        verify: Verify::FirstTouch,
    };
    let store = Store::open(&shelf.path().join("store"), options).unwrap();
    let package = |text: &str| -> PackageVersion { text.parse().unwrap() };
    let (first, second) = (package("a@1.0.0"), package("a@1.1.0"));
    let home = Home::open(&root, &store);
    fs::write(tree.path().join("file"), "first").unwrap();
    home.publish(tree.path(), &first).await;
    recorder::copy(&root, before.path());
    fs::write(tree.path().join("file"), "second").unwrap();
    let recording = Recording::start(&root);
    home.publish(tree.path(), &second).await;
    let ops = recording.ops();
    drop(recording);
    // Journal, registry and state, each more than once.
    assert!(ops.len() > 30, "{ops:?}");

    let (mut nothing, mut whole) = (0, 0);
    for cut in 0..=ops.len() {
        for disk in [Disk::Eager, Disk::Lazy] {
            let at = format!("after {cut} of a disk that is {disk:?}");
            let after = tempdir();
            recorder::copy(before.path(), after.path());
            recorder::replay(&ops[..cut], disk, after.path());
            let home = Home::open(after.path(), &store);
            let (visible, listed) = home.announced(&second).await;
            assert!(listed.is_none() || listed == visible, "{at}");
            home.start().await;
            // Whole, in both places, or in none.
            let (there, listed) = home.announced(&second).await;
            assert_eq!(there, listed, "{at}");
            assert_eq!(home.shown(&second), listed, "{at}");
            assert!(visible.is_none() || visible == there, "{at}");
            if listed.is_some() {
                whole += 1;
            } else {
                nothing += 1;
            }
            // The same command ends with the one manifest that there may be, and nothing before is lost.
            let outcome = home.publish(tree.path(), &second).await;
            assert_eq!(outcome.changed, listed.is_none(), "{at}");
            let made = Some(outcome.manifest);
            assert!(listed.is_none() || listed == made, "{at}");
            assert_eq!(home.announced(&second).await, (made, made), "{at}");
            let (there, listed) = home.announced(&first).await;
            assert!(listed.is_some() && there == listed, "{at}");
        }
    }
    assert!(nothing > 5 && whole > 10, "{nothing} and {whole}");
}
