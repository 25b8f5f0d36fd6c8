//! The daemon's side.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::wire::{self, Kind};
use super::{Event, Failure, FailureKind, Progress, Reply, Request};

/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// How long a client may take to send its request; descriptors and slots are not for idlers.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// The pause after a failed accept.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Frames that may wait for a slow client.
const REPLIES_WAITING: usize = 4;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
}

impl Peer {
    /// Returns whether it may do everything: the daemon's own user, and root.
    pub fn is_owner(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// Where results go while a request is worked on. Waits while the client is slow; fails once it is gone.
#[derive(Clone)]
pub struct Replies {
    frames: mpsc::Sender<Frame>,
}

enum Frame {
    Event(Event),
    Data(Bytes),
}

/// What is sent to [`Replies`], for whoever takes it in this process.
pub(crate) struct Taken {
    frames: mpsc::Receiver<Frame>,
}

impl Taken {
    /// Waits for the next; `None` when there is no more. Blocking.
    pub(crate) fn next(&mut self) -> Option<Reply> {
        let frame = self.frames.blocking_recv()?;
        Some(match frame {
            Frame::Event(event) => Reply::Event(event),
            Frame::Data(bytes) => Reply::Data(bytes.into()),
        })
    }
}

impl Replies {
    /// Has what is sent taken in this process.
    pub(crate) fn taken() -> (Replies, Taken) {
        let (sender, frames) = mpsc::channel(REPLIES_WAITING);
        (Replies { frames: sender }, Taken { frames })
    }

    /// Sends one of several results.
    ///
    /// # Errors
    /// [`Failure`] when the client is gone; nobody will see it.
    pub async fn item(&self, item: &impl Serialize) -> Result<(), Failure> {
        let item = serde_json::to_value(item).map_err(Failure::failed)?;
        self.send(Frame::Event(Event::Item(item))).await
    }

    /// Sends bytes of a file.
    ///
    /// # Errors
    /// As [`Replies::item`].
    pub async fn data(&self, bytes: Bytes) -> Result<(), Failure> {
        self.send(Frame::Data(bytes)).await
    }

    /// Says how far it is. Left out when the client is busy with what came before.
    pub fn progress(&self, progress: Progress) {
        let _ = self
            .frames
            .try_send(Frame::Event(Event::Progress(progress)));
    }

    async fn send(&self, frame: Frame) -> Result<(), Failure> {
        self.frames
            .send(frame)
            .await
            .map_err(|_| Failure::failed("the client is gone"))
    }
}

/// Does what is asked. Dropping the future is how a client's leaving cancels.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Works on one request.
    async fn handle(
        &self,
        request: Request,
        descriptors: Vec<OwnedFd>,
        replies: &Replies,
    ) -> Result<Value, Failure>;
}

/// Serves connections until `stop`; those under way then go on, owned by `tasks`.
pub async fn serve(
    listener: UnixListener,
    handler: Arc<dyn Handler>,
    tasks: TaskTracker,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    tokio::pin!(stop);
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tasks.spawn(async move {
                    if let Err(error) = serve_connection(stream, handler).await {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                // Mostly too many open files: asking again at once would only burn the processor.
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Serves one connection.
///
/// # Errors
/// The system's, when the client is gone or does not speak our language.
pub async fn serve_connection(stream: UnixStream, handler: Arc<dyn Handler>) -> io::Result<()> {
    let peer = Peer {
        uid: stream.peer_cred()?.uid(),
    };
    serve_peer(stream, peer, handler).await
}

/// Serves a connection of somebody who is known.
pub(super) async fn serve_peer(
    mut stream: UnixStream,
    peer: Peer,
    handler: Arc<dyn Handler>,
) -> io::Result<()> {
    let first = tokio::time::timeout(REQUEST_WITHIN, wire::receive_first(&mut stream));
    let (payload, descriptors) = first.await.map_err(|_| io::ErrorKind::TimedOut)??;
    let (mut incoming, mut outgoing) = stream.into_split();
    let request = match serde_json::from_slice::<Request>(&payload) {
        Ok(request) => request,
        Err(error) => {
            let failure =
                Failure::failed(format!("the daemon does not know this request: {error}"))
                    .hint("command and daemon are of different versions: restart the daemon");
            return send_event(&mut outgoing, &Event::Failed(failure)).await;
        }
    };
    if !peer.is_owner() && !request.is_harmless() {
        let failure = Failure::new(FailureKind::Refused, "the daemon belongs to another user")
            .hint("use a home of your own, or ask as that user");
        return send_event(&mut outgoing, &Event::Failed(failure)).await;
    }
    let (frames, mut waiting) = mpsc::channel(REPLIES_WAITING);
    let replies = Replies { frames };
    let work = async move { handler.handle(request, descriptors, &replies).await };
    let forward = async {
        while let Some(frame) = waiting.recv().await {
            match frame {
                Frame::Event(event) => send_event(&mut outgoing, &event).await?,
                Frame::Data(bytes) => wire::send(&mut outgoing, Kind::Data, &bytes).await?,
            }
        }
        Ok::<_, io::Error>(outgoing)
    };
    // A client sends nothing after its request, so whatever can be read now is its end.
    let left = async move {
        let _ = incoming.read(&mut [0]).await;
    };
    let (outcome, outgoing) = tokio::select! {
        both = async { tokio::join!(work, forward) } => both,
        () = left => return Ok(()),
    };
    let last = match outcome {
        Ok(value) => Event::Done(value),
        Err(failure) => Event::Failed(failure),
    };
    send_event(&mut outgoing?, &last).await
}

async fn send_event(
    stream: &mut (impl tokio::io::AsyncWriteExt + Unpin),
    event: &Event,
) -> io::Result<()> {
    wire::send(stream, Kind::Message, &serde_json::to_vec(event)?).await
}
