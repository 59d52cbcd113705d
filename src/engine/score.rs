//! How well a model predicts given tokens: perplexity and its standard error.

use serde::Serialize;

use super::Engine;
use super::logits::{log_sum, logit};
use crate::backend::Tensor;
use crate::error::{Error, Result};

/// The result of scoring a text.
#[derive(Debug, Clone, Serialize)]
pub struct Score {
    /// Tokens given.
    pub tokens: usize,
    /// Tokens predicted: all but the first of every window.
    pub predicted: usize,
    /// Mean negative log-likelihood a token, in nats.
    pub mean_nll: f64,
    /// exp(mean_nll).
    pub perplexity: f64,
    /// Standard error of the perplexity (delta method); one prediction has none.
    pub standard_error: Option<f64>,
}

/// Scores `tokens` in windows of the engine's context; `each` is handed all logits in order (`[rows, vocab]`).
///
/// # Errors
/// If there are fewer than two tokens or positions, or as [`Engine::forward`], or what `each` returns.
pub fn score(engine: &mut Engine, tokens: &[u32], each: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<Score> {
    if tokens.len() < 2 {
        let error = format!("{} tokens are too few to score, two are needed", tokens.len());
        return Err(Error::msg(error).hint("give a longer text"));
    }
    if engine.context() < 2 {
        let error = format!("a context of {} is too small to score, two positions are needed", engine.context());
        return Err(Error::msg(error).hint("raise --ctx"));
    }
    let mut losses = Vec::new();
    for window in tokens.chunks(engine.context()) {
        let mut sequence = engine.start()?;
        let mut targets = window[1..].iter();
        let result = engine.logits(&mut sequence, window, &mut |logits| {
            losses.extend(logits.rows_iter().zip(targets.by_ref()).map(|(row, target)| nll(row, *target)));
            each(logits)
        });
        engine.end(sequence);
        result?;
    }
    let count = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / count;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let perplexity = libm::exp(mean);
    let standard_error = (losses.len() > 1).then(|| perplexity * (variance / count).sqrt());
    Ok(Score { tokens: tokens.len(), predicted: losses.len(), mean_nll: mean, perplexity, standard_error })
}

/// −log softmax(logits)[target].
fn nll(logits: &[f32], target: u32) -> f64 {
    log_sum(logits) - logit(logits, target)
}
