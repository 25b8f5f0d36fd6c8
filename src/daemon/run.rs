//! Runs a home as a daemon.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::Home;
use crate::serve::control::Failure;

/// How often it is written down which blocks were used.
const FLUSH_EVERY: Duration = Duration::from_secs(60);

/// How long a shutdown waits for what is under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, or until the last mount is gone if `ends_with_last_mount`; then drains and unmounts.
///
/// `reload` has configuration and trust policy read again. `ready` is called once everything listens.
///
/// # Errors
/// [`Failure`] when it cannot listen where it should.
pub async fn run(
    home: Arc<Home>,
    shutdown: impl Future<Output = ()>,
    mut reload: mpsc::Receiver<()>,
    ends_with_last_mount: bool,
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    home.serving.set_ends_with_last_mount(ends_with_last_mount);
    // First, so that a mount that is asked for at once has its door.
    home.open_dropping().await?;
    home.start_serving().await?;
    home.start_announcing().await;
    home.start_dropping();
    tracing::info!(pid = std::process::id(), "running");
    ready();
    tokio::pin!(shutdown);
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    loop {
        let gone = home.mounts.gone.notified();
        if ends_with_last_mount && home.mounts.are_over() {
            break;
        }
        tokio::select! {
            () = &mut shutdown => break,
            () = home.stop.cancelled() => break,
            () = gone => {}
            Some(()) = reload.recv() => match home.reload().await {
                Ok(()) => tracing::info!("configuration and trust policy read again"),
                Err(failure) => tracing::error!(%failure, "not reloaded: everything stays as it was"),
            },
            _ = flush.tick() => {
                let store = Arc::clone(&home.store);
                let _ = tokio::task::spawn_blocking(move || store.flush()).await;
            }
        }
    }
    tracing::info!("stopping");
    home.unmount_all().await;
    if tokio::time::timeout(DRAIN, home.close()).await.is_err() {
        tracing::warn!("something was still under way and is cut off");
    }
    let _ = std::fs::remove_file(home.paths.socket());
    Ok(())
}
