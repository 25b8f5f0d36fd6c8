//! The configuration, looked at.

use clap::Subcommand;

use super::output;
use super::{Context, Error};
use crate::serve::control::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Shows what is meant by file, environment and defaults.
    Show {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Checks the file.
    Check,
    /// Prints where the file lies.
    Path,
}

impl ConfigCommand {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            ConfigCommand::Path => output::line(&context.paths.config.display().to_string())?,
            ConfigCommand::Check => {
                context.config()?;
                let exists = context.paths.config.exists();
                context.output.say(&format!(
                    "{}: {}",
                    context.paths.config.display(),
                    if exists {
                        "no mistakes"
                    } else {
                        "there is none, so the defaults hold"
                    }
                ));
            }
            ConfigCommand::Show { json: true } => output::json(&context.config()?)?,
            ConfigCommand::Show { json: false } => {
                let text = toml::to_string(&context.config()?).map_err(Failure::failed)?;
                text.lines().try_for_each(output::line)?;
            }
        }
        Ok(())
    }
}
