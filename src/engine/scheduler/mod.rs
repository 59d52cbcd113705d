//! Many answers at once: jobs join and leave between two steps.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Chosen, Logprobs};
use super::{Engine, Finish, Job, Sampler, Sequence, Timings, Update, Wanted};
use crate::error::{Error, Result};

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
    /// Of them, those that sequences hold.
    pub held: usize,
    /// Of them, those that are kept for prompts to come.
    pub cached: usize,
    /// Jobs that had to give up their place for a while.
    pub preempted: u64,
    /// Tokens of prompts that were run.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were there from other prompts.
    pub shared_tokens: u64,
    /// Tokens that were chosen.
    pub generated_tokens: u64,
    /// Steps.
    pub steps: u64,
}

struct Running {
    job: Job,
    sequence: Sequence,
    sampler: Sampler,
    done: usize,
    next: Option<u32>,
    generated: usize,
    start: Instant,
    timings: Timings,
}

/// Runs jobs on an engine.
#[derive(Default)]
pub struct Scheduler {
    limits: Limits,
    waiting: VecDeque<(Job, Instant)>,
    running: Vec<Running>,
    ended: Vec<Sequence>,
    counts: Counts,
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
        let (tokens, context, vocab) = (job.prompt.len(), engine.context(), engine.model().geometry.vocab);
        if job.prompt.is_empty() {
            return Err(Error::msg("the prompt has no tokens").hint("give it some text"));
        }
        if tokens > context {
            let error = format!("the prompt has {tokens} tokens, the context {context}");
            return Err(Error::msg(error).hint("raise --ctx or shorten the prompt"));
        }
        if let Some(id) = job.prompt.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::msg(format!("token {id} is not in the embedding table of {vocab} rows")));
        }
        self.waiting.push_back((job, Instant::now()));
        Ok(())
    }

    /// Ends a job: nothing more is told of it. `None` if there is none of that number.
    pub fn end(&mut self, id: u64, _finish: Finish) -> Option<Timings> {
        if let Some(at) = self.waiting.iter().position(|(job, _)| job.id == id) {
            self.waiting.remove(at);
            return Some(Timings::default());
        }
        let at = self.running.iter().position(|running| running.job.id == id)?;
        let running = self.running.remove(at);
        self.ended.push(running.sequence);
        Some(running.timings)
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.ended.is_empty()
    }

    /// What it has and did.
    pub fn counts(&self) -> Counts {
        Counts { running: self.running.len(), waiting: self.waiting.len(), ..self.counts }
    }

    /// One step of all ranks.
    ///
    /// # Errors
    /// If a rank is lost: the run is over.
    pub fn step(&mut self, engine: &mut Engine) -> Result<Vec<Update>> {
        for sequence in self.ended.drain(..) {
            engine.end(sequence)?;
        }
        while let Some((job, start)) = self.waiting.pop_front() {
            let Ok(sequence) = engine.start() else {
                self.waiting.push_front((job, start));
                break;
            };
            let mut sampler = Sampler::new(job.sampling.clone(), job.choice);
            sampler.accept_prompt(&job.prompt);
            let timings = Timings::default();
            self.running.push(Running { job, sequence, sampler, done: 0, next: None, generated: 0, start, timings });
        }
        let mut updates = Vec::new();
        if self.running.is_empty() {
            return Ok(updates);
        }
        self.counts.steps += 1;
        let room = self.limits.rows.max(1);
        let mut runs: Vec<(&mut Sequence, Vec<u32>)> = Vec::new();
        for running in &mut self.running {
            let tokens = match running.next {
                Some(token) => vec![token],
                None => running.job.prompt[running.done..].iter().copied().take(room).collect(),
            };
            runs.push((&mut running.sequence, tokens));
        }
        let mut borrowed: Vec<(&mut Sequence, &[u32])> =
            runs.iter_mut().map(|(sequence, tokens)| (&mut **sequence, &tokens[..])).collect();
        let logits = engine.forward(&mut borrowed, Wanted::Last, None)?;
        let counts: Vec<usize> = runs.iter().map(|(_, tokens)| tokens.len()).collect();
        let mut over = Vec::new();
        for (row, (running, count)) in self.running.iter_mut().zip(counts).enumerate() {
            let (id, total) = (running.job.id, running.job.prompt.len());
            if running.next.is_none() {
                running.done += count;
                self.counts.prompt_tokens += count as u64;
                updates.push(Update::Prompt { id, done: running.done, shared: 0, total });
                if running.done < total {
                    continue;
                }
                running.timings.prompt_tokens = total;
                running.timings.prompt_seconds = running.start.elapsed().as_secs_f64();
                running.timings.first_token_seconds = running.timings.prompt_seconds;
            }
            let mut row = logits.row(row).to_vec();
            let logprobs = running.job.logprobs.map(|_| Logprobs { chosen: 0.0, top: Vec::new() });
            if let Some(constraint) = &mut running.job.constraint
                && let Err(error) = constraint.restrict(&mut row)
            {
                updates.push(Update::Failed { id, error });
                over.push(id);
                continue;
            }
            let token = running.sampler.choose(&row, running.sequence.len());
            running.generated += 1;
            running.timings.generated_tokens = running.generated;
            self.counts.generated_tokens += 1;
            running.timings.decode_seconds =
                running.start.elapsed().as_secs_f64() - running.timings.first_token_seconds;
            let timings = running.timings;
            if running.job.eos.contains(&token) {
                updates.push(Update::Done { id, finish: Finish::Stop, timings });
                over.push(id);
                continue;
            }
            updates.push(Update::Token { id, chosen: Chosen { token, logprobs } });
            running.next = Some(token);
            if running.generated >= running.job.max_tokens || running.sequence.len() == engine.context() {
                updates.push(Update::Done { id, finish: Finish::Length, timings });
                over.push(id);
            }
        }
        for id in over {
            self.end(id, Finish::Stop);
        }
        Ok(updates)
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scheduler({:?})", self.counts())
    }
}
