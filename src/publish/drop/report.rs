//! What a status file says: one word and the time, then lines for people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::Timestamp;
use crate::publish::refusal::{Reason, Refusals};

/// How an entry stands, in one word: the first of its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Somebody puts it there.
    Arriving,
    /// It is committed, and has not begun.
    Committed,
    /// It is being published.
    Publishing,
    /// Something that passes by itself is in the way.
    Waiting,
    /// It is a version.
    Published,
    /// The version was there with the same content.
    Unchanged,
    /// It is not published before somebody does something.
    Refused,
}

impl Word {
    const ALL: [Word; 7] = [
        Word::Arriving,
        Word::Committed,
        Word::Publishing,
        Word::Waiting,
        Word::Published,
        Word::Unchanged,
        Word::Refused,
    ];

    /// Returns whether it says that the entry was committed and has come to no end.
    pub const fn is_under_way(self) -> bool {
        matches!(self, Word::Committed | Word::Publishing | Word::Waiting)
    }

    /// Returns whether it says that there is a version.
    pub const fn is_version(self) -> bool {
        matches!(self, Word::Published | Word::Unchanged)
    }

    /// Returns the word.
    pub const fn text(self) -> &'static str {
        match self {
            Word::Arriving => "arriving",
            Word::Committed => "committed",
            Word::Publishing => "publishing",
            Word::Waiting => "waiting",
            Word::Published => "published",
            Word::Unchanged => "unchanged",
            Word::Refused => "refused",
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// How an entry stands, and what there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In one word.
    pub word: Word,
    /// Lines for people.
    pub lines: Vec<String>,
}

impl Report {
    /// Puts the two together.
    pub fn new(word: Word, lines: Vec<String>) -> Report {
        Report { word, lines }
    }

    /// Reads the text of a status file, and when it was so.
    pub(super) fn parse(text: &str) -> Option<(Report, Timestamp)> {
        let (first, rest) = text.split_once('\n')?;
        let (word, at) = first.split_once(' ')?;
        let word = Word::ALL.into_iter().find(|known| known.text() == word)?;
        let lines = rest.lines().map(str::to_owned).collect();
        Some((Report::new(word, lines), at.parse().ok()?))
    }

    /// Returns the text of the status file.
    pub fn text(&self, now: Timestamp) -> String {
        let mut text = format!("{} {now}\n", self.word);
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Returns what can be done about a reason where there is no command line to say `--allow` on.
fn hint(reason: Reason) -> &'static str {
    match reason {
        Reason::Link => {
            "make the link relative and inside the directory, or publish by hand with --allow links"
        }
        Reason::Case => {
            "rename one: they are one name on some systems; or publish by hand with --allow case"
        }
        Reason::Secret => "take it out, or publish by hand with --allow secrets",
        Reason::Time => "set its time with touch",
        Reason::Changed => "wait until nothing writes to it",
        other => other.hint(),
    }
}

/// Tells every reason with its paths and what to do.
pub fn refusal_lines(refusals: &Refusals) -> Vec<String> {
    let mut lines = Vec::new();
    for (reason, group) in refusals.groups() {
        for refused in &group.shown {
            lines.push(format!("- {refused}: {reason}"));
        }
        let more = group.count - group.shown.len() as u64;
        if more > 0 {
            lines.push(format!("- and {more} more: {reason}"));
        }
        lines.push(format!("  what to do: {}", hint(reason)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_told_with_its_paths_and_what_to_do() {
        let mut refusals = Refusals::default();
        refusals.add(Reason::Secret, b".env", b"environment file");
        refusals.add(Reason::Fifo, b"a\nb", b"");
        for nth in 0..22 {
            refusals.add(Reason::Link, format!("l{nth}").as_bytes(), b"-> /etc");
        }
        let report = Report::new(Word::Refused, refusal_lines(&refusals));
        let text = report.text(Timestamp::from_unix_seconds(0));
        assert!(text.starts_with("refused 1970-01-01T00:00:00Z\n"), "{text}");
        for line in [
            "- .env (environment file): likely a secret",
            "  what to do: take it out, or publish by hand with --allow secrets",
            "- a\\u{a}b: a FIFO",
            "- l19 (-> /etc): a symlink that leaves the package",
            "- and 2 more: a symlink that leaves the package",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let read = Report::parse(&text);
        assert_eq!(read, Some((report, Timestamp::from_unix_seconds(0))));
        for bad in ["", "refused", "refused \n", "lost 1970-01-01T00:00:00Z\n"] {
            assert_eq!(Report::parse(bad), None, "{bad}");
        }
    }
}
