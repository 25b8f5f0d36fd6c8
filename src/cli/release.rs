//! What is said of versions that exist: one is withdrawn, or `latest` leads to another one.

use clap::Args;
use serde_json::json;

use super::publish::absolute;
use super::sign::{read_keys, sign_and_finish};
use super::{Context, Error, output};
use crate::daemon::package_version;
use crate::manifest::PackageVersion;
use crate::serve::control::{Failure, FailureKind, IndexChange, Prepared, Published, Request};

/// Says that a version must not be used any more.
///
/// It vanishes from the mounts of all who follow the package; what reads of it at this moment goes on. Its number stays
/// taken: it is never taken back.
#[derive(Debug, Args)]
pub(super) struct Withdraw {
    /// NAME@VERSION.
    package: String,
    /// Why, in a sentence: readers are shown it.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    signing: Signing,
}

/// Has `latest` lead to a version, whatever its number.
///
/// The next version that is published without `--no-latest` has it follow the highest one again.
#[derive(Debug, Args)]
pub(super) struct Latest {
    /// The package.
    name: String,
    /// One of its versions.
    version: String,
    #[command(flatten)]
    signing: Signing,
}

/// Who signs, and where it is announced.
#[derive(Debug, Args)]
struct Signing {
    /// A key to sign with: a file, or a name in keys/; several times for several.
    #[arg(long = "key", value_name = "KEY", default_value = "default")]
    keys: Vec<String>,
    /// The registry; without it the home's own.
    #[arg(long)]
    registry: Option<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Withdraw {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let Some((name, version)) = self.package.split_once('@') else {
            let message = format!("{:?} names no version", self.package);
            return Err(Failure::new(FailureKind::Usage, message)
                .hint("write NAME@VERSION")
                .into());
        };
        let package = package_version(name, version)?;
        let change = IndexChange::Withdraw(self.reason);
        let json = self.signing.json;
        let published = self.signing.change(context, &package, change)?;
        say(json, &package, "withdrawn", published)
    }
}

impl Latest {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        let package = package_version(&self.name, &self.version)?;
        let json = self.signing.json;
        let published = self
            .signing
            .change(context, &package, IndexChange::Latest)?;
        say(json, &package, "latest", published)
    }
}

impl Signing {
    /// Has a new release index made, signs it and has it announced.
    fn change(
        self,
        context: &Context,
        package: &PackageVersion,
        change: IndexChange,
    ) -> Result<(bool, Published), Error> {
        let keys = read_keys(context, &self.keys)?;
        let request = Request::PublishChange {
            name: package.name.to_string(),
            version: package.version.to_string(),
            registry: self.registry.map(|place| absolute(&place)).transpose()?,
            change,
        };
        let mut session = context.session()?;
        let prepared: Prepared = session.get(&request)?;
        let missing = || Failure::failed("the home named no job");
        let job = prepared.job.clone().ok_or_else(missing)?;
        let published = sign_and_finish(&mut session, &prepared, &job, &keys)?;
        Ok((prepared.unchanged, published))
    }
}

fn say(
    as_json: bool,
    package: &PackageVersion,
    what: &str,
    (unchanged, published): (bool, Published),
) -> Result<(), Error> {
    if as_json {
        return Ok(output::json(&json!({
            "package": package.to_string(),
            "manifest": published.manifest,
            "latest": published.latest,
            "registry": published.registry,
            "unchanged": unchanged,
        }))?);
    }
    let already = if unchanged { " already" } else { "" };
    output::line(&format!(
        "{package} is {what}{already} in {}",
        published.registry
    ))?;
    let latest = published.latest.as_deref().unwrap_or("no version");
    Ok(output::line(&format!("latest leads to {latest}"))?)
}
