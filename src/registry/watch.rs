//! Notices when something below a directory changes.
//!
//! The kernel tells (inotify), and whoever waits is woken; where it cannot, for instance on a network file system or
//! when there are more directories than the system lets a user watch, waiting ends after an interval all the same, and
//! the caller looks for itself.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Moment;

/// How long to wait after the first event of several, so that one look sees them all.
const SETTLE: Duration = Duration::from_millis(20);

/// A directory that was just made is watched only a moment later; what was put into it before that makes no event. So
/// whoever waits is woken once more after this time.
const ECHO: Duration = Duration::from_millis(500);

/// How often to look for a directory that is not there.
const MISSING_RETRY: Duration = Duration::from_secs(1);

/// A watched directory. Nothing is watched until somebody waits.
pub(super) struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    root: Arc<Path>,
    /// Counts what happened; starts at 1, so that the default moment is in the past.
    count: watch::Sender<u64>,
    watcher: Mutex<Option<Watched>>,
    echo: Mutex<Option<Instant>>,
}

struct Watched {
    /// Which directory it was: the path may name another one later.
    id: (u64, u64),
    /// `None` where the system refused; held for its `Drop`.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    pub(super) fn new(root: Arc<Path>) -> Self {
        Watch {
            shared: Arc::new(Shared {
                root,
                count: watch::Sender::new(1),
                watcher: Mutex::new(None),
                echo: Mutex::new(None),
            }),
        }
    }

    /// Returns when something has changed since, or after `at_most`.
    pub(super) async fn changed(&self, since: Moment, at_most: Duration) -> Moment {
        let deadline = Instant::now() + at_most;
        let mut count = self.shared.count.subscribe();
        loop {
            let exists = self.ensure().await;
            if *count.borrow_and_update() > since.0 {
                break;
            }
            let echo = *self.shared.echo.lock();
            let mut wake = deadline;
            if let Some(echo) = echo {
                wake = wake.min(echo);
            }
            if !exists {
                wake = wake.min(Instant::now() + MISSING_RETRY);
            }
            tokio::select! {
                _ = count.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if self.shared.echo.lock().take_if(|echo| *echo <= now).is_some() {
                        self.shared.bump();
                    } else if now >= deadline {
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(SETTLE).await;
        Moment(*count.borrow())
    }

    /// Watches the directory that the path names now; returns whether there is one.
    async fn ensure(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || Shared::ensure(&shared))
            .await
            .unwrap_or(false)
    }
}

impl Shared {
    fn bump(&self) {
        self.count.send_modify(|count| *count += 1);
    }

    fn ensure(shared: &Arc<Shared>) -> bool {
        let id = std::fs::metadata(&shared.root)
            .ok()
            .filter(std::fs::Metadata::is_dir)
            .map(|meta| (meta.dev(), meta.ino()));
        let mut watcher = shared.watcher.lock();
        if watcher.as_ref().map(|watched| watched.id) == id {
            return id.is_some();
        }
        *watcher = id.map(|id| Watched {
            id,
            _watcher: Shared::watch(shared)
                .inspect_err(|error| {
                    tracing::warn!(root = ?shared.root, %error, "the registry is not watched, only looked at now and then");
                })
                .ok(),
        });
        shared.bump();
        id.is_some()
    }

    fn watch(shared: &Arc<Shared>) -> notify::Result<RecommendedWatcher> {
        let weak = Arc::downgrade(shared);
        let told = move |event: notify::Result<notify::Event>| {
            if let Some(shared) = weak.upgrade() {
                shared.told(&event);
            }
        };
        let config = notify::Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(told, config)?;
        // The watch is on the directory, not on a symlink that leads to it.
        let root = std::fs::canonicalize(&shared.root).map_err(notify::Error::io)?;
        watcher.watch(&root, RecursiveMode::Recursive)?;
        Ok(watcher)
    }

    fn told(&self, event: &notify::Result<notify::Event>) {
        // An error is an overflow of the kernel's queue, for instance: anything may have happened.
        if let Ok(event) = event {
            match event.kind {
                // Reading is no change; it would wake the reader for ever.
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {}
                EventKind::Access(_) => return,
                _ => {}
            }
            let hidden = |path: &std::path::PathBuf| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
            };
            if !event.paths.is_empty() && event.paths.iter().all(hidden) {
                return;
            }
            let may_be_directory = !matches!(
                event.kind,
                EventKind::Create(notify::event::CreateKind::File) | EventKind::Access(_)
            );
            if may_be_directory && (event.kind.is_create() || event.kind.is_modify()) {
                *self.echo.lock() = Some(Instant::now() + ECHO);
            }
        }
        self.bump();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn wakes(watch: &Watch, since: &mut Moment) {
        let limit = Duration::from_secs(5);
        *since = tokio::time::timeout(limit, watch.changed(*since, Duration::from_secs(60)))
            .await
            .expect("a change was noticed");
    }

    /// Waits until nothing more comes of what was done, the echo included.
    async fn calm(watch: &Watch, since: &mut Moment) {
        while let Ok(now) =
            tokio::time::timeout(2 * ECHO, watch.changed(*since, Duration::from_secs(60))).await
        {
            *since = now;
        }
    }

    #[tokio::test]
    async fn a_change_wakes_and_a_look_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("registry");
        let watch = Watch::new(Arc::from(root.as_path()));
        let mut since = Moment::default();
        wakes(&watch, &mut since).await;

        std::fs::create_dir_all(root.join("packages/a")).unwrap();
        wakes(&watch, &mut since).await;
        calm(&watch, &mut since).await;

        std::fs::write(root.join("packages/a/index.json"), b"1").unwrap();
        wakes(&watch, &mut since).await;
        calm(&watch, &mut since).await;

        std::fs::read(root.join("packages/a/index.json")).unwrap();
        let timed_out = watch.changed(since, Duration::from_millis(100)).await;
        assert_eq!(timed_out, since, "reading is no change");

        std::fs::rename(&root, directory.path().join("old")).unwrap();
        wakes(&watch, &mut since).await;
        std::fs::create_dir_all(root.join("packages/b")).unwrap();
        wakes(&watch, &mut since).await;
        calm(&watch, &mut since).await;
        std::fs::write(root.join("packages/b/index.json"), b"1").unwrap();
        wakes(&watch, &mut since).await;
    }

    #[tokio::test]
    async fn everybody_who_waits_is_woken() {
        let directory = tempfile::tempdir().unwrap();
        let watch = Watch::new(Arc::from(directory.path()));
        let now = watch
            .changed(Moment::default(), Duration::from_secs(9))
            .await;
        let first = watch.changed(now, Duration::from_secs(9));
        let second = watch.changed(now, Duration::from_secs(9));
        let change = async {
            tokio::task::yield_now().await;
            std::fs::write(directory.path().join("packages.json"), b"{}").unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, change);
        assert!(first > now && second > now);
    }
}
