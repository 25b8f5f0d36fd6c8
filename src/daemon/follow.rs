//! Follows registries: each by one task that updates the listing whenever something may have changed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Home;
use crate::config::Install;
use crate::install::Listed;
use crate::manifest::Timestamp;
use crate::registry::{Moment, Registry};
use crate::serve::control::RegistryItem;

/// How long a mount waits for registries, so that it shows something from the start.
const FIRST_READING: Duration = Duration::from_secs(5);

/// A registry, and how its last reading went.
pub(super) struct Followed {
    place: String,
    registry: Arc<dyn Registry>,
    outcome: Mutex<Outcome>,
    again: Notify,
    /// Whether it was read, or tried, once.
    tried: watch::Sender<bool>,
    stop: CancellationToken,
    started: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Outcome {
    updated: Option<Timestamp>,
    error: Option<String>,
}

impl Followed {
    pub(super) fn new(place: &str, registry: Arc<dyn Registry>) -> Followed {
        Followed {
            place: place.to_owned(),
            registry,
            outcome: Mutex::default(),
            again: Notify::new(),
            tried: watch::Sender::new(false),
            stop: CancellationToken::new(),
            started: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    /// Has it read again now.
    pub(super) fn again(&self) {
        self.again.notify_one();
    }

    pub(super) fn item(&self) -> RegistryItem {
        let outcome = self.outcome.lock();
        RegistryItem {
            place: self.place.clone(),
            kind: if super::network::is_url(&self.place) {
                "http"
            } else {
                "directory"
            }
            .to_owned(),
            updated: outcome.updated.map(|at| at.to_string()),
            error: outcome.error.clone(),
        }
    }
}

impl Home {
    /// Starts following what is not followed yet, once this home is run as a daemon.
    pub(super) fn follow_all(self: &Arc<Self>) {
        if !self.serving.is_running() {
            return;
        }
        for followed in self.followed.lock().iter() {
            if !followed
                .started
                .swap(true, std::sync::atomic::Ordering::Relaxed)
            {
                let (home, followed) = (Arc::clone(self), Arc::clone(followed));
                self.tasks.spawn(async move {
                    let (stop, own) = (home.stop.clone(), followed.stop.clone());
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = own.cancelled() => {}
                        () = home.follow(&followed) => {}
                    }
                });
            }
        }
    }

    async fn follow(self: &Arc<Self>, followed: &Followed) {
        let mut moment = Moment::default();
        loop {
            self.read_registry(followed).await;
            moment = tokio::select! {
                next = followed.registry.changed(moment) => next,
                () = followed.again.notified() => moment,
            };
        }
    }

    /// Reads one registry into the listing.
    pub(super) async fn read_registry(self: &Arc<Self>, followed: &Followed) {
        let outcome = self.updater.update(&*followed.registry).await;
        {
            let mut known = followed.outcome.lock();
            match &outcome {
                Ok(()) => {
                    *known = Outcome {
                        updated: Some(Timestamp::now()),
                        error: None,
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    // Once, not with each try.
                    if known.error.as_ref() != Some(&text) {
                        tracing::warn!(
                            registry = followed.place,
                            error = text,
                            "registry not read"
                        );
                    }
                    known.error = Some(text);
                }
            }
        }
        followed.tried.send_replace(true);
        self.after_update();
    }

    /// Returns when every registry was read, or tried, once; those that take long are not waited for.
    pub(super) async fn first_reading(&self) {
        let all: Vec<Arc<Followed>> = self.followed.lock().clone();
        let read = futures::future::join_all(all.iter().map(|followed| async {
            let mut tried = followed.tried.subscribe();
            // The sender lives in what we hold.
            let _ = tried.wait_for(|tried| *tried).await;
        }));
        let _ = tokio::time::timeout(FIRST_READING, read).await;
    }

    /// Reads every registry once: what a command without a daemon does, and `registry update`.
    pub(super) async fn read_registries(self: &Arc<Self>) {
        let all: Vec<Arc<Followed>> = self.followed.lock().clone();
        for followed in all {
            self.read_registry(&followed).await;
        }
    }

    /// Installs what the configuration wants installed at once.
    pub(super) fn after_update(self: &Arc<Self>) {
        self.apply_hints();
        let install = self.config.load().mount.install;
        let mut wanted: Vec<Arc<Listed>> = Vec::new();
        for (_, versions, latest) in self.listing.all() {
            wanted.extend(versions.into_iter().filter(|version| match install {
                Install::All => true,
                Install::Latest => latest.as_ref() == Some(&version.package().version),
                Install::OnEntry | Install::Manual => false,
            }));
        }
        for version in wanted
            .into_iter()
            .filter(|version| version.tree().is_none())
        {
            let installer = Arc::clone(&self.installer);
            self.tasks.spawn(async move {
                // Said in the log by the installer, and tried again at the next entry.
                let _ = installer.install(&version).await;
            });
        }
    }

    /// Returns what is followed, for people.
    pub(super) fn registry_items(&self) -> Vec<RegistryItem> {
        self.followed
            .lock()
            .iter()
            .map(|followed| followed.item())
            .collect()
    }
}
