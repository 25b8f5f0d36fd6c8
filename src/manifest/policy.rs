//! `trust.toml`: whose signatures the user believes, for which packages. Read strictly, edited in place so that the
//! user's own comments and order stay.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, Value};

use super::keys::PublicKey;
use super::name::{KeyId, NameError, PackageName, PackageVersion, PackageVersionError, check_part};
use super::time::parse_duration;
use crate::durable;

/// The largest `trust.toml`, in bytes.
const POLICY_BYTES_MAX: u64 = 4 << 20;

/// What a new `trust.toml` begins with.
const PREAMBLE: &str = "\
# Whose signatures this home believes. The most specific rule that matches a package decides alone:
# its name, then scope/*, then *. A key is the base64 line that 'manifs keygen' prints.
";

/// Which packages a rule is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pattern {
    /// `*`: every package that no other rule matches.
    All,
    /// `scope/*`: the packages of a scope.
    Scope(String),
    /// One package.
    Name(PackageName),
}

impl Pattern {
    /// Returns whether the rule is about this package.
    pub fn matches(&self, name: &PackageName) -> bool {
        match self {
            Pattern::All => true,
            Pattern::Scope(scope) => name.scope() == Some(scope),
            Pattern::Name(own) => own == name,
        }
    }

    /// Returns the scope that all packages of the pattern are in, if there is one.
    pub fn scope(&self) -> Option<&str> {
        match self {
            Pattern::All => None,
            Pattern::Scope(scope) => Some(scope),
            Pattern::Name(own) => own.scope(),
        }
    }

    /// Returns how narrow the pattern is; of the patterns that match one name no two are equally narrow.
    fn rank(&self) -> u8 {
        match self {
            Pattern::All => 0,
            Pattern::Scope(_) => 1,
            Pattern::Name(_) => 2,
        }
    }
}

impl FromStr for Pattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" {
            return Ok(Pattern::All);
        }
        if let Some(scope) = text.strip_suffix("/*") {
            check_part(scope)?;
            return Ok(Pattern::Scope(scope.to_owned()));
        }
        text.parse().map(Pattern::Name)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::All => f.pad("*"),
            Pattern::Scope(scope) => f.pad(&format!("{scope}/*")),
            Pattern::Name(name) => f.pad(name.as_str()),
        }
    }
}

/// Which symlinks of a package are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Links {
    /// Those that stay in their version.
    #[default]
    Inside,
    /// All.
    Any,
}

/// One rule: `threshold` of `keys` have to sign what `pattern` matches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The packages.
    pub pattern: Pattern,
    /// Distinct keys.
    pub keys: Vec<PublicKey>,
    /// How many of them have to sign; at least 1, and nothing is trusted while there are fewer keys.
    pub threshold: usize,
    /// How old a release index may be before it is stale.
    pub max_age: Option<Duration>,
    /// Which symlinks are shown.
    pub links: Links,
}

/// A key that is believed no more, whatever a rule says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RevokedKey {
    /// The key.
    pub key: KeyId,
    /// Why, for people.
    pub reason: Option<String>,
}

/// What a block entry is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BlockedPackage {
    /// Every version.
    Name(PackageName),
    /// One version.
    Version(PackageVersion),
}

impl FromStr for BlockedPackage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('@') {
            let package = text
                .parse()
                .map_err(|error: PackageVersionError| error.to_string())?;
            return Ok(BlockedPackage::Version(package));
        }
        let name = text.parse().map_err(|error: NameError| error.to_string())?;
        Ok(BlockedPackage::Name(name))
    }
}

impl fmt::Display for BlockedPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BlockedPackage::Name(name) => fmt::Display::fmt(name, f),
            BlockedPackage::Version(package) => fmt::Display::fmt(package, f),
        }
    }
}

/// Why there is no trust policy to be had, or no change to it.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        error: io::Error,
    },
    /// Anybody could write rules into the file.
    #[error("{path} can be written by everybody (mode {mode:04o})")]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The text is not what a trust policy is.
    #[error("the trust policy, line {line}: {message}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
}

impl PolicyError {
    /// Returns what a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PolicyError::Permissions { path, .. } => Some(format!("chmod go-w {}", path.display())),
            PolicyError::Syntax { .. } => {
                Some("correct that line; until then nothing is trusted".to_owned())
            }
            PolicyError::Io { .. } => None,
        }
    }
}

/// The user's policy: rules, revoked keys, blocked packages. [`Default`] trusts nobody.
#[derive(Clone, Debug, Default)]
pub struct TrustPolicy {
    rules: Vec<Rule>,
    revoked: Vec<RevokedKey>,
    blocked: Vec<(BlockedPackage, Option<String>)>,
    text: String,
}

/// The file as typed; what is meant is in [`TrustPolicy`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    rule: Vec<RuleEntry>,
    #[serde(default)]
    revoked: Vec<RevokedEntry>,
    #[serde(default)]
    blocked: Vec<BlockedEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleEntry {
    pattern: Spanned<String>,
    keys: Vec<Spanned<String>>,
    threshold: Option<Spanned<u32>>,
    max_age: Option<Spanned<String>>,
    #[serde(default)]
    links: Links,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RevokedEntry {
    key: Spanned<String>,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockedEntry {
    package: Spanned<String>,
    reason: Option<String>,
}

/// Finds the line of a place, for messages.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers hand over errors and texts alike"
    )]
    fn error(&self, span: Range<usize>, message: impl ToString) -> PolicyError {
        let before = self.0.as_bytes().get(..span.start).unwrap_or_default();
        PolicyError::Syntax {
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            message: message.to_string(),
        }
    }

    fn parse<T: FromStr<Err: ToString>>(&self, text: &Spanned<String>) -> Result<T, PolicyError> {
        text.get_ref()
            .parse()
            .map_err(|error: T::Err| self.error(text.span(), error.to_string()))
    }

    fn rule(&self, entry: &RuleEntry) -> Result<Rule, PolicyError> {
        let mut keys: Vec<PublicKey> = Vec::new();
        for text in &entry.keys {
            let key = PublicKey::from_line(text.get_ref())
                .map_err(|error| self.error(text.span(), error))?;
            if keys.contains(&key) {
                return Err(self.error(text.span(), "this key is in the rule twice"));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(self.error(entry.pattern.span(), "the rule has no keys"));
        }
        let threshold = match &entry.threshold {
            None => 1,
            Some(number) if *number.get_ref() > 0 => *number.get_ref() as usize,
            Some(number) => return Err(self.error(number.span(), "a threshold is at least 1")),
        };
        let max_age = match &entry.max_age {
            None => None,
            Some(text) => Some(
                parse_duration(text.get_ref()).map_err(|error| self.error(text.span(), error))?,
            ),
        };
        Ok(Rule {
            pattern: self.parse(&entry.pattern)?,
            keys,
            threshold,
            max_age,
            links: entry.links,
        })
    }
}

impl TrustPolicy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`] with the line.
    pub fn parse(text: &str) -> Result<TrustPolicy, PolicyError> {
        let lines = Lines(text);
        let file: PolicyFile = toml::from_str(text).map_err(|error| {
            let message = error.message().replace('\n', " ");
            lines.error(error.span().unwrap_or_default(), message)
        })?;
        let mut rules: BTreeMap<Pattern, Rule> = BTreeMap::new();
        for entry in &file.rule {
            let rule = lines.rule(entry)?;
            if let Some(double) = rules.insert(rule.pattern.clone(), rule) {
                let message = format!("there are two rules for {}", double.pattern);
                return Err(lines.error(entry.pattern.span(), message));
            }
        }
        let revoked = file
            .revoked
            .into_iter()
            .map(|entry| {
                let text = entry.key.get_ref();
                let key = match text.parse::<KeyId>() {
                    Ok(id) => id,
                    Err(_) => PublicKey::from_line(text)
                        .map_err(|_| {
                            let message = "neither a key id (64 hexadecimal digits) nor a key";
                            lines.error(entry.key.span(), message)
                        })?
                        .id(),
                };
                Ok(RevokedKey {
                    key,
                    reason: entry.reason,
                })
            })
            .collect::<Result<_, PolicyError>>()?;
        let blocked = file
            .blocked
            .into_iter()
            .map(|entry| Ok((lines.parse(&entry.package)?, entry.reason)))
            .collect::<Result<_, PolicyError>>()?;
        Ok(TrustPolicy {
            rules: rules.into_values().collect(),
            revoked,
            blocked,
            text: text.to_owned(),
        })
    }

    /// Reads the file; one that is not there trusts nobody.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn load(path: &Path) -> Result<TrustPolicy, PolicyError> {
        let io = |error| PolicyError::Io {
            path: path.to_owned(),
            error,
        };
        let Some(bytes) = durable::read(path, POLICY_BYTES_MAX).map_err(io)? else {
            return Ok(TrustPolicy::default());
        };
        let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(PolicyError::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        TrustPolicy::parse(&text)
    }

    /// Writes the file; durable when this returns.
    ///
    /// # Errors
    /// [`PolicyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), PolicyError> {
        durable::write(path, self.text.as_bytes(), 0o600).map_err(|error| PolicyError::Io {
            path: path.to_owned(),
            error,
        })
    }

    /// Loads, changes and saves the file, one process after the other.
    ///
    /// # Errors
    /// [`PolicyError`]; then the file is as it was.
    pub fn edit<T>(
        path: &Path,
        change: impl FnOnce(&mut TrustPolicy) -> Result<T, PolicyError>,
    ) -> Result<T, PolicyError> {
        let io = |error| PolicyError::Io {
            path: path.to_owned(),
            error,
        };
        // The lock is on the directory, since the file itself is replaced.
        let dir = path.parent().unwrap_or(Path::new("."));
        durable::create_dir(dir).map_err(io)?;
        let dir = File::open(dir).map_err(io)?;
        rustix::fs::flock(&dir, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| io(error.into()))?;
        let mut policy = TrustPolicy::load(path)?;
        let result = change(&mut policy)?;
        policy.save(path)?;
        Ok(result)
    }

    /// Returns the file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the rules, the widest pattern first.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Returns the one rule that decides about a package.
    pub fn rule_for(&self, name: &PackageName) -> Option<&Rule> {
        self.rules
            .iter()
            .filter(|rule| rule.pattern.matches(name))
            .max_by_key(|rule| rule.pattern.rank())
    }

    /// Returns the keys that are believed no more.
    pub fn revoked(&self) -> &[RevokedKey] {
        &self.revoked
    }

    /// Returns what is never shown, each with the reason.
    pub fn blocked(&self) -> &[(BlockedPackage, Option<String>)] {
        &self.blocked
    }

    /// Adds a key to the rule of `pattern`, which is made when there is none, and sets its threshold when one is
    /// given. Returns whether anything changed.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`] when the result would be no valid policy.
    pub fn add(
        &mut self,
        pattern: &Pattern,
        key: &PublicKey,
        threshold: Option<usize>,
    ) -> Result<bool, PolicyError> {
        self.change(|document| {
            let rules = tables(document, "rule")?;
            let wanted = pattern.to_string();
            let position = position(rules, "pattern", &wanted);
            let rule = match position.and_then(|index| rules.get_mut(index)) {
                Some(rule) => rule,
                None => {
                    let mut rule = Table::new();
                    rule.insert("pattern", toml_edit::value(wanted));
                    rule.insert("keys", toml_edit::value(Array::new()));
                    rules.push(rule);
                    let last = rules.len() - 1;
                    rules.get_mut(last)?
                }
            };
            let keys = rule.get_mut("keys")?.as_array_mut()?;
            let line = key.to_line();
            if !keys
                .iter()
                .any(|old| old.as_str().map(str::trim) == Some(line.as_str()))
            {
                push_on_own_line(keys, line);
            }
            if let Some(threshold) = threshold {
                let threshold = i64::try_from(threshold).unwrap_or(i64::MAX);
                let old = rule
                    .get("threshold")
                    .and_then(Item::as_integer)
                    .unwrap_or(1);
                if old != threshold {
                    rule.insert("threshold", toml_edit::value(threshold));
                }
            }
            Some(())
        })
    }

    /// Removes a key from the rule of `pattern`, or the whole rule when no key is given or none is left. Returns
    /// whether anything changed.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`] when the result would be no valid policy.
    pub fn remove(&mut self, pattern: &Pattern, key: Option<KeyId>) -> Result<bool, PolicyError> {
        self.change(|document| {
            let rules = tables(document, "rule")?;
            let Some(index) = position(rules, "pattern", &pattern.to_string()) else {
                return Some(());
            };
            if let Some(id) = key {
                let keys = rules.get_mut(index)?.get_mut("keys")?.as_array_mut()?;
                keys.retain(|line| {
                    let key = line
                        .as_str()
                        .and_then(|line| PublicKey::from_line(line).ok());
                    key.is_none_or(|key| key.id() != id)
                });
                if !keys.is_empty() {
                    return Some(());
                }
            }
            rules.remove(index);
            Some(())
        })
    }

    /// Believes a key no more, in no rule. Returns whether anything changed.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`] when the result would be no valid policy.
    pub fn revoke(&mut self, key: KeyId, reason: Option<&str>) -> Result<bool, PolicyError> {
        if self.revoked.iter().any(|revoked| revoked.key == key) {
            return Ok(false);
        }
        self.change(|document| push_entry(document, "revoked", "key", &key.to_string(), reason))
    }

    /// Blocks a package or a version. Returns whether anything changed.
    ///
    /// # Errors
    /// [`PolicyError::Syntax`] when the result would be no valid policy.
    pub fn block(
        &mut self,
        package: &BlockedPackage,
        reason: Option<&str>,
    ) -> Result<bool, PolicyError> {
        if self.blocked.iter().any(|(blocked, _)| blocked == package) {
            return Ok(false);
        }
        let package = package.to_string();
        self.change(|document| push_entry(document, "blocked", "package", &package, reason))
    }

    /// Changes the text, and takes over what it then says: the one reader decides what that is.
    fn change(
        &mut self,
        edit: impl FnOnce(&mut DocumentMut) -> Option<()>,
    ) -> Result<bool, PolicyError> {
        let lines = Lines(&self.text);
        let mut document: DocumentMut =
            self.text.parse().map_err(|error: toml_edit::TomlError| {
                lines.error(error.span().unwrap_or_default(), error.message())
            })?;
        // Comments without anything below them would end up at the end.
        let head = match (document.is_empty(), self.text.trim()) {
            (false, _) => String::new(),
            (true, "") => format!("{PREAMBLE}\n"),
            (true, comments) => {
                let head = format!("{comments}\n\n");
                document = DocumentMut::new();
                head
            }
        };
        edit(&mut document).ok_or_else(|| lines.error(0..0, "not laid out as a trust policy"))?;
        let changed = TrustPolicy::parse(&format!("{head}{document}"))?;
        let differs = changed.rules != self.rules
            || changed.revoked != self.revoked
            || changed.blocked != self.blocked;
        if differs {
            *self = changed;
        }
        Ok(differs)
    }
}

/// Returns the `[[name]]` tables, made when missing; also of a list of inline tables.
fn tables<'a>(document: &'a mut DocumentMut, name: &str) -> Option<&'a mut ArrayOfTables> {
    let item = document
        .entry(name)
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    if !item.is_array_of_tables() {
        let taken = std::mem::take(item);
        *item = Item::ArrayOfTables(taken.into_array_of_tables().ok()?);
    }
    item.as_array_of_tables_mut()
}

fn position(tables: &ArrayOfTables, key: &str, text: &str) -> Option<usize> {
    tables
        .iter()
        .position(|table| table.get(key).and_then(Item::as_str) == Some(text))
}

fn push_entry(
    document: &mut DocumentMut,
    name: &str,
    key: &str,
    text: &str,
    reason: Option<&str>,
) -> Option<()> {
    let mut entry = Table::new();
    entry.insert(key, toml_edit::value(text));
    if let Some(reason) = reason {
        entry.insert("reason", toml_edit::value(reason));
    }
    tables(document, name)?.push(entry);
    Some(())
}

fn push_on_own_line(array: &mut Array, text: String) {
    let mut value = Value::from(text);
    value.decor_mut().set_prefix("\n    ");
    array.push_formatted(value);
    array.set_trailing_comma(true);
    // What stands before the bracket may be a comment, which has to keep its line.
    let trailing = array
        .trailing()
        .as_str()
        .unwrap_or_default()
        .trim_end()
        .to_owned();
    array.set_trailing(format!("{trailing}\n"));
}
