//! Sequences on a model: their slots and pages, and forward passes over them.

use std::time::Instant;

use super::pages::PagePool;
use crate::backend::{Backend, Batch, LayerState, Tensor};
use crate::comm::Communicator;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::Observer;

/// Rows of one forward pass over a prompt: the first pass, and the most and least of a later one.
const FIRST_ROWS: usize = 64;
const MOST_ROWS: usize = 512;
const LEAST_ROWS: usize = 16;
/// How long a pass over a part of a prompt should take: progress is shown, and an interruption seen, between passes.
const PASS_SECONDS: f64 = 0.5;

/// A model with room for sequences.
pub struct Engine {
    model: Model,
    backend: Box<dyn Backend>,
    comm: Communicator,
    states: Vec<LayerState>,
    pages: PagePool,
    slots: Vec<usize>,
    context: usize,
}

/// One sequence: how many positions it has, and where they are kept.
#[derive(Debug)]
pub struct Sequence {
    slot: usize,
    len: usize,
    pages: Vec<u32>,
}

impl Sequence {
    /// Positions that were run.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was run yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The rows whose logits a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The last row of every run.
    Last,
    /// Every row.
    All,
}

impl Engine {
    /// Makes room for `slots` sequences of up to `context` positions each.
    ///
    /// # Errors
    /// If the system has no room for their state.
    pub fn new(model: Model, backend: Box<dyn Backend>, context: usize, slots: usize) -> Result<Self> {
        let pages = PagePool::count(context, slots)?;
        let states = model.decoder.states(pages as usize, slots)?;
        let comm = Communicator::solo();
        let pages = PagePool::new(pages);
        Ok(Self { model, backend, comm, states, pages, slots: (0..slots).rev().collect(), context })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What runs the model, for people.
    pub fn backend_name(&self) -> String {
        self.backend.name()
    }

    /// Positions a sequence can have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Starts an empty sequence.
    ///
    /// # Errors
    /// If all slots are taken.
    pub fn start(&mut self) -> Result<Sequence> {
        let slot = self.slots.pop().ok_or_else(|| Error::msg("all sequence slots are taken").hint("end a sequence"))?;
        for state in &mut self.states {
            if let LayerState::Delta(store) = state {
                store.reset(slot);
            }
        }
        Ok(Sequence { slot, len: 0, pages: Vec::new() })
    }

    /// Ends a sequence.
    pub fn end(&mut self, mut sequence: Sequence) {
        self.pages.release(&mut sequence.pages);
        self.slots.push(sequence.slot);
    }

    /// Appends tokens to sequences and returns the logits that are wanted, run after run: `[rows, vocab]`.
    ///
    /// # Errors
    /// If a run has no tokens, a sequence would outgrow its context, a token is not in the vocabulary, or the logits are
    /// not numbers.
    pub fn forward(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        observer: Option<Observer<'_>>,
    ) -> Result<Tensor> {
        let (mut batch, mut ids, mut rows) = (Batch::default(), Vec::new(), Vec::new());
        for (sequence, tokens) in runs.iter_mut() {
            if tokens.is_empty() {
                return Err(Error::msg("a run has no tokens").hint("leave out sequences that have nothing to run"));
            }
            let len = sequence.len + tokens.len();
            if len > self.context {
                let error = format!("{len} positions do not fit a context of {}", self.context);
                return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
            }
            self.pages.extend(&mut sequence.pages, len)?;
            batch.push(sequence.slot, sequence.len, tokens.len(), &sequence.pages);
            ids.extend_from_slice(tokens);
            match wanted {
                Wanted::All => rows.extend(ids.len() - tokens.len()..ids.len()),
                Wanted::Last => rows.push(ids.len() - 1),
            }
        }
        let on = (self.backend.as_ref(), &mut self.comm);
        let logits = self.model.decoder.forward(&ids, &rows, &batch, &mut self.states, on, observer)?;
        for (sequence, tokens) in runs.iter_mut() {
            sequence.len += tokens.len();
        }
        if logits.data().iter().any(|logit| !logit.is_finite()) {
            return Err(self.model.explain_nan());
        }
        Ok(logits)
    }

    /// Appends a prompt in passes of about half a second; returns the logits of its last token, `[1, vocab]`.
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
        if tokens.is_empty() {
            return Err(Error::msg("the prompt has no tokens").hint("give some text with --prompt"));
        }
        let (mut done, mut rows) = (0, FIRST_ROWS);
        loop {
            let pass = &tokens[done..(done + rows).min(tokens.len())];
            let start = Instant::now();
            let logits = self.forward(&mut [(&mut *sequence, pass)], Wanted::Last, None)?;
            // how a prompt is cut changes no bit of the logits
            let rate = pass.len() as f64 / start.elapsed().as_secs_f64().max(1e-9);
            rows = ((rate * PASS_SECONDS) as usize).clamp(LEAST_ROWS, MOST_ROWS);
            done += pass.len();
            if !progress(done) {
                return Ok(None);
            }
            if done == tokens.len() {
                return Ok(Some(logits));
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
        for chunk in tokens.chunks(MOST_ROWS / 2) {
            let logits = self.forward(&mut [(&mut *sequence, chunk)], Wanted::All, None)?;
            each(&logits)?;
        }
        Ok(())
    }
}
