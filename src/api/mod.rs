//! OpenAI's chat and completions endpoints as pure data: a body becomes jobs for the scheduler, and what happens to them a reply.

mod prepare;
mod refusal;
mod reply;
mod request;
mod texts;

pub use prepare::{Order, prepare};
pub use refusal::Refusal;
pub use reply::{Progress, Reply};
pub use texts::{Stamp, Texts};

/// What a body is sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// A conversation.
    Chat,
    /// Plain text that is continued.
    Completions,
}

impl Endpoint {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Completions];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    /// The endpoint with this path.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }
}
