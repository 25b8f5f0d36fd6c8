//! What differs between two versions.

use clap::Args;
use serde::Serialize;

use super::output;
use super::{Context, Error, target};
use crate::serve::control::{
    DiffItem, DiffKind, DiffSide, DiffSummary, Event, Failure, Reply, Request,
};

/// Shows what differs between two versions, or two directories or files of versions.
///
/// Only the catalogs are read. A line for each path, as it is from FROM to TO: A added, D deleted, M another content,
/// P other permissions only, T another type. The last line counts.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    from: String,
    /// As FROM.
    to: String,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    summary: DiffSummary,
    entries: Vec<DiffItem>,
}

impl Diff {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::Diff {
            from: target(&self.from),
            to: target(&self.to),
        };
        let as_json = self.json;
        let mut entries = Vec::new();
        let done = context.session()?.ask(&request, &[], &mut |reply| {
            if let Reply::Event(Event::Item(item)) = reply {
                let item: DiffItem = serde_json::from_value(item)?;
                if as_json {
                    entries.push(item);
                } else {
                    output::line(&line(&item))?;
                }
            }
            Ok(())
        })?;
        let summary: DiffSummary = serde_json::from_value(done).map_err(Failure::failed)?;
        if as_json {
            output::json(&Whole { summary, entries })?;
        } else {
            output::line(&summary.sentence())?;
        }
        Ok(())
    }
}

/// Returns a difference as a line for people.
pub(super) fn line(item: &DiffItem) -> String {
    let letter = match item.change {
        DiffKind::Added => 'A',
        DiffKind::Removed => 'D',
        DiffKind::Changed => 'M',
        DiffKind::Mode => 'P',
        DiffKind::Type => 'T',
    };
    let path = if item.path.is_empty() {
        "."
    } else {
        &item.path
    };
    let sides = item.before.as_ref().zip(item.after.as_ref());
    let more = match (item.change, sides) {
        (DiffKind::Type, Some((before, after))) => format!("  {} -> {}", before.kind, after.kind),
        (DiffKind::Mode | DiffKind::Changed, Some((before, after)))
            if before.mode != after.mode =>
        {
            format!("  {:04o} -> {:04o}", before.mode, after.mode)
        }
        _ => String::new(),
    };
    let is_directory = |side: &DiffSide| side.kind == "directory";
    let slash = match item.after.as_ref().or(item.before.as_ref()) {
        Some(side) if is_directory(side) && path != "." => "/",
        _ => "",
    };
    format!("{letter} {path}{slash}{more}")
}
