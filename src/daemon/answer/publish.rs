//! Publishing for a command that signs: prepared here, signed there, finished here.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::content::Sending;
use crate::daemon::{Home, package_version};
use crate::manifest::Envelope;
use crate::publish::{
    self, About, Change, Envelopes, Finished, JobId, Latest, Options, Progress, PublishError,
    Update,
};
use crate::serve::control::{
    self, Done, Failure, FailureKind, IndexChange, Prepared, PublishOptions, Published, Replies,
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
        let came = descriptors.into_iter().next();
        let registry = self.registry_for(options.registry.as_deref())?;
        let wanted = publish_options(&options)?;
        let progress = Arc::new(Progress::new());
        let trust = self.updater.policy();
        let publisher = &self.publisher;
        let work = async {
            // Held until everything of it is stored.
            let mut unpacked = None;
            let mut directory = None;
            let bare = options.update.as_ref().is_some_and(|update| update.bare);
            let made = match came {
                _ if bare => Some(publisher.empty().await),
                Some(came) if options.tar => {
                    Some(publisher.unpack(came, Arc::clone(&progress)).await)
                }
                Some(came) => {
                    directory = Some(came);
                    None
                }
                None => None,
            };
            if let Some(made) = made {
                let made = made.map_err(|error| publish_failure(&error))?;
                let opened = unpacked.insert(made).directory();
                directory = Some(opened.map_err(Failure::failed)?);
            }
            let directory = directory.ok_or_else(|| {
                Failure::new(FailureKind::Usage, "no directory came with the request")
            })?;
            if options.dry_run {
                let done = publisher
                    .dry_run(directory, wanted, registry, trust, Arc::clone(&progress))
                    .await;
                let made = done.map_err(|error| publish_failure(&error))?;
                let mut told = of_summary(&made.summary);
                told.unchanged = !made.summary.new;
                let name = made.summary.package.name.clone();
                match self.preview(&name, made).await {
                    Ok(diff) => told.diff = diff,
                    Err(failure) => told.notes.push(format!(
                        "not compared with the last version: {}",
                        failure.message
                    )),
                }
                return Ok(told);
            }
            let done = publisher
                .prepare(directory, wanted, registry, trust, Arc::clone(&progress))
                .await;
            let job = done.map_err(|error| publish_failure(&error))?;
            prepared(publisher, &job)
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

    /// Returns the release index that says something else of a version that exists.
    pub(super) async fn prepare_change(
        self: &Arc<Self>,
        name: &str,
        version: &str,
        registry: Option<&str>,
        change: IndexChange,
    ) -> Result<Prepared, Failure> {
        let package = package_version(name, version)?;
        let registry = self.registry_for(registry)?;
        let change = match change {
            IndexChange::Withdraw(reason) => Change::Withdraw(reason),
            IndexChange::Latest => Change::Latest,
        };
        let trust = self.updater.policy();
        let done = self
            .publisher
            .prepare_change(package, change, registry, trust)
            .await;
        let job = done.map_err(|error| publish_failure(&error))?;
        prepared(&self.publisher, &job)
    }

    pub(super) async fn finish(
        self: &Arc<Self>,
        job: &str,
        manifest: Option<&str>,
        index: Option<&str>,
    ) -> Result<control::Finished, Failure> {
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
        let outcome = match done.map_err(|error| publish_failure(&error))? {
            Finished::Done(outcome) => outcome,
            Finished::Again(job) => {
                let again = prepared(&self.publisher, &job)?;
                return Ok(control::Finished::Again(Box::new(again)));
            }
        };
        self.show_publication().await;
        Ok(control::Finished::Done(Published {
            latest: self
                .listing
                .find(&outcome.package.name, None)
                .map(|version| version.package().version.to_string()),
            package: outcome.package.to_string(),
            manifest: outcome.manifest.to_string(),
            root: self
                .listing
                .find(&outcome.package.name, Some(&outcome.package.version))
                .map(|version| version.manifest().root.to_string())
                .unwrap_or_default(),
            registry: outcome.registry,
        }))
    }

    /// Has what was published seen in the mounts of this home at once, by the way that everything takes.
    pub(in crate::daemon) async fn show_publication(self: &Arc<Self>) {
        self.read_registries().await;
        if let Some(seeding) = self.serving.seeding.load_full() {
            seeding.look_again();
        }
    }

    /// Sends a version that waits to be signed, as a mirror has it.
    pub(super) async fn mirror_job(&self, job: &str, replies: &Replies) -> Result<Done, Failure> {
        self.send_job(&job_id(job)?, replies).await
    }

    /// As [`Home::mirror_job`], of a job of this process.
    pub(in crate::daemon) async fn send_job(
        &self,
        job: &JobId,
        replies: &Replies,
    ) -> Result<Done, Failure> {
        let hold = self.publisher.hold(job);
        let _hold = hold.map_err(|error| publish_failure(&error))?;
        let manifest = self.publisher.manifest(job);
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
}

fn job_id(text: &str) -> Result<JobId, Failure> {
    text.parse()
        .map_err(|error| Failure::new(FailureKind::Usage, error))
}

fn publish_options(options: &PublishOptions) -> Result<Options, Failure> {
    let usage = |message: String| Failure::new(FailureKind::Usage, message);
    let mut wanted = Options::new(package_version(&options.name, &options.version)?);
    for word in &options.allow {
        wanted
            .allow
            .add(word)
            .map_err(|error| usage(error.to_string()))?;
    }
    wanted.rehash = options.rehash;
    wanted.passing = options.tar;
    if let Some(update) = &options.update {
        let version = update.version.as_deref().map(|text| {
            let parsed = text.parse::<crate::manifest::Version>();
            parsed.map_err(|error| usage(format!("{text:?} cannot be a version: {error}")))
        });
        wanted.update = Some(Update {
            version: version.transpose()?,
            remove: update.remove.clone(),
            bare: update.bare,
        });
    }
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
    for base in &options.gateways {
        check_base(base).map_err(|what| usage(format!("--gateway {base}: {what}")))?;
    }
    wanted.hints.gateways = Some(options.gateways.clone()).filter(|all| !all.is_empty());
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

/// Returns what a command is told of a job that waits for its signatures.
fn prepared(
    publisher: &Arc<publish::Publisher>,
    job: &publish::Prepared,
) -> Result<Prepared, Failure> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let manifest = job.manifest.as_ref();
    let index = job.index.as_ref();
    let mut told = Prepared {
        id: job.id.to_string(),
        ..Prepared::default()
    };
    if let Some(summary) = &job.summary {
        let whole = publisher.manifest(&job.job);
        let whole = whole.map_err(|error| publish_failure(&error))?;
        told = of_summary(summary);
        told.catalog = whole.catalog.cid().to_string();
        told.tree = whole.package.tree_name();
    }
    Ok(Prepared {
        job: Some(job.job.to_string()),
        unchanged: manifest.is_none() && index.is_none(),
        manifest: manifest.map(|manifest| text(manifest.canonical())),
        index: index.map(|index| text(index.canonical())),
        ..told
    })
}

fn of_summary(summary: &publish::Summary) -> Prepared {
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
        | PublishError::Split { .. }
        | PublishError::Withdrawn { .. }
        | PublishError::Untrusted { .. }
        | PublishError::Seen(_) => FailureKind::Refused,
        PublishError::NoPackage(_)
        | PublishError::NoVersion(_)
        | PublishError::NothingBeneath(_)
        | PublishError::NothingThere { .. } => FailureKind::NotFound,
        PublishError::Reason(_) => FailureKind::Usage,
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
