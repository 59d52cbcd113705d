//! Sequences on a model: their slots and pages, and forward passes over them.

use std::time::{Duration, Instant};

use super::command::{Change, Run, Step};
use super::output::Output;
use super::pages::PagePool;
use super::prefix::Prefixes;
use super::sequence::{Beginning, Room, Sequence};
use super::usage::Usage;
use crate::backend::{Backend, Batch, LayerState, PAGE, Tensor};
use crate::comm::{Ranks, Stats};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Asked, Observer, Outputs, Pending};

/// A model with room for sequences.
pub struct Engine {
    pub(super) model: Model,
    pub(super) backend: Box<dyn Backend>,
    pub(super) ranks: Ranks,
    states: Vec<LayerState>,
    // what every slot holds, on every rank
    tables: Vec<Option<Table>>,
    // these are rank 0's to decide on
    slots: Vec<usize>,
    pub(super) pages: PagePool,
    /// Pages that are kept for sequences to come.
    pub(super) prefixes: Option<Prefixes>,
    changes: Vec<Change>,
    // passes that were launched and not collected
    flights: usize,
    room: Room,
    pub(super) usage: Usage,
}

/// What a slot holds.
#[derive(Debug)]
struct Table {
    len: usize,
    pages: Vec<u32>,
}

/// What a caller wants of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// None: the prompt goes on.
    Nothing,
    /// The logits of the last row of every run.
    Last,
    /// Those of every row.
    All,
    /// The token of the largest logit of the last row of every run: no more than that goes from rank to rank.
    Token,
}

/// A pass that was launched, and whose output is to be collected.
#[derive(Debug)]
#[must_use = "its output is on its way"]
pub(super) struct Flight {
    pending: Pending,
    rows: usize,
    decode: bool,
    spent: Duration,
    before: Stats,
    after: Stats,
}

impl Engine {
    /// Makes room for `sequences` sequences of up to `context` positions each, on one rank.
    ///
    /// # Errors
    /// If the system has no room for their state, or the device for the weights.
    pub fn new(model: Model, backend: Box<dyn Backend>, context: usize, sequences: usize) -> Result<Self> {
        Self::with_ranks(model, backend, Room::of(context, sequences)?, Ranks::solo())
    }

    /// As [`Engine::new`], as one of the ranks that the model was loaded for. Rank 0 is used as if it were alone, the
    /// others [`Engine::follow`].
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_ranks(mut model: Model, backend: Box<dyn Backend>, room: Room, ranks: Ranks) -> Result<Self> {
        model.keep(backend.as_ref(), &|_, _| true)?;
        let states = model.decoder.states(backend.as_ref(), room.pages, room.states())?;
        let kept: Vec<usize> = (room.sequences..room.states()).rev().collect();
        let prefixes = match (model.recurrent, kept.is_empty()) {
            (true, true) => None,
            (recurrent, _) => Some(Prefixes::new(recurrent.then_some(kept), backend.grain())),
        };
        Ok(Self {
            model,
            backend,
            ranks,
            states,
            tables: (0..room.sequences).map(|_| None).collect(),
            slots: (0..room.sequences).rev().collect(),
            pages: PagePool::new(room.pages),
            prefixes,
            changes: Vec::new(),
            flights: 0,
            room,
            usage: Usage::default(),
        })
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
        self.room.context
    }

    /// What there is room for.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Stages that the model runs in.
    pub fn stages(&self) -> usize {
        self.ranks.stages
    }

    /// As [`Backend::grain`].
    pub fn grain(&self) -> usize {
        self.backend.grain()
    }

    /// Sequences that may be started.
    pub fn free_slots(&self) -> usize {
        self.slots.len()
    }

    /// Starts an empty sequence.
    ///
    /// # Errors
    /// If all slots are taken.
    pub fn start(&mut self) -> Result<Sequence> {
        self.start_with(&Beginning::default())
    }

    /// Starts a sequence of what others have computed.
    ///
    /// # Errors
    /// If all slots are taken, or a page is to be copied and none is free.
    pub(super) fn start_with(&mut self, beginning: &Beginning) -> Result<Sequence> {
        let none = || Error::msg("all sequence slots are taken").hint("end a sequence");
        let slot = self.slots.last().copied().ok_or_else(none)?;
        let mut pages = beginning.pages.clone();
        if let Some((from, _)) = beginning.part {
            let to = self.pages.take(1)?[0];
            self.changes.push(Change::CopyPage { from, to });
            pages.push(to);
        }
        beginning.pages.iter().for_each(|page| self.pages.hold(*page));
        self.slots.pop();
        let len = beginning.len();
        self.changes.push(Change::Begin { slot, len, state: beginning.state, pages: pages.clone() });
        Ok(Sequence { slot, len, pages })
    }

    /// Ends a sequence.
    pub fn end(&mut self, mut sequence: Sequence) {
        self.changes.push(Change::End(sequence.slot));
        sequence.pages.drain(..).rev().for_each(|page| self.pages.release(page));
        self.slots.push(sequence.slot);
    }

    /// Keeps the recurrent state that a sequence has now, in the slot `to` beyond those of sequences.
    pub(super) fn keep_state(&mut self, sequence: &Sequence, to: usize) {
        self.changes.push(Change::CopyState { from: sequence.slot, to });
    }

    /// Appends tokens to sequences and returns the logits that are wanted, run after run: `[rows, vocab]`.
    ///
    /// # Errors
    /// If a run has no tokens, a sequence would outgrow its context, a token is not in the vocabulary, the logits are
    /// not numbers, a rank is lost, or tokens are wanted: these are [`Engine::next_tokens`].
    pub fn forward(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        observer: Option<Observer<'_>>,
    ) -> Result<Tensor> {
        if wanted == Wanted::Token {
            let error = Error::msg("a pass of which tokens are wanted gives no logits");
            return Err(error.hint("ask for them by `Engine::next_tokens`"));
        }
        self.pass(runs, wanted, observer).map(|output| output.logits)
    }

    /// Appends tokens to sequences and returns the token of each run's last row that has the largest logit, the lowest among
    /// equals. It is taken where the logits are.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub fn next_tokens(&mut self, runs: &mut [(&mut Sequence, &[u32])]) -> Result<Vec<u32>> {
        self.pass(runs, Wanted::Token, None).map(|output| output.tokens)
    }

    /// As [`Engine::forward`], whatever is wanted.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub(super) fn pass(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32])],
        wanted: Wanted,
        observer: Option<Observer<'_>>,
    ) -> Result<Output> {
        let mut runs: Vec<(&mut Sequence, &[u32], Wanted)> =
            runs.iter_mut().map(|(sequence, tokens)| (&mut **sequence, *tokens, wanted)).collect();
        self.none_is_under_way()?;
        let flight = self.launch(&mut runs, observer)?;
        self.collect(flight)
    }

    /// As [`Engine::pass`], but does not wait for the output, and of every run something else may be wanted. Where the model
    /// runs in stages, so many passes may be under way at once, over different sequences, and are collected in their order.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub(super) fn launch(
        &mut self,
        runs: &mut [(&mut Sequence, &[u32], Wanted)],
        observer: Option<Observer<'_>>,
    ) -> Result<Flight> {
        // all is checked before the others begin what they could not finish
        let vocab = self.model.geometry.vocab;
        for (sequence, tokens, _) in runs.iter() {
            if tokens.is_empty() {
                return Err(Error::msg("a run has no tokens").hint("leave out sequences that have nothing to run"));
            }
            let (len, context) = (sequence.len + tokens.len(), self.room.context);
            if len > context {
                let error = format!("{len} positions do not fit a context of {context}");
                return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
            }
            check_tokens(tokens, vocab)?;
        }
        let lacking = runs.iter().map(|(sequence, tokens, _)| sequence.lacks(tokens.len())).sum();
        self.make_room(lacking);
        let mut fresh = self.pages.take(lacking)?.into_iter();
        let mut step = Step { changes: std::mem::take(&mut self.changes), runs: Vec::new() };
        for (sequence, tokens, wanted) in runs.iter_mut() {
            let pages: Vec<u32> = fresh.by_ref().take(sequence.lacks(tokens.len())).collect();
            sequence.pages.extend(&pages);
            sequence.len += tokens.len();
            step.runs.push(Run { slot: sequence.slot, wanted: *wanted, pages, tokens: tokens.to_vec() });
        }
        self.tell(|| step.encode())?;
        self.run(step, observer)
    }

    /// Refuses what would be taken for the output of a pass that was launched.
    ///
    /// # Errors
    /// If there is one.
    pub(super) fn none_is_under_way(&self) -> Result<()> {
        if self.flights == 0 { Ok(()) } else { Err(Error::msg("steps are under way, and their output comes first")) }
    }

    /// Gives up pages that are only kept for sequences to come until `pages` are free; tells whether they are.
    pub(super) fn make_room(&mut self, pages: usize) -> bool {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.make_room(pages, &mut self.pages);
        }
        self.pages.free() >= pages
    }

    /// Words that the changes to come take of the next command.
    pub(super) fn queued_words(&self) -> usize {
        let pages = |change: &Change| if let Change::Begin { pages, .. } = change { pages.len() } else { 0 };
        self.changes.iter().map(|change| 5 + pages(change)).sum()
    }

    /// What a pass gives.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    pub(super) fn collect(&mut self, flight: Flight) -> Result<Output> {
        let Flight { pending, rows, decode, spent, before, after } = flight;
        self.flights -= 1;
        let (start, here) = (Instant::now(), self.ranks.world.stats());
        self.ranks.world.busy(true)?;
        let outputs = self.model.decoder.collect(pending, (self.backend.as_ref(), &mut self.ranks))?;
        self.ranks.world.busy(false)?;
        let spans = [(&before, &after), (&here, &self.ranks.world.stats())];
        self.usage.add(decode, rows, spent + start.elapsed(), spans);
        let Some(Outputs { logits, peaks }) = outputs else {
            return Ok(Output::zeros(0, self.model.geometry.vocab, Wanted::Nothing));
        };
        if logits.data().iter().any(|logit| !logit.is_finite()) || peaks.iter().any(|peak| !peak.finite) {
            return Err(self.model.explain_nan());
        }
        Ok(Output { logits, tokens: peaks.iter().map(|peak| peak.column).collect() })
    }

    /// This rank's part of a step.
    ///
    /// # Errors
    /// If it names a slot or a page that cannot be, or a rank is lost.
    pub(super) fn run(&mut self, step: Step, observer: Option<Observer<'_>>) -> Result<Flight> {
        step.changes.into_iter().try_for_each(|change| self.change(change))?;
        let (mut batch, mut ids, mut asked) = (Batch::default(), Vec::new(), Asked::default());
        let decode = step.runs.iter().all(|run| run.tokens.len() == 1);
        for Run { slot, wanted, pages, tokens } in step.runs {
            self.check_pages(&pages)?;
            let table = self.tables.get_mut(slot).and_then(Option::as_mut).ok_or_else(|| unknown(slot))?;
            table.pages.extend(pages);
            if tokens.is_empty() || table.pages.len() * PAGE < table.len + tokens.len() {
                let error = format!("rank 0 gives the sequence in slot {slot} no tokens, or too few pages");
                return Err(Error::msg(error));
            }
            batch.push(slot, table.len, tokens.len(), &table.pages);
            table.len += tokens.len();
            ids.extend_from_slice(&tokens);
            match wanted {
                Wanted::Nothing => {}
                Wanted::Last => asked.logits.push(ids.len() - 1),
                Wanted::All => asked.logits.extend(ids.len() - tokens.len()..ids.len()),
                Wanted::Token => asked.tokens.push(ids.len() - 1),
            }
        }
        let (start, before) = (Instant::now(), self.ranks.world.stats());
        self.ranks.world.busy(true)?;
        let on = (self.backend.as_ref(), &mut self.ranks);
        let pending = self.model.decoder.launch(&ids, &asked, &batch, &mut self.states, on, observer)?;
        self.ranks.world.busy(false)?;
        let after = self.ranks.world.stats();
        self.flights += 1;
        Ok(Flight { pending, rows: ids.len(), decode, spent: start.elapsed(), before, after })
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let states = self.room.states();
        let check = |state: usize| if state < states { Ok(state) } else { Err(unknown(state)) };
        match change {
            Change::Begin { slot, len, state, pages } => {
                self.check_pages(&pages)?;
                if self.tables.get(slot).is_none_or(Option::is_some) || len > pages.len() * PAGE {
                    return Err(Error::msg(format!("rank 0 begins a sequence of {len} positions in the slot {slot}")));
                }
                self.tables[slot] = Some(Table { len, pages });
                match state.map(check).transpose()? {
                    Some(from) => self.states.iter_mut().for_each(|state| state.copy_state(from, slot)),
                    None => self.states.iter_mut().for_each(|state| state.reset(slot)),
                }
            }
            Change::End(slot) => {
                let ended = self.tables.get_mut(slot).and_then(Option::take);
                ended.ok_or_else(|| unknown(slot))?;
            }
            Change::CopyPage { from, to } => {
                self.check_pages(&[from, to])?;
                self.states.iter_mut().for_each(|state| state.copy_page(from, to));
            }
            Change::CopyState { from, to } => {
                let (from, to) = (check(from)?, check(to)?);
                self.states.iter_mut().for_each(|state| state.copy_state(from, to));
            }
        }
        Ok(())
    }

    fn check_pages(&self, pages: &[u32]) -> Result<()> {
        let outside = pages.iter().find(|page| **page as usize >= self.room.pages);
        outside.map_or(Ok(()), |page| Err(Error::msg(format!("rank 0 names page {page} of {}", self.room.pages))))
    }
}

/// Refuses tokens that a vocabulary of `vocab` does not have.
pub(super) fn check_tokens(tokens: &[u32], vocab: usize) -> Result<()> {
    let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) else { return Ok(()) };
    let hint = "tokenizer.json and the weights do not belong together, or the ids are another model's";
    Err(Error::msg(format!("token {id} is not in the embedding table of {vocab} rows")).hint(hint))
}

fn unknown(slot: usize) -> Error {
    Error::msg(format!("rank 0 names the slot {slot}, where there is no sequence"))
}
