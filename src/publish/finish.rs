//! From signatures to a version that others find: announced, then visible in this home.
//!
//! In that order, because the registry is where publishers of one package meet: it takes an index only in place of the
//! one it was made from. Whoever was not the first shows nothing, makes another index from the new one and has that
//! signed; so no version ever gets two manifests, and none is lost. A registry that cannot be reached now keeps nobody
//! from seeing the version here.
//!
//! Each step leaves alone what is done already, so a job that died anywhere after its signature is simply run again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::PublishError;
use super::job::{Envelopes, Job, Part, Prepared, Publisher, Signer};
use super::journal;
use super::keep::keep_version;
use super::options::{JobId, Options};
use super::progress::{Progress, Step};
use crate::block::Digest;
use crate::manifest::{
    Envelope, KeyId, ManifestId, PackageName, PackageVersion, Signed, TrustError, TrustPolicy,
    TrustedIndex, TrustedManifest,
};
use crate::registry::{Announcement, Registry, RegistryError};
use crate::state::SeenError;
use crate::torrent::{Info, MetainfoHints, metainfo};

/// How often an index is made again because somebody else was faster. Each time somebody's went through, so this is more
/// than there are publishers of one package at a time.
const CONFLICTS_MAX: u32 = 64;

/// The longest time between two tries; how long it is is left to chance, so that two do not meet again and again.
const PAUSE_MAX: Duration = Duration::from_millis(30);

/// What became of the signatures of a job.
#[derive(Debug)]
pub enum Finished {
    /// It is visible.
    Done(Outcome),
    /// Somebody else was faster: nothing is visible, and this is to be signed instead.
    Again(Box<Prepared>),
}

/// A version that is visible in this home and announced in its registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Package and version.
    pub package: PackageVersion,
    /// The manifest.
    pub manifest: ManifestId,
    /// Where it was announced.
    pub registry: String,
    /// Whether anything was signed; otherwise all of it existed.
    pub changed: bool,
}

/// What became of a job that an earlier process left.
#[derive(Debug)]
pub struct Resumed {
    /// Package and version; `None` when the journal itself is damaged.
    pub package: Option<PackageVersion>,
    /// Whether it is announced now.
    pub result: Result<(), PublishError>,
}

impl Publisher {
    /// Publishes a directory in one go, with a signer at hand.
    ///
    /// # Errors
    /// [`PublishError`]
    pub async fn publish(
        self: &Arc<Self>,
        directory: std::os::fd::OwnedFd,
        options: Options,
        registry: Arc<dyn Registry>,
        trust: Arc<TrustPolicy>,
        signer: &dyn Signer,
        progress: Arc<Progress>,
    ) -> Result<Outcome, PublishError> {
        let prepared = self
            .prepare(
                directory,
                options,
                registry,
                Arc::clone(&trust),
                Arc::clone(&progress),
            )
            .await?;
        self.sign_and_finish(prepared, trust, signer, progress)
            .await
    }

    /// Signs a job and finishes it, as often as it takes.
    ///
    /// # Errors
    /// [`PublishError`], as [`Publisher::finish`]; the job is given up then.
    pub async fn sign_and_finish(
        self: &Arc<Self>,
        mut prepared: Prepared,
        trust: Arc<TrustPolicy>,
        signer: &dyn Signer,
        progress: Arc<Progress>,
    ) -> Result<Outcome, PublishError> {
        let job = prepared.job.clone();
        // The job counts its tries.
        let ended = loop {
            let envelopes = match prepared.sign(signer) {
                Ok(envelopes) => envelopes,
                Err(error) => break Err(error),
            };
            let (trust, progress) = (Arc::clone(&trust), Arc::clone(&progress));
            match self.finish(&job, envelopes, trust, progress).await {
                Ok(Finished::Again(next)) => prepared = *next,
                Ok(Finished::Done(outcome)) => break Ok(outcome),
                Err(error) => break Err(error),
            }
        };
        self.abandon(&job);
        ended
    }

    /// Announces a signed job, and makes it visible in this home.
    ///
    /// # Errors
    /// [`PublishError::NoJob`]; [`PublishError::OtherSigned`] and [`PublishError::Untrusted`], after which other
    /// signatures may be tried; [`PublishError::Announce`] when it is visible in this home only; others.
    pub async fn finish(
        self: &Arc<Self>,
        job: &JobId,
        envelopes: Envelopes,
        trust: Arc<TrustPolicy>,
        progress: Arc<Progress>,
    ) -> Result<Finished, PublishError> {
        let found = self.take(job)?;
        let signed = match self.check(&found, envelopes, &trust).await {
            Ok(signed) => Some(signed),
            Err(error) if is_conflict(&error) => None,
            Err(error) => {
                self.wait(found);
                return Err(error);
            }
        };
        progress.enter(Step::Announce);
        let (manifest, index) = (&found.draft.manifest, &found.draft.index);
        let signed_now = manifest.as_ref().is_some_and(Part::is_unsigned) || index.is_unsigned();
        let outcome = Outcome {
            package: found.wish.package().clone(),
            manifest: found.draft.id,
            registry: found.registry.name().to_owned(),
            changed: signed_now,
        };
        // A task of its own: from here on it is carried to its end, whoever waits for it.
        let publisher = Arc::clone(self);
        let task = tokio::spawn(async move {
            match signed {
                Some(signed) => publisher.carry_out(found, signed, &trust).await,
                None => publisher.again(found, &trust).await.map(Some),
            }
        });
        Ok(match task.await.map_err(std::io::Error::other)?? {
            Some(prepared) => Finished::Again(Box::new(prepared)),
            None => Finished::Done(outcome),
        })
    }

    /// Carries a signed job to its end, or returns what is to be signed instead.
    async fn carry_out(
        self: &Arc<Self>,
        job: Job,
        signed: journal::Signed,
        trust: &Arc<TrustPolicy>,
    ) -> Result<Option<Prepared>, PublishError> {
        let (id, record) = (job.claim.job.clone(), signed.clone());
        self.on_disk({
            let id = id.clone();
            move |publisher| Ok(publisher.journal.signed(&id, &record)?)
        })
        .await?;
        let done = self.complete(&id, signed, trust, &job.registry).await;
        if let Err(error) = &done
            && is_conflict(error)
        {
            return self.again(job, trust).await.map(Some);
        }
        let ended = self.on_disk(move |publisher| publisher.keep(job)).await;
        if done.is_err() {
            // Not before the job has let its package go.
            self.leave();
        }
        done.and(ended)?;
        Ok(None)
    }

    /// Makes the index of a job again, from what others have announced meanwhile.
    async fn again(
        self: &Arc<Self>,
        mut job: Job,
        trust: &Arc<TrustPolicy>,
    ) -> Result<Prepared, PublishError> {
        if job.conflicts == CONFLICTS_MAX {
            return Err(PublishError::Contended {
                package: job.wish.package().name.clone(),
                tries: job.conflicts,
            });
        }
        job.conflicts += 1;
        tokio::time::sleep(PAUSE_MAX.mul_f64(rand::random())).await;
        let known = self.known(&job.wish, trust, &job.registry).await?;
        job.draft = job.wish.draft(&known)?;
        job.replaces = known.replaces;
        Ok(self.wait(job))
    }

    /// Ends a job: what it stored stays protected from eviction if it is visible now, and was not before.
    fn keep(&self, job: Job) -> Result<(), PublishError> {
        let Job {
            wish,
            draft,
            kept,
            claim,
            record,
            ..
        } = job;
        let package = wish.package();
        let visible = self.state.published().manifest(package)?.is_some();
        let new = draft.summary.is_some_and(|summary| summary.new);
        if let Some(record) = record.filter(|_| visible && new) {
            let kept = record.keep(&self.record_path(&package.name));
            if let Err(error) = kept {
                // The next publish reads everything, no more.
                tracing::warn!(%error, "what was ingested is not remembered");
            }
        }
        if let Some(kept) = kept
            && visible
            && self.kept.lock().insert(package.clone())
        {
            kept.for_good();
        }
        drop(claim);
        Ok(())
    }

    /// Protects what earlier processes published from eviction. Blocking; [`Publisher::resume`] does it too.
    ///
    /// A version whose catalog is not in the store any more is told in the log and passed over.
    ///
    /// # Errors
    /// [`PublishError::State`]
    pub fn keep_published(&self) -> Result<(), PublishError> {
        for package in self.state.published().versions()? {
            let Some(bytes) = self.state.published().manifest(&package)? else {
                continue;
            };
            if !self.kept.lock().insert(package.clone()) {
                continue;
            }
            let envelope = Envelope::parse(&bytes)?;
            let Signed::Manifest(manifest) = envelope.unverified() else {
                continue;
            };
            if let Err(error) = keep_version(&self.store, manifest) {
                tracing::warn!(%package, %error, "published here, but not in the store any more: publish it again");
            }
        }
        Ok(())
    }

    /// Carries on what an earlier process had signed, and forgets what it had not. `open` opens a registry by its name.
    ///
    /// To be called at start; see [`Publisher::announce_left`].
    pub async fn resume(
        self: &Arc<Self>,
        open: &(dyn Fn(&str) -> Option<Arc<dyn Registry>> + Sync),
        trust: Arc<TrustPolicy>,
    ) -> Vec<Resumed> {
        if let Err(error) = self.on_disk(Publisher::keep_published).await {
            let result = Err(error);
            return vec![Resumed {
                package: None,
                result,
            }];
        }
        self.announce_left(open, trust).await
    }

    /// Tries again what is signed and could not be announced; each is told with how it went. To be called from time to
    /// time while there is something: [`Publisher::left`].
    ///
    /// What is refused for good is forgotten: it stays visible in this home if it was, and publishing it again announces
    /// it.
    pub async fn announce_left(
        self: &Arc<Self>,
        open: &(dyn Fn(&str) -> Option<Arc<dyn Registry>> + Sync),
        trust: Arc<TrustPolicy>,
    ) -> Vec<Resumed> {
        let jobs = match self
            .on_disk(|publisher| Ok(publisher.journal.jobs()?))
            .await
        {
            Ok(jobs) => jobs,
            Err(error) => {
                let result = Err(error);
                return vec![Resumed {
                    package: None,
                    result,
                }];
            }
        };
        let mut resumed = Vec::new();
        for job in jobs {
            // It ends by itself, and what lies of it may be half of it.
            if self.is_under_way(&job) {
                continue;
            }
            let read = job.clone();
            let signed = self
                .on_disk(move |publisher| Ok(publisher.journal.read(&read)?))
                .await;
            let signed = match signed {
                Ok(Some(signed)) => signed,
                Ok(None) => {
                    // Nothing of it is visible.
                    let _ = self
                        .on_disk(move |publisher| Ok(publisher.journal.remove(&job)?))
                        .await;
                    continue;
                }
                Err(error) => {
                    let result = Err(error);
                    resumed.push(Resumed {
                        package: None,
                        result,
                    });
                    continue;
                }
            };
            let package = Some(signed.package.clone());
            let Ok(claim) = self.claim(&signed.package.name) else {
                // Its turn comes: this one is not the last try.
                let result = Err(PublishError::Busy(signed.package.name));
                resumed.push(Resumed { package, result });
                continue;
            };
            let result = match open(&signed.registry) {
                Some(registry) => self.complete(&job, signed, &trust, &registry).await,
                None => Err(PublishError::NoRegistry(signed.registry.clone())),
            };
            drop(claim);
            resumed.push(Resumed { package, result });
        }
        resumed
    }

    /// Compares what came back with what was to be signed, and has the trust policy judge it.
    async fn check(
        self: &Arc<Self>,
        job: &Job,
        envelopes: Envelopes,
        trust: &TrustPolicy,
    ) -> Result<journal::Signed, PublishError> {
        let package = job.wish.package();
        let manifest = match &job.draft.manifest {
            Some(part) => {
                let envelope = pick(part, envelopes.manifest, "the manifest")?;
                trusted_manifest(&envelope, package, trust)?;
                Some(envelope.bytes().clone())
            }
            None if envelopes.manifest.is_none() => None,
            None => return Err(PublishError::OtherSigned("the manifest")),
        };
        let index = pick(&job.draft.index, envelopes.index, "the release index")?;
        trust
            .verify_index(&index, &package.name, None)
            .map_err(|error| untrusted("release index", error))?;
        // What is there may have changed while somebody typed a password.
        let there = job
            .registry
            .index(&package.name)
            .await
            .map_err(PublishError::Registry)?;
        if there.as_deref().map(Digest::of) != job.replaces {
            return Err(conflict(&package.name));
        }
        Ok(journal::Signed {
            package: package.clone(),
            registry: job.registry.name().to_owned(),
            replaces: job.replaces,
            manifest,
            index: index.bytes().clone(),
            sums: job.sums.clone(),
            torrent: job.torrent.as_ref().map(|info| info.bytes().clone()),
        })
    }

    /// Announces a signed job and makes it visible in this home, and forgets it unless it is to be tried again.
    async fn complete(
        self: &Arc<Self>,
        job: &JobId,
        signed: journal::Signed,
        trust: &Arc<TrustPolicy>,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        let done = self.announce_and_show(signed, trust, registry).await;
        let again = match &done {
            Ok(()) | Err(PublishError::Untrusted { .. } | PublishError::Envelope(_)) => false,
            Err(PublishError::Seen(SeenError::Refused(_) | SeenError::NameTaken { .. })) => false,
            Err(PublishError::Announce(error)) => matches!(
                error,
                RegistryError::Unavailable { .. } | RegistryError::Io { .. }
            ),
            Err(error) => !is_conflict(error),
        };
        if !again {
            let job = job.clone();
            self.on_disk(move |publisher| Ok(publisher.journal.remove(&job)?))
                .await?;
        }
        done
    }

    async fn announce_and_show(
        self: &Arc<Self>,
        signed: journal::Signed,
        trust: &Arc<TrustPolicy>,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        let policy = Arc::clone(trust);
        let judged = self
            .on_disk(move |publisher| publisher.judge(signed, &policy))
            .await?;
        let announced = self.announce(&judged, trust, registry).await;
        if announced.as_ref().is_err_and(is_conflict) {
            return announced;
        }
        // Also when the registry could not be asked: then it is here at least, and announced at the next start.
        self.on_disk(move |publisher| publisher.show(&judged))
            .await?;
        announced
    }

    /// Has this home's own policy judge what was signed, and compares it with what was seen. Nothing is remembered yet.
    fn judge(&self, signed: journal::Signed, trust: &TrustPolicy) -> Result<Judged, PublishError> {
        let (package, seen) = (&signed.package, self.state.seen());
        let manifest = match &signed.manifest {
            Some(bytes) => {
                let manifest = trusted_manifest(&Envelope::parse(bytes)?, package, trust)?;
                seen.check_manifest(&manifest)?;
                Some(manifest)
            }
            None => None,
        };
        let index = Envelope::parse(&signed.index)?;
        let index = trust
            .verify_index(&index, &package.name, None)
            .map_err(|error| untrusted("release index", error))?;
        let current = match index.check_sequence(seen.index(&package.name)?) {
            Ok(()) => true,
            Err(TrustError::Rollback { .. } | TrustError::SameSequence { .. }) => false,
            Err(error) => return Err(untrusted("release index", error)),
        };
        let named = manifest.as_ref().and_then(|made| made.manifest().torrent);
        let torrent = match (&signed.torrent, named) {
            (Some(bytes), Some(named)) => Info::verify(bytes.clone(), &named.info_hash).ok(),
            _ => None,
        };
        Ok(Judged {
            package: signed.package,
            manifest,
            index,
            current,
            sums: signed.sums,
            torrent,
            replaces: signed.replaces,
        })
    }

    /// Makes what was judged visible in this home: seen, then kept, the index last.
    fn show(&self, judged: &Judged) -> Result<(), PublishError> {
        let index = Some(&judged.index).filter(|_| judged.current);
        let (name, manifest) = (&judged.package.name, judged.manifest.as_ref());
        self.state.admit_published(name, manifest, index)?;
        // Marked whether a daemon runs or not: whoever seeds for this home reads the list.
        if let Some(info) = &judged.torrent {
            self.state.seeding().put_info(info)?;
            self.state.seeding().add(&judged.package)?;
        }
        Ok(())
    }

    /// Puts what was judged into the registry, in place of the index that it was made from.
    async fn announce(
        self: &Arc<Self>,
        judged: &Judged,
        trust: &TrustPolicy,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        let name = &judged.package.name;
        let there = registry.index(name).await.map_err(PublishError::Announce)?;
        // Already announced, by a process that died just after: then nothing is replaced.
        let done = there
            .as_ref()
            .is_some_and(|there| judged.is_announced_by(there, trust));
        let replaced = there.as_deref().map(Digest::of) == judged.replaces;
        let in_time = judged.current && replaced;
        if !(done || in_time) {
            return Err(conflict(name));
        }
        if there.is_none() {
            self.announce_others(judged, registry).await?;
        }
        let torrent = judged.torrent.as_ref().map(|info| {
            let said = judged.index.index();
            let hints = MetainfoHints {
                trackers: &said.trackers,
                http: &said.http,
            };
            Bytes::from(metainfo(info, hints))
        });
        let signers = match &judged.manifest {
            Some(manifest) => manifest.signers(),
            None => judged.index.signers(),
        };
        let manifest = judged.manifest.as_ref();
        let announcement = Announcement {
            package: judged.package.clone(),
            manifest: manifest.map(|manifest| manifest.envelope().clone()),
            sums: judged.sums.clone(),
            torrent,
            index: Some(judged.index.envelope().clone()).filter(|_| !done),
            replaces: judged.replaces,
            keys: keys(name, signers, trust),
        };
        registry.put(announcement).await.map_err(|error| {
            if matches!(error, RegistryError::Conflict { .. }) {
                PublishError::Registry(error)
            } else {
                PublishError::Announce(error)
            }
        })
    }

    /// Puts the other versions of this home that the index names into a registry that is new to the package.
    async fn announce_others(
        self: &Arc<Self>,
        judged: &Judged,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        for version in judged.index.index().versions.keys() {
            let other = PackageVersion::new(judged.package.name.clone(), version.clone());
            if other == judged.package && judged.manifest.is_some() {
                continue;
            }
            let asked = other.clone();
            let kept = self
                .on_disk(move |publisher| Ok(publisher.state.published().manifest(&asked)?))
                .await?;
            let Some(manifest) = kept else { continue };
            let announcement = Announcement {
                package: other,
                manifest: Some(manifest.into()),
                sums: None,
                torrent: None,
                index: None,
                replaces: None,
                keys: Vec::new(),
            };
            registry
                .put(announcement)
                .await
                .map_err(PublishError::Announce)?;
        }
        Ok(())
    }

    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Publisher) -> Result<T, PublishError> + Send + 'static,
    ) -> Result<T, PublishError> {
        let publisher = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&publisher)).await;
        done.unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }
}

/// What was signed, and may be announced and shown.
struct Judged {
    package: PackageVersion,
    /// None when only the release index changes.
    manifest: Option<TrustedManifest>,
    index: TrustedIndex,
    /// Whether this home has seen no later index, and no other one with its sequence.
    current: bool,
    sums: Option<Bytes>,
    torrent: Option<Info>,
    replaces: Option<Digest>,
}

impl Judged {
    /// Returns whether a registry's index says it already: it is this one, or one that went on from this one.
    fn is_announced_by(&self, there: &Bytes, trust: &TrustPolicy) -> bool {
        if there == self.index.envelope() {
            return true;
        }
        let (Some(manifest), Ok(envelope)) = (&self.manifest, Envelope::parse(there)) else {
            return false;
        };
        let index = trust.verify_index(&envelope, &self.package.name, None);
        index.is_ok_and(|index| {
            let listed = index.index().versions.get(&self.package.version);
            listed == Some(&manifest.id()) && index.index().sequence > self.index.index().sequence
        })
    }
}

/// Takes the envelope that came back, which has to hold what was to be signed, or the one that is there already.
fn pick<T: Clone + Into<Signed>>(
    part: &Part<T>,
    came: Option<Envelope>,
    what: &'static str,
) -> Result<Envelope, PublishError> {
    match (part, came) {
        (Part::Unsigned(unsigned), Some(envelope))
            if *envelope.unverified() == unsigned.clone().into() =>
        {
            Ok(envelope)
        }
        (Part::Signed(bytes), None) => Ok(Envelope::parse(bytes)?),
        _ => Err(PublishError::OtherSigned(what)),
    }
}

fn conflict(name: &PackageName) -> PublishError {
    let path = format!("the release index of {name}");
    PublishError::Registry(RegistryError::Conflict { path })
}

fn is_conflict(error: &PublishError) -> bool {
    matches!(
        error,
        PublishError::Registry(RegistryError::Conflict { .. })
    )
}

fn trusted_manifest(
    envelope: &Envelope,
    package: &PackageVersion,
    trust: &TrustPolicy,
) -> Result<TrustedManifest, PublishError> {
    trust
        .verify_manifest(envelope, package)
        .map_err(|error| untrusted("manifest", error))
}

fn untrusted(what: &'static str, error: TrustError) -> PublishError {
    PublishError::Untrusted { what, error }
}

/// Returns the public keys that signed, for people who look into the registry.
fn keys(name: &PackageName, signers: &[KeyId], trust: &TrustPolicy) -> Vec<(KeyId, Bytes)> {
    let keys = trust.rule_for(name).into_iter().flat_map(|rule| &rule.keys);
    keys.filter(|key| signers.contains(&key.id()))
        .map(|key| (key.id(), key.to_pem().into()))
        .collect()
}
