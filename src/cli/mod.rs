//! The words people type: one file per command or group of commands.
//!
//! What is typed is parsed here ([`Arguments`]), what is meant is a [`crate::serve::control::Request`] to the home's
//! daemon, or to the same handler in this process when no daemon runs. Only this layer prints.

#![expect(
    clippy::print_stderr,
    reason = "this layer is the one that speaks to people"
)]

mod cache;
mod commit;
mod config;
mod daemon;
mod diff;
mod doctor;
mod fetch;
mod keys;
mod look;
mod mirror;
mod mount;
mod output;
mod publish;
mod registry;
mod release;
mod session;
mod sign;
mod trust;
mod verify;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Config, ConfigError, Paths};
use crate::fuse::mounting;
use crate::serve::control::{ClientError, Failure, FailureKind};
use output::Output;
use session::Session;

/// Shows signed manifests as directories, and fetches just the verified blocks that a read touches.
#[derive(Debug, Parser)]
#[command(name = "manifs", version, max_term_width = 100)]
struct Arguments {
    /// Puts everything of this home below DIR; without it the XDG directories are used.
    #[arg(long, global = true, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Uses the home of the machine's own service: /etc/manifs, /var/lib/manifs, /var/cache/manifs, /run/manifs.
    #[arg(long, global = true, conflicts_with = "home")]
    system: bool,
    /// Reads FILE instead of the home's config.toml.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Says nothing but results and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Says more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, on the way from the command line"
)]
enum Command {
    /// Makes a key to sign with.
    Keygen(keys::Keygen),
    /// Publishes a directory as a signed version.
    Publish(publish::Publish),
    /// Says that a version must not be used any more.
    Withdraw(release::Withdraw),
    /// Has `latest` lead to a version.
    Latest(release::Latest),
    /// Mounts every trusted version at MOUNTPOINT.
    Mount(mount::Mount),
    /// Takes a mount away.
    Unmount(mount::Unmount),
    /// Starts the daemon without a mount.
    Serve(daemon::Serve),
    /// Shows what the daemon is doing; exits 1 when none runs.
    Status(look::StatusCommand),
    /// Lists packages and versions.
    List(look::List),
    /// Lists a directory of a version.
    Ls(look::Ls),
    /// Prints a file of a version.
    Cat(look::Cat),
    /// Copies a version, or a part of it, into a new directory.
    Fetch(fetch::Fetch),
    /// Shows what differs between two versions.
    Diff(diff::Diff),
    /// Checks a version, a manifest file, or a directory against its version.
    Verify(verify::Verify),
    /// Shows what a manifest says and who signed it.
    Inspect(look::Inspect),
    /// Says why something is, or is not, as expected.
    Why(look::WhyCommand),
    /// Looks at what manifs needs, and says what to do about what is missing.
    Doctor(doctor::Doctor),
    /// Fetches ahead of use.
    Warm(cache::Warm),
    /// Keeps from being evicted.
    Pin(cache::Pin),
    /// Takes a pin back.
    Unpin(cache::Unpin),
    /// Drops from the store what is not pinned.
    Evict(cache::Evict),
    /// Whose signatures are believed.
    #[command(subcommand)]
    Trust(trust::Trust),
    /// Where packages are found.
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// The configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Prints a completion script.
    Completions {
        /// Of which shell.
        shell: Shell,
    },
    /// Prints the manual page.
    Man {
        /// Writes this page and one for each command into DIR instead.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// The daemon in the background.
    #[command(hide = true)]
    Daemon(daemon::Background),
}

/// What every command is given.
struct Context {
    paths: Paths,
    config_error: Option<ConfigError>,
    config: Config,
    output: Output,
    verbose: u8,
}

impl Context {
    /// Returns the configuration, or why there is none.
    fn config(&self) -> Result<Config, Error> {
        match &self.config_error {
            Some(error) => Err(Failure::new(FailureKind::Usage, error)
                .hint(error.hint())
                .into()),
            None => Ok(self.config.clone()),
        }
    }

    /// Returns a way to ask the home: its daemon, or itself in this process.
    fn session(&self) -> Result<Session, Error> {
        Ok(Session::new(self.paths.clone(), self.config()?))
    }
}

/// Returns what a person means by a target: a path below a mount, also one relative to here, becomes one from the root,
/// which the daemon knows too. Everything else stays: packages never begin with a slash or a dot.
fn target(text: &str) -> String {
    let first = text.split('/').next().unwrap_or_default();
    let path = from_the_root(text);
    if matches!(first, "" | "." | "..") || is_below_a_mount(Path::new(&path)) {
        path
    } else {
        text.to_owned()
    }
}

fn is_below_a_mount(path: &Path) -> bool {
    mounting::mounts().is_ok_and(|mounts| {
        mounts
            .iter()
            .any(|mount| path != mount.mountpoint && path.starts_with(&mount.mountpoint))
    })
}

/// Returns an absolute path without `.` and `..`, by text alone: it may lie in a mount, which is not to be asked.
fn from_the_root(text: &str) -> String {
    let Ok(path) = std::path::absolute(text) else {
        return text.to_owned();
    };
    let mut plain = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            plain.pop();
        } else {
            plain.push(part);
        }
    }
    plain
        .to_str()
        .map_or_else(|| text.to_owned(), str::to_owned)
}

/// Returns what people mean by several targets.
fn targets(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| target(text)).collect()
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Failure(#[from] Failure),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Standard output, mostly.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl Error {
    fn failure(&self) -> Failure {
        match self {
            Error::Failure(failure) | Error::Client(ClientError::Failed(failure)) => {
                failure.clone()
            }
            Error::Client(error @ ClientError::Foreign { .. }) => {
                Failure::new(FailureKind::Refused, error)
                    .hint("use a home of your own, or ask as that user")
            }
            Error::Client(error) => Failure::failed(error),
            Error::Output(error) => Failure::failed(error),
        }
    }

    /// Whether whoever read the output has gone, as `| head` does: no error of ours.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Error::Output(error) | Error::Client(ClientError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Parses the command line, does what it says, and returns the exit code.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            return misused(&error);
        }
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let failure = error.failure();
            output::say_failure(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

/// Says what is wrong with a command line: one line, and a hint. What was asked for (help, the version) is printed.
fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr()
        || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        || error.kind() == ErrorKind::MissingSubcommand
    {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        let words: Vec<&str> = paragraph.split_whitespace().collect();
        words.join(" ")
    });
    let what = paragraphs.next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let hint = paragraphs.find_map(|text| {
        let tip = text.strip_prefix("tip: ").map(str::to_owned);
        tip.or_else(|| {
            text.strip_prefix("Usage: ")
                .map(|usage| format!("usage: {usage}"))
        })
    });
    let failure = Failure::new(FailureKind::Usage, what);
    output::say_failure(&failure.hint(hint.as_deref().unwrap_or("see `manifs --help`")));
    ExitCode::from(FailureKind::Usage.exit_code())
}

/// Prints the manual's first page, or writes all pages into a directory.
fn manual(directory: Option<&Path>) -> io::Result<()> {
    match directory {
        Some(directory) => clap_mangen::generate_to(Arguments::command(), directory),
        None => clap_mangen::Man::new(Arguments::command()).render(&mut io::stdout()),
    }
}

fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match &arguments.command {
        Command::Completions { shell } => {
            // Not straight to standard output: a closed one would be a panic.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "manifs", &mut script);
            io::stdout().write_all(&script)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Man { dir } => {
            manual(dir.as_deref())?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let found = if arguments.system {
        Ok(Paths::system())
    } else {
        Paths::find(arguments.home.as_deref())
    };
    let mut paths = found.map_err(|error| Failure::failed(&error).hint(error.hint()))?;
    if let Some(config) = &arguments.config {
        paths.config = std::path::absolute(config)?;
        // What was named has to be there; `daemon` is given its starter's path, whether there is a file or not.
        if !paths.config.exists() && !matches!(arguments.command, Command::Daemon(_)) {
            let message = format!("there is no {}", paths.config.display());
            let failure = Failure::new(FailureKind::Usage, message);
            return Err(failure
                .hint("leave --config out to go without a file")
                .into());
        }
    }
    let (config, config_error) = match Config::load(&paths.config) {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(error)),
    };
    let output = Output::new(arguments.quiet);
    let context = Context {
        paths,
        config,
        config_error,
        output,
        verbose: arguments.verbose,
    };
    if !matches!(
        arguments.command,
        Command::Daemon(_) | Command::Serve(_) | Command::Mount(_)
    ) {
        output::log_to_stderr(context.verbose);
    }
    let done = match arguments.command {
        Command::Keygen(command) => command.run(&context),
        Command::Publish(command) => command.run(&context),
        Command::Withdraw(command) => command.run(&context),
        Command::Latest(command) => command.run(&context),
        Command::Mount(command) => return command.run(&context),
        Command::Unmount(command) => command.run(&context),
        Command::Serve(command) => return command.run(&context),
        Command::Daemon(command) => return command.run(&context),
        Command::Status(command) => return command.run(&context),
        Command::List(command) => command.run(&context),
        Command::Ls(command) => command.run(&context),
        Command::Cat(command) => command.run(&context),
        Command::Fetch(command) => command.run(&context),
        Command::Diff(command) => command.run(&context),
        Command::Verify(command) => command.run(&context),
        Command::Inspect(command) => command.run(&context),
        Command::Why(command) => command.run(&context),
        Command::Doctor(command) => return command.run(&context),
        Command::Warm(command) => command.run(&context),
        Command::Pin(command) => command.run(&context),
        Command::Unpin(command) => command.run(&context),
        Command::Evict(command) => command.run(&context),
        Command::Trust(command) => command.run(&context),
        Command::Registry(command) => command.run(&context),
        Command::Config(command) => command.run(&context),
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
