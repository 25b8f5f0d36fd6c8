//! One entry becomes a version: the way of `publish` by hand, with the key of the configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::settings::Settings;
use super::{Dropping, Waiting};
use crate::daemon::Home;
use crate::daemon::mirror::check_mirror;
use crate::manifest::{PackageName, PackageVersion, TrustPolicy, Version};
use crate::publish::drop::{
    After, Bump, Cleared, DropDirectory, DropError, Ending, Entry, Fingerprint, Instructions,
    Inventory, Key, NoNext, Report, Standing, Wanted, Word, refusal_lines,
};
use crate::publish::{Finished, Options, Prepared, Progress, PublishError, Reason, Step, Summary};
use crate::registry::{Registry, RegistryError};
use crate::serve::control::{Committed, Failure, FailureKind};
use crate::store::StoreError;

/// How often a status says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// How often a version is chosen anew because somebody took it meanwhile.
const CHOICES_MAX: u32 = 5;

/// What to do about a tree that changes while it is read.
const UNTIL_QUIET: &str = "wait until nothing writes to it";

/// Why an entry is no version now.
enum Stop {
    /// Somebody has to do something; lines for people.
    Refused(Vec<String>),
    /// Somebody is at work in it; the same.
    Changed(Vec<String>),
    /// It passes by itself; a sentence.
    Wait(String),
    /// The daemon ends.
    Over,
}

/// An entry that was opened, with what its publisher says.
struct Opened {
    entry: Arc<Entry>,
    inventory: Inventory,
    wanted: Wanted,
    instructions: Instructions,
    /// What is wrong with it already.
    refused: Vec<String>,
}

/// An entry that is a version.
struct Success {
    committed: Committed,
    /// Where it lies in mirrors.
    mirrors: Vec<PathBuf>,
    notes: Vec<String>,
}

/// Publishes an entry, says how it went, also to those who wait for it, and clears it away.
pub(super) async fn work(
    home: Arc<Home>,
    dropping: Arc<Dropping>,
    key: Key,
    waiting: Vec<Waiting>,
) -> Ending {
    let settings = dropping.settings.load_full();
    dropping
        .tell(&key, Report::new(Word::Publishing, Vec::new()))
        .await;
    let mut fingerprint = None;
    let outcome = attempt(&home, &dropping, &settings, &key, &mut fingerprint).await;
    // Who committed it by word is told that it was not complete; what was only quiet was taken for complete too early.
    let by_quiet = dropping.board.lock().is_by_quiet(&key);
    match outcome {
        Ok((success, opened)) => {
            let package = success.committed.package.clone();
            tracing::info!(entry = %key, package, unchanged = success.committed.unchanged, "published from the drop directory");
            let answer = success.committed.clone();
            let ending = done(&dropping, &settings, success, opened).await;
            Waiting::answer(waiting, &Ok(answer));
            ending
        }
        Err(Stop::Changed(lines)) if by_quiet => {
            tracing::info!(entry = %key, reasons = sentence(&lines), "arrives still");
            let mut report = dropping.arriving();
            report.lines.splice(0..0, lines);
            dropping.tell(&key, report).await;
            Ending::Again
        }
        Err(Stop::Refused(lines) | Stop::Changed(lines)) => {
            tracing::warn!(entry = %key, reasons = sentence(&lines), "refused in the drop directory");
            let failure = refused(&key, &lines);
            if let Some(fingerprint) = fingerprint {
                // Before it is told: the next process does not try again what somebody has seen to be refused.
                dropping.remember(&key, fingerprint, None).await;
            }
            dropping.tell(&key, refused_report(&settings, lines)).await;
            Waiting::answer(waiting, &Err(failure));
            Ending::Done { fingerprint }
        }
        Err(Stop::Wait(why)) => {
            // Once, not with each try.
            if dropping
                .tell(&key, Report::new(Word::Waiting, vec![why.clone()]))
                .await
            {
                tracing::warn!(entry = %key, why, "the drop directory waits");
            }
            let failure = Failure::failed(format!("{key} is not published yet: {why}"));
            let hint = "the daemon goes on trying, and says in the status file how it went";
            Waiting::answer(waiting, &Err(failure.hint(hint)));
            Ending::Wait
        }
        Err(Stop::Over) => Ending::Wait,
    }
}

/// Puts the lines of a status into one.
fn sentence(lines: &[String]) -> String {
    let lines = lines
        .iter()
        .map(|line| line.trim_start_matches("- ").trim());
    lines.collect::<Vec<_>>().join("; ")
}

fn refused(key: &Key, lines: &[String]) -> Failure {
    let message = format!("{key} is refused: {}", sentence(lines));
    Failure::new(FailureKind::Refused, message).hint("change it, and commit it again")
}

fn refused_report(settings: &Settings, mut lines: Vec<String>) -> Report {
    lines.push(String::new());
    lines.push("Nothing was published, and the directory is as it was.".to_owned());
    let settled = if settings.settle.is_zero() {
        String::new()
    } else {
        format!(
            "; after a change it is also tried when it was quiet for {}",
            crate::manifest::time::format_duration(settings.settle)
        )
    };
    lines.push(format!(
        "It is tried again when its .publish is touched, with `manifs publish --commit`, or when it is renamed into place{settled}."
    ));
    Report::new(Word::Refused, lines)
}

/// Runs what may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Result<T, Stop> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(Stop::Over))
}

async fn attempt(
    home: &Arc<Home>,
    dropping: &Arc<Dropping>,
    settings: &Arc<Settings>,
    key: &Key,
    fingerprint: &mut Option<Fingerprint>,
) -> Result<(Success, Opened), Stop> {
    let place = Arc::clone(&dropping.place);
    let (known, own) = (Arc::clone(settings), key.clone());
    let opened = blocking(move || open(&place, &known, &own)).await?;
    *fingerprint = Some(opened.inventory.fingerprint());
    let registry = home
        .registry_for(settings.registry.as_ref().and_then(|place| place.to_str()))
        .map_err(|failure| Stop::Refused(vec![failure.message]))?;
    let progress = dropping.progress(key);
    let publishing = publish(home, dropping, settings, &opened, registry, &progress);
    let say = async {
        let mut every = tokio::time::interval(SAY_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            every.tick().await;
            dropping
                .tell(
                    key,
                    Report::new(Word::Publishing, vec![progress_line(&progress)]),
                )
                .await;
        }
    };
    let success = tokio::select! {
        done = publishing => done?,
        () = say => return Err(Stop::Over),
        () = home.stop.cancelled() => return Err(Stop::Over),
    };
    Ok((success, opened))
}

/// Says how far a publish is.
pub(super) fn progress_line(progress: &Progress) -> String {
    let now = progress.now();
    let percent = |done: u64| {
        let done = u128::from(done.min(now.bytes)) * 100;
        done.checked_div(now.bytes.into()).unwrap_or(0)
    };
    let word = now.step.word();
    if now.step == Step::Provide {
        return format!("{word}: {} %", percent(now.bytes_provided));
    }
    format!(
        "{word}: {} %, {} of {} files",
        percent(now.bytes_done),
        now.files_done,
        now.files
    )
}

/// Opens an entry, and reads what its publisher says.
fn open(place: &DropDirectory, settings: &Settings, key: &Key) -> Result<Opened, Stop> {
    let said = |what: &dyn std::fmt::Display, hint: &str| {
        vec![format!("- {what}"), format!("  what to do: {hint}")]
    };
    let wanted = key
        .wanted()
        .map_err(|trouble| Stop::Refused(said(&trouble, trouble.hint())))?;
    let entry = place.entry(key).map_err(|error| match error {
        DropError::Gone | DropError::Directory { .. } | DropError::Group(_) => {
            Stop::Wait(error.to_string())
        }
        error => Stop::Refused(said(&error, &error.hint())),
    })?;
    let mut refused = Vec::new();
    if !settings.allows(&wanted.name) {
        refused.extend(said(
            &format!(
                "this daemon does not sign {}: [publish] names has {}",
                wanted.name,
                settings.patterns()
            ),
            "choose another name, or ask who runs the daemon",
        ));
    }
    let instructions = entry.instructions(&wanted).unwrap_or_else(|errors| {
        for error in errors {
            refused.extend(said(&format!("manifs.toml: {error}"), error.hint()));
        }
        Instructions::default()
    });
    let inventory = place.inventory(&entry).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Stop::Changed(said(&"it changed while it was looked at", UNTIL_QUIET))
        } else {
            Stop::Wait(error.to_string())
        }
    })?;
    Ok(Opened {
        entry: Arc::new(entry),
        inventory,
        wanted,
        instructions,
        refused,
    })
}

/// Refuses to sign for a tree that is not what it was when the publish began: something may have come into a directory
/// that was read before.
async fn check_unchanged(opened: &Opened) -> Result<(), Stop> {
    let (entry, before) = (Arc::clone(&opened.entry), opened.inventory.fingerprint());
    let changed = || {
        Stop::Changed(vec![
            "- it changed while it was read".to_owned(),
            format!("  what to do: {UNTIL_QUIET}"),
        ])
    };
    blocking(move || match entry.fingerprint() {
        Ok(now) if now == before => Ok(()),
        Ok(_) => Err(changed()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(changed()),
        Err(error) => Err(Stop::Wait(error.to_string())),
    })
    .await
}

async fn publish(
    home: &Arc<Home>,
    dropping: &Arc<Dropping>,
    settings: &Settings,
    opened: &Opened,
    registry: Arc<dyn Registry>,
    progress: &Arc<Progress>,
) -> Result<Success, Stop> {
    let mut named = opened
        .wanted
        .version
        .clone()
        .or(opened.instructions.version.clone());
    let choose = named.is_none();
    // What an earlier try had begun to sign for this very tree: it may be there since.
    let begun = dropping.becomes(opened.entry.key(), opened.inventory.fingerprint());
    if choose {
        named.clone_from(&begun);
    }
    let mut taken: Option<PackageVersion> = None;
    let name = &opened.wanted.name;
    let bump = opened.instructions.bump;
    if opened.refused.is_empty() {
        for directory in &settings.mirrors {
            let checked = check_mirror(directory).await;
            checked.map_err(|failure| mirror_stop(directory, &failure))?;
        }
    }
    for _ in 0..CHOICES_MAX {
        let trust = home.updater.policy();
        let (version, standing) = match &named {
            Some(version) => (version.clone(), None),
            None => {
                let standing = standing(home, name, taken.take(), bump, &registry, &trust).await;
                let standing = standing.map_err(|error| stop(&error, opened))?;
                let next = standing.next(bump);
                (
                    next.map_err(|error| no_next(&error, opened))?,
                    Some(standing),
                )
            }
        };
        let options = options(
            settings,
            opened,
            PackageVersion::new(name.clone(), version.clone()),
        );
        let directory = opened
            .entry
            .directory()
            .map_err(|error| Stop::Wait(error.to_string()))?;
        if !opened.refused.is_empty() {
            // For everything that is wrong with the tree, too.
            let looked = home
                .publisher
                .dry_run(directory, options, registry, trust, Arc::clone(progress))
                .await;
            let more = looked.err().map(|error| stop(&error, opened));
            return Err(match more {
                Some(Stop::Refused(lines)) => Stop::Refused(lines),
                _ => Stop::Refused(opened.refused.clone()),
            });
        }
        let prepared = home
            .publisher
            .prepare(
                directory,
                options,
                Arc::clone(&registry),
                Arc::clone(&trust),
                Arc::clone(progress),
            )
            .await;
        let prepared = match prepared {
            // Somebody took the version that was chosen.
            Err(PublishError::Exists { package, .. }) if choose => {
                named = None;
                taken = Some(package);
                continue;
            }
            prepared => prepared.map_err(|error| stop(&error, opened))?,
        };
        let Some(summary) = prepared.summary.clone() else {
            return Err(Stop::Over);
        };
        let job = Job {
            home,
            prepared,
            summary,
            signed: begun.as_ref() == Some(&version),
        };
        if let Some(version) = standing.as_ref().and_then(|standing| job.equal(standing)) {
            // Not simply done: it may have been signed, and not announced.
            named = Some(version);
            continue;
        }
        check_unchanged(opened).await?;
        if job.summary.new {
            // Before there can be a version: whoever finds the directory afterwards knows which one it is.
            let (key, fingerprint) = (opened.entry.key(), opened.inventory.fingerprint());
            dropping.remember(key, fingerprint, Some(version)).await;
        }
        return job.finish(settings, opened, trust, progress).await;
    }
    Err(Stop::Wait(format!(
        "others publish {name} at the same time"
    )))
}

/// Returns how a package stands, past a version that is taken.
async fn standing(
    home: &Arc<Home>,
    name: &PackageName,
    taken: Option<PackageVersion>,
    bump: Bump,
    registry: &Arc<dyn Registry>,
    trust: &TrustPolicy,
) -> Result<Standing, PublishError> {
    let standing = Standing::of(&home.publisher, name, registry, trust).await?;
    match taken {
        None => Ok(standing),
        Some(taken) => standing.past(taken, bump, &home.publisher, registry).await,
    }
}

fn options(settings: &Settings, opened: &Opened, package: PackageVersion) -> Options {
    let mut options = Options::new(package);
    options.guard = Some(opened.entry.guard());
    options.latest = opened.instructions.latest;
    options.about = opened.instructions.about.clone();
    options.seed = settings.seed;
    options
}

/// A job that is given up unless it is finished.
struct Job<'a> {
    home: &'a Arc<Home>,
    prepared: Prepared,
    summary: Summary,
    /// Whether an earlier try had signed it for this very tree, and perhaps could not announce it.
    signed: bool,
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.home.publisher.abandon(&self.prepared.job);
    }
}

impl Job<'_> {
    /// Returns the version that there is, where a next one would have the same content.
    fn equal(&self, standing: &Standing) -> Option<Version> {
        standing.equal(self.prepared.manifest.as_ref()?).cloned()
    }

    /// Signs, and makes it visible; signs again where somebody else was faster.
    async fn finish(
        mut self,
        settings: &Settings,
        opened: &Opened,
        trust: Arc<TrustPolicy>,
        progress: &Arc<Progress>,
    ) -> Result<Success, Stop> {
        let publisher = &self.home.publisher;
        let mut mirrors = Vec::new();
        let finished = loop {
            let envelopes = self.prepared.sign(&settings.key);
            let envelopes = envelopes.map_err(|error| stop(&error, opened))?;
            if let Some(envelope) = &envelopes.manifest {
                // What this home does not trust is put nowhere.
                let judged = trust.verify_manifest(envelope, &self.prepared.package);
                let what = "manifest";
                judged.map_err(|error| stop(&PublishError::Untrusted { what, error }, opened))?;
            }
            // What is signed again has the same tree.
            for directory in settings.mirrors.iter().skip(mirrors.len()) {
                progress.enter(Step::Provide);
                let job = &self.prepared.job;
                let written = self.home.write_mirror(job, directory, progress).await;
                mirrors.push(written.map_err(|failure| mirror_stop(directory, &failure))?);
            }
            let (trust, progress) = (Arc::clone(&trust), Arc::clone(progress));
            let job = self.prepared.job.clone();
            match publisher.finish(&job, envelopes, trust, progress).await {
                Ok(Finished::Again(next)) => self.prepared = *next,
                Ok(Finished::Done(outcome)) => break Ok(outcome),
                Err(error) => break Err(error),
            }
        };
        // Also when it could not be announced: it may be visible here.
        self.home.show_publication().await;
        let outcome = finished.map_err(|error| stop(&error, opened))?;
        Ok(Success {
            committed: Committed {
                manifest: outcome.manifest.to_string(),
                registry: outcome.registry,
                unchanged: !outcome.changed && !self.signed,
                ..committed(&self.summary)
            },
            mirrors,
            notes: notes(&self.summary),
        })
    }
}

fn committed(summary: &Summary) -> Committed {
    Committed {
        package: summary.package.to_string(),
        root: summary.root.clone(),
        files: summary.files,
        directories: summary.directories,
        bytes: summary.bytes,
        ..Committed::default()
    }
}

fn notes(summary: &Summary) -> Vec<String> {
    let note = |name: &String| format!("{name} is an instruction and not content: it is left out");
    summary.instructions.iter().map(note).collect()
}

/// A mirror is the business of whoever runs the daemon: an entry waits for it, whatever is the matter.
fn mirror_stop(directory: &Path, failure: &Failure) -> Stop {
    let place = directory.display();
    let message = failure.message.as_str();
    // It may name the mirror itself.
    let message = message
        .strip_prefix(&format!("{place}: "))
        .unwrap_or(message);
    let hint = failure.hint.iter().map(|hint| format!(": {hint}"));
    let hint: String = hint.collect();
    Stop::Wait(format!(
        "the mirror {place} cannot be written: {message}{hint}"
    ))
}

/// Decides what a failure means for an entry.
fn stop(error: &PublishError, opened: &Opened) -> Stop {
    let mut lines = opened.refused.clone();
    match error {
        PublishError::Refused(refusals)
            if lines.is_empty()
                && refusals
                    .groups()
                    .all(|(reason, _)| reason == Reason::Changed) =>
        {
            Stop::Changed(refusal_lines(refusals))
        }
        PublishError::Refused(refusals) => {
            lines.extend(refusal_lines(refusals));
            Stop::Refused(lines)
        }
        PublishError::Cancelled => Stop::Over,
        PublishError::Busy(_)
        | PublishError::Contended { .. }
        | PublishError::NoJob(_)
        | PublishError::Behind { .. }
        | PublishError::State(_)
        | PublishError::Io(_)
        | PublishError::Store(StoreError::Full { .. } | StoreError::Io { .. })
        | PublishError::NoRegistry(_) => Stop::Wait(error.to_string()),
        PublishError::Announce(inner) | PublishError::Registry(inner) => match inner {
            RegistryError::Unavailable { .. }
            | RegistryError::Io { .. }
            | RegistryError::Conflict { .. } => Stop::Wait(error.to_string()),
            _ => Stop::Refused(said(lines, error)),
        },
        _ => Stop::Refused(said(lines, error)),
    }
}

fn no_next(error: &NoNext, opened: &Opened) -> Stop {
    let mut lines = opened.refused.clone();
    lines.extend([
        format!("- {error}"),
        format!("  what to do: {}", error.hint()),
    ]);
    Stop::Refused(lines)
}

fn said(mut lines: Vec<String>, error: &PublishError) -> Vec<String> {
    lines.push(format!("- {error}"));
    if let Some(hint) = error.hint() {
        lines.push(format!("  what to do: {hint}"));
    }
    lines
}

/// Clears an entry away, and says how it went.
async fn done(
    dropping: &Arc<Dropping>,
    settings: &Arc<Settings>,
    success: Success,
    opened: Opened,
) -> Ending {
    let Success {
        committed,
        mirrors,
        notes,
    } = success;
    let word = if committed.unchanged {
        Word::Unchanged
    } else {
        Word::Published
    };
    let key = opened.entry.key().clone();
    let fingerprint = opened.inventory.fingerprint();
    let mut lines = vec![
        format!("package   {}", committed.package),
        format!("manifest  {}", committed.manifest),
        format!("root      {}", committed.root),
        format!("registry  {}", committed.registry),
        format!(
            "content   {} files in {} directories, {} bytes",
            committed.files, committed.directories, committed.bytes
        ),
    ];
    let mirrors = mirrors.iter().map(|place| place.display());
    lines.extend(mirrors.map(|place| format!("mirror    {place}")));
    if committed.unchanged {
        lines.push(
            "note      the version was there with the same content: nothing was signed".to_owned(),
        );
    }
    lines.extend(notes.iter().map(|note| format!("note      {note}")));
    // Said first: the version is there, whatever becomes of the directory.
    dropping.tell(&key, Report::new(word, lines.clone())).await;
    if settings.after == After::Keep {
        dropping.remember(&key, fingerprint, None).await;
        return Ending::Done {
            fingerprint: Some(fingerprint),
        };
    }
    let (place, after) = (Arc::clone(&dropping.place), settings.after);
    let cleared = tokio::task::spawn_blocking(move || {
        let Opened {
            entry,
            mut inventory,
            ..
        } = opened;
        place.clear(&entry, &mut inventory, after)
    });
    let cleared = match cleared.await {
        Ok(cleared) => cleared,
        Err(_) => return Ending::Again,
    };
    if !matches!(cleared, Ok(Cleared::Kept { .. }) | Err(_)) {
        // Before another directory comes under this name.
        dropping.unremember(&key).await;
    }
    let (line, ending) = match cleared {
        Ok(Cleared::Removed) => return Ending::Done { fingerprint: None },
        Ok(Cleared::Moved(place)) => (
            format!("moved     to {place}"),
            Ending::Done { fingerprint: None },
        ),
        Ok(Cleared::Left { place, why }) => (
            format!("kept      {place}: {why}"),
            Ending::Done { fingerprint: None },
        ),
        Ok(Cleared::Kept { path, why }) => (
            format!("kept      the directory, since {path} in it is {why}"),
            Ending::Again,
        ),
        Err(error) => (format!("kept      the directory: {error}"), Ending::Again),
    };
    if ending == Ending::Again {
        tracing::warn!(entry = %key, line, "not cleared away");
    }
    lines.push(line);
    dropping.tell(&key, Report::new(word, lines)).await;
    ending
}
