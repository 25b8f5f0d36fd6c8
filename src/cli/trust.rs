//! Whose signatures are believed.

use clap::{Args, Subcommand};
use serde_json::json;

use super::keys::public_key;
use super::output;
use super::{Context, Error};
use crate::manifest::time::format_duration;
use crate::manifest::{Links, Pattern, PolicyError, TrustPolicy};
use crate::serve::control::{Client, Failure, FailureKind, Request};

#[derive(Debug, Subcommand)]
pub(super) enum Trust {
    /// Believes KEY for the packages that PATTERN matches: a name, scope/*, or *.
    Add(Add),
    /// Shows the rules.
    List {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Takes a rule away, or one key of it.
    Remove {
        /// The rule's pattern.
        pattern: String,
        /// The key; without it the whole rule goes.
        key: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// A name, scope/*, or *.
    pattern: String,
    /// A file, a name in keys/, or the base64 line.
    key: String,
    /// How many of the rule's keys have to sign.
    #[arg(long)]
    threshold: Option<usize>,
}

impl Trust {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let path = &context.paths.trust;
        match self {
            Trust::Add(add) => {
                let pattern = pattern(&add.pattern)?;
                let key = public_key(context, &add.key)?;
                let new =
                    TrustPolicy::edit(path, |policy| policy.add(&pattern, &key, add.threshold));
                let new = new.map_err(|error| policy_failure(&error))?;
                context.output.say(&if new {
                    format!("{pattern} is trusted when signed by {}", key.id())
                } else {
                    format!("{pattern} trusted {} already", key.id())
                });
                reload(context)
            }
            Trust::Remove { pattern: text, key } => {
                let pattern = pattern(&text)?;
                let key = key
                    .map(|key| public_key(context, &key))
                    .transpose()?
                    .map(|key| key.id());
                let found = TrustPolicy::edit(path, |policy| policy.remove(&pattern, key));
                if !found.map_err(|error| policy_failure(&error))? {
                    let failure = Failure::new(
                        FailureKind::NotFound,
                        format!("there is no such rule or key for {pattern}"),
                    );
                    return Err(failure.hint("`manifs trust list` shows the rules").into());
                }
                reload(context)
            }
            Trust::List { json } => list(context, json),
        }
    }
}

fn list(context: &Context, as_json: bool) -> Result<(), Error> {
    let policy = TrustPolicy::load(&context.paths.trust).map_err(|error| policy_failure(&error))?;
    if as_json {
        let rules: Vec<_> = policy
            .rules()
            .iter()
            .map(|rule| {
                json!({
                    "pattern": rule.pattern.to_string(),
                    "keys": rule.keys.iter().map(|key| json!({"id": key.id().to_string(), "key": key.to_line()})).collect::<Vec<_>>(),
                    "threshold": rule.threshold,
                    "max_age": rule.max_age.map(format_duration),
                    "links": if rule.links == Links::Any { "any" } else { "inside" },
                })
            })
            .collect();
        return Ok(output::json(&json!({ "rules": rules }))?);
    }
    if policy.rules().is_empty() {
        context
            .output
            .say("nothing is trusted: add a rule with `manifs trust add PATTERN KEY`");
    }
    for rule in policy.rules() {
        let age = rule
            .max_age
            .map(|age| format!(", at most {} old", format_duration(age)))
            .unwrap_or_default();
        let links = if rule.links == Links::Any {
            ", links may leave"
        } else {
            ""
        };
        output::line(&format!(
            "{} ({} of {}{age}{links})",
            rule.pattern,
            rule.threshold,
            rule.keys.len()
        ))?;
        for key in &rule.keys {
            output::line(&format!("    {}  {}", key.to_line(), key.id()))?;
        }
    }
    Ok(())
}

/// Has a daemon that runs judge everything again.
fn reload(context: &Context) -> Result<(), Error> {
    match Client::connect(&context.paths.socket()) {
        Ok(client) => client
            .ask(&Request::Reload, &[], &mut |_| Ok(()))
            .map(drop)
            .map_err(Error::from),
        // Read at the next start.
        Err(_) => Ok(()),
    }
}

fn pattern(text: &str) -> Result<Pattern, Failure> {
    text.parse().map_err(|error| {
        Failure::new(
            FailureKind::Usage,
            format!("{text:?} is no pattern: {error}"),
        )
        .hint("a pattern is a package name, scope/*, or *")
    })
}

pub(super) fn policy_failure(error: &PolicyError) -> Failure {
    let failure = Failure::failed(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
