//! Requests of the control socket, answered.

mod cache;
mod content;
mod diff;
mod look;
mod publish;
mod why;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::{Home, Target, target_failure};
use crate::catalog::{CatalogError, Row};
use crate::fetch::FetchError;
use crate::install::{InstallError, Listed, Tree};
use crate::manifest::PackageVersion;
use crate::serve::control::{Done, Failure, FailureKind, Replies, Request};

/// How long a reload waits for registries to be read again; it goes on behind.
const LOOK_AFTER_RELOAD: Duration = Duration::from_secs(5);

impl Home {
    /// Works on one request.
    pub(super) async fn answer(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        let home = self.shared()?;
        home.look_once(&request).await;
        match request {
            Request::Status => value(home.status()),
            Request::List { package, all } => home.list(package.as_deref(), all, replies).await,
            Request::Ls { target, recursive } => home.ls(&target, recursive, replies).await,
            Request::Read {
                target,
                offset,
                len,
            } => home.read(&target, offset, len, replies).await,
            Request::Fetch { target } => value(home.fetch(&target, replies).await?),
            Request::Mirror { target } => value(home.mirror(&target, replies).await?),
            Request::PublishMirror { job } => value(home.mirror_job(&job, replies).await?),
            Request::Inspect { target } => value(home.inspect(&target)?),
            Request::Diff { from, to } => value(home.diff(&from, &to, replies).await?),
            Request::Sums { target } => home.sums(&target, replies).await,
            Request::Verify { target } => value(home.verify(&target, replies).await?),
            Request::Why { target } => value(home.why(&target).await),
            Request::Warm { targets } => value(home.warm(&targets, replies).await?),
            Request::Pin { targets } => value(home.pin(&targets).await?),
            Request::Unpin { targets } => value(home.unpin(&targets).await?),
            Request::Evict { targets } => value(home.evict(&targets).await?),
            Request::PublishPrepare { options } => {
                value(home.prepare(*options, descriptors, replies).await?)
            }
            Request::PublishChange {
                name,
                version,
                registry,
                change,
            } => value(
                home.prepare_change(&name, &version, registry.as_deref(), change)
                    .await?,
            ),
            Request::PublishFinish {
                job,
                manifest,
                index,
            } => value(
                home.finish(&job, manifest.as_deref(), index.as_deref())
                    .await?,
            ),
            Request::PublishCancel { job } => {
                home.abandon(&job)?;
                Ok(Value::Null)
            }
            Request::PublishCommit { entry } => value(home.commit(&entry, replies).await?),
            Request::Mount {
                mountpoint,
                options,
            } => value(home.mount(&mountpoint, &options).await?),
            Request::Unmount { mountpoint } => {
                home.unmount(&mountpoint).await.map(|()| Value::Null)
            }
            Request::RegistryList => {
                for item in home.registry_items() {
                    replies.item(&item).await?;
                }
                Ok(Value::Null)
            }
            Request::RegistryAdd { place } => value(home.add_registry(&place).await?),
            Request::RegistryRemove { place } => home.remove_registry(&place).map(|()| Value::Null),
            Request::RegistryUpdate => {
                home.look().await?;
                value(Done::default())
            }
            Request::Reload => {
                home.reload().await?;
                // Whoever changed the trust policy looks into the mount next.
                let _ = tokio::time::timeout(LOOK_AFTER_RELOAD, home.read_registries()).await;
                Ok(Value::Null)
            }
            Request::Stop => {
                home.stop.cancel();
                Ok(Value::Null)
            }
        }
    }

    /// Without a daemon nobody follows the registries: what needs the listing reads them first.
    async fn look_once(self: &Arc<Self>, request: &Request) {
        let own = matches!(
            request,
            Request::RegistryAdd { .. }
                | Request::RegistryRemove { .. }
                | Request::RegistryList
                | Request::Stop
                | Request::Reload
        );
        if !own
            && !self.serving.is_running()
            && !self.looked.swap(true, std::sync::atomic::Ordering::Relaxed)
        {
            self.read_registries().await;
        }
    }

    /// Reads every registry of this home once, and lists what the trust policy lets through.
    ///
    /// # Errors
    /// [`Failure`] that names the registries which could not be read; what the others hold is listed all the same.
    pub async fn look(self: &Arc<Self>) -> Result<(), Failure> {
        self.read_registries().await;
        let failed: Vec<String> = self
            .registry_items()
            .into_iter()
            .filter_map(|item| Some(format!("{}: {}", item.place, item.error?)))
            .collect();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Failure::new(FailureKind::NoSource, failed.join("; ")))
        }
    }

    /// Finds what a target means.
    fn target(&self, text: &str) -> Result<Target, Failure> {
        let mounts = self.mounts.points();
        let mounts: Vec<&Path> = mounts.iter().map(AsRef::as_ref).collect();
        let known = |name: &crate::manifest::PackageName| !self.listing.versions(name).is_empty();
        Target::parse(text, &mounts, known).map_err(|error| target_failure(&error))
    }

    fn find(&self, text: &str) -> Result<(Target, Arc<Listed>), Failure> {
        let target = self.target(text)?;
        let version = target
            .find(&self.listing)
            .map_err(|error| self.not_listed(&target, &error))?;
        Ok((target, version))
    }

    /// A version that was refused is no mere absence: the rule that refused it is the answer.
    fn not_listed(&self, target: &Target, error: &super::TargetError) -> Failure {
        let refusals = self.listing.refusals();
        let refused = refusals.iter().find(|(name, version, _)| {
            *name == target.name
                && (version.is_none() || target.version.is_none() || *version == target.version)
        });
        match refused {
            Some((name, version, refusal)) => {
                let at = version
                    .as_ref()
                    .map(|version| format!("@{version}"))
                    .unwrap_or_default();
                let failure = Failure::new(
                    FailureKind::Refused,
                    format!("{name}{at} is refused: {}", refusal.reason),
                );
                match &refusal.hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            }
            None => target_failure(error),
        }
    }

    /// Installs a version.
    async fn tree(&self, version: &Arc<Listed>) -> Result<Arc<Tree>, Failure> {
        let installed = self.installer.install(version).await;
        installed.map_err(|error| install_failure(&error))
    }

    /// Installs a version, and finds the row that a target names in it.
    async fn row(
        &self,
        target: &Target,
        version: &Arc<Listed>,
    ) -> Result<(Arc<Tree>, u32, Row), Failure> {
        let tree = self.tree(version).await?;
        let found = tree
            .find(&target.path)
            .map_err(|error| catalog_failure(version, &error))?;
        let (number, row) = found.ok_or_else(|| {
            let path = String::from_utf8_lossy(&target.path).into_owned();
            Failure::new(
                FailureKind::NotFound,
                format!("{} has no {path:?}", version.package()),
            )
        })?;
        Ok((tree, number, row))
    }
}

fn value(result: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(result).map_err(Failure::failed)
}

fn install_failure(error: &InstallError) -> Failure {
    match error {
        InstallError::Fetch { source, .. } => Failure {
            message: error.to_string(),
            ..fetch_failure(source)
        },
        InstallError::Catalog { .. } => Failure::new(FailureKind::Refused, error)
            .hint("the publisher signed a broken catalog: tell them"),
        InstallError::Stale { .. } => Failure::new(FailureKind::Refused, error)
            .hint("update the registry, or ask the publisher"),
        InstallError::NotByHand { package } => Failure::failed(error).hint(format!(
            "`manifs ls {package}` or `manifs warm {package}` installs it"
        )),
        InstallError::Store { .. } => {
            Failure::failed(error).hint("raise [store] quota, or free space on its disk")
        }
        InstallError::Stopped => Failure::failed(error),
    }
}

fn fetch_failure(error: &FetchError) -> Failure {
    match error {
        FetchError::Refused { .. } => Failure::new(FailureKind::NoSource, error)
            .hint("[net] allow names hosts that may be dialled though they are not public"),
        FetchError::NoSource { .. } => Failure::new(FailureKind::NoSource, error)
            .hint("add a source: `manifs registry add URL` of a daemon that shares it, or [sources] gateways or http"),
        FetchError::NoHonest { .. } | FetchError::Deadline { .. } | FetchError::Closed => {
            Failure::new(FailureKind::NoSource, error)
        }
    }
}

fn catalog_failure(version: &Listed, error: &CatalogError) -> Failure {
    catalog_failure_of(version.package(), error)
}

fn catalog_failure_of(package: &PackageVersion, error: &CatalogError) -> Failure {
    Failure::failed(format!("the catalog of {package}: {error}"))
}
