//! Real BitTorrent programs on loopback: libtorrent, Transmission, aria2, and the tracker opentracker.
//!
//! Each is a process of its own that ends with its guard, also by a panic. They know nobody but the peers and trackers a
//! test names: DHT, local discovery, port mapping and uTP are off, and they listen on 127.0.0.1.
//!
//! What each can be told differs. libtorrent takes the addresses of peers. Transmission and aria2 take none from a
//! command line, so they find peers through a tracker or are dialled; and Transmission never dials 127.x, so that for
//! it to find a peer both have to live in a [`Network`] with addresses of its own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::{describe, free_port};

/// How long any of these programs may take for anything; a loaded machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Debian's Python: libtorrent's module is its, and another one may come first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";

/// Returns whether all the programs are here; says so where not, and fails where `CI` is set.
pub(crate) fn installed(test: &str) -> bool {
    let has = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::null()).output().is_ok()
    };
    let libtorrent = Command::new(PYTHON)
        .args(["-c", "import libtorrent"])
        .output()
        .is_ok_and(|output| output.status.success());
    let missing: Vec<&str> = [
        (libtorrent, "python3-libtorrent"),
        (
            has("transmission-daemon", &["--version"]),
            "transmission-daemon",
        ),
        (
            has("transmission-remote", &["--version"]),
            "transmission-cli",
        ),
        (has("aria2c", &["--version"]), "aria2"),
        (has("opentracker", &["-h"]), "opentracker"),
    ]
    .into_iter()
    .filter_map(|(here, package)| (!here).then_some(package))
    .collect();
    if missing.is_empty() {
        return true;
    }
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let is_ci = std::env::var_os("CI").is_some();
    let line = format!("SKIPPED {test}: missing {missing:?}; scripts/test installs them\n");
    assert!(!is_ci, "{line}");
    // Not eprintln: the test harness would swallow it.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// A process with a directory of its own, where it logs; killed when it goes out of scope.
pub(crate) struct Process {
    child: Child,
    pub(crate) dir: TempDir,
}

impl Process {
    fn start(what: &str, command: impl FnOnce(&Path) -> Command) -> Process {
        let dir = tempfile::Builder::new()
            .prefix(&format!("{what}-"))
            .tempdir()
            .expect("a temporary directory");
        let log = File::create(dir.path().join("log")).expect("a log file");
        let mut command = command(dir.path());
        command
            .stdin(Stdio::piped())
            .stderr(log.try_clone().expect("a log file"));
        if what != "libtorrent" {
            command.stdout(log);
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{what} does not start: {error}"));
        Process { child, dir }
    }

    /// Returns what it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `done`, or fails with the log.
    pub(crate) fn wait_for(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            let ended = self.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{what}: {ended:?}\n{}", self.log());
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}:\n{}",
                self.log()
            );
            // No event tells a process from outside; the deadline above is what the test asserts.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(4000);
            eprintln!(
                "{} said:\n{}",
                self.dir.path().display(),
                log.get(from..).unwrap_or(&log)
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where programs run: this machine's network, or one of its own.
pub(crate) trait Place {
    /// Returns a command for a program that runs here.
    fn command(&self, program: &str) -> Command;
}

/// This machine's own loopback.
pub(crate) struct Here;

impl Place for Here {
    fn command(&self, program: &str) -> Command {
        Command::new(program)
    }
}

/// A network namespace with the addresses 10.77.0.1 to 10.77.0.4 on its loopback; nothing leads out. Root only.
pub(crate) struct Network {
    holder: Process,
}

impl Network {
    /// Makes one; none, and says so, where this user may not.
    pub(crate) fn new(test: &str) -> Option<Network> {
        if !rustix::process::geteuid().is_root() {
            let line = format!("SKIPPED {test}: only root makes network namespaces\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        }
        let script = "ip link set lo up; for n in 1 2 3 4; do ip addr add 10.77.0.$n/24 dev lo; done; echo up; exec cat";
        let mut holder = Process::start("network", |_| {
            let mut command = Command::new("unshare");
            command.args(["--net", "--", "bash", "-ec", script]);
            command
        });
        let log = holder.dir.path().join("log");
        holder.wait_for("a network namespace", || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("up"))
        });
        Some(Network { holder })
    }

    /// Returns a command that runs here what `command` runs.
    pub(crate) fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = self.command(command.get_program().to_str().expect("UTF-8"));
        wrapped.args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        wrapped
    }
}

impl Place for Network {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.pid()))
            .arg("--")
            .arg(program);
        command
    }
}

/// A tracker that knows the info hashes it was told of, over HTTP and UDP.
pub(crate) struct Tracker {
    /// `http://ADDRESS/announce`
    pub(crate) http: String,
    /// `udp://ADDRESS/announce`
    pub(crate) udp: String,
    process: Process,
}

impl Tracker {
    /// Starts one on loopback for torrents of these info hashes, in hex.
    pub(crate) fn start(info_hashes: &[&str]) -> Tracker {
        Tracker::start_at(&Here, "127.0.0.1", free_port(), info_hashes)
    }

    /// Starts one anywhere.
    pub(crate) fn start_at(
        place: &dyn Place,
        ip: &str,
        port: u16,
        info_hashes: &[&str],
    ) -> Tracker {
        let port_text = port.to_string();
        let process = Process::start("tracker", |dir| {
            // Debian's tracker is built for a list of torrents, which it looks for below the directory it chroots to.
            std::fs::write(dir.join("torrents"), info_hashes.join("\n") + "\n").expect("a list");
            std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("chmod");
            let mut command = place.command("opentracker");
            command
                .args(["-i", ip, "-p", &port_text, "-P", &port_text])
                .args(["-w", "/torrents", "-d"])
                .arg(dir);
            if !rustix::process::geteuid().is_root() {
                // No chroot then, and the list is where it is.
                command = place.command("opentracker");
                command
                    .args(["-i", ip, "-p", &port_text, "-P", &port_text, "-w"])
                    .arg(dir.join("torrents"))
                    .arg("-d")
                    .arg(dir);
            }
            command
        });
        let mut tracker = Tracker {
            http: format!("http://{ip}:{port}/announce"),
            udp: format!("udp://{ip}:{port}/announce"),
            process,
        };
        let connect = format!("exec 3<>/dev/tcp/{ip}/{port}");
        tracker.process.wait_for("the tracker", || {
            let mut bash = place.command("bash");
            bash.args(["-c", &connect]).stderr(Stdio::null());
            bash.status().is_ok_and(|status| status.success())
        });
        tracker
    }

    /// Waits until somebody has announced that it seeds this.
    pub(crate) fn wait_for_seed(&mut self, place: &dyn Place, info_hash: &str) {
        let mut escaped = String::new();
        for byte in info_hash.as_bytes().chunks(2) {
            escaped.push('%');
            escaped.push_str(std::str::from_utf8(byte).expect("hex"));
        }
        let scrape = self
            .http
            .replace("announce", &format!("scrape?info_hash={escaped}"));
        self.process.wait_for("a seed to announce itself", || {
            let mut curl = place.command("curl");
            let answer = curl.args(["-s", "--max-time", "5", &scrape]).output();
            let answer = answer.expect("curl").stdout;
            // The name of the file that is meant: how many have everything.
            String::from_utf8_lossy(&answer).contains("8:completei1e")
        });
    }

    /// Returns what it logged.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// What a client works on.
#[derive(Clone, Copy)]
pub(crate) enum What<'a> {
    /// A `.torrent` file.
    File(&'a Path),
    /// A magnet link.
    Magnet(&'a str),
}

/// A libtorrent session with one torrent.
pub(crate) struct LibTorrent {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    events: mpsc::Receiver<Value>,
    process: Process,
}

impl LibTorrent {
    /// Downloads into `directory`, or seeds what is complete there, with these peers and the torrent's own trackers.
    pub(crate) fn start(what: What<'_>, directory: &Path, peers: &[SocketAddr]) -> LibTorrent {
        LibTorrent::start_with(&Here, what, directory, peers, &json!({}))
    }

    /// As [`LibTorrent::start`], with further members of the script's job.
    pub(crate) fn start_with(
        place: &dyn Place,
        what: What<'_>,
        directory: &Path,
        peers: &[SocketAddr],
        more: &Value,
    ) -> LibTorrent {
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        let mut job = json!({
            "directory": directory,
            "peers": peers,
        });
        let members = job.as_object_mut().expect("an object");
        match what {
            What::File(path) => members.insert("torrent".to_owned(), json!(path)),
            What::Magnet(link) => members.insert("magnet".to_owned(), json!(link)),
        };
        members.extend(more.as_object().cloned().unwrap_or_default());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/swarm.py");
        let mut process = Process::start("libtorrent", |_| {
            let mut command = place.command(PYTHON);
            command
                .arg(script)
                .arg(job.to_string())
                .stdout(Stdio::piped());
            command
        });
        let output = BufReader::new(process.child.stdout.take().expect("its output"));
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let mut client = LibTorrent {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            events,
            process,
        };
        let listening = client.event("listening");
        let port = listening["port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        client.address.set_port(port.expect("a port"));
        client
    }

    /// Waits until everything is there; returns the seconds from its start.
    pub(crate) fn wait(&mut self) -> f64 {
        self.event("complete")["seconds"].as_f64().expect("seconds")
    }

    /// Waits until it has said something.
    pub(crate) fn wait_for_word(&mut self, word: &str) {
        let log = self.process.dir.path().join("log");
        self.process.wait_for(word, || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains(word))
        });
    }

    fn event(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Value::Null;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if event["event"] == name => return event,
                Ok(event) => last = event,
                Err(error) => panic!(
                    "libtorrent, waiting for {name}: {error}, {last}\n{}",
                    self.process.log()
                ),
            }
        }
    }

    /// Stops or continues the process, as a peer that stalls.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.process.pid().to_string();
        let status = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }
}

/// Lets libtorrent make a torrent of `tree` at `torrent`; returns its info hash in hex.
pub(crate) fn make_torrent(tree: &Path, torrent: &Path, trackers: &[&str]) -> String {
    let job = json!({"make": torrent, "directory": tree, "trackers": trackers});
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/swarm.py");
    let output = Command::new(PYTHON)
        .arg(script)
        .arg(job.to_string())
        .output()
        .expect("python");
    assert!(output.status.success(), "{}", describe(&output));
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    made["info_hash"].as_str().expect("an info hash").to_owned()
}

/// An aria2 with one torrent.
pub(crate) struct Aria2 {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    process: Process,
}

impl Aria2 {
    /// Downloads into `directory` through the torrent's trackers and `trackers`, or seeds what is complete there.
    pub(crate) fn start(torrent: &Path, directory: &Path, trackers: &[&str]) -> Aria2 {
        Aria2::start_with(torrent, directory, trackers, &[])
    }

    /// As [`Aria2::start`], with further options.
    pub(crate) fn start_with(
        torrent: &Path,
        directory: &Path,
        trackers: &[&str],
        more: &[&str],
    ) -> Aria2 {
        let port = free_port();
        let process = Process::start("aria2", |dir| {
            let mut command = Command::new("aria2c");
            command
                .args(["--no-conf=true", "--interface=127.0.0.1"])
                .args(["--enable-dht6=false", "--bt-enable-lpd=false"])
                .args(["--enable-peer-exchange=false", "--disable-ipv6=true"])
                .args([
                    "--seed-ratio=0.0",
                    "--check-integrity=true",
                    "--file-allocation=none",
                ])
                .args(["--console-log-level=notice", "--summary-interval=1"])
                .args(["--bt-tracker-interval=1", "--follow-torrent=mem"])
                .args(more)
                .arg(format!("--listen-port={port}"))
                .arg("--dir")
                .arg(directory);
            // Its UDP trackers need the socket of its DHT, which knows no node and is on loopback.
            let udp = trackers.iter().any(|tracker| tracker.starts_with("udp://"));
            command
                .arg(format!("--enable-dht={udp}"))
                .arg(format!("--dht-listen-port={port}"))
                .arg("--dht-file-path")
                .arg(dir.join("dht.dat"));
            if !trackers.is_empty() {
                command.args(["--bt-exclude-tracker=*"]);
                command.arg(format!("--bt-tracker={}", trackers.join(",")));
            }
            command.arg(torrent);
            command
        });
        Aria2 {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            process,
        }
    }

    /// Waits until everything is there and checked.
    pub(crate) fn wait(&mut self) {
        let log = self.process.dir.path().join("log");
        self.process.wait_for("aria2 to have everything", || {
            std::fs::read_to_string(&log)
                .is_ok_and(|log| log.contains("SEED(") || log.contains("Download complete"))
        });
    }

    /// Waits until it listens.
    pub(crate) fn listening(&mut self) {
        let address = self.address;
        self.process
            .wait_for("aria2 to listen", || TcpStream::connect(address).is_ok());
    }
}

/// A Transmission daemon with one torrent.
pub(crate) struct Transmission {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    remote: Box<dyn Fn() -> Command>,
    process: Process,
}

impl Transmission {
    /// Adds the torrent, on loopback: seeds what is complete in `directory`, or downloads from who dials it.
    pub(crate) fn start(torrent: &Path, directory: &Path) -> Transmission {
        let here = std::rc::Rc::new(Here);
        Transmission::start_at(here, "127.0.0.1", torrent, directory, false)
    }

    /// As [`Transmission::start`], elsewhere; it may insist on encryption.
    pub(crate) fn start_at(
        place: std::rc::Rc<dyn Place>,
        ip: &str,
        torrent: &Path,
        directory: &Path,
        encrypted: bool,
    ) -> Transmission {
        let (port, rpc) = (free_port(), free_port());
        let process = Process::start("transmission", |dir| {
            let settings = json!({
                "bind-address-ipv4": ip,
                "bind-address-ipv6": "::1",
                "dht-enabled": false,
                "lpd-enabled": false,
                "utp-enabled": false,
                "pex-enabled": false,
                "port-forwarding-enabled": false,
                "encryption": if encrypted { 2 } else { 0 },
                "peer-port": port,
                "rpc-bind-address": "127.0.0.1",
                "rpc-port": rpc,
                "rpc-authentication-required": false,
                "rpc-whitelist-enabled": false,
                "ratio-limit-enabled": false,
                "idle-seeding-limit-enabled": false,
                "umask": 18,
            });
            std::fs::write(dir.join("settings.json"), settings.to_string()).expect("settings");
            let mut command = place.command("transmission-daemon");
            command
                .args(["--foreground", "--log-info", "--config-dir"])
                .arg(dir);
            command
        });
        let remote: Box<dyn Fn() -> Command> = Box::new(move || {
            let mut command = place.command("transmission-remote");
            command.arg(rpc.to_string()).stdin(Stdio::null());
            command
        });
        let mut client = Transmission {
            address: SocketAddr::new(ip.parse().expect("an address"), port),
            remote,
            process,
        };
        client.process.wait_for("Transmission", || {
            let mut add = (client.remote)();
            add.arg("--add")
                .arg(torrent)
                .arg("--download-dir")
                .arg(directory);
            add.output().is_ok_and(|output| output.status.success())
        });
        client
    }

    /// Waits until everything is there and checked.
    pub(crate) fn wait(&mut self) {
        let remote = &self.remote;
        self.process
            .wait_for("Transmission to have everything", || {
                let output = remote().args(["--torrent", "all", "--info"]).output();
                let output = output.expect("transmission-remote");
                assert!(output.status.success(), "{}", describe(&output));
                String::from_utf8_lossy(&output.stdout).contains("Percent Done: 100%")
            });
    }
}

/// Without manifs: what is wrong here is not manifs' fault.
#[test]
fn the_programs_themselves_find_each_other() {
    if !installed("the_programs_themselves_find_each_other") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path("seed/tree/below")).unwrap();
    std::fs::write(
        path("seed/tree/below/large"),
        crate::machine::noise(1, 3 << 20),
    )
    .unwrap();
    std::fs::write(path("seed/tree/small"), "small").unwrap();
    let same = |of: &str| crate::kubo::assert_same(&path("seed/tree"), &path(of).join("tree"));
    let torrent = path("tree.torrent");
    let info_hash = make_torrent(&path("seed/tree"), &torrent, &[]);
    let tracker = Tracker::start(&[&info_hash]);
    make_torrent(&path("seed/tree"), &torrent, &[&tracker.http]);

    let seed = LibTorrent::start(What::File(&torrent), &path("seed"), &[]);
    let mut other = LibTorrent::start(What::File(&torrent), &path("other"), &[seed.address]);
    other.wait();
    same("other");
    let magnet = format!("magnet:?xt=urn:btih:{info_hash}");
    let mut by_link = LibTorrent::start(What::Magnet(&magnet), &path("link"), &[seed.address]);
    by_link.wait();
    same("link");

    // aria2 finds the seed through the tracker over UDP; Transmission is dialled.
    let mut aria2 = Aria2::start(&torrent, &path("aria2"), &[&tracker.udp]);
    aria2.wait();
    same("aria2");
    let mut transmission = Transmission::start(&torrent, &path("transmission"));
    let _dials = LibTorrent::start(What::File(&torrent), &path("seed"), &[transmission.address]);
    transmission.wait();
    same("transmission");
}
