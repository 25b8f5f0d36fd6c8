//! The built command, as people and scripts use it, as far as that needs no mount.

mod daemons;
mod keys;
mod publishing;
mod settings;
mod words;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A home, and a directory around it in which commands run.
struct Home {
    around: TempDir,
    path: PathBuf,
}

/// What a command did.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Asserts that it succeeded.
    fn ok(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    /// Asserts that it failed with `code`, in one line and perhaps a hint, and that its words hold `what`.
    fn failed(self, code: i32, what: &str) -> Ran {
        let (out, err) = (&self.out, &self.err);
        assert_eq!(self.code, code, "{out}{err}");
        assert!(err.contains(what), "{err:?} does not tell of {what:?}");
        let last: Vec<&str> = err.lines().collect();
        let said = last.iter().position(|line| line.starts_with("manifs: "));
        let said = said.unwrap_or_else(|| panic!("{err:?} begins with nothing of ours"));
        assert!(
            last.len() - said <= 2,
            "more than an error and a hint: {err:?}"
        );
        if let Some(hint) = last.get(said + 1) {
            assert!(hint.starts_with("hint: "), "{err:?}");
        }
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

impl Home {
    fn new() -> Home {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("home");
        Home { around, path }
    }

    /// A home with a key and one published version of `acme/tools`.
    fn publisher() -> Home {
        let home = Home::new();
        home.run(&["keygen"]).ok();
        home.tree("tree");
        home.publish("1.0.0").ok();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.around.path().join(name)
    }

    /// Makes a small tree of everything.
    fn tree(&self, name: &str) -> PathBuf {
        let tree = self.at(name);
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::create_dir_all(tree.join("a b")).unwrap();
        fs::write(tree.join("hello.txt"), "hello\n").unwrap();
        fs::write(tree.join("empty"), "").unwrap();
        fs::write(tree.join("a b/line\nfeed"), "x").unwrap();
        fs::write(tree.join("bin/tool"), "#!/bin/sh\necho tool\n").unwrap();
        fs::set_permissions(tree.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("big"), vec![7; (2 << 20) + 5]).unwrap();
        symlink("bin/tool", tree.join("link")).unwrap();
        symlink("../link", tree.join("bin/chain")).unwrap();
        tree
    }

    fn publish(&self, version: &str) -> Ran {
        let options = ["--name", "acme/tools", "--version", version];
        self.run(&[&["publish", "tree"], &options[..]].concat())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manifs"));
        command
            .arg("--home")
            .arg(&self.path)
            .args(arguments)
            .current_dir(self.around.path())
            .env_clear()
            .env("HOME", self.around.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(&mut self.command(arguments))
    }

    fn run_with(&self, variable: &str, value: &str, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).env(variable, value))
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn configure(&self, text: &str) {
        fs::create_dir_all(&self.path).unwrap();
        fs::write(self.path.join("config.toml"), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap()
    }

    fn public_key(&self) -> String {
        self.run(&["trust", "list", "--json"]).ok().json()["rules"][0]["keys"][0]["key"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A daemon that a failed test has left.
        let _ = self.run(&["serve", "--stop"]);
    }
}

fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
