//! `publish --commit`: says that an entry of the drop directory is complete, and waits for what becomes of it.

use std::path::Path;

use super::output::{self, bytes};
use super::{Context, Error};
use crate::serve::control::{Client, Committed, Event, Failure, Reply, Request};

/// Commits an entry: its name, or a path of it.
pub(super) fn commit(context: &Context, entry: &Path, as_json: bool) -> Result<(), Error> {
    // A name such as tool@1.0.0 means what lies in the drop directory, unless it lies here.
    let entry = if entry.symlink_metadata().is_ok() {
        std::path::absolute(entry)?
    } else {
        entry.to_owned()
    };
    // Only a daemon has the key, so there is nothing that this process could do itself.
    let client = Client::connect(&context.paths.socket())?;
    let mut shown = context.output.progress();
    let value = client.ask(&Request::PublishCommit { entry }, &[], &mut |reply| {
        if let Reply::Event(Event::Progress(progress)) = reply {
            shown.update(&progress);
        }
        Ok(())
    })?;
    drop(shown);
    if as_json {
        return Ok(output::json(&value)?);
    }
    let done: Committed = serde_json::from_value(value).map_err(Failure::failed)?;
    let package = &done.package;
    output::line(&if done.unchanged {
        format!("{package} exists with the same content: nothing changed")
    } else {
        format!("published {package} to {}", done.registry)
    })?;
    output::line(&format!(
        "{} files in {} directories, {}",
        done.files,
        done.directories,
        bytes(done.bytes)
    ))?;
    output::line(&format!("root     {}", done.root))?;
    output::line(&format!("manifest {}", done.manifest))?;
    Ok(())
}
