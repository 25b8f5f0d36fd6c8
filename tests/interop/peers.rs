//! Packages read from seeds of other programs, with no other source: from envelope, key and peer alone.

use std::fs::{create_dir_all, write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use manifs::block::{BlockRef, Digest, FileRef};
use manifs::net::AddressFilter;
use manifs::source::torrent::{Patience, Settings, Swarms};
use manifs::source::{BlockSource as _, Spill, Torrent, TorrentPlace, Want};
use serde_json::Value;
use tempfile::TempDir;

use crate::clients::{
    Aria2, Here, LibTorrent, Tracker, Transmission, What, installed, make_torrent,
};
use crate::kubo::assert_same;
use crate::machine::{Home, count, free_port, noise, sh};

/// A version that was published for torrents, and its tree as other programs seed it.
pub(crate) struct Published {
    pub(crate) home: Home,
    pub(crate) source: TempDir,
    pub(crate) mirror: TempDir,
    pub(crate) torrent: PathBuf,
}

/// Clients that know no padding files want them on the disk.
const PADDING: &str = r#"
import os, sys
import libtorrent as lt
files = lt.torrent_info(sys.argv[1]).files()
for file in range(files.num_files()):
    if files.file_flags(file) & lt.file_flags_t.flag_pad_file:
        path = os.path.join(sys.argv[2], files.file_path(file))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as pad:
            pad.truncate(files.file_size(file))
"#;

pub(crate) fn publish() -> Published {
    publish_with(&[])
}

/// Publishes with further words.
fn publish_with(more: &[&str]) -> Published {
    let (source, mirror) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let below = source.path().join("below");
    create_dir_all(&below).unwrap();
    for small in 0..300_usize {
        let len = small * 37;
        write(below.join(small.to_string()), noise(small as u64, len)).unwrap();
    }
    write(source.path().join("large"), noise(1, 5_000_000)).unwrap();
    write(source.path().join("larger"), noise(2, 7 << 20)).unwrap();
    let home = Home::new();
    home.run(&["keygen"]);
    let to = format!("{}/", mirror.path().display());
    let mut words = vec!["publish", source.path().to_str().unwrap()];
    words.extend(["--name", "acme/tools", "--version", "1.0.0"]);
    words.extend(["--to", "torrent", "--to", &to]);
    words.extend(more);
    home.run(&words);
    let found = sh(
        "find \"$1\" -name '*.torrent'",
        &[&home.path().join("registry")],
    );
    let torrent = PathBuf::from(found.trim());
    assert!(torrent.is_file(), "{found}");
    let made = Command::new("/usr/bin/python3")
        .args(["-c", PADDING])
        .args([&torrent, mirror.path()])
        .status();
    assert!(made.unwrap().success());
    Published {
        home,
        source,
        mirror,
        torrent,
    }
}

/// Reads the package from the seed at `address`, whose client says that it is `client`.
fn read_from(published: &Published, address: SocketAddr, client: &str) {
    let config = format!("[sources]\npeers = [\"{address}\"]\n");
    read_by(published, &config, address, client);
}

/// Reads the package from the seed at `address`, which a reader of this configuration finds.
pub(crate) fn read_by(published: &Published, config: &str, address: SocketAddr, client: &str) {
    let mut reader = Home::new();
    let registry = reader.path().join("copy of the registry");
    sh(
        "cp -a \"$1\" \"$2\"",
        &[&published.home.path().join("registry"), &registry],
    );
    let key = published.home.path().join("keys/default.pub.pem");
    reader.run(&["trust", "add", "acme/*", key.to_str().unwrap()]);
    reader.config(config);
    reader.run(&["registry", "add", registry.to_str().unwrap()]);
    let version = reader.mount().join("acme/tools/1.0.0");
    // Transmission takes ten seconds to let anybody ask it, and entering a version waits no longer.
    reader.wait_for("the version to be entered", |_| {
        version.join("below").is_dir()
    });
    assert_same(published.source.path(), &version);
    let status: Value = serde_json::from_str(&reader.run(&["status", "--json"])).unwrap();
    let sources = status["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert_eq!(sources[0]["kind"], "torrent", "{sources:?}");
    assert_eq!(sources[0]["lies"], 0, "{sources:?}");
    let peers = sources[0]["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 1, "{peers:?}");
    assert_eq!(peers[0]["name"], address.to_string());
    let name = peers[0]["client"].as_str().unwrap_or_default();
    assert!(name.to_lowercase().contains(client), "{peers:?}");
    let bytes = peers[0]["bytes"].as_u64().unwrap();
    assert!(bytes > 5_000_000 + (7 << 20), "{peers:?}");
    // Who could be asked again is told, peer by peer.
    reader.run(&["evict", "acme/tools@1.0.0"]);
    let why = reader.run(&["why", "acme/tools/large"]);
    assert!(why.contains(&format!("peer {address} (")), "{why}");
    println!("read from {client}: {peers:?}");
}

fn seed_directory(published: &Published) -> &Path {
    published.mirror.path()
}

#[test]
fn a_package_is_read_from_a_libtorrent_seed_alone() {
    if !installed("a_package_is_read_from_a_libtorrent_seed_alone") {
        return;
    }
    let published = publish();
    let torrent = What::File(&published.torrent);
    let mut seed = LibTorrent::start(torrent, seed_directory(&published), &[]);
    seed.wait();
    read_from(&published, seed.address, "libtorrent");
}

#[test]
fn a_package_is_read_from_a_seed_that_only_its_tracker_knows() {
    if !installed("a_package_is_read_from_a_seed_that_only_its_tracker_knows") {
        return;
    }
    for scheme in ["http", "udp"] {
        let port = free_port();
        let url = format!("{scheme}://127.0.0.1:{port}/announce");
        let published = publish_with(&["--tracker", &url]);
        let words = ["inspect", "acme/tools@1.0.0", "--json"];
        let inspection: Value = serde_json::from_str(&published.home.run(&words)).unwrap();
        let torrent = &inspection["manifest"]["torrent"];
        let info_hash = torrent["info_hash"].as_str().expect("an info hash");
        let mut tracker = Tracker::start_at(&Here, "127.0.0.1", port, &[info_hash]);
        let what = What::File(&published.torrent);
        let mut seed = LibTorrent::start(what, seed_directory(&published), &[]);
        seed.wait();
        tracker.wait_for_seed(&Here, info_hash);
        // Nothing names the seed; the filter would let nobody at a private address through unasked.
        let config = "[net]\nallow = [\"127.0.0.1\"]\n";
        read_by(&published, config, seed.address, "libtorrent");
    }
}

#[test]
fn a_package_is_read_from_an_aria2_seed_alone() {
    if !installed("a_package_is_read_from_an_aria2_seed_alone") {
        return;
    }
    let published = publish();
    let mut seed = Aria2::start(&published.torrent, seed_directory(&published), &[]);
    seed.listening();
    read_from(&published, seed.address, "aria2");
}

#[test]
fn a_package_is_read_from_a_transmission_seed_alone() {
    if !installed("a_package_is_read_from_a_transmission_seed_alone") {
        return;
    }
    let published = publish();
    let mut seed = Transmission::start(&published.torrent, seed_directory(&published));
    seed.wait();
    read_from(&published, seed.address, "transmission");
}

/// Figures rather than promises: tests are built without optimisation, on machines that do other things too.
#[test]
fn reads_from_one_libtorrent_seed_are_quick_and_exact() {
    if !installed("reads_from_one_libtorrent_seed_are_quick_and_exact") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let pieces = count("reads_from_one_libtorrent_seed", 64, 512);
    let tree = directory.path().join("tree");
    create_dir_all(&tree).unwrap();
    let content = noise(3, pieces << 20);
    write(tree.join("file"), &content).unwrap();
    let torrent = directory.path().join("tree.torrent");
    let made = make_torrent(&tree, &torrent, &[]);
    let mut seed = LibTorrent::start(What::File(&torrent), directory.path(), &[]);
    seed.wait();
    let mut info_hash = [0; 20];
    hex::decode_to_slice(made, &mut info_hash).unwrap();
    let torrent = Arc::new(Torrent {
        info_hash,
        piece_bytes: piece_length(&torrent),
        bytes: Some(content.len() as u64),
        trackers: Vec::new(),
    });
    let wants: Vec<Want> = content
        .chunks(1 << 20)
        .enumerate()
        .map(|(index, bytes)| {
            let digest = Digest::of(bytes);
            let size = bytes.len() as u64;
            let file = FileRef { id: digest, size };
            let place = TorrentPlace {
                torrent: Arc::clone(&torrent),
                offset: (index as u64) << 20,
            };
            Want {
                torrent: Some(place),
                ..Want::new(BlockRef {
                    file,
                    index: 0,
                    digest,
                })
            }
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(seed.address, wants));
}

async fn measure(seed: SocketAddr, wants: Vec<Want>) {
    let settings = Settings {
        client: manifs::net::Client::new(manifs::net::Options {
            filter: AddressFilter::new(vec!["127.0.0.1".parse().unwrap()]),
            ..Default::default()
        }),
        peers: vec![seed.to_string()],
        finder: None,
    };
    let swarms = Swarms::new(settings, Patience::default());
    let mut times = Vec::new();
    let mut at = 0;
    let reads = 4 * wants.len();
    for _ in 0..reads {
        at = (at * 31 + 17) % wants.len();
        let start = Instant::now();
        let spill = Spill::ignored();
        let bytes = swarms.fetch(&wants[at], &spill).await.unwrap();
        times.push(start.elapsed());
        assert_eq!(Digest::of(&bytes), wants[at].block.digest);
        assert_eq!(spill.arrived(), bytes.len() as u64);
    }
    times.sort_unstable();
    let part = |part: usize| times[times.len() * part / 100];
    println!(
        "{reads} reads of 1 MiB: p50 {:?}, p99 {:?}",
        part(50),
        part(99)
    );
    let start = Instant::now();
    let all = futures::stream::iter(&wants)
        .map(|want| {
            let swarms = &swarms;
            async move { swarms.fetch(want, &Spill::ignored()).await.unwrap().len() }
        })
        .buffered(32);
    let bytes = all.fold(0, |sum, len| std::future::ready(sum + len)).await;
    let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
    println!("in a row: {rate:.0} MB/s");
    assert!(part(99) < Duration::from_secs(2), "{:?}", part(99));
    let report = &swarms.peers()[0];
    assert_eq!(report.bytes, ((reads + wants.len()) << 20) as u64);
    swarms.close().await;
}

/// Returns a torrent's piece length, out of its file.
fn piece_length(torrent: &Path) -> u64 {
    let bytes = std::fs::read(torrent).unwrap();
    let word = b"12:piece lengthi";
    let at = bytes.windows(word.len()).position(|found| found == word);
    let digits = &bytes[at.unwrap() + word.len()..];
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}
