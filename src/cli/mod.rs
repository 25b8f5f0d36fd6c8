//! The words people type: one file per command or group of commands.
//!
//! What is typed is parsed here ([`Arguments`]), what is meant is a [`crate::serve::control::Request`] to the home's
//! daemon, or to the same handler in this process when no daemon runs. Only this layer prints.

#![expect(
    clippy::print_stderr,
    reason = "this layer is the one that speaks to people"
)]

mod cache;
mod config;
mod daemon;
mod doctor;
mod fetch;
mod keys;
mod look;
mod mount;
mod output;
mod publish;
mod registry;
mod session;
mod trust;
mod verify;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{Config, ConfigError, Paths};
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
    Man,
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
            Some(error) => Err(Failure::failed(error).hint(error.hint()).into()),
            None => Ok(self.config.clone()),
        }
    }

    /// Returns a way to ask the home: its daemon, or itself in this process.
    fn session(&self) -> Result<Session, Error> {
        Ok(Session::new(self.paths.clone(), self.config()?))
    }
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
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
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

fn run(arguments: Arguments) -> Result<ExitCode, Error> {
    match &arguments.command {
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Arguments::command(),
                "manifs",
                &mut io::stdout(),
            );
            return Ok(ExitCode::SUCCESS);
        }
        Command::Man => {
            clap_mangen::Man::new(Arguments::command()).render(&mut io::stdout())?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let paths = Paths::find(arguments.home.as_deref(), arguments.config.as_deref())
        .map_err(|error| Failure::failed(&error).hint(error.hint()))?;
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
        Command::Mount(command) => return command.run(&context),
        Command::Unmount(command) => command.run(&context),
        Command::Serve(command) => return command.run(&context),
        Command::Daemon(command) => return command.run(&context),
        Command::Status(command) => return command.run(&context),
        Command::List(command) => command.run(&context),
        Command::Ls(command) => command.run(&context),
        Command::Cat(command) => command.run(&context),
        Command::Fetch(command) => command.run(&context),
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
        Command::Completions { .. } | Command::Man => Ok(()),
    };
    done.map(|()| ExitCode::SUCCESS)
}
