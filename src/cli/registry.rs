//! Where packages are found.

use clap::Subcommand;
use serde_json::json;

use super::output;
use super::{Context, Error};
use crate::serve::control::{Done, Event, RegistryItem, Reply, Request};

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Adds a registry: a directory, or the URL of a manifs daemon or a web server.
    Add {
        /// A directory or a URL.
        place: String,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Shows the registries.
    List {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Takes a registry away; what it listed stays listed.
    Remove {
        /// As it was added.
        place: String,
    },
    /// Reads every registry now.
    Update,
}

impl RegistryCommand {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let mut session = context.session()?;
        match self {
            RegistryCommand::Add { place, json } => {
                let place = if place.contains("://") {
                    place
                } else {
                    // The daemon may run elsewhere.
                    std::path::absolute(&place)?.display().to_string()
                };
                let item: RegistryItem = session.get(&Request::RegistryAdd { place })?;
                if json {
                    return Ok(output::json(&item)?);
                }
                context.output.say(&match &item.error {
                    None => format!("added {}", item.place),
                    Some(error) => {
                        format!("added {}, which cannot be read now: {error}", item.place)
                    }
                });
            }
            RegistryCommand::Remove { place } => {
                session.ask(&Request::RegistryRemove { place }, &[], &mut |_| Ok(()))?;
            }
            RegistryCommand::Update => {
                session.get::<Done>(&Request::RegistryUpdate)?;
            }
            RegistryCommand::List { json } => {
                let mut items: Vec<RegistryItem> = Vec::new();
                session.ask(&Request::RegistryList, &[], &mut |reply| {
                    if let Reply::Event(Event::Item(item)) = reply {
                        items.push(serde_json::from_value(item)?);
                    }
                    Ok(())
                })?;
                if json {
                    return Ok(output::json(&json!({ "registries": items }))?);
                }
                for item in items {
                    let state = match (&item.error, &item.updated) {
                        (Some(error), _) => format!("  ({error})"),
                        (None, Some(updated)) => format!("  (read {updated})"),
                        (None, None) => String::new(),
                    };
                    output::line(&format!("{}{state}", item.place))?;
                }
            }
        }
        Ok(())
    }
}
