//! The words of `GET /changes`, which a manifs daemon answers when its registry has changed.
//!
//! Without `since` it answers at once with the cursor of now. With `since=CURSOR` it answers when its cursor is
//! another one, or with the same cursor after [`HOLD`]. A cursor is opaque to whoever asks: a restarted daemon begins
//! with new ones, and any difference means "look again".

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an unchanged registry holds a question back.
pub const HOLD: Duration = Duration::from_secs(30);

/// The longest cursor, in bytes.
const CURSOR_BYTES_MAX: usize = 64;

/// The value of `format`.
const FORMAT: &str = "manifs-changes/1";

/// The largest answer that is read, in bytes.
pub(super) const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// A moment in the life of another daemon's registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor(String);

/// Not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is at most {CURSOR_BYTES_MAX} letters, digits and hyphens")]
pub struct CursorSyntax;

impl Cursor {
    /// Makes the cursor of change `count` of a daemon's `life`, a number of its own for each start.
    pub fn new(life: u64, count: u64) -> Self {
        Cursor(format!("{life:016x}-{count}"))
    }
}

impl FromStr for Cursor {
    type Err = CursorSyntax;

    fn from_str(text: &str) -> Result<Self, CursorSyntax> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.is_empty() || text.len() > CURSOR_BYTES_MAX || !text.bytes().all(fits) {
            return Err(CursorSyntax);
        }
        Ok(Cursor(text.to_owned()))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Serialize, Deserialize)]
struct Answer<'a> {
    format: std::borrow::Cow<'a, str>,
    cursor: std::borrow::Cow<'a, str>,
}

/// Writes an answer.
pub fn answer(cursor: &Cursor) -> String {
    format!("{{\"format\": \"{FORMAT}\", \"cursor\": \"{cursor}\"}}\n")
}

/// Reads an answer; `None` when it is none, so that the server is no manifs daemon.
pub fn parse(bytes: &[u8]) -> Option<Cursor> {
    let answer: Answer<'_> = serde_json::from_slice(bytes).ok()?;
    if answer.format != FORMAT {
        return None;
    }
    answer.cursor.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_are_written() {
        let cursor = Cursor::new(7, 12);
        assert_eq!(cursor.to_string(), "0000000000000007-12");
        assert_eq!(parse(answer(&cursor).as_bytes()), Some(cursor));
    }

    #[test]
    fn other_answers_are_none() {
        for text in [
            "",
            "<html>",
            "[]",
            r#"{"cursor":"1"}"#,
            r#"{"format":"manifs-changes/2","cursor":"1"}"#,
            r#"{"format":"manifs-changes/1","cursor":1}"#,
            r#"{"format":"manifs-changes/1","cursor":""}"#,
            r#"{"format":"manifs-changes/1","cursor":"a&b"}"#,
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        let long = "a".repeat(CURSOR_BYTES_MAX);
        assert!(long.parse::<Cursor>().is_ok());
        assert!(format!("{long}a").parse::<Cursor>().is_err());
    }
}
