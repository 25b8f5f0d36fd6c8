//! Kubo nodes that know nobody: a repository each, and a daemon if a test wants its gateway.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::machine::{describe, sh};

/// A node with a repository of its own, whose daemon ends with it.
pub(crate) struct Kubo {
    program: PathBuf,
    repository: TempDir,
    daemon: Option<Child>,
}

impl Kubo {
    /// Makes a node that adds as manifs does; none, and says so, where there is no Kubo.
    pub(crate) fn new(test: &str) -> Option<Kubo> {
        let kubo = Kubo {
            program: program(test)?,
            repository: tempfile::Builder::new()
                .prefix("kubo-")
                .tempdir()
                .expect("a temporary directory"),
            daemon: None,
        };
        // The profile `test` takes away bootstrap nodes, MDNS, and every address but random ports of loopback.
        kubo.run(&["init", "--profile=test"]);
        kubo.run(&["config", "profile", "apply", "unixfs-v1-2025"]);
        kubo.run(&["config", "--json", "Bootstrap", "[]"]);
        kubo.run(&["config", "--json", "Discovery.MDNS.Enabled", "false"]);
        kubo.run(&["config", "--json", "AutoConf.Enabled", "false"]);
        kubo.run(&["config", "Routing.Type", "none"]);
        Some(kubo)
    }

    /// Returns the command, with this repository.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("IPFS_PATH", self.repository.path())
            .env("IPFS_TELEMETRY", "off")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed and returns what it printed, without the last line break.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self.command().args(words).output().expect("ipfs starts");
        assert!(
            output.status.success(),
            "ipfs {words:?}: {}",
            describe(&output)
        );
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.trim_end_matches('\n').to_owned()
    }

    /// Imports what a URL answers, a CAR file, as `curl -sf URL | ipfs dag import` does.
    pub(crate) fn import(&self, url: &str) -> String {
        let mut curl = Command::new("curl")
            .args(["-sSf", "--max-time", "120", url])
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl");
        let output = self
            .command()
            // Kubo waits for ever for a block that a CAR file should have had.
            .args(["--offline", "--timeout=120s", "dag", "import", "--stats"])
            .stdin(curl.stdout.take().expect("curl's output"))
            .output()
            .expect("ipfs starts");
        assert!(curl.wait().expect("curl").success(), "curl {url}");
        assert!(
            output.status.success(),
            "ipfs dag import: {}",
            describe(&output)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Returns the CID that Kubo gives to a directory.
    pub(crate) fn root(&self, directory: &Path) -> String {
        let directory = directory.to_str().expect("UTF-8");
        self.run(&[
            "add",
            "-r",
            "-H",
            "-Q",
            "--cid-version=1",
            "--only-hash",
            directory,
        ])
    }

    /// Starts the daemon and returns the URL of its gateway.
    pub(crate) fn serve(&mut self) -> String {
        let log = self.repository.path().join("daemon.log");
        let file = std::fs::File::create(&log).expect("a log file");
        let child = self
            .command()
            .args(["daemon", "--offline"])
            .stdout(file.try_clone().expect("a log file"))
            .stderr(file)
            .spawn()
            .expect("ipfs starts");
        let child = self.daemon.insert(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let ended = child.try_wait().expect("wait");
            assert!(ended.is_none(), "ipfs daemon: {ended:?}\n{said}");
            if said.lines().any(|line| line == "Daemon is ready") {
                let url = std::fs::read_to_string(self.repository.path().join("gateway"))
                    .expect("the gateway's URL");
                return url.trim().to_owned();
            }
            assert!(Instant::now() < deadline, "ipfs daemon:\n{said}");
            // No event tells a process from outside; the deadline above is what the test asserts.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Kubo {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns where Kubo is.
fn program(test: &str) -> Option<PathBuf> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests have no configuration; this is where scripts/test says what it built"
    )]
    let (path, is_ci) = (
        std::env::var_os("MANIFS_TEST_IPFS"),
        std::env::var_os("CI").is_some(),
    );
    if let Some(path) = path {
        return Some(PathBuf::from(path));
    }
    assert!(
        !is_ci,
        "{test} needs Kubo: MANIFS_TEST_IPFS must name its ipfs; scripts/test builds it"
    );
    // Not eprintln: the test harness would swallow it.
    let line = format!(
        "SKIPPED {test}: Kubo is missing; MANIFS_TEST_IPFS must name its ipfs; scripts/test builds it\n"
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
    None
}

/// Compares two trees with everything but modes and times, which IPFS does not keep.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    sh("diff -r --no-dereference \"$1\" \"$2\"", &[one, other]);
}
