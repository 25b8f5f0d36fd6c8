//! A home at work: its parts wired together, and the tasks that keep it up to date.
//!
//! [`Home::open`] takes a home's lock and makes every part; [`run`] keeps it going until told to stop. A command that
//! finds no daemon opens the home in its own process and asks it the same [`Request`]s: there is one way to do each
//! thing, whoever does it.

mod announcing;
mod answer;
mod drop;
mod follow;
mod mirror;
mod mounts;
mod network;
mod run;
mod seeding;
mod serving;
mod subtree;
mod target;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Paths};
use crate::fetch::{self, Fetcher};
use crate::fuse::mounting;
use crate::install::{Installer, Listing, PageCache, Updater};
use crate::manifest::TrustPolicy;
use crate::net::dht::Dht;
use crate::publish::Publisher;
use crate::serve::control::{Failure, FailureKind, Handler, Replies, Request};
use crate::source::torrent;
use crate::state::{State, StateError};
use crate::store::{self, Store, StoreError};

pub use self::drop::publish_problem;
pub use run::run;
pub(crate) use target::package_version;
pub use target::{Target, TargetError};

use follow::Followed;
use mounts::Mounts;
use serving::Serving;

/// An open home: this process owns its lock.
pub struct Home {
    paths: Paths,
    config: ArcSwap<Config>,
    state: Arc<State>,
    store: Arc<Store>,
    /// Where the index of the store lies, which is opened when something is shared.
    index: PathBuf,
    fetcher: Fetcher,
    pages: Arc<PageCache>,
    listing: Arc<Listing>,
    installer: Arc<Installer>,
    updater: Arc<Updater>,
    publisher: Arc<Publisher>,
    followed: Mutex<Vec<Arc<Followed>>>,
    /// What is asked for blocks.
    network: Mutex<network::Network>,
    /// Made once, since what is known of peers stays when the configuration changes.
    swarms: std::sync::OnceLock<Arc<torrent::Swarms>>,
    /// The hash table of BitTorrent, where the configuration allows it.
    dht: Option<Arc<Dht>>,
    mounts: Mounts,
    serving: Serving,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
    /// What is worth saying to whoever asks for the status.
    notes: Mutex<Vec<String>>,
    /// Whether a home without a daemon has read its registries.
    looked: std::sync::atomic::AtomicBool,
    /// Itself, for what outlives a request.
    own: std::sync::Weak<Home>,
}

impl Home {
    /// Takes a home's lock and opens everything in it. Call within a runtime; nothing is dialled yet.
    ///
    /// # Errors
    /// [`Failure`] with what to do: another process has the lock, a version is unknown, a file does not parse.
    pub async fn open(paths: Paths, config: Config) -> Result<Arc<Home>, Failure> {
        let runtime = Handle::current();
        let store_path = config
            .store
            .path
            .clone()
            .unwrap_or_else(|| paths.store.clone());
        let had_store = store_path.join("VERSION").exists();
        let state = Arc::new(State::open(&paths.state).map_err(|error| state_failure(&error))?);
        let mut notes = Vec::new();
        if state.was_created() && had_store {
            notes.push(
                "state/ was lost: what was seen of packages (against rollback), inode numbers and pins begin anew".to_owned(),
            );
        }
        let options = store::Options {
            quota: config.store.quota.0,
            verify: config.store.verify,
        };
        let store = Store::open(&store_path, options).map_err(|error| store_failure(&error))?;
        let policy = load_policy(&paths)?;
        // Where the kernel ends a mount that is late with one answer, every answer comes well before.
        let latest = mounting::request_timeout().map_or(Duration::MAX, |limit| limit * 7 / 10);
        let fetch_options = fetch::Options {
            idle_deadline: config.fetch.deadline.min(latest),
            total_deadline: config.fetch.deadline.saturating_mul(4).min(latest),
            ..fetch::Options::default()
        };
        let fetcher = Fetcher::new(
            fetch_options,
            Arc::clone(&store) as Arc<dyn fetch::Shelf>,
            runtime.clone(),
        );
        let tasks = TaskTracker::new();
        let pages = Arc::new(PageCache::default());
        let numbering = Arc::clone(&state);
        let listing = Arc::new(Listing::new(move |names| {
            let (numbers, saved) = numbering.numbers().assign(names);
            if let Err(error) = saved {
                tracing::warn!(%error, "inode numbers will be others after a restart");
            }
            numbers
        }));
        let installer = Installer::new(
            Arc::clone(&store),
            fetcher.clone(),
            Arc::clone(&pages),
            tasks.clone(),
        );
        let updater = Arc::new(Updater::new(
            Arc::clone(&listing),
            Arc::clone(&state),
            policy,
        ));
        let homes = [&paths.keys, &paths.state, &store_path]
            .map(|path| path.clone())
            .to_vec();
        let publisher = Publisher::new(Arc::clone(&store), Arc::clone(&state), homes);
        for note in &notes {
            tracing::warn!("{note}");
        }
        let dht = network::dht(&config);
        let home = Arc::new_cyclic(|own| Home {
            paths,
            config: ArcSwap::from_pointee(config),
            state,
            store,
            index: store_path.join("index.redb"),
            fetcher,
            pages,
            listing,
            installer,
            updater,
            publisher,
            followed: Mutex::default(),
            network: Mutex::default(),
            swarms: std::sync::OnceLock::new(),
            dht,
            mounts: Mounts::default(),
            serving: Serving::default(),
            tasks,
            stop: CancellationToken::new(),
            runtime,
            notes: Mutex::new(notes),
            looked: std::sync::atomic::AtomicBool::new(false),
            own: own.clone(),
        });
        home.apply_install();
        home.connect()?;
        home.updater.restore().await.map_err(Failure::failed)?;
        home.apply_hints();
        home.protect_pins();
        Ok(home)
    }

    /// Mounts, as [`crate::serve::control::Request::Mount`] does.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn mount_at(
        self: &Arc<Self>,
        mountpoint: &std::path::Path,
        options: &crate::serve::control::MountRequest,
    ) -> Result<crate::serve::control::Mounted, Failure> {
        self.mount(mountpoint, options).await
    }

    /// Ends the daemon.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    fn shared(&self) -> Result<Arc<Home>, Failure> {
        self.own
            .upgrade()
            .ok_or_else(|| Failure::failed("the daemon is stopping"))
    }

    /// Returns where everything lies.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Returns what is visible.
    pub fn listing(&self) -> &Arc<Listing> {
        &self.listing
    }

    /// Reads configuration and trust policy again, and judges everything by them. What is bound to a start (quota,
    /// addresses) stays as it was.
    ///
    /// # Errors
    /// [`Failure`]; then everything stays as it was.
    pub async fn reload(self: &Arc<Self>) -> Result<(), Failure> {
        let config = Config::load(&self.paths.config).map_err(|error| config_failure(&error))?;
        let policy = load_policy(&self.paths)?;
        let settings = drop::settings(&self.paths, config.publish.as_ref()).await?;
        self.config.store(Arc::new(config));
        self.updater.set_policy(policy);
        self.apply_install();
        self.connect()?;
        if let (Some(share), Some(section)) = (self.serving.share(), &self.config.load().gateway) {
            share
                .set_patterns(section.share.iter().map(|share| share.0.clone()).collect())
                .await;
        }
        if let Some(seeding) = self.serving.seeding.load_full() {
            seeding.reload(&self.config.load());
        }
        if let (Some(dropping), Some(settings)) = (self.serving.dropping.load_full(), settings) {
            dropping.reload(settings);
        }
        self.updater.restore().await.map_err(Failure::failed)?;
        self.apply_hints();
        self.followed
            .lock()
            .iter()
            .for_each(|followed| followed.again());
        Ok(())
    }

    fn apply_install(&self) {
        let install = self.config.load().mount.install;
        self.installer
            .set_by_hand(install == crate::config::Install::Manual);
    }

    /// Ends every task, drains what is under way, and writes down what was used.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.fetcher.close().await;
        if let Some(swarms) = self.swarms.get() {
            swarms.close().await;
        }
        self.tasks.wait().await;
        let store = Arc::clone(&self.store);
        let _ = tokio::task::spawn_blocking(move || store.flush()).await;
    }
}

#[async_trait]
impl Handler for Home {
    async fn handle(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        replies: &Replies,
    ) -> Result<Value, Failure> {
        self.answer(request, descriptors, replies).await
    }
}

fn load_policy(paths: &Paths) -> Result<TrustPolicy, Failure> {
    TrustPolicy::load(&paths.trust).map_err(|error| {
        let failure = Failure::failed(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn config_failure(error: &crate::config::ConfigError) -> Failure {
    Failure::failed(error).hint(error.hint())
}

fn state_failure(error: &StateError) -> Failure {
    let kind = match error {
        StateError::Locked { .. } => FailureKind::Busy,
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn store_failure(error: &StoreError) -> Failure {
    let failure = Failure::failed(error);
    match error {
        StoreError::UnknownVersion { .. } => {
            failure.hint("use the version of manifs that made it, or another home")
        }
        StoreError::Full { .. } => failure.hint("raise [store] quota, or unpin something"),
        StoreError::NoStore { .. } => {
            failure.hint("[store] path has to name an empty directory, or one that does not exist")
        }
        StoreError::InUse { .. } => {
            failure.hint("another daemon uses it: give each home a [store] path of its own")
        }
        StoreError::Io { .. } => failure,
    }
}

fn target_failure(error: &TargetError) -> Failure {
    match error {
        TargetError::NoPackage(_) | TargetError::NoVersion { .. } => {
            Failure::new(FailureKind::NotFound, error)
                .hint("`manifs list --all` shows what there is, and what was refused and why")
        }
        TargetError::Syntax(_) => Failure::new(FailureKind::Usage, error)
            .hint("names are lower case; a path below a mount begins with / or ./"),
        TargetError::AboveVersions(_) => Failure::new(FailureKind::Usage, error),
    }
}
