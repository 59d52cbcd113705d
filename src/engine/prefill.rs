//! Prompts in passes: how long one is, and what is done with its logits.

use std::time::Instant;

use super::output::Output;
use super::{Engine, Sequence, Wanted};
use crate::backend::Tensor;
use crate::error::{Error, Result};

/// Rows of one forward pass over a prompt: the first pass, and the most and least of a later one.
pub(super) const FIRST_ROWS: usize = 64;
pub(super) const MOST_ROWS: usize = 512;
pub(super) const LEAST_ROWS: usize = 16;
/// How long a pass over a part of a prompt should take: progress is shown, and an interruption seen, between passes.
pub(super) const PASS_SECONDS: f64 = 1.0;

/// About so many rows: whole sixty-fours, or sixteens of a few. Products read weights once for so many, and what is left of
/// sixteen takes longer than its part.
pub(super) fn whole(rows: usize) -> usize {
    rows.next_multiple_of(if rows > FIRST_ROWS / 2 { FIRST_ROWS } else { LEAST_ROWS })
}

impl Engine {
    /// Appends a prompt in passes of about a second; returns the logits of its last token, `[1, vocab]`.
    ///
    /// `progress` is told how many tokens are done, and says whether to go on: `None` is returned if not.
    ///
    /// # Errors
    /// As [`Engine::forward`]; also if `tokens` is empty.
    pub fn prefill(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Tensor>> {
        self.prefill_batch(&mut [(sequence, tokens)], progress)
    }

    /// As [`Engine::prefill`], a prompt to each of several sequences at once: in every pass, each prompt that is not done
    /// has an equal share of the rows. Returns the logits of their last tokens, `[prompts, vocab]`.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub fn prefill_batch(
        &mut self,
        prompts: &mut [(&mut Sequence, &[u32])],
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Tensor>> {
        Ok(self.prefill_for(prompts, Wanted::Last, progress)?.map(|output| output.logits))
    }

    /// As [`Engine::prefill_batch`], where of every prompt's last token this is wanted: logits, or the token that follows.
    ///
    /// # Errors
    /// As [`Engine::prefill`].
    pub(super) fn prefill_for(
        &mut self,
        prompts: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Output>> {
        let mut rest: Vec<(usize, &mut Sequence, &[u32])> = Vec::new();
        for (prompt, (sequence, tokens)) in prompts.iter_mut().enumerate() {
            rest.push((prompt, sequence, tokens));
        }
        if rest.is_empty() || rest.iter().any(|(.., tokens)| tokens.is_empty()) {
            return Err(Error::msg("the prompt has no tokens").hint("give some text with --prompt"));
        }
        let mut output = Output::zeros(rest.len(), self.model.geometry.vocab, wanted);
        let (mut done, mut rows, grain) = (0, FIRST_ROWS, self.grain());
        loop {
            let share = (rows / rest.len() / grain).max(1) * grain;
            let ends = rest.iter().any(|(.., tokens)| cut(tokens.len(), share, grain) == tokens.len());
            let pass = rest.iter_mut();
            let pass = pass.map(|(_, sequence, tokens)| (&mut **sequence, &tokens[..cut(tokens.len(), share, grain)]));
            let mut pass: Vec<(&mut Sequence, &[u32])> = pass.collect();
            let (count, start) = (pass.iter().map(|(_, tokens)| tokens.len()).sum::<usize>(), Instant::now());
            // a pass that wants nothing back lets the next one begin while later stages still work on it
            let last = self.pass(&mut pass, if ends { wanted } else { Wanted::Nothing }, None)?;
            // how a prompt is cut changes no bit of the logits
            let rate = count as f64 / start.elapsed().as_secs_f64().max(1e-9);
            rows = whole(((rate * PASS_SECONDS) as usize).clamp(LEAST_ROWS, MOST_ROWS));
            for (row, (prompt, _, tokens)) in rest.iter_mut().enumerate() {
                let count = cut(tokens.len(), share, grain);
                if tokens.len() == count {
                    output.copy_row(*prompt, &last, row);
                }
                *tokens = &tokens[count..];
            }
            rest.retain(|(.., tokens)| !tokens.is_empty());
            done += count;
            if !progress(done) {
                return Ok(None);
            }
            if rest.is_empty() {
                return Ok(Some(output));
            }
        }
    }

    /// Appends `tokens` in chunks and hands every chunk's logits (`[rows, vocab]`) to `each`.
    ///
    /// # Errors
    /// As [`Engine::forward`], or what `each` returns.
    pub fn logits(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[u32],
        each: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let (mut rest, grain) = (tokens, self.grain());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(cut(rest.len(), MOST_ROWS / 2, grain));
            let logits = self.forward(&mut [(&mut *sequence, chunk)], Wanted::All, None)?;
            each(&logits)?;
            rest = after;
        }
        Ok(())
    }
}

/// How many of `len` tokens a pass takes that has room for `share`, which is a multiple of `grain`.
fn cut(len: usize, share: usize, grain: usize) -> usize {
    match len {
        _ if len > share => share,
        _ if len > grain => len / grain * grain,
        _ => len,
    }
}
