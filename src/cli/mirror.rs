//! Puts trees into mirrors, and says so.

use std::path::PathBuf;

use super::fetch::fill;
use super::session::Session;
use super::{Context, Error, output};
use crate::serve::control::{Done, Failure, Request};
use crate::serve::mirror::Mirror;

/// What was written.
pub(super) struct Written {
    pub(super) place: PathBuf,
    /// None: it was there.
    pub(super) done: Option<Done>,
}

impl Written {
    /// Says it in a sentence.
    pub(super) fn sentence(&self) -> String {
        let place = self.place.display();
        match &self.done {
            Some(done) => format!(
                "{} files, {} in {place}",
                done.files,
                output::bytes(done.bytes)
            ),
            None => format!("{place} is there already"),
        }
    }
}

/// Writes what answers `request` into a mirror, which is made when it is missing, unless the tree is there.
pub(super) fn write_mirror(
    mirror: &Mirror,
    context: &Context,
    session: &mut Session,
    request: &Request,
) -> Result<Written, Error> {
    let directory = &mirror.directory;
    std::fs::create_dir_all(directory)
        .map_err(|error| Failure::failed(format!("{}: {error}", directory.display())))?;
    let done = match mirror.begin()? {
        None => None,
        Some(copy) => Some(fill(copy, session, request, context.output.progress())?),
    };
    Ok(Written {
        place: mirror.place(),
        done,
    })
}
