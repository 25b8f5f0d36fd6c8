//! Reads a part of a file of a package from a program, without a mount: `cargo run --example read -- HOME TARGET`.
//!
//! HOME is a home that trusts a publisher and knows a registry, as after `manifs --home HOME trust add` and `manifs
//! --home HOME registry add`. TARGET is `name[@version]/path`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it is run by people"
)]

use std::path::Path;

use manifs::config::{Config, Paths};
use manifs::daemon::Home;
use manifs::serve::control::Failure;

/// Says what the home lists, and returns the first 4 KiB of a file.
///
/// # Errors
/// [`Failure`], with a kind to act on and often a hint.
pub(crate) async fn first_page(home: &Path, target: &str) -> Result<bytes::Bytes, Failure> {
    let paths = Paths::below(home);
    let config = Config::load(&paths.config).map_err(Failure::failed)?;
    // Takes the home's lock: where a daemon runs, ask it over its socket instead (`manifs::serve::control::Client`).
    let home = Home::open(paths, config).await?;
    home.look().await?;
    for (name, versions, latest) in home.listing().all() {
        let versions: Vec<_> = versions
            .iter()
            .map(|listed| listed.package().version.to_string())
            .collect();
        let latest = latest.map(|version| version.to_string());
        println!("{name}: {versions:?}, latest {latest:?}");
    }
    let page = home.read_range(target, 0..4096).await;
    home.close().await;
    page
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [home, target] = &words[..] else {
        eprintln!("usage: read HOME TARGET");
        std::process::exit(2);
    };
    match first_page(Path::new(home), target).await {
        Ok(page) => println!("{} bytes, verified", page.len()),
        Err(failure) => {
            eprintln!("{}", failure.message);
            std::process::exit(1);
        }
    }
}
