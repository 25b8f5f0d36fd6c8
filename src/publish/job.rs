//! One publish from the directory to the registry, with the signature in another process.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::PublishError;
use super::build::{Built, Task, build, judged};
use super::journal::Journal;
use super::keep::Kept;
use super::known::{Known, known, next_index};
use super::options::{JobId, Options};
use super::progress::{Progress, Step};
use super::reuse::{Base, NewRecord};
use super::sink::{Keeping, Nowhere};
use crate::block::Digest;
use crate::manifest::json::Json;
use crate::manifest::{
    Envelope, Manifest, ManifestFields, ManifestId, PackageName, PackageVersion, ReleaseIndex,
    Signed, Timestamp, TorrentRef, TrustPolicy,
};
use crate::registry::{Registry, RegistryError};
use crate::state::State;
use crate::store::Store;
use crate::torrent::Info;

/// How long a publish waits for another one of the same package.
const TURN_WITHIN: Duration = Duration::from_secs(30);

/// Publishes into one home.
pub struct Publisher {
    pub(super) store: Arc<Store>,
    pub(super) state: Arc<State>,
    pub(super) journal: Journal,
    /// Directories that must not lie in what is published.
    homes: Vec<PathBuf>,
    jobs: Mutex<Jobs>,
    /// Told when a package is free again.
    freed: Notify,
    /// What time it is.
    clock: fn() -> SystemTime,
    /// The versions whose files this process protects from eviction until it ends.
    pub(super) kept: Mutex<HashSet<PackageVersion>>,
}

#[derive(Default)]
struct Jobs {
    /// Which job each package has: being prepared, waiting for signatures, or announcing.
    names: HashMap<PackageName, JobId>,
    /// Those that wait for signatures.
    prepared: HashMap<JobId, Job>,
}

/// What would be, or is to be, published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Package and version.
    pub package: PackageVersion,
    /// The manifest.
    pub manifest: ManifestId,
    /// Whether the version is new; otherwise it exists with an equal catalog.
    pub new: bool,
    /// The CID of the root directory, as text.
    pub root: String,
    /// Number of regular files.
    pub files: u64,
    /// Number of directories, the root included.
    pub directories: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of the catalog.
    pub catalog_bytes: u64,
    /// Names in the root that are instructions to publish and not content.
    pub instructions: Vec<String>,
    /// Regular files that were not read, since the last version has them.
    pub unread: u64,
}

/// A job that waits for signatures.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// Which one: for [`Publisher::finish`].
    pub job: JobId,
    /// What it is about.
    pub summary: Summary,
    /// To be signed; `None` when the version exists with an equal catalog.
    pub manifest: Option<Manifest>,
    /// To be signed; `None` when the release index says all of it already.
    pub index: Option<ReleaseIndex>,
}

/// What came back from whoever signs: an envelope for each thing that was to be signed.
#[derive(Clone, Debug, Default)]
pub struct Envelopes {
    /// The manifest's.
    pub manifest: Option<Envelope>,
    /// The release index's.
    pub index: Option<Envelope>,
}

/// Signs what it is shown: in this process, or asks another.
pub trait Signer: Send + Sync {
    /// Returns an envelope of `signed`.
    ///
    /// # Errors
    /// A sentence that says why it is not signed.
    fn sign(&self, signed: &Signed) -> Result<Envelope, String>;
}

impl Signer for crate::manifest::PrivateKey {
    fn sign(&self, signed: &Signed) -> Result<Envelope, String> {
        Envelope::sign(signed, &[self]).map_err(|error| error.to_string())
    }
}

impl Prepared {
    /// Has everything signed.
    ///
    /// # Errors
    /// [`PublishError::Signer`]
    pub fn sign(&self, signer: &dyn Signer) -> Result<Envelopes, PublishError> {
        let sign = |signed: Signed| signer.sign(&signed).map_err(PublishError::Signer);
        Ok(Envelopes {
            manifest: self
                .manifest
                .clone()
                .map(Signed::from)
                .map(sign)
                .transpose()?,
            index: self.index.clone().map(Signed::from).map(sign).transpose()?,
        })
    }
}

/// What is kept of a job while others sign.
pub(super) struct Job {
    pub(super) claim: Claim,
    pub(super) summary: Summary,
    pub(super) manifest: Part<Manifest>,
    pub(super) index: Part<ReleaseIndex>,
    pub(super) sums: Option<Bytes>,
    /// The info dictionary, when the version is to be seeded.
    pub(super) torrent: Option<Info>,
    pub(super) replaces: Option<Digest>,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) kept: Kept,
    /// What its files were on disk.
    pub(super) record: Option<NewRecord>,
}

/// Something to be announced.
pub(super) enum Part<T> {
    /// It is to be signed.
    Unsigned(T),
    /// It is signed already.
    Signed(Bytes),
}

/// The right to publish a package, let go when dropped.
pub(super) struct Claim {
    publisher: Arc<Publisher>,
    name: PackageName,
    pub(super) job: JobId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut jobs = self.publisher.jobs.lock();
        // A claim that was never granted lets nothing go.
        if jobs.names.get(&self.name) == Some(&self.job) {
            jobs.names.remove(&self.name);
            self.publisher.freed.notify_waiters();
        }
    }
}

impl<T> Part<T> {
    pub(super) fn unsigned(&self) -> Option<&T> {
        match self {
            Part::Unsigned(part) => Some(part),
            Part::Signed(_) => None,
        }
    }
}

/// Ends the blocking half when nobody waits for it any more.
struct CancelOnDrop(Option<Arc<Progress>>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(progress) = &self.0 {
            progress.cancel();
        }
    }
}

impl Publisher {
    /// Publishes into the store and state of a home. `homes` are directories that must not lie in what is published:
    /// those of the home itself.
    pub fn new(store: Arc<Store>, state: Arc<State>, homes: Vec<PathBuf>) -> Arc<Publisher> {
        Publisher::with_clock(store, state, homes, SystemTime::now)
    }

    /// As [`Publisher::new`], with another clock: files that changed within two seconds before a publish are read again
    /// by the next one.
    pub fn with_clock(
        store: Arc<Store>,
        state: Arc<State>,
        homes: Vec<PathBuf>,
        clock: fn() -> SystemTime,
    ) -> Arc<Publisher> {
        let journal = Journal::new(state.journal());
        Arc::new(Publisher {
            store,
            state,
            journal,
            homes,
            jobs: Mutex::default(),
            freed: Notify::new(),
            clock,
            kept: Mutex::default(),
        })
    }

    /// Says what would be published: reads and hashes everything, and stores nothing.
    ///
    /// # Errors
    /// [`PublishError`], as [`Publisher::prepare`] would.
    pub async fn dry_run(
        self: &Arc<Self>,
        directory: OwnedFd,
        options: Options,
        registry: Arc<dyn Registry>,
        trust: Arc<TrustPolicy>,
        progress: Arc<Progress>,
    ) -> Result<Summary, PublishError> {
        let known = known(&options.package, &self.state, &trust, &registry).await?;
        let publisher = Arc::clone(self);
        let done = blocking(progress, move |progress| {
            let temporary = publisher.state.journal();
            let base = publisher.base(&options);
            let task = Task {
                options: &options,
                homes: &publisher.homes,
                temporary,
                sink: &Nowhere(Some(&publisher.store)),
                base: base.as_ref(),
                records: None,
                now: (publisher.clock)(),
                progress,
            };
            let built = build(directory, &task)?;
            let unread = progress.now().files_known;
            Ok(Draft::new(&built, &options, &known, unread)?.summary)
        });
        done.await
    }

    /// Reads and stores a directory, and returns what has to be signed. Nothing is visible yet.
    ///
    /// A job of the same package that still waits for signatures is given up.
    ///
    /// # Errors
    /// [`PublishError`]
    pub async fn prepare(
        self: &Arc<Self>,
        directory: OwnedFd,
        options: Options,
        registry: Arc<dyn Registry>,
        trust: Arc<TrustPolicy>,
        progress: Arc<Progress>,
    ) -> Result<Prepared, PublishError> {
        if registry.read_only() {
            let registry = registry.name().to_owned();
            return Err(PublishError::Registry(RegistryError::ReadOnly { registry }));
        }
        let claim = self.claim_soon(&options.package.name).await?;
        let known = known(&options.package, &self.state, &trust, &registry).await?;
        let publisher = Arc::clone(self);
        let after = Arc::clone(&progress);
        let done = blocking(progress, move |progress| {
            let temporary = publisher.state.journal();
            let kept = Kept::new(Arc::clone(&publisher.store), temporary)?;
            let sink = Keeping {
                store: &publisher.store,
                kept: &kept,
            };
            let base = publisher.base(&options);
            let task = Task {
                options: &options,
                homes: &publisher.homes,
                temporary,
                sink: &sink,
                base: base.as_ref(),
                records: Some(publisher.state.ingested()),
                now: (publisher.clock)(),
                progress,
            };
            let built = build(directory, &task)?;
            let unread = progress.now().files_known;
            let draft = Draft::new(&built, &options, &known, unread)?;
            Ok(Job {
                claim,
                summary: draft.summary,
                manifest: draft.manifest,
                index: draft.index,
                sums: built.sums()?.map(Bytes::from),
                record: built.record,
                torrent: built
                    .torrent
                    .ok()
                    .filter(|_| options.seed)
                    .map(|torrent| torrent.info),
                replaces: known.replaces,
                registry,
                kept,
            })
        });
        let job = done.await?;
        after.enter(Step::Sign);
        let prepared = Prepared {
            job: job.claim.job.clone(),
            summary: job.summary.clone(),
            manifest: job.manifest.unsigned().cloned(),
            index: job.index.unsigned().cloned(),
        };
        self.jobs.lock().prepared.insert(prepared.job.clone(), job);
        Ok(prepared)
    }

    /// Opens what is known of the last version of a package, unless everything is to be read.
    fn base(&self, options: &Options) -> Option<Base> {
        if options.rehash {
            return None;
        }
        let path = self.record_path(&options.package.name);
        Base::open(&path, judged(options), &self.store, self.state.journal())
    }

    /// Returns where the record of a package's last version lies.
    pub(super) fn record_path(&self, name: &PackageName) -> PathBuf {
        // `@` is in no package name.
        self.state.ingested().join(name.as_str().replace('/', "@"))
    }

    /// Gives a prepared job up; whatever was stored for it may be evicted.
    pub fn abandon(&self, job: &JobId) {
        // Dropped after the lock, which its claim takes.
        let job = self.jobs.lock().prepared.remove(job);
        drop(job);
    }

    /// Takes the right to publish a package, waiting a while for who has it: one that was killed just now is still
    /// being cleared away, and two that publish at a time take turns.
    async fn claim_soon(self: &Arc<Self>, name: &PackageName) -> Result<Claim, PublishError> {
        let deadline = Instant::now() + TURN_WITHIN;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            match self.claim(name) {
                Err(busy @ PublishError::Busy(_)) => {
                    if tokio::time::timeout_at(deadline, freed).await.is_err() {
                        return Err(busy);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Returns the manifest of a job that waits for signatures, or of the equal version that exists.
    ///
    /// # Errors
    /// [`PublishError::NoJob`]
    pub fn manifest(&self, job: &JobId) -> Result<Manifest, PublishError> {
        let jobs = self.jobs.lock();
        let missing = || PublishError::NoJob(job.clone());
        match &jobs.prepared.get(job).ok_or_else(missing)?.manifest {
            Part::Unsigned(manifest) => Ok(manifest.clone()),
            Part::Signed(bytes) => match Envelope::parse(bytes)?.unverified() {
                Signed::Manifest(manifest) => Ok(manifest.clone()),
                Signed::Index(_) => Err(missing()),
            },
        }
    }

    /// Takes the right to publish a package.
    pub(super) fn claim(self: &Arc<Self>, name: &PackageName) -> Result<Claim, PublishError> {
        let claim = Claim {
            publisher: Arc::clone(self),
            name: name.clone(),
            job: JobId::random(),
        };
        loop {
            let mut jobs = self.jobs.lock();
            let Some(other) = jobs.names.get(name).cloned() else {
                jobs.names.insert(name.clone(), claim.job.clone());
                return Ok(claim);
            };
            let waiting = jobs.prepared.remove(&other);
            drop(jobs);
            // Dropped without the lock: that lets its claim go.
            match waiting {
                Some(waiting) => drop(waiting),
                None => return Err(PublishError::Busy(name.clone())),
            }
        }
    }

    pub(super) fn take(&self, job: &JobId) -> Result<Job, PublishError> {
        let found = self.jobs.lock().prepared.remove(job);
        found.ok_or_else(|| PublishError::NoJob(job.clone()))
    }

    pub(super) fn put_back(&self, job: Job) {
        self.jobs.lock().prepared.insert(job.claim.job.clone(), job);
    }
}

/// Runs `work` where it may block. When nobody waits any more, it is asked to end.
async fn blocking<T: Send + 'static>(
    progress: Arc<Progress>,
    work: impl FnOnce(&Progress) -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    let mut guard = CancelOnDrop(Some(Arc::clone(&progress)));
    let done = tokio::task::spawn_blocking(move || work(&progress)).await;
    guard.0 = None;
    done.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
}

/// What a tree becomes, given what is known of its package.
struct Draft {
    summary: Summary,
    manifest: Part<Manifest>,
    index: Part<ReleaseIndex>,
}

impl Draft {
    fn new(
        built: &Built,
        options: &Options,
        known: &Known,
        unread: u64,
    ) -> Result<Draft, PublishError> {
        let package = &options.package;
        let now = Timestamp::now();
        let created = options.mtime.map_or(now, Timestamp::from_unix_seconds);
        let new = manifest_of(built, options, created)?;
        let (id, manifest) = match &known.manifest {
            Some(there)
                if there.manifest().catalog == built.catalog
                    && there.manifest().root == built.root =>
            {
                (there.id(), Part::Signed(there.envelope().clone()))
            }
            _ => match known.id {
                Some(there) if there != new.id() => {
                    return Err(PublishError::Exists {
                        package: package.clone(),
                        ours: new.id(),
                        there,
                    });
                }
                _ => (new.id(), Part::Unsigned(new)),
            },
        };
        if options.seed {
            let named = match (&manifest, &known.manifest) {
                (Part::Signed(_), Some(there)) => there.manifest().torrent,
                _ => torrent_of(built),
            };
            if named.is_none() || named != torrent_of(built) {
                return Err(PublishError::OtherTorrent(package.clone()));
            }
        }
        let index = next_index(known, options, id, now)?;
        let summary = Summary {
            package: package.clone(),
            manifest: id,
            new: manifest.unsigned().is_some(),
            root: built.root.to_string(),
            files: built.totals.files,
            directories: built.totals.directories,
            bytes: built.totals.bytes,
            catalog_bytes: built.catalog.size,
            instructions: built.instructions.clone(),
            unread,
        };
        Ok(Draft {
            summary,
            manifest,
            index,
        })
    }
}

/// Returns how a manifest names the torrent, which it does whenever one is offered: it is never changed afterwards.
fn torrent_of(built: &Built) -> Option<TorrentRef> {
    let torrent = built.torrent.as_ref().ok()?;
    Some(TorrentRef {
        info_hash: torrent.info.hash(),
        piece_length: torrent.pieces.piece_bytes,
    })
}

fn manifest_of(
    built: &Built,
    options: &Options,
    created: Timestamp,
) -> Result<Manifest, PublishError> {
    let about = &options.about;
    let provenance = match &about.provenance {
        None => None,
        Some(text) => {
            let json = Json::parse_canonical(text.as_bytes());
            let object = json.ok().and_then(|json| json.as_object().cloned());
            Some(object.ok_or(PublishError::Provenance)?)
        }
    };
    Ok(Manifest::new(&ManifestFields {
        package: options.package.clone(),
        created,
        files: built.totals.files,
        directories: built.totals.directories,
        bytes: built.totals.bytes,
        catalog: built.catalog.clone(),
        root: built.root,
        torrent: torrent_of(built),
        description: about.description.clone(),
        license: about.license.clone(),
        homepage: about.homepage.clone(),
        keywords: about.keywords.clone(),
        publisher: about.publisher.clone(),
        provenance,
    })?)
}
