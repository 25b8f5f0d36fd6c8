//! Scripted leechers, honest and not.

use std::net::SocketAddr;
use std::ops::Range;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::block::{Block, BlockRef, FileRef};
use crate::store::{MemoryDisk, Options, Verify};

pub(super) const INFO_HASH: [u8; 20] = *b"an info hash of ours";
const PIECE_BYTES: u64 = 1 << 20;

/// Two blocks of one piece each, the second shorter, with padding between them.
struct TwoBlocks {
    blocks: Vec<(u64, BlockRef)>,
    bytes: u64,
}

impl Content for TwoBlocks {
    fn piece_bytes(&self) -> u64 {
        PIECE_BYTES
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn spans(&self, range: Range<u64>) -> Option<Vec<Span>> {
        let mut spans = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (start, block) = self.blocks.iter().rev().find(|(start, _)| *start <= at)?;
            let (offset, left) = (at - start, range.end - at);
            let here = u64::from(block.len()).saturating_sub(offset).min(left);
            let (length, span): (u64, fn(BlockRef, u32, u32) -> Span) = match here {
                0 => (left, |_, _, length| Span::Zeros { length }),
                here => (here, |block, offset, length| Span::Block {
                    block,
                    offset,
                    length,
                }),
            };
            let number = |value| u32::try_from(value).unwrap();
            spans.push(span(
                *block,
                number(offset.min(PIECE_BYTES)),
                number(length),
            ));
            at += length;
        }
        Some(spans)
    }

    fn info_bytes(&self) -> Option<u64> {
        Some(20_000)
    }

    fn info(&self) -> Option<Bytes> {
        Some(Bytes::from(vec![b'i'; 20_000]))
    }
}

pub(super) struct Scene {
    pub(super) seeds: Arc<Seeds>,
    store: Arc<Store>,
    pub(super) address: SocketAddr,
    /// All bytes of the torrent.
    pub(super) bytes: Vec<u8>,
    blocks: Vec<BlockRef>,
    over: CancellationToken,
    stop: tokio_util::sync::DropGuard,
}

pub(super) async fn scene(limits: Limits, verify: Verify) -> Scene {
    scene_capped(limits, verify, None).await
}

async fn scene_capped(limits: Limits, verify: Verify, cap: Option<Arc<Rate>>) -> Scene {
    let options = Options {
        quota: 64 << 20,
        verify,
    };
    let store = Store::open_on(Arc::new(MemoryDisk::new()), options);
    let mut bytes = vec![0; usize::try_from(PIECE_BYTES).unwrap() + 70_000];
    let mut blocks = Vec::new();
    for range in [0..1_000_000, 1 << 20..(1 << 20) + 70_000] {
        let part = &mut bytes[range.clone()];
        for (nth, byte) in part.iter_mut().enumerate() {
            *byte = u8::try_from((nth * 31 + range.start) % 251).unwrap();
        }
        let block = Block::seal(Bytes::copy_from_slice(part));
        let place = BlockRef {
            file: FileRef {
                id: block.digest(),
                size: part.len() as u64,
            },
            index: 0,
            digest: block.digest(),
        };
        store.put(&place, &block).unwrap();
        blocks.push(place);
    }
    let seeds = Seeds::new(Arc::clone(&store), limits, cap);
    let (first, second, size) = (blocks[0], blocks[1], bytes.len() as u64);
    let open = Box::new(move || {
        Some(Arc::new(TwoBlocks {
            blocks: vec![(0, first), (PIECE_BYTES, second)],
            bytes: size,
        }) as Arc<dyn Content>)
    });
    let over = seeds.insert(INFO_HASH, "acme/tools@1.0.0", open);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Arc::clone(&seeds), stop.clone()));
    Scene {
        seeds,
        store,
        address,
        bytes,
        blocks,
        over,
        stop: stop.drop_guard(),
    }
}

pub(super) async fn usual() -> Scene {
    scene(Limits::default(), Verify::FirstTouch).await
}

/// A leecher past the handshake and what follows it.
async fn leecher(scene: &Scene) -> TcpStream {
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let hello = crate::torrent::handshake(INFO_HASH, [7; 20]);
    stream.write_all(&hello).await.unwrap();
    read_greeting(&scene.seeds, &mut stream).await;
    stream
}

/// Reads what the seed begins with.
pub(super) async fn read_greeting(seeds: &Seeds, stream: &mut (impl AsyncRead + Unpin)) {
    let theirs = wire::read_handshake(stream).await.unwrap();
    assert_eq!(theirs.info_hash.0, INFO_HASH);
    assert_eq!(theirs.peer_id.0, seeds.peer_id());
    let extensions = frame(stream).await.unwrap();
    let text = String::from_utf8_lossy(&extensions).into_owned();
    assert!(text.contains("13:metadata_sizei20000e"), "{text}");
    assert_eq!(frame(stream).await.unwrap(), [5, 0xc0]);
    assert_eq!(frame(stream).await.unwrap(), [1]);
}

/// Returns the next message; none at the end of the connection.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = stream.read_u32().await.ok()?;
    let mut message = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// Asks for everything and returns it.
async fn everything(scene: &Scene, stream: &mut TcpStream) -> Vec<u8> {
    stream.write_all(&requests(scene)).await.unwrap();
    answers(scene, stream).await
}

/// Returns requests for everything.
pub(super) fn requests(scene: &Scene) -> Vec<u8> {
    let mut requests = Vec::new();
    for piece in 0..2_u32 {
        let start = u64::from(piece) * PIECE_BYTES;
        let length = (scene.bytes.len() as u64 - start).min(PIECE_BYTES);
        for begin in (0..length).step_by(16 << 10) {
            let length = u32::try_from((length - begin).min(16 << 10)).unwrap();
            wire::write_request(&mut requests, piece, u32::try_from(begin).unwrap(), length);
        }
    }
    requests
}

/// Returns everything, out of the answers to `requests`.
pub(super) async fn answers(scene: &Scene, stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < scene.bytes.len() {
        let message = frame(stream).await.unwrap();
        assert_eq!(message[0], 7);
        let number = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
        let at = u64::from(number(1)) * PIECE_BYTES + u64::from(number(5));
        assert_eq!(at, bytes.len() as u64);
        bytes.extend(&message[9..]);
    }
    bytes
}

#[tokio::test]
async fn a_leecher_gets_every_byte_with_padding_and_the_info_dictionary() {
    let scene = usual().await;
    let mut stream = leecher(&scene).await;
    assert_eq!(everything(&scene, &mut stream).await, scene.bytes);
    let mut ask = Vec::new();
    wire::write_extensions(&mut ask, None, 1);
    for piece in 0..3 {
        let body = format!("d8:msg_typei0e5:piecei{piece}ee");
        ask.extend(u32::try_from(body.len() + 2).unwrap().to_be_bytes());
        ask.extend([20, 1]);
        ask.extend(body.bytes());
    }
    stream.write_all(&ask).await.unwrap();
    for (piece, length) in [(0, 16_384), (1, 20_000 - 16_384)] {
        let head = format!("\x14\x01d8:msg_typei1e5:piecei{piece}e10:total_sizei20000ee");
        let message = frame(&mut stream).await.unwrap();
        assert_eq!(message, [head.into_bytes(), vec![b'i'; length]].concat());
    }
    let refused = frame(&mut stream).await.unwrap();
    assert_eq!(&refused[2..], b"d8:msg_typei2e5:piecei2ee");
    let report = scene.seeds.report();
    assert_eq!(report[0].uploaded, scene.bytes.len() as u64);
    assert_eq!(report[0].peers, 1);
}

#[tokio::test]
async fn bytes_are_the_same_where_each_use_is_hashed() {
    let scene = scene(Limits::default(), Verify::Always).await;
    let mut stream = leecher(&scene).await;
    assert_eq!(everything(&scene, &mut stream).await, scene.bytes);
}

#[tokio::test]
async fn an_evicted_block_ends_the_seed_and_every_connection_to_it() {
    let scene = usual().await;
    let mut bystander = leecher(&scene).await;
    let mut stream = leecher(&scene).await;
    assert!(scene.store.evict(&scene.blocks[1].file) > 0);
    let mut ask = Vec::new();
    wire::write_request(&mut ask, 1, 0, 1000);
    stream.write_all(&ask).await.unwrap();
    assert_eq!(frame(&mut stream).await, None);
    assert_eq!(frame(&mut bystander).await, None);
    assert!(scene.over.is_cancelled());
    assert!(!scene.seeds.contains(&INFO_HASH));
    assert_eq!(scene.seeds.problems().len(), 1);
    // Whoever comes now is told nothing.
    let mut late = TcpStream::connect(scene.address).await.unwrap();
    late.write_all(&crate::torrent::handshake(INFO_HASH, [7; 20]))
        .await
        .unwrap();
    assert_eq!(late.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn what_no_leecher_may_say_ends_its_connection_only() {
    let scene = usual().await;
    let mut honest = leecher(&scene).await;
    let request = |piece, begin, length| {
        let mut bytes = Vec::new();
        wire::write_request(&mut bytes, piece, begin, length);
        bytes
    };
    for bytes in [
        request(2, 0, 1),
        request(u32::MAX, 0, 1),
        request(0, u32::MAX, 1),
        request(0, 1 << 20, 1),
        request(1, 69_999, 2),
        request(0, 0, 0),
        request(0, 0, wire::REQUEST_BYTES_MAX + 1),
        vec![0xff; 4],
        vec![0, 0, 0, 9, 7, 0, 0, 0, 0, 0, 0, 0, 0],
        // As complete as we are.
        vec![0, 0, 0, 2, 5, 0xff],
        // A flood of nothing.
        [0, 0, 0, 5, 4, 0, 0, 0, 0].repeat(10_000),
    ] {
        let mut stream = leecher(&scene).await;
        // It may hang up before all is written.
        let _ = stream.write_all(&bytes).await;
        let begin = &bytes[..bytes.len().min(20)];
        assert_eq!(frame(&mut stream).await, None, "{begin:?}");
    }
    for hello in [
        crate::torrent::handshake([1; 20], [7; 20]),
        crate::torrent::handshake(INFO_HASH, scene.seeds.peer_id()),
    ] {
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        stream.write_all(&hello).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    }
    assert_eq!(everything(&scene, &mut honest).await, scene.bytes);
}

#[tokio::test]
async fn a_flood_of_requests_waits_in_the_kernel_not_here() {
    let scene = usual().await;
    let mut stream = leecher(&scene).await;
    let mut ask = Vec::new();
    wire::write_request(&mut ask, 0, 0, 128 << 10);
    let flood = ask.repeat(2_000_000);
    // Nothing is read, so that nothing more is taken once the queue is full: the write does not end.
    let write = stream.write_all(&flood);
    let ended = tokio::time::timeout(Duration::from_secs(1), write).await;
    assert!(ended.is_err(), "{ended:?}");
    let mut honest = leecher(&scene).await;
    assert_eq!(everything(&scene, &mut honest).await, scene.bytes);
}

#[tokio::test]
async fn a_cancelled_request_is_forgotten_while_it_waits() {
    let scene = usual().await;
    let mut stream = leecher(&scene).await;
    let mut ask = Vec::new();
    for _ in 0..100 {
        wire::write_request(&mut ask, 0, 0, 16);
        let mut cancel = Vec::new();
        wire::write_request(&mut cancel, 0, 0, 16);
        cancel[4] = 8;
        ask.extend(cancel);
    }
    wire::write_request(&mut ask, 0, 16, 16);
    stream.write_all(&ask).await.unwrap();
    let mut answers = 0;
    loop {
        let message = frame(&mut stream).await.unwrap();
        if message[5..9] == [0, 0, 0, 16] {
            break;
        }
        answers += 1;
    }
    assert!(answers < 100, "{answers}");
}

#[tokio::test]
async fn no_more_connections_than_allowed_and_none_that_say_nothing() {
    let limits = Limits {
        connections: 3,
        of_one_address: 2,
        handshake: Duration::from_millis(200),
        ..Limits::default()
    };
    let scene = scene(limits, Verify::FirstTouch).await;
    let mut first = leecher(&scene).await;
    let mut silent = TcpStream::connect(scene.address).await.unwrap();
    // Both places of this address are taken.
    let mut third = TcpStream::connect(scene.address).await.unwrap();
    assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0);
    // The silent one loses its place, and somebody else gets it.
    assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
    let mut fourth = leecher(&scene).await;
    assert_eq!(everything(&scene, &mut first).await, scene.bytes);
    assert_eq!(everything(&scene, &mut fourth).await, scene.bytes);
}

#[tokio::test]
async fn shutting_down_hangs_up() {
    let scene = usual().await;
    let mut stream = leecher(&scene).await;
    drop(scene.stop);
    assert_eq!(frame(&mut stream).await, None);
}

#[tokio::test]
async fn a_cap_is_kept_and_cuts_batches() {
    let cap = Arc::new(Rate::new(1 << 20));
    let scene = scene_capped(Limits::default(), Verify::FirstTouch, Some(cap)).await;
    assert_eq!(scene.seeds.batch_bytes, 128 << 10);
    let mut stream = leecher(&scene).await;
    let start = std::time::Instant::now();
    assert_eq!(everything(&scene, &mut stream).await, scene.bytes);
    assert!(start.elapsed() > Duration::from_millis(700));
    assert_eq!(peer::batch_bytes(100_000), 12_500);
    // Far below a request: slow, but not stuck.
    assert_eq!(peer::batch_bytes(7), 1);
}

/// A tracker that hands out the first line of each request.
async fn tracker() -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", listener.local_addr().unwrap());
    let (sender, asked) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let body = "d8:intervali0e5:peers0:e";
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            let head = String::from_utf8(head).unwrap();
            sender
                .send(head.lines().next().unwrap().to_owned())
                .await
                .unwrap();
        }
    });
    (url, asked)
}

#[tokio::test]
async fn trackers_are_told_the_beginning_and_the_end_and_not_all_the_time() {
    let scene = usual().await;
    let (url, mut asked) = tracker().await;
    let filter = crate::net::AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]);
    let client = crate::net::Client::new(crate::net::Options {
        filter,
        ..crate::net::Options::default()
    });
    let client = Arc::new(arc_swap::ArcSwap::from_pointee(client));
    let shutdown = CancellationToken::new();
    let announcer = Announcer::new(
        Arc::clone(&scene.seeds),
        client,
        scene.address,
        1234,
        shutdown.clone(),
    );
    let dead = "udp://127.0.0.1:9/".to_owned();
    let none = "gopher://x".to_owned();
    announcer.keep(INFO_HASH, &[url, dead, none], scene.over.clone());
    let first = asked.recv().await.unwrap();
    assert!(
        first.contains("&port=1234&uploaded=0&downloaded=0&left=0&"),
        "{first}"
    );
    assert!(first.contains("numwant=0&event=started"), "{first}");
    let mut stream = leecher(&scene).await;
    assert_eq!(everything(&scene, &mut stream).await, scene.bytes);
    // An interval of 0 is not taken at its word.
    assert!(asked.try_recv().is_err());
    shutdown.cancel();
    announcer.close().await;
    let last = asked.recv().await.unwrap();
    assert!(last.contains("&event=stopped"), "{last}");
}
