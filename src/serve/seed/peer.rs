//! One connection: a leecher that asks, and is given what it asks for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use librqbit_peer_protocol::{Handshake, Message as Known};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::content::{Content, Gone, answer, range};
use super::encryption::{self, Incoming, Outgoing};
use super::wire::{self, Message, Request, WireError};
use super::{Seed, Seeds};
use crate::torrent::handshake;

/// Requests that a connection may have waiting; nothing more is read of it until there is room.
pub(super) const QUEUE_MAX: usize = 1024;

/// How many it is told that it may have.
const QUEUE_TOLD: usize = 500;

/// Pieces of the info dictionary that it may have waiting; more are passed over.
const METADATA_QUEUE_MAX: usize = 64;

/// Bytes read and written at once.
const BATCH_BYTES: u64 = 256 << 10;

/// A batch that takes longer to be taken by the other end, 2 KiB each second, ends the connection.
const STALL: Duration = Duration::from_secs(60);

/// Silence after which we say that we are here.
const KEEP_ALIVE: Duration = Duration::from_secs(100);

/// Messages that ask for nothing, besides two for each piece (a have and a cancel) and one for each answer.
const IDLE_MESSAGES_MAX: u64 = 4096;

/// Bytes read ahead of a connection.
const READ_BYTES: usize = 8 << 10;

/// Serves whoever has connected until it leaves, or misbehaves, or the seed is over.
pub(super) async fn serve(seeds: &Arc<Seeds>, stream: TcpStream) -> Result<(), WireError> {
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let read = BufReader::with_capacity(READ_BYTES, read);
    let greeted = timeout(seeds.limits.handshake, greet(seeds, read, write)).await;
    let greeted = greeted.map_err(|_| WireError::Slow("no handshake in time"))?;
    let (shaken, read, write) = greeted?;
    let seed = seeds.get(&shaken.info_hash.0);
    let seed = seed.ok_or(WireError::Wrong("a torrent that is not seeded here"))?;
    if shaken.peer_id.0 == seeds.peer_id {
        return Err(WireError::Wrong("ourselves"));
    }
    let extended = shaken.supports_extended();
    let over = seed.over.clone();
    seed.peers.fetch_add(1, Ordering::Relaxed);
    let _leave = Leave(Arc::clone(&seed));
    tokio::select! {
        ended = talk(seeds, &seed, (read, write), extended) => ended,
        () = over.cancelled() => Ok(()),
    }
}

/// Takes the handshake, encrypted or not.
async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    seeds: &Seeds,
    mut read: R,
    write: W,
) -> Result<(Handshake, Incoming<R>, Outgoing<W>), WireError> {
    let mut begun = [0; wire::PROTOCOL.len()];
    read.read_exact(&mut begun).await?;
    let (mut read, write) = if begun == wire::PROTOCOL {
        (
            Incoming::plain(begun.to_vec(), read),
            Outgoing::plain(write),
        )
    } else {
        encryption::accept(&begun, read, write, |hidden| seeds.find_hidden(hidden)).await?
    };
    let shaken = wire::read_handshake(&mut read).await?;
    Ok((shaken, read, write))
}

struct Leave(Arc<Seed>);

impl Drop for Leave {
    fn drop(&mut self) {
        self.0.peers.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn talk(
    seeds: &Arc<Seeds>,
    seed: &Arc<Seed>,
    (read, mut write): (impl AsyncRead + Unpin, Outgoing<impl AsyncWrite + Unpin>),
    extended: bool,
) -> Result<(), WireError> {
    let opened = {
        let seed = Arc::clone(seed);
        tokio::task::spawn_blocking(move || {
            let content = seed.open()?;
            let info_bytes = extended.then(|| content.info_bytes()).flatten();
            Some((content, info_bytes))
        })
    };
    let Some((content, info_bytes)) = opened.await.unwrap_or(None) else {
        seeds.end(&seed.info_hash, "its layout is not here any more");
        return Ok(());
    };
    let pieces = content.bytes().div_ceil(content.piece_bytes().max(1));
    let mut out = handshake(seed.info_hash, seeds.peer_id).to_vec();
    if extended {
        wire::write_extensions(&mut out, info_bytes, QUEUE_TOLD);
    }
    wire::write_full_bitfield(&mut out, u32::try_from(pieces).unwrap_or(u32::MAX));
    // Everybody is served, so that nobody has to wait to be told so.
    wire::write_plain(&mut out, &Known::Unchoke);
    write_all(&mut write, &mut out).await?;
    drop(out);
    let connection = Connection {
        seeds,
        seed,
        content,
        pieces,
        queue: Queue::default(),
        answered: AtomicU64::new(0),
    };
    tokio::select! {
        ended = connection.read(read) => ended,
        ended = connection.write(write) => ended,
    }
}

async fn write_all(
    stream: &mut Outgoing<impl AsyncWrite + Unpin>,
    bytes: &mut [u8],
) -> Result<(), WireError> {
    let written = timeout(STALL, stream.write_all(bytes)).await;
    Ok(written.map_err(|_| WireError::Slow("takes nothing"))??)
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    came: Notify,
    room: Notify,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    metadata: VecDeque<u32>,
    /// The number that the leecher gave to messages about the info dictionary.
    number: Option<u8>,
}

struct Connection<'a> {
    seeds: &'a Arc<Seeds>,
    seed: &'a Arc<Seed>,
    content: Arc<dyn Content>,
    pieces: u64,
    queue: Queue,
    answered: AtomicU64,
}

/// Answers that go out at once.
struct Batch {
    out: Vec<u8>,
    answers: u64,
    /// Of files.
    bytes: u64,
}

impl Connection<'_> {
    async fn read(&self, mut stream: impl AsyncRead + Unpin) -> Result<(), WireError> {
        let mut buffer = Vec::new();
        let mut idle_messages = 0;
        // Who asks for nothing for so long can come back when it wants something; its place is another's.
        let mut useful_until = Instant::now() + self.seeds.limits.idle;
        loop {
            let next = wire::read_message(&mut stream, self.seeds.limits.silence, &mut buffer);
            let next = timeout_at(useful_until, next).await;
            let message = next.map_err(|_| WireError::Slow("asks for nothing"))??;
            match message {
                Message::Request(request) => {
                    if range(&*self.content, request).is_none() {
                        return Err(WireError::Wrong("a request beyond the torrent"));
                    }
                    self.push(request).await;
                    useful_until = Instant::now() + self.seeds.limits.idle;
                    continue;
                }
                Message::Cancel(request) => {
                    let mut waiting = self.queue.waiting.lock();
                    waiting.requests.retain(|other| *other != request);
                }
                Message::Bitfield { pieces } => {
                    if pieces >= self.pieces {
                        // Two seeds have nothing for each other.
                        return Ok(());
                    }
                }
                Message::Extensions { metadata } => {
                    self.queue.waiting.lock().number = metadata;
                }
                Message::Metadata { piece } => {
                    let mut waiting = self.queue.waiting.lock();
                    if waiting.metadata.len() < METADATA_QUEUE_MAX {
                        waiting.metadata.push_back(piece);
                        self.queue.came.notify_one();
                    }
                    useful_until = Instant::now() + self.seeds.limits.idle;
                }
                Message::Other => {}
            }
            idle_messages += 1;
            let due = 2 * self.pieces + IDLE_MESSAGES_MAX;
            if idle_messages > due + self.answered.load(Ordering::Relaxed) {
                return Err(WireError::Wrong("a flood of messages"));
            }
        }
    }

    /// Queues a request; waits while there are too many, so that the other end cannot send more.
    async fn push(&self, request: Request) {
        loop {
            {
                let mut waiting = self.queue.waiting.lock();
                if waiting.requests.len() < QUEUE_MAX {
                    waiting.requests.push_back(request);
                    self.queue.came.notify_one();
                    return;
                }
            }
            self.queue.room.notified().await;
        }
    }

    /// Writes the answers; the next batch is read while the other end takes the last one.
    async fn write(&self, mut stream: Outgoing<impl AsyncWrite + Unpin>) -> Result<(), WireError> {
        let mut ahead = None;
        let mut spare = Vec::new();
        loop {
            let made = match ahead.take() {
                Some(made) => Some(made),
                None => self.next(std::mem::take(&mut spare)).await,
            };
            let Some(made) = made else {
                // An idle connection holds no memory.
                let came = timeout(KEEP_ALIVE, self.queue.came.notified()).await;
                if came.is_err() {
                    let mut out = Vec::new();
                    wire::write_plain(&mut out, &Known::KeepAlive);
                    write_all(&mut stream, &mut out).await?;
                }
                continue;
            };
            let Ok(mut batch) = made else {
                let reason = "a block of it is not in the store any more, or was damaged";
                self.seeds.end(&self.seed.info_hash, reason);
                return Ok(());
            };
            let send = async {
                if let Some(rate) = &self.seeds.rate {
                    rate.pay(batch.out.len() as u64).await;
                }
                write_all(&mut stream, &mut batch.out).await
            };
            // First, so that a thread reads already while this one sends.
            let next = self.next(std::mem::take(&mut spare));
            let (next, sent) = tokio::join!(next, send);
            sent?;
            ahead = next;
            self.answered.fetch_add(batch.answers, Ordering::Relaxed);
            self.seed.uploaded.fetch_add(batch.bytes, Ordering::Relaxed);
            if ahead.is_some() {
                spare = batch.out;
                spare.clear();
            }
        }
    }

    /// Returns the answers to what waits; none when nothing does.
    async fn next(&self, out: Vec<u8>) -> Option<Result<Batch, Gone>> {
        let (requests, metadata) = self.take();
        if requests.is_empty() && metadata.is_empty() {
            return None;
        }
        self.queue.room.notify_one();
        let bytes = requests.iter().map(|request| u64::from(request.length));
        let bytes = bytes.sum();
        let answers = (requests.len() + metadata.len()) as u64;
        let made = self.make(out, requests, metadata).await;
        Some(made.map(|out| Batch {
            out,
            answers,
            bytes,
        }))
    }

    fn take(&self) -> (Vec<Request>, Vec<(u8, u32)>) {
        let mut waiting = self.queue.waiting.lock();
        let mut bytes = 0;
        let mut requests = Vec::new();
        while let Some(request) = waiting.requests.front()
            && (requests.is_empty() || bytes + u64::from(request.length) <= self.seeds.batch_bytes)
        {
            bytes += u64::from(request.length);
            requests.push(*request);
            waiting.requests.pop_front();
        }
        // Pieces that are asked for without a number to answer under are forgotten.
        let number = waiting.number;
        let metadata = waiting.metadata.drain(..);
        let metadata = metadata.filter_map(|piece| Some((number?, piece)));
        (requests, metadata.collect())
    }

    /// Appends the answers, on a thread that may wait for a disk.
    async fn make(
        &self,
        mut out: Vec<u8>,
        requests: Vec<Request>,
        metadata: Vec<(u8, u32)>,
    ) -> Result<Vec<u8>, Gone> {
        let (store, content) = (Arc::clone(&self.seeds.store), Arc::clone(&self.content));
        let made = tokio::task::spawn_blocking(move || {
            if !metadata.is_empty() {
                let info = content.info();
                for (number, piece) in metadata {
                    wire::write_metadata(&mut out, number, piece, info.as_deref());
                }
            }
            answer(&store, &*content, &requests, &mut out).map(|()| out)
        });
        made.await.unwrap_or(Err(Gone))
    }
}

/// Returns the bytes of a batch under a cap: an eighth of a second's, so that connections take turns.
pub(super) fn batch_bytes(up: u64) -> u64 {
    match up {
        0 => BATCH_BYTES,
        up => (up / 8).clamp(1, BATCH_BYTES),
    }
}
