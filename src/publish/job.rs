//! One publish from the directory to the registry, with the signature in another process.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::PublishError;
use super::beneath::Beneath;
use super::build::{Built, Task, build, judged};
use super::change::Change;
use super::draft::{Draft, Made, Wish};
use super::journal::Journal;
use super::keep::Kept;
use super::known::{Known, known, known_index};
use super::options::{JobId, Options};
use super::progress::{Progress, Step};
use super::reuse::{Base, NewRecord};
use super::sink::{Keeping, Nowhere, Sink};
use super::tar::{Unpacked, unpack};
use crate::block::Digest;
use crate::manifest::{
    Envelope, Manifest, ManifestId, PackageName, PackageVersion, ReleaseIndex, Signed, TrustPolicy,
    TrustedManifest,
};
use crate::registry::{Registry, RegistryError};
use crate::state::State;
use crate::store::Store;
use crate::torrent::Info;

/// How long a job waits for another one of the same package that is being signed or announced.
const TURN_WITHIN: Duration = Duration::from_secs(60);

/// How long a job has for its signatures before another one of the same package may take its turn: whoever signs has
/// the key at hand before anything is read.
const SIGN_WITHIN: Duration = Duration::from_secs(10);

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
    /// Told when something that is signed could not be announced.
    left: Notify,
    /// What time it is.
    clock: fn() -> SystemTime,
    /// The versions whose files this process protects from eviction until it ends.
    pub(super) kept: Mutex<HashSet<PackageVersion>>,
}

#[derive(Default)]
struct Jobs {
    /// Which job each package has: waiting for signatures, or announcing.
    names: HashMap<PackageName, JobId>,
    /// Those that wait for signatures.
    prepared: HashMap<JobId, Waiting>,
}

/// A job that waits for signatures.
struct Waiting {
    job: Job,
    since: Instant,
    /// Who is copying what is to be signed: as long as somebody does, nobody takes its turn.
    holders: usize,
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
    /// Which version it is about.
    pub package: PackageVersion,
    /// Its manifest.
    pub id: ManifestId,
    /// What is to be published; `None` when only the release index changes.
    pub summary: Option<Summary>,
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
    pub(super) wish: Wish,
    pub(super) draft: Draft,
    pub(super) sums: Option<Bytes>,
    /// The info dictionary, when the version is to be seeded.
    pub(super) torrent: Option<Info>,
    pub(super) replaces: Option<Digest>,
    pub(super) registry: Arc<dyn Registry>,
    /// Nothing is stored when only the release index changes.
    pub(super) kept: Option<Kept>,
    /// What its files were on disk.
    pub(super) record: Option<NewRecord>,
    /// How often somebody else was faster.
    pub(super) conflicts: u32,
}

impl Job {
    fn prepared(&self) -> Prepared {
        let manifest = self.draft.manifest.as_ref();
        Prepared {
            job: self.claim.job.clone(),
            package: self.wish.package().clone(),
            id: self.draft.id,
            summary: self.draft.summary.clone(),
            manifest: manifest.and_then(Part::unsigned).cloned(),
            index: self.draft.index.unsigned().cloned(),
        }
    }
}

/// What would be published: nothing of it is stored.
#[derive(Debug)]
pub struct Rehearsal {
    /// What it is about.
    pub summary: Summary,
    /// The catalog's bytes, in an unnamed file.
    pub catalog: std::fs::File,
}

/// Something to be announced.
pub(super) enum Part<T> {
    /// It is to be signed.
    Unsigned(T),
    /// It is signed already.
    Signed(Bytes),
}

/// Keeps the turn of a job that waits for signatures, until dropped.
pub struct Hold {
    publisher: Arc<Publisher>,
    job: JobId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(waiting) = self.publisher.jobs.lock().prepared.get_mut(&self.job) {
            waiting.holders -= 1;
            waiting.since = Instant::now();
        }
        self.publisher.freed.notify_waiters();
    }
}

/// The right to announce something of a package, let go when dropped.
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

    pub(super) fn is_unsigned(&self) -> bool {
        self.unsigned().is_some()
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
            left: Notify::new(),
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
    ) -> Result<Rehearsal, PublishError> {
        let known = known(&options.package, &self.state, &trust, &registry).await?;
        let beneath = self
            .find_beneath(&options, &known, &trust, &registry)
            .await?;
        let publisher = Arc::clone(self);
        let done = blocking(progress, move |progress| {
            let sink = Nowhere(Some(&publisher.store));
            let beneath = beneath.as_ref();
            let built = publisher.read(directory, &options, beneath, &sink, None, progress)?;
            let unread = progress.now().files_known;
            let summary = Made::new(&built, options, unread)?.summary(&known)?;
            Ok(Rehearsal {
                summary,
                catalog: built.file,
            })
        });
        done.await
    }

    /// Finds the version that a tree is to be laid on top of, if it is.
    async fn find_beneath(
        &self,
        options: &Options,
        index: &Known,
        trust: &TrustPolicy,
        registry: &Arc<dyn Registry>,
    ) -> Result<Option<TrustedManifest>, PublishError> {
        let Some(update) = &options.update else {
            return Ok(None);
        };
        let name = &options.package.name;
        let version = update.version.clone().or_else(|| index.newest());
        let version = version.ok_or_else(|| PublishError::NothingBeneath(name.clone()))?;
        let package = PackageVersion::new(name.clone(), version);
        let found = known(&package, &self.state, trust, registry).await?;
        found.check_not_withdrawn(&package)?;
        let manifest = found.manifest;
        Ok(Some(manifest.ok_or(PublishError::NoVersion(package))?))
    }

    /// Reads a tree into `sink`, on top of what was found beneath it. Blocking.
    fn read(
        &self,
        directory: OwnedFd,
        options: &Options,
        beneath: Option<&TrustedManifest>,
        sink: &dyn Sink,
        records: Option<&Path>,
        progress: &Progress,
    ) -> Result<Built, PublishError> {
        let base = self.base(options);
        let beneath = self.beneath(options, beneath)?;
        let task = Task {
            options,
            homes: &self.homes,
            temporary: self.state.journal(),
            sink,
            base: base.as_ref(),
            beneath: beneath.as_ref(),
            records,
            now: (self.clock)(),
            progress,
        };
        build(directory, &task)
    }

    /// Opens the version that was found for a tree. Blocking.
    fn beneath(
        &self,
        options: &Options,
        found: Option<&TrustedManifest>,
    ) -> Result<Option<Beneath>, PublishError> {
        let Some((update, found)) = options.update.as_ref().zip(found) else {
            return Ok(None);
        };
        let (manifest, temporary) = (found.manifest(), self.state.journal());
        Beneath::open(manifest, update, &self.store, temporary).map(Some)
    }

    /// Makes an empty tree, for an update that only removes.
    ///
    /// # Errors
    /// [`PublishError::Store`]
    pub async fn empty(self: &Arc<Self>) -> Result<Unpacked, PublishError> {
        let publisher = Arc::clone(self);
        let made = blocking(Arc::new(Progress::new()), move |_| {
            Ok(Unpacked::new(publisher.store.scratch()?))
        });
        made.await
    }

    /// Unpacks a tar stream beside the store, to be published and then dropped.
    ///
    /// # Errors
    /// [`PublishError::Tar`]; [`PublishError::Store`] when it does not fit.
    pub async fn unpack(
        self: &Arc<Self>,
        stream: OwnedFd,
        progress: Arc<Progress>,
    ) -> Result<Unpacked, PublishError> {
        let publisher = Arc::clone(self);
        let done = blocking(progress, move |progress| {
            let scratch = publisher.store.scratch()?;
            unpack(stream, &scratch, progress)?;
            progress.unpacked();
            Ok(Unpacked::new(scratch))
        });
        done.await
    }

    /// Reads and stores a directory, and returns what has to be signed. Nothing is visible yet.
    ///
    /// Others may read for the same package meanwhile; from then on jobs of one package take turns.
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
        check_writable(&registry)?;
        // What is refused whatever the tree holds is refused before it is read.
        let before = known(&options.package, &self.state, &trust, &registry).await?;
        before.check_not_withdrawn(&options.package)?;
        let beneath = self
            .find_beneath(&options, &before, &trust, &registry)
            .await?;
        let publisher = Arc::clone(self);
        let after = Arc::clone(&progress);
        let done = blocking(progress, move |progress| {
            let kept = Kept::new(Arc::clone(&publisher.store), publisher.state.journal())?;
            let sink = Keeping {
                store: &publisher.store,
                kept: &kept,
            };
            let beneath = beneath.as_ref();
            let records = (!options.passing).then(|| publisher.state.ingested());
            let built = publisher.read(directory, &options, beneath, &sink, records, progress)?;
            let unread = progress.now().files_known;
            let (sums, seed) = (built.sums()?.map(Bytes::from), options.seed);
            let made = Made::new(&built, options, unread)?;
            let torrent = built.torrent.ok().filter(|_| seed);
            let torrent = torrent.map(|torrent| torrent.info);
            Ok((made, kept, sums, torrent, built.record))
        });
        let (made, kept, sums, torrent, record) = done.await?;
        after.enter(Step::Sign);
        let claim = self.claim_soon(&made.package().name).await?;
        let wish = Wish::Version(Box::new(made));
        let known = self.known(&wish, &trust, &registry).await?;
        Ok(self.wait(Job {
            claim,
            draft: wish.draft(&known)?,
            wish,
            sums,
            torrent,
            replaces: known.replaces,
            registry,
            kept: Some(kept),
            record,
            conflicts: 0,
        }))
    }

    /// Returns the release index that has to be signed for a change of what it says about a version.
    ///
    /// # Errors
    /// [`PublishError::NoPackage`], [`PublishError::NoVersion`], [`PublishError::Withdrawn`], [`PublishError::Reason`];
    /// others.
    pub async fn prepare_change(
        self: &Arc<Self>,
        package: PackageVersion,
        change: Change,
        registry: Arc<dyn Registry>,
        trust: Arc<TrustPolicy>,
    ) -> Result<Prepared, PublishError> {
        check_writable(&registry)?;
        let claim = self.claim_soon(&package.name).await?;
        let wish = Wish::Change(package, change);
        let known = self.known(&wish, &trust, &registry).await?;
        Ok(self.wait(Job {
            claim,
            draft: wish.draft(&known)?,
            wish,
            sums: None,
            torrent: None,
            replaces: known.replaces,
            registry,
            kept: None,
            record: None,
            conflicts: 0,
        }))
    }

    /// Asks this home and the registry what a wish has to go on from.
    pub(super) async fn known(
        &self,
        wish: &Wish,
        trust: &TrustPolicy,
        registry: &Arc<dyn Registry>,
    ) -> Result<Known, PublishError> {
        match wish {
            Wish::Version(made) => known(made.package(), &self.state, trust, registry).await,
            Wish::Change(package, _) => known_index(package, &self.state, trust, registry).await,
        }
    }

    /// Has a job wait for its signatures.
    pub(super) fn wait(&self, job: Job) -> Prepared {
        let prepared = job.prepared();
        let waiting = Waiting {
            job,
            since: Instant::now(),
            holders: 0,
        };
        let mut jobs = self.jobs.lock();
        jobs.prepared.insert(prepared.job.clone(), waiting);
        prepared
    }

    /// Keeps the turn of a job, however long its signatures take: something is copied before.
    ///
    /// # Errors
    /// [`PublishError::NoJob`]
    pub fn hold(self: &Arc<Self>, job: &JobId) -> Result<Hold, PublishError> {
        let mut jobs = self.jobs.lock();
        let waiting = jobs.prepared.get_mut(job);
        waiting
            .ok_or_else(|| PublishError::NoJob(job.clone()))?
            .holders += 1;
        Ok(Hold {
            publisher: Arc::clone(self),
            job: job.clone(),
        })
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

    /// Takes the turn of a package, waiting a while for who has it.
    async fn claim_soon(self: &Arc<Self>, name: &PackageName) -> Result<Claim, PublishError> {
        let deadline = Instant::now() + TURN_WITHIN;
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            let ends = match self.claim(name) {
                Ok(claim) => return Ok(claim),
                Err(ends) => ends,
            };
            if Instant::now() >= deadline {
                return Err(PublishError::Busy(name.clone()));
            }
            // Whichever it is: the next round says.
            let until = ends.map_or(deadline, |ends| ends.min(deadline));
            let _ = tokio::time::timeout_at(until, freed).await;
        }
    }

    /// Returns the manifest of a job that waits for signatures, or of the equal version that exists.
    ///
    /// # Errors
    /// [`PublishError::NoJob`]
    pub fn manifest(&self, job: &JobId) -> Result<Manifest, PublishError> {
        let jobs = self.jobs.lock();
        let missing = || PublishError::NoJob(job.clone());
        let waiting = jobs.prepared.get(job).ok_or_else(missing)?;
        match &waiting.job.draft.manifest {
            Some(Part::Unsigned(manifest)) => Ok(manifest.clone()),
            Some(Part::Signed(bytes)) => match Envelope::parse(bytes)?.unverified() {
                Signed::Manifest(manifest) => Ok(manifest.clone()),
                Signed::Index(_) => Err(missing()),
            },
            None => Err(missing()),
        }
    }

    /// Takes the turn of a package, unless another job has it: then it may say when that one's ends at the latest.
    pub(super) fn claim(self: &Arc<Self>, name: &PackageName) -> Result<Claim, Option<Instant>> {
        let claim = Claim {
            publisher: Arc::clone(self),
            name: name.clone(),
            job: JobId::random(),
        };
        loop {
            let mut jobs = self.jobs.lock();
            let Some(other) = jobs.names.get(name).cloned() else {
                jobs.names.insert(name.clone(), claim.job.clone());
                drop(jobs);
                return Ok(claim);
            };
            let Some(waiting) = jobs.prepared.get(&other) else {
                return Err(None);
            };
            let ends = waiting.since + SIGN_WITHIN;
            if waiting.holders > 0 {
                return Err(None);
            }
            if Instant::now() < ends {
                return Err(Some(ends));
            }
            let given_up = jobs.prepared.remove(&other);
            // Dropped without the lock: that lets its claim go.
            drop(jobs);
            drop(given_up);
        }
    }

    /// Returns when something that is signed could not be announced, and is to be tried again:
    /// [`Publisher::announce_left`].
    pub async fn left(&self) {
        self.left.notified().await;
    }

    pub(super) fn leave(&self) {
        self.left.notify_one();
    }

    /// Returns whether this process prepares a job, or announces it.
    pub(super) fn is_under_way(&self, job: &JobId) -> bool {
        self.jobs.lock().names.values().any(|known| known == job)
    }

    pub(super) fn take(&self, job: &JobId) -> Result<Job, PublishError> {
        let found = self.jobs.lock().prepared.remove(job);
        let waiting = found.ok_or_else(|| PublishError::NoJob(job.clone()))?;
        Ok(waiting.job)
    }
}

/// Refuses a registry that nothing can be put into, so that nobody reads a tree for nothing.
fn check_writable(registry: &Arc<dyn Registry>) -> Result<(), PublishError> {
    if registry.read_only() {
        let registry = registry.name().to_owned();
        return Err(PublishError::Registry(RegistryError::ReadOnly { registry }));
    }
    Ok(())
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
