//! Why a request is not run, as OpenAI's clients read it.

use std::fmt::Display;

use serde_json::{Value, json};

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status of HTTP.
    pub status: u16,
    /// What is wrong, and what would be right.
    pub message: String,
    /// The key it is about: `messages[0].content`.
    pub param: Option<String>,
    /// What kind of mistake, for programs.
    pub code: Option<String>,
}

impl Refusal {
    /// A refusal without a key.
    pub fn new(status: u16, message: impl Display) -> Self {
        Self { status, message: message.to_string(), param: None, code: None }
    }

    /// The value of a key is not one that can be.
    pub(super) fn of(param: impl Display, message: impl Display) -> Self {
        Self { param: Some(param.to_string()), ..Self::new(400, message) }
    }

    /// The same with a code.
    #[must_use]
    pub fn code(self, code: &str) -> Self {
        Self { code: Some(code.to_owned()), ..self }
    }

    /// The body of the response.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
