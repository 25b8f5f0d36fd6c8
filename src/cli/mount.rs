//! Mounting and unmounting.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::daemon::{self, FirstMount};
use super::output;
use super::{Context, Error};
use crate::fuse::mounting;
use crate::serve::control::{
    Client, ClientError, Failure, FailureKind, MountRequest, Mounted, Request, Status,
};

/// How long `unmount` waits for a daemon to be gone.
const GONE: Duration = Duration::from_secs(20);

/// Mounts every trusted version at MOUNTPOINT.
#[derive(Debug, Args)]
pub(super) struct Mount {
    /// An existing directory.
    mountpoint: PathBuf,
    /// Options, as mount(8) takes them: uid=N, gid=N, umask=OCTAL, allow_other.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Runs the daemon here, in the foreground.
    #[arg(long)]
    foreground: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Takes a mount away; returns when it is gone.
#[derive(Debug, Args)]
pub(super) struct Unmount {
    /// Where it is.
    mountpoint: PathBuf,
}

impl Mount {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Error> {
        let options = parse_options(&self.options)?;
        let mountpoint = std::path::absolute(&self.mountpoint)?;
        if self.foreground {
            output::log_of_daemon(context.verbose);
            return daemon::run(
                context,
                true,
                Some(FirstMount {
                    mountpoint,
                    options,
                }),
            );
        }
        output::log_to_stderr(context.verbose);
        // Before a daemon is started for nothing.
        mounting::prepare(&mountpoint).map_err(|error| {
            let failure = Failure::failed(&error);
            match error.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
        if matches!(
            Client::connect(&context.paths.socket()),
            Err(ClientError::NoDaemon(_))
        ) {
            daemon::start(context, true)?;
        }
        let request = Request::Mount {
            mountpoint,
            options,
        };
        let mounted: Mounted = match Client::connect(&context.paths.socket())?.get(&request) {
            Ok(mounted) => mounted,
            Err(error) => {
                stop_if_idle(context);
                return Err(error.into());
            }
        };
        if self.json {
            output::json(&json!(mounted))?;
        } else {
            context.output.say(&format!(
                "mounted at {} ({} package{})",
                mounted.mountpoint.display(),
                mounted.packages,
                if mounted.packages == 1 { "" } else { "s" }
            ));
        }
        mounted
            .notes
            .iter()
            .for_each(|note| context.output.say(&format!("note: {note}")));
        Ok(ExitCode::SUCCESS)
    }
}

/// A daemon that was started for a mount that failed has nothing to stay for.
fn stop_if_idle(context: &Context) {
    let status = Client::connect(&context.paths.socket())
        .and_then(|client| client.get::<Status>(&Request::Status));
    if status.is_ok_and(|status| status.mounts.is_empty() && status.ends_with_last_mount)
        && let Ok(client) = Client::connect(&context.paths.socket())
    {
        let _ = client.ask(&Request::Stop, &[], &mut |_| Ok(()));
    }
}

fn parse_options(words: &[String]) -> Result<MountRequest, Failure> {
    let mut options = MountRequest::default();
    let usage = |message: String| {
        Failure::new(FailureKind::Usage, message)
            .hint("known are uid=N, gid=N, umask=OCTAL and allow_other")
    };
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| usage(format!("-o {word}: expected a number")))
        };
        match name {
            "uid" => options.uid = Some(number()?),
            "gid" => options.gid = Some(number()?),
            "umask" => {
                let bits = u16::from_str_radix(value, 8)
                    .ok()
                    .filter(|bits| *bits <= 0o777);
                options.umask = Some(
                    bits.ok_or_else(|| usage(format!("-o {word}: expected up to 777, octal")))?,
                );
            }
            "allow_other" => options.allow_other = true,
            // What every mount is anyway; mount(8) and fstab like to say it.
            "ro"
            | "nosuid"
            | "nodev"
            | "noatime"
            | "default_permissions"
            | "defaults"
            | "_netdev"
            | "nofail" => {}
            _ => return Err(usage(format!("-o {word}: no such option"))),
        }
    }
    Ok(options)
}

impl Unmount {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mountpoint = std::path::absolute(&self.mountpoint)?;
        let client = match Client::connect(&context.paths.socket()) {
            Ok(client) => client,
            Err(ClientError::NoDaemon(_)) => return without_daemon(&mountpoint),
            Err(error) => return Err(error.into()),
        };
        let status: Status = client.get(&Request::Status)?;
        let request = Request::Unmount { mountpoint };
        Client::connect(&context.paths.socket())?.ask(&request, &[], &mut |_| Ok(()))?;
        // A daemon that `mount` started ends with its last mount; only then is everything gone.
        if status.ends_with_last_mount && status.mounts.len() <= 1 {
            wait_until_gone(status.pid)?;
        }
        Ok(())
    }
}

fn wait_until_gone(pid: u32) -> Result<(), Failure> {
    let deadline = Instant::now() + GONE;
    while is_alive(pid) {
        if Instant::now() > deadline {
            return Err(Failure::failed("unmounted, but the daemon is still busy")
                .hint("see its log with `manifs status`"));
        }
        // Somebody else's process has no event to wait for; this is a command, and it waits with a deadline.
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}

/// Returns whether a process is there, and not just waiting to be reaped.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold anything.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// No daemon runs: a mount that is there is dead, and is cleared.
fn without_daemon(mountpoint: &Path) -> Result<(), Error> {
    if mounting::is_dead(mountpoint) {
        return Ok(mounting::unmount(mountpoint).map_err(Failure::failed)?);
    }
    let failure = Failure::new(
        FailureKind::NotFound,
        format!("{} is not mounted by this home", mountpoint.display()),
    );
    Err(failure.hint("no daemon runs for this home").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_mount_reads_them() {
        let words = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let options = parse_options(&words("ro,uid=5,gid=6,umask=027,allow_other")).unwrap();
        let want = MountRequest {
            allow_other: true,
            uid: Some(5),
            gid: Some(6),
            umask: Some(0o27),
        };
        assert_eq!(options, want);
        for wrong in ["rw", "uid=x", "umask=8", "umask=1000", "nothing"] {
            assert_eq!(
                parse_options(&words(wrong)).unwrap_err().kind,
                FailureKind::Usage,
                "{wrong}"
            );
        }
    }
}
