//! The one way in: registry, trust policy, listing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::listing::PackageUpdate;
use super::{Hints, Listed, Listing, Refusal};
use crate::manifest::{
    Envelope, EnvelopeError, PackageName, PackageVersion, Signed, Timestamp, TrustError,
    TrustPolicy, TrustedIndex,
};
use crate::registry::{Directory, Registry, RegistryError};
use crate::state::{SeenError, SlotsError, State, StateError};

/// Packages whose envelopes are read before the listing is changed once, and envelopes that are written down at once.
const BATCH: usize = 64;

/// Why a package could not be brought up to date; what was listed stays.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What was seen could not be written down.
    #[error(transparent)]
    State(#[from] StateError),
    /// No slot could be given to a version.
    #[error(transparent)]
    Slots(#[from] SlotsError),
}

/// Carries envelopes from registries through the trust policy into the listing.
pub struct Updater {
    listing: Arc<Listing>,
    state: Arc<State>,
    policy: ArcSwap<TrustPolicy>,
    /// One update at a time: two registries may offer one package.
    turn: tokio::sync::Mutex<()>,
}

impl Updater {
    /// Makes an updater; nothing is listed until it is given a registry.
    pub fn new(listing: Arc<Listing>, state: Arc<State>, policy: TrustPolicy) -> Updater {
        Updater {
            listing,
            state,
            policy: ArcSwap::from_pointee(policy),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Returns the trust policy in force.
    pub fn policy(&self) -> Arc<TrustPolicy> {
        self.policy.load_full()
    }

    /// Puts another trust policy in force; [`Updater::restore`] then judges what is listed by it.
    pub fn set_policy(&self, policy: TrustPolicy) {
        self.policy.store(Arc::new(policy));
    }

    /// Lists everything that `registry` offers and the policy trusts.
    ///
    /// # Errors
    /// [`UpdateError`] when its names cannot be read; a single package that fails is logged, and stays as it was.
    pub async fn update(&self, registry: &dyn Registry) -> Result<(), UpdateError> {
        let names: Vec<PackageName> = registry.names().await?;
        let names: Vec<_> = names
            .into_iter()
            .filter(|name| self.policy().rule_for(name).is_some())
            .collect();
        for batch in names.chunks(BATCH) {
            self.update_some(registry, batch).await?;
        }
        Ok(())
    }

    /// Lists what `registry` offers of some packages.
    ///
    /// # Errors
    /// [`UpdateError::State`]; what a registry does wrong with one package is logged, and the package stays as it was.
    pub async fn update_some(
        &self,
        registry: &dyn Registry,
        names: &[PackageName],
    ) -> Result<(), UpdateError> {
        let _turn = self.turn.lock().await;
        let mut updates = Vec::new();
        for name in names {
            match self.judge(registry, name).await {
                Ok(update) => updates.extend(update),
                Err(UpdateError::Registry(error)) => {
                    tracing::warn!(package = %name, %error, "not updated")
                }
                Err(error) => return Err(error),
            }
        }
        if !updates.is_empty() {
            self.listing.apply(updates);
        }
        Ok(())
    }

    /// Lists again, by the policy in force, what was listed before: a registry that forgets changes nothing.
    ///
    /// # Errors
    /// [`UpdateError`]
    pub async fn restore(&self) -> Result<(), UpdateError> {
        let kept = Directory::new(self.state.listed().dir());
        let mut names: BTreeSet<PackageName> = kept.names().await?.into_iter().collect();
        names.extend(self.listing.all().into_iter().map(|(name, ..)| name));
        let names: Vec<_> = names.into_iter().collect();
        for batch in names.chunks(BATCH) {
            self.update_some(&kept, batch).await?;
        }
        Ok(())
    }

    /// Judges one package; `None` when nothing about it changed.
    async fn judge(
        &self,
        registry: &dyn Registry,
        name: &PackageName,
    ) -> Result<Option<PackageUpdate>, UpdateError> {
        let policy = self.policy();
        let mut update = PackageUpdate {
            name: name.clone(),
            versions: BTreeMap::new(),
            latest: None,
            refusals: BTreeMap::new(),
            keep: Vec::new(),
        };
        if policy.rule_for(name).is_none() {
            return Ok(Some(update));
        }
        // What is listed stays until an index withdraws it: a registry that lacks a version changes nothing.
        let before = self.listing.versions(name);
        for listed in &before {
            // Judged again, since the policy may be another one than when it was listed.
            if let Some(kept) = self.kept_manifest(listed.package())? {
                self.admit(&policy, listed.package(), &kept, Some(listed), &mut update)?;
            }
        }
        let index = match registry.index(name).await? {
            None => self.kept_index(name)?.map(|bytes| (bytes, false)),
            Some(bytes) => Some((bytes, true)),
        };
        let trusted = match index {
            None => None,
            Some((bytes, fresh)) => self.index(&policy, name, &bytes, fresh, &mut update)?,
        };
        match &trusted {
            Some(index) => self.by_index(&policy, registry, index, &mut update).await?,
            None if update.refusals.contains_key(&None) => {}
            None => {
                for version in registry.versions(name).await? {
                    let package = PackageVersion::new(name.clone(), version);
                    self.fetch(&policy, registry, &package, None, &mut update)
                        .await?;
                }
            }
        }
        self.keep_now(&mut update)?;
        Ok(Some(update))
    }

    /// Lists what a trusted index names, and takes away what it withdraws.
    async fn by_index(
        &self,
        policy: &TrustPolicy,
        registry: &dyn Registry,
        trusted: &TrustedIndex,
        update: &mut PackageUpdate,
    ) -> Result<(), UpdateError> {
        let index = trusted.index();
        for version in index
            .versions
            .keys()
            .filter(|version| !index.withdrawn.contains_key(version))
        {
            let package = PackageVersion::new(index.name.clone(), version.clone());
            self.fetch(policy, registry, &package, Some(trusted), update)
                .await?;
        }
        for (version, reason) in &index.withdrawn {
            update.versions.remove(version);
            let package = PackageVersion::new(index.name.clone(), version.clone());
            let withdrawn = TrustError::Withdrawn {
                package,
                reason: reason.clone(),
            };
            update
                .refusals
                .insert(Some(version.clone()), withdrawn.into());
        }
        let stale = trusted.stale_at(Timestamp::now()).is_some();
        let hints = Arc::new(Hints::from(index.fields()));
        for listed in update.versions.values() {
            listed.set_stale(stale);
            listed.set_hints(Arc::clone(&hints));
        }
        update.latest = index
            .latest
            .clone()
            .filter(|latest| update.versions.contains_key(latest));
        Ok(())
    }

    /// Judges an index; a refused one leaves what the last good one said.
    fn index(
        &self,
        policy: &TrustPolicy,
        name: &PackageName,
        bytes: &Bytes,
        fresh: bool,
        update: &mut PackageUpdate,
    ) -> Result<Option<TrustedIndex>, UpdateError> {
        match self.trust_index(policy, name, bytes) {
            Ok((envelope, trusted)) => {
                if fresh {
                    self.keep(envelope, update)?;
                }
                Ok(Some(trusted))
            }
            Err(refusal) => {
                tracing::debug!(package = %name, reason = refusal.reason, "index refused");
                update.refusals.insert(None, refusal);
                if !fresh {
                    return Ok(None);
                }
                // The last good index still says what is withdrawn and which is latest.
                let Some(kept) = self.kept_index(name)? else {
                    return Ok(None);
                };
                Ok(self
                    .trust_index(policy, name, &kept)
                    .ok()
                    .map(|(_, trusted)| trusted))
            }
        }
    }

    fn trust_index(
        &self,
        policy: &TrustPolicy,
        name: &PackageName,
        bytes: &Bytes,
    ) -> Result<(Envelope, TrustedIndex), Refusal> {
        let envelope = Envelope::parse(bytes)?;
        let seen = self.state.seen();
        let trusted = policy.verify_index(&envelope, name, seen.index(name)?)?;
        seen.admit_index(&trusted)?;
        Ok((envelope, trusted))
    }

    fn kept_index(&self, name: &PackageName) -> Result<Option<Bytes>, StateError> {
        Ok(self.state.listed().index(name)?.map(Bytes::from))
    }

    fn kept_manifest(&self, package: &PackageVersion) -> Result<Option<Bytes>, StateError> {
        Ok(self.state.listed().manifest(package)?.map(Bytes::from))
    }

    /// Keeps an envelope for the next start, if it is not kept already: many are written together.
    fn keep(&self, envelope: Envelope, update: &mut PackageUpdate) -> Result<(), StateError> {
        let kept = match envelope.unverified() {
            Signed::Manifest(manifest) => self.kept_manifest(&manifest.package)?,
            Signed::Index(index) => self.kept_index(&index.name)?,
        };
        if kept.as_ref() == Some(envelope.bytes()) {
            return Ok(());
        }
        update.keep.push(envelope);
        if update.keep.len() < BATCH {
            return Ok(());
        }
        self.keep_now(update)
    }

    fn keep_now(&self, update: &mut PackageUpdate) -> Result<(), StateError> {
        self.state.listed().put_all(&update.keep)?;
        update.keep.clear();
        Ok(())
    }

    /// Gets one version's envelope, from what was kept or from the registry, and admits it.
    async fn fetch(
        &self,
        policy: &TrustPolicy,
        registry: &dyn Registry,
        package: &PackageVersion,
        index: Option<&TrustedIndex>,
        update: &mut PackageUpdate,
    ) -> Result<(), UpdateError> {
        if !update.versions.contains_key(&package.version) {
            let bytes = match self.kept_manifest(package)? {
                Some(bytes) => Some(bytes),
                None => registry.manifest(package).await?,
            };
            match bytes {
                Some(bytes) => self.admit(policy, package, &bytes, None, update)?,
                None => {
                    let refusal = Refusal {
                        reason: "the registry names it, but does not have its manifest".into(),
                        hint: Some("ask the publisher, or add another registry".into()),
                    };
                    update
                        .refusals
                        .insert(Some(package.version.clone()), refusal);
                }
            }
        }
        let listed = update.versions.get(&package.version);
        if let Some(error) = listed
            .zip(index)
            .and_then(|(listed, index)| index.check(listed.trusted()).err())
        {
            update.versions.remove(&package.version);
            update
                .refusals
                .insert(Some(package.version.clone()), error.into());
        }
        Ok(())
    }

    /// Passes one envelope through the trust policy; a refusal is kept for `why`.
    fn admit(
        &self,
        policy: &TrustPolicy,
        package: &PackageVersion,
        bytes: &Bytes,
        listed: Option<&Arc<Listed>>,
        update: &mut PackageUpdate,
    ) -> Result<(), UpdateError> {
        let judged = Envelope::parse(bytes)
            .map_err(Refusal::from)
            .and_then(|envelope| {
                let trusted = policy.verify_manifest(&envelope, package)?;
                self.state.seen().admit_manifest(&trusted)?;
                Ok((envelope, trusted))
            });
        match judged {
            Ok((envelope, trusted)) => {
                let same = listed.filter(|listed| {
                    listed.manifest_id() == trusted.id()
                        && listed.trusted().links() == trusted.links()
                });
                let listed = match same {
                    Some(listed) => Arc::clone(listed),
                    None => {
                        self.keep(envelope, update)?;
                        let slot = self.state.slots().assign(package, trusted.id())?;
                        Listed::new(trusted, slot)
                    }
                };
                update.versions.insert(package.version.clone(), listed);
            }
            Err(refusal) => {
                update
                    .refusals
                    .insert(Some(package.version.clone()), refusal);
            }
        }
        Ok(())
    }
}

impl From<EnvelopeError> for Refusal {
    fn from(error: EnvelopeError) -> Self {
        Refusal {
            reason: error.to_string(),
            hint: Some(error.hint().to_owned()),
        }
    }
}

impl From<TrustError> for Refusal {
    fn from(error: TrustError) -> Self {
        Refusal {
            reason: error.to_string(),
            hint: Some(error.hint()),
        }
    }
}

impl From<SeenError> for Refusal {
    fn from(error: SeenError) -> Self {
        Refusal {
            reason: error.to_string(),
            hint: error.hint(),
        }
    }
}

impl From<StateError> for Refusal {
    fn from(error: StateError) -> Self {
        Refusal {
            reason: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }
}
