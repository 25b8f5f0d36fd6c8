//! Keys: making them, and finding the one that is meant.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output;
use super::{Context, Error};
use crate::config::variable;
use crate::manifest::{KeyError, Password, Pattern, PrivateKey, PublicKey, TrustPolicy};
use crate::serve::control::{Failure, FailureKind};

/// The variable that holds a key's password, where nobody can be asked.
const PASSWORD: &str = "MANIFS_PASSWORD";

/// The variable that names a file with it.
const PASSWORD_FILE: &str = "MANIFS_PASSWORD_FILE";

/// Makes a key to sign with: keys/NAME.pem, and keys/NAME.pub.pem for others.
#[derive(Debug, Args)]
pub(super) struct Keygen {
    /// The key's name.
    #[arg(default_value = "default")]
    name: String,
    /// Asks for a password that protects the key.
    #[arg(long)]
    password: bool,
    /// Takes the password from FILE.
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
}

impl Keygen {
    pub(super) fn run(self, context: &Context) -> Result<(), Error> {
        if self.name.is_empty() || self.name.starts_with('.') || self.name.contains('/') {
            return Err(Failure::new(
                FailureKind::Usage,
                format!("{:?} cannot be a key's name", self.name),
            )
            .into());
        }
        let password = match &self.password_file {
            Some(path) => Some(password_from(path)?),
            None if self.password => Some(new_password()?),
            None => None,
        };
        let paths = &context.paths;
        let (private, public) = (paths.private_key(&self.name), paths.public_key(&self.name));
        if public.exists() {
            return Err(key_failure(&KeyError::Exists(public)).into());
        }
        crate::durable::create_dir(&paths.keys)?;
        let first = std::fs::read_dir(&paths.keys)?.next().is_none();
        let key = PrivateKey::generate().map_err(|error| key_failure(&error))?;
        key.write(&private, password.as_ref())
            .map_err(|error| key_failure(&error))?;
        key.public()
            .write(&public)
            .map_err(|error| key_failure(&error))?;
        context
            .output
            .say(&format!("private key: {}", private.display()));
        context
            .output
            .say(&format!("public key:  {}", public.display()));
        output::line(&key.public().to_line())?;
        // A publisher sees its own packages; nothing else is ever trusted unasked.
        let no_rules =
            TrustPolicy::load(&paths.trust).is_ok_and(|policy| policy.rules().is_empty());
        if first && no_rules {
            let add = TrustPolicy::edit(&paths.trust, |policy| {
                policy.add(&Pattern::All, &key.public(), None)
            });
            add.map_err(|error| super::trust::policy_failure(&error))?;
            context
                .output
                .say("this home trusts its own key for every package (trust.toml)");
        }
        Ok(())
    }
}

/// Reads the private key that a word means: a file, or a name in keys/.
pub(super) fn private_key(context: &Context, word: &str) -> Result<PrivateKey, Error> {
    let named = context.paths.private_key(word);
    let path = if word.contains('/') || !named.exists() && Path::new(word).is_file() {
        PathBuf::from(word)
    } else {
        named
    };
    if !path.exists() {
        let failure = Failure::new(
            FailureKind::NotFound,
            format!("there is no key {word:?} ({})", path.display()),
        );
        return Err(failure
            .hint("make one with `manifs keygen`, or name a file with --key")
            .into());
    }
    let mut unasked = None;
    let read = PrivateKey::read(&path, || {
        known_password(&path).map_err(|failure| {
            unasked = Some(failure);
            KeyError::PasswordNeeded
        })
    });
    match (read, unasked) {
        (_, Some(failure)) => Err(failure.into()),
        (read, None) => read.map_err(|error| key_failure(&error).into()),
    }
}

/// Reads the public key that a word means: a file, a name in keys/, or the base64 line itself.
pub(super) fn public_key(context: &Context, word: &str) -> Result<PublicKey, Error> {
    let named = context.paths.public_key(word);
    let read = if Path::new(word).is_file() {
        PublicKey::read(Path::new(word))
    } else if named.is_file() {
        PublicKey::read(&named)
    } else {
        PublicKey::parse(word)
    };
    read.map_err(|error| {
        let failure = Failure::new(
            FailureKind::Usage,
            format!("{word:?} is no public key: {error}"),
        );
        failure
            .hint("KEY is a file, a name in keys/, or the base64 line that `manifs keygen` prints")
            .into()
    })
}

/// Gets the password of an existing key: from the environment, or by asking. None where nobody can be asked.
fn known_password(path: &Path) -> Result<Option<Password>, Failure> {
    match (variable(PASSWORD), variable(PASSWORD_FILE)) {
        (Some(_), Some(_)) => {
            let message = format!("both {PASSWORD} and {PASSWORD_FILE} are set");
            return Err(Failure::new(FailureKind::Usage, message).hint("unset one of them"));
        }
        (Some(password), None) => return Ok(Some(Password::new(password))),
        (None, Some(file)) => return password_from(Path::new(&file)).map(Some),
        (None, None) => {}
    }
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let asked = rpassword::prompt_password(format!("password of {}: ", path.display()));
    Ok(Some(Password::new(asked.map_err(Failure::failed)?)))
}

fn new_password() -> Result<Password, Failure> {
    if let Some(password) = variable(PASSWORD) {
        return Ok(Password::new(password));
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt)
            .map(Password::new)
            .map_err(Failure::failed)
    };
    let password = ask("password: ")?;
    if password.is_empty() {
        return Err(
            Failure::new(FailureKind::Usage, "an empty password protects nothing")
                .hint("leave --password out instead"),
        );
    }
    if *ask("once more: ")? != *password {
        return Err(Failure::new(FailureKind::Usage, "the two passwords differ"));
    }
    Ok(password)
}

fn password_from(path: &Path) -> Result<Password, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    let text = Password::new(text);
    Ok(Password::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

pub(super) fn key_failure(error: &KeyError) -> Failure {
    let failure = Failure::failed(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
