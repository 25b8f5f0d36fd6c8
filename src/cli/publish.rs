//! Publishing: the home walks and stores, this process signs.

use std::io::IsTerminal as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{Mode, OFlags};

use super::commit::commit;
use super::diff;
use super::mirror::write_mirror;
use super::output::{self, bytes};
use super::session::Session;
use super::sign::{cancel, read_keys, sign_and_finish};
use super::{Context, Error};
use crate::config::{Provider, ProviderError, variable};
use crate::daemon::package_version;
use crate::serve::control::{
    Event, Failure, FailureKind, Prepared, PublishOptions, Published, Reply, Request, UpdateOptions,
};
use crate::serve::mirror::Mirror;

/// Publishes a directory as a signed version.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The directory.
    #[arg(required_unless_present_any = ["from_stdin", "remove"])]
    directory: Option<PathBuf>,
    /// Publishes the tree of a tar stream on the standard input.
    #[arg(long, conflicts_with = "directory")]
    from_stdin: bool,
    /// The directory lies in the daemon's drop directory, and is complete: the daemon publishes it with its own key.
    #[arg(long, conflicts_with_all = [
        "from_stdin", "name", "version", "keys", "gateways", "registry", "to", "http", "trackers", "dry_run", "rehash", "preserve", "mtime",
        "allow", "update", "remove", "latest", "no_latest", "description", "license", "homepage", "keywords", "publisher",
    ])]
    commit: bool,
    /// The package: name, or scope/name.
    #[arg(long, required_unless_present = "commit")]
    name: Option<String>,
    /// The version, as semver has it.
    #[arg(long, required_unless_present = "commit")]
    version: Option<String>,
    /// A key to sign with: a file, or a name in keys/; several times for several.
    #[arg(long = "key", value_name = "KEY", default_value = "default")]
    keys: Vec<String>,
    /// The directory of a registry; without it the home's own.
    #[arg(long)]
    registry: Option<String>,
    /// Also puts the version there before it is announced: a directory, written with a slash, is a mirror; `torrent`
    /// writes a .torrent file into the registry and has this home's daemon seed it. Several times for several.
    #[arg(long = "to", value_name = "torrent|DIR/")]
    to: Vec<String>,
    /// A mirror that readers of the package may ask, as URL; several times for all of them, in place of those before.
    #[arg(long = "http", value_name = "URL")]
    http: Vec<String>,
    /// An IPFS gateway that readers of the package may ask, as URL; several times for all of them, in place of those before.
    #[arg(long = "gateway", value_name = "URL")]
    gateways: Vec<String>,
    /// A BitTorrent tracker for the package, as URL; several times for all of them, in place of those before.
    #[arg(long = "tracker", value_name = "URL")]
    trackers: Vec<String>,
    /// Walks and hashes, and says what would be published and how it differs from the last version.
    #[arg(long)]
    dry_run: bool,
    /// Lays the tree on top of a version, the latest unless one is named: what is not replaced stays.
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    update: Option<String>,
    /// Removes a path of the version that is updated; several times for several.
    #[arg(long, value_name = "PATH", requires = "update")]
    remove: Vec<String>,
    /// Reads every file, also those that nobody has written to since the last version.
    #[arg(long)]
    rehash: bool,
    /// Keeps permission bits and all times.
    #[arg(long)]
    preserve: bool,
    /// Sets every time, in seconds since 1970 (also SOURCE_DATE_EPOCH).
    #[arg(long)]
    mtime: Option<i64>,
    /// Publishes what is refused otherwise: links that leave, names that differ only in case, likely secrets.
    #[arg(long, value_name = "links|case|secrets")]
    allow: Vec<String>,
    /// Makes `latest` this version.
    #[arg(long, conflicts_with = "no_latest")]
    latest: bool,
    /// Leaves `latest` as it is.
    #[arg(long)]
    no_latest: bool,
    /// What it is, in a sentence.
    #[arg(long)]
    description: Option<String>,
    /// Its license, as an SPDX expression.
    #[arg(long)]
    license: Option<String>,
    /// Its homepage.
    #[arg(long)]
    homepage: Option<String>,
    /// A word to search for; several times for several.
    #[arg(long = "keyword")]
    keywords: Vec<String>,
    /// Who publishes it; free text, never identity.
    #[arg(long)]
    publisher: Option<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Publish {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mtime = match self.mtime {
            None => source_date_epoch()?,
            some => some,
        };
        if self.commit {
            return commit(context, &self.directory.unwrap_or_default(), self.json);
        }
        let (name, version) = (
            self.name.unwrap_or_default(),
            self.version.unwrap_or_default(),
        );
        let places = self.to.iter().map(|word| provider(word));
        let places = places.collect::<Result<Vec<_>, _>>()?;
        package_version(&name, &version)?;
        let keys = if self.dry_run {
            Vec::new()
        } else {
            read_keys(context, &self.keys)?
        };
        let source = match &self.directory {
            Some(directory) => Some(open(directory)?),
            None if self.from_stdin => Some(stdin()?),
            None => None,
        };
        let update = self.update.map(|version| UpdateOptions {
            version: Some(version).filter(|version| !version.is_empty()),
            remove: self.remove,
            bare: source.is_none(),
        });
        let options = PublishOptions {
            name,
            version,
            directory: self
                .directory
                .map(|directory| directory.display().to_string())
                .unwrap_or_default(),
            update,
            tar: self.from_stdin,
            registry: self.registry.map(|place| absolute(&place)).transpose()?,
            dry_run: self.dry_run,
            rehash: self.rehash,
            preserve: self.preserve,
            mtime,
            allow: self.allow,
            latest: if self.latest {
                Some(true)
            } else {
                self.no_latest.then_some(false)
            },
            description: self.description,
            license: self.license,
            homepage: self.homepage,
            keywords: self.keywords,
            publisher: self.publisher,
            http: self.http,
            gateways: self.gateways,
            trackers: self.trackers,
            seed: places
                .iter()
                .any(|place| matches!(place, Provider::Torrent)),
        };
        let package = format!("{}@{}", options.name, options.version);
        let mut session = context.session()?;
        let mut shown = context.output.progress();
        let descriptors: Vec<_> = source.iter().map(AsFd::as_fd).collect();
        let request = Request::PublishPrepare {
            options: Box::new(options),
        };
        let value = session.ask(&request, &descriptors, &mut |reply| {
            if let Reply::Event(Event::Progress(progress)) = reply {
                shown.update(&progress);
            }
            Ok(())
        })?;
        drop(shown);
        let prepared: Prepared = serde_json::from_value(value).map_err(Failure::failed)?;
        prepared
            .notes
            .iter()
            .for_each(|note| context.output.say(note));
        if keys.is_empty() {
            return say(&package, &prepared, None, self.json);
        };
        let Some(job) = prepared.job.clone() else {
            return say(&package, &prepared, None, self.json);
        };
        for place in &places {
            if let Err(error) = provide(context, &mut session, place, &prepared, &job) {
                cancel(&mut session, &job);
                return Err(error);
            }
        }
        let published = sign_and_finish(&mut session, &prepared, &job, &keys)?;
        say(&package, &prepared, Some(&published), self.json)
    }
}

/// Reads a word of `--to`.
fn provider(word: &str) -> Result<Provider, Failure> {
    word.parse().map_err(|error: ProviderError| {
        Failure::new(FailureKind::Usage, format!("--to {error}")).hint(error.hint())
    })
}

/// Puts a version that waits for its signatures where others get it.
fn provide(
    context: &Context,
    session: &mut Session,
    provider: &Provider,
    prepared: &Prepared,
    job: &str,
) -> Result<(), Error> {
    match provider {
        Provider::Mirror(directory) => {
            let mirror = Mirror {
                directory: std::path::absolute(directory)?,
                tree: prepared.tree.clone(),
                catalog: prepared.catalog.clone(),
            };
            let request = Request::PublishMirror {
                job: job.to_owned(),
            };
            let written = write_mirror(&mirror, context, session, &request)?;
            context.output.say(&written.sentence());
        }
        Provider::Torrent => {}
    }
    Ok(())
}

fn say(
    package: &str,
    prepared: &Prepared,
    published: Option<&Published>,
    as_json: bool,
) -> Result<(), Error> {
    if as_json {
        let object = serde_json::json!({
            "package": package,
            "manifest": prepared.id,
            "root": prepared.root,
            "files": prepared.files,
            "directories": prepared.directories,
            "bytes": prepared.bytes,
            "unread": prepared.unread,
            "unchanged": prepared.unchanged,
            "registry": published.map(|published| &published.registry),
            "diff": prepared.diff,
        });
        return Ok(output::json(&object)?);
    }
    let what = match published {
        _ if prepared.unchanged => {
            format!("{package} exists with the same content: nothing changed")
        }
        Some(published) => format!("published {package} to {}", published.registry),
        None => format!("would publish {package}"),
    };
    output::line(&what)?;
    output::line(&format!(
        "{} files in {} directories, {}",
        prepared.files,
        prepared.directories,
        bytes(prepared.bytes)
    ))?;
    if prepared.unread > 0 {
        output::line(&format!(
            "{} files had not changed since the last version and were not read",
            prepared.unread
        ))?;
    }
    output::line(&format!("root     {}", prepared.root))?;
    output::line(&format!("manifest {}", prepared.id))?;
    if let Some(preview) = &prepared.diff {
        let summary = &preview.summary;
        output::line(&format!("since {}: {}", summary.from, summary.sentence()))?;
        for item in &preview.entries {
            output::line(&format!("  {}", diff::line(item)))?;
        }
        let shown = preview.entries.len() as u64;
        if let Some(more @ 1..) = summary.paths().checked_sub(shown) {
            output::line(&format!("  and {more} more"))?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<std::os::fd::OwnedFd, Failure> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
        let failure = Failure::failed(format!(
            "{}: {}",
            path.display(),
            std::io::Error::from(error)
        ));
        if error == rustix::io::Errno::NOTDIR {
            failure.hint("publish the directory that holds it")
        } else {
            failure
        }
    })
}

/// Takes the standard input, which has to be a stream.
fn stdin() -> Result<std::os::fd::OwnedFd, Failure> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        let message = "--from-stdin: the standard input is a terminal";
        return Err(Failure::new(FailureKind::Usage, message)
            .hint("tar -c -C DIR . | manifs publish --from-stdin ..."));
    }
    stdin.as_fd().try_clone_to_owned().map_err(Failure::failed)
}

pub(super) fn absolute(place: &str) -> Result<String, Failure> {
    if place.contains("://") {
        return Ok(place.to_owned());
    }
    Ok(std::path::absolute(place)
        .map_err(Failure::failed)?
        .display()
        .to_string())
}

/// Reads the time that reproducible builds set (https://reproducible-builds.org/specs/source-date-epoch/).
fn source_date_epoch() -> Result<Option<i64>, Failure> {
    let Some(text) = variable("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        Failure::new(
            FailureKind::Usage,
            format!("SOURCE_DATE_EPOCH={text:?} is no number of seconds"),
        )
        .hint("unset it, or set it to whole seconds since 1970")
    })
}
