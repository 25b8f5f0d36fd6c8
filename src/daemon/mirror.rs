//! Puts a version into a mirror before it is announced, where no command does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Home;
use crate::publish::{JobId, Progress};
use crate::serve::control::{Failure, Replies, Taken};
use crate::serve::copy::Copy;
use crate::serve::mirror::Mirror;

impl Home {
    /// Writes what a job is going to announce into a mirror, unless it is there; returns where it lies.
    ///
    /// The mirror itself is never made: one that is missing is mostly a disk that is not mounted.
    ///
    /// # Errors
    /// [`Failure`]: the mirror cannot be written, or another tree is in the place of this one.
    pub(super) async fn write_mirror(
        &self,
        job: &JobId,
        directory: &Path,
        progress: &Arc<Progress>,
    ) -> Result<PathBuf, Failure> {
        let manifest = self.publisher.manifest(job).map_err(Failure::failed)?;
        let mirror = Mirror {
            directory: directory.to_owned(),
            tree: manifest.package.tree_name(),
            catalog: manifest.catalog.cid().to_string(),
        };
        let place = mirror.place();
        let Some(copy) = blocking(move || mirror.begin()).await? else {
            return Ok(place);
        };
        let (replies, taken) = Replies::taken();
        let progress = Arc::clone(progress);
        let filling = tokio::task::spawn_blocking(move || fill(copy, taken, &progress));
        let sent = self.send_job(job, &replies).await;
        // So that the other side ends.
        drop(replies);
        // What went wrong there is why it could not be sent here.
        let copy = filling.await.map_err(Failure::failed)??;
        blocking(move || {
            sent?;
            copy.finish()
        })
        .await?;
        Ok(place)
    }
}

/// Says whether anything can be written into a mirror, before a tree is read for nothing.
///
/// # Errors
/// [`Failure`], as [`Home::write_mirror`] would.
pub(super) async fn check_mirror(directory: &Path) -> Result<(), Failure> {
    let directory = directory.to_owned();
    blocking(move || Mirror::check(&directory)).await
}

/// Writes what comes. Blocking.
fn fill(mut copy: Copy, mut taken: Taken, progress: &Progress) -> Result<Copy, Failure> {
    while let Some(reply) = taken.next() {
        copy.take(reply)?;
        progress.provided(copy.progress().done);
    }
    Ok(copy)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Failure::failed)?
}
