//! Where a rank's time went: computing, waiting for others, moving bytes; in prompts and token by token.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::comm::Stats;
use crate::error::{Error, Result};

/// Forward passes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Passes.
    pub steps: u64,
    /// Tokens.
    pub tokens: u64,
    /// Time for all of it.
    pub total: Duration,
    /// Of it, waiting for other ranks.
    pub waited: Duration,
    /// Of it, packing, sending and summing what the ranks exchange.
    pub wire: Duration,
    /// Bytes sent.
    pub sent: u64,
}

impl Phase {
    /// Time spent computing.
    pub fn computed(&self) -> Duration {
        self.total.saturating_sub(self.waited + self.wire)
    }
}

/// What a rank did since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Passes over prompts.
    pub prompt: Phase,
    /// Passes of one token a sequence.
    pub decode: Phase,
}

impl Usage {
    /// Counts a pass over `tokens` tokens; `spans` is the wire before and after each part of it.
    pub(super) fn add(&mut self, decode: bool, tokens: usize, total: Duration, spans: [(&Stats, &Stats); 2]) {
        let phase = if decode { &mut self.decode } else { &mut self.prompt };
        phase.steps += 1;
        phase.tokens += tokens as u64;
        phase.total += total;
        for (before, after) in spans {
            phase.waited += after.waited - before.waited;
            phase.wire += after.worked - before.worked;
            phase.sent += after.sent - before.sent;
        }
    }
}

/// What a rank tells about itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Bytes of weights that it owns.
    pub bytes: u64,
    /// Bytes of the whole model's weights.
    pub whole: u64,
    /// Bytes that a position of a sequence takes of its KV cache.
    pub position: u64,
    /// What it did.
    pub usage: Usage,
}

impl Report {
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(Error::from_std)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(Error::from_std)
    }
}
