//! UnixFS trees against the vectors of other programs, and random trees against themselves.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;

use manifs::block::{BLOCK_BYTES, Digest};
use manifs::unixfs::directory::{self, Entry};
use manifs::unixfs::file::{self, Builder, Layout};
use manifs::unixfs::{AnyCid, Cid, Decoded, Link, Node, NodePlace, dagpb, decode, hamt, symlink};
use proptest::prelude::*;
use serde_json::Value;

use crate::common::{full, vectors};

/// More than this is hashed only when everything is.
const BIG_BYTES: u64 = 64 << 20;

/// A tree as its author thinks of it.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    File(Vec<u8>, Layout),
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>, Sharding),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sharding {
    Profile,
    Always,
}

/// The blocks of a tree, each once.
#[derive(Default)]
struct Dag(HashMap<Cid, Vec<u8>>);

impl Dag {
    fn add(&mut self, tree: &Tree) -> Link {
        match tree {
            Tree::File(content, layout) => self.add_file(content, *layout),
            Tree::Symlink(target) => {
                let link = symlink::link(target);
                self.0.insert(link.cid, symlink::node(target));
                link
            }
            Tree::Directory(children, sharding) => {
                let entries: Vec<Entry> = children
                    .iter()
                    .map(|(name, tree)| Entry {
                        name: name.clone(),
                        link: self.add(tree),
                    })
                    .collect();
                self.add_directory(&entries, *sharding)
            }
        }
    }

    fn add_file(&mut self, content: &[u8], layout: Layout) -> Link {
        let leaf_bytes = usize::try_from(layout.leaf_bytes).unwrap();
        let leaves: Vec<Digest> = content.chunks(leaf_bytes).map(Digest::of).collect();
        for (leaf, bytes) in leaves.iter().zip(content.chunks(leaf_bytes)) {
            self.0.insert(Cid::raw(*leaf), bytes.to_vec());
        }
        if content.is_empty() {
            self.0.insert(Cid::raw(Digest::EMPTY), Vec::new());
        }
        let size = content.len() as u64;
        let mut nodes = Vec::new();
        let mut builder = Builder::with_layout(layout, size);
        for leaf in &leaves {
            builder.push(*leaf, &mut self.emit(&mut nodes)).unwrap();
        }
        let link = builder.finish(&mut self.emit(&mut nodes)).unwrap();
        for (cid, place) in nodes {
            let NodePlace::File { level, index } = place else {
                panic!("{place:?} in a file");
            };
            let mut run = |range: Range<u64>| {
                let at = |index| usize::try_from(index).unwrap();
                Ok::<_, io::Error>(leaves[at(range.start)..at(range.end)].to_vec())
            };
            let again = layout.node(size, level, index, &mut run).unwrap();
            assert_eq!(again.as_ref(), self.0.get(&cid), "{place:?}");
        }
        if layout == Layout::V1_2025 {
            assert_eq!(file::root(size, leaves.iter().copied()), link.cid);
            assert_eq!(file::tsize(size), link.tsize);
        }
        link
    }

    fn add_directory(&mut self, entries: &[Entry], sharding: Sharding) -> Link {
        let mut nodes = Vec::new();
        let mut emit = self.emit(&mut nodes);
        let link = match sharding {
            Sharding::Profile => directory::build(entries, &mut emit),
            Sharding::Always => directory::build_sharded(entries, &mut emit),
        };
        drop(emit);
        // Each shard reads all entries again: of very many, some.
        let step = nodes.len() / 40 + 1;
        for (cid, place) in nodes.iter().rev().step_by(step) {
            let again = match (sharding, *place) {
                (Sharding::Profile, place) => directory::node(entries, place),
                (Sharding::Always, NodePlace::Shard { depth, prefix }) => {
                    directory::shard(entries, depth, prefix)
                }
                _ => panic!("{place:?} in a sharded directory"),
            };
            assert_eq!(again.as_ref(), self.0.get(cid), "{place:?}");
        }
        link.unwrap()
    }

    fn emit(
        &mut self,
        nodes: &mut Vec<(Cid, NodePlace)>,
    ) -> impl FnMut(Node<'_>) -> io::Result<()> {
        |node| {
            self.0.insert(node.cid, node.bytes.to_vec());
            nodes.push((node.cid, node.place));
            Ok(())
        }
    }

    fn decode(&self, cid: &AnyCid) -> Decoded<'_> {
        let bytes = cid.known().and_then(|cid| self.0.get(&cid));
        decode(cid, bytes.expect("every node was emitted")).unwrap()
    }

    /// Reads a tree back and checks it against the one it was made from.
    fn check(&self, cid: &AnyCid, tree: &Tree) {
        match tree {
            Tree::File(content, _) => assert_eq!(&self.file(cid), content),
            Tree::Symlink(target) => assert_eq!(self.decode(cid), Decoded::Symlink(target)),
            Tree::Directory(children, _) => {
                let mut entries = BTreeMap::new();
                self.list(cid, &mut Vec::new(), &mut entries);
                assert!(entries.keys().eq(children.keys()));
                // A lookup decodes a node a level: of very many, some.
                for name in children.keys().step_by(children.len() / 100 + 1) {
                    assert_eq!(self.lookup(cid, name).as_ref(), Some(&entries[name]));
                }
                for (name, tree) in children {
                    self.check(&entries[name], tree);
                }
                assert_eq!(self.lookup(cid, b"not there"), None);
            }
        }
    }

    fn file(&self, cid: &AnyCid) -> Vec<u8> {
        let Decoded::File(file) = self.decode(cid) else {
            panic!("{cid} is no file");
        };
        let mut content = file.data.to_vec();
        for child in file.children {
            let part = self.file(&child.cid);
            assert_eq!(part.len() as u64, child.bytes);
            content.extend(part);
        }
        assert_eq!(content.len() as u64, file.size);
        content
    }

    fn list(&self, cid: &AnyCid, path: &mut Vec<u32>, found: &mut BTreeMap<Vec<u8>, AnyCid>) {
        match self.decode(cid) {
            Decoded::Directory(entries) => {
                let entries = entries.into_iter();
                found.extend(entries.map(|entry| (entry.name.to_vec(), entry.cid)));
            }
            Decoded::Shard(shard) => {
                shard.check(path).unwrap();
                for slot in shard.slots() {
                    if let Some(name) = slot.name {
                        found.insert(name.to_vec(), slot.cid.clone());
                    } else {
                        path.push(slot.slot);
                        self.list(&slot.cid, path, found);
                        path.pop();
                    }
                }
            }
            other => panic!("{cid} is no directory but {other:?}"),
        }
    }

    fn lookup(&self, cid: &AnyCid, name: &[u8]) -> Option<AnyCid> {
        let mut cid = cid.clone();
        for depth in 0.. {
            match self.decode(&cid) {
                Decoded::Directory(entries) => {
                    let entry = entries.into_iter().find(|entry| entry.name == name)?;
                    return Some(entry.cid);
                }
                Decoded::Shard(shard) => {
                    let slot = shard.lookup(name, depth).unwrap()?;
                    if slot.name.is_some() {
                        return Some(slot.cid.clone());
                    }
                    cid = slot.cid.clone();
                }
                other => panic!("{cid} is no directory but {other:?}"),
            }
        }
        None
    }
}

/// The key stream that Kubo's tests take their content from: ChaCha20 (RFC 8439), zero nonce, counter from 0.
struct ChaCha20 {
    state: [u32; 16],
    block: Vec<u8>,
}

impl ChaCha20 {
    fn new(seed: &str) -> Self {
        let key = Digest::of(seed.as_bytes());
        let mut state = [0; 16];
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        for (word, bytes) in state[4..12].iter_mut().zip(key.as_bytes().as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        ChaCha20 {
            state,
            block: Vec::new(),
        }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 64);
        out.append(&mut self.block);
        while out.len() < len {
            let mut work = self.state;
            for _ in 0..10 {
                for (a, b, c, d) in [
                    (0, 4, 8, 12),
                    (1, 5, 9, 13),
                    (2, 6, 10, 14),
                    (3, 7, 11, 15),
                    (0, 5, 10, 15),
                    (1, 6, 11, 12),
                    (2, 7, 8, 13),
                    (3, 4, 9, 14),
                ] {
                    for (x, y, z, turn) in
                        [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]
                    {
                        work[x] = work[x].wrapping_add(work[y]);
                        work[z] = (work[z] ^ work[x]).rotate_left(turn);
                    }
                }
            }
            for (word, start) in work.iter().zip(self.state) {
                out.extend(word.wrapping_add(start).to_le_bytes());
            }
            self.state[12] += 1;
        }
        self.block = out.split_off(len);
        out
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn content(file: &Value, contents: &Value) -> Vec<u8> {
    let (kind, value) = file["content"].as_object().unwrap().iter().next().unwrap();
    let len = |value: &Value| usize::try_from(number(value)).unwrap();
    match kind.as_str() {
        "text" => text(value).into(),
        "hex" => hex::decode(text(value)).unwrap(),
        "zeros" => vec![0; len(value)],
        "repeat" => vec![u8::try_from(number(&value["byte"])).unwrap(); len(&value["len"])],
        "chacha20" => ChaCha20::new(text(&value["seed"])).take(len(&value["len"])),
        "ref" => content(
            &serde_json::json!({ "content": contents[text(value)] }),
            contents,
        ),
        other => panic!("content {other}"),
    }
}

fn tree(node: &Value, contents: &Value, layout: Layout) -> Tree {
    match text(&node["type"]) {
        "file" => {
            let leaf_bytes = node["chunk"].as_u64().unwrap_or(layout.leaf_bytes);
            let layout = Layout {
                leaf_bytes,
                ..layout
            };
            Tree::File(content(node, contents), layout)
        }
        "symlink" => Tree::Symlink(text(&node["target"]).into()),
        "dir" => {
            let entries = node["entries"].as_array().into_iter().flatten();
            let mut children: BTreeMap<Vec<u8>, Tree> = entries
                .map(|entry| {
                    let name = text(&entry[0]).as_bytes().to_vec();
                    (name, tree(&entry[1], contents, layout))
                })
                .collect();
            if let Some(generate) = node.get("generate") {
                children.extend(generated(generate, contents, layout));
            }
            let sharding = match node["shard"].as_str() {
                None | Some("auto") => Sharding::Profile,
                Some("always") => Sharding::Always,
                Some(other) => panic!("shard {other}"),
            };
            Tree::Directory(children, sharding)
        }
        other => panic!("node {other}"),
    }
}

fn generated(generate: &Value, contents: &Value, layout: Layout) -> Vec<(Vec<u8>, Tree)> {
    let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match text(&generate["kind"]) {
        "numbered" => (number(&generate["from"])..=number(&generate["to"]))
            .map(|index| {
                let pad = usize::try_from(generate["pad"].as_u64().unwrap_or(0)).unwrap();
                let (prefix, suffix) = (part(&generate["prefix"]), part(&generate["suffix"]));
                let name = format!("{prefix}{index:0pad$}{suffix}").into_bytes();
                let child = match &generate["file"] {
                    Value::Null => tree(&generate["child"], contents, layout),
                    Value::String(_) => Tree::File(name.clone(), layout),
                    file => {
                        let text =
                            format!("{}{index}{}", part(&file["prefix"]), part(&file["suffix"]));
                        Tree::File(text.into(), layout)
                    }
                };
                (name, child)
            })
            .collect(),
        "chacha20-names" => {
            let alphabet = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
            let mut stream = ChaCha20::new(text(&generate["seed"]));
            let count = number(&generate["count"]);
            (1..=count)
                .map(|index| {
                    let len = &generate[if index == count { "last_len" } else { "len" }];
                    let bytes = stream.take(usize::try_from(number(len)).unwrap());
                    let name = bytes.iter().map(|byte| alphabet[usize::from(byte % 39)]);
                    (
                        name.collect(),
                        Tree::File(text(&generate["content"]).into(), layout),
                    )
                })
                .collect()
        }
        other => panic!("generate {other}"),
    }
}

/// Returns the vectors that this builder's profile covers: all of `v1`, and those of other layouts of files.
fn ours(all: &Value) -> Vec<(&Value, Layout)> {
    all["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|vector| vector["profile"] == "v1")
        .filter_map(|vector| {
            let mut layout = Layout::V1_2025;
            for (key, value) in vector["override"].as_object().into_iter().flatten() {
                match key.as_str() {
                    "chunk" => layout.leaf_bytes = number(value),
                    "width" => layout.width = number(value),
                    _ => return None,
                }
            }
            Some((vector, layout))
        })
        .collect()
}

fn is_big(vector: &Value) -> bool {
    let len = &vector["root"]["content"]["chacha20"]["len"];
    len.as_u64().is_some_and(|len| len > BIG_BYTES)
}

#[test]
fn every_vector_of_the_profile_is_built_and_read_back() {
    let all = vectors("unixfs.json");
    let ours = ours(&all);
    assert_eq!(
        ours.len(),
        105,
        "41 of the profile itself, 64 of other layouts"
    );
    let mut big = 0;
    for (vector, layout) in ours {
        let id = text(&vector["id"]);
        if is_big(vector) {
            big += 1;
            continue;
        }
        let tree = tree(&vector["root"], &all["contents"], layout);
        let mut dag = Dag::default();
        let link = dag.add(&tree);
        assert_eq!(link.cid.to_string(), text(&vector["cid"]), "{id}");
        assert_eq!(link.tsize, number(&vector["tsize"]), "{id}");
        let root = &dag.0[&link.cid];
        assert_eq!(root.len() as u64, number(&vector["root_block_len"]), "{id}");
        if let Some(bytes) = vector["root_block_hex"].as_str() {
            assert_eq!(hex::encode(root), bytes, "{id}");
        }
        let bytes: usize = dag.0.values().map(Vec::len).sum();
        assert_eq!(dag.0.len() as u64, number(&vector["unique_blocks"]), "{id}");
        assert_eq!(bytes as u64, number(&vector["unique_bytes"]), "{id}");
        for cid in vector["node_cids"].as_array().into_iter().flatten() {
            let cid: Cid = text(cid).parse().unwrap();
            assert!(dag.0.contains_key(&cid), "{id}: {cid}");
        }
        dag.check(&link.cid.into(), &tree);
    }
    assert_eq!(big, 2, "the vectors of the next test");
}

#[test]
fn vectors_of_a_gibibyte() {
    if !full("UnixFS vectors that hash 1 GiB") {
        return;
    }
    let all = vectors("unixfs.json");
    for (vector, layout) in ours(&all).into_iter().filter(|(vector, _)| is_big(vector)) {
        let chacha = &vector["root"]["content"]["chacha20"];
        let mut stream = ChaCha20::new(text(&chacha["seed"]));
        let size = number(&chacha["len"]);
        let mut builder = Builder::with_layout(layout, size);
        let mut root = Vec::new();
        let mut emit = |node: Node<'_>| {
            root = node.bytes.to_vec();
            Ok(())
        };
        for start in (0..size).step_by(1 << 20) {
            let len = BLOCK_BYTES.min(size - start);
            let leaf = Digest::of(&stream.take(usize::try_from(len).unwrap()));
            builder.push(leaf, &mut emit).unwrap();
        }
        let link = builder.finish(&mut emit).unwrap();
        let id = text(&vector["id"]);
        assert_eq!(link.cid.to_string(), text(&vector["cid"]), "{id}");
        assert_eq!(link.tsize, number(&vector["tsize"]), "{id}");
        assert_eq!(root.len() as u64, number(&vector["root_block_len"]), "{id}");
    }
}

#[test]
fn nodes_of_other_profiles_are_read() {
    let all = vectors("unixfs.json");
    let mut read = 0;
    for vector in all["vectors"].as_array().unwrap() {
        let Some(bytes) = vector["root_block_hex"].as_str() else {
            continue;
        };
        let bytes = hex::decode(bytes).unwrap();
        let cid: AnyCid = text(&vector["cid"]).parse().unwrap();
        let decoded = decode(&cid, &bytes).unwrap();
        let root = &vector["root"];
        match (text(&root["type"]), &decoded) {
            ("file", Decoded::File(file)) => {
                let len = &root["content"]["chacha20"]["len"];
                let len = len.as_u64().unwrap_or_else(|| {
                    // Everything but key streams is small.
                    content(root, &all["contents"]).len() as u64
                });
                assert_eq!(file.size, len, "{}", vector["id"]);
            }
            ("symlink", Decoded::Symlink(target)) => {
                assert_eq!(*target, text(&root["target"]).as_bytes());
            }
            ("dir", Decoded::Directory(entries)) if root.get("generate").is_none() => {
                let names = root["entries"].as_array().into_iter().flatten();
                let mut names: Vec<&[u8]> = names.map(|entry| text(&entry[0]).as_bytes()).collect();
                names.sort_unstable();
                assert!(entries.iter().map(|entry| entry.name).eq(names));
            }
            ("dir", Decoded::Directory(_) | Decoded::Shard(_)) => {}
            _ => panic!("{} is {decoded:?}", vector["id"]),
        }
        // A node of any current writer encodes to the same bytes again.
        if cid.codec_code() == 0x70 {
            assert_eq!(dagpb::encode(&dagpb::decode(&bytes).unwrap()), bytes);
        }
        read += 1;
    }
    assert!(read > 100, "{read}");
}

#[test]
fn plain_cids() {
    for vector in vectors("unixfs.json")["cids"].as_array().unwrap() {
        let cid: AnyCid = text(&vector["cid"]).parse().unwrap();
        assert_eq!(cid.to_string(), text(&vector["cid"]));
        assert_eq!(hex::encode(cid.to_bytes()), text(&vector["cid_hex"]));
        assert_eq!(AnyCid::from_bytes(&cid.to_bytes()), Ok(cid.clone()));
        let block = hex::decode(text(&vector["block_hex"])).unwrap();
        match text(&vector["hash"]) {
            "identity" => assert_eq!(cid.identity(), Some(&block[..])),
            "sha2-256" => assert_eq!(cid.names(&block), Ok(true)),
            _ => assert!(cid.names(&block).is_err()),
        }
    }
}

#[test]
fn dag_pb_fixtures_come_back_byte_for_byte() {
    for vector in vectors("unixfs.json")["dagpb"]["values"]
        .as_array()
        .unwrap()
    {
        let bytes = hex::decode(text(&vector["block_hex"])).unwrap();
        let cid: Cid = text(&vector["cid"]).parse().unwrap();
        assert_eq!(cid, Cid::dag_pb(Digest::of(&bytes)));
        let node = dagpb::decode(&bytes).unwrap();
        let data = vector["data_hex"]
            .as_str()
            .map(|data| hex::decode(data).unwrap());
        assert_eq!(node.data, data.as_deref());
        let links = vector["links"].as_array().unwrap();
        assert_eq!(node.links.len(), links.len());
        for (link, expected) in node.links.iter().zip(links) {
            assert_eq!(hex::encode(link.cid.to_bytes()), text(&expected["cid_hex"]));
            assert_eq!(link.name, expected["name"].as_str().map(str::as_bytes));
            assert_eq!(link.tsize, expected["tsize"].as_u64());
        }
        assert_eq!(dagpb::encode(&node), bytes, "{}", vector["id"]);
    }
}

#[test]
fn murmur3_values() {
    for vector in vectors("unixfs.json")["murmur3"]["values"]
        .as_array()
        .unwrap()
    {
        let hash = hamt::hash(text(&vector["name"]).as_bytes());
        assert_eq!(format!("{hash:016x}"), text(&vector["h1_be_hex"]));
        for (key, bits, digits) in [
            ("path_fanout256", 8, 2),
            ("path_fanout1024", 10, 3),
            ("path_fanout16", 4, 1),
        ] {
            for (depth, slot) in vector[key].as_array().unwrap().iter().enumerate() {
                let got = hamt::slot(hash, depth, bits).unwrap();
                assert_eq!(format!("{got:0digits$X}"), text(slot), "{key} {depth}");
            }
        }
    }
}

#[test]
fn a_very_large_directory_is_built_in_one_sort() {
    let count = if full("a directory of 1,000,000 entries (50,000 instead)") {
        1_000_000
    } else {
        50_000
    };
    let entries: Vec<Entry> = (0..count)
        .map(|index| Entry {
            name: format!("{index:07}").into_bytes(),
            link: Link {
                cid: Cid::raw(Digest::EMPTY),
                tsize: 0,
            },
        })
        .collect();
    let mut leaves = 0;
    let mut deepest = 0;
    let link = directory::build(&entries, &mut |node| {
        let NodePlace::Shard { depth, .. } = node.place else {
            panic!("{:?} in a large directory", node.place);
        };
        deepest = deepest.max(depth);
        let Decoded::Shard(shard) = decode(&node.cid.into(), node.bytes).unwrap() else {
            panic!("no shard");
        };
        leaves += shard
            .slots()
            .iter()
            .filter(|slot| slot.name.is_some())
            .count();
        Ok(())
    })
    .unwrap();
    assert_eq!(leaves, count);
    assert!((2..8).contains(&deepest), "{deepest}");
    let root = NodePlace::Shard {
        depth: 0,
        prefix: [0; 8],
    };
    let root = directory::node(&entries, root).unwrap();
    assert_eq!(Cid::dag_pb(Digest::of(&root)), link.cid);
}

#[test]
fn what_is_no_directory_is_refused() {
    let entry = |name: &[u8]| Entry {
        name: name.to_vec(),
        link: symlink::link(b"x"),
    };
    let long = [b'n'; 256];
    for names in [
        &[&b"b"[..], b"a"][..],
        &[b"a", b"a"],
        &[b""],
        &[b"."],
        &[b".."],
        &[b"a/b"],
        &[b"a\0"],
        &[&long],
    ] {
        let entries: Vec<Entry> = names.iter().map(|name| entry(name)).collect();
        let error = directory::build(&entries, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{names:?}");
        assert_eq!(directory::node(&entries, NodePlace::Directory), None);
    }
    // "a.b" stands before "ab", upper case before lower, UTF-8 last.
    let sorted = [&b"A"[..], b"a", b"a.b", b"ab", "\u{e4}".as_bytes()];
    let entries: Vec<Entry> = sorted.iter().map(|name| entry(name)).collect();
    assert!(directory::build(&entries, &mut |_| Ok(())).is_ok());
    for place in [
        NodePlace::Symlink,
        NodePlace::File { level: 1, index: 0 },
        NodePlace::Shard {
            depth: 0,
            prefix: [0; 8],
        },
    ] {
        assert_eq!(directory::node(&entries, place), None, "{place:?}");
    }
    for depth in [1, 8, 255] {
        assert_eq!(directory::shard(&entries, depth, [7; 8]), None);
    }
}

fn any_layout() -> impl Strategy<Value = Layout> {
    (1..9_u64, 2..5_u64).prop_map(|(leaf_bytes, width)| Layout { leaf_bytes, width })
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..20).prop_filter("a name", |name| directory::is_name(name))
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let leaf = prop_oneof![
        (prop::collection::vec(any::<u8>(), 0..120), any_layout())
            .prop_map(|(content, layout)| Tree::File(content, layout)),
        prop::collection::vec(any::<u8>(), 0..30)
            .prop_map(|content| Tree::File(content, Layout::V1_2025)),
        prop::collection::vec(any::<u8>(), 1..30).prop_map(Tree::Symlink),
    ];
    leaf.prop_recursive(4, 60, 12, |inner| {
        let sharding = prop_oneof![Just(Sharding::Profile), Just(Sharding::Always)];
        (
            prop::collection::btree_map(any_name(), inner, 0..12),
            sharding,
        )
            .prop_map(|(children, sharding)| Tree::Directory(children, sharding))
    })
}

proptest! {
    #[test]
    fn random_trees_are_read_back(tree in any_tree()) {
        let mut dag = Dag::default();
        let link = dag.add(&tree);
        dag.check(&link.cid.into(), &tree);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let cid = AnyCid::from(Cid::dag_pb(Digest::of(&bytes)));
        let _ = decode(&cid, &bytes);
        let _ = AnyCid::from_bytes(&bytes);
        if let Ok(node) = dagpb::decode(&bytes) {
            let again = dagpb::encode(&node);
            prop_assert_eq!(dagpb::decode(&again), Ok(node));
        }
    }
}
