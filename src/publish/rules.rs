//! What is refused by looking at names and at how a file begins: secrets, and names that some systems take for one.
//!
//! Pure functions of bytes. `docs/publishing.md` lists the same rules for people.

use unicode_normalization::UnicodeNormalization as _;

/// How many of a file's first bytes are looked at for a private key.
pub(crate) const HEAD_BYTES: usize = 4096;

/// The name that is reserved in a package's root: mirrors and torrents put the catalog there.
pub(crate) const RESERVED: &[u8] = b".manifs";

/// Names in a package's root that are instructions to `publish` and never content.
pub(crate) const INSTRUCTIONS: [&[u8]; 2] = [b"manifs.toml", b".publish"];

/// Returns what some system would take the name for: equal for two names that differ only in case or normalisation.
///
/// Canonical decomposition, then upper and lower case letter by letter (twice, so that letters with two lower-case
/// forms meet), then canonical decomposition again, since case mapping can undo it.
pub(crate) fn folded(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    name.nfd()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .nfd()
        .collect()
}

/// Returns pairs of positions of names that differ only in case or normalisation: each with the first one like it.
pub(crate) fn collisions(names: &[&str]) -> Vec<(usize, usize)> {
    let mut folds: Vec<(String, usize)> = names
        .iter()
        .enumerate()
        .map(|(position, name)| (folded(name), position))
        .collect();
    folds.sort_unstable();
    let mut pairs = Vec::new();
    let mut first = 0;
    for at in 1..folds.len() {
        if folds[at].0 == folds[first].0 {
            pairs.push((folds[first].1, folds[at].1));
        } else {
            first = at;
        }
    }
    pairs.sort_unstable();
    pairs
}

/// Returns what kind of secret a file of this name usually holds. `parent` is the last name of its directory.
pub(crate) fn secret_name(parent: &[u8], name: &[u8]) -> Option<&'static str> {
    /// Endings of `.env.` files that are made to be shared.
    const ENV_SHARED: [&[u8]; 6] = [
        b"example",
        b"sample",
        b"template",
        b"dist",
        b"defaults",
        b"schema",
    ];
    match (parent, name) {
        (_, b".env") => Some("environment file"),
        (_, b".netrc" | b"_netrc" | b".pgpass" | b".my.cnf" | b".git-credentials") => {
            Some("password file")
        }
        (_, b".pypirc" | b".dockercfg" | b".vault-token" | b".htpasswd") => {
            Some("credentials file")
        }
        (
            _,
            b"id_rsa" | b"id_dsa" | b"id_ecdsa" | b"id_ed25519" | b"id_ecdsa_sk" | b"id_ed25519_sk",
        ) => Some("SSH private key"),
        (b".aws", b"credentials") | (b".kube", b"config") | (b".docker", b"config.json") => {
            Some("credentials file")
        }
        (b".gnupg" | b"private-keys-v1.d", name)
            if name.ends_with(b".key") || name == b"secring.gpg" =>
        {
            Some("GnuPG private key")
        }
        (_, name) => {
            let ending = name.strip_prefix(b".env.")?;
            let last = ending.rsplit(|byte| *byte == b'.').next()?;
            (!ENV_SHARED.contains(&last)).then_some("environment file")
        }
    }
}

/// Counts the changes of [`secret_content`]: files that were judged by other rules are judged again.
pub(crate) const CONTENT_RULES: u32 = 1;

/// Returns what kind of private key a file that begins with `head` is; looks at [`HEAD_BYTES`] at most.
///
/// The marks have to begin a line, so that program text which merely mentions them is no secret.
pub(crate) fn secret_content(head: &[u8]) -> Option<&'static str> {
    /// Marks that begin a line of a private key, with what they mean.
    const MARKS: [(&[u8], &str); 5] = [
        (b"PuTTY-User-Key-File-", "PuTTY private key"),
        (b"AGE-SECRET-KEY-1", "age private key"),
        (b"AGE-PLUGIN-", "age private key"),
        (
            b"untrusted comment: minisign encrypted secret key",
            "minisign private key",
        ),
        (
            b"untrusted comment: signify secret key",
            "signify private key",
        ),
    ];
    let head = &head[..head.len().min(HEAD_BYTES)];
    head.split(|byte| matches!(byte, b'\n' | b'\r'))
        .find_map(|line| {
            let line = line.trim_ascii();
            if line.starts_with(b"-----BEGIN ") {
                let label = line[b"-----BEGIN ".len()..].strip_suffix(b"-----")?;
                // "PRIVATE KEY" in all its kinds, and OpenPGP's "PRIVATE KEY BLOCK".
                let private = label.ends_with(b"PRIVATE KEY") || label == b"PGP PRIVATE KEY BLOCK";
                return private.then_some("private key");
            }
            MARKS
                .iter()
                .find(|(mark, _)| line.starts_with(mark))
                .map(|(_, what)| *what)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_meet_in_case_and_normalisation() {
        for (left, right) in [
            ("Makefile", "makefile"),
            ("\u{e9}", "e\u{301}"),
            ("\u{c9}", "e\u{301}"),
            ("\u{212b}", "\u{e5}"),
            ("stra\u{df}e", "STRASSE"),
            ("\u{3c3}", "\u{3c2}"),
            ("\u{17f}", "S"),
            ("\u{212a}", "k"),
            ("\u{1e9b}\u{323}", "\u{1e69}"),
        ] {
            assert_eq!(folded(left), folded(right), "{left} {right}");
        }
        for (left, right) in [("a", "b"), ("a", "\u{e4}"), ("\u{fb01}", "\u{fb02}")] {
            assert_ne!(folded(left), folded(right), "{left} {right}");
        }
    }

    #[test]
    fn each_collision_is_told_with_the_first_of_its_kind() {
        assert_eq!(collisions(&["B", "a", "b", "c"]), [(0, 2)]);
        assert_eq!(collisions(&["AB", "Ab", "aB", "x"]), [(0, 1), (0, 2)]);
        assert_eq!(collisions(&["a", "b"]), []);
        assert_eq!(collisions(&[]), []);
    }

    #[test]
    fn secrets_are_known_by_name() {
        for (parent, name) in [
            ("", ".env"),
            ("x", ".env.production"),
            ("", ".env.local"),
            ("", ".netrc"),
            (".ssh", "id_ed25519"),
            (".aws", "credentials"),
            (".gnupg", "secring.gpg"),
            ("", ".git-credentials"),
        ] {
            assert!(
                secret_name(parent.as_bytes(), name.as_bytes()).is_some(),
                "{name}"
            );
        }
        for (parent, name) in [
            ("", ".env.example"),
            ("", ".env.local.example"),
            ("", ".envrc"),
            ("", "env"),
            ("", "id_ed25519.pub"),
            ("src", "credentials"),
            ("", "config.json"),
        ] {
            assert_eq!(
                secret_name(parent.as_bytes(), name.as_bytes()),
                None,
                "{name}"
            );
        }
    }

    #[test]
    fn private_keys_are_known_by_how_they_begin() {
        for text in [
            "-----BEGIN PRIVATE KEY-----\nMC4CAQ",
            "-----BEGIN RSA PRIVATE KEY-----\r\n",
            "-----BEGIN EC PRIVATE KEY-----",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
            "-----BEGIN PGP PRIVATE KEY BLOCK-----\n",
            "Bag Attributes\n  x: y\n-----BEGIN PRIVATE KEY-----\n",
            "PuTTY-User-Key-File-3: ssh-ed25519\n",
            "# created: today\nAGE-SECRET-KEY-1QQQ\n",
            "untrusted comment: minisign encrypted secret key\n",
        ] {
            assert!(secret_content(text.as_bytes()).is_some(), "{text}");
        }
        for text in [
            "",
            "-----BEGIN CERTIFICATE-----\n",
            "-----BEGIN PUBLIC KEY-----\n",
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
            "if line == \"-----BEGIN PRIVATE KEY-----\":\n",
            "the PRIVATE KEY is elsewhere",
        ] {
            assert_eq!(secret_content(text.as_bytes()), None, "{text}");
        }
        let mut late = vec![b'\n'; HEAD_BYTES];
        late.extend_from_slice(b"-----BEGIN PRIVATE KEY-----\n");
        assert_eq!(secret_content(&late), None);
    }
}
