//! What happens in the drop directory, as the kernel tells it: names that something was renamed to, and that it is time
//! to look.
//!
//! Events are hints, and may be lost; a look at the directory from time to time finds everything but that something was
//! renamed into place.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::publish::drop::{Key, MOVED_MAX};

/// The most directories that are watched; others are looked at from time to time.
const WATCHES_MAX: usize = 2048;

/// What was heard since somebody asked.
#[derive(Default)]
pub(super) struct Heard {
    moved: Mutex<HashSet<Key>>,
    pub(super) happened: Notify,
}

impl Heard {
    /// Takes the names that something was renamed to.
    pub(super) fn take(&self) -> Vec<Key> {
        self.moved.lock().drain().collect()
    }
}

/// Watches the drop directory, its scopes and its entries: not what lies deeper.
pub(super) struct Watch {
    /// `None` where the system gives no watches.
    watcher: Option<RecommendedWatcher>,
    /// By path, the inode that it led to.
    watched: HashMap<PathBuf, u64>,
}

impl Watch {
    pub(super) fn new(root: &Path, heard: &Arc<Heard>) -> Watch {
        let (root, heard) = (root.to_owned(), Arc::clone(heard));
        let told =
            move |event: notify::Result<notify::Event>| tell(&root, &heard, event.as_ref().ok());
        let config = notify::Config::default().with_follow_symlinks(false);
        let watcher = RecommendedWatcher::new(told, config)
            .inspect_err(|error| {
                tracing::warn!(%error, "the drop directory is not watched, only looked at now and then");
            })
            .ok();
        Watch {
            watcher,
            watched: HashMap::new(),
        }
    }

    /// Watches these directories and no others; returns whether one is new, so that something may have been missed in it.
    pub(super) fn set(&mut self, wanted: impl Iterator<Item = (PathBuf, u64)>) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let wanted: HashMap<PathBuf, u64> = wanted.take(WATCHES_MAX).collect();
        self.watched.retain(|path, inode| {
            let kept = wanted.get(path) == Some(inode);
            if !kept {
                // Gone already, most often.
                let _ = watcher.unwatch(path);
            }
            kept
        });
        let mut new = false;
        for (path, inode) in wanted {
            if self.watched.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, inode);
                    new = true;
                }
                Err(error) => tracing::debug!(path = %path.display(), %error, "not watched"),
            }
        }
        new
    }
}

/// Takes what the kernel tells; `None` is an overflow, for instance: anything may have happened.
fn tell(root: &Path, heard: &Heard, event: Option<&notify::Event>) {
    let Some(event) = event else {
        heard.happened.notify_one();
        return;
    };
    let moved = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        // Looking is no change; it would wake us for ever.
        EventKind::Access(_) => return,
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => true,
        _ => false,
    };
    let mut matters = event.paths.is_empty() || event.need_rescan();
    for path in &event.paths {
        let Ok(below) = path.strip_prefix(root) else {
            matters = true;
            continue;
        };
        let bytes = below.as_os_str().as_encoded_bytes();
        if below.file_name().is_some_and(|name| name == ".publish") {
            matters = true;
            continue;
        }
        if bytes.is_empty() {
            matters = true;
        }
        // What lies in an entry, hidden names and statuses matter to nobody.
        let entry = below
            .iter()
            .rev()
            .skip(1)
            .any(|part| part.as_encoded_bytes().contains(&b'@'));
        let Some(key) = Key::from_path(bytes).filter(|_| !entry && !bytes.ends_with(b".status"))
        else {
            continue;
        };
        matters = true;
        let mut names = heard.moved.lock();
        if moved && names.len() < MOVED_MAX {
            names.insert(key);
        }
    }
    if matters {
        heard.happened.notify_one();
    }
}
