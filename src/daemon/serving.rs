//! What the daemon serves: the control socket, and the gateway where it is configured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};

use super::Home;
use super::drop::Dropping;
use super::seeding::Seeding;
use crate::net::{self, Rate};
use crate::serve::control::{self, Failure, Handler};
use crate::serve::gateway;
use crate::serve::share::{Parts, Share};
use crate::store::Index;

/// What is being served.
pub(super) struct Serving {
    running: AtomicBool,
    ends_with_last_mount: AtomicBool,
    gateway: Mutex<Option<SocketAddr>>,
    share: Mutex<Option<Arc<Share>>>,
    pub(super) seeding: ArcSwapOption<Seeding>,
    pub(super) dropping: ArcSwapOption<Dropping>,
    /// The client as the configuration wants it now, for who announces.
    pub(super) client: Arc<ArcSwap<net::Client>>,
}

impl Default for Serving {
    fn default() -> Self {
        let client = net::Client::new(net::Options::default());
        Serving {
            running: AtomicBool::default(),
            ends_with_last_mount: AtomicBool::default(),
            gateway: Mutex::default(),
            share: Mutex::default(),
            seeding: ArcSwapOption::empty(),
            dropping: ArcSwapOption::empty(),
            client: Arc::new(ArcSwap::from_pointee(client)),
        }
    }
}

impl Serving {
    /// Returns whether this home is run as a daemon.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Returns whether the daemon ends with its last mount.
    pub(super) fn ends_with_last_mount(&self) -> bool {
        self.ends_with_last_mount.load(Ordering::Relaxed)
    }

    pub(super) fn set_ends_with_last_mount(&self, ends: bool) {
        self.ends_with_last_mount.store(ends, Ordering::Relaxed);
    }

    /// Returns what is shared, where something is.
    pub(super) fn share(&self) -> Option<Arc<Share>> {
        self.share.lock().clone()
    }

    pub(super) fn gateway(&self) -> Option<SocketAddr> {
        *self.gateway.lock()
    }
}

impl Home {
    /// Opens the sockets and serves them until the home stops.
    pub(super) async fn start_serving(self: &Arc<Self>) -> Result<(), Failure> {
        let listener = self.control_listener()?;
        let handler = Arc::clone(self) as Arc<dyn Handler>;
        let stop = self.stop.clone();
        self.tasks.spawn(control::serve(
            listener,
            handler,
            self.tasks.clone(),
            async move { stop.cancelled().await },
        ));
        let config = self.config.load_full();
        // One cap for all that is served, whoever asks.
        let up = config.fetch.up.0;
        let up = (up > 0).then(|| Arc::new(Rate::new(up)));
        self.start_seeding(up.clone()).await?;
        if let Some(section) = &config.gateway {
            let listener = TcpListener::bind(section.listen).await.map_err(|error| {
                Failure::failed(format!("[gateway] listen {}: {error}", section.listen))
                    .hint("choose another address in [gateway] listen")
            })?;
            *self.serving.gateway.lock() = listener.local_addr().ok();
            let path = self.index.clone();
            let index = tokio::task::spawn_blocking(move || Index::open(&path)).await;
            let index = index.map_err(Failure::failed)?.map_err(Failure::failed)?;
            let parts = Parts {
                store: Arc::clone(&self.store),
                index: Arc::new(index),
                listing: Arc::clone(&self.listing),
                installer: Arc::clone(&self.installer),
                state: Arc::clone(&self.state),
                scratch: self.paths.run.clone(),
            };
            let share = Share::new(
                parts,
                section.share.iter().map(|share| share.0.clone()).collect(),
            );
            *self.serving.share.lock() = Some(Arc::clone(&share));
            self.tasks.spawn(Arc::clone(&share).run(self.stop.clone()));
            let options = gateway::Options {
                hosts: section.hosts.clone(),
                up,
            };
            let server = gateway::Gateway::new(share, &options);
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let limits = gateway::Limits::default();
                gateway::serve(listener, server.router(), limits, async move {
                    stop.cancelled().await
                })
                .await;
            });
        }
        self.serving.running.store(true, Ordering::Relaxed);
        self.follow_all();
        Ok(())
    }

    fn control_listener(&self) -> Result<UnixListener, Failure> {
        let (run, socket) = (&self.paths.run, self.paths.socket());
        let failed =
            |error: std::io::Error| Failure::failed(format!("{}: {error}", socket.display()));
        std::fs::create_dir_all(run).map_err(failed)?;
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        std::fs::set_permissions(run, private).map_err(failed)?;
        // We have the home's lock, so whoever made a socket here before is gone.
        let _ = std::fs::remove_file(&socket);
        let listener = control::bind(&socket).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        UnixListener::from_std(listener).map_err(failed)
    }
}
