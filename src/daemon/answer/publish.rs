//! Publishing for a command that signs: prepared here, signed there, finished here.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::content::Sending;
use crate::daemon::Home;
use crate::manifest::{Envelope, PackageName, PackageVersion, Version};
use crate::publish::{About, Envelopes, JobId, Latest, Options, Progress, PublishError};
use crate::serve::control::{
    self, Done, Failure, FailureKind, Prepared, PublishOptions, Published, Replies,
};
use crate::source::http::check_base;

/// What a tracker's URL begins with: BEP 3, BEP 15.
const TRACKER_SCHEMES: [&str; 3] = ["http", "https", "udp"];

/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_millis(200);

impl Home {
    pub(super) async fn prepare(
        self: &Arc<Self>,
        options: PublishOptions,
        descriptors: Vec<OwnedFd>,
        replies: &Replies,
    ) -> Result<Prepared, Failure> {
        let directory = descriptors.into_iter().next();
        let directory = directory.ok_or_else(|| {
            Failure::new(FailureKind::Usage, "no directory came with the request")
        })?;
        let registry = self.registry_for(options.registry.as_deref())?;
        let wanted = publish_options(&options)?;
        let progress = Arc::new(Progress::new());
        let trust = self.updater.policy();
        let publisher = &self.publisher;
        let work = async {
            if options.dry_run {
                let done = publisher
                    .dry_run(directory, wanted, registry, trust, Arc::clone(&progress))
                    .await;
                let summary = done.map_err(|error| publish_failure(&error))?;
                return Ok(Prepared {
                    unchanged: !summary.new,
                    ..prepared(&summary)
                });
            }
            let done = publisher
                .prepare(directory, wanted, registry, trust, Arc::clone(&progress))
                .await;
            let job = done.map_err(|error| publish_failure(&error))?;
            let manifest = publisher.manifest(&job.job);
            let manifest = manifest.map_err(|error| publish_failure(&error))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(Prepared {
                job: Some(job.job.to_string()),
                catalog: manifest.catalog.cid().to_string(),
                tree: manifest.package.tree_name(),
                unchanged: job.manifest.is_none() && job.index.is_none(),
                manifest: job
                    .manifest
                    .as_ref()
                    .map(|manifest| text(manifest.canonical())),
                index: job.index.as_ref().map(|index| text(index.canonical())),
                ..prepared(&job.summary)
            })
        };
        let say = async {
            loop {
                tokio::time::sleep(SAY_EVERY).await;
                let now = progress.now();
                replies.progress(control::Progress {
                    step: now.step.word().to_owned(),
                    done: now.bytes_done,
                    total: now.bytes,
                    bytes: true,
                });
            }
        };
        tokio::select! {
            done = work => done,
            () = say => Err(Failure::failed("stopped")),
        }
    }

    pub(super) async fn finish(
        self: &Arc<Self>,
        job: &str,
        manifest: Option<&str>,
        index: Option<&str>,
    ) -> Result<Published, Failure> {
        let job = job_id(job)?;
        let parse = |text: &str| {
            Envelope::parse(text.as_bytes())
                .map_err(|error| Failure::new(FailureKind::Refused, &error).hint(error.hint()))
        };
        let envelopes = Envelopes {
            manifest: manifest.map(parse).transpose()?,
            index: index.map(parse).transpose()?,
        };
        let trust = self.updater.policy();
        let done = self
            .publisher
            .finish(&job, envelopes, trust, Arc::new(Progress::new()))
            .await;
        let outcome = done.map_err(|error| publish_failure(&error))?;
        // Seen in the mounts of this home at once, by the way that everything takes.
        self.read_registries().await;
        if let Some(seeding) = self.serving.seeding.load_full() {
            seeding.look_again();
        }
        Ok(Published {
            package: outcome.package.to_string(),
            manifest: outcome.manifest.to_string(),
            root: self
                .listing
                .find(&outcome.package.name, Some(&outcome.package.version))
                .map(|version| version.manifest().root.to_string())
                .unwrap_or_default(),
            registry: outcome.registry,
        })
    }

    /// Sends a version that waits to be signed, as a mirror has it.
    pub(super) async fn mirror_job(&self, job: &str, replies: &Replies) -> Result<Done, Failure> {
        let manifest = self.publisher.manifest(&job_id(job)?);
        let manifest = manifest.map_err(|error| publish_failure(&error))?;
        let (installer, made) = (Arc::clone(&self.installer), manifest.clone());
        let tree = tokio::task::spawn_blocking(move || installer.open_own(&made));
        let tree = tree.await.map_err(Failure::failed)?;
        let tree = tree.map_err(|error| Failure::failed(format!("the new catalog: {error}")))?;
        let sending = Sending {
            manifest: &manifest,
            tree: &Arc::new(tree),
            listed: None,
            top: 0,
            mirror: true,
        };
        self.send_tree(&sending, replies).await
    }

    pub(super) fn abandon(&self, job: &str) -> Result<(), Failure> {
        self.publisher.abandon(&job_id(job)?);
        Ok(())
    }

    /// Carries on what an earlier process had signed and could not announce.
    pub(in crate::daemon) async fn resume_publications(self: &Arc<Self>) {
        let home = Arc::clone(self);
        let open = move |place: &str| home.registry_for(Some(place)).ok();
        for resumed in self.publisher.resume(&open, self.updater.policy()).await {
            let package = resumed
                .package
                .map_or_else(|| "a publication".to_owned(), |package| package.to_string());
            match resumed.result {
                Ok(()) => {
                    tracing::info!(package, "a publication that was cut short is announced now")
                }
                Err(error) => {
                    tracing::warn!(package, %error, "a publication that was cut short is not announced")
                }
            }
        }
    }
}

fn job_id(text: &str) -> Result<JobId, Failure> {
    text.parse()
        .map_err(|error| Failure::new(FailureKind::Usage, error))
}

fn publish_options(options: &PublishOptions) -> Result<Options, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let name: PackageName = options.name.parse().map_err(|error| {
        usage(format!(
            "{:?} cannot be a package name: {error}",
            options.name
        ))
    })?;
    let version: Version = options.version.parse().map_err(|error| {
        usage(format!(
            "{:?} cannot be a version: {error}",
            options.version
        ))
    })?;
    let mut wanted = Options::new(PackageVersion::new(name, version));
    for word in &options.allow {
        wanted
            .allow
            .add(word)
            .map_err(|error| usage(error.to_string()))?;
    }
    wanted.rehash = options.rehash;
    wanted.preserve = options.preserve;
    wanted.mtime = options.mtime;
    wanted.latest = match options.latest {
        None => Latest::Highest,
        Some(true) => Latest::This,
        Some(false) => Latest::Keep,
    };
    for tracker in &options.trackers {
        let url = url::Url::parse(tracker).ok();
        if !url.is_some_and(|url| TRACKER_SCHEMES.contains(&url.scheme())) {
            return Err(usage(format!("{tracker:?} is no URL of a tracker"))
                .hint("trackers are http://, https:// or udp://"));
        }
    }
    wanted.hints.trackers = Some(options.trackers.clone()).filter(|all| !all.is_empty());
    wanted.seed = options.seed;
    for base in &options.http {
        check_base(base).map_err(|what| usage(format!("--http {base}: {what}")))?;
    }
    wanted.hints.http = Some(options.http.clone()).filter(|http| !http.is_empty());
    wanted.about = About {
        description: options.description.clone(),
        license: options.license.clone(),
        homepage: options.homepage.clone(),
        keywords: options.keywords.clone(),
        publisher: options.publisher.clone(),
        provenance: None,
    };
    Ok(wanted)
}

fn prepared(summary: &crate::publish::Summary) -> Prepared {
    let note =
        |name: &String| format!("{name} is an instruction to publish, not content: it is left out");
    Prepared {
        notes: summary.instructions.iter().map(note).collect(),
        id: summary.manifest.to_string(),
        root: summary.root.clone(),
        files: summary.files,
        directories: summary.directories,
        bytes: summary.bytes,
        unread: summary.unread,
        ..Prepared::default()
    }
}

fn publish_failure(error: &PublishError) -> Failure {
    let kind = match error {
        PublishError::Refused(_)
        | PublishError::NoTorrent(_)
        | PublishError::OtherTorrent(_)
        | PublishError::Exists { .. }
        | PublishError::Untrusted { .. }
        | PublishError::Seen(_) => FailureKind::Refused,
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
