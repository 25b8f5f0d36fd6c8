//! Why something cannot be published: one reason each, with all the paths it holds for.
//!
//! A tree with one bad name tends to have many, so the walk goes on after the first and the user is told of all
//! of them at once, up to [`SHOWN_PER_REASON`] paths each and a count of the rest.

use std::collections::BTreeMap;
use std::fmt;

/// How many paths of one reason are kept and shown; the rest is counted.
pub const SHOWN_PER_REASON: usize = 20;

/// Why a path cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It is a block or character device.
    Device,
    /// It is a socket.
    Socket,
    /// It is a FIFO.
    Fifo,
    /// Its name is not UTF-8.
    Encoding,
    /// It is a symlink that leaves the package.
    Link,
    /// Another name in its directory differs only in case or in Unicode normalisation.
    Case,
    /// It is likely a secret: by its name or by how its content begins.
    Secret,
    /// It changed while it was being read.
    Changed,
    /// It lies in a mount of manifs.
    Mount,
    /// It lies on another mount than the directory that was dropped.
    OtherMount,
    /// It does not belong to the owner of the directory that was dropped.
    Owner,
    /// It is a home of manifs: the store would be published into itself.
    Home,
    /// Its name is reserved in a package's root.
    Reserved,
    /// It cannot be read.
    Unreadable,
    /// It lies deeper than a catalog goes.
    Depth,
    /// Its path is longer than a catalog allows.
    Length,
    /// It is larger than a file may be.
    Size,
    /// Its modification time does not fit a catalog.
    Time,
}

impl Reason {
    /// Returns what goes with `--allow` to publish it all the same; `None` where nothing does.
    pub const fn allow(self) -> Option<&'static str> {
        match self {
            Reason::Link => Some("links"),
            Reason::Case => Some("case"),
            Reason::Secret => Some("secrets"),
            _ => None,
        }
    }

    /// Returns what can be done about it.
    pub const fn hint(self) -> &'static str {
        match self {
            Reason::Device | Reason::Socket | Reason::Fifo => {
                "only files, directories and symlinks can be published"
            }
            Reason::Encoding => "rename it",
            Reason::Link => "make the link relative and inside the package, or pass --allow links",
            Reason::Case => "rename one: they are one name on some systems; or pass --allow case",
            Reason::Secret => "take it out of the tree, or pass --allow secrets",
            Reason::Changed => "publish again when nothing writes to it",
            Reason::Mount => "copy it out of the mount first",
            Reason::OtherMount => "copy it into the directory",
            Reason::Owner => "copy it, so that it is yours",
            Reason::Home => "publish a directory that does not contain the home",
            Reason::Reserved => "rename it",
            Reason::Unreadable => "make it readable for the user that publishes",
            Reason::Depth | Reason::Length => "flatten the tree",
            Reason::Size => "split the file",
            Reason::Time => "set its time, or pass --mtime",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Device => "a device",
            Reason::Socket => "a socket",
            Reason::Fifo => "a FIFO",
            Reason::Encoding => "a name that is not UTF-8",
            Reason::Link => "a symlink that leaves the package",
            Reason::Case => "names that differ only in case or Unicode normalisation",
            Reason::Secret => "likely a secret",
            Reason::Changed => "changed while it was read",
            Reason::Mount => "inside a mount of manifs",
            Reason::OtherMount => "on another mount than the directory",
            Reason::Owner => "not owned by the owner of the directory",
            Reason::Home => "a home of manifs",
            Reason::Reserved => "a name that is reserved in a package's root",
            Reason::Unreadable => "cannot be read",
            Reason::Depth => "deeper than 255 directories",
            Reason::Length => "a path longer than 4096 bytes",
            Reason::Size => "larger than 2^50 bytes",
            Reason::Time => "a modification time outside the years 1677 to 2262",
        })
    }
}

/// One refused path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The path below the package's root, raw bytes; empty for the root itself.
    pub path: Vec<u8>,
    /// What more there is to say: a link's target, the other name, the error. Raw bytes; may be empty.
    pub detail: Vec<u8>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(".")?;
        } else {
            write_escaped(f, &self.path)?;
        }
        if !self.detail.is_empty() {
            f.write_str(" (")?;
            write_escaped(f, &self.detail)?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Writes bytes from a file system so that no terminal acts on them and no line breaks.
pub(crate) fn write_escaped(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            let bidi = matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if char.is_control() || bidi {
                write!(f, "{}", char.escape_unicode())?;
            } else {
                write!(f, "{char}")?;
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// The refused paths of one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The first of them, in the order of the walk, at most [`SHOWN_PER_REASON`].
    pub shown: Vec<Refused>,
    /// How many there are in all.
    pub count: u64,
}

/// Everything in a tree that cannot be published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals(BTreeMap<Reason, Group>);

impl Refusals {
    /// Returns whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a path.
    pub(crate) fn add(&mut self, reason: Reason, path: &[u8], detail: &[u8]) {
        let group = self.0.entry(reason).or_default();
        group.count += 1;
        if group.shown.len() < SHOWN_PER_REASON {
            group.shown.push(Refused {
                path: path.to_vec(),
                detail: detail.to_vec(),
            });
        }
    }

    /// Returns the reasons with their paths.
    pub fn groups(&self) -> impl Iterator<Item = (Reason, &Group)> {
        self.0.iter().map(|(reason, group)| (*reason, group))
    }

    /// Returns the paths of one reason.
    pub fn group(&self, reason: Reason) -> Option<&Group> {
        self.0.get(&reason)
    }

    /// Returns one hint a reason.
    pub fn hints(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().map(|reason| reason.hint())
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (reason, group)) in self.groups().enumerate() {
            if at > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{reason}: ")?;
            for (at, refused) in group.shown.iter().enumerate() {
                if at > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{refused}")?;
            }
            let more = group.count - group.shown.len() as u64;
            if more > 0 {
                write!(f, " and {more} more")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_twenty_and_counts_the_rest() {
        let mut refusals = Refusals::default();
        assert!(refusals.is_empty());
        for index in 0..SHOWN_PER_REASON + 3 {
            refusals.add(Reason::Fifo, format!("f{index}").as_bytes(), b"");
        }
        let group = refusals.group(Reason::Fifo).unwrap();
        assert_eq!(group.shown.len(), SHOWN_PER_REASON);
        assert_eq!(group.count, SHOWN_PER_REASON as u64 + 3);
        assert!(refusals.to_string().starts_with("a FIFO: f0, f1, "));
        assert!(refusals.to_string().ends_with("f19 and 3 more"));
    }

    #[test]
    fn names_from_the_disk_do_nothing_to_a_terminal() {
        let mut refusals = Refusals::default();
        refusals.add(Reason::Encoding, b"a\x1b[31m\n\xff\xe2\x80\xae", b"");
        assert_eq!(
            refusals.to_string(),
            "a name that is not UTF-8: a\\u{1b}[31m\\u{a}\\xff\\u{202e}"
        );
    }

    #[test]
    fn a_flag_is_named_exactly_where_there_is_one() {
        for reason in [Reason::Link, Reason::Case, Reason::Secret] {
            let flag = format!("--allow {}", reason.allow().unwrap());
            assert!(reason.hint().contains(&flag), "{reason}");
        }
        assert!(!Reason::Device.hint().contains("--allow"));
    }
}
