//! What is told of sources and their peers, for programs and in a sentence.

use serde::{Deserialize, Serialize};

/// What is known of a source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its URL or path.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Blocks it delivered.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times it had not got a block.
    #[serde(default)]
    pub missing: u64,
    /// Times another one was faster.
    #[serde(default)]
    pub beaten: u64,
    /// Times it failed.
    pub failures: u64,
    /// Times it lied.
    pub lies: u64,
    /// Blocks it is asked for at this moment.
    #[serde(default)]
    pub in_flight: u64,
    /// Its usual time for a block, in milliseconds.
    pub usual_ms: Option<u64>,
    /// How long it will not be asked, in milliseconds.
    #[serde(default)]
    pub resting_ms: Option<u64>,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// The peers that it consists of, who gave most first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerStatus>,
}

/// What is known of a peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its host and port.
    pub name: String,
    /// Its program, as it says.
    pub client: Option<String>,
    /// Right blocks that came from it, wholly or in part.
    pub blocks: u64,
    /// The bytes of them that came from it.
    pub bytes: u64,
    /// Connections that ended badly.
    pub failures: u64,
    /// Wrong answers.
    pub lies: u64,
    /// The least time in which it answered a request, in milliseconds.
    pub answer_ms: Option<u64>,
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether it is not asked any more, because it lied.
    pub banned: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

impl SourceStatus {
    /// Says it all in one line.
    pub fn sentence(&self) -> String {
        let mut text = format!(
            "{} ({}): {} in {} blocks",
            self.name,
            self.kind,
            indicatif::BinaryBytes(self.bytes),
            self.blocks
        );
        let mut add = |more: String| {
            text.push_str(", ");
            text.push_str(&more);
        };
        if let Some(ms) = self.usual_ms {
            add(format!("usually {ms} ms a block"));
        }
        for (count, what) in [
            (self.in_flight, "asked for now"),
            (self.missing, "not there"),
            (self.failures, "failures"),
            (self.lies, "lies"),
        ] {
            if count > 0 {
                add(format!("{count} {what}"));
            }
        }
        if let Some(ms) = self.resting_ms {
            add(format!("left alone for {} s", ms.div_ceil(1000)));
        }
        if let Some(error) = &self.last_error {
            add(format!("last: {error}"));
        }
        text
    }
}

impl PeerStatus {
    /// Says it all in one line.
    pub fn sentence(&self) -> String {
        let client = self.client.as_deref().unwrap_or("unknown program");
        let state = match self {
            _ if self.banned => ", not asked any more: it lied".to_owned(),
            _ if self.connected => ", connected".to_owned(),
            _ => match &self.last_error {
                Some(error) => format!(", {error}"),
                None => String::new(),
            },
        };
        let answer = self
            .answer_ms
            .map(|ms| format!(", answers in {ms} ms"))
            .unwrap_or_default();
        format!(
            "{} ({client}): {} in {} blocks{answer}{state}",
            self.name,
            indicatif::BinaryBytes(self.bytes),
            self.blocks
        )
    }
}
