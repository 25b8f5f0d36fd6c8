//! Verified blocks on their way into the store.
//!
//! Readers are answered before their block is written. What waits to be written is bounded: when the disk is slower
//! than the network, prefetch and warming wait for it, and a reader's block passes through unstored.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::shelf::Shelf;
use crate::block::{Block, BlockRef};

/// Bytes that may wait to be written.
const BACKLOG_BYTES: u32 = 32 << 20;

/// Blocks written by one visit to the blocking pool; one visit costs about as much as writing a small file.
const BATCH_BLOCKS: usize = 64;

enum Job {
    Write {
        place: BlockRef,
        block: Block,
        kept: oneshot::Sender<bool>,
        _room: OwnedSemaphorePermit,
    },
    /// Says that everything before it is written.
    Mark(oneshot::Sender<()>),
}

pub(super) struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
    room: Arc<Semaphore>,
}

impl Writer {
    /// Starts the task that writes; it ends when the writer is dropped, or `closed`, and everything is written.
    pub(super) fn start(
        shelf: Arc<dyn Shelf>,
        runtime: &Handle,
        tasks: &TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let write = async move {
            let mut batch = Vec::new();
            loop {
                tokio::select! {
                    biased;
                    count = queue.recv_many(&mut batch, BATCH_BLOCKS) => if count == 0 { return },
                    () = closed.cancelled(), if !queue.is_closed() => {
                        // What is in the queue is still written.
                        queue.close();
                        continue;
                    }
                }
                let shelf = Arc::clone(&shelf);
                let jobs = std::mem::take(&mut batch);
                let write = move || {
                    for job in jobs {
                        // Whoever waits for it may have gone.
                        match job {
                            Job::Write {
                                place, block, kept, ..
                            } => drop(kept.send(shelf.put(&place, &block))),
                            Job::Mark(reached) => drop(reached.send(())),
                        }
                    }
                };
                // A panic in the store is a miss later; the waiters see their channels close.
                let _ = tokio::task::spawn_blocking(write).await;
            }
        };
        tasks.spawn_on(write, runtime);
        Writer {
            jobs,
            room: Arc::new(Semaphore::new(BACKLOG_BYTES as usize)),
        }
    }

    /// Writes a block when there is room, and returns whether the store kept it.
    pub(super) async fn put(&self, place: BlockRef, block: Block) -> bool {
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(permits(&place)).await.ok();
        self.queue(place, block, room).await
    }

    /// Has a block written if there is room, whether or not somebody waits for the answer: did the store keep it?
    pub(super) fn try_put(
        &self,
        place: BlockRef,
        block: Block,
    ) -> impl Future<Output = bool> + Send + use<> {
        let room = Arc::clone(&self.room);
        let room = room.try_acquire_many_owned(permits(&place)).ok();
        self.queue(place, block, room)
    }

    /// Waits until everything that was queued before is written.
    pub(super) async fn written(&self) {
        let (reached, answer) = oneshot::channel();
        if self.jobs.send(Job::Mark(reached)).is_ok() {
            // An error means that nothing is written any more.
            let _ = answer.await;
        }
    }

    fn queue(
        &self,
        place: BlockRef,
        block: Block,
        room: Option<OwnedSemaphorePermit>,
    ) -> impl Future<Output = bool> + Send + use<> {
        let queued = room.and_then(|room| {
            let (kept, answer) = oneshot::channel();
            let job = Job::Write {
                place,
                block,
                kept,
                _room: room,
            };
            self.jobs.send(job).ok().map(|()| answer)
        });
        async move {
            match queued {
                Some(answer) => answer.await.unwrap_or(false),
                None => false,
            }
        }
    }
}

fn permits(place: &BlockRef) -> u32 {
    place.len().clamp(1, BACKLOG_BYTES)
}
