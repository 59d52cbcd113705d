//! A job on its way: its tokens so far, and what it holds.

use std::time::Instant;

use crate::backend::PAGE;
use crate::engine::output::Basis;
use crate::engine::prefix::{Wait, Way};
use crate::engine::{Chosen, Finish, Job, Logprobs, Sampler, Sequence, Timings, Update, Wanted};
use crate::error::Result;

/// A job that is not done.
pub(super) struct Task {
    pub(super) job: Job,
    /// Its number among all jobs: an older one goes first.
    pub(super) order: u64,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    pub(super) place: Option<Place>,
    /// Tokens of the prompt that were there when it got its place.
    pub(super) shared: usize,
    /// Another job computes what it begins with.
    pub(super) waits: Option<Wait>,
    /// The step that it took part in last.
    pub(super) last: u64,
    sampler: Sampler,
    timings: Timings,
    arrived: Instant,
    begun: Option<Instant>,
    first: Option<Instant>,
}

/// What a running job holds.
pub(super) struct Place {
    pub(super) sequence: Sequence,
    pub(super) way: Way,
    /// A step that it takes part in is under way.
    pub(super) flying: bool,
    /// Nobody wants it any more.
    pub(super) dead: bool,
}

impl Task {
    pub(super) fn new(job: Job, order: u64) -> Self {
        let mut sampler = Sampler::new(job.sampling.clone(), job.choice);
        sampler.accept_prompt(&job.prompt);
        Self {
            order,
            tokens: job.prompt.clone(),
            place: None,
            shared: 0,
            waits: None,
            last: 0,
            sampler,
            timings: Timings::default(),
            arrived: Instant::now(),
            begun: None,
            first: None,
            job,
        }
    }

    /// It has a place, where `shared` tokens are there already.
    pub(super) fn begin(&mut self, sequence: Sequence, way: Way) {
        self.begun.get_or_insert_with(Instant::now);
        self.shared = sequence.len().min(self.job.prompt.len() - 1);
        self.place = Some(Place { sequence, way, flying: false, dead: false });
    }

    /// Tokens that are to be run before the next one can be chosen; none without a place.
    pub(super) fn left(&self) -> usize {
        self.place.as_ref().map_or(0, |place| self.tokens.len() - place.sequence.len())
    }

    /// How many of its tokens may be shared with others. Where the bits of a prompt's rows are those of whole tiles, an
    /// answer's are not, nor are those of the rows after the last tile.
    pub(super) fn shareable(&self, grain: usize) -> usize {
        if grain > 1 { self.tiled(grain) } else { self.tokens.len() }
    }

    /// Tokens of the prompt that are run in whole tiles of `grain`.
    pub(super) fn tiled(&self, grain: usize) -> usize {
        self.job.prompt.len() / grain * grain
    }

    /// Pages that it will want for what it has, and a token more.
    pub(super) fn wants(&self, context: usize) -> usize {
        let pages = (self.tokens.len() + 1).min(context).div_ceil(PAGE);
        pages.saturating_sub(self.place.as_ref().map_or(0, |place| place.sequence.pages.len()))
    }

    pub(super) fn is_dead(&self) -> bool {
        self.place.as_ref().is_some_and(|place| place.dead)
    }

    /// Whether it can take part in the next step.
    pub(super) fn is_ready(&self) -> bool {
        self.place.as_ref().is_some_and(|place| !place.flying && !place.dead)
    }

    /// Tokens of the prompt that are done.
    pub(super) fn prompt_done(&self) -> usize {
        self.place.as_ref().map_or(0, |place| place.sequence.len().min(self.job.prompt.len()))
    }

    /// Chooses the next token from what was wanted; tells of it, and whether it is done.
    pub(super) fn choose(&mut self, basis: Basis<'_>, context: usize, updates: &mut Vec<Update>) -> bool {
        let now = Instant::now();
        if self.first.is_none() {
            self.timings.prompt_tokens = self.job.prompt.len() - self.shared;
            self.timings.prompt_seconds = (now - self.begun.unwrap_or(self.arrived)).as_secs_f64();
        }
        let id = self.job.id;
        if self.job.max_tokens == 0 {
            updates.push(Update::Done { id, finish: Finish::Length, timings: self.timings });
            return true;
        }
        let chosen = match self.pick(basis) {
            Ok(chosen) => chosen,
            Err(error) => {
                updates.push(Update::Failed { id, error });
                return true;
            }
        };
        self.timings.generated_tokens += 1;
        let first = *self.first.get_or_insert(now);
        self.timings.first_token_seconds = (first - self.arrived).as_secs_f64();
        self.timings.decode_seconds = (now - first).as_secs_f64();
        let token = chosen.token;
        let finish = if self.job.eos.contains(&token) {
            Some(Finish::Stop)
        } else {
            updates.push(Update::Token { id, chosen });
            self.tokens.push(token);
            let complete = self.job.constraint.as_ref().is_some_and(|constraint| constraint.is_complete());
            let full = self.timings.generated_tokens >= self.job.max_tokens || self.tokens.len() > context;
            if complete { Some(Finish::Stop) } else { full.then_some(Finish::Length) }
        };
        updates.extend(finish.map(|finish| Update::Done { id, finish, timings: self.timings }));
        finish.is_some()
    }

    /// What the next token is to be chosen from: logits, unless nothing but the sampler looks at them, and that need not.
    pub(super) fn wanted(&self) -> Wanted {
        let looks = self.job.constraint.is_some() || self.job.logprobs.is_some();
        if looks { Wanted::Last } else { self.sampler.wanted() }
    }

    fn pick(&mut self, basis: Basis<'_>) -> Result<Chosen> {
        let position = self.tokens.len();
        let Basis::Logits(logits) = basis else {
            return Ok(Chosen { token: self.sampler.choose_from(basis, position), logprobs: None });
        };
        let token = match &mut self.job.constraint {
            None => self.sampler.choose(logits, position),
            Some(constraint) => {
                let mut allowed = logits.to_vec();
                constraint.restrict(&mut allowed)?;
                let token = self.sampler.choose(&allowed, position);
                constraint.accept(token)?;
                token
            }
        };
        Ok(Chosen { token, logprobs: self.job.logprobs.map(|count| Logprobs::of(logits, token, count)) })
    }

    /// How long it took so far.
    pub(super) fn timings(&self) -> Timings {
        self.timings
    }
}
