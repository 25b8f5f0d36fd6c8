//! Copies a version, or a part of it, into a new directory, or into a mirror.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::mirror::write_mirror;
use super::output::{self, Shown};
use super::session::Session;
use super::{Context, Error, target};
use crate::serve::control::{Done, Failure, Inspection, Request};
use crate::serve::copy::Copy;
use crate::serve::mirror::Mirror;

/// Copies a version, or a part of it, into a new directory.
#[derive(Debug, Args)]
pub(super) struct Fetch {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    target: String,
    /// The directory to make.
    #[arg(short, long, value_name = "DIR", required_unless_present = "mirror")]
    output: Option<PathBuf>,
    /// Puts the version into a mirror instead: DIR/<name>-<version>, with its catalog, for a web server.
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    mirror: Option<PathBuf>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Fetch {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if let Some(directory) = &self.mirror {
            return self.mirror(context, directory);
        }
        let output = std::path::absolute(self.output.unwrap_or_default())?;
        if output.symlink_metadata().is_ok() {
            let failure = Failure::failed(format!("{} exists", output.display()));
            return Err(failure
                .hint("name a directory that does not exist yet")
                .into());
        }
        let request = Request::Fetch {
            target: target(&self.target),
        };
        let copy = Copy::begin(&output)?;
        let shown = context.output.progress();
        let done = fill(copy, &mut context.session()?, &request, shown)?;
        if self.json {
            return Ok(output::json(&json!({
                "directory": output.display().to_string(),
                "files": done.files,
                "bytes": done.bytes,
            }))?);
        }
        context.output.say(&format!(
            "{} files, {} in {}",
            done.files,
            output::bytes(done.bytes),
            output.display()
        ));
        Ok(())
    }
}

impl Fetch {
    fn mirror(&self, context: &Context, directory: &Path) -> Result<(), Error> {
        let target = target(&self.target);
        let mut session = context.session()?;
        let inspection: Inspection = session.get(&Request::Inspect {
            target: target.clone(),
        })?;
        let mirror = Mirror {
            directory: std::path::absolute(directory)?,
            tree: inspection.tree,
            catalog: inspection.catalog,
        };
        let request = Request::Mirror { target };
        let written = write_mirror(&mirror, context, &mut session, &request)?;
        if self.json {
            return Ok(output::json(&json!({
                "directory": written.place.display().to_string(),
                "unchanged": written.done.is_none(),
                "files": written.done.as_ref().map(|done| done.files),
                "bytes": written.done.as_ref().map(|done| done.bytes),
            }))?);
        }
        context.output.say(&written.sentence());
        Ok(())
    }
}

/// Writes what answers `request` into a copy, and gives it its name.
pub(super) fn fill(
    mut copy: Copy,
    session: &mut Session,
    request: &Request,
    mut shown: Shown,
) -> Result<Done, Error> {
    // What went wrong here, not there.
    let mut problem = None;
    let asked = session.ask(request, &[], &mut |reply| match copy.take(reply) {
        Ok(()) => {
            shown.update(&copy.progress());
            Ok(())
        }
        Err(failure) => {
            problem.get_or_insert(failure);
            Err(io::ErrorKind::Other.into())
        }
    });
    if let Some(problem) = problem {
        return Err(problem.into());
    }
    let done = serde_json::from_value(asked?).map_err(Failure::failed)?;
    copy.finish()?;
    Ok(done)
}
