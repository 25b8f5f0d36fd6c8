//! The gateway over real sockets. The cases of the first half are those of `ipfs/gateway-conformance` for trustless
//! gateways (groups raw, raw ranges, CAR pathing, scopes, entity bytes, order and duplicates), over trees of our own.

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

#[tokio::test]
async fn raw_blocks() {
    let tree = mixed().await;
    for cid in [
        tree.root,
        tree.subdir,
        tree.ascii,
        tree.multi,
        tree.link,
        tree.leaves[4],
        tree.empty,
    ] {
        let wanted = tree.memory.bytes(&cid);
        let path = format!("/ipfs/{cid}");
        let by_url = get(tree.address, &format!("{path}?format=raw")).await;
        let by_header = ask(tree.address, "GET", &path, RAW).await;
        for answer in [&by_url, &by_header] {
            assert_eq!(answer.status, 200);
            assert_eq!(answer.body, wanted);
            assert_eq!(
                answer.header("content-type"),
                Some("application/vnd.ipld.raw")
            );
            assert_eq!(
                answer.header("content-length"),
                Some(wanted.len().to_string().as_str())
            );
            let disposition = format!("attachment; filename=\"{cid}.bin\"");
            assert_eq!(
                answer.header("content-disposition"),
                Some(disposition.as_str())
            );
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(
                answer.header("etag"),
                Some(format!("\"{cid}.raw\"").as_str())
            );
            assert_eq!(answer.header("x-ipfs-path"), Some(path.as_str()));
            assert_eq!(
                answer.header("x-ipfs-roots"),
                Some(cid.to_string().as_str())
            );
            assert_eq!(
                answer.header("cache-control"),
                Some("public, max-age=29030400, immutable")
            );
        }
        assert_eq!(
            by_header.header("content-location"),
            Some(format!("{path}?format=raw").as_str())
        );
        let head = ask(tree.address, "HEAD", &path, RAW).await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(
            head.header("content-length"),
            by_url.header("content-length")
        );
    }
    let named = format!("/ipfs/{}?format=raw&filename=foobar.bin", tree.ascii);
    assert_eq!(
        get(tree.address, &named)
            .await
            .header("content-disposition"),
        Some("attachment; filename=\"foobar.bin\"")
    );
    let odd = format!("/ipfs/{}?format=raw&filename=a%22%C3%A9%0d%0ax", tree.ascii);
    assert_eq!(
        get(tree.address, &odd).await.header("content-disposition"),
        Some("attachment; filename=\"a____x\"; filename*=UTF-8''a%22%C3%A9%0D%0Ax")
    );
    // Also where a path leads.
    let by_path = get(
        tree.address,
        &format!("/ipfs/{}/subdir/ascii.txt?format=raw", tree.root),
    )
    .await;
    assert_eq!(by_path.body, tree.memory.bytes(&tree.ascii));
    assert_eq!(
        by_path.header("x-ipfs-roots"),
        Some(format!("{},{},{}", tree.root, tree.subdir, tree.ascii).as_str())
    );
}

#[tokio::test]
async fn raw_ranges() {
    let tree = mixed().await;
    let bytes = tree.memory.bytes(&tree.ascii);
    let len = bytes.len();
    let path = format!("/ipfs/{}?format=raw", tree.ascii);
    let ask =
        async |range: &str| ask(tree.address, "GET", &path, &format!("Range: {range}\r\n")).await;
    for (range, from, until) in [
        ("bytes=0-0", 0, 1),
        ("bytes=6-16", 6, 17),
        ("bytes=6-", 6, len),
        ("bytes=-3", len - 3, len),
        ("bytes=-9999", 0, len),
        ("bytes=5-9999", 5, len),
    ] {
        let answer = ask(range).await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.body, bytes[from..until], "{range}");
        let told = format!("bytes {from}-{}/{len}", until - 1);
        assert_eq!(answer.header("content-range"), Some(told.as_str()));
        assert_eq!(
            answer.header("content-type"),
            Some("application/vnd.ipld.raw")
        );
    }
    for range in ["bytes=0-1,3-4", "lines=1-2", "bytes=4-2", "bytes=x"] {
        let answer = ask(range).await;
        assert_eq!((answer.status, answer.body.len()), (200, len), "{range}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    }
    for range in [
        format!("bytes={len}-"),
        "bytes=-0".to_owned(),
        "bytes=99999-100000".to_owned(),
    ] {
        let answer = ask(&range).await;
        assert_eq!(answer.status, 416, "{range}");
        assert_eq!(
            answer.header("content-range"),
            Some(format!("bytes */{len}").as_str())
        );
    }
}

#[tokio::test]
async fn car_pathing() {
    let tree = mixed().await;
    let root = format!("/ipfs/{}", tree.root);
    let way = [tree.root, tree.subdir, tree.ascii];
    car_case(tree.address, &format!("{root}/subdir/ascii.txt"), "", &way).await;
    car_case(tree.address, &format!("{root}/subdir/ascii.txt/"), "", &way).await;
    let to_link = [tree.root, tree.subdir, tree.link];
    car_case(tree.address, &format!("{root}/subdir/link"), "", &to_link).await;
    for missing in [
        "/subdir/i-do-not-exist",
        "/nothing/x",
        "/subdir/ascii.txt/below",
        "/subdir/link/below",
    ] {
        for format in ["car", "raw"] {
            let answer = get(tree.address, &format!("{root}{missing}?format={format}")).await;
            assert_eq!(answer.status, 404, "{missing}");
        }
    }

    let tree = sharded(1000).await;
    for name in ["685.txt", "1.txt", "0.txt", "999.txt"] {
        let (mut wanted, file) = tree.way(name);
        assert!(wanted.len() >= 2, "the root is not all");
        wanted.push(file);
        let path = format!("/ipfs/{}/{name}", tree.root);
        car_case(tree.address, &path, "&dag-scope=block", &wanted).await;
        wanted.extend(tree.leaves(file));
        car_case(tree.address, &path, "", &wanted).await;
        car_case(tree.address, &path, "&dag-scope=all", &wanted).await;
        car_case(tree.address, &path, "&dag-scope=entity", &wanted).await;
    }
    let missing = get(
        tree.address,
        &format!("/ipfs/{}/1000.txt?format=car", tree.root),
    )
    .await;
    assert_eq!(missing.status, 404);
}

#[tokio::test]
async fn car_scopes() {
    let tree = mixed().await;
    let root = format!("/ipfs/{}", tree.root);
    let (a, s) = (tree.address, "&dag-scope=");
    let subdir = format!("{root}/subdir");
    let multi = format!("{root}/subdir/multiblock.txt");
    car_case(a, &subdir, &format!("{s}block"), &[tree.root, tree.subdir]).await;
    car_case(
        a,
        &format!("{subdir}/ascii.txt"),
        &format!("{s}block"),
        &[tree.root, tree.subdir, tree.ascii],
    )
    .await;
    car_case(
        a,
        &multi,
        &format!("{s}block"),
        &[tree.root, tree.subdir, tree.multi],
    )
    .await;
    car_case(a, &root, &format!("{s}entity"), &[tree.root]).await;
    car_case(a, &subdir, &format!("{s}entity"), &[tree.root, tree.subdir]).await;
    car_case(
        a,
        &format!("{subdir}/link"),
        &format!("{s}entity"),
        &[tree.root, tree.subdir, tree.link],
    )
    .await;
    let mut whole = vec![tree.root, tree.subdir, tree.multi];
    whole.extend(&tree.leaves);
    car_case(a, &multi, &format!("{s}entity"), &whole).await;
    car_case(a, &multi, &format!("{s}all"), &whole).await;
    let mut all = vec![
        tree.root,
        tree.subdir,
        tree.ascii,
        tree.empty,
        tree.link,
        tree.multi,
    ];
    all.extend(&tree.leaves);
    car_case(a, &subdir, &format!("{s}all"), &all).await;
    car_case(a, &root, "", &all).await;
    // A single leaf, and the block of no bytes, are trees too.
    car_case(
        a,
        &format!("/ipfs/{}", tree.leaves[1]),
        "",
        &tree.leaves[1..2],
    )
    .await;
    car_case(a, &format!("/ipfs/{}", tree.empty), "", &[tree.empty]).await;

    let tree = sharded(500).await;
    let root = format!("/ipfs/{}", tree.root);
    let mut shards = Vec::new();
    tree.shards(tree.root, &mut shards);
    assert!(shards.len() > 10);
    car_case(tree.address, &root, "&dag-scope=entity", &shards).await;
    car_case(
        tree.address,
        &root,
        "&dag-scope=entity&entity-bytes=0:*",
        &shards,
    )
    .await;
    car_case(tree.address, &root, "&dag-scope=block", &shards[..1]).await;
    let everything = get(tree.address, &format!("{root}?format=car")).await;
    is_car(&everything, "n");
    assert_eq!(
        blocks(&everything.body).len(),
        tree.memory.nodes.lock().len()
    );
}

#[tokio::test]
async fn car_entity_bytes() {
    let tree = mixed().await;
    let path = format!("/ipfs/{}", tree.multi);
    // Which leaves of 256, 256, 256, 256 and 2 bytes; none means the root alone.
    for (bytes, leaves) in [
        ("0:*", 0..5),
        ("0:0", 0..1),
        ("0:255", 0..1),
        ("0:256", 0..2),
        ("255:256", 0..2),
        ("256:511", 1..2),
        ("512:*", 2..5),
        ("512:1023", 2..4),
        ("512:-256", 2..4),
        ("-5:*", 3..5),
        ("-2:*", 4..5),
        ("-1:-1", 4..5),
        ("1025:1025", 4..5),
        ("1024:99999", 4..5),
        ("-9999:*", 0..5),
        ("-9999:-3", 0..4),
        ("1026:*", 0..0),
        ("99999:100000", 0..0),
        ("-9999:-1027", 0..0),
        ("700:-800", 0..0),
    ] {
        let mut wanted = vec![tree.multi];
        wanted.extend(&tree.leaves[leaves]);
        car_case(
            tree.address,
            &path,
            &format!("&dag-scope=entity&entity-bytes={bytes}"),
            &wanted,
        )
        .await;
        car_case(
            tree.address,
            &path,
            &format!("&entity-bytes={bytes}"),
            &wanted,
        )
        .await;
    }
    // What is not a file has no bytes to choose from.
    let subdir = format!("/ipfs/{}", tree.subdir);
    car_case(tree.address, &subdir, "&entity-bytes=5:7", &[tree.subdir]).await;
    let ascii = format!("/ipfs/{}", tree.ascii);
    car_case(tree.address, &ascii, "&entity-bytes=5:7", &[tree.ascii]).await;

    // A block outside of the range need not be there; one inside cuts the connection.
    tree.memory.forget(&tree.leaves[1]);
    car_case(
        tree.address,
        &path,
        "&entity-bytes=0:200",
        &[tree.multi, tree.leaves[0]],
    )
    .await;
    car_case(
        tree.address,
        &path,
        "&entity-bytes=512:*",
        &[&[tree.multi], &tree.leaves[2..]].concat(),
    )
    .await;
    let target = format!("{path}?format=car&entity-bytes=0:300");
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let cut = Answer::parse(&exchange(tree.address, request.as_bytes()).await);
    assert!(
        cut.is_none_or(|answer| !answer.whole),
        "what is missing must not look like the end"
    );
}

#[tokio::test]
async fn deep_files_and_repeated_parts() {
    let memory = Memory::new();
    // Three levels, two links a node; the second half repeats the first, so that nodes occur twice.
    let bytes = [text(256), text(256)].concat();
    let root = memory.add(&Item::Blocks(bytes.clone(), 64, 2)).cid;
    let address = start(&memory, Limits::default()).await;
    let path = format!("/ipfs/{root}");
    for from in (0..512).step_by(61) {
        for until in (from + 1..=512).step_by(67) {
            let answer = get(
                address,
                &format!("{path}?format=car&entity-bytes={from}:{}", until - 1),
            )
            .await;
            is_car(&answer, "n");
            // Whoever walks the file with just these blocks finds every byte of the range.
            let mut reader = car::Reader::new(&answer.body[..]).unwrap();
            let only = Memory::new();
            let mut count = 0;
            while let Some(section) = reader.read().unwrap() {
                let digest = section.cid.known().unwrap().digest();
                assert!(
                    only.nodes.lock().insert(digest, section.bytes).is_none(),
                    "sent twice"
                );
                count += 1;
            }
            let mut got = Vec::new();
            read(&only, root, 0, from..until, &mut got);
            assert_eq!(
                got,
                bytes[usize::try_from(from).unwrap()..usize::try_from(until).unwrap()]
            );
            assert!(count <= only.nodes.lock().len());
        }
    }
    let twice = get(address, &format!("{path}?format=car&car-dups=y")).await;
    is_car(&twice, "y");
    assert_eq!(blocks(&twice.body).len(), 15);
    let once = get(address, &format!("{path}?format=car")).await;
    assert_eq!(blocks(&once.body).len(), 8);
}

/// Reads a range of a file as any reader of UnixFS would.
fn read(memory: &Memory, node: Cid, start: u64, range: std::ops::Range<u64>, out: &mut Vec<u8>) {
    let bytes = memory.bytes(&node);
    let Ok(Decoded::File(file)) = decode(&AnyCid::from(node), &bytes) else {
        panic!("not a file");
    };
    for (at, byte) in (start..).zip(file.data) {
        if range.contains(&at) {
            out.push(*byte);
        }
    }
    let mut at = start + file.data.len() as u64;
    for child in &file.children {
        if at < range.end && at + child.bytes > range.start {
            read(memory, child.cid.known().unwrap(), at, range.clone(), out);
        }
        at += child.bytes;
    }
}

#[tokio::test]
async fn car_order_and_duplicates() {
    let memory = Memory::new();
    let multi = || Item::Blocks(text(1026), 256, 1024);
    let root = memory
        .add(&directory(vec![
            ("ascii-copy.txt", Item::File(b"ascii".to_vec())),
            ("ascii.txt", Item::File(b"ascii".to_vec())),
            ("multi-copy.txt", multi()),
            ("multi.txt", multi()),
        ]))
        .cid;
    let address = start(&memory, Limits::default()).await;
    let path = format!("/ipfs/{root}");
    let accept = async |params: &str, query: &str| {
        let header = format!("Accept: application/vnd.ipld.car;{params}\r\n");
        ask(address, "GET", &format!("{path}{query}"), &header).await
    };
    let ascii = memory.add(&Item::File(b"ascii".to_vec())).cid;
    let multi = memory.add(&multi()).cid;
    let leaves: Vec<Cid> = text(1026)
        .chunks(256)
        .map(|leaf| Cid::raw(manifs::block::Digest::of(leaf)))
        .collect();
    let file = [&[multi], &leaves[..]].concat();
    let twice = [&[root, ascii, ascii], &file[..], &file[..]].concat();
    let once = [&[root, ascii], &file[..]].concat();

    let answer = accept("version=1; order=dfs; dups=y", "").await;
    is_car(&answer, "y");
    assert_eq!(blocks(&answer.body), any(&twice));
    let answer = accept("version=1;order=dfs;dups=n", "").await;
    is_car(&answer, "n");
    assert_eq!(blocks(&answer.body), any(&once));
    // Any order is also this one.
    is_car(&accept("order=unk", "").await, "n");
    // The header's parameters count beside format=, and those of the URL over them.
    let answer = accept("version=1; order=dfs; dups=y", "?format=car").await;
    assert_eq!(blocks(&answer.body), any(&twice));
    is_car(&accept("dups=y", "?format=car&car-dups=n").await, "n");
    // format= wins over Accept.
    let raw = accept("dups=y", "?format=raw").await;
    assert_eq!(raw.header("content-type"), Some("application/vnd.ipld.raw"));
    let answer = ask(address, "GET", &format!("{path}?format=car"), RAW).await;
    is_car(&answer, "n");
}

#[tokio::test]
async fn identity_cids() {
    let tree = mixed().await;
    let raw = get(tree.address, &format!("/ipfs/{PROBE}?format=raw")).await;
    assert_eq!((raw.status, raw.body.len()), (200, 0));
    assert_eq!(raw.header("content-length"), Some("0"));
    let head = ask(
        tree.address,
        "HEAD",
        &format!("/ipfs/{PROBE}?format=raw"),
        "",
    )
    .await;
    assert_eq!(head.status, 200);
    let inline = "bafkqaf3imvwgy3zaneqgc3janfxgy2lomvscay3jmqfa";
    let raw = ask(tree.address, "GET", &format!("/ipfs/{inline}"), RAW).await;
    assert_eq!(raw.body, b"hello i am inlined cid\n");
    for cid in [PROBE, inline] {
        for query in ["", "&car-dups=y", "&dag-scope=block", "&dag-scope=entity"] {
            let answer = get(tree.address, &format!("/ipfs/{cid}?format=car{query}")).await;
            assert_eq!(answer.status, 200);
            let reader = car::Reader::new(&answer.body[..]).unwrap();
            assert_eq!(reader.roots(), [cid.parse::<AnyCid>().unwrap()]);
            assert_eq!(blocks(&answer.body), []);
        }
    }
}

#[tokio::test]
async fn what_is_not_shared_is_not_found() {
    let tree = mixed().await;
    let unknown = Cid::raw(manifs::block::Digest::of(b"not here"));
    let folder = Cid::dag_pb(manifs::block::Digest::of(b"not here"));
    for (cid, format) in [
        (unknown, "raw"),
        (unknown, "car"),
        (folder, "raw"),
        (folder, "car"),
    ] {
        let answer = get(tree.address, &format!("/ipfs/{cid}?format={format}")).await;
        assert_eq!(answer.status, 404, "{cid} {format}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let answer = get(tree.address, &format!("/ipfs/{folder}/a/b?format=car")).await;
    assert_eq!(answer.status, 404);
    // A codec that is not served, over a digest that is.
    let digest = tree.root.digest();
    let mut cbor = vec![0x01, 0x71, 0x12, 0x20];
    cbor.extend_from_slice(digest.as_bytes());
    let cbor = AnyCid::from_bytes(&cbor).unwrap();
    let answer = get(tree.address, &format!("/ipfs/{cbor}?format=raw")).await;
    assert_eq!(answer.status, 404);
    for path in [
        "/",
        "/ipfs",
        "/ipns/x?format=ipns-record",
        "/api/v0/id",
        "/packages",
        "/packages/",
        "/metrics",
    ] {
        assert_eq!(get(tree.address, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_old_form_of_a_cid_is_the_same_block() {
    let tree = mixed().await;
    let mut bytes = vec![0x12, 0x20];
    bytes.extend_from_slice(tree.subdir.digest().as_bytes());
    let v0 = AnyCid::from_bytes(&bytes).unwrap();
    assert!(v0.to_string().starts_with("Qm"));
    let raw = get(tree.address, &format!("/ipfs/{v0}?format=raw")).await;
    assert_eq!(raw.body, tree.memory.bytes(&tree.subdir));
    let answer = get(
        tree.address,
        &format!("/ipfs/{v0}?format=car&dag-scope=block"),
    )
    .await;
    assert_eq!(blocks(&answer.body), [v0]);
}

#[tokio::test]
async fn caches_ask_whether_it_has_changed() {
    let tree = mixed().await;
    for query in ["format=raw", "format=car", "format=car&dag-scope=block"] {
        let target = format!("/ipfs/{}/subdir?{query}", tree.root);
        let etag = get(tree.address, &target)
            .await
            .header("etag")
            .unwrap()
            .to_owned();
        let weak = format!("W/{}", etag.trim_start_matches("W/"));
        for tags in [
            etag.clone(),
            weak,
            "*".to_owned(),
            format!("\"other\", {etag}"),
        ] {
            let headers = format!("If-None-Match: {tags}\r\n");
            for method in ["GET", "HEAD"] {
                let answer = ask(tree.address, method, &target, &headers).await;
                assert_eq!(
                    (answer.status, answer.body.len()),
                    (304, 0),
                    "{query} {tags}"
                );
                assert_eq!(answer.header("etag"), Some(etag.as_str()));
                assert!(answer.header("cache-control").is_some());
            }
        }
        let headers = "If-None-Match: \"other\"\r\n";
        assert_eq!(ask(tree.address, "GET", &target, headers).await.status, 200);
    }
    // Each set of blocks has a tag of its own.
    let mut tags = std::collections::HashSet::new();
    for query in [
        "",
        "&dag-scope=block",
        "&dag-scope=entity",
        "&entity-bytes=0:5",
        "&entity-bytes=0:6",
        "&car-dups=y",
    ] {
        let answer = get(
            tree.address,
            &format!("/ipfs/{}?format=car{query}", tree.multi),
        )
        .await;
        assert!(
            tags.insert(answer.header("etag").unwrap().to_owned()),
            "{query}"
        );
    }
    // A tag is no way to learn what is here.
    let unknown = Cid::raw(manifs::block::Digest::of(b"not here"));
    let answer = ask(
        tree.address,
        "GET",
        &format!("/ipfs/{unknown}?format=raw"),
        &format!("If-None-Match: \"{unknown}.raw\"\r\n"),
    )
    .await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn refusals_have_their_own_status() {
    let tree = mixed().await;
    let cid = tree.root;
    for (status, target) in [
        (400, "/ipfs/not-a-cid?format=raw".to_owned()),
        (400, "/ipfs/?format=raw".to_owned()),
        (400, format!("/ipfs/{cid}?format=zip")),
        (400, format!("/ipfs/{cid}?format=car&dag-scope=tree")),
        (400, format!("/ipfs/{cid}?format=car&entity-bytes=x")),
        (400, format!("/ipfs/{cid}?format=car&car-version=2")),
        (400, format!("/ipfs/{cid}?format=car&car-order=bfs")),
        (400, format!("/ipfs/{cid}?format=car&car-dups=perhaps")),
        (400, format!("/ipfs/{cid}/%2e%2e/x?format=raw")),
        (400, format!("/ipfs/{cid}/../../etc/passwd?format=raw")),
        (400, format!("/ipfs/{cid}/a%00b?format=raw")),
        (400, format!("/ipfs/{cid}/a%2fb?format=raw")),
        (400, format!("/ipfs/{cid}/%zz?format=raw")),
        (400, format!("/ipfs/{cid}//subdir?format=raw")),
        (406, format!("/ipfs/{cid}")),
        (406, format!("/ipfs/{cid}?format=dag-json")),
        (406, format!("/ipfs/{cid}?format=tar")),
        (404, "/packages/..%2f..%2fkeys/x".to_owned()),
        (404, "/packages/../keys/x.pem".to_owned()),
        (404, "/keys/%2e%2e/%2e%2e/secret.pem".to_owned()),
    ] {
        let answer = get(tree.address, &target).await;
        assert_eq!(answer.status, status, "{target}");
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    for accept in ["text/html", "*/*", "application/vnd.ipld.dag-json"] {
        let headers = format!("Accept: {accept}\r\n");
        let answer = ask(tree.address, "GET", &format!("/ipfs/{cid}"), &headers).await;
        assert_eq!(answer.status, 406, "{accept}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = ask(
            tree.address,
            method,
            &format!("/ipfs/{cid}?format=raw"),
            "Content-Length: 0\r\n",
        )
        .await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
}

#[tokio::test]
async fn only_our_own_names_are_answered() {
    let tree = mixed().await;
    let with_host = async |hosts: &str| {
        let request =
            format!("GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nConnection: close\r\n{hosts}\r\n");
        let bytes = exchange(tree.address, request.as_bytes()).await;
        Answer::parse(&bytes).unwrap().status
    };
    for host in [
        "127.0.0.1",
        "127.0.0.1:9",
        "[::1]:8420",
        "localhost:8420",
        "share.example",
        "Share.Example.:80",
    ] {
        assert_eq!(with_host(&format!("Host: {host}\r\n")).await, 200, "{host}");
    }
    for hosts in [
        "Host: evil.example\r\n",
        "Host: evil.example:8420\r\n",
        "Host: localhost.evil.example\r\n",
        "Host: \r\n",
        "",
        "Host: localhost\r\nHost: evil.example\r\n",
    ] {
        let status = with_host(hosts).await;
        assert!(status == 421 || status == 400, "{hosts:?}: {status}");
    }
    let absolute = "GET http://evil.example/ipfs/bafkqaaa?format=raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = Answer::parse(&exchange(tree.address, absolute.as_bytes()).await).unwrap();
    assert_eq!(answer.status, 421);
}

#[tokio::test]
async fn hostile_requests_cost_little() {
    let tree = mixed().await;
    let long = "x".repeat(64 << 10);
    let many: String = (0..500).map(|nth| format!("X-{nth}: 1\r\n")).collect();
    for headers in [format!("X-Long: {long}\r\n"), many] {
        let request = format!(
            "GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        );
        let bytes = exchange(tree.address, request.as_bytes()).await;
        if let Some(answer) = Answer::parse(&bytes) {
            assert_eq!(answer.status, 431);
        }
    }
    let target = format!("/ipfs/{PROBE}?format=raw&x={}", "y".repeat(20 << 10));
    assert_eq!(get(tree.address, &target).await.status, 414);
    let deep = format!("/ipfs/{}{}?format=raw", tree.root, "/a".repeat(300));
    assert_eq!(get(tree.address, &deep).await.status, 400);
    let huge_cid = format!("/ipfs/b{}?format=raw", "a".repeat(8000));
    assert_eq!(get(tree.address, &huge_cid).await.status, 400);
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(tree.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"));
    }
    // A body nobody asked for is not waited for.
    let request = format!(
        "GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    );
    let mut stream = TcpStream::connect(tree.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // Everything is as it was.
    assert_eq!(
        get(tree.address, &format!("/ipfs/{}?format=raw", tree.ascii))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn connections_are_limited_and_slow_ones_end() {
    let memory = Memory::new();
    let limits = Limits {
        connections: 8,
        head: Duration::from_millis(300),
        stall: Duration::from_millis(300),
        ..Limits::default()
    };
    let address = start(&memory, limits).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /ipfs/bafkqaaa?for").await.unwrap();
        held.push(stream);
    }
    let mut refused = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    refused.read_to_end(&mut answer).await.unwrap();
    let answer = Answer::parse(&answer).unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Whoever does not come to the end of a request gives the place back.
    for mut stream in held {
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(5), read)
            .await
            .unwrap()
            .ok();
    }
    assert_eq!(
        get(address, &format!("/ipfs/{PROBE}?format=raw"))
            .await
            .status,
        200
    );

    // Nor does an idle connection keep its place.
    let mut idle = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ipfs/{PROBE}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n");
    idle.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let read = idle.read_to_end(&mut rest);
    let ended = tokio::time::timeout(Duration::from_secs(5), read).await;
    ended.expect("it was closed").unwrap();
    assert_eq!(Answer::parse(&rest).unwrap().status, 200);

    // Whoever takes nothing of a long answer is cut off.
    let entries = (0..64_u32).map(|nth| {
        let bytes = nth.to_le_bytes().repeat(1 << 18);
        (format!("{nth}"), Item::File(bytes))
    });
    let root = memory.add(&Item::Directory(entries.collect())).cid;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /ipfs/{root}?format=car HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let asked = || memory.asked.lock().len();
    let mut before = asked();
    // It stops reading the store ...
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if asked() == before && before > 1 {
            break;
        }
        before = asked();
    }
    assert!(
        before < 40,
        "{before} blocks were read for somebody who takes none"
    );
    // ... and then ends.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 << 20, "it was cut off");
}

#[tokio::test]
async fn the_rate_is_kept() {
    use manifs::serve::gateway::{Gateway, Options, serve};
    let memory = Memory::new();
    let cid = memory.add(&Item::File(vec![7; 1 << 20])).cid;
    let options = Options {
        up: Some(Arc::new(manifs::net::Rate::new(2 << 20))),
        ..Options::default()
    };
    let router = Gateway::new(Arc::clone(&memory) as _, &options).router();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(
        listener,
        router,
        Limits::default(),
        std::future::pending(),
    ));
    let started = std::time::Instant::now();
    let raw = get(address, &format!("/ipfs/{cid}?format=raw")).await;
    assert_eq!(raw.body, memory.bytes(&cid));
    assert!(started.elapsed() > Duration::from_millis(300));
    assert!(raw.header("content-length").is_some());
}

#[tokio::test]
async fn shutting_down_lets_answers_end() {
    use manifs::serve::gateway::{Gateway, Options, serve};
    let memory = Memory::new();
    let cid = memory.add(&Item::File(text(1 << 20))).cid;
    let router = Gateway::new(Arc::clone(&memory) as _, &Options::default()).router();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, router, Limits::default(), async {
        let _ = ended.await;
    }));
    let mut idle = TcpStream::connect(address).await.unwrap();
    let mut busy = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /ipfs/{cid}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n");
    busy.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 100];
    busy.read_exact(&mut first).await.unwrap();
    end.send(()).unwrap();
    let mut rest = first.to_vec();
    busy.read_to_end(&mut rest).await.unwrap();
    assert!(Answer::parse(&rest).unwrap().whole);
    let mut nothing = Vec::new();
    let _ = idle.read_to_end(&mut nothing).await;
    tokio::time::timeout(Duration::from_secs(5), server)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_registry_is_served_and_our_own_client_reads_it() {
    let memory = Memory::new();
    let address = start(&memory, Limits::default()).await;
    let listing = "{\"format\": \"manifs-packages/1\", \"packages\": {\"acme/tool\": [\"1.0.0\"]}}";
    for (path, body) in [
        ("packages.json", listing),
        ("packages/acme/tool/index.json", "index"),
        ("packages/acme/tool/1.0.0/manifest.json", "manifest"),
        ("packages/acme/tool/1.0.0/SHA256SUMS", "sums"),
    ] {
        let place = Place::parse(path).unwrap();
        memory
            .files
            .lock()
            .insert(place, Bytes::copy_from_slice(body.as_bytes()));
        let answer = get(address, &format!("/{path}")).await;
        assert_eq!((answer.status, &answer.body[..]), (200, body.as_bytes()));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
        let etag = answer.header("etag").unwrap();
        let again = ask(
            address,
            "GET",
            &format!("/{path}"),
            &format!("If-None-Match: {etag}\r\n"),
        )
        .await;
        assert_eq!(again.status, 304);
        let head = ask(address, "HEAD", &format!("/{path}"), "").await;
        assert_eq!(
            head.header("content-length"),
            Some(body.len().to_string().as_str())
        );
    }
    let client = manifs::net::Client::new(manifs::net::Options {
        filter: manifs::net::AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Default::default()
    });
    let http = Http::new(&format!("http://{address}"), client, HttpOptions::default());
    let first = http.changed(Moment::default()).await;
    assert!(http.is_daemon());
    assert_eq!(http.names().await.unwrap(), ["acme/tool".parse().unwrap()]);
    let package = "acme/tool@1.0.0".parse().unwrap();
    assert_eq!(http.manifest(&package).await.unwrap().unwrap(), "manifest");
    assert_eq!(http.index(&package.name).await.unwrap().unwrap(), "index");
    let waiting = http.changed(first);
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut waiting)
            .await
            .is_err()
    );
    memory.count.send_modify(|count| *count += 1);
    let second = tokio::time::timeout(Duration::from_secs(2), waiting)
        .await
        .unwrap();
    assert!(second > first);
    // Without a cursor, or with a stranger's, it answers at once.
    for query in ["", "?since=", "?since=0-0", "?since=%00"] {
        let answer = get(address, &format!("/changes{query}")).await;
        assert_eq!(answer.status, 200);
        assert!(changes::parse(&answer.body).is_some());
    }
}

#[tokio::test]
async fn one_connection_answers_many_requests() {
    let tree = mixed().await;
    let mut stream = TcpStream::connect(tree.address).await.unwrap();
    let wanted = tree.memory.bytes(&tree.leaves[0]);
    for _ in 0..50 {
        let request = format!(
            "GET /ipfs/{}?format=raw HTTP/1.1\r\nHost: localhost\r\n\r\n",
            tree.leaves[0]
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let answer = loop {
            let mut part = [0; 4096];
            let len = stream.read(&mut part).await.unwrap();
            assert!(len > 0);
            bytes.extend_from_slice(&part[..len]);
            if let Some(answer) = Answer::parse(&bytes).filter(|answer| answer.whole) {
                break answer;
            }
        };
        assert_eq!(answer.body, wanted);
    }
}

#[tokio::test]
async fn a_file_of_the_profile_is_whole() {
    // Three full blocks and a bit, in the layout that manifs publishes.
    let memory = Memory::new();
    let bytes = text((3 << 20) + 5);
    let item = Item::Blocks(bytes.clone(), 1 << 20, 1024);
    let root = memory.add(&item).cid;
    let leaves: Vec<_> = bytes
        .chunks(1 << 20)
        .map(manifs::block::Digest::of)
        .collect();
    assert_eq!(root, file::root(bytes.len() as u64, leaves.iter().copied()));
    let address = start(&memory, Limits::default()).await;
    let wanted = [vec![root], leaves.iter().copied().map(Cid::raw).collect()].concat();
    car_case(address, &format!("/ipfs/{root}"), "", &wanted).await;
}
