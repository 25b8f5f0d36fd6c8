//! What people and programs see.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::serve::control::{Failure, Progress};

/// Lines between two steps of which each is said, when nobody watches.
const BAR: &str = "{msg:10} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec}, {eta} left";
const COUNT: &str = "{msg:10} {pos}/{len} {wide_bar}";

/// Where progress goes.
pub(super) struct Output {
    quiet: bool,
}

impl Output {
    pub(super) fn new(quiet: bool) -> Output {
        Output { quiet }
    }

    /// Says a sentence, unless nothing is to be said.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}", escape(text));
        }
    }

    /// Starts to show progress.
    pub(super) fn progress(&self) -> Shown {
        Shown {
            quiet: self.quiet,
            bar: None,
            step: String::new(),
        }
    }
}

/// Progress on a terminal as a bar, elsewhere one line for each step, with `-q` nothing.
pub(super) struct Shown {
    quiet: bool,
    bar: Option<ProgressBar>,
    step: String,
}

impl Shown {
    pub(super) fn update(&mut self, progress: &Progress) {
        if self.quiet {
            return;
        }
        if !io::stderr().is_terminal() {
            if self.step != progress.step {
                eprintln!("{}", progress.step);
                self.step.clone_from(&progress.step);
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(if progress.bytes { BAR } else { COUNT });
            let bar = ProgressBar::new(progress.total)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(progress.step.clone());
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints one JSON object.
pub(super) fn json(object: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, object)?;
    writeln!(out)
}

/// Prints a line for people: names from outside cannot steer their terminal.
pub(super) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", escape(text))
}

/// Replaces control and direction characters by what shows them.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if crate::manifest::json::is_unsafe_char(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Says what failed, and what to do.
pub(super) fn say_failure(failure: &Failure) {
    eprintln!("manifs: {}", escape(&failure.message));
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {}", escape(hint));
    }
}

/// Returns bytes as people read them.
pub(super) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

fn filter(verbose: u8) -> EnvFilter {
    EnvFilter::new(match verbose {
        0 => "manifs=warn",
        1 => "manifs=debug",
        _ => "manifs=trace",
    })
}

/// Logs of a command go to standard error: warnings, or what `-v` asks for.
pub(super) fn log_to_stderr(verbose: u8) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(verbose))
        .with_writer(io::stderr)
        .without_time()
        .try_init();
}

/// Logs of a daemon in the foreground.
pub(super) fn log_of_daemon(verbose: u8) {
    let filter = if verbose == 0 {
        EnvFilter::new("manifs=info")
    } else {
        filter(verbose)
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
}

/// Logs of a daemon in the background go to a file.
pub(super) fn log_to_file(path: &Path, verbose: u8) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)?;
    let filter = if verbose == 0 {
        EnvFilter::new("manifs=info")
    } else {
        filter(verbose)
    };
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::sync::Mutex::new(file))
        .with_ansi(false)
        .try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_steer_a_terminal() {
        assert_eq!(
            escape("a\u{1b}[31mb\nc\u{202e}d \u{e9}"),
            "a\\u{1b}[31mb\\nc\\u{202e}d \u{e9}"
        );
    }
}
