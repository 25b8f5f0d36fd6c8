//! Looking: status, packages, entries, files, manifests, reasons.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::output::{self, bytes};
use super::session::Session;
use super::{Context, Error, target};
use crate::manifest::{Envelope, Signed};
use crate::serve::control::{
    Client, DropItem, DropStatus, EntryItem, Event, Failure, FailureKind, Inspection, PackageItem,
    Reply, Request, Status, TorrentStatus, Why,
};

/// Peers of a source that are shown to people.
const PEERS_SHOWN: usize = 8;

/// Shows what the daemon is doing; exits 1 until one answers and listens everywhere it should.
#[derive(Debug, Args)]
pub(super) struct StatusCommand {
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Error> {
        let client = match Client::connect(&context.paths.socket()) {
            Ok(client) => client,
            Err(_) => {
                let failure = Failure::failed("no daemon runs for this home");
                return Err(failure
                    .hint("`manifs mount DIR` or `manifs serve` starts one")
                    .into());
            }
        };
        let status: Status = client.get(&Request::Status)?;
        if self.json {
            output::json(&status)?;
        } else {
            show_status(&status)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show_status(status: &Status) -> std::io::Result<()> {
    output::line(&format!(
        "daemon      manifs {}, process {}",
        status.version, status.pid
    ))?;
    for mount in &status.mounts {
        output::line(&format!("mount       {}", mount.display()))?;
    }
    if let Some(gateway) = &status.gateway {
        output::line(&format!("gateway     {gateway}"))?;
    }
    if let Some(torrent) = &status.torrent {
        show_seeds(torrent)?;
    }
    if let Some(publish) = &status.publish {
        show_drops(publish)?;
    }
    output::line(&format!(
        "packages    {} with {} versions, {} installed",
        status.packages, status.versions, status.installed
    ))?;
    let store = &status.store;
    output::line(&format!(
        "store       {} of {} in {} files, {} not evictable",
        bytes(store.used),
        bytes(store.quota),
        store.files,
        bytes(store.unevictable)
    ))?;
    if store.damaged + store.failures > 0 {
        output::line(&format!(
            "            {} damaged blocks found, {} failures of the disk",
            store.damaged, store.failures
        ))?;
    }
    output::line(&format!(
        "fetched     {} in {} blocks",
        bytes(status.fetched_bytes),
        status.fetched_blocks
    ))?;
    for source in &status.sources {
        output::line(&format!("source      {}", source.sentence()))?;
        for peer in source.peers.iter().take(PEERS_SHOWN) {
            output::line(&format!("  peer      {}", peer.sentence()))?;
        }
    }
    for registry in &status.registries {
        let state = registry
            .error
            .clone()
            .or(registry.updated.as_ref().map(|at| format!("read {at}")));
        output::line(&format!(
            "registry    {} ({})",
            registry.place,
            state.unwrap_or_else(|| "not read yet".into())
        ))?;
    }
    for problem in &status.problems {
        output::line(&format!("problem     {problem}"))?;
    }
    Ok(())
}

/// Entries of the drop directory shown one by one; `--json` has all.
const DROPS_SHOWN: usize = 20;

fn show_drops(publish: &DropStatus) -> std::io::Result<()> {
    let settle = match publish.settle_seconds {
        0 => "only when committed".to_owned(),
        seconds => format!("after {seconds} s of quiet, or when committed"),
    };
    output::line(&format!(
        "publish     {}: {}, {settle}",
        publish.directory.display(),
        publish.names.join(", ")
    ))?;
    // What somebody has to do something about comes first.
    let mut entries: Vec<_> = publish.entries.iter().collect();
    let done = |item: &DropItem| matches!(item.state.as_str(), "published" | "unchanged");
    entries.sort_by_key(|item| (item.state != "refused", done(item)));
    for item in entries.iter().take(DROPS_SHOWN) {
        let more = item.lines.first().filter(|_| !done(item));
        let more = more
            .map(|line| format!(": {}", line.trim_start_matches("- ")))
            .unwrap_or_default();
        output::line(&format!("            {} {}{more}", item.entry, item.state))?;
    }
    if let Some(more @ 1..) = entries.len().checked_sub(DROPS_SHOWN) {
        output::line(&format!("            and {more} more"))?;
    }
    Ok(())
}

/// Seeds shown one by one; `--json` has all.
const SEEDS_SHOWN: usize = 20;

fn show_seeds(torrent: &TorrentStatus) -> std::io::Result<()> {
    output::line(&format!(
        "torrent     {} seeded at {}, {} uploaded",
        torrent.seeds.len(),
        torrent.listen,
        bytes(torrent.uploaded)
    ))?;
    let mut seeds: Vec<_> = torrent.seeds.iter().collect();
    seeds.sort_by_key(|seed| std::cmp::Reverse((seed.peers, seed.uploaded)));
    for seed in seeds.iter().take(SEEDS_SHOWN) {
        output::line(&format!(
            "            {}: {} uploaded, {} connected",
            seed.package,
            bytes(seed.uploaded),
            seed.peers
        ))?;
    }
    if let Some(more @ 1..) = seeds.len().checked_sub(SEEDS_SHOWN) {
        output::line(&format!("            and {more} more"))?;
    }
    Ok(())
}

/// Lists packages and versions.
#[derive(Debug, Args)]
pub(super) struct List {
    /// One package only.
    package: Option<String>,
    /// Also what was refused, and why.
    #[arg(long)]
    all: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let items: Vec<PackageItem> = items(
            &mut context.session()?,
            &Request::List {
                package: self.package,
                all: self.all,
            },
        )?;
        if self.json {
            return Ok(output::json(&json!({ "packages": items }))?);
        }
        if items.is_empty() {
            context.output.say("nothing is listed; `manifs list --all` shows what was refused, `manifs registry list` where packages are looked for");
        }
        for item in items {
            let name = match &item.version {
                Some(version) => format!("{}@{version}", item.name),
                None => item.name.clone(),
            };
            let text = match &item.refused {
                Some(reason) => format!("{name}  refused: {reason}"),
                None => {
                    let mut marks = Vec::new();
                    marks.extend(item.latest.then_some("latest"));
                    marks.extend(item.installed.then_some("installed"));
                    marks.extend(item.stale.then_some("stale"));
                    let about = item.description.as_deref().unwrap_or_default();
                    format!(
                        "{name}  {} files, {}  {}  {about}",
                        item.files,
                        bytes(item.bytes),
                        marks.join(", ")
                    )
                }
            };
            output::line(text.trim_end())?;
            if let Some(hint) = &item.hint {
                output::line(&format!("    {hint}"))?;
            }
        }
        Ok(())
    }
}

/// Lists a directory of a version.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    target: String,
    /// Shows mode, size and time.
    #[arg(short)]
    long: bool,
    /// Shows everything below it.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Prints one JSON object, with digests.
    #[arg(long)]
    json: bool,
}

impl Ls {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let items: Vec<EntryItem> = items(
            &mut context.session()?,
            &Request::Ls {
                target: target(&self.target),
                recursive: self.recursive,
            },
        )?;
        if self.json {
            return Ok(output::json(&json!({ "entries": items }))?);
        }
        for item in items.iter().filter(|item| !item.path.is_empty()) {
            let arrow = item
                .target
                .as_ref()
                .map(|target| format!(" -> {target}"))
                .unwrap_or_default();
            if self.long {
                let kind = match item.kind.as_str() {
                    "directory" => 'd',
                    "symlink" => 'l',
                    _ => '-',
                };
                let time = crate::manifest::Timestamp::from_unix_seconds(
                    item.mtime_ns.div_euclid(1_000_000_000),
                );
                output::line(&format!(
                    "{kind}{} {:>12} {time} {}{arrow}",
                    rwx(item.mode),
                    item.size,
                    item.path
                ))?;
            } else {
                output::line(&item.path)?;
            }
        }
        Ok(())
    }
}

fn rwx(mode: u16) -> String {
    let letters = ['r', 'w', 'x'];
    (0..9)
        .map(|bit| {
            if mode >> (8 - bit) & 1 == 1 {
                letters[bit % 3]
            } else {
                '-'
            }
        })
        .collect()
}

/// Prints a file of a version.
#[derive(Debug, Args)]
pub(super) struct Cat {
    /// The file: PACKAGE/PATH, PACKAGE@VERSION/PATH, or a path below a mount.
    target: String,
    /// Where to begin.
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// How many bytes at most.
    #[arg(long)]
    len: Option<u64>,
}

impl Cat {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::Read {
            target: target(&self.target),
            offset: self.offset,
            len: self.len,
        };
        data(context, &request)
    }
}

/// Shows what a manifest says and who signed it.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// A package or version, or the file of a manifest or release index.
    target: String,
    /// Prints SHA256SUMS instead.
    #[arg(long)]
    sums: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if self.sums {
            return data(
                context,
                &Request::Sums {
                    target: target(&self.target),
                },
            );
        }
        if std::path::Path::new(&self.target).is_file() {
            return inspect_file(&self.target, self.json);
        }
        let inspection: Inspection = context.session()?.get(&Request::Inspect {
            target: target(&self.target),
        })?;
        if self.json {
            return Ok(output::json(&inspection)?);
        }
        output::line(&format!("manifest    {}", inspection.id))?;
        output::line(&format!("catalog CID {}", inspection.catalog))?;
        if let Some(magnet) = &inspection.magnet {
            output::line(&format!("magnet link {magnet}"))?;
        }
        output::line(&format!("signed by   {}", inspection.signers.join(", ")))?;
        output::line(&format!("trusted by  the rule for {}", inspection.rule))?;
        show_object(&inspection.manifest)?;
        if let Some(sequence) = inspection
            .index
            .as_ref()
            .and_then(|index| index.get("sequence"))
        {
            output::line(&format!("release index: sequence {sequence}"))?;
        }
        Ok(())
    }
}

/// Shows an envelope as it is: nobody has said that it is trusted.
fn inspect_file(path: &str, as_json: bool) -> Result<(), Error> {
    let bytes = std::fs::read(path)?;
    let envelope = Envelope::parse(&bytes).map_err(|error| {
        Failure::new(FailureKind::Refused, format!("{path}: {error}")).hint(error.hint())
    })?;
    let (kind, id) = match envelope.unverified() {
        Signed::Manifest(manifest) => ("manifest", manifest.id().to_string()),
        Signed::Index(index) => ("index", index.id().to_string()),
    };
    let content: Value =
        serde_json::from_slice(envelope.unverified().canonical()).map_err(Failure::failed)?;
    let keys: Vec<String> = envelope
        .signatures()
        .iter()
        .map(|signature| signature.key.to_string())
        .collect();
    if as_json {
        return Ok(output::json(
            &json!({ "kind": kind, "id": id, "claims_to_be_signed_by": keys, "content": content }),
        )?);
    }
    output::line(&format!("{kind:11} {id}"))?;
    output::line(&format!(
        "claims to be signed by {}; `manifs verify` says whether that is so, and trusted",
        keys.join(", ")
    ))?;
    Ok(show_object(&content)?)
}

fn show_object(object: &Value) -> std::io::Result<()> {
    for (name, value) in object.as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => text.clone(),
            Value::Array(list) if list.len() > 4 => format!("{} entries", list.len()),
            other => other.to_string(),
        };
        output::line(&format!("{name:11} {value}"))?;
    }
    Ok(())
}

/// Says why something is, or is not, as expected.
#[derive(Debug, Args)]
pub(super) struct WhyCommand {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    target: String,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl WhyCommand {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let target = target(&self.target);
        let why: Why = context.session()?.get(&Request::Why { target })?;
        if self.json {
            return Ok(output::json(&why)?);
        }
        for text in &why.lines {
            output::line(text)?;
        }
        if let Some(hint) = &why.hint {
            output::line(&format!("hint: {hint}"))?;
        }
        Ok(())
    }
}

/// Asks for items of one kind.
pub(super) fn items<T: serde::de::DeserializeOwned>(
    session: &mut Session,
    request: &Request,
) -> Result<Vec<T>, Error> {
    let mut items = Vec::new();
    session.ask(request, &[], &mut |reply| {
        if let Reply::Event(Event::Item(item)) = reply {
            items.push(serde_json::from_value(item)?);
        }
        Ok(())
    })?;
    Ok(items)
}

/// Asks for bytes, and prints them as they come.
fn data(context: &Context, request: &Request) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    context
        .session()?
        .ask(request, &[], &mut |reply| match reply {
            Reply::Data(bytes) => out.write_all(&bytes),
            Reply::Event(_) => Ok(()),
        })?;
    Ok(out.flush()?)
}
