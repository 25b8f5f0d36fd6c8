//! The gateway over real sockets: the trees that are asked for, and how answers are read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use manifs::registry::changes;
use manifs::registry::{Http, HttpOptions, Moment, Place, Registry};
use manifs::serve::gateway::Limits;
use manifs::unixfs::decode::{Decoded, decode};
use manifs::unixfs::{AnyCid, Cid, car, file};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::trees::{Answer, Item, Memory, ask, exchange, get, start};

mod conformance;
mod manners;

const RAW: &str = "Accept: application/vnd.ipld.raw\r\n";
const CAR: &str = "Accept: application/vnd.ipld.car\r\n";
const PROBE: &str = "bafkqaaa";

fn text(len: usize) -> Vec<u8> {
    let lines = (0_u64..).flat_map(|number| format!("{number}\n").into_bytes());
    lines.take(len).collect()
}

fn directory(entries: Vec<(&str, Item)>) -> Item {
    let named = entries
        .into_iter()
        .map(|(name, item)| (name.to_owned(), item));
    Item::Directory(named.collect())
}

/// `subdir/{ascii.txt,multiblock.txt,link,empty}`, as the conformance suite's `subdir-with-mixed-block-files`, and more.
struct Mixed {
    memory: Arc<Memory>,
    address: SocketAddr,
    root: Cid,
    subdir: Cid,
    ascii: Cid,
    multi: Cid,
    /// Of 256 bytes each, the last of 2.
    leaves: Vec<Cid>,
    link: Cid,
    empty: Cid,
}

async fn mixed() -> Mixed {
    let memory = Memory::new();
    let multi = Item::Blocks(text(1026), 256, 1024);
    let subdir = directory(vec![
        (
            "ascii.txt",
            Item::File(b"hello application/vnd.ipld.car\n".to_vec()),
        ),
        ("empty", Item::File(Vec::new())),
        ("link", Item::Symlink("ascii.txt")),
        ("multiblock.txt", multi),
    ]);
    let root = memory.add(&directory(vec![("subdir", subdir)])).cid;
    let find = |cid: &Cid, name: &str| {
        let bytes = memory.bytes(cid);
        let Ok(Decoded::Directory(entries)) = decode(&AnyCid::from(*cid), &bytes) else {
            panic!("{name}: not in a directory");
        };
        let entry = entries
            .into_iter()
            .find(|entry| entry.name == name.as_bytes());
        entry.unwrap().cid.known().unwrap()
    };
    let subdir = find(&root, "subdir");
    let multi = find(&subdir, "multiblock.txt");
    let leaves = text(1026)
        .chunks(256)
        .map(|leaf| Cid::raw(manifs::block::Digest::of(leaf)))
        .collect();
    Mixed {
        ascii: find(&subdir, "ascii.txt"),
        empty: find(&subdir, "empty"),
        link: find(&subdir, "link"),
        address: start(&memory, Limits::default()).await,
        memory,
        root,
        subdir,
        multi,
        leaves,
    }
}

/// A directory in shards whose files have several blocks.
struct Sharded {
    memory: Arc<Memory>,
    address: SocketAddr,
    root: Cid,
}

async fn sharded(entries: usize) -> Sharded {
    let memory = Memory::new();
    let entries = (0..entries).map(|nth| {
        let bytes = text(nth + 300).split_off(nth % 100);
        (format!("{nth}.txt"), Item::Blocks(bytes, 128, 1024))
    });
    let root = memory.add(&Item::Shards(entries.collect())).cid;
    Sharded {
        address: start(&memory, Limits::default()).await,
        memory,
        root,
    }
}

impl Sharded {
    /// The shards on the way to `name` with the root, and the entry: an independent walk over what is in memory.
    fn way(&self, name: &str) -> (Vec<Cid>, Cid) {
        let mut way = vec![self.root];
        for depth in 0.. {
            let shard = *way.last().unwrap();
            let bytes = self.memory.bytes(&shard);
            let Ok(Decoded::Shard(shard)) = decode(&AnyCid::from(shard), &bytes) else {
                panic!("not a shard");
            };
            let slot = shard.lookup(name.as_bytes(), depth).unwrap().unwrap();
            let cid = slot.cid.known().unwrap();
            if slot.name.is_some() {
                return (way, cid);
            }
            way.push(cid);
        }
        unreachable!()
    }

    /// All shards, depth first.
    fn shards(&self, from: Cid, out: &mut Vec<Cid>) {
        out.push(from);
        let bytes = self.memory.bytes(&from);
        let Ok(Decoded::Shard(shard)) = decode(&AnyCid::from(from), &bytes) else {
            panic!("not a shard");
        };
        for slot in shard.slots().iter().filter(|slot| slot.name.is_none()) {
            self.shards(slot.cid.known().unwrap(), out);
        }
    }

    fn leaves(&self, file: Cid) -> Vec<Cid> {
        let bytes = self.memory.bytes(&file);
        let Ok(Decoded::File(file)) = decode(&AnyCid::from(file), &bytes) else {
            panic!("not a file");
        };
        let children = file.children.iter();
        children.map(|child| child.cid.known().unwrap()).collect()
    }
}

/// The CIDs in a CAR, each checked against its bytes by the reader.
fn blocks(body: &[u8]) -> Vec<AnyCid> {
    let mut reader = car::Reader::new(body).unwrap();
    let mut found = Vec::new();
    while let Some(section) = reader.read().unwrap() {
        found.push(section.cid);
    }
    found
}

fn any(cids: &[Cid]) -> Vec<AnyCid> {
    cids.iter().copied().map(AnyCid::from).collect()
}

fn is_car(answer: &Answer, dups: &str) {
    assert_eq!(answer.status, 200);
    assert!(answer.whole);
    assert_eq!(
        answer.header("content-type"),
        Some(format!("application/vnd.ipld.car; version=1; order=dfs; dups={dups}").as_str())
    );
    assert_eq!(answer.header("accept-ranges"), Some("none"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.header("etag").unwrap().starts_with("W/\""));
    let disposition = answer.header("content-disposition").unwrap();
    assert!(disposition.starts_with("attachment; filename=\"") && disposition.ends_with(".car\""));
}

/// Asks for a CAR by `format=` and by `Accept`: exactly these blocks, in this order, both times.
async fn car_case(address: SocketAddr, path: &str, query: &str, wanted: &[Cid]) {
    let by_url = get(address, &format!("{path}?format=car{query}")).await;
    let only = query.strip_prefix('&').unwrap_or(query);
    let by_header = ask(address, "GET", &format!("{path}?{only}"), CAR).await;
    for (how, answer) in [("format=", &by_url), ("Accept", &by_header)] {
        is_car(answer, "n");
        assert_eq!(blocks(&answer.body), any(wanted), "{path} {query} by {how}");
        assert_eq!(answer.header("x-ipfs-path"), Some(path));
    }
    assert_eq!(by_url.body, by_header.body);
    assert_eq!(by_url.header("content-location"), None);
    let location = by_header.header("content-location").unwrap();
    assert!(
        location.starts_with(&format!("{path}?format=car")),
        "{location}"
    );
    let there = get(address, location).await;
    assert_eq!(there.body, by_url.body, "{location}");
    let head = ask(address, "HEAD", &format!("{path}?format=car{query}"), "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("etag"), by_url.header("etag"));
    assert_eq!(head.header("content-length"), None);
}
