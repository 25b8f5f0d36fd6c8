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

struct Job {
    place: BlockRef,
    block: Block,
    kept: oneshot::Sender<bool>,
    _room: OwnedSemaphorePermit,
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
                        let _ = job.kept.send(shelf.put(&job.place, &job.block));
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

    /// Writes a block and returns whether the store kept it. `patient` waits for room, otherwise no room is a no.
    pub(super) async fn put(&self, place: BlockRef, block: Block, patient: bool) -> bool {
        let room = Arc::clone(&self.room);
        let bytes = place.len().clamp(1, BACKLOG_BYTES);
        let room = if patient {
            room.acquire_many_owned(bytes).await.ok()
        } else {
            room.try_acquire_many_owned(bytes).ok()
        };
        let Some(room) = room else {
            return false;
        };
        let (kept, answer) = oneshot::channel();
        let job = Job {
            place,
            block,
            kept,
            _room: room,
        };
        self.jobs.send(job).is_ok() && answer.await.unwrap_or(false)
    }
}
