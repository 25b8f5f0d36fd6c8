//! libtorrent, Transmission and aria2 download a package from a manifs seed.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;
use tempfile::TempDir;

use crate::clients::{
    Aria2, Here, LibTorrent, Network, Place, Tracker, Transmission, What, installed,
};
use crate::machine::{Home, count, free_port, noise};

/// A home that seeds two packages of one tree, each known to one kind of tracker.
struct Scene {
    source: TempDir,
    home: Home,
    seed: SocketAddr,
    tracker: Tracker,
    packages: Vec<Package>,
    downloads: TempDir,
}

struct Package {
    version: String,
    name: String,
    torrent: PathBuf,
    info_hash: String,
}

impl Scene {
    /// Publishes, then starts a tracker and the daemon at `ip`.
    fn new(place: &dyn Place, ip: &str, start: impl FnOnce(&mut Home)) -> Scene {
        let source = tempfile::tempdir().unwrap();
        tree(source.path());
        let (tracker_port, seed_port) = (free_port(), free_port());
        let mut home = Home::new();
        home.run(&["keygen"]);
        let mut packages = Vec::new();
        for scheme in ["http", "udp"] {
            let name = format!("acme/{scheme}");
            let tracker = format!("{scheme}://{ip}:{tracker_port}/announce");
            home.run(&[
                "publish",
                source.path().to_str().unwrap(),
                "--name",
                &name,
                "--version",
                "1.0.0",
                "--to",
                "torrent",
                "--tracker",
                &tracker,
            ]);
            let inspection = home.run(&["inspect", &format!("{name}@1.0.0"), "--json"]);
            let inspection: Value = serde_json::from_str(&inspection).unwrap();
            let info_hash = inspection["manifest"]["torrent"]["info_hash"].as_str();
            let tree_name = format!("acme-{scheme}-1.0.0");
            let registry = home.path().join("registry/packages").join(&name);
            packages.push(Package {
                version: format!("{name}@1.0.0"),
                torrent: registry.join(format!("1.0.0/{tree_name}.torrent")),
                name: tree_name,
                info_hash: info_hash.expect("an info hash").to_owned(),
            });
        }
        let info_hashes: Vec<&str> = packages.iter().map(|package| &*package.info_hash).collect();
        let mut tracker = Tracker::start_at(place, ip, tracker_port, &info_hashes);
        home.config(&format!(
            "[torrent]\nlisten = \"{ip}:{seed_port}\"\n[net]\nallow = [\"{ip}\"]\n"
        ));
        start(&mut home);
        for info_hash in &info_hashes {
            tracker.wait_for_seed(place, info_hash);
        }
        Scene {
            source,
            home,
            seed: SocketAddr::new(ip.parse().unwrap(), seed_port),
            tracker,
            packages,
            downloads: tempfile::tempdir().unwrap(),
        }
    }

    /// Makes a directory to download into; every user may enter it.
    fn directory(&self, name: &str) -> PathBuf {
        let directory = self.downloads.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    /// Compares what came with what was published: all of it for who knows links and modes, else the regular files.
    fn assert_came(&self, package: &Package, directory: &Path, knows_links: bool) {
        let came = directory.join(&package.name);
        let mut files = 0;
        for (path, source) in entries(self.source.path()) {
            let got = came.join(&path);
            let metadata = std::fs::symlink_metadata(&source).unwrap();
            if metadata.is_symlink() {
                if knows_links {
                    let target = std::fs::read_link(&got).unwrap();
                    assert_eq!(target, std::fs::read_link(&source).unwrap(), "{path:?}");
                }
                continue;
            }
            if metadata.len() == 0 && !knows_links && !got.exists() {
                // Transmission makes no file that it has nothing to write to.
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&got).unwrap_or_else(|error| panic!("{got:?}: {error}"));
            assert!(bytes == std::fs::read(&source).unwrap(), "{path:?} differs");
            if knows_links && metadata.permissions().mode() & 0o100 != 0 {
                let mode = std::fs::metadata(&got).unwrap().permissions().mode();
                assert_ne!(mode & 0o100, 0, "{path:?} is to be executable");
            }
        }
        assert!(files > 100, "{files}");
    }

    /// Returns the seeds as `status` tells them.
    fn status(&self) -> Value {
        let status = self.home.run(&["status", "--json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["torrent"].clone()
    }
}

/// Returns every file and link below a directory, with its path there.
fn entries(root: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                directories.push(path);
            } else {
                found.push((path.strip_prefix(root).unwrap().to_path_buf(), path));
            }
        }
    }
    found
}

/// Small files that share pieces, large ones around piece boundaries, links, an executable.
fn tree(at: &Path) {
    const MIB: usize = 1 << 20;
    std::fs::create_dir_all(at.join("bin/deep")).unwrap();
    std::fs::create_dir(at.join("many")).unwrap();
    for nth in 0..300 {
        let bytes = noise(nth, 1 + usize::try_from(nth).unwrap() * 37);
        std::fs::write(at.join(format!("many/{nth}")), bytes).unwrap();
    }
    for (path, bytes) in [
        ("hello.txt", b"hello world\n".to_vec()),
        ("empty", Vec::new()),
        ("name with spaces, \u{e9}", b"x".to_vec()),
        ("bin/block-less-one", noise(1001, MIB - 1)),
        ("bin/block", noise(1002, MIB)),
        ("bin/block-and-one", noise(1003, MIB + 1)),
        ("bin/deep/large", noise(1004, 9 * MIB + 4711)),
        ("bin/deep/zeros", vec![0; 3 * MIB]),
        ("bin/run", b"#!/bin/sh\n".to_vec()),
    ] {
        std::fs::write(at.join(path), bytes).unwrap();
    }
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(at.join("bin/run"), executable).unwrap();
    for (target, path) in [("hello.txt", "link"), ("../hello.txt", "bin/up")] {
        std::os::unix::fs::symlink(target, at.join(path)).unwrap();
    }
}

#[test]
fn libtorrent_and_aria2_download_from_a_seed() {
    if !installed("libtorrent_and_aria2_download_from_a_seed") {
        return;
    }
    let scene = Scene::new(&Here, "127.0.0.1", Home::start_daemon);

    // By its address alone, of the file and of nothing but the info hash.
    let package = &scene.packages[0];
    let direct = scene.directory("direct");
    let more = serde_json::json!({"no_trackers": true});
    let what = What::File(&package.torrent);
    LibTorrent::start_with(&Here, what, &direct, &[scene.seed], &more).wait();
    scene.assert_came(package, &direct, true);
    let by_link = scene.directory("link");
    let link = format!("magnet:?xt=urn:btih:{}", package.info_hash);
    LibTorrent::start(What::Magnet(&link), &by_link, &[scene.seed]).wait();
    scene.assert_came(package, &by_link, true);

    // Through the tracker, over HTTP and over UDP.
    for package in &scene.packages {
        let libtorrent = scene.directory(&format!("libtorrent-{}", package.name));
        LibTorrent::start(What::File(&package.torrent), &libtorrent, &[]).wait();
        scene.assert_came(package, &libtorrent, true);
        let aria2 = scene.directory(&format!("aria2-{}", package.name));
        let tracker = match package.name.contains("udp") {
            true => &scene.tracker.udp,
            false => &scene.tracker.http,
        };
        Aria2::start(&package.torrent, &aria2, &[tracker]).wait();
        scene.assert_came(package, &aria2, false);
    }

    let status = scene.status();
    let seeds = status["seeds"].as_array().unwrap();
    assert_eq!(seeds.len(), 2, "{status}");
    for (seed, package) in seeds.iter().zip(&scene.packages) {
        assert_eq!(seed["package"], package.version);
        assert_eq!(seed["info_hash"], package.info_hash);
        assert!(seed["uploaded"].as_u64().unwrap() > 30 << 20, "{status}");
    }
    let shown = scene.home.run(&["status"]);
    assert!(shown.contains("2 seeded at 127.0.0.1:"), "{shown}");
}

#[test]
fn who_insists_on_encryption_downloads_from_a_seed() {
    if !installed("who_insists_on_encryption_downloads_from_a_seed") {
        return;
    }
    let scene = Scene::new(&Here, "127.0.0.1", Home::start_daemon);
    let package = &scene.packages[0];
    // Plain text after the handshake, RC4 after it, either.
    for level in [1, 2, 3] {
        let directory = scene.directory(&format!("libtorrent-{level}"));
        let settings = serde_json::json!({"out_enc_policy": 0, "allowed_enc_level": level});
        let more = serde_json::json!({"no_trackers": true, "settings": settings});
        let what = What::File(&package.torrent);
        LibTorrent::start_with(&Here, what, &directory, &[scene.seed], &more).wait();
        scene.assert_came(package, &directory, true);
    }
    let aria2 = scene.directory("aria2");
    let insist = ["--bt-require-crypto=true", "--bt-min-crypto-level=arc4"];
    let tracker = [scene.tracker.http.as_str()];
    Aria2::start_with(&package.torrent, &aria2, &tracker, &insist).wait();
    scene.assert_came(package, &aria2, false);
}

#[test]
fn transmission_downloads_from_a_seed() {
    let name = "transmission_downloads_from_a_seed";
    if !installed(name) {
        return;
    }
    // It never dials 127.x.
    let Some(network) = Network::new(name) else {
        return;
    };
    let scene = Scene::new(&network, "10.77.0.1", |home| {
        home.start_daemon_by(|command| network.wrap(&command));
    });
    let network: Rc<dyn Place> = Rc::new(network);
    for package in &scene.packages {
        let directory = scene.directory(&package.name);
        let network = Rc::clone(&network);
        Transmission::start_at(network, "10.77.0.2", &package.torrent, &directory, false).wait();
        scene.assert_came(package, &directory, false);
    }
    let encrypted = scene.directory("encrypted");
    let torrent = &scene.packages[0].torrent;
    Transmission::start_at(network, "10.77.0.2", torrent, &encrypted, true).wait();
    scene.assert_came(&scene.packages[0], &encrypted, false);
}

#[test]
fn a_damaged_seed_gives_no_wrong_byte_and_ends() {
    if !installed("a_damaged_seed_gives_no_wrong_byte_and_ends") {
        return;
    }
    let mut scene = Scene::new(&Here, "127.0.0.1", Home::start_daemon);
    // The blocks of this file are hashed when they are first asked for in the run of a daemon.
    let large = std::fs::metadata(scene.source.path().join("bin/deep/large")).unwrap();
    let stored = entries(&scene.home.path().join("store/p"));
    let (_, stored) = stored
        .iter()
        .find(|(_, path)| {
            path.metadata()
                .is_ok_and(|stored| stored.len() == large.len())
        })
        .expect("the large file in the store");
    let mut bytes = std::fs::read(stored).unwrap();
    bytes[5 << 20] ^= 1;
    std::fs::write(stored, bytes).unwrap();
    let directory = scene.directory("damaged");
    let package = scene.packages.remove(0);
    let more = serde_json::json!({"no_trackers": true});
    let what = What::File(&package.torrent);
    let _leecher = LibTorrent::start_with(&Here, what, &directory, &[scene.seed], &more);
    // Both packages have the file, and only the one that was asked for is known to be damaged at first.
    scene.home.wait_for("the seed to end", |_| {
        let seeds = scene.status()["seeds"].clone();
        let seeds = seeds.as_array().unwrap();
        seeds
            .iter()
            .all(|seed| seed["info_hash"] != package.info_hash)
    });
    let status = scene.home.run(&["status"]);
    assert!(status.contains("no longer seeded"), "{status}");
    let came = directory.join(&package.name).join("bin/deep/large");
    let came = std::fs::read(came).unwrap_or_default();
    let source = std::fs::read(scene.source.path().join("bin/deep/large")).unwrap();
    // libtorrent writes what it has of a piece before it is whole, so that some of one may still be zeros.
    let wrong = came
        .iter()
        .zip(&source)
        .position(|(came, source)| came != source && *came != 0);
    assert_eq!(wrong, None, "a wrong byte");
}

/// CPU time of a process in seconds, and its memory in MiB.
fn cost(pid: u32) -> (f64, f64) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let stat = read("stat");
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after_name.split(' ').collect();
    // utime and stime, in hundredths of a second.
    let ticks: u64 = [11, 12]
        .map(|at| fields[at].parse::<u64>().unwrap())
        .iter()
        .sum();
    let status = read("status");
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kib: f64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    (
        f64::from(u32::try_from(ticks).unwrap()) / 100.0,
        kib / 1024.0,
    )
}

#[test]
fn many_seeds_cost_next_to_nothing() {
    let packages = count("seeded packages", 30, 200);
    let mut home = Home::new();
    home.run(&["keygen"]);
    for nth in 0..packages {
        let source = tempfile::tempdir().unwrap();
        for file in 0..10 {
            std::fs::write(
                source.path().join(file.to_string()),
                format!("{nth} {file}"),
            )
            .unwrap();
        }
        home.publish(source.path(), &format!("acme/p{nth}"), "1.0.0");
    }
    let idle = |home: &mut Home, config: &str, seeds: usize| {
        home.config(config);
        home.start_daemon();
        home.wait_for("all to be seeded", |home| {
            let status: Value = serde_json::from_str(&home.run(&["status", "--json"])).unwrap();
            let seeded = status["torrent"]["seeds"].as_array().map_or(0, Vec::len);
            seeded == seeds
        });
        let pid = home.daemon_pid();
        let (before, _) = cost(pid);
        // The time over which is measured, not a wait for something.
        std::thread::park_timeout(std::time::Duration::from_secs(10));
        let (after, memory) = cost(pid);
        home.kill_daemon();
        ((after - before) / 10.0, memory)
    };
    let (cpu_without, memory_without) = idle(&mut home, "[mount]\ninstall = \"all\"\n", 0);
    let port = free_port();
    let config = format!(
        "[mount]\ninstall = \"all\"\n[torrent]\nlisten = \"127.0.0.1:{port}\"\nseed = true\n"
    );
    let (cpu, memory) = idle(&mut home, &config, packages);
    println!(
        "{packages} seeds: {:.2} % of a core (without: {:.2} %), {memory:.0} MiB (without: {memory_without:.0} MiB)",
        cpu * 100.0,
        cpu_without * 100.0,
    );
    assert!(cpu < cpu_without + 0.03, "{cpu}, {cpu_without}");
    assert!(memory < memory_without + 64.0, "{memory}, {memory_without}");
}
