//! Runs what `docs/publishing.md` tells people who publish from CI, as it stands there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::machine::{Home, describe};

const PAGE: &str = include_str!("../../docs/publishing.md");

/// Returns the one block of the page in a language.
fn block(language: &str) -> String {
    let begin = format!("```{language}\n");
    assert_eq!(PAGE.matches(&begin).count(), 1, "blocks of {language}");
    let start = PAGE.find(&begin).unwrap() + begin.len();
    let end = start + PAGE[start..].find("\n```").unwrap();
    PAGE[start..end].to_owned() + "\n"
}

/// Returns the scripts of a workflow's `run` steps, in order.
fn runs(workflow: &str) -> Vec<String> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut scripts = Vec::new();
    let mut lines = workflow.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(script) = line.trim_start().strip_prefix("run: ") else {
            continue;
        };
        let mut script = script.to_owned();
        if script == "|" {
            script.clear();
            while let Some(next) = lines.next_if(|next| indent(next) > indent(line)) {
                script += &format!("{}\n", &next[indent(line) + 2..]);
            }
        }
        assert!(!script.contains("${{"), "only `env` takes expressions");
        scripts.push(script);
    }
    scripts
}

/// A machine of a CI: a checkout with something to publish, and the secrets.
struct Job {
    around: TempDir,
    key: String,
}

const PASSWORD: &str = "correct horse";

impl Job {
    fn new() -> Job {
        let around = tempfile::tempdir().unwrap();
        let work = around.path().join("work");
        fs::create_dir_all(work.join("dist")).unwrap();
        fs::write(work.join("dist/tool"), "#!/bin/sh\n").unwrap();
        fs::write(
            work.join("Makefile"),
            "dist:\n\tmkdir -p dist\n.PHONY: dist\n",
        )
        .unwrap();
        // Nothing of this machine but what every CI has; and no network.
        let bin = around.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_manifs"), bin.join("manifs")).unwrap();
        fs::write(
            bin.join("rsync"),
            "#!/bin/sh\ntest \"$1\" = -a && mkdir -p \"$3\" && cp -a \"$2.\" \"$3\"\n",
        )
        .unwrap();
        fs::set_permissions(bin.join("rsync"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut job = Job {
            around,
            key: String::new(),
        };
        fs::write(job.at("password"), PASSWORD).unwrap();
        job.ok(
            "manifs -q --home new keygen ci --password-file password
            cp new/keys/ci.pub.pem work/release-key.pub.pem
            cd work
            git init --quiet . && git add --all
            git -c user.name=a -c user.email=a@b commit --quiet --message first",
            &[],
        );
        job.key = fs::read_to_string(job.at("new/keys/ci.pem")).unwrap();
        job
    }

    fn at(&self, path: &str) -> PathBuf {
        self.around.path().join(path)
    }

    /// Runs a script as a CI does.
    fn run(&self, directory: &str, script: &str, variables: &[(&str, &str)]) -> Output {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.at("bin").display());
        Command::new("bash")
            .args(["-e", "-c", script])
            .current_dir(self.at(directory))
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.around.path())
            .env("SIGNING_KEY", &self.key)
            .env("SIGNING_PASSWORD", PASSWORD)
            .env("MIRROR", self.at("mirror"))
            .env("MIRROR_URL", "https://files.acme.example/")
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    fn ok(&self, script: &str, variables: &[(&str, &str)]) -> String {
        let output = self.run(".", script, variables);
        assert!(output.status.success(), "{script}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asserts that a stranger who has the public key gets the version from registry and mirror.
    fn is_published(&self, registry: &Path, version: &str) {
        let reader = Home::new();
        reader.config(&format!("[sources]\nlocal = [{:?}]\n", self.at("mirror")));
        let key = self.at("work/release-key.pub.pem");
        reader.run(&["trust", "add", "acme/*", key.to_str().unwrap()]);
        reader.run(&["registry", "add", registry.to_str().unwrap()]);
        reader.run(&["verify", &format!("acme/tools@{version}")]);
        let inspected = reader.run(&["inspect", "acme/tools", "--json"]);
        assert!(inspected.contains("https://files.acme.example/"));
    }
}

#[test]
fn the_shell_example_publishes_and_may_be_run_again() {
    let job = Job::new();
    let registry = job.at("registry");
    let script = block("sh");
    let run = |version: &str| {
        let registry = registry.to_str().unwrap();
        job.run(
            "work",
            &script,
            &[("VERSION", version), ("REGISTRY", registry)],
        )
    };
    let output = run("1.0.0");
    assert!(output.status.success(), "{}", describe(&output));
    job.is_published(&registry, "1.0.0");
    // Another checkout of the same commit has other times; the job still has nothing to do.
    fs::write(job.at("work/dist/tool"), "#!/bin/sh\n").unwrap();
    let output = run("1.0.0");
    assert!(output.status.success(), "{}", describe(&output));
    assert!(describe(&output).contains("nothing changed"));
    fs::write(job.at("work/dist/tool"), "#!/bin/sh\necho 2\n").unwrap();
    assert_eq!(run("1.0.0").status.code(), Some(4));
    assert!(run("1.1.0").status.success());
    job.is_published(&registry, "1.1.0");
    job.is_published(&registry, "1.0.0");
    // No key is left anywhere.
    assert!(run("not a version").status.code() == Some(2));
    let left = job.ok(
        "ls -d ${TMPDIR:-/tmp}/tmp.*/keys/ci.pem 2>/dev/null | wc -l",
        &[],
    );
    assert_eq!(left.trim(), "0");
}

#[test]
fn the_workflow_publishes_also_when_somebody_else_pushes() {
    let job = Job::new();
    job.ok(
        "git init --quiet --bare --initial-branch=main registry.git
        git clone --quiet registry.git work/registry 2>/dev/null
        cd work/registry
        git switch --quiet --create main
        git -c user.name=a -c user.email=a@b commit --quiet --allow-empty --message empty
        git push --quiet --set-upstream origin main",
        &[],
    );
    let workflow = block("yaml");
    let scripts = runs(&workflow);
    assert_eq!(scripts.len(), 5, "{scripts:#?}");
    let run_all = |tag: &str| {
        let temporary = job.at("temporary");
        fs::create_dir_all(&temporary).unwrap();
        let environment = job.at("environment");
        fs::write(&environment, "").unwrap();
        let mut said = String::new();
        for script in &scripts {
            let set = fs::read_to_string(&environment).unwrap();
            let mut variables: Vec<(&str, &str)> = set
                .lines()
                .filter_map(|line| line.split_once('='))
                .collect();
            variables.extend([
                ("RUNNER_TEMP", temporary.to_str().unwrap()),
                ("GITHUB_ENV", environment.to_str().unwrap()),
                ("GITHUB_REF_NAME", tag),
            ]);
            let output = job.run("work", script, &variables);
            assert!(output.status.success(), "{script}: {}", describe(&output));
            said += &describe(&output);
        }
        assert_eq!(
            fs::read_dir(&temporary).unwrap().count(),
            0,
            "no key is left"
        );
        said
    };
    run_all("v1.0.0");
    // Somebody else pushes another version between this job's checkout and its own push.
    job.ok(
        "git clone --quiet registry.git other
        cp -a new other-home
        echo second > second-password
        mkdir tree && echo other > tree/file
        export MANIFS_PASSWORD_FILE=password
        manifs --home other-home publish tree --name acme/tools --version 1.5.0 --key ci --registry other --to mirror/
        cd other && git add --all
        git -c user.name=a -c user.email=a@b commit --quiet --message other
        git push --quiet",
        &[],
    );
    fs::write(job.at("work/dist/tool"), "#!/bin/sh\necho 2\n").unwrap();
    let said = run_all("v2.0.0");
    assert!(said.contains("rejected"), "there was nobody else: {said}");
    assert!(run_all("v2.0.0").contains("nothing changed"));
    job.ok("git clone --quiet registry.git seen", &[]);
    for version in ["1.0.0", "1.5.0", "2.0.0"] {
        job.is_published(&job.at("seen"), version);
    }
}
