//! From signatures to a version that others find: visible in this home first, then announced.
//!
//! Each step leaves alone what is done already, so a job that died anywhere after its signature is simply run again.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::PublishError;
use super::job::{Envelopes, Job, Part, Publisher, Signer};
use super::journal;
use super::keep::keep_version;
use super::options::{JobId, Options};
use super::progress::{Progress, Step};
use crate::block::Digest;
use crate::manifest::{
    Envelope, KeyId, ManifestId, PackageVersion, Signed, TrustError, TrustPolicy, TrustedIndex,
    TrustedManifest,
};
use crate::registry::{Announcement, Registry, RegistryError};
use crate::state::SeenError;
use crate::torrent::{Info, MetainfoHints, metainfo};

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
        let finished = match prepared.sign(signer) {
            Ok(envelopes) => self.finish(&prepared.job, envelopes, trust, progress).await,
            Err(error) => Err(error),
        };
        self.abandon(&prepared.job);
        finished
    }

    /// Makes a signed job visible in this home, then announces it.
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
    ) -> Result<Outcome, PublishError> {
        let found = self.take(job)?;
        let signed = match self.check(&found, envelopes, &trust).await {
            Ok(signed) => signed,
            Err(error) => {
                self.put_back(found);
                return Err(error);
            }
        };
        progress.enter(Step::Announce);
        let outcome = Outcome {
            package: found.summary.package.clone(),
            manifest: found.summary.manifest,
            registry: found.registry.name().to_owned(),
            changed: found.manifest.unsigned().is_some() || found.index.unsigned().is_some(),
        };
        // A task of its own: from here on it is carried to its end, whoever waits for it.
        let (publisher, job) = (Arc::clone(self), job.clone());
        let task = tokio::spawn(async move {
            let record = signed.clone();
            publisher
                .on_disk({
                    let job = job.clone();
                    move |publisher| Ok(publisher.journal.signed(&job, &record)?)
                })
                .await?;
            let done = publisher
                .complete(&job, signed, &trust, &found.registry)
                .await;
            let ended = publisher
                .on_disk(move |publisher| publisher.keep(found))
                .await;
            done.and(ended)
        });
        task.await.map_err(std::io::Error::other)??;
        Ok(outcome)
    }

    /// Ends a job: what it stored stays protected from eviction if it is visible now, and was not before.
    fn keep(&self, job: Job) -> Result<(), PublishError> {
        let Job {
            summary,
            kept,
            claim,
            record,
            ..
        } = job;
        let visible = self.state.published().manifest(&summary.package)?.is_some();
        if let Some(record) = record.filter(|_| visible && summary.new) {
            let kept = record.keep(&self.record_path(&summary.package.name));
            if let Err(error) = kept {
                // The next publish reads everything, no more.
                tracing::warn!(%error, "what was ingested is not remembered");
            }
        }
        if visible && self.kept.lock().insert(summary.package) {
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
    /// To be called at start, and from time to time while a job could not be announced. What is refused for good is
    /// forgotten: it stays visible in this home if it was, and publishing it again announces it.
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
            let read = job.clone();
            let signed = self
                .on_disk(move |publisher| Ok(publisher.journal.read(&read)?))
                .await;
            let signed = match signed {
                Ok(Some(signed)) => signed,
                Ok(None) => {
                    // Nothing of it is visible. One that this process is preparing has no directory yet.
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
            // Under way in this process: it ends by itself.
            let Ok(claim) = self.claim(&signed.package.name) else {
                continue;
            };
            let package = Some(signed.package.clone());
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
        let package = &job.summary.package;
        let manifest = pick(
            &job.manifest,
            envelopes.manifest,
            "the manifest",
            |unsigned| Signed::from(unsigned.clone()),
        )?;
        let index = pick(
            &job.index,
            envelopes.index,
            "the release index",
            |unsigned| Signed::from(unsigned.clone()),
        )?;
        trusted_manifest(&manifest, package, trust)?;
        let name = package.name.clone();
        let seen = self
            .on_disk(move |publisher| Ok(publisher.state.seen().index(&name)?))
            .await?;
        trust
            .verify_index(&index, &package.name, seen)
            .map_err(|error| untrusted("release index", error))?;
        // What is there may have changed while somebody typed a password.
        let there = job
            .registry
            .index(&package.name)
            .await
            .map_err(PublishError::Registry)?;
        if there.as_deref().map(Digest::of) != job.replaces {
            let path = format!("the release index of {}", package.name);
            return Err(PublishError::Registry(RegistryError::Conflict { path }));
        }
        Ok(journal::Signed {
            package: package.clone(),
            registry: job.registry.name().to_owned(),
            replaces: job.replaces,
            manifest: manifest.bytes().clone(),
            index: index.bytes().clone(),
            sums: job.sums.clone(),
            torrent: job.torrent.as_ref().map(|info| info.bytes().clone()),
        })
    }

    /// Makes a signed job visible in this home and announces it.
    async fn complete(
        self: &Arc<Self>,
        job: &JobId,
        signed: journal::Signed,
        trust: &Arc<TrustPolicy>,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        let policy = Arc::clone(trust);
        let done = match self
            .on_disk(move |publisher| publisher.show(&signed, &policy))
            .await
        {
            Ok(shown) => self.announce(shown, trust, registry).await,
            Err(error) => Err(error),
        };
        let again = match &done {
            Ok(()) | Err(PublishError::Untrusted { .. } | PublishError::Envelope(_)) => false,
            Err(PublishError::Seen(SeenError::Refused(_) | SeenError::NameTaken { .. })) => false,
            Err(PublishError::Announce(error)) => matches!(
                error,
                RegistryError::Unavailable { .. } | RegistryError::Io { .. }
            ),
            Err(_) => true,
        };
        if !again {
            let job = job.clone();
            self.on_disk(move |publisher| Ok(publisher.journal.remove(&job)?))
                .await?;
        }
        done
    }

    /// Makes a signed job visible in this home: seen, then kept, the index last.
    fn show(&self, signed: &journal::Signed, trust: &TrustPolicy) -> Result<Shown, PublishError> {
        let manifest = Envelope::parse(&signed.manifest)?;
        let index = Envelope::parse(&signed.index)?;
        let trusted = trusted_manifest(&manifest, &signed.package, trust)?;
        let name = &signed.package.name;
        let index = match trust.verify_index(&index, name, self.state.seen().index(name)?) {
            Ok(index) => Some(index),
            // A later publish has overtaken this one, and went on from its index.
            Err(TrustError::Rollback { .. }) => None,
            Err(error) => return Err(untrusted("release index", error)),
        };
        self.state.seen().admit_manifest(&trusted)?;
        if let Some(index) = &index {
            self.state.seen().admit_index(index)?;
        }
        self.state.published().put(&manifest)?;
        if let Some(index) = &index {
            self.state
                .published()
                .put(&Envelope::parse(index.envelope())?)?;
        }
        // Marked whether a daemon runs or not: whoever seeds for this home reads the list.
        let torrent = match (&signed.torrent, trusted.manifest().torrent) {
            (Some(bytes), Some(named)) => Info::verify(bytes.clone(), &named.info_hash).ok(),
            _ => None,
        };
        if let Some(info) = &torrent {
            self.state.seeding().put_info(info)?;
            self.state.seeding().add(&signed.package)?;
        }
        Ok(Shown {
            manifest: trusted,
            torrent,
            index,
            sums: signed.sums.clone(),
            replaces: signed.replaces,
        })
    }

    /// Puts what this home shows into the registry.
    async fn announce(
        self: &Arc<Self>,
        shown: Shown,
        trust: &TrustPolicy,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        let package = shown.manifest.package();
        let name = &package.name;
        let there = registry.index(name).await.map_err(PublishError::Announce)?;
        if there.is_none()
            && let Some(index) = &shown.index
        {
            self.announce_others(package, index, registry).await?;
        }
        // Already announced, by a process that died just after: then nothing is replaced.
        let torrent = shown.torrent.as_ref().map(|info| {
            let said = shown.index.as_ref().map(TrustedIndex::index);
            let hints = said.map_or_else(MetainfoHints::default, |index| MetainfoHints {
                trackers: &index.trackers,
                http: &index.http,
            });
            Bytes::from(metainfo(info, hints))
        });
        let index = shown.index.map(|index| index.envelope().clone());
        let index = index.filter(|index| there.as_ref() != Some(index));
        let announcement = Announcement {
            package: package.clone(),
            manifest: Some(shown.manifest.envelope().clone()),
            sums: shown.sums,
            torrent,
            index,
            replaces: shown.replaces,
            keys: keys(&shown.manifest, trust),
        };
        registry
            .put(announcement)
            .await
            .map_err(PublishError::Announce)
    }

    /// Puts the other versions of this home that the index names into a registry that is new to the package.
    async fn announce_others(
        self: &Arc<Self>,
        package: &PackageVersion,
        index: &TrustedIndex,
        registry: &Arc<dyn Registry>,
    ) -> Result<(), PublishError> {
        for version in index.index().versions.keys() {
            let other = PackageVersion::new(package.name.clone(), version.clone());
            if other == *package {
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

/// What this home shows, to be announced.
struct Shown {
    manifest: TrustedManifest,
    index: Option<TrustedIndex>,
    sums: Option<Bytes>,
    torrent: Option<Info>,
    replaces: Option<Digest>,
}

/// Takes the envelope that came back, which has to hold what was to be signed, or the one that is there already.
fn pick<T>(
    part: &Part<T>,
    came: Option<Envelope>,
    what: &'static str,
    signed: impl FnOnce(&T) -> Signed,
) -> Result<Envelope, PublishError> {
    match (part, came) {
        (Part::Unsigned(unsigned), Some(envelope))
            if *envelope.unverified() == signed(unsigned) =>
        {
            Ok(envelope)
        }
        (Part::Signed(bytes), None) => Ok(Envelope::parse(bytes)?),
        _ => Err(PublishError::OtherSigned(what)),
    }
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
fn keys(manifest: &TrustedManifest, trust: &TrustPolicy) -> Vec<(KeyId, Bytes)> {
    let rule = trust.rule_for(&manifest.package().name);
    let keys = rule.into_iter().flat_map(|rule| &rule.keys);
    keys.filter(|key| manifest.signers().contains(&key.id()))
        .map(|key| (key.id(), key.to_pem().into()))
        .collect()
}
