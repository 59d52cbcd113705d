//! A model over HTTP: OpenAI's endpoints, a page to chat on, and metrics.
//!
//! ```text
//! connection ── gate ── routes ── answer ──▶ desk ──▶ work        one thread owns the engine and its scheduler
//!   a task a client      │          ▲                  │
//!                      record       └──── news ────────┘          an errand's updates, over a channel of its own
//! ```
//!
//! Whoever starts the engine's thread says how it is: loading, ready, relaunching ([`Desk`]). The runtime of async tasks
//! is in this room alone.

mod answer;
mod connection;
mod desk;
mod events;
mod gate;
mod health;
mod line;
mod metrics;
mod page;
mod record;
mod refuse;
mod routes;
mod work;

use std::time::Duration;

pub use connection::{Ended, serve};
pub use desk::{Desk, Phase};
pub use metrics::Metrics;
pub use record::{Entry, Log};
pub use work::work;

/// What clients may and may not.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Keys of which a client must have one; none are needed if there are none.
    pub keys: Vec<String>,
    /// Origins whose pages may ask, `*` for all.
    pub origins: Vec<String>,
    /// What a request may call this server in its `Host`; anything if `None`.
    pub names: Option<Vec<String>>,
    /// Bytes of a request's body at most.
    pub max_body: usize,
    /// How long a request's headers may take, its body, and the pause between two requests of a connection.
    pub patience: Duration,
    /// How long an answer may take until its last byte has been read.
    pub request: Duration,
    /// How long running answers may take once the server is to end.
    pub drain: Duration,
}
