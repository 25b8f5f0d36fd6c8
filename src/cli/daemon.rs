//! The daemon: in the foreground, in the background, and how others start it.

use std::path::PathBuf;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::output;
use super::session::runtime;
use super::{Context, Error};
use crate::config::Paths;
use crate::daemon::{self, Home};
use crate::fuse::mounting;
use crate::serve::control::{Client, Failure, MountRequest, Request};

/// How long a daemon may take to answer its first question. Opening a large store counts in it.
const START: Duration = Duration::from_secs(60);

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A log longer than this is begun anew at a start; the old one is kept beside it.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// Starts the daemon without a mount.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Stays in the foreground, and logs to standard error.
    #[arg(long, conflicts_with = "stop")]
    foreground: bool,
    /// Ends the daemon that runs.
    #[arg(long)]
    stop: bool,
}

/// The daemon in the background, as `mount` and `serve` start it.
#[derive(Debug, Args)]
pub(super) struct Background {
    #[arg(long)]
    ends_with_last_mount: bool,
}

impl Serve {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Error> {
        if self.stop {
            let client = Client::connect(&context.paths.socket());
            client?.ask(&Request::Stop, &[], &mut |_| Ok(()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.foreground {
            output::log_of_daemon(context.verbose);
            return run(context, false, None);
        }
        output::log_to_stderr(context.verbose);
        if Client::connect(&context.paths.socket()).is_ok() {
            context.output.say("a daemon runs for this home already");
            return Ok(ExitCode::SUCCESS);
        }
        start(context, false)?;
        context.output.say(&format!(
            "the daemon runs; its log is {}",
            context.paths.log().display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

impl Background {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode, Error> {
        // A session of its own: no terminal's end is its end.
        let _ = rustix::process::setsid();
        rotate(&context.paths.log())?;
        output::log_to_file(&context.paths.log(), context.verbose)?;
        run(context, self.ends_with_last_mount, None).inspect_err(|error| {
            let failure = error.failure();
            // The last line: whoever started this one shows it.
            let hint = failure
                .hint
                .map(|hint| format!(" ({hint})"))
                .unwrap_or_default();
            tracing::error!("{}{hint}", failure.message);
        })
    }
}

/// What a daemon in the foreground mounts at its start.
pub(super) struct FirstMount {
    pub(super) mountpoint: PathBuf,
    pub(super) options: MountRequest,
}

/// Runs a daemon in this process until it is told to end.
pub(super) fn run(
    context: &Context,
    ends_with_last_mount: bool,
    mount: Option<FirstMount>,
) -> Result<ExitCode, Error> {
    let runtime = runtime()?;
    let config = context.config()?;
    let done = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        let mut hup = signal(SignalKind::hangup())?;
        let (reload, reloads) = mpsc::channel(1);
        tokio::spawn(async move {
            while hup.recv().await.is_some() {
                let _ = reload.try_send(());
            }
        });
        let home = Home::open(context.paths.clone(), config).await?;
        let shutdown = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            // A second one does not wait for anything.
            tokio::spawn(async move {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                detach_all();
                std::process::exit(1);
            });
        };
        let mounting = std::sync::Arc::clone(&home);
        let ready = move || {
            if let Some(mount) = mount {
                tokio::spawn(async move {
                    match mounting.mount_at(&mount.mountpoint, &mount.options).await {
                        Ok(_) => say_ready(),
                        Err(failure) => {
                            output::say_failure(&failure);
                            mounting.stop();
                        }
                    }
                });
            } else {
                say_ready();
            }
        };
        Ok::<_, Error>(daemon::run(home, shutdown, reloads, ends_with_last_mount, ready).await?)
    });
    // What still blocks (a read of a dead disk) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.map(|()| ExitCode::SUCCESS)
}

fn say_ready() {
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Detaches whatever this process has mounted.
fn detach_all() {
    for mount in mounting::mounts().unwrap_or_default() {
        if mounting::is_served_by_us(&mount) {
            let _ = mounting::unmount(&mount.mountpoint);
        }
    }
}

/// Starts a daemon in the background and returns once it answers.
pub(super) fn start(context: &Context, ends_with_last_mount: bool) -> Result<(), Error> {
    // Here, where its words are seen.
    context.config()?;
    let mut command = Process::new(std::env::current_exe()?);
    if context.paths.run == Paths::system().run {
        command.arg("--system");
    }
    if let Some(home) = &context.paths.home {
        command.arg("--home").arg(home);
    }
    command
        .arg("--config")
        .arg(std::path::absolute(&context.paths.config)?);
    command.args(std::iter::repeat_n("-v", usize::from(context.verbose)));
    command.arg("daemon");
    if ends_with_last_mount {
        command.arg("--ends-with-last-mount");
    }
    // So that a caller's pipes end, and its directory can be unmounted.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/");
    let mut child = command.spawn()?;
    let deadline = Instant::now() + START;
    loop {
        if let Ok(client) = Client::connect(&context.paths.socket())
            && client.ask(&Request::Status, &[], &mut |_| Ok(())).is_ok()
        {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            return Err(ended(context, &format!("the daemon ended at once ({status})")).into());
        }
        if Instant::now() > deadline {
            give_up(&mut child);
            return Err(ended(context, "the daemon does not answer").into());
        }
        // No event tells that a socket is there; this is a command, and it waits with a deadline.
        std::thread::park_timeout(ASK_EVERY);
    }
}

fn give_up(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Says why a daemon is not there: the last line of its log.
fn ended(context: &Context, otherwise: &str) -> Failure {
    let log = context.paths.log();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let last = text
        .lines()
        .last()
        .map(|line| line.split_once(" ERROR ").map_or(line, |(_, rest)| rest));
    let last = last.map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest));
    Failure::failed(last.unwrap_or(otherwise)).hint(format!("the log is {}", log.display()))
}

fn rotate(log: &std::path::Path) -> std::io::Result<()> {
    if std::fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(log, log.with_extension("log.old"))?;
    }
    Ok(())
}
