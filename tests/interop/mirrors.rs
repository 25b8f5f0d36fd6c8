//! Plain web servers, nginx with ranges and Python's without, as mirrors: written by manifs, read by manifs.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::kubo::assert_same;
use crate::machine::{Home, count, free_port, noise, sh};
use crate::throttle::Throttle;

const MIB: usize = 1 << 20;

/// A web server that serves a directory; it ends when this is dropped.
struct WebServer {
    child: Child,
    url: String,
    _files: TempDir,
}

impl WebServer {
    /// nginx, which knows ranges; none, and says so, where it is missing.
    fn nginx(test: &str, root: &Path) -> Option<WebServer> {
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let Some(program) = program else {
            #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
            let is_ci = std::env::var_os("CI").is_some();
            assert!(!is_ci, "{test} needs nginx; scripts/test installs it");
            // Not eprintln: the test harness would swallow it.
            let line = format!("SKIPPED {test}: nginx is missing; scripts/test installs it\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        };
        let files = tempfile::tempdir().unwrap();
        let port = free_port();
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let place = files.path().display();
        let config = format!(
            "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log; {user}\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log {place}/access.log; default_type application/octet-stream; sendfile on;\n\
             client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;\n\
             uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root \"{}\"; }} }}\n",
            root.display()
        );
        let path = files.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(files.path()).arg("-e");
        command
            .arg(files.path().join("error.log"))
            .arg("-c")
            .arg(path);
        Some(WebServer::start(command, port, files))
    }

    /// Python's web server, which knows no ranges.
    fn python(root: &Path) -> WebServer {
        let port = free_port();
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
        command.arg(root).arg(port.to_string());
        WebServer::start(command, port, tempfile::tempdir().unwrap())
    }

    fn start(mut command: Command, port: u16, files: TempDir) -> WebServer {
        let log = File::create(files.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = WebServer {
            child,
            url: format!("http://127.0.0.1:{port}"),
            _files: files,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}");
            // No event tells a process from outside; the deadline above is what the test asserts.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        server
    }

    /// Ends it as a crash would.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A tree whose names and sizes are awkward for web servers.
fn tree(at: &Path) {
    std::fs::create_dir_all(at.join("a directory/100% & more?")).unwrap();
    std::fs::create_dir(at.join("nothing here")).unwrap();
    for (path, bytes) in [
        ("empty", Vec::new()),
        ("index.html", b"<p>not a listing</p>".to_vec()),
        ("one", vec![1]),
        ("block", noise(1, MIB)),
        ("a directory/large #1", noise(2, 9 * MIB + 77)),
        (
            "a directory/100% & more?/\u{e9}\u{1f980}+%2e%2e;x=y",
            noise(3, 3 * MIB),
        ),
        ("a directory/.hidden.gz", noise(4, 70_000)),
    ] {
        std::fs::write(at.join(path), bytes).unwrap();
    }
    sh("chmod 755 \"$1/one\"", &[at]);
    std::os::unix::fs::symlink("a directory/large #1", at.join("link")).unwrap();
}

/// Returns a home that knows the envelopes and nobody who has a block.
fn reader_of(publisher: &Home) -> Home {
    let reader = Home::new();
    let registry = reader.path().join("copy of the registry");
    let key = publisher.path().join("keys/default.pub.pem");
    sh(
        "cp -a \"$1\" \"$2\"",
        &[&publisher.path().join("registry"), &registry],
    );
    reader.run(&["trust", "add", "*", key.to_str().unwrap()]);
    reader.run(&["registry", "add", registry.to_str().unwrap()]);
    reader
}

/// Publishes a version; returns the mirror it was written to.
fn publish(publisher: &Home, source: &Path, more: &[&str]) -> PathBuf {
    let mirror = publisher.path().join("www");
    let to = format!("{}/", mirror.display());
    publisher.run(&["keygen"]);
    let mut words = vec!["publish", source.to_str().unwrap()];
    words.extend(["--name", "acme/tools", "--version", "1.0.0", "--to", &to]);
    words.extend(more);
    publisher.run(&words);
    mirror
}

fn sources(reader: &Home) -> Vec<Value> {
    let status: Value = serde_json::from_str(&reader.run(&["status", "--json"])).unwrap();
    status["sources"].as_array().unwrap().clone()
}

/// Modes and times of everything below a directory, the catalog left out, and it itself: a mount may still show when the
/// version was made.
fn dressed(at: &Path) -> String {
    let script = "cd \"$1\" && find . -mindepth 1 -path ./.manifs -prune -o ! -type l -printf '%p %m %T@\\n' | sort";
    sh(script, &[at])
}

#[test]
fn a_web_server_is_a_complete_source() {
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let publisher = Home::new();
    let mirror = publish(&publisher, source.path(), &[]);
    let written = mirror.join("acme-tools-1.0.0");
    sh(
        "diff -r --no-dereference --exclude=.manifs \"$1\" \"$2\" && test -s \"$2/.manifs/catalog\"",
        &[source.path(), &written],
    );
    let Some(server) = WebServer::nginx("a_web_server_is_a_complete_source", &mirror) else {
        return;
    };
    let mut reader = reader_of(&publisher);
    reader.config(&format!("[sources]\nhttp = [\"{}/\"]\n", server.url));
    let version = reader.mount().join("acme/tools/1.0.0");
    assert_same(source.path(), &version);
    assert_eq!(dressed(&version), dressed(&written));
    let known = sources(&reader);
    assert_eq!(known.len(), 1, "{known:?}");
    assert_eq!(known[0]["kind"], "http");
    assert_eq!(known[0]["lies"], 0);
    // Five small files, 10 and 3 blocks, and the catalog.
    assert!(known[0]["blocks"].as_u64() >= Some(17), "{known:?}");
    reader.run(&["verify", "acme/tools@1.0.0"]);

    // What the reader has can be a mirror again, and that one a local directory of a third.
    let copy = reader.path().join("mirror");
    let again = [
        "fetch",
        "acme/tools@1.0.0",
        "--mirror",
        copy.to_str().unwrap(),
    ];
    reader.run(&again);
    let copied = copy.join("acme-tools-1.0.0");
    sh(
        "diff -r --no-dereference \"$1\" \"$2\"",
        &[&written, &copied],
    );
    assert_eq!(dressed(&copied), dressed(&written));
    let said = reader.command().args(again).output().unwrap();
    assert!(
        said.status.success() && String::from_utf8_lossy(&said.stderr).contains("there already")
    );
    let mut third = reader_of(&publisher);
    third.config(&format!(
        "[sources]\nlocal = [{:?}]\n",
        copy.display().to_string()
    ));
    assert_same(source.path(), &third.mount().join("acme/tools/1.0.0"));
    // What is something else there is left alone.
    std::fs::write(copied.join(".manifs/catalog"), b"other").unwrap();
    let (code, said) = reader.fail(&again);
    assert!(code == 1 && said.contains("not the tree"), "{code}: {said}");
    assert_eq!(
        std::fs::read_dir(&copy).unwrap().count(),
        1,
        "nothing is left beside it"
    );
}

#[test]
fn a_mirror_that_the_release_index_names_is_asked_where_the_filter_allows_it() {
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let publisher = Home::new();
    let www = publisher.path().join("www");
    std::fs::create_dir(&www).unwrap();
    let test = "a_mirror_that_the_release_index_names_is_asked_where_the_filter_allows_it";
    let Some(server) = WebServer::nginx(test, &www) else {
        return;
    };
    publish(&publisher, source.path(), &["--http", &server.url]);
    let mut reader = reader_of(&publisher);
    let (code, said) = reader.fail(&["cat", "acme/tools/one"]);
    assert!(code == 5 && said.contains("loopback"), "{code}: {said}");
    reader.config("[net]\nallow = [\"127.0.0.1\"]\n");
    assert_same(source.path(), &reader.mount().join("acme/tools/1.0.0"));
    let known = sources(&reader);
    assert_eq!((known.len(), &known[0]["kind"]), (1, &Value::from("http")));
}

#[test]
fn a_web_server_without_ranges_gives_what_it_can_and_says_what_it_cannot() {
    let source = tempfile::tempdir().unwrap();
    tree(source.path());
    let publisher = Home::new();
    let mirror = publish(&publisher, source.path(), &[]);
    let server = WebServer::python(&mirror);
    let mut reader = reader_of(&publisher);
    reader.config(&format!("[sources]\nhttp = [\"{}\"]\n", server.url));
    reader.start_daemon();
    let out = reader.path().join("out");
    for path in ["block", "a directory/100% & more?"] {
        let target = format!("acme/tools@1.0.0/{path}");
        reader.run(&["fetch", &target, "-o", out.to_str().unwrap()]);
        sh("rm -r \"$1\"", &[&out]);
    }
    let large = "acme/tools@1.0.0/a directory/large #1";
    let (code, said) = reader.fail(&["cat", large]);
    assert!(
        code == 5 && said.contains("knows no ranges"),
        "{code}: {said}"
    );
}

/// Reads a file to its end, in order, and calls `at` with the bytes read so far; returns the time it took.
fn read(path: &Path, right: &[u8], mut at: impl FnMut(usize)) -> Duration {
    let began = Instant::now();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; MIB];
    let mut done = 0;
    while done < right.len() {
        let read = file.read(&mut buffer).unwrap();
        assert!(
            read > 0 && buffer[..read] == right[done..done + read],
            "at {done}"
        );
        done += read;
        at(done);
    }
    began.elapsed()
}

#[test]
fn a_cold_sequential_read_through_a_web_server_is_as_fast_as_through_a_gateway() {
    let test = "a_cold_sequential_read_through_a_web_server_is_as_fast_as_through_a_gateway";
    let size = count("MiB read in order through a web server", 128, 512) * MIB;
    let source = tempfile::tempdir().unwrap();
    let content = noise(7, size);
    std::fs::write(source.path().join("large"), &content).unwrap();
    let mut publisher = Home::new();
    let mirror = publish(&publisher, source.path(), &[]);
    let Some(server) = WebServer::nginx(test, &mirror) else {
        return;
    };
    let gateway = publisher.serve();
    let rate = |config: String| {
        let mut reader = reader_of(&publisher);
        reader.config(&config);
        let path = reader.mount().join("acme/tools/1.0.0/large");
        let took = read(&path, &content, |_| {});
        (size / MIB) as f64 / took.as_secs_f64()
    };
    let (mut by_http, mut by_gateway) = (0.0_f64, 0.0_f64);
    // In turns, the best of each: other tests run beside this one.
    for _ in 0..3 {
        by_http = by_http.max(rate(format!("[sources]\nhttp = [\"{}\"]\n", server.url)));
        by_gateway = by_gateway.max(rate(format!("[sources]\ngateways = [\"{gateway}\"]\n")));
    }
    println!("{by_http:.0} MiB/s by nginx, {by_gateway:.0} MiB/s by a manifs gateway");
    assert!(
        by_http >= 0.5 * by_gateway,
        "{by_http:.0} against {by_gateway:.0} MiB/s"
    );
}

/// The three networks, each with all of a version: two daemons, one that serves blocks and one that seeds, and nginx.
struct Networks {
    gateway: Home,
    seed: Home,
    server: WebServer,
    /// Where each is: `host:port`, in this order.
    places: [String; 3],
}

/// What `status` calls them.
const KINDS: [&str; 3] = ["gateway", "torrent", "http"];

impl Networks {
    fn start(test: &str, publisher: &Home, mirror: &Path) -> Option<Networks> {
        let server = WebServer::nginx(test, mirror)?;
        let homes = || {
            let home = reader_of(publisher);
            let port = free_port();
            (home, format!("127.0.0.1:{port}"))
        };
        let ((mut gateway, blocks), (mut seed, peer)) = (homes(), homes());
        warm(
            &gateway,
            mirror,
            &format!("[gateway]\nlisten = \"{blocks}\"\nshare = [\"*\"]\n"),
        );
        warm(
            &seed,
            mirror,
            &format!(
                "[torrent]\nlisten = \"{peer}\"\nseed = true\n\
                 [gateway]\nlisten = \"127.0.0.1:{}\"\nshare = [\"*\"]\n",
                free_port()
            ),
        );
        gateway.start_daemon();
        let inspection = gateway.run(&["inspect", VERSION, "--json"]);
        let inspection: Value = serde_json::from_str(&inspection).unwrap();
        let root = inspection["manifest"]["ipfs"]["root"].as_str().unwrap();
        gateway.wait_for("the version to be shared", |_| {
            let mut curl = Command::new("curl");
            curl.args(["-sf", "--max-time", "10", "--output", "/dev/null"])
                .arg(format!("http://{blocks}/ipfs/{root}?format=raw"));
            curl.status().is_ok_and(|status| status.success())
        });
        seed.start_daemon();
        seed.wait_for("the version to be seeded", |home| {
            let status: Value = serde_json::from_str(&home.run(&["status", "--json"])).unwrap();
            !status["torrent"]["seeds"][0].is_null()
        });
        let web = server.url.trim_start_matches("http://").to_owned();
        Some(Networks {
            gateway,
            seed,
            server,
            places: [blocks, peer, web],
        })
    }

    /// Kills one of them as a crash would.
    fn kill(&mut self, number: usize) {
        match number {
            0 => self.gateway.kill_daemon(),
            1 => self.seed.kill_daemon(),
            _ => self.server.kill(),
        }
    }
}

const VERSION: &str = "acme/tools@1.0.0";

/// Lets a home have all of a version, out of a mirror.
fn warm(home: &Home, mirror: &Path, config: &str) {
    let local = mirror.display().to_string();
    home.config(&format!("{config}[sources]\nlocal = [{local:?}]\n"));
    let warmed = home.run(&["warm", VERSION, "--json"]);
    let warmed: Value = serde_json::from_str(&warmed).unwrap();
    assert_eq!(warmed["sources"][0]["kind"], "local", "{warmed}");
    // And the catalog.
    let bytes = warmed["sources"][0]["bytes"].as_u64();
    assert!(bytes > warmed["moved"].as_u64(), "{warmed}");
}

/// Lets a home ask some of the three, each at its place.
fn ask(reader: &Home, places: &[String; 3], which: &[usize]) {
    let one = |number: usize, scheme: &str| {
        let place = which.contains(&number).then(|| &places[number]);
        place.map_or(String::new(), |place| format!("\"{scheme}{place}\""))
    };
    reader.config(&format!(
        "[sources]\ngateways = [{}]\npeers = [{}]\nhttp = [{}]\n[net]\nallow = [\"127.0.0.1\"]\n",
        one(0, "http://"),
        one(1, ""),
        one(2, "http://")
    ));
}

/// Returns how many blocks each of the three has delivered.
fn blocks(reader: &Home) -> [u64; 3] {
    let known = sources(reader);
    KINDS.map(|kind| {
        let of = known.iter().filter(|source| source["kind"] == kind);
        of.filter_map(|source| source["blocks"].as_u64()).sum()
    })
}

#[test]
fn three_networks_of_one_rate_are_faster_together_than_any_alone() {
    let test = "three_networks_of_one_rate_are_faster_together_than_any_alone";
    let size = count("MiB read from three networks of one rate", 96, 512) * MIB;
    // Far below what a loaded machine can read, so that the networks are what it waits for.
    let rate = 24 * MIB as u64;
    let source = tempfile::tempdir().unwrap();
    let content = noise(9, size);
    std::fs::write(source.path().join("large"), &content).unwrap();
    let publisher = Home::new();
    let mirror = publish(&publisher, source.path(), &[]);
    let Some(networks) = Networks::start(test, &publisher, &mirror) else {
        return;
    };
    let lines = networks
        .places
        .each_ref()
        .map(|place| Throttle::new(place, rate));
    let places = lines.each_ref().map(|line| line.address().to_string());
    let took = |which: &[usize]| {
        let mut reader = reader_of(&publisher);
        ask(&reader, &places, which);
        let path = reader.mount().join("acme/tools/1.0.0/large");
        let took = read(&path, &content, |_| {});
        (took, blocks(&reader))
    };
    let alone = [0, 1, 2].map(|number| took(&[number]).0);
    let (together, shares) = took(&[0, 1, 2]);
    let best = alone.iter().min().unwrap();
    let gain = best.as_secs_f64() / together.as_secs_f64();
    println!("alone {alone:?}, together {together:?}: {gain:.2} times; blocks of each {shares:?}");
    assert!(
        gain >= 1.3,
        "alone {alone:?}, together {together:?}; {shares:?}"
    );
}

#[test]
fn any_two_of_three_networks_die_in_the_middle_of_a_read_and_nobody_notices() {
    let test = "any_two_of_three_networks_die_in_the_middle_of_a_read_and_nobody_notices";
    let size = count("MiB read while networks die", 96, 512) * MIB;
    let source = tempfile::tempdir().unwrap();
    let content = noise(8, size);
    std::fs::write(source.path().join("large"), &content).unwrap();
    let publisher = Home::new();
    let mirror = publish(&publisher, source.path(), &[]);
    for survivor in 0..3 {
        let Some(mut networks) = Networks::start(test, &publisher, &mirror) else {
            return;
        };
        let mut reader = reader_of(&publisher);
        ask(&reader, &networks.places, &[0, 1, 2]);
        let path = reader.mount().join("acme/tools/1.0.0/large");
        let mut killed = false;
        let took = read(&path, &content, |done| {
            if done >= size / 4 && !killed {
                killed = true;
                let dead = (0..3).filter(|number| *number != survivor);
                dead.for_each(|number| networks.kill(number));
            }
        });
        let shares = blocks(&reader);
        println!(
            "{} was left: {took:?}, blocks of each {shares:?}",
            KINDS[survivor]
        );
        assert!(took < Duration::from_secs(60), "{took:?}");
        assert!(shares[survivor] as usize > size / MIB / 4, "{shares:?}");
        assert!(shares.iter().all(|blocks| *blocks > 0), "{shares:?}");
    }
}
