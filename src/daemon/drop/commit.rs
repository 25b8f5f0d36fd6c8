//! `manifs publish --commit`: somebody says that an entry is complete, and waits for what becomes of it.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Dropping, Waiting};
use crate::daemon::Home;
use crate::publish::drop::{Key, Phase};
use crate::serve::control::{Committed, Failure, FailureKind, Progress, Replies};

/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_millis(200);

/// How long it may take until an entry that is there is seen.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

impl Home {
    /// Commits an entry of the drop directory, and returns when it is a version.
    pub(in crate::daemon) async fn commit(
        self: &Arc<Self>,
        entry: &Path,
        replies: &Replies,
    ) -> Result<Committed, Failure> {
        let dropping = self.serving.dropping.load_full().ok_or_else(|| {
            Failure::failed("no daemon with a drop directory runs for this home").hint(
                "configure [publish], and start the daemon with `manifs serve` or `manifs mount`",
            )
        })?;
        let key = dropping.key_of(entry)?;
        let found = dropping.place.entry(&key).map_err(|error| {
            Failure::new(FailureKind::NotFound, format!("{key}: {error}")).hint(error.hint())
        })?;
        key.wanted().map_err(|trouble| {
            Failure::new(FailureKind::Refused, format!("{key}: {trouble}")).hint(trouble.hint())
        })?;
        let inode = found.inode();
        let (answer, mut ended) = oneshot::channel();
        {
            // At once: the publish that this begins is the one whose end is the answer.
            let mut board = dropping.board.lock();
            board.commit(&key, inode);
            let mut waiting = dropping.waiting.lock();
            let waiting = waiting.entry(key.clone()).or_default();
            waiting.push(Waiting { inode, answer });
        }
        let seen = dropping.see(&key, inode).await;
        dropping.board.lock().withdraw(&key, inode);
        seen?;
        let mut every = tokio::time::interval(SAY_EVERY);
        loop {
            tokio::select! {
                ended = &mut ended => {
                    return ended.map_err(|_| Failure::failed("the daemon ends"))?;
                }
                () = self.stop.cancelled() => return Err(Failure::failed("the daemon ends")),
                _ = every.tick() => dropping.say(&key, replies),
            }
        }
    }
}

impl Dropping {
    /// Returns which entry a path or a name means.
    fn key_of(&self, entry: &Path) -> Result<Key, Failure> {
        let elsewhere = || {
            let message = format!("{} is not in the drop directory", entry.display());
            Failure::new(FailureKind::Usage, message)
                .hint(format!("put it into {}", self.place.path().display()))
        };
        let below = if entry.is_absolute() {
            // Also through the link in a mount.
            let parent = entry
                .parent()
                .and_then(|parent| std::fs::canonicalize(parent).ok());
            let path = parent
                .zip(entry.file_name())
                .map(|(parent, name)| parent.join(name));
            let path = path.ok_or_else(elsewhere)?;
            path.strip_prefix(&self.real)
                .map_err(|_| elsewhere())?
                .to_owned()
        } else {
            entry.to_owned()
        };
        Key::from_path(below.as_os_str().as_bytes()).ok_or_else(elsewhere)
    }

    /// Returns once what was committed was found.
    async fn see(&self, key: &Key, inode: u64) -> Result<(), Failure> {
        let deadline = tokio::time::Instant::now() + SEEN_WITHIN;
        loop {
            let scanned = self.scanned.notified();
            if !self.board.lock().is_pending(key, inode) {
                return Ok(());
            }
            self.changed.notify_one();
            if tokio::time::timeout_at(deadline, scanned).await.is_err() {
                return Err(
                    Failure::failed(format!("{key} is not seen in the drop directory"))
                        .hint("`manifs status` says what is wrong"),
                );
            }
        }
    }

    /// Says how far an entry is.
    fn say(&self, key: &Key, replies: &Replies) {
        let progress = self.under_way.lock().get(key).cloned();
        let (step, done, total) = match progress {
            Some(progress) => {
                let now = progress.now();
                (now.step.word().to_owned(), now.bytes_done, now.bytes)
            }
            None => match self.board.lock().phase(key) {
                Some(Phase::Committed) => ("waits for its turn".to_owned(), 0, 0),
                _ => return,
            },
        };
        replies.progress(Progress {
            step,
            done,
            total,
            bytes: true,
        });
    }
}
