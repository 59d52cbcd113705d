//! Sequences on a model: their slots and pages, and forward passes over them.

use std::time::Instant;

use super::command::{Command, MAX_BYTES};
use super::pages::PagePool;
use super::usage::{Report, Usage};
use crate::backend::{Backend, Batch, LayerState, Tensor};
use crate::comm::Ranks;
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
    ranks: Ranks,
    states: Vec<LayerState>,
    pages: PagePool,
    slots: Vec<usize>,
    context: usize,
    usage: Usage,
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
    /// None: the prompt goes on.
    Nothing,
    /// The last row of every run.
    Last,
    /// Every row.
    All,
}

impl Engine {
    /// Makes room for `slots` sequences of up to `context` positions each, on one rank.
    ///
    /// # Errors
    /// If the system has no room for their state.
    pub fn new(model: Model, backend: Box<dyn Backend>, context: usize, slots: usize) -> Result<Self> {
        Self::with_ranks(model, backend, context, slots, Ranks::solo())
    }

    /// As [`Engine::new`], as one of the ranks that the model was loaded for. Rank 0 is used as if it were alone, the
    /// others [`Engine::follow`].
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_ranks(
        model: Model,
        backend: Box<dyn Backend>,
        context: usize,
        slots: usize,
        ranks: Ranks,
    ) -> Result<Self> {
        let pages = super::pages(context, slots)?;
        let states = model.decoder.states(backend.as_ref(), pages, slots)?;
        let pages = PagePool::new(pages);
        Ok(Self {
            model,
            backend,
            ranks,
            states,
            pages,
            slots: (0..slots).rev().collect(),
            context,
            usage: Usage::default(),
        })
    }

    /// Does what rank 0 says until it says that the run is over.
    ///
    /// # Errors
    /// If a rank is lost, or rank 0 sends what is no command.
    pub fn follow(&mut self) -> Result<()> {
        let mut sequences: Vec<Option<Sequence>> = Vec::new();
        let unknown = |slot| Error::msg(format!("rank 0 names the slot {slot}, where there is no sequence"));
        loop {
            match Command::decode(&self.ranks.world.broadcast_bytes(Vec::new(), MAX_BYTES)?)? {
                Command::Start(slot) => {
                    let sequence = self.begin(slot)?;
                    sequences.resize_with(sequences.len().max(slot + 1), || None);
                    sequences[slot] = Some(sequence);
                }
                Command::End(slot) => {
                    let sequence = sequences.get_mut(slot).and_then(Option::take);
                    self.forget(sequence.ok_or_else(|| unknown(slot))?);
                }
                Command::Forward(runs, wanted) => {
                    let mut taken = Vec::new();
                    for (slot, tokens) in &runs {
                        let sequence = sequences.get_mut(*slot).and_then(Option::take);
                        taken.push((sequence.ok_or_else(|| unknown(*slot))?, &tokens[..]));
                    }
                    let mut borrowed: Vec<(&mut Sequence, &[u32])> =
                        taken.iter_mut().map(|(sequence, tokens)| (sequence, *tokens)).collect();
                    self.step(&mut borrowed, wanted, None)?;
                    for (sequence, _) in taken {
                        let slot = sequence.slot;
                        sequences[slot] = Some(sequence);
                    }
                }
                Command::Report => {
                    self.reports()?;
                }
                Command::Stop => return Ok(()),
            }
        }
    }

    /// Tells the other ranks that the run is over.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn stop(&mut self) -> Result<()> {
        self.tell(&Command::Stop)?;
        if self.ranks.world.world_size() > 1 { self.ranks.world.flush() } else { Ok(()) }
    }

    fn tell(&self, command: &Command) -> Result<()> {
        if self.ranks.world.world_size() > 1 {
            self.ranks.world.broadcast_bytes(command.encode(), MAX_BYTES)?;
        }
        Ok(())
    }

    /// What every rank did so far, on rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn reports(&mut self) -> Result<Vec<Report>> {
        if self.ranks.world.rank() == 0 {
            self.tell(&Command::Report)?;
        }
        let own = Report {
            bytes: self.model.share.bytes(),
            whole: self.model.whole,
            position: self.model.decoder.position_bytes(),
            usage: self.usage,
        };
        self.ranks.world.busy(true)?;
        let all = self.ranks.world.gather_bytes(&own.encode()?, MAX_BYTES)?;
        self.ranks.world.busy(false)?;
        all.iter().map(|bytes| Report::decode(bytes)).collect()
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
    /// If all slots are taken, or a rank is lost.
    pub fn start(&mut self) -> Result<Sequence> {
        let slot = self.slots.last().copied();
        let slot = slot.ok_or_else(|| Error::msg("all sequence slots are taken").hint("end a sequence"))?;
        self.tell(&Command::Start(slot))?;
        self.begin(slot)
    }

    fn begin(&mut self, slot: usize) -> Result<Sequence> {
        let free = self.slots.iter().position(|free| *free == slot);
        self.slots.remove(free.ok_or_else(|| Error::msg(format!("the sequence slot {slot} is taken")))?);
        for state in &mut self.states {
            if let LayerState::Delta(store) = state {
                store.reset(slot);
            }
        }
        Ok(Sequence { slot, len: 0, pages: Vec::new() })
    }

    /// Ends a sequence.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn end(&mut self, sequence: Sequence) -> Result<()> {
        self.tell(&Command::End(sequence.slot))?;
        self.forget(sequence);
        Ok(())
    }

    fn forget(&mut self, mut sequence: Sequence) {
        self.pages.release(&mut sequence.pages);
        self.slots.push(sequence.slot);
    }

    /// Appends tokens to sequences and returns the logits that are wanted, run after run: `[rows, vocab]`.
    ///
    /// # Errors
    /// If a run has no tokens, a sequence would outgrow its context, a token is not in the vocabulary, the logits are
    /// not numbers, or a rank is lost.
    pub fn forward(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        observer: Option<Observer<'_>>,
    ) -> Result<Tensor> {
        for (sequence, tokens) in runs.iter() {
            if tokens.is_empty() {
                return Err(Error::msg("a run has no tokens").hint("leave out sequences that have nothing to run"));
            }
            let len = sequence.len + tokens.len();
            if len > self.context {
                let error = format!("{len} positions do not fit a context of {}", self.context);
                return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
            }
        }
        if self.ranks.world.world_size() > 1 {
            // checked before the others begin what they could not finish
            let vocab = self.model.geometry.vocab;
            if let Some(id) = runs.iter().flat_map(|(_, tokens)| *tokens).find(|id| **id as usize >= vocab) {
                return Err(Error::msg(format!("token {id} is not in the embedding table of {vocab} rows")));
            }
            let runs = runs.iter().map(|(sequence, tokens)| (sequence.slot, tokens.to_vec())).collect();
            self.tell(&Command::Forward(runs, wanted))?;
        }
        let logits = self.step(runs, wanted, observer)?;
        let logits = logits.unwrap_or_else(|| Tensor::zeros(0, self.model.geometry.vocab));
        if logits.data().iter().any(|logit| !logit.is_finite()) {
            return Err(self.model.explain_nan());
        }
        Ok(logits)
    }

    /// This rank's part of a forward pass.
    fn step(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        observer: Option<Observer<'_>>,
    ) -> Result<Option<Tensor>> {
        let (mut batch, mut ids, mut rows) = (Batch::default(), Vec::new(), Vec::new());
        for (sequence, tokens) in runs.iter_mut() {
            let len = sequence.len + tokens.len();
            self.pages.extend(&mut sequence.pages, len)?;
            batch.push(sequence.slot, sequence.len, tokens.len(), &sequence.pages);
            ids.extend_from_slice(tokens);
            match wanted {
                Wanted::Nothing => {}
                Wanted::Last => rows.push(ids.len() - 1),
                Wanted::All => rows.extend(ids.len() - tokens.len()..ids.len()),
            }
        }
        let (start, before) = (Instant::now(), self.ranks.world.stats());
        self.ranks.world.busy(true)?;
        let on = (self.backend.as_ref(), &mut self.ranks);
        let logits = self.model.decoder.forward(&ids, &rows, &batch, &mut self.states, on, observer)?;
        self.ranks.world.busy(false)?;
        let decode = runs.iter().all(|(_, tokens)| tokens.len() == 1);
        self.usage.add(decode, ids.len(), start.elapsed(), &before, &self.ranks.world.stats());
        for (sequence, tokens) in runs.iter_mut() {
            sequence.len += tokens.len();
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
        let mut rest: Vec<(usize, &mut Sequence, &[u32])> = Vec::new();
        for (prompt, (sequence, tokens)) in prompts.iter_mut().enumerate() {
            rest.push((prompt, sequence, tokens));
        }
        if rest.is_empty() || rest.iter().any(|(.., tokens)| tokens.is_empty()) {
            return Err(Error::msg("the prompt has no tokens").hint("give some text with --prompt"));
        }
        let mut logits = Tensor::zeros(rest.len(), self.model.geometry.vocab);
        let (mut done, mut rows, grain) = (0, FIRST_ROWS, self.backend.grain());
        loop {
            let share = (rows / rest.len() / grain).max(1) * grain;
            let ends = rest.iter().any(|(.., tokens)| cut(tokens.len(), share, grain) == tokens.len());
            let pass = rest.iter_mut();
            let pass = pass.map(|(_, sequence, tokens)| (&mut **sequence, &tokens[..cut(tokens.len(), share, grain)]));
            let mut pass: Vec<(&mut Sequence, &[u32])> = pass.collect();
            let (count, start) = (pass.iter().map(|(_, tokens)| tokens.len()).sum::<usize>(), Instant::now());
            // a pass that wants nothing back lets the next one begin while later stages still work on it
            let last = self.forward(&mut pass, if ends { Wanted::Last } else { Wanted::Nothing }, None)?;
            // how a prompt is cut changes no bit of the logits
            let rate = count as f64 / start.elapsed().as_secs_f64().max(1e-9);
            rows = ((rate * PASS_SECONDS) as usize).clamp(LEAST_ROWS, MOST_ROWS);
            for (row, (prompt, _, tokens)) in rest.iter_mut().enumerate() {
                let count = cut(tokens.len(), share, grain);
                if tokens.len() == count {
                    logits.row_mut(*prompt).copy_from_slice(last.row(row));
                }
                *tokens = &tokens[count..];
            }
            rest.retain(|(.., tokens)| !tokens.is_empty());
            done += count;
            if !progress(done) {
                return Ok(None);
            }
            if rest.is_empty() {
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
        let (mut rest, grain) = (tokens, self.backend.grain());
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
