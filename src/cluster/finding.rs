//! Something that is wrong with a host, the command that mends it, and the one that undoes that.

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A run works, but not as well as it could.
    Warning,
    /// A run would fail.
    Error,
}

/// Something that is wrong, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// Where.
    pub host: String,
    /// What is wrong.
    pub what: String,
    /// What mends it: a command, or what to do with one's hands.
    pub fix: String,
    /// What takes the mending back.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undo: Option<String>,
}

impl Finding {
    /// A finding whose mending needs no undoing.
    pub fn new(level: Level, host: &str, what: impl ToString, fix: impl ToString) -> Self {
        let (host, what, fix) = (host.to_owned(), what.to_string(), fix.to_string());
        Self { level, host, what, fix, undo: None }
    }
}

/// `error: mac1: …`, and below it what to do.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = if self.level == Level::Error { "error" } else { "warning" };
        write!(f, "{level}: {}: {}\n  fix: {}", self.host, self.what, self.fix)?;
        self.undo.iter().try_for_each(|undo| write!(f, "\n  undo: {undo}"))
    }
}
