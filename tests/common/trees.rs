//! Small published trees in memory, and a gateway that serves them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use manifs::block::Digest;
use manifs::registry::Place;
use manifs::registry::changes::Cursor;
use manifs::serve::gateway::{Gateway, Limits, Options, Shared, SharedError, serve};
use manifs::unixfs::directory::{self, Entry};
use manifs::unixfs::file::{Builder, Layout};
use manifs::unixfs::{Cid, Link, Node, symlink};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// An entry of a tree.
pub(crate) enum Item {
    /// A file of one block.
    File(Vec<u8>),
    /// A file of many small blocks: the size of one, and how many a node links to.
    Blocks(Vec<u8>, u64, u64),
    Symlink(&'static str),
    Directory(Vec<(String, Item)>),
    /// A directory in shards, however small it is.
    Shards(Vec<(String, Item)>),
}

/// What a gateway serves, all of it in memory.
pub(crate) struct Memory {
    pub(crate) nodes: Mutex<HashMap<Digest, Bytes>>,
    pub(crate) files: Mutex<HashMap<Place, Bytes>>,
    pub(crate) count: watch::Sender<u64>,
    /// The order in which nodes were asked for.
    pub(crate) asked: Mutex<Vec<Digest>>,
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Memory {
            nodes: Mutex::default(),
            files: Mutex::default(),
            count: watch::Sender::new(1),
            asked: Mutex::default(),
        })
    }

    fn keep(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        self.nodes.lock().insert(digest, bytes);
        digest
    }

    pub(crate) fn forget(&self, cid: &Cid) {
        self.nodes.lock().remove(&cid.digest()).unwrap();
    }

    pub(crate) fn bytes(&self, cid: &Cid) -> Bytes {
        self.nodes.lock()[&cid.digest()].clone()
    }

    /// Adds an entry with everything below it.
    pub(crate) fn add(&self, item: &Item) -> Link {
        let mut emit = |node: Node<'_>| {
            assert_eq!(self.keep(node.bytes), node.cid.digest());
            Ok(())
        };
        match item {
            Item::File(bytes) => Link {
                cid: Cid::raw(self.keep(bytes)),
                tsize: bytes.len() as u64,
            },
            Item::Blocks(bytes, leaf_bytes, width) => {
                let layout = Layout {
                    leaf_bytes: *leaf_bytes,
                    width: *width,
                };
                let mut builder = Builder::with_layout(layout, bytes.len() as u64);
                for leaf in bytes.chunks(usize::try_from(*leaf_bytes).unwrap()) {
                    let leaf = self.keep(leaf);
                    builder.push(leaf, &mut emit).unwrap();
                }
                builder.finish(&mut emit).unwrap()
            }
            Item::Symlink(target) => {
                let node = symlink::node(target.as_bytes());
                self.keep(&node);
                symlink::link(target.as_bytes())
            }
            Item::Directory(entries) => {
                let entries = self.entries(entries);
                directory::build(&entries, &mut emit).unwrap()
            }
            Item::Shards(entries) => {
                let entries = self.entries(entries);
                directory::build_sharded(&entries, &mut emit).unwrap()
            }
        }
    }

    fn entries(&self, items: &[(String, Item)]) -> Vec<Entry> {
        let mut entries: Vec<Entry> = items
            .iter()
            .map(|(name, item)| Entry {
                name: name.as_bytes().to_vec(),
                link: self.add(item),
            })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }
}

#[async_trait]
impl Shared for Memory {
    async fn node(&self, digest: Digest) -> Result<Option<Bytes>, SharedError> {
        self.asked.lock().push(digest);
        Ok(self.nodes.lock().get(&digest).cloned())
    }

    async fn node_len(&self, digest: Digest) -> Result<Option<u64>, SharedError> {
        let nodes = self.nodes.lock();
        Ok(nodes.get(&digest).map(|bytes| bytes.len() as u64))
    }

    async fn file(&self, place: &Place) -> Result<Option<Bytes>, SharedError> {
        Ok(self.files.lock().get(place).cloned())
    }

    async fn changed(&self, since: Option<&Cursor>) -> Cursor {
        let mut count = self.count.subscribe();
        loop {
            let now = Cursor::new(7, *count.borrow_and_update());
            if since != Some(&now) {
                return now;
            }
            count.changed().await.unwrap();
        }
    }
}

/// Serves `memory` on a port of its own until the test ends.
pub(crate) async fn start(memory: &Arc<Memory>, limits: Limits) -> SocketAddr {
    let options = Options {
        hosts: vec!["share.example".to_owned()],
        ..Options::default()
    };
    let shared: Arc<dyn Shared> = Arc::clone(memory) as Arc<dyn Shared>;
    let router = Gateway::new(shared, &options).router();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, router, limits, std::future::pending()));
    address
}

/// An answer, read to the end of the connection.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice");
        value
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Answer> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap();
                (name.to_ascii_lowercase(), value.trim().to_owned())
            })
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: bytes[end + 4..].to_vec(),
            whole: true,
        };
        if answer.header("transfer-encoding") == Some("chunked") {
            (answer.body, answer.whole) = unchunk(&answer.body);
        } else if let Some(len) = answer.header("content-length") {
            answer.whole = len.parse::<usize>().unwrap() == answer.body.len();
        }
        Some(answer)
    }
}

fn unchunk(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") else {
            return (body, false);
        };
        let len = std::str::from_utf8(&bytes[..end]).unwrap();
        let len = usize::from_str_radix(len, 16).unwrap();
        bytes = &bytes[end + 2..];
        if len == 0 {
            return (body, true);
        }
        if bytes.len() < len + 2 {
            body.extend_from_slice(bytes);
            return (body, false);
        }
        body.extend_from_slice(&bytes[..len]);
        bytes = &bytes[len + 2..];
    }
}

/// Sends bytes as they are and reads until the other end closes.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other end may close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// Asks with further header lines, each ending in `\r\n`.
pub(crate) async fn ask(address: SocketAddr, method: &str, target: &str, headers: &str) -> Answer {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"
    );
    let bytes = exchange(address, request.as_bytes()).await;
    Answer::parse(&bytes).unwrap_or_else(|| panic!("{target}: no answer"))
}

pub(crate) async fn get(address: SocketAddr, target: &str) -> Answer {
    ask(address, "GET", target, "").await
}
