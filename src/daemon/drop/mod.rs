//! The drop directory of a daemon: watches it, publishes what is committed, a few entries at a time, and tells how it
//! stands.
//!
//! What an entry is and when it is committed is decided in [`crate::publish::drop`]; here are the events, the clock, the
//! key and the tasks. An event may be lost: everything is looked at again from time to time.

mod commit;
mod memory;
mod scan;
mod settings;
mod watch;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

use super::Home;
use crate::config::PublishSection;
use crate::manifest::{Pattern, Timestamp};
use crate::publish::Progress;
use crate::publish::drop::{
    Board, DropDirectory, DropError, Ending, Entry, Fingerprint, Key, NameTrouble, Phase,
    Remembered, Report, Word,
};
use crate::serve::control::{Committed, DropItem, DropStatus, Failure};

use settings::{Settings, drop_failure};
use watch::{Heard, Watch};

/// How often the directory is looked at though nothing was heard of it.
const SCAN_EVERY: Duration = Duration::from_secs(10);

/// How long to wait after an event, so that one look sees several.
const GATHER: Duration = Duration::from_millis(20);

/// How many entries are published at a time; each keeps all cores busy where it can.
const PUBLISHES_MAX: usize = 4;

/// How many entries are looked at at a time.
const LOOKS_MAX: usize = 2;

/// The most entries that a status shows.
const SHOWN_MAX: usize = 1000;

/// How many versions a status shows whose directories are cleared away.
const RECENT_MAX: usize = 20;

/// Where it is written down which entries are done, and which were about to become a version.
const REMEMBERED: &str = "dropped.json";

/// How a publish that somebody waits for ended.
type Answer = Result<Committed, Failure>;

/// A drop directory at work.
pub(super) struct Dropping {
    place: Arc<DropDirectory>,
    /// As events name it.
    real: PathBuf,
    settings: ArcSwap<Settings>,
    board: Mutex<Board>,
    heard: Arc<Heard>,
    /// Somebody has changed the board.
    changed: Notify,
    /// The directory was looked at.
    scanned: Notify,
    under_way: Mutex<HashMap<Key, Arc<Progress>>>,
    told: Mutex<BTreeMap<Key, Told>>,
    /// Who writes a status; they come in order.
    writing: Mutex<()>,
    /// The last versions whose directories are cleared away.
    recent: Mutex<VecDeque<(Key, Told)>>,
    waiting: Mutex<HashMap<Key, Vec<Waiting>>>,
    /// What keeps the directory as a whole from being used.
    problem: Mutex<Option<String>>,
    remembered: Mutex<BTreeMap<String, Remembered>>,
    remembered_path: PathBuf,
    /// Whether this process has looked at all of the directory.
    seen_once: AtomicBool,
}

/// What an entry's status says.
#[derive(Clone)]
struct Told {
    report: Report,
    at: Timestamp,
}

/// Somebody who waits for what becomes of a directory.
struct Waiting {
    inode: u64,
    answer: oneshot::Sender<Answer>,
}

impl Waiting {
    /// Tells all of them how it ended.
    fn answer(all: Vec<Waiting>, answer: &Answer) {
        for waiting in all {
            // Who does not wait any more is not told.
            let _ = waiting.answer.send(answer.clone());
        }
    }
}

/// What a task did.
enum Done {
    Worked(Ending),
    Looked(Option<Phase>),
}

/// What a task is about.
enum About {
    Work(Key),
    Look(Key),
}

/// Reads what a section says again.
///
/// # Errors
/// [`Failure`], when the key cannot be read.
pub(super) async fn settings(
    paths: &crate::config::Paths,
    section: Option<&PublishSection>,
) -> Result<Option<Settings>, Failure> {
    let Some(section) = section.cloned() else {
        return Ok(None);
    };
    let paths = paths.clone();
    let read = tokio::task::spawn_blocking(move || Settings::new(&paths, &section));
    read.await.map_err(Failure::failed)?.map(Some)
}

/// Says what would keep a daemon from publishing as a section says; none: nothing.
pub fn publish_problem(paths: &crate::config::Paths, section: &PublishSection) -> Option<String> {
    let checked = Settings::new(paths, section).map(drop).and_then(|()| {
        let group = settings::group(section).map_err(|error| drop_failure(&error.into()))?;
        DropDirectory::check(&settings::directory(paths, section), group.as_ref())
            .map_err(|error| drop_failure(&error))
    });
    let failure = checked.err()?;
    Some(match failure.hint {
        Some(hint) => format!("{}: {hint}", failure.message),
        None => failure.message,
    })
}

impl Home {
    /// Opens the drop directory, where one is configured; nothing is published yet.
    ///
    /// # Errors
    /// [`Failure`]: the key cannot be read, the directory cannot be used.
    pub(super) async fn open_dropping(&self) -> Result<(), Failure> {
        let Some(section) = self.config.load().publish.clone() else {
            return Ok(());
        };
        let (paths, journal) = (self.paths.clone(), self.state.journal().to_owned());
        let state = self.state.dir().to_owned();
        let open = move || Dropping::new(&paths, &section, &journal, &state);
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.map_err(Failure::failed)??;
        self.serving.dropping.store(Some(Arc::new(opened)));
        Ok(())
    }

    /// Publishes from the drop directory until the home stops.
    pub(super) fn start_dropping(self: &Arc<Self>) {
        let Some(dropping) = self.serving.dropping.load_full() else {
            return;
        };
        tracing::info!(directory = %dropping.place.path().display(), "directories dropped here are published");
        self.tasks.spawn(dropping.run(Arc::clone(self)));
    }
}

impl Dropping {
    fn new(
        paths: &crate::config::Paths,
        section: &PublishSection,
        temporary: &Path,
        state: &Path,
    ) -> Result<Dropping, Failure> {
        let settings = Settings::new(paths, section)?;
        let path = settings::directory(paths, section);
        let group = settings::group(section).map_err(|error| drop_failure(&error.into()))?;
        let place =
            DropDirectory::open(&path, group, temporary).map_err(|error| drop_failure(&error))?;
        let remembered_path = state.join(REMEMBERED);
        let remembered = memory::read(&remembered_path)?;
        // Before anybody is told that the directory is there; what fails is told by the first look.
        let _ = make_scopes(&place, &settings);
        Ok(Dropping {
            real: std::fs::canonicalize(&path).unwrap_or(path),
            place: Arc::new(place),
            board: Mutex::new(Board::new(settings.settle)),
            settings: ArcSwap::from_pointee(settings),
            heard: Arc::default(),
            changed: Notify::new(),
            scanned: Notify::new(),
            under_way: Mutex::default(),
            told: Mutex::default(),
            writing: Mutex::default(),
            recent: Mutex::default(),
            waiting: Mutex::default(),
            problem: Mutex::default(),
            remembered: Mutex::new(remembered),
            remembered_path,
            seen_once: AtomicBool::new(false),
        })
    }

    /// Returns where the directory is, for the mounts.
    pub(super) fn path(&self) -> &Path {
        &self.real
    }

    async fn run(self: Arc<Self>, home: Arc<Home>) {
        let mut watch = Watch::new(&self.real, &self.heard);
        let mut tasks: JoinSet<Done> = JoinSet::new();
        // Also of one that panics it has to be known what it was about.
        let mut abouts: HashMap<tokio::task::Id, About> = HashMap::new();
        let mut looking: HashSet<Key> = HashSet::new();
        let mut working = 0;
        let mut bad: BTreeMap<Key, NameTrouble> = BTreeMap::new();
        let mut scan_at = Instant::now();
        loop {
            if scan_at <= Instant::now() {
                let (again, next) = self.scan(watch, &mut bad).await;
                watch = next;
                let wait = if again { GATHER } else { SCAN_EVERY };
                scan_at = Instant::now() + wait;
                self.scanned.notify_waiters();
            }
            let now = Instant::now();
            let due = self.board.lock().to_look_at(now);
            for key in due {
                if looking.len() < LOOKS_MAX && looking.insert(key.clone()) {
                    let dropping = Arc::clone(&self);
                    let about = About::Look(key.clone());
                    let task = tasks.spawn_blocking(move || dropping.look(&key));
                    abouts.insert(task.id(), about);
                }
            }
            for (key, waiting) in self.start(PUBLISHES_MAX - working, now) {
                working += 1;
                let about = About::Work(key.clone());
                let (home, dropping) = (Arc::clone(&home), Arc::clone(&self));
                let task = tasks.spawn(async move {
                    Done::Worked(work::work(home, dropping, key, waiting).await)
                });
                abouts.insert(task.id(), about);
            }
            self.tell_queue().await;
            let wake = self.board.lock().wake_at();
            // What is looked at already is due until it was; its end wakes us.
            let wake = wake
                .filter(|_| looking.len() < LOOKS_MAX && !looking.is_empty() || looking.is_empty());
            let wake = wake.map_or(scan_at, |wake| wake.max(now + GATHER).min(scan_at));
            tokio::select! {
                () = home.stop.cancelled() => break,
                () = self.heard.happened.notified() => {
                    tokio::time::sleep(GATHER).await;
                    scan_at = Instant::now();
                }
                () = self.changed.notified() => scan_at = Instant::now(),
                Some(done) = tasks.join_next_with_id() => {
                    let (id, done) = match done {
                        Ok((id, done)) => (id, Some(done)),
                        Err(error) => {
                            tracing::error!(%error, "the drop directory");
                            (error.id(), None)
                        }
                    };
                    match abouts.remove(&id) {
                        Some(About::Work(key)) => {
                            working -= 1;
                            scan_at = Instant::now();
                            self.under_way.lock().remove(&key);
                            let ending = match done {
                                Some(Done::Worked(ending)) => ending,
                                // It broke off, which may have been for once.
                                _ => Ending::Wait,
                            };
                            self.board.lock().ended(&key, ending, Instant::now());
                        }
                        Some(About::Look(key)) => {
                            looking.remove(&key);
                            let phase = match done {
                                Some(Done::Looked(phase)) => phase,
                                _ => self.looked(&key, None, true, Duration::ZERO),
                            };
                            if phase == Some(Phase::Arriving) {
                                self.tell(&key, self.arriving()).await;
                            }
                        }
                        None => {}
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
        for progress in self.under_way.lock().values() {
            progress.cancel();
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Takes what is to be published now, each with those who wait for it.
    fn start(&self, room: usize, now: Instant) -> Vec<(Key, Vec<Waiting>)> {
        let mut board = self.board.lock();
        let started = board.start(room, now);
        let started = started.into_iter().map(|key| {
            let inode = board.inode(&key);
            let waiting = self.take_waiting(&board, &key).into_iter();
            let (its, gone) = waiting.partition(|waiting| Some(waiting.inode) == inode);
            Waiting::answer(gone, &Err(went_away(&key)));
            (key, its)
        });
        started.collect()
    }

    /// Takes those who wait for an entry, but for a directory that was not found yet under this name.
    fn take_waiting(&self, board: &Board, key: &Key) -> Vec<Waiting> {
        let mut waiting = self.waiting.lock();
        let all = waiting.remove(key).unwrap_or_default().into_iter();
        let (pending, taken): (Vec<_>, Vec<_>) =
            all.partition(|waiting| board.is_pending(key, waiting.inode));
        if !pending.is_empty() {
            waiting.insert(key.clone(), pending);
        }
        taken
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut known = self.problem.lock();
        if *known != problem {
            if let Some(problem) = &problem {
                tracing::warn!("{problem}");
            }
            *known = problem;
        }
    }

    /// Looks at one entry. Blocking.
    fn look(&self, key: &Key) -> Done {
        let started = Instant::now();
        let entry = self.place.entry(key).ok();
        let fingerprint = entry.as_ref().and_then(|entry| entry.fingerprint().ok());
        let quiet = fingerprint.is_some_and(|fingerprint| {
            self.board.lock().is_quiet(key, fingerprint, Instant::now())
        });
        // Asked last, when everything else says that it is complete.
        let unwritten = |entry: &Entry| matches!(entry.writer(), Ok(None));
        let written = quiet && !entry.as_ref().is_some_and(unwritten);
        let took = started.elapsed();
        tracing::debug!(entry = %key, quiet, written, ?took, "looked at");
        Done::Looked(self.looked(key, fingerprint, written, took))
    }

    fn looked(
        &self,
        key: &Key,
        fingerprint: Option<Fingerprint>,
        written: bool,
        took: Duration,
    ) -> Option<Phase> {
        let mut board = self.board.lock();
        board.looked(key, fingerprint, written, took, Instant::now())
    }

    fn arriving(&self) -> Report {
        let settle = self.settings.load().settle;
        let when = if settle.is_zero() {
            String::new()
        } else {
            let settle = crate::manifest::time::format_duration(settle);
            format!(", or when nothing changes in it for {settle}")
        };
        let line = format!(
            "It is published when you create .publish in it, run `manifs publish --commit` on it, rename it into place{when}."
        );
        Report::new(Word::Arriving, vec![line])
    }

    /// Says of those that wait for their turn that they do.
    async fn tell_queue(self: &Arc<Self>) {
        let queued: Vec<Key> = {
            let board = self.board.lock();
            let told = self.told.lock();
            let said = |key: &Key| {
                told.get(key)
                    .is_some_and(|told| told.report.word == Word::Committed)
            };
            let committed = board
                .phases()
                .filter(|(_, phase)| *phase == Phase::Committed);
            committed
                .filter(|(key, _)| !said(key))
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in queued {
            let line = "It is published when those before it are.".to_owned();
            self.tell(&key, Report::new(Word::Committed, vec![line]))
                .await;
        }
    }

    /// Says how an entry stands; returns whether that is news.
    async fn tell(self: &Arc<Self>, key: &Key, report: Report) -> bool {
        {
            let mut told = self.told.lock();
            if told.get(key).is_some_and(|told| told.report == report) {
                return false;
            }
            let at = Timestamp::now();
            told.insert(key.clone(), Told { report, at });
        }
        let (dropping, own) = (Arc::clone(self), key.clone());
        let _ = tokio::task::spawn_blocking(move || dropping.write_status(&own)).await;
        true
    }

    /// Writes what an entry's status says now: whoever is late writes what the last one said. Blocking.
    fn write_status(&self, key: &Key) {
        let _turn = self.writing.lock();
        let Some(told) = self.told.lock().get(key).cloned() else {
            return;
        };
        // What was committed stays committed; the other words are found out again.
        let durable = told.report.word.is_under_way();
        let text = told.report.text(told.at);
        if let Err(error) = self.place.write_status(key, &text, durable) {
            tracing::warn!(entry = %key, %error, "its status is not written");
        }
    }

    /// Forgets an entry that is gone. What was published keeps its status.
    async fn forget(self: &Arc<Self>, key: &Key) {
        let told = self.told.lock().remove(key);
        self.unremember(key).await;
        let published = |told: &Told| told.report.word.is_version();
        let kept = told.as_ref().is_none_or(published);
        if let Some(told) = told.filter(published) {
            let mut recent = self.recent.lock();
            recent.retain(|(known, _)| known != key);
            recent.push_back((key.clone(), told));
            if recent.len() > RECENT_MAX {
                recent.pop_front();
            }
        }
        if !kept {
            let (dropping, key) = (Arc::clone(self), key.clone());
            let removed = tokio::task::spawn_blocking(move || {
                let _turn = dropping.writing.lock();
                dropping.place.remove_status(&key);
            });
            let _ = removed.await;
        }
        let waiting = self.take_waiting(&self.board.lock(), key);
        Waiting::answer(waiting, &Err(went_away(key)));
    }

    /// Returns the counters of a publish that begins.
    fn progress(&self, key: &Key) -> Arc<Progress> {
        let progress = Arc::new(Progress::new());
        self.under_way
            .lock()
            .insert(key.clone(), Arc::clone(&progress));
        progress
    }

    /// Takes what a configuration that was read again wants; where the directory is stays as it was.
    pub(super) fn reload(&self, settings: Settings) {
        self.board.lock().set_settle(settings.settle);
        self.settings.store(Arc::new(settings));
        self.changed.notify_one();
    }

    /// Returns how everything stands.
    pub(super) fn status(&self) -> DropStatus {
        let settings = self.settings.load();
        let under_way = self.under_way.lock().clone();
        let told = self.told.lock();
        let item = |(key, told): (&Key, &Told)| DropItem {
            entry: key.to_string(),
            state: told.report.word.to_string(),
            since: told.at.to_string(),
            lines: match under_way.get(key) {
                Some(progress) => vec![work::progress_line(progress)],
                None => told.report.lines.clone(),
            },
        };
        DropStatus {
            directory: self.place.path().to_owned(),
            names: settings.names.iter().map(ToString::to_string).collect(),
            settle_seconds: settings.settle.as_secs(),
            entries: {
                let recent = self.recent.lock();
                let recent = recent.iter().filter(|(key, _)| !told.contains_key(key));
                let recent = recent.map(|(key, told)| (key, told));
                told.iter()
                    .take(SHOWN_MAX)
                    .chain(recent)
                    .map(item)
                    .collect()
            },
        }
    }

    /// Returns what keeps it from working.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problem.lock().iter().cloned().collect()
    }
}

/// Makes the directories of the scopes that are published here, so that something can be dropped into them. Blocking.
fn make_scopes(place: &DropDirectory, settings: &Settings) -> Result<(), DropError> {
    let scopes: BTreeSet<&str> = settings.names.iter().filter_map(Pattern::scope).collect();
    scopes
        .into_iter()
        .try_for_each(|scope| place.make_scope(scope))
}

fn went_away(key: &Key) -> Failure {
    Failure::failed(format!("{key} went away")).hint("drop it again")
}
