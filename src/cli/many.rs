//! The flags of commands that run many answers at once.

use std::sync::Arc;

use clap::Args;

use super::load::{Loaded, ModelArgs};
use crate::api::Texts;
use crate::engine::Limits;
use crate::error::{Error, Result};

/// Sequences at once at most: more are a slip of the finger.
const MOST: usize = 4096;

/// Recurrent states kept for prompts that begin like others, at most: one of a large model has 150 MB.
const KEPT_STATES: usize = 8;

/// How many at once, and in how much memory.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Many at once")]
pub(super) struct ManyArgs {
    /// Answers at once at most; memory is set aside for as many
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub(super) max_concurrency: usize,
    /// Tokens that all answers at once have room for in the KV cache [default: --ctx times --max-concurrency, or what free memory has room for]
    #[arg(long, value_name = "N")]
    pub(super) cache_tokens: Option<usize>,
    /// Compute every prompt whole, even where it begins like another
    #[arg(long)]
    pub(super) no_prefix_cache: bool,
}

impl ManyArgs {
    /// The model with room for as many.
    pub(super) fn over(&self, model: &ModelArgs) -> Result<ModelArgs> {
        if !(1..=MOST).contains(&self.max_concurrency) {
            let error = format!("--max-concurrency {} is not one of 1..={MOST}", self.max_concurrency);
            return Err(Error::usage(error).hint("16 is the default"));
        }
        let sequences = self.max_concurrency;
        let kept_states = if self.no_prefix_cache { 0 } else { sequences.min(KEPT_STATES) };
        Ok(ModelArgs { sequences, kept_states, cache_tokens: self.cache_tokens, ..model.clone() })
    }

    /// What the scheduler may use.
    pub(super) fn limits(&self) -> Limits {
        Limits { shares: !self.no_prefix_cache, ..Limits::default() }
    }
}

/// What requests to a loaded model, called `name`, need of it.
pub(super) fn texts(loaded: &mut Loaded, name: String) -> Result<Texts> {
    loaded.tokenizer()?;
    let tokenizer = loaded.tokenizer.take().ok_or_else(|| Error::msg("there is no tokenizer"))?;
    let texts = Texts::new(name, Arc::new(tokenizer), loaded.template.take().map(Arc::new));
    let (context, vocab) = (loaded.engine.context(), loaded.engine.model().geometry.vocab);
    Ok(Texts { defaults: loaded.defaults.clone(), context, vocab, ..texts })
}
