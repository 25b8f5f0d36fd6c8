//! Homes, daemons and mounts for tests, driven through the built command as a user would.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Returns `large` with `scripts/test --full`, else `small`; says so, so that nobody takes one for the other.
pub(crate) fn count(what: &str, small: usize, large: usize) -> usize {
    if crate::common::full(&format!("{large} {what} ({small} instead)")) {
        large
    } else {
        small
    }
}

/// One home of its own, with whatever runs for it; everything is taken down when it goes out of scope, also by a panic.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    daemon: Option<Child>,
    mounts: Vec<PathBuf>,
    /// Whose home it is, if not that of the user who runs the tests.
    user: Option<u32>,
}

impl Home {
    /// Makes an empty home.
    pub(crate) fn new() -> Home {
        let dir = tempfile::Builder::new()
            .prefix("home-")
            .tempdir()
            .expect("a temporary directory");
        Home {
            dir,
            daemon: None,
            mounts: Vec::new(),
            user: None,
        }
    }

    /// Makes an empty home of another user, with a copy of the command; only root can.
    pub(crate) fn of_user(user: u32) -> Home {
        // Not TMPDIR, nor where cargo builds: both may lie below a home that others cannot enter.
        let dir = tempfile::Builder::new()
            .prefix("home-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).expect("chown");
        // By a process of its own: a child that another test forks just now would inherit our descriptor of the copy,
        // and until that child execs the copy cannot be run ("text file busy").
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_manifs"))
            .arg(dir.path().join("manifs"))
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "a copy");
        Home {
            dir,
            daemon: None,
            mounts: Vec::new(),
            user: Some(user),
        }
    }

    /// Makes another home with the key and the trust of this one: somebody else who publishes the same packages.
    pub(crate) fn with_same_key(&self) -> Home {
        let other = Home::new();
        std::fs::create_dir(other.path().join("keys")).expect("a directory for keys");
        for part in ["keys/default.pem", "keys/default.pub.pem", "trust.toml"] {
            let copied = std::fs::copy(self.path().join(part), other.path().join(part));
            copied.expect("a key and who trusts it");
        }
        other
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the command, with this home.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.user {
            None => Command::new(env!("CARGO_BIN_EXE_manifs")),
            Some(_) => self.as_user(self.path().join("manifs")),
        };
        command.arg("--home").arg(self.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MANIFS_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Returns a program, run by the user whose home this is.
    pub(crate) fn as_user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = self.user {
            command
                .uid(user)
                .gid(user)
                .current_dir("/")
                .env_remove("XDG_RUNTIME_DIR")
                .env("HOME", self.path());
        }
        command
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(crate) fn run(&self, words: &[&str]) -> String {
        let output = self
            .command()
            .args(words)
            .output()
            .expect("the command starts");
        assert!(
            output.status.success(),
            "manifs {words:?}: {}",
            describe(&output)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command that must fail, and returns its exit code and what it said.
    pub(crate) fn fail(&self, words: &[&str]) -> (i32, String) {
        let output = self
            .command()
            .args(words)
            .output()
            .expect("the command starts");
        assert!(
            !output.status.success(),
            "manifs {words:?} succeeded: {}",
            describe(&output)
        );
        (
            output.status.code().expect("an exit code"),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Writes the configuration file.
    pub(crate) fn config(&self, text: &str) {
        std::fs::write(self.path().join("config.toml"), text).expect("config.toml");
    }

    /// Makes the key that signs, and publishes `tree`.
    pub(crate) fn publish(&self, tree: &Path, name: &str, version: &str) -> String {
        if !self.path().join("keys/default.pem").exists() {
            self.run(&["keygen"]);
        }
        self.run(&[
            "publish",
            tree.to_str().expect("UTF-8"),
            "--name",
            name,
            "--version",
            version,
        ])
    }

    /// Starts a daemon that serves blocks and envelopes on a free port of loopback, and returns its URL.
    pub(crate) fn serve(&mut self) -> String {
        let port = free_port();
        self.config(&format!(
            "[gateway]\nlisten = \"127.0.0.1:{port}\"\nshare = [\"*\"]\n"
        ));
        self.start_daemon();
        format!("http://127.0.0.1:{port}")
    }

    /// Starts the daemon in the foreground, without a mount, and waits until it answers.
    pub(crate) fn start_daemon(&mut self) {
        self.start_daemon_by(|command| command);
    }

    /// As [`Home::start_daemon`], with the command changed first.
    pub(crate) fn start_daemon_by(&mut self, change: impl FnOnce(Command) -> Command) {
        let log = std::fs::File::create(self.path().join("daemon.stderr")).expect("a log file");
        let mut command = self.command();
        command.args(["serve", "--foreground"]);
        let child = change(command)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("a daemon");
        self.daemon = Some(child);
        self.wait_for("the daemon to answer", |home| {
            home.command()
                .arg("status")
                .output()
                .is_ok_and(|output| output.status.success())
        });
    }

    /// Returns the process id of the daemon that `start_daemon` started.
    pub(crate) fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// Kills the daemon as a crash would, and waits until it is gone.
    pub(crate) fn kill_daemon(&mut self) {
        let mut child = self.daemon.take().expect("a daemon");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Trusts the key of another home and takes its daemon as registry and source.
    pub(crate) fn follow(&self, publisher: &Home, url: &str) {
        let key = publisher.path().join("keys/default.pub.pem");
        self.run(&["trust", "add", "*", key.to_str().expect("UTF-8")]);
        self.run(&["registry", "add", url]);
    }

    /// Mounts at a new directory below the home and returns it.
    pub(crate) fn mount(&mut self) -> PathBuf {
        self.mount_with(&[])
    }

    /// Mounts with further words, and waits until something is there.
    pub(crate) fn mount_with(&mut self, words: &[&str]) -> PathBuf {
        let mountpoint = self.mount_only(words);
        // A publisher offers a version once it can serve all of it, and tells of it then.
        self.wait_for("a package in the mount", |home| {
            let listed = home.as_user("ls").arg("-A").arg(&mountpoint).output();
            listed.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
        });
        mountpoint
    }

    /// Mounts, though there is nothing to be seen yet.
    pub(crate) fn mount_empty(&mut self) -> PathBuf {
        self.mount_only(&[])
    }

    fn mount_only(&mut self, words: &[&str]) -> PathBuf {
        let mountpoint = self.path().join(format!("mnt{}", self.mounts.len()));
        std::fs::create_dir_all(&mountpoint).expect("a mount point");
        std::os::unix::fs::chown(&mountpoint, self.user, self.user).expect("chown");
        self.mounts.push(mountpoint.clone());
        let mut all = vec!["mount", mountpoint.to_str().expect("UTF-8")];
        all.extend(words);
        self.run(&all);
        mountpoint
    }

    /// Waits, with a wide margin, until `done`.
    pub(crate) fn wait_for(&self, what: &str, mut done: impl FnMut(&Home) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}; the daemon says:\n{}",
                self.logs()
            );
            // No event tells a process from outside; the deadline above is what the test asserts.
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Returns what the daemons of this home logged.
    pub(crate) fn logs(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path().join(name)).unwrap_or_default();
        read("daemon.stderr") + &read("state/daemon.log")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "the daemon of {} said:\n{}",
                self.path().display(),
                self.logs()
            );
        }
        for mountpoint in &self.mounts {
            let _ = self.command().arg("unmount").arg(mountpoint).output();
            let _ = Command::new("umount")
                .arg("-l")
                .arg(mountpoint)
                .stderr(Stdio::null())
                .status();
        }
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns a port of loopback that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// Returns a command's exit and words, for a failed assertion.
pub(crate) fn describe(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}

/// Runs a program that must succeed.
pub(crate) fn sh(script: &str, arguments: &[&Path]) -> String {
    let output = Command::new("bash")
        .args(["-euc", script, "bash"])
        .args(arguments)
        .output()
        .expect("bash");
    assert!(output.status.success(), "{script}: {}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns `len` bytes that do not compress and differ for each seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
