//! What a reader tells trackers: that it came, that it is still there, that it goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use manifs::block::{BlockRef, Digest, FileRef};
use manifs::net::{AddressFilter, Client};
use manifs::source::torrent::{Patience, Settings, Swarms, Trackers};
use manifs::source::{BlockSource as _, Spill, Torrent, TorrentPlace, Want};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::common::peer::{Conduct, Held, Peer};

/// Nothing below may take longer than this.
const HANG: Duration = Duration::from_secs(60);

/// A tracker that knows one seed, and keeps what it is told.
struct Tracker {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Tracker {
    /// `deaf_to`: never answers an announce that says this.
    async fn start(seed: SocketAddr, deaf_to: &'static str) -> Tracker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let kept = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let heard = Arc::clone(&kept);
                connections.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else {
                            return;
                        };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let line = head.lines().next().unwrap().to_owned();
                    let deaf = line.contains(deaf_to);
                    heard.lock().push(line);
                    if deaf {
                        std::future::pending::<()>().await;
                    }
                    let SocketAddr::V4(seed) = seed else { return };
                    let mut body = b"d8:intervali1800e5:peers6:".to_vec();
                    body.extend_from_slice(&seed.ip().octets());
                    body.extend_from_slice(&seed.port().to_be_bytes());
                    body.push(b'e');
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    // The other side may go away at any time.
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                });
            }
        });
        Tracker {
            url,
            heard,
            _tasks: tasks,
        }
    }

    fn count(&self, word: &str) -> usize {
        let heard = self.heard.lock();
        heard.iter().filter(|line| line.contains(word)).count()
    }

    async fn wait_for(&self, word: &str, count: usize) {
        let deadline = Instant::now() + HANG;
        while self.count(word) < count {
            assert!(Instant::now() < deadline, "{:?}", self.heard.lock());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

struct Scene {
    seed: Peer,
    want: Want,
    right: Bytes,
}

/// A seed of one block, and a want of it that names these trackers.
async fn scene(tracker: impl AsyncFn(SocketAddr) -> Tracker) -> (Scene, Tracker) {
    let right = Bytes::from(vec![5; 10_000]);
    let held = Held {
        info_hash: [7; 20],
        piece_bytes: 1 << 20,
        bytes: right.clone(),
    };
    let seed = Peer::start(&held, Conduct::Honest).await;
    let tracker = tracker(seed.address).await;
    let digest = Digest::of(&right);
    let block = BlockRef {
        file: FileRef {
            id: digest,
            size: 10_000,
        },
        index: 0,
        digest,
    };
    let torrent = Arc::new(Torrent {
        info_hash: held.info_hash,
        piece_bytes: 1 << 20,
        bytes: Some(10_000),
        trackers: vec![tracker.url.clone(), "ftp://no.tracker".to_owned()],
    });
    let want = Want {
        torrent: Some(TorrentPlace { torrent, offset: 0 }),
        ..Want::new(block)
    };
    (Scene { seed, want, right }, tracker)
}

fn swarms(patience: Patience) -> Arc<Swarms> {
    let client = Client::new(manifs::net::Options {
        filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Default::default()
    });
    let finder = Trackers::new(client.clone(), Some([127, 0, 0, 1].into()));
    let settings = Settings {
        client,
        peers: Vec::new(),
        finder: Some(Arc::new(finder)),
    };
    Swarms::new(settings, patience)
}

async fn read(swarms: &Swarms, scene: &Scene) {
    let spill = Spill::ignored();
    let answer = tokio::time::timeout(HANG, swarms.fetch(&scene.want, &spill)).await;
    assert_eq!(
        answer.expect("no answer, for ever"),
        Ok(scene.right.clone())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_comes_and_goes_and_says_so() {
    let (scene, tracker) = scene(async |seed| Tracker::start(seed, "nothing").await).await;
    let patience = Patience {
        idle: Duration::from_millis(1),
        ..Patience::default()
    };
    let swarms = swarms(patience);
    for turn in 1..=2 {
        read(&swarms, &scene).await;
        // Peers that are known from before are asked without waiting for it.
        tracker.wait_for("event=started", turn).await;
        // The swarm ends as soon as nothing is wanted of it.
        tracker.wait_for("event=stopped", turn).await;
    }
    swarms.close().await;
    let heard = tracker.heard.lock();
    assert_eq!(heard.len(), 4, "{heard:?}");
    for line in heard.iter() {
        // Nobody reaches a reader, and it never has everything.
        assert!(line.contains("&port=1&") && line.contains("&left=10000&"));
    }
    assert_eq!(scene.seed.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_program_is_told_and_waits_for_no_tracker_for_long() {
    let (scene, tracker) = scene(async |seed| Tracker::start(seed, "event=stopped").await).await;
    let swarms = swarms(Patience::default());
    read(&swarms, &scene).await;
    assert_eq!(tracker.count("event=stopped"), 0);
    let start = Instant::now();
    tokio::time::timeout(HANG, swarms.close()).await.unwrap();
    assert_eq!(tracker.count("event=stopped"), 1);
    // Three seconds are given; an HTTP tracker may take fifteen otherwise.
    assert!(start.elapsed() < Duration::from_secs(12));
}
