//! A way to ask a home: over its daemon's socket, or in this process.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::Error;
use crate::config::{Config, Paths};
use crate::daemon::Home;
use crate::serve::control::{
    self, Client, ClientError, Failure, FailureKind, Handler, Reply, Request,
};

/// How long a command waits for another one that has the home's lock.
const BUSY: Duration = Duration::from_secs(20);

/// How often it tries.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// Makes the runtime of this process.
///
/// # Errors
/// [`Failure`] when the system gives no threads.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("manifs")
        .max_blocking_threads(128)
        .build()
        .map_err(Failure::failed)
}

/// Asks the daemon, or the home itself.
pub(super) struct Session {
    paths: Paths,
    config: Config,
    /// The home in this process, once no daemon was found.
    own: Option<(Runtime, Arc<Home>)>,
}

impl Session {
    pub(super) fn new(paths: Paths, config: Config) -> Session {
        Session {
            paths,
            config,
            own: None,
        }
    }

    /// Sends a request, gives what comes to `visit`, and returns the result.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        visit: &mut dyn FnMut(Reply) -> io::Result<()>,
    ) -> Result<Value, Error> {
        Ok(self.client()?.ask(request, descriptors, visit)?)
    }

    /// Sends a request that has one result of a known form.
    pub(super) fn get<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, Error> {
        Ok(self.client()?.get(request)?)
    }

    fn client(&mut self) -> Result<Client, Error> {
        let deadline = Instant::now() + BUSY;
        while self.own.is_none() {
            match Client::connect(&self.paths.socket()) {
                Err(ClientError::NoDaemon(_)) => {}
                client => return Ok(client?),
            }
            match self.open() {
                Ok(own) => self.own = Some(own),
                // Another command, which will be done soon, or a daemon that is about to answer.
                Err(Error::Failure(failure))
                    if failure.kind == FailureKind::Busy && Instant::now() < deadline =>
                {
                    // No event tells of either; this is a command, and it waits with a deadline.
                    std::thread::park_timeout(ASK_EVERY);
                }
                Err(error) => return Err(error),
            }
        }
        let Some((runtime, home)) = &self.own else {
            return Err(Failure::failed("no home").into());
        };
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let handler = Arc::clone(home) as Arc<dyn Handler>;
        runtime.spawn(async move {
            match tokio::net::UnixStream::from_std(theirs) {
                Ok(stream) => control::serve_connection(stream, handler).await,
                Err(error) => Err(error),
            }
        });
        Ok(Client::over(ours))
    }

    fn open(&self) -> Result<(Runtime, Arc<Home>), Error> {
        let runtime = runtime()?;
        let home = runtime.block_on(Home::open(self.paths.clone(), self.config.clone()))?;
        Ok((runtime, home))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((runtime, home)) = self.own.take() {
            runtime.block_on(home.close());
            drop(home);
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
