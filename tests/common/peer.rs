//! A scripted BitTorrent peer on loopback, honest or hostile in one way.
//!
//! It speaks the wire protocol by itself, with none of manifs' code, so that it can also break it. It has the same bytes
//! for whatever torrent it is asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What a peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Answers as it should.
    Honest,
    /// Answers, with other bytes each time.
    Garbage,
    /// Answers, with the same wrong bytes as its like.
    Poisoned,
    /// Answers with the next piece's number.
    WrongPiece,
    /// Answers with another offset.
    WrongOffset,
    /// Answers with more bytes than asked for.
    TooMuch,
    /// Announces a message of 4 GiB.
    Huge,
    /// Answers half, and hangs up.
    Truncated,
    /// Answers a byte at a time.
    Drip,
    /// Lets itself be asked and never answers.
    Silent,
    /// Never lets itself be asked.
    NeverUnchokes,
    /// Chokes after each three answers, and forgets what it was asked for, as a choke allows.
    Chokes,
    /// Chokes and unchokes all the time, and answers nothing.
    Flaps,
    /// Says that it has all, and passes over every second request.
    HaveLies,
    /// Says all the time that it has something.
    HaveFlood,
    /// Asks all the time.
    RequestFlood,
    /// Has nothing.
    Empty,
    /// Has a piece that the torrent has not got.
    OddHave,
    /// Sends a bitfield of another length.
    OddBitfield,
    /// Hangs up at once.
    HangsUp,
    /// Hangs up after the first request.
    HangsUpLater,
    /// Says nothing.
    Mute,
    /// Speaks another protocol.
    Http,
    /// Shakes hands for another torrent.
    OtherTorrent,
    /// Sends messages that nobody knows, and then answers.
    Chatty,
    /// Is honest, and takes 300 ms for each request.
    Slow,
}

/// Every conduct that a reader must survive.
pub(crate) const HOSTILE: [Conduct; 22] = [
    Conduct::Garbage,
    Conduct::Poisoned,
    Conduct::WrongPiece,
    Conduct::WrongOffset,
    Conduct::TooMuch,
    Conduct::Huge,
    Conduct::Truncated,
    Conduct::Drip,
    Conduct::Silent,
    Conduct::NeverUnchokes,
    Conduct::Flaps,
    Conduct::HaveLies,
    Conduct::HaveFlood,
    Conduct::RequestFlood,
    Conduct::Empty,
    Conduct::OddHave,
    Conduct::OddBitfield,
    Conduct::HangsUp,
    Conduct::HangsUpLater,
    Conduct::Mute,
    Conduct::Http,
    Conduct::OtherTorrent,
];

/// What peers hold.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) info_hash: [u8; 20],
    pub(crate) piece_bytes: u32,
    pub(crate) bytes: Bytes,
}

impl Held {
    fn bitfield(&self) -> Vec<u8> {
        let pieces = self.bytes.len().div_ceil(self.piece_bytes as usize);
        let mut bits = vec![0; pieces.div_ceil(8)];
        for piece in 0..pieces {
            bits[piece / 8] |= 0x80 >> (piece % 8);
        }
        bits
    }
}

/// What it was asked.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU32,
    pub(crate) requests: AtomicU64,
    pub(crate) cancels: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Its hello, and the longest request.
    pub(crate) hello: Mutex<Vec<u8>>,
    pub(crate) longest: AtomicU32,
}

/// A running peer; it ends with this.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Peer {
    pub(crate) async fn start(held: &Held, conduct: Conduct) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        let (held, counted) = (held.clone(), Arc::clone(&seen));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                let (held, seen) = (held.clone(), Arc::clone(&counted));
                connections.spawn(async move {
                    // The other side may go away at any time.
                    let _ = serve(stream, held, conduct, seen).await;
                });
            }
        });
        Peer {
            address,
            seen,
            _tasks: tasks,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn served(&self) -> u64 {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
    let len = u32::try_from(rest.len() + 1).unwrap();
    [&len.to_be_bytes()[..], &[kind], rest].concat()
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

async fn hold() {
    std::future::pending().await
}

async fn serve(
    mut stream: TcpStream,
    held: Held,
    conduct: Conduct,
    seen: Arc<Seen>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut theirs = [0; 68];
    match conduct {
        Conduct::HangsUp => return Ok(()),
        Conduct::Mute => hold().await,
        Conduct::Http => {
            stream.read_exact(&mut theirs).await?;
            stream
                .write_all(format!("HTTP/1.1 400 Bad Request\r\n\r\n{:100}", "").as_bytes())
                .await?;
            hold().await;
        }
        _ => {}
    }
    stream.read_exact(&mut theirs).await?;
    let mut ours = theirs;
    ours[20..28].copy_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 0]);
    ours[48..68].copy_from_slice(b"-XX0000-scriptedpeer");
    if conduct == Conduct::OtherTorrent {
        ours[30] ^= 1;
    }
    stream.write_all(&ours).await?;
    let mut bits = held.bitfield();
    match conduct {
        Conduct::Empty => bits.fill(0),
        Conduct::OddBitfield => bits.push(0xff),
        _ => {}
    }
    let mut hello = vec![0];
    hello.extend_from_slice(b"d1:md11:ut_metadatai3ee1:v13:scripted \x1b[1m4:reqqi200ee");
    stream.write_all(&message(20, &hello)).await?;
    stream.write_all(&message(5, &bits)).await?;
    let random = Arc::new(AtomicU64::new(u64::from(std::process::id())));
    match conduct {
        Conduct::OddHave => stream.write_all(&message(4, &[0x7f; 4])).await?,
        Conduct::NeverUnchokes => {}
        Conduct::Chatty => {
            for kind in [9, 13, 14, 17, 20, 99] {
                stream.write_all(&message(kind, &[1; 50])).await?;
            }
            stream.write_all(&[0; 400]).await?;
            stream.write_all(&message(1, &[])).await?;
        }
        Conduct::HaveFlood | Conduct::RequestFlood | Conduct::Flaps => {
            let one = match conduct {
                Conduct::HaveFlood => message(4, &[0; 4]),
                Conduct::RequestFlood => message(6, &[0; 12]),
                _ => [message(1, &[]), message(0, &[])].concat(),
            };
            let many = one.repeat(500);
            loop {
                stream.write_all(&many).await?;
            }
        }
        _ => stream.write_all(&message(1, &[])).await?,
    }
    let mut since_choke = 0;
    loop {
        let len = stream.read_u32().await?;
        if len == 0 {
            continue;
        }
        assert!(len < 1000, "a message of {len} bytes");
        let mut frame = vec![0; len as usize];
        stream.read_exact(&mut frame).await?;
        match frame[0] {
            6 => {}
            8 => {
                seen.cancels.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            20 => {
                *seen.hello.lock() = frame[1..].to_vec();
                continue;
            }
            _ => continue,
        }
        let asked = seen.requests.fetch_add(1, Ordering::Relaxed);
        let (piece, begin, len) = (
            number(&frame[1..]),
            number(&frame[5..]),
            number(&frame[9..]),
        );
        seen.longest.fetch_max(len, Ordering::Relaxed);
        let from = piece as usize * held.piece_bytes as usize + begin as usize;
        assert!(begin + len <= held.piece_bytes, "a request across a piece");
        let mut bytes = held.bytes.slice(from..from + len as usize).to_vec();
        let (mut said_piece, mut said_begin) = (piece, begin);
        match conduct {
            Conduct::Silent => continue,
            Conduct::HaveLies if asked % 2 == 1 => continue,
            Conduct::Chokes => {
                since_choke += 1;
                if since_choke > 3 {
                    since_choke = 0;
                    stream.write_all(&message(0, &[])).await?;
                    let forget = async {
                        // Requests are 17 bytes; everything else came before them.
                        let mut request = [0; 17];
                        loop {
                            stream.read_exact(&mut request).await?;
                        }
                    };
                    let forget: Result<std::io::Result<()>, _> =
                        tokio::time::timeout(Duration::from_millis(50), forget).await;
                    if let Ok(ended) = forget {
                        return ended;
                    }
                    stream.write_all(&message(1, &[])).await?;
                    continue;
                }
            }
            Conduct::Garbage => {
                let salt = random.fetch_add(1, Ordering::Relaxed);
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte ^= ((salt + at as u64) % 251) as u8 | 1;
                }
            }
            Conduct::Poisoned => bytes.iter_mut().for_each(|byte| *byte = !*byte),
            Conduct::WrongPiece => said_piece += 1,
            Conduct::WrongOffset => said_begin += 1,
            Conduct::TooMuch => bytes.push(0),
            Conduct::Huge => {
                stream.write_all(&[0xff, 0xff, 0xff, 0xff, 7]).await?;
                loop {
                    stream.write_all(&[0; 65_536]).await?;
                }
            }
            Conduct::HangsUpLater => return Ok(()),
            Conduct::Slow => sleep(Duration::from_millis(300)).await,
            _ => {}
        }
        let numbers = [said_piece.to_be_bytes(), said_begin.to_be_bytes()].concat();
        let answer = message(7, &[numbers, bytes].concat());
        match conduct {
            Conduct::Truncated => {
                stream.write_all(&answer[..answer.len() / 2]).await?;
                return Ok(());
            }
            Conduct::Drip => {
                for byte in answer {
                    stream.write_all(&[byte]).await?;
                    sleep(Duration::from_millis(20)).await;
                }
            }
            _ => stream.write_all(&answer).await?,
        }
        seen.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
    }
}
