//! A gateway or mirror on loopback that misbehaves in one chosen way, and counts what it is asked.
//!
//! It speaks HTTP/1.1 by hand, since no HTTP library would send what it has to send. It runs on a thread of its own, so
//! that tests without a runtime can use it too, and ends when it is dropped.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use manifs::block::Digest;
use manifs::unixfs::Cid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// How the server answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Manner {
    /// With the block, or 404. Ranges are ignored; every other manner knows them.
    Honest,
    /// With the range that was asked for.
    Ranges,
    /// With a range one byte further, and says so.
    OtherRange,
    /// With the range that was asked for, and says that the file is longer.
    OtherAge,
    /// With the beginning of the file, as if it were the range.
    LyingRange,
    /// With the range and no word which one it is.
    NoContentRange,
    /// With the range as one of several parts.
    Multipart,
    /// With the block, after a while.
    Slow(Duration),
    /// With as many bytes, all wrong.
    Wrong,
    /// With one byte less, and says so.
    Short,
    /// With half of the bytes it announced, then closes.
    Cut,
    /// With one byte more, and says so.
    Long,
    /// With bytes that never end, in chunks.
    Endless,
    /// With bytes that never end and headers that announce 2^60.
    Huge,
    /// With one byte of the block in each period.
    Drip(Duration),
    /// Not at all.
    Hang,
    /// With the head of an answer, then not at all.
    HangAfterHead,
    /// By resetting the connection.
    Reset,
    /// With this status, and these further header lines.
    Status(u16, &'static str),
    /// With a page for people, status 200.
    Html,
    /// With a redirect.
    Redirect(String),
    /// With header lines that never end.
    EndlessHeaders,
    /// With what is no HTTP.
    Garbage,
    /// With a body that claims to be compressed.
    Gzip,
}

impl Manner {
    /// Returns everything that no honest server of any kind does; `drip` is the time for each byte, where bytes drip.
    pub(crate) fn lies(drip: Duration) -> Vec<Manner> {
        vec![
            Manner::Wrong,
            Manner::Short,
            Manner::Cut,
            Manner::Long,
            Manner::Endless,
            Manner::Huge,
            Manner::Drip(drip),
            Manner::Hang,
            Manner::HangAfterHead,
            Manner::Reset,
            Manner::Status(500, ""),
            Manner::Html,
            Manner::EndlessHeaders,
            Manner::Garbage,
            Manner::Gzip,
        ]
    }
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    requests: AtomicU64,
    /// Bytes of bodies, as far as the socket took them.
    bytes: AtomicU64,
}

struct Shared {
    manner: Mutex<Manner>,
    blocks: Mutex<HashMap<String, Bytes>>,
    asked: Mutex<HashMap<String, u64>>,
    counts: Counts,
}

/// The server.
pub(crate) struct Hostile {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hostile {
    /// Listens on a free port of 127.0.0.1 and has `blocks`.
    pub(crate) fn start(manner: Manner, blocks: &[Bytes]) -> Self {
        let shared = Arc::new(Shared {
            manner: Mutex::new(manner),
            blocks: Mutex::default(),
            asked: Mutex::default(),
            counts: Counts::default(),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, serving) => {}
                    _ = stopped => {}
                }
            });
        });
        let server = Hostile {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        };
        for block in blocks {
            server.add(block.clone());
        }
        server
    }

    /// Adds a block.
    pub(crate) fn add(&self, block: Bytes) {
        let cid = Cid::raw(Digest::of(&block)).to_string();
        self.shared.blocks.lock().unwrap().insert(cid, block);
    }

    /// Adds a file by its path, which begins with a slash.
    pub(crate) fn add_file(&self, path: &str, bytes: Bytes) {
        self.shared
            .blocks
            .lock()
            .unwrap()
            .insert(path.to_owned(), bytes);
    }

    /// Behaves differently from the next request on.
    pub(crate) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.shared.counts.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.shared.counts.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shared.counts.bytes.load(Ordering::Relaxed)
    }

    /// Returns how often the block was asked for.
    pub(crate) fn asked(&self, block: &Bytes) -> u64 {
        let cid = Cid::raw(Digest::of(block)).to_string();
        let asked = self.shared.asked.lock().unwrap();
        asked.get(&cid).copied().unwrap_or(0)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.counts.connections.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            // Whoever is treated badly hangs up; that is no failure of this server.
            let _ = serve(stream, &shared).await;
        });
    }
}

/// Answers the requests of one connection.
async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    loop {
        head.clear();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        shared.counts.requests.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&head).into_owned();
        let path = text.split(' ').nth(1).unwrap_or("").to_owned();
        let range = range_of(&text);
        let cid = path.trim_start_matches("/ipfs/");
        let cid = cid.split('?').next().unwrap_or("").to_owned();
        *shared.asked.lock().unwrap().entry(cid.clone()).or_default() += 1;
        let block = shared.blocks.lock().unwrap().get(&cid).cloned();
        let manner = shared.manner.lock().unwrap().clone();
        if !answer(&mut stream, shared, manner, block, range).await? {
            return Ok(());
        }
    }
}

/// Returns the first byte and one past the last that a request asks for.
fn range_of(head: &str) -> Option<(usize, usize)> {
    let lines = head.lines().map(str::to_ascii_lowercase);
    let range = lines
        .filter_map(|line| Some(line.strip_prefix("range: bytes=")?.to_owned()))
        .next()?;
    let (from, last) = range.trim().split_once('-')?;
    Some((from.parse().ok()?, last.parse::<usize>().ok()? + 1))
}

/// Answers one request; returns whether the connection lives on.
async fn answer(
    stream: &mut TcpStream,
    shared: &Shared,
    manner: Manner,
    block: Option<Bytes>,
    range: Option<(usize, usize)>,
) -> std::io::Result<bool> {
    let known = block.is_some();
    let block = block.unwrap_or_else(|| Bytes::from_static(b"it has never heard of this block"));
    let whole = block.clone();
    let range = range.filter(|_| manner != Manner::Honest);
    let (status, part, block) = match range {
        Some((from, until)) if from < block.len() => {
            let until = until.min(block.len());
            let head =
                |from, until, len| format!("Content-Range: bytes {from}-{}/{len}\r\n", until - 1);
            let head = match manner {
                Manner::OtherRange => head(from + 1, until + 1, block.len() + 1),
                Manner::OtherAge => head(from, until, block.len() + 1),
                Manner::NoContentRange | Manner::Multipart => String::new(),
                _ => head(from, until, block.len()),
            };
            (206, head, block.slice(from..until))
        }
        _ => (200, String::new(), block),
    };
    let len = block.len();
    let mut send = Sender { stream, shared };
    match manner {
        Manner::Honest | Manner::Ranges if !known => {
            send.whole(404, "", b"no such block\n").await?;
        }
        Manner::LyingRange => send.whole(status, &part, &whole[..len]).await?,
        Manner::Multipart => {
            let kind = "Content-Type: multipart/byteranges; boundary=X\r\n";
            let head = format!(
                "--X\r\nContent-Range: bytes 0-{}/{}\r\n\r\n",
                len - 1,
                whole.len()
            );
            let body = [head.as_bytes(), &block, b"\r\n--X--\r\n"].concat();
            send.whole(status, kind, &body).await?;
        }
        Manner::Honest
        | Manner::Ranges
        | Manner::OtherRange
        | Manner::OtherAge
        | Manner::NoContentRange => send.whole(status, &part, &block).await?,
        Manner::Slow(wait) => {
            tokio::time::sleep(wait).await;
            send.whole(status, &part, &block).await?;
        }
        Manner::Wrong => send.whole(status, &part, &vec![0x5a; len]).await?,
        Manner::Short => send.whole(status, &part, &block[..len - 1]).await?,
        Manner::Long => {
            send.whole(status, &part, &[&block[..], b"x"].concat())
                .await?
        }
        Manner::Cut => {
            send.head(status, &format!("{part}Content-Length: {len}\r\n"))
                .await?;
            send.body(&block[..len / 2]).await?;
            return Ok(false);
        }
        Manner::Endless => {
            send.head(status, &format!("{part}Transfer-Encoding: chunked\r\n"))
                .await?;
            loop {
                send.body(&[b"4000\r\n", &[7; 0x4000][..], b"\r\n"].concat())
                    .await?;
            }
        }
        Manner::Huge => {
            send.head(
                status,
                &format!("{part}Content-Length: 1152921504606846976\r\n"),
            )
            .await?;
            loop {
                send.body(&[7; 0x4000]).await?;
            }
        }
        Manner::Drip(period) => {
            send.head(status, &format!("{part}Content-Length: {len}\r\n"))
                .await?;
            for byte in &block[..] {
                send.body(&[*byte]).await?;
                tokio::time::sleep(period).await;
            }
        }
        Manner::Hang => std::future::pending().await,
        Manner::HangAfterHead => {
            send.head(200, &format!("Content-Length: {len}\r\n"))
                .await?;
            std::future::pending().await
        }
        Manner::Reset => {
            send.stream.set_zero_linger()?;
            return Ok(false);
        }
        Manner::Status(status, headers) => send.whole(status, headers, b"no\n").await?,
        Manner::Html => {
            let page = b"<!DOCTYPE html><html><title>Welcome</title></html>";
            send.whole(200, "Content-Type: text/html\r\n", page).await?;
        }
        Manner::Redirect(to) => send.whole(302, &format!("Location: {to}\r\n"), b"").await?,
        Manner::EndlessHeaders => {
            send.stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
            loop {
                send.body(b"X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")
                    .await?;
            }
        }
        Manner::Garbage => {
            send.body(b"220 mail.example ESMTP at your service\r\n")
                .await?;
            return Ok(false);
        }
        Manner::Gzip => {
            let bomb = [
                &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..],
                &vec![0; len.saturating_sub(10)],
            ]
            .concat();
            send.whole(200, "Content-Encoding: gzip\r\n", &bomb[..len])
                .await?;
        }
    }
    Ok(true)
}

struct Sender<'a> {
    stream: &'a mut TcpStream,
    shared: &'a Shared,
}

impl Sender<'_> {
    async fn head(&mut self, status: u16, headers: &str) -> std::io::Result<()> {
        let head = format!("HTTP/1.1 {status} Whatever\r\n{headers}\r\n");
        self.stream.write_all(head.as_bytes()).await
    }

    async fn body(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        let count = bytes.len() as u64;
        self.shared.counts.bytes.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    async fn whole(&mut self, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
        let length = format!("Content-Length: {}\r\n{headers}", body.len());
        self.head(status, &length).await?;
        self.body(body).await
    }
}
