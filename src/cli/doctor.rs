//! Looks at what manifs needs, and says what to do about what is missing.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command as Process, ExitCode, Stdio};

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::output;
use super::{Context, Error};
use crate::daemon::publish_problem;
use crate::manifest::TrustPolicy;
use crate::serve::control::{Client, Request, Status};
use crate::state::{State, StateError};
use crate::store;

/// Looks at what manifs needs; exits 1 if something is missing.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Check {
    what: String,
    fine: bool,
    /// What is wrong, and what to do.
    advice: Option<String>,
}

impl Doctor {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Error> {
        let mut checks = Vec::new();
        let mut check = |what: &str, problem: Option<String>| {
            checks.push(Check {
                what: what.to_owned(),
                fine: problem.is_none(),
                advice: problem,
            });
        };
        check(
            "configuration",
            context
                .config_error
                .as_ref()
                .map(|error| format!("{error} ({})", error.hint())),
        );
        check("trust policy", trust(context));
        check("private keys", keys(context));
        if let Some(section) = &context.config.publish {
            check("drop directory", publish_problem(&context.paths, section));
        }
        check("/dev/fuse", device());
        check("fusermount3", helper());
        check("store", disk(context));
        for (what, advice) in abilities(context) {
            check(what, advice);
        }
        check("daemon", daemon(context));
        let sound = checks.iter().all(|check| check.fine);
        if self.json {
            output::json(&json!({ "checks": checks }))?;
        } else {
            for check in &checks {
                let advice = check
                    .advice
                    .as_ref()
                    .map(|advice| format!(": {advice}"))
                    .unwrap_or_default();
                output::line(&format!(
                    "{} {}{advice}",
                    if check.fine { "ok     " } else { "MISSING" },
                    check.what
                ))?;
            }
        }
        Ok(ExitCode::from(u8::from(!sound)))
    }
}

fn trust(context: &Context) -> Option<String> {
    match TrustPolicy::load(&context.paths.trust) {
        Err(error) => Some(error.to_string()),
        Ok(policy) if policy.rules().is_empty() => {
            Some("nothing is trusted, so nothing is shown: manifs trust add PATTERN KEY".into())
        }
        Ok(_) => None,
    }
}

fn keys(context: &Context) -> Option<String> {
    let entries = std::fs::read_dir(&context.paths.keys).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let private = name.ends_with(".pem") && !name.ends_with(".pub.pem");
        let open = entry
            .metadata()
            .is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0);
        (private && open)
            .then(|| format!("others may read {}: chmod 600 it", entry.path().display()))
    })
}

fn device() -> Option<String> {
    if !std::path::Path::new("/dev/fuse").exists() {
        return Some("there is none: modprobe fuse, or give the container the device".into());
    }
    None
}

fn helper() -> Option<String> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let found = Process::new("fusermount3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_err().then(|| {
        "it is not installed, and only root can mount without it: install the package fuse3".into()
    })
}

fn store_path(context: &Context) -> std::path::PathBuf {
    context
        .config
        .store
        .path
        .clone()
        .unwrap_or_else(|| context.paths.store.clone())
}

fn disk(context: &Context) -> Option<String> {
    let path = store_path(context);
    if let Err(error) = std::fs::create_dir_all(&path) {
        return Some(format!("{}: {error}", path.display()));
    }
    let space = rustix::fs::statvfs(&path).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let quota = context.config.store.quota.0;
    (free < quota.min(1 << 30)).then(|| {
        format!(
            "only {} are free on its disk; the quota is {}",
            output::bytes(free),
            output::bytes(quota)
        )
    })
}

fn abilities(context: &Context) -> Vec<(&'static str, Option<String>)> {
    match store::probe(&store_path(context)) {
        Ok(probes) => probes
            .into_iter()
            .map(|probe| (probe.what, (!probe.works).then(|| probe.without.to_owned())))
            .collect(),
        Err(error) => vec![("the store's disk", Some(error.to_string()))],
    }
}

fn daemon(context: &Context) -> Option<String> {
    match Client::connect(&context.paths.socket()) {
        Ok(client) => match client.get::<Status>(&Request::Status) {
            Ok(status) => {
                let unread: Vec<String> = status
                    .registries
                    .into_iter()
                    .filter_map(|item| Some(format!("{}: {}", item.place, item.error?)))
                    .collect();
                let problems: Vec<String> = status.problems.into_iter().chain(unread).collect();
                (!problems.is_empty()).then(|| problems.join("; "))
            }
            Err(error) => Some(error.to_string()),
        },
        // Nobody answers: then the lock has to be free.
        Err(_) => match State::open(&context.paths.state) {
            Err(error @ StateError::Locked { .. }) => Some(error.to_string()),
            _ => None,
        },
    }
}
