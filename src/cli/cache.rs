//! What an admin does with the store.

use clap::Args;
use serde_json::json;

use super::output;
use super::{Context, Error, targets};
use crate::serve::control::{Done, Event, Reply, Request};

/// What is meant.
#[derive(Debug, Args)]
struct Targets {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Fetches ahead of use, verified and durable. Interrupted, it goes on where it was.
#[derive(Debug, Args)]
pub(super) struct Warm {
    #[command(flatten)]
    targets: Targets,
}

/// Keeps from being evicted.
#[derive(Debug, Args)]
pub(super) struct Pin {
    #[command(flatten)]
    targets: Targets,
}

/// Takes a pin back.
#[derive(Debug, Args)]
pub(super) struct Unpin {
    #[command(flatten)]
    targets: Targets,
}

/// Drops from the store what is not pinned; without a target, everything.
#[derive(Debug, Args)]
pub(super) struct Evict {
    /// PACKAGE, PACKAGE@VERSION, either with /PATH, or a path below a mount.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Warm {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let json = self.targets.json;
        let done = ask(
            context,
            &Request::Warm {
                targets: targets(&self.targets.targets),
            },
        )?;
        let shares = done.sources.iter().map(|served| {
            let usual = served
                .usual_ms
                .map(|ms| format!(", usually {ms} ms a block"));
            format!(
                "{} in {} blocks from {} ({}){}",
                output::bytes(served.bytes),
                served.blocks,
                served.name,
                served.kind,
                usual.unwrap_or_default()
            )
        });
        let shares: Vec<String> = shares.collect();
        say(
            context,
            json,
            &done,
            &format!(
                "{} files, {} here; {} fetched",
                done.files,
                output::bytes(done.bytes),
                output::bytes(done.moved)
            ),
        )?;
        if !json {
            shares.iter().for_each(|share| context.output.say(share));
        }
        Ok(())
    }
}

impl Pin {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let json = self.targets.json;
        let done = ask(
            context,
            &Request::Pin {
                targets: targets(&self.targets.targets),
            },
        )?;
        say(
            context,
            json,
            &done,
            &format!("{} files, {}", done.files, output::bytes(done.bytes)),
        )
    }
}

impl Unpin {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let json = self.targets.json;
        let done = ask(
            context,
            &Request::Unpin {
                targets: targets(&self.targets.targets),
            },
        )?;
        say(context, json, &done, &format!("{} files", done.files))
    }
}

impl Evict {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let done = ask(
            context,
            &Request::Evict {
                targets: targets(&self.targets),
            },
        )?;
        let freed = format!("{} files, {} freed", done.files, output::bytes(done.moved));
        let text = match done.kept {
            0 => freed,
            kept => format!("{freed}; {kept} kept, since they are pinned or published here"),
        };
        say(context, self.json, &done, &text)
    }
}

fn ask(context: &Context, request: &Request) -> Result<Done, Error> {
    let mut shown = context.output.progress();
    let value = context.session()?.ask(request, &[], &mut |reply| {
        if let Reply::Event(Event::Progress(progress)) = reply {
            shown.update(&progress);
        }
        Ok(())
    })?;
    drop(shown);
    Ok(serde_json::from_value(value).map_err(std::io::Error::from)?)
}

fn say(context: &Context, as_json: bool, done: &Done, text: &str) -> Result<(), Error> {
    if as_json {
        output::json(&json!(done))?;
    } else {
        context.output.say(text);
    }
    Ok(())
}
