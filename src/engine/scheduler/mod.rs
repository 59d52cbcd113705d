//! Many answers at once: jobs join and leave between two steps.
//!
//! Rank 0 decides what a step has in it (`plan.rs`) and tells the others. A sequence that is to be decoded has a row in every
//! step; prompts have what is left of a step's rows. Where the model runs in stages, several steps over different sequences
//! are under way at once. A job that has no pages left gives up its place and computes again what it had.
//!
//! **Invariant:** what a job is given depends on the job alone: the logits of a row depend on no other row, and what is drawn
//! on (seed, choice, position).

mod groups;
mod plan;
mod task;

use std::collections::VecDeque;

pub use self::groups::Groups;
use self::task::Task;
use super::output::Basis;
use super::prefix::Prefixes;
use super::session::{Flight, check_tokens};
use super::{Engine, Job, Timings, Update, Wanted};
use crate::comm::AHEAD;
use crate::error::{Error, Result};

/// Steps under way at once at most: the last stage waits for none of the messages with their output to be taken.
const MOST_FLIGHTS: usize = AHEAD;

/// What a scheduler may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens of a step at most, those of prompts and answers together.
    pub rows: usize,
    /// Whether prompts that begin alike share what they have in common.
    pub shares: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { rows: 512, shares: true }
    }
}

/// What a scheduler has and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that have a place.
    pub running: usize,
    /// Jobs that wait for one.
    pub waiting: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Of them, those that are free.
    pub free: usize,
    /// Of them, those that are kept for prompts to come.
    pub cached: usize,
    /// Jobs that had to give up their place for a while.
    pub preempted: u64,
    /// Tokens of prompts that were run; again for a job that had given up its place, and then its answer's too.
    pub prompt_tokens: u64,
    /// Tokens that were there already when a job got its place.
    pub shared_tokens: u64,
    /// Tokens that were chosen.
    pub generated_tokens: u64,
    /// Steps.
    pub steps: u64,
}

/// Runs jobs on an engine.
#[derive(Default)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Task>,
    running: Vec<Task>,
    flights: VecDeque<Flying>,
    arrivals: u64,
    // rows a second of the steps that prompts were in
    rate: Option<f64>,
    // the last step was of whole tiles of prompts
    tiles: bool,
    counts: Counts,
}

/// A step under way, and whose it is.
struct Flying {
    flight: Flight,
    // order, tokens, and what is wanted of the last of them
    parts: Vec<(u64, usize, Wanted)>,
}

impl Scheduler {
    /// A scheduler without jobs.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds a job.
    ///
    /// # Errors
    /// If it could never run: its prompt is empty or longer than the context, or has a token that is not in the vocabulary.
    pub fn submit(&mut self, engine: &Engine, job: Job) -> Result<()> {
        let (tokens, context) = (job.prompt.len(), engine.context());
        if job.prompt.is_empty() {
            return Err(Error::msg("the prompt has no tokens").hint("give it some text"));
        }
        if tokens > context {
            let error = format!("the prompt has {tokens} tokens, the context {context}");
            return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
        }
        check_tokens(&job.prompt, engine.model().geometry.vocab)?;
        self.waiting.push_back(Task::new(job, self.arrivals));
        self.arrivals += 1;
        Ok(())
    }

    /// Ends a job: nothing more is told of it, and no step that begins from now on has it. `None` if there is none of that
    /// number.
    pub fn end(&mut self, id: u64) -> Option<Timings> {
        if let Some(at) = self.waiting.iter().position(|task| task.job.id == id) {
            return self.waiting.remove(at).map(|task| task.timings());
        }
        let alive = |task: &&mut Task| task.job.id == id && task.place.as_ref().is_some_and(|place| !place.dead);
        let task = self.running.iter_mut().find(alive)?;
        if let Some(place) = &mut task.place {
            place.dead = true;
        }
        Some(task.timings())
    }

    /// Ends all jobs. Steps that are under way on other ranks come to their end.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn end_all(&mut self, engine: &mut Engine) -> Result<()> {
        self.waiting.clear();
        for place in self.running.iter_mut().filter_map(|task| task.place.as_mut()) {
            place.dead = true;
        }
        while !self.is_idle() {
            self.step(engine)?;
        }
        Ok(())
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.flights.is_empty()
    }

    /// What it has and did.
    pub fn counts(&self) -> Counts {
        let running = self.running.iter().filter(|task| !task.is_dead()).count();
        Counts { running, waiting: self.waiting.len(), ..self.counts }
    }

    /// One step of all ranks. Where several are under way, the first of them.
    ///
    /// # Errors
    /// If a rank is lost: the run is over.
    pub fn step(&mut self, engine: &mut Engine) -> Result<Vec<Update>> {
        let mut updates = Vec::new();
        while self.flights.len() < engine.stages().min(MOST_FLIGHTS) && self.launch(engine)? {}
        (self.counts.pages, self.counts.free) = (engine.pages.total(), engine.pages.free());
        self.counts.cached = engine.prefixes.as_ref().map_or(0, Prefixes::idle);
        let Some(flying) = self.flights.pop_front() else { return Ok(updates) };
        let output = engine.collect(flying.flight)?;
        self.counts.steps += 1;
        let mut bases = output.bases();
        for (order, tokens, wanted) in flying.parts {
            self.settle(engine, order, tokens, bases.next(wanted), &mut updates);
        }
        Ok(updates)
    }

    /// A job's part of a step is done.
    fn settle(
        &mut self,
        engine: &mut Engine,
        order: u64,
        tokens: usize,
        basis: Option<Basis<'_>>,
        updates: &mut Vec<Update>,
    ) {
        let Ok(at) = self.running.binary_search_by_key(&order, |task| task.order) else { return };
        let task = &mut self.running[at];
        let shareable = task.shareable(engine.grain());
        let Some(place) = &mut task.place else { return };
        place.flying = false;
        let len = place.sequence.len();
        if let (Some(prefixes), true) = (&mut engine.prefixes, self.limits.shares) {
            let known = &task.tokens[..shareable.min(len)];
            prefixes.computed(order, &mut place.way, known, &place.sequence.pages, &mut engine.pages);
            if let Some(slot) = prefixes.keep_state(&place.way, len) {
                engine.keep_state(&place.sequence, slot);
            }
        }
        if place.dead {
            return;
        }
        if tokens > 1 || len <= task.job.prompt.len() {
            self.counts.prompt_tokens += tokens as u64;
            let (done, total) = (task.prompt_done(), task.job.prompt.len());
            updates.push(Update::Prompt { id: task.job.id, done, shared: task.shared, total });
        }
        let Some(basis) = basis else { return };
        let before = task.timings().generated_tokens;
        let done = task.choose(basis, engine.context(), updates);
        self.counts.generated_tokens += (task.timings().generated_tokens - before) as u64;
        if let (true, Some(place)) = (done, &mut task.place) {
            place.dead = true;
        }
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scheduler({} running, {} waiting)", self.running.len(), self.waiting.len())
    }
}
